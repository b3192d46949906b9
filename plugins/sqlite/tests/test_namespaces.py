"""Several deployments in one file see nothing of each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from plugq.job import JobRef
from plugq.protocols import (
    ClaimRequest,
    Configure,
    FindQuery,
    NewJob,
    PluginContext,
    QueueSettings,
    RegisterChange,
    SweepRequest,
)
from plugq.testing import ManualClock
from plugq_sqlite import SqliteOptions, SqliteStorage

NewJobs = Callable[..., NewJob]


@asynccontextmanager
async def two(folder: Path, clock: ManualClock) -> AsyncIterator[list[SqliteStorage]]:
    async with AsyncExitStack() as stack:
        storages = []
        for namespace in ("one", "two"):
            storage = SqliteStorage(
                SqliteOptions(path="jobs.db"),
                PluginContext(base_dir=folder, namespace=namespace, clock=clock),
            )
            await storage.start()
            stack.push_async_callback(storage.stop)
            storages.append(storage)
        yield storages


async def test_jobs_queues_and_registers_are_apart(tmp_path: Path, new_job: NewJobs) -> None:
    async with two(tmp_path, ManualClock()) as (one, other):
        await one.submit([new_job("a"), new_job("b", lane="x"), new_job("c", batch="n")])
        await one.edit(Configure(settings=(QueueSettings(queue="q", max_length=3),)))
        await one.swap([RegisterChange(key="k", expect=0, value=b"v")])
        assert await other.get([JobRef("q", "a")]) == [None]
        assert (await other.find(FindQuery())).jobs == ()
        assert (await other.find(FindQuery(batch="n"))).jobs == ()
        assert (await other.stats()).queues == ()
        assert (await other.load(["k"])).registers == (None,)
        assert await other.scan("") == []
        request = ClaimRequest(worker="w", number=1, queues=("q",), limit=9)
        assert (await other.claim(request)).leases == ()
        await other.submit([new_job("a") for _ in range(1)])
        assert len((await one.claim(request)).leases) == 3
        assert len((await other.claim(request)).leases) == 1
        assert [stats.totals["accepted"] for stats in (await other.stats()).tasks] == [1]


async def test_a_sweep_minds_its_own_namespace(tmp_path: Path, new_job: NewJobs) -> None:
    clock = ManualClock()
    async with two(tmp_path, clock) as (one, other):
        await one.submit([new_job("due", delay=5), new_job("late", deadline_in=5)])
        await one.submit([new_job("run", priority=1)])
        request = ClaimRequest(worker="w", number=1, queues=("q",), limit=1, lease=5)
        await one.claim(request)
        clock.advance(60)
        assert (await other.sweep(SweepRequest())).changes == ()
        assert len((await one.sweep(SweepRequest())).changes) == 3


async def test_a_walk_passes_the_jobs_of_the_others(tmp_path: Path, new_job: NewJobs) -> None:
    async with two(tmp_path, ManualClock()) as (one, other):
        await one.submit([new_job("mine")])
        for _ in range(3):
            await other.submit([new_job() for _ in range(1_000)])
        found, query = [], FindQuery()
        while True:
            page = await one.find(query)
            found += [job.id for job in page.jobs]
            if page.cursor is None:
                break
            query = FindQuery(cursor=page.cursor)
        assert found == ["mine"]
