"""What arrives together is committed together, and what fails fails alone."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from plugq.errors import InvalidJob, Unavailable
from plugq.job import JobRef
from plugq.protocols import (
    ClaimRequest,
    Lease,
    NewJob,
    RegisterChange,
    Settlement,
    SubmitStatus,
    SweepRequest,
)
from plugq_sqlite import SqliteStorage
from plugq_sqlite._submit import submit
from plugq_sqlite._transaction import Transaction

OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]
Claims = Callable[..., ClaimRequest]
Succeed = Callable[[Sequence[Lease]], list[Settlement]]


@asynccontextmanager
async def held(storage: SqliteStorage) -> AsyncIterator[None]:
    """Keep the writer busy, so that what is called inside ends up in one flush."""
    entered, leave = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def block(_: Transaction) -> None:
        loop.call_soon_threadsafe(entered.set)
        assert leave.wait(30)

    blocking = asyncio.create_task(storage._writer.call(block))
    await entered.wait()
    try:
        yield
        # The calls made inside are queued by their tasks' first steps.
        await asyncio.sleep(0)
    finally:
        leave.set()
    await blocking


def commits(storage: SqliteStorage) -> list[int]:
    """Return a list that grows by the number of calls of each transaction."""
    seen: list[int] = []
    transact = storage._writer._transact

    def counted(runs: list[Callable[[Transaction], object]]) -> object:
        seen.append(len(runs))
        return transact(runs)

    storage._writer._transact = counted  # type: ignore[assignment,method-assign]
    return seen


async def test_calls_that_wait_share_one_transaction(
    open_store: OpenStore, new_job: NewJobs, claim: Claims
) -> None:
    async with open_store() as storage:
        async with held(storage):
            seen = commits(storage)
            submits = [asyncio.create_task(storage.submit([new_job()])) for _ in range(50)]
            claims = [asyncio.create_task(storage.claim(claim(5))) for _ in range(10)]
            sweeping = asyncio.create_task(storage.sweep(SweepRequest()))
            change = RegisterChange(key="k", expect=0, value=b"v")
            swaps = [asyncio.create_task(storage.swap([change])) for _ in range(3)]
        replies = [reply for task in submits for reply in await task]
        assert {reply.status for reply in replies} == {SubmitStatus.ACCEPTED}
        assert sorted(reply.sequence for reply in replies) == list(range(1, 51))
        granted = [lease.id for task in claims for lease in (await task).leases]
        assert granted == [reply.id for reply in replies]
        assert (await sweeping).changes == ()
        assert [(await task).done for task in swaps] == [True, False, False]
        assert seen == [64]


async def unchecked(storage: SqliteStorage, *jobs: NewJob) -> None:
    """Submit what the verb would refuse before the writer sees it."""
    await storage._writer.call(partial(submit, jobs=jobs))


async def test_a_call_that_fails_fails_alone(open_store: OpenStore, new_job: NewJobs) -> None:
    async with open_store() as storage:
        async with held(storage):
            good = [asyncio.create_task(storage.submit([new_job()])) for _ in range(5)]
            bad = asyncio.create_task(unchecked(storage, new_job(), new_job("\ud800")))
            more = [asyncio.create_task(storage.submit([new_job()])) for _ in range(5)]
        with pytest.raises(InvalidJob):
            await bad
        sequences = [reply.sequence for task in good + more for reply in await task]
        assert sequences == list(range(1, 11))
        [stats] = (await storage.stats()).tasks
        assert stats.totals["accepted"] == stats.counts["queued"] == 10


async def test_names_made_in_a_transaction_that_failed_are_made_again(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        with pytest.raises(InvalidJob):
            await unchecked(storage, new_job(task="new"), new_job(task="new", priority=2**80))
        await storage.submit([new_job("a", queue="fresh", task="other")])
        await storage.submit([new_job("b", queue="fresh", task="new")])
        jobs = await storage.get([JobRef("fresh", "a"), JobRef("fresh", "b")])
        assert [job and job.task for job in jobs] == ["other", "new"]


async def test_cancelled_callers_do_not_disturb_the_others(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        async with held(storage):
            tasks = [asyncio.create_task(storage.submit([new_job()])) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [
            True,
            False,
        ] * 10
        [stats] = (await storage.stats()).tasks
        # They were cancelled before the writer came to them.
        assert stats.totals["accepted"] == 10


async def test_a_flush_is_bounded_in_bytes(open_store: OpenStore, new_job: NewJobs) -> None:
    async with open_store() as storage:
        async with held(storage):
            seen = commits(storage)
            body = b"x" * 3 * 1024 * 1024
            tasks = [asyncio.create_task(storage.submit([new_job(body=body)])) for _ in range(7)]
        await asyncio.gather(*tasks)
        assert seen == [3, 3, 1]


async def test_a_flush_is_bounded_in_items(open_store: OpenStore, new_job: NewJobs) -> None:
    async with open_store() as storage:
        async with held(storage):
            seen = commits(storage)
            tasks = [
                asyncio.create_task(storage.submit([new_job() for _ in range(1_000)]))
                for _ in range(6)
            ]
        await asyncio.gather(*tasks)
        assert seen == [4, 2]


async def test_stop_writes_what_is_waiting(open_store: OpenStore, new_job: NewJobs) -> None:
    async with open_store() as storage:
        async with held(storage):
            tasks = [asyncio.create_task(storage.submit([new_job()])) for _ in range(20)]
            await asyncio.sleep(0)
            stopping = asyncio.create_task(storage.stop())
        await asyncio.gather(*tasks)
        await stopping
        with pytest.raises(Unavailable, match="not started"):
            await storage.submit([new_job()])
        await storage.start()
        assert (await storage.stats()).tasks[0].totals["accepted"] == 20


def present(paths: Sequence[str]) -> int:
    return sum(Path(path).exists() for path in paths)


def _descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
async def test_nothing_is_left_after_stop(open_store: OpenStore, new_job: NewJobs) -> None:
    threads, files = threading.active_count(), _descriptors()
    async with open_store() as storage:
        watches = [storage.watch(f"p-{number}") for number in range(3)]
        for watch in watches:
            await anext(watch)
        addresses = [watch.address for watch in watches]
        assert present(addresses) == 3
        await storage.submit([new_job(origin="p-1")])
    assert present(addresses) == 0
    assert threading.active_count() == threads
    assert _descriptors() == files


async def test_an_idle_claim_and_an_empty_sweep_write_nothing(
    open_store: OpenStore, claim: Claims
) -> None:
    async with open_store() as storage:
        await storage.claim(claim(1))
        changes = await storage._writer.call(lambda tx: tx.db.total_changes)
        await storage.claim(claim(1))
        await storage.sweep(SweepRequest())
        assert await storage._writer.call(lambda tx: tx.db.total_changes) == changes
