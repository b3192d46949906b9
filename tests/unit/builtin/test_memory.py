"""The memory storage: the contract, and what is special about living in one process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import pytest

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.builtin.memory_signals import BACKLOG
from plugq.errors import Unavailable
from plugq.job import JobRecord, JobRef, JobState, Outcome, Progress
from plugq.protocols import (
    API_VERSION,
    BATCH_TTL,
    Cancel,
    Capability,
    ClaimRequest,
    FindQuery,
    Finished,
    Holder,
    Lease,
    LeaseRef,
    NewJob,
    Notice,
    PluginContext,
    RegisterChange,
    Resync,
    Settlement,
    Storage,
    SweepRequest,
    Wake,
)
from plugq.testing import ManualClock, StorageContract

_storage_is_a_storage: type[Storage] = MemoryStorage


class TestMemoryStorage(StorageContract):
    """One instance a context: users of a store share it."""

    stores: ClassVar[weakref.WeakKeyDictionary[PluginContext, MemoryStorage]] = (
        weakref.WeakKeyDictionary()
    )

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = self.stores.get(context)
        if storage is None:
            storage = self.stores[context] = MemoryStorage(MemoryOptions(), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


@asynccontextmanager
async def started(clock: ManualClock | None = None) -> AsyncIterator[MemoryStorage]:
    storage = MemoryStorage(MemoryOptions(), PluginContext(clock=clock))
    await storage.start()
    try:
        yield storage
    finally:
        await storage.stop()


def new_job(id: str, **fields: object) -> NewJob:
    given = {"queue": "q", "id": id, "task": "t", "submission": id.encode(), "body": b"{}"}
    return msgspec.convert({**given, **fields}, NewJob, strict=False, from_attributes=True)


def request(number: int, limit: int = 1, worker: str = "w", peer: str = "") -> ClaimRequest:
    return ClaimRequest(worker=worker, number=number, queues=("q",), limit=limit, peer=peer)


def success(lease: Lease) -> Settlement:
    return Settlement(
        queue=lease.queue, id=lease.id, token=lease.token, outcome=Outcome.SUCCEED, result=b"1"
    )


def test_it_declares_what_plugins_declare() -> None:
    assert MemoryStorage.api_version == API_VERSION
    assert MemoryStorage.capabilities == {Capability.PUSH_WAKEUPS}
    assert msgspec.convert({}, MemoryStorage.Options) == MemoryOptions()
    with pytest.raises(msgspec.ValidationError, match="path"):
        msgspec.convert({"path": "jobs.db"}, MemoryStorage.Options)


async def test_without_a_manual_clock_it_has_the_machines_time() -> None:
    async with started() as storage:
        now = (await storage.stats()).now
        assert now > 1_700_000_000


async def test_an_instance_outlives_the_stop_of_one_of_its_users() -> None:
    async with started() as storage:
        await storage.start()
        await storage.submit([new_job("a")])
        await storage.stop()
        assert len((await storage.claim(request(1))).leases) == 1


async def test_jobs_stay_until_the_next_start() -> None:
    storage = MemoryStorage(MemoryOptions(), PluginContext())
    with pytest.raises(Unavailable, match="not started"):
        await storage.submit([new_job("a")])
    await storage.start()
    await storage.submit([new_job("a")])
    await storage.stop()
    with pytest.raises(Unavailable, match="not started"):
        await anext(storage.watch("p"))
    await storage.start()
    assert len((await storage.claim(request(1))).leases) == 1
    await storage.stop()


async def test_details_of_progress_are_nobody_elses_to_change() -> None:
    async with started() as storage:
        await storage.submit([new_job("a")])
        (lease,) = (await storage.claim(request(1))).leases
        details: dict[str, str | int | float | bool | None] = {"rows": 1}
        progress = Progress(current=1.0, details=details)
        await storage.renew([LeaseRef("q", "a", lease.token, progress)], lease=30.0)
        details["rows"] = 2
        (job,) = await storage.get([JobRef("q", "a")])
        assert job is not None
        assert job.progress is not None
        assert job.progress.details == {"rows": 1}
        job.progress.details["rows"] = 3
        (again,) = await storage.get([JobRef("q", "a")])
        assert again is not None
        assert again.progress is not None
        assert again.progress.details == {"rows": 1}


async def test_a_cancelled_reader_of_a_watch_loses_nothing() -> None:
    async with started() as storage:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        waiting = asyncio.ensure_future(anext(watch))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await storage.claim(request(1, peer="p"))
        await storage.submit([new_job("a")])
        assert isinstance(await anext(watch), Wake)
        await watch.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(watch)


async def test_an_error_thrown_into_a_watch_ends_it() -> None:
    async with started() as storage:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        with pytest.raises(LookupError):
            await watch.athrow(LookupError("enough"))
        with pytest.raises(StopAsyncIteration):
            await anext(watch)
        with pytest.raises(KeyError):
            await watch.athrow(KeyError)


async def test_notices_that_nobody_fetches_are_merged() -> None:
    async with started() as storage:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        for number in range(5):
            await storage.submit([new_job(str(number), origin="p")])
            (lease,) = (await storage.claim(request(number + 1))).leases
            await storage.settle([success(lease)])
        notice = await anext(watch)
        assert notice == Finished(tuple(JobRef("q", str(number)) for number in range(5)))
        await watch.aclose()


async def test_a_watch_that_falls_far_behind_is_told_to_look_again() -> None:
    async with started() as storage:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        ids = [str(number) for number in range(BACKLOG + 1)]
        await storage.submit([new_job(id, origin="p") for id in ids])
        leases = (await storage.claim(request(1, len(ids)))).leases
        await storage.settle([success(lease) for lease in leases])
        assert isinstance(await anext(watch), Resync)
        await storage.submit([new_job("last", origin="p")])
        (lease,) = (await storage.claim(request(2))).leases
        await storage.settle([success(lease)])
        assert await anext(watch) == Finished((JobRef("q", "last"),))
        await watch.aclose()


async def test_a_watch_in_a_loop_that_was_closed_harms_nobody() -> None:
    async with started() as storage:

        async def listen() -> None:
            watch = storage.watch("gone")
            await anext(watch)
            asyncio.ensure_future(anext(watch))  # noqa: RUF006 - the loop is closed under it
            await asyncio.sleep(0)
            await storage.claim(request(1, peer="gone"))

        def abandon() -> None:
            loop = asyncio.new_event_loop()
            loop.run_until_complete(listen())
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.close()

        await asyncio.to_thread(abandon)
        await storage.submit([new_job("a", origin="gone")])
        (lease,) = (await storage.claim(request(2))).leases
        await storage.settle([success(lease)])
        assert (await storage.stats()).tasks[0].totals["succeeded"] == 1
        gc.collect()


class Side(threading.Thread):
    """An event loop in a thread of its own, as a worker's engine has."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.loop = asyncio.new_event_loop()

    def run(self) -> None:
        self.loop.run_forever()
        self.loop.close()


@asynccontextmanager
async def side() -> AsyncIterator[asyncio.AbstractEventLoop]:
    thread = Side()
    thread.start()
    try:
        yield thread.loop
    finally:
        thread.loop.call_soon_threadsafe(thread.loop.stop)
        await asyncio.to_thread(thread.join)


async def work(storage: MemoryStorage, worker: str, ran: list[str]) -> None:
    """Claim and run, and wait for a wake-up where there is nothing to do; for ever."""
    watch = storage.watch(worker)
    await anext(watch)
    for number in itertools.count(1):
        leases = (await storage.claim(request(number, 7, worker, worker))).leases
        if not leases:
            await anext(watch)
        ran += [lease.id for lease in leases]
        await storage.settle([success(lease) for lease in leases])


async def test_two_loops_in_two_threads_share_an_instance() -> None:
    """A client here and workers there: every job is run once and every end is told."""
    total = 3_000
    ran: list[str] = []
    async with started() as storage, side() as there:
        watch = storage.watch("client")
        await anext(watch)
        workers = [
            asyncio.run_coroutine_threadsafe(work(storage, f"w-{n}", ran), there) for n in range(4)
        ]
        for start in range(0, total, 50):
            ids = [str(start + number) for number in range(50)]
            await storage.submit([new_job(id, origin="client") for id in ids])
            await asyncio.sleep(0)
        finished: set[JobRef] = set()
        while len(finished) < total:
            notice: Notice = await anext(watch)
            if isinstance(notice, Finished):
                finished.update(notice.refs)
        await watch.aclose()
        for worker in workers:
            worker.cancel()
        assert sorted(ran, key=int) == [str(number) for number in range(total)]
        (task,) = (await storage.stats()).tasks
        assert task.totals["started"] == task.totals["succeeded"] == total
        assert task.counts == {**dict.fromkeys(JobState, 0), JobState.SUCCEEDED: total}


async def test_threads_that_submit_and_claim_at_once_lose_and_repeat_nothing() -> None:
    async with started() as storage:
        granted: list[Lease] = []
        accepted: list[int] = []

        async def hammer(name: int) -> None:
            for step in range(100):
                replies = await storage.submit([new_job(f"{step}-{n}") for n in range(3)])
                accepted.append(sum(reply.sequence > 0 for reply in replies))
                leases = (await storage.claim(request(step + 1, 3, f"w-{name}"))).leases
                granted.extend(leases)
                await storage.settle([success(lease) for lease in leases[:2]])

        def in_a_loop_of_its_own(name: int) -> None:
            asyncio.run(hammer(name))

        await asyncio.gather(*(asyncio.to_thread(in_a_loop_of_its_own, n) for n in range(4)))
        rest = (await storage.claim(request(1, 1_000, "rest"))).leases
        ids = [lease.id for lease in (*granted, *rest)]
        assert len(ids) == len(set(ids)) == 300
        assert len({lease.token for lease in (*granted, *rest)}) == 300


async def test_what_has_gone_leaves_no_memory_behind() -> None:
    clock = ManualClock()
    async with started(clock) as storage:
        for turn in range(20):
            jobs = [
                new_job(
                    f"{turn}-{n}",
                    lane=f"lane-{turn}-{n % 7}",
                    batch=f"batch-{turn}-{n % 9}",
                    deadline_in=10.0**6,
                )
                for n in range(100)
            ]
            await storage.submit(jobs)
            number = turn * 1_000
            while leases := (await storage.claim(request(number := number + 1, 50))).leases:
                await storage.settle([success(lease) for lease in leases])
            await storage.swap(
                [RegisterChange(key=f"{turn}-{n}", expect=0, value=b"", ttl=1.0) for n in range(9)]
            )
            clock.advance("2h")
            while (await storage.sweep(SweepRequest())).next_in == 0:
                pass
        table = storage._jobs
        (queue,) = table.queues.values()
        assert not queue.jobs
        assert not queue.lanes
        assert len(queue._entries) < 1_000
        assert len(table.by_sequence) <= 2_000
        assert len(table.overdue._entries) < 1_000
        assert len(table.running_overdue._entries) < 1_000
        assert len(table.claims._remembered) < 1_000
        assert len(table.claims._lapses) < 1_000
        assert not storage._registers._keys
        assert len(storage._registers._expiry) == 0
        assert not table.by_batch
        clock.advance(BATCH_TTL)
        await storage.sweep(SweepRequest())
        assert not table.batches._batches
        assert not table.batches._over


class Unwalked(list[Any]):
    """A list that nobody may go through."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("each job was looked at")


async def test_the_oldest_of_many_jobs_of_one_priority_is_found_at_once() -> None:
    clock = ManualClock()
    async with started(clock) as storage:
        await storage.submit([new_job("other", priority=5), new_job("gone", priority=-5)])
        clock.advance(10)
        await storage.submit([new_job(str(n)) for n in range(1_000)])
        (queue,) = storage._jobs.queues.values()
        await storage.claim(request(1, 1))
        await storage.edit(Cancel((JobRef("q", "gone"),)))
        # Once the other priorities have gone this look is the last that takes longer.
        assert (await storage.stats()).queues[0].oldest == 0
        queue._entries = Unwalked(queue._entries)
        clock.advance(10)
        assert (await storage.stats()).queues[0].oldest == 10
        await storage.claim(request(2, 500))
        assert (await storage.stats()).queues[0].oldest == 10


async def test_a_register_that_is_written_all_the_time_costs_no_memory() -> None:
    clock = ManualClock()
    async with started(clock) as storage:
        version = 0
        for _ in range(500):
            change = RegisterChange(key="sweeper", expect=version, value=b"me", ttl=3.0)
            (register,) = (await storage.swap([change])).registers
            assert register is not None
            version = register.version
            clock.advance(0.01)
        assert len(storage._registers._expiry) < 100
        clock.advance(2.98)
        assert (await storage.load(["sweeper"])).registers[0] is not None
        clock.advance(0.01)
        assert (await storage.load(["sweeper"])).registers == (None,)


async def test_the_soonest_of_jobs_and_registers_says_when_to_sweep_next() -> None:
    async with started(ManualClock()) as storage:
        await storage.submit([new_job("a", delay=20.0)])
        await storage.swap([RegisterChange(key="a", expect=0, value=b"", ttl=50.0)])
        assert (await storage.sweep(SweepRequest())).next_in == 20
        await storage.swap([RegisterChange(key="b", expect=0, value=b"", ttl=5.0)])
        assert (await storage.sweep(SweepRequest())).next_in == 5


async def test_the_peer_that_made_the_call_is_passed_over() -> None:
    """It has claimed in it: what is left is for the others."""
    async with started() as storage:
        own, other = storage.watch("own"), storage.watch("other")
        await anext(own)
        await anext(other)
        await storage.submit([new_job("a"), new_job("b")])
        leases = (await storage.claim(request(1, 2))).leases
        await storage.claim(request(2, 1, "w-2", "own"))
        await storage.claim(request(3, 1, "w-3", "other"))
        releases = [
            Settlement(queue="q", id=lease.id, token=lease.token, outcome=Outcome.RELEASE)
            for lease in leases
        ]
        _, claimed = await storage.settle(releases, request(4, 1, "w", "own"))
        assert claimed is not None
        assert [lease.id for lease in claimed.leases] == ["a"]
        assert isinstance(await anext(other), Wake)
        assert own._next() is None
        await own.aclose()
        await other.aclose()


async def test_restored_jobs_take_a_free_sequence() -> None:
    async with started(ManualClock()) as storage:
        await storage.submit([new_job("mine")])

        def restored(id: str, sequence: int, **fields: Any) -> JobRecord:
            given = {"queue": "q", "task": "t", "state": JobState.QUEUED, "sequence": sequence}
            return JobRecord(id=id, **{**given, **fields})

        until = (await storage.stats()).now + 5
        await storage.restore(
            [
                restored("taken", 1),
                restored("ahead", 50),
                restored("between", 20),
                restored("none", 0),
                restored("kept", 60, state=JobState.SUCCEEDED, result=b"1"),
                restored(
                    "running",
                    61,
                    state=JobState.RUNNING,
                    token=9,
                    lane="l",
                    lease_until=until,
                    deadline_at=until - 4,
                ),
            ]
        )
        found = (await storage.find(FindQuery())).jobs
        assert [(job.id, job.sequence) for job in found] == [
            ("running", 61),
            ("kept", 60),
            ("none", 51),
            ("ahead", 50),
            ("between", 20),
            ("taken", 2),
            ("mine", 1),
        ]
        (kept,) = await storage.get([JobRef("q", "kept")])
        assert kept is not None
        assert (kept.result, kept.finished_at) == (b"1", until - 5)
        reply = await storage.sweep(SweepRequest(deadline_grace=2.0))
        assert (reply.changes, reply.next_in) == ((), 3)


async def test_a_restored_lease_is_released_by_a_holder_that_does_not_know_it() -> None:
    async with started() as storage:
        job = JobRecord(
            queue="q",
            id="a",
            task="t",
            state=JobState.RUNNING,
            sequence=1,
            token=5,
            attempt=1,
            worker="w",
            lease_until=2e9,
        )
        await storage.restore([job])
        await storage.renew([], lease=30.0, holder=Holder("w", 0))
        (lease,) = (await storage.claim(request(1))).leases
        assert (lease.id, lease.attempt) == ("a", 1)
