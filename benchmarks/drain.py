"""Throughput: jobs drained by one worker process, and jobs submitted, beside the bare engines.

The backlog lies in a paused queue when the worker is ready; the clock runs from the resumption
until the last job is stored as succeeded, with its result. The ledger must show every job once.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import bare
import jobs
from figures import Figures
from processes import worker
from settings import Settings
from stores import Store, sqlite

from plugq import Client, JobRequest, connect

#: Takes an empty folder and returns jobs submitted and drained a second.
Work = Callable[[Path], Awaitable[tuple[float, float]]]

QUEUE = "default"
THOUSAND = 1000
IN_FLIGHT = 100
#: How often a worker's progress is looked at, in seconds.
LOOK = 0.01


async def drain(client: Client, ledger: jobs.Ledger) -> float:
    """Resume the queue and return after how many seconds every job is stored as succeeded."""
    number = len(ledger.marks)
    waiting = (await client.stats()).counts.get("queued", 0)
    assert waiting == number, f"{waiting} of {number} jobs wait before the start"
    assert not ledger.marks[:].strip(b"\0"), "jobs ran before the start"
    began = time.perf_counter()
    await client.queues.resume(QUEUE)
    # The worker may be another process, which tells this one nothing but through ledger and store.
    while not ledger.finished():  # noqa: ASYNC110
        await asyncio.sleep(LOOK)
    while (await client.stats()).counts.get("succeeded", 0) < number:  # noqa: ASYNC110
        await asyncio.sleep(LOOK / 10)
    took = time.perf_counter() - began
    ledger.check()
    return took


async def fill(client: Client, task: Any, number: int) -> float:
    """Submit a backlog, 1,000 in a call, and return jobs a second."""
    began = time.perf_counter()
    for start in range(0, number, THOUSAND):
        end = min(start + THOUSAND, number)
        await client.submit_many([task.job(at, jobs.TEXT) for at in range(start, end)])
    return number / (time.perf_counter() - began)


async def shared(
    folder: Path, store: Store, task: Any, number: int, concurrency: int | None
) -> tuple[float, float]:
    """Return jobs submitted and drained a second; the worker is a process of its own."""
    config = store.write(folder)
    ledger = jobs.Ledger(folder / "ledger", number)
    async with connect(config) as client:
        await client.queues.pause(QUEUE)
        submitted = await fill(client, task, number)
        with worker(config, concurrency=concurrency, extra={jobs.LEDGER: str(folder / "ledger")}):
            took = await drain(client, ledger)
    return submitted, number / took


async def memory(
    folder: Path, task: Any, number: int, concurrency: int | None
) -> tuple[float, float]:
    """Return jobs submitted and drained a second, all of it in this process."""
    ledger = jobs.Ledger(folder / "ledger", number)
    jobs.keep(ledger)
    async with jobs.app.running({}, concurrency=concurrency) as client:
        await client.queues.pause(QUEUE)
        submitted = await fill(client, task, number)
        took = await drain(client, ledger)
    return submitted, number / took


async def singles(folder: Path, store: Store, number: int) -> tuple[float, float]:
    """Return submits a second of one job a call: 100 calls in flight, and one at a time."""
    async with connect(store.write(folder)) as client:

        def request(at: int) -> JobRequest[int]:
            return jobs.noop.job(at, jobs.TEXT)

        numbers = iter(range(number))

        async def submit_some() -> None:
            for at in numbers:
                await client.submit(request(at))

        began = time.perf_counter()
        await asyncio.gather(*(submit_some() for _ in range(IN_FLIGHT)))
        together = number / (time.perf_counter() - began)
        few = max(1, number // 20)
        began = time.perf_counter()
        for at in itertools.islice(itertools.count(number), few):
            await client.submit(request(at))
        alone = few / (time.perf_counter() - began)
        stored = sum((await client.stats()).counts.values())
        assert stored == number + few, f"{stored} jobs are stored instead of {number + few}"
    return together, alone


def _shared(store: Store, task: Any, number: int, concurrency: int) -> Work:
    return lambda at: shared(at, store, task, number, concurrency)


def cases_of(store: Store, number: int) -> dict[str, Work]:
    return {
        f"{store.name}, 32 slots": _shared(store, jobs.noop, number, 32),
        f"{store.name}, 100 slots": _shared(store, jobs.noop, number, 100),
        f"{store.name}, 200 slots": _shared(store, jobs.noop, number, 200),
        f"{store.name}, 32 threads": _shared(store, jobs.noop_function, number, 32),
    }


def submissions(figures: Figures, settings: Settings, store: Store, number: int) -> None:
    with settings.folder_for("submit") as folder:
        together, alone = asyncio.run(singles(folder, store, number))
    figures.record(f"{store.name}: submit, 100 in flight", together, "jobs/s")
    figures.record(f"{store.name}: submit, one at a time", alone, "jobs/s")


def measure(figures: Figures, settings: Settings, cases: dict[str, Work], bulk: set[str]) -> None:
    for case, work in cases.items():
        with settings.folder_for("drain") as folder:
            submitted, done = asyncio.run(work(folder))
        figures.record(f"{case}: drained", done, "jobs/s")
        if case in bulk:
            figures.record(f"{case.rpartition(',')[0]}: bulk submit", submitted, "jobs/s")


def run(settings: Settings) -> Figures:
    figures = Figures("drain")
    number = settings.jobs or (4_000 if settings.quick else 20_000)
    if settings.store is None:
        built_in(figures, settings, number)
        return figures
    name = settings.store.name
    for _ in range(settings.repeat):
        measure(figures, settings, cases_of(settings.store, number), {f"{name}, 100 slots"})
        submissions(figures, settings, settings.store, number)
        figures.record("bare asyncio", asyncio.run(bare.asyncio_loop(number, 100)), "jobs/s")
    return figures


def built_in(figures: Figures, settings: Settings, number: int) -> None:
    full, normal = sqlite("full"), sqlite("normal")
    cases: dict[str, Work] = {
        "memory, 32 slots": lambda at: memory(at, jobs.noop, number, 32),
        "memory, 100 slots": lambda at: memory(at, jobs.noop, number, 100),
        "memory, 32 threads": lambda at: memory(at, jobs.noop_function, number, 32),
        **cases_of(full, number),
        "SQLite normal, 100 slots": _shared(normal, jobs.noop, number, 100),
    }
    bulk = {"memory, 32 slots", "SQLite full, 100 slots", "SQLite normal, 100 slots"}
    for _ in range(settings.repeat):
        measure(figures, settings, cases, bulk)
        for store, synchronous in ((full, "full"), (normal, "normal")):
            submissions(figures, settings, store, number)
            with settings.folder_for("bare") as folder:
                inserted, done = bare.sqlite_cycles(folder / "bare.db", synchronous, number)
            figures.record(f"bare SQLite {synchronous}: inserted", inserted, "rows/s")
            figures.record(f"bare SQLite {synchronous}: claimed and completed", done, "rows/s")
        figures.record("bare asyncio", asyncio.run(bare.asyncio_loop(number, 100)), "jobs/s")
    figures.ratio("memory, 100 slots: drained", "bare asyncio")
    for synchronous in ("full", "normal"):
        engine = f"bare SQLite {synchronous}"
        figures.ratio(
            f"SQLite {synchronous}, 100 slots: drained", f"{engine}: claimed and completed"
        )
        figures.ratio(f"SQLite {synchronous}: bulk submit", f"{engine}: inserted")
    figures.ratio("SQLite full, 100 slots: drained", "SQLite normal, 100 slots: drained")
