"""Whether what is stored costs anything: claim and settle beside few and beside many jobs.

The store is filled with `restore`, as a migration does it: finished jobs, and a tenth as many that
wait for their time. Both stores are open at once and are measured in turn, and every claim and
settlement is checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from figures import Figures
from settings import Settings
from stores import MEMORY, sqlite

from plugq.assembly import Assembly
from plugq.job import JobRecord, JobState, Outcome
from plugq.protocols.storage import ClaimRequest, NewJob, Settlement, Storage, SweepRequest
from plugq.submission import uuid7

QUEUE, TASK, WORKER = "default", "noop", "bench"
FEW = 1_000
#: Jobs of one call of restore and of submit, and of one claim.
CHUNK, CLAIM = 1_000, 100
BODY, RESULT = bytes(120), bytes(20)


def delayed(number: int, now: float) -> JobRecord:
    return JobRecord(
        queue=QUEUE,
        id=uuid7(),
        task=TASK,
        state=JobState.DELAYED,
        sequence=number + 1,
        submission=os.urandom(16),
        submitted_at=now,
        ready_at=now + 86_400 + number / 1_000,
        body=BODY,
    )


def finished(number: int, now: float) -> JobRecord:
    return JobRecord(
        queue=QUEUE,
        id=uuid7(),
        task=TASK,
        state=JobState.SUCCEEDED,
        sequence=number + 1,
        submission=os.urandom(16),
        attempt=1,
        token=number + 1,
        worker=WORKER,
        submitted_at=now,
        ready_at=now,
        started_at=now,
        finished_at=now,
        # None expires while it is measured, and all of them stand in the index of retention.
        expires_at=now + 86_400 + number / 1_000,
        body=BODY,
        result=RESULT,
    )


async def restore(storage: Storage, number: int) -> float:
    """Fill the store and return jobs a second."""
    now, began = time.time(), time.perf_counter()
    total = number + number // 10
    for start in range(0, total, CHUNK):
        numbers = range(start, min(start + CHUNK, total))
        await storage.restore(
            [finished(at, now) if at < number else delayed(at, now) for at in numbers]
        )
    return total / (time.perf_counter() - began)


async def submit(storage: Storage, lanes: Sequence[str | None]) -> None:
    """Submit a job for each lane named."""
    await storage.submit(
        [
            NewJob(
                queue=QUEUE,
                id=uuid7(),
                task=TASK,
                submission=os.urandom(16),
                body=BODY,
                lane=lane,
            )
            for lane in lanes
        ]
    )


async def cycles(
    storage: Storage, jobs: int, numbers: itertools.count[int], *, lanes: int = 0
) -> float:
    """Submit jobs, then claim and settle them all; return microseconds a job for the latter."""
    names = [f"lane-{number % lanes}" if lanes else None for number in range(CHUNK)]
    for _ in range(0, jobs, CHUNK):
        await submit(storage, names)
    began = time.perf_counter()
    leases: Sequence[Any] = (await storage.claim(_request(numbers))).leases
    done = 0
    while leases:
        settlements = [
            Settlement(
                queue=lease.queue,
                id=lease.id,
                token=lease.token,
                outcome=Outcome.SUCCEED,
                result=RESULT,
            )
            for lease in leases
        ]
        replies, claimed = await storage.settle(settlements, _request(numbers))
        assert not any(reply.lost for reply in replies)
        done += len(replies)
        assert claimed is not None
        leases = claimed.leases
    took = time.perf_counter() - began
    assert done == jobs, f"{done} of {jobs} jobs were settled"
    return took / jobs * 1e6


def _request(numbers: itertools.count[int]) -> ClaimRequest:
    return ClaimRequest(worker=WORKER, number=next(numbers), queues=(QUEUE,), limit=CLAIM)


async def sweep(storage: Storage) -> float:
    """Return the milliseconds of a sweep that finds nothing to do."""
    began = time.perf_counter()
    reply = await storage.sweep(SweepRequest())
    assert not reply.changes
    return (time.perf_counter() - began) * 1e3


@contextlib.asynccontextmanager
async def opened(config: dict[str, Any]) -> AsyncIterator[Storage]:
    storage = Assembly(config).storage()
    await storage.start()
    try:
        yield storage
    finally:
        await storage.stop()


async def compare(
    figures: Figures, name: str, stores: dict[int, dict[str, Any]], settings: Settings
) -> None:
    jobs = 2_000 if settings.quick else 10_000
    few, many = stores
    async with opened(stores[few]) as small, opened(stores[many]) as large:
        await restore(small, few)
        figures.record(f"{name}: restored", await restore(large, many), "jobs/s")
        numbers = itertools.count(1)
        for _ in range(max(settings.repeat, 3)):
            for number, storage in ((few, small), (many, large)):
                cost = await cycles(storage, jobs, numbers)
                figures.record(f"{name}, {number:,} finished: claim and settle", cost, "us/job")
                figures.record(f"{name}, {number:,} finished: sweep", await sweep(storage), "ms")
    for step in ("claim and settle", "sweep"):
        figures.ratio(f"{name}, {many:,} finished: {step}", f"{name}, {few:,} finished: {step}")


def compared(
    compare: Callable[..., Coroutine[Any, Any, None]], figures: Figures, settings: Settings
) -> None:
    """Compare a store that holds few jobs with one that holds many, of each kind of storage."""
    wanted = settings.jobs or (20_000 if settings.quick else 1_000_000)
    many = max(10 * FEW, wanted // CHUNK * CHUNK)
    # A fifth of it, in memory, is to be more than the few.
    sizes = [(MEMORY, many // 5 // CHUNK * CHUNK), (sqlite(), many)]
    if settings.store is not None:
        sizes = [(settings.store, many)]
    for store, size in sizes:
        with settings.folder_for(figures.benchmark) as folder:
            stores = {number: store.deployment(folder, f"n{number}") for number in (FEW, size)}
            asyncio.run(compare(figures, store.name, stores, settings))


def run(settings: Settings) -> Figures:
    figures = Figures("finished")
    compared(compare, figures, settings)
    return figures
