"""The engine: stopping handlers, leaving them behind, and what it does without a storage."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

import plugq
from plugq.assembly import Assembly, Worker
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.events import EventKind
from plugq.protocols import PluginContext, RenewReply
from plugq.testing import ManualClock

FAST = plugq.RetryPolicy(max_attempts=3, backoff="fixed", base=0.01)


class Store(MemoryStorage):
    """Answers renewals as it is told to."""

    def __init__(self, clock: ManualClock | None = None) -> None:
        super().__init__(MemoryOptions(), PluginContext(clock=clock))
        self.renewals = 0
        self.answer: RenewReply | None = None

    async def renew(self, leases: Any, **options: Any) -> Any:
        self.renewals += 1
        replies = await super().renew(leases, **options)
        return replies if self.answer is None else [self.answer] * len(leases)


async def until(what: Any) -> None:
    """Wait for the other threads to get there; bounded by the timeout of the test."""
    while not what():
        await asyncio.sleep(0.001)


async def test_a_thread_that_ignores_its_timeout_keeps_its_lease_and_is_then_left_behind() -> None:
    app = plugq.App()
    release = threading.Event()
    attempts: list[int] = []
    overlap: list[bool] = []
    inside = threading.Semaphore(1)

    @app.task(timeout=0.05, retry=FAST)
    def stuck() -> int:
        ctx = plugq.current()
        attempts.append(ctx.attempt)
        overlap.append(not inside.acquire(blocking=False))
        if ctx.attempt == 1:
            release.wait(20)
        inside.release()
        return ctx.attempt

    config = {"worker": {"abandon_after": 0.3}, "broker": {"lease": 0.6, "renewal": 0.05}}
    store = Store()
    assembly = Assembly(config, storage=store)
    worker = Worker(app, assembly=assembly)
    async with assembly.client() as client, worker:
        handle = await client.submit(stuck.job())
        assert await handle.result(10) == 2
        # The first run was still going on when it was left behind, so its retry overlapped it.
        assert overlap == [False, True]
        assert worker.state()["abandoned"] == 1
        release.set()
        job = await handle.status()
        assert [one.code for one in job.attempts] == ["timeout"]
        assert job.crashes == 0
    assert attempts == [1, 2]


async def test_a_thread_that_ends_late_is_retried_without_overlap() -> None:
    app = plugq.App()
    running = 0
    most = 0
    lock = threading.Lock()

    @app.task(timeout=0.05, retry=FAST)
    def late() -> int:
        nonlocal running, most
        ctx = plugq.current()
        with lock:
            running += 1
            most = max(most, running)
        while ctx.attempt == 1 and not ctx.cancelled:
            threading.Event().wait(0.001)
        with lock:
            running -= 1
        ctx.raise_if_cancelled()
        return ctx.attempt

    async with app.running({}) as client:
        handle = await client.submit(late.job())
        assert await handle.result(10) == 2
        assert [one.code for one in (await handle.status()).attempts] == ["timeout"]
    assert most == 1


async def test_a_coroutine_that_swallows_its_cancellation_is_left_behind() -> None:
    app = plugq.App()
    release = asyncio.Event()
    ended = asyncio.Event()

    @app.task(timeout=0.05, max_attempts=1)
    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        ended.set()

    async with app.running({"worker": {"abandon_after": 0.1}}) as client:
        with pytest.raises(plugq.JobFailed) as caught:
            await client.call(stubborn.job())
        assert caught.value.code == "timeout"
        release.set()
        await ended.wait()


async def test_a_lost_lease_stops_the_handler_and_its_outcome_is_not_sent() -> None:
    app = plugq.App()
    started, stopped = asyncio.Event(), asyncio.Event()
    reasons: list[str | None] = []

    @app.task
    async def long() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            reasons.append(plugq.current().cancel_reason)
            stopped.set()

    store = Store()
    assembly = Assembly({"broker": {"lease": 5, "renewal": 0.05}}, storage=store)
    worker = Worker(app, assembly=assembly)
    async with assembly.client() as client, worker:
        handle = await client.submit(long.job())
        await started.wait()
        store.answer = RenewReply.LOST
        await stopped.wait()
        await until(lambda: worker.state()["leases"] == 0)
        assert worker.state()["lost"] == 1
        assert (await handle.status()).state == "running"
        assert (await client.stats()).queues[0].totals["released"] == 0
    assert reasons == ["lease_lost"]


async def test_a_deadline_that_passes_while_it_runs_fails_the_job() -> None:
    app = plugq.App()
    reasons: list[str | None] = []

    @app.task(retry=FAST)
    async def long() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            reasons.append(plugq.current().cancel_reason)

    async with app.running({}) as client:
        handle = await client.submit(long.job(), deadline=0.1)
        with pytest.raises(plugq.JobFailed) as caught:
            await handle.result(10)
        assert caught.value.code == "deadline"
    assert reasons == ["deadline"]


async def test_a_deadline_that_passes_while_it_waits_fails_the_job_without_a_run() -> None:
    app = plugq.App()
    runs: list[int] = []

    @app.task
    async def note() -> None:
        runs.append(1)

    async with app.running({}) as client:
        await client.queues.pause("default")
        handle = await client.submit(note.job(), deadline=0.05)
        with pytest.raises(plugq.JobFailed) as caught:
            await handle.result(10)
        assert caught.value.code == "deadline"
        await client.queues.resume("default")
    assert runs == []


async def test_a_task_that_stays_unknown_fails_after_its_ttl() -> None:
    app = plugq.App()
    async with app.running({"broker": {"unknown_ttl": 0.5}}) as client:
        handle = await client.submit(plugq.job("nobody"))
        with pytest.raises(plugq.JobFailed, match="no task 'nobody' is registered") as caught:
            await handle.result(10)
        assert caught.value.code == "unknown_task"
        totals = (await client.stats()).queues[0].totals
        assert totals["released"] == 1


async def test_slots_bound_what_runs_and_can_be_changed() -> None:
    app = plugq.App()
    running: set[int] = set()
    gate = asyncio.Event()

    @app.task
    async def wait(number: int) -> None:
        running.add(number)
        await gate.wait()

    assembly = Assembly({})
    worker = Worker(app, assembly=assembly, concurrency=3)
    async with assembly.client() as client, worker:
        handles = await client.submit_many([wait.job(n) for n in range(10)])
        await until(lambda: len(running) == 3)
        assert (await client.stats()).counts["running"] == 3
        worker.scale(5)
        await until(lambda: len(running) == 5)
        assert (await client.stats()).counts["running"] == 5
        gate.set()
        for handle in handles:
            await handle.wait(10)


async def test_a_listener_that_fails_touches_no_job() -> None:
    app = plugq.App()
    seen: list[tuple[EventKind, int]] = []
    workers: set[str] = set()

    class Watcher:
        def listens(self, kind: EventKind) -> bool:
            return kind is not EventKind.PROGRESS

        def emit(self, kind: EventKind, events: Sequence[Any]) -> None:
            seen.append((kind, len(events)))
            if kind in {EventKind.WORKER_STARTED, EventKind.STARTED, EventKind.WORKER_STOPPED}:
                workers.update(event.worker for event in events)

    @app.task(retry=FAST)
    async def flaky() -> int:
        if plugq.current().attempt == 1:
            raise ValueError("once")
        return 1

    assembly = Assembly({})
    assembly.hooks = Watcher()  # type: ignore[assignment]
    assembly.hooks.wrap_handler = lambda task, handler: handler  # type: ignore[method-assign]
    async with assembly.client() as client, Worker(app, assembly=assembly):

        def broken(notices: object) -> None:
            raise RuntimeError("a broken listener")

        client._broker.subscribe(broken)
        assert await client.call(flaky.job()) == 1
        first = await client.submit(flaky.job(), id="a")
        assert (await client.submit(flaky.job(), id="a")).outcome == "duplicate"
        await first.wait(10)
        await client.queues.pause("default")
        await (await client.submit(flaky.job())).cancel()
    kinds = {kind for kind, _ in seen}
    assert kinds == {
        EventKind.WORKER_STARTED,
        EventKind.WORKER_STOPPED,
        EventKind.BROKER_STARTED,
        EventKind.BROKER_STOPPED,
        EventKind.SUBMITTED,
        EventKind.DUPLICATE,
        EventKind.STARTED,
        EventKind.RETRYING,
        EventKind.SUCCEEDED,
        EventKind.CANCELLED,
        EventKind.QUEUE_PAUSED,
    }
    assert sum(number for kind, number in seen if kind is EventKind.SUCCEEDED) == 2
    # One name from its start to its end, that of its jobs.
    assert len(workers) == 1


async def test_a_worker_joins_the_deployment_of_a_client() -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    assembly = Assembly({})
    async with assembly.client() as client, plugq.Worker(app, client=client):
        assert await client.call(one.job()) == 1


async def test_a_worker_that_can_not_start_says_why_and_leaves_nothing(
    tmp_path: Any,
) -> None:
    app = plugq.App()
    before = set(threading.enumerate())
    (tmp_path / "file").write_text("this is no database, and never was")
    config = {"storage": {"use": "sqlite", "path": str(tmp_path / "file")}}
    worker = plugq.Worker(app, config)
    with pytest.raises(plugq.ConfigError, match="database"):
        await worker.start()
    await worker.stop()
    await until(lambda: set(threading.enumerate()) <= before)


async def test_stop_and_start_may_be_repeated_and_leave_no_thread() -> None:
    app = plugq.App()

    @app.task
    def one() -> int:
        return 1

    before = set(threading.enumerate())
    assembly = Assembly({})
    worker = Worker(app, assembly=assembly)
    async with assembly.client() as client:
        for _ in range(3):
            await worker.start()
            await worker.start()
            assert await client.call(one.job()) == 1
            await worker.stop()
            await worker.stop()
    await until(lambda: set(threading.enumerate()) <= before)


async def test_workers_that_were_given_one_id_leave_each_other_alone() -> None:
    app = plugq.App()
    gate = asyncio.Event()
    runs: list[int] = []

    @app.task
    async def wait(number: int) -> int:
        runs.append(number)
        await gate.wait()
        return number

    config = {"worker": {"id": "same"}, "broker": {"lease": 1, "renewal": 0.05}}
    store = Store()
    assembly = Assembly(config, storage=store)
    first, second = (Worker(app, assembly=assembly, concurrency=2) for _ in range(2))
    async with assembly.client() as client, first, second:
        handles = await client.submit_many([wait.job(n) for n in range(4)])
        await until(lambda: len(runs) == 4)
        seen = store.renewals
        await until(lambda: store.renewals > seen + 4)
        assert (await client.stats()).queues[0].totals["released"] == 0
        gate.set()
        assert [await handle.result(10) for handle in handles] == [0, 1, 2, 3]
    assert sorted(runs) == [0, 1, 2, 3]


async def test_prefetched_jobs_wait_for_a_slot_and_are_given_back() -> None:
    app = plugq.App()
    running, most, runs = 0, 0, 0
    gate = asyncio.Event()

    @app.task
    async def wait() -> None:
        nonlocal running, most, runs
        running, runs = running + 1, runs + 1
        most = max(most, running)
        try:
            await gate.wait()
        finally:
            running -= 1

    config = {"worker": {"prefetch": 3, "grace": 0.01}}
    store = Store()
    assembly = Assembly(config, storage=store)
    worker = Worker(app, assembly=assembly, concurrency=2)
    async with assembly.client() as client:
        async with worker:
            handles = await client.submit_many([wait.job() for _ in range(8)])
            await until(lambda: worker.state()["prefetched"] == 3)
            assert (await client.stats()).counts["running"] == 5
            await until(lambda: running == 2)
        assert (await client.stats()).counts == {**_none(), "queued": 8}
        assert runs == 2
        gate.set()
        async with worker:
            for handle in handles:
                await handle.wait(10)
    assert most == 2


def _none() -> dict[str, int]:
    return dict.fromkeys(plugq.JobState, 0)


async def test_progress_travels_with_a_renewal_and_with_the_end() -> None:
    app = plugq.App()
    gate = asyncio.Event()

    @app.task
    async def work() -> None:
        plugq.current().progress(1, 4, "begun")
        await gate.wait()
        plugq.current().progress(4, 4, "done")

    async with app.running({"broker": {"lease": 1, "renewal": 0.05}}) as client:
        handle = await client.submit(work.job())
        while (job := await handle.status()).progress is None:
            await asyncio.sleep(0.001)
        assert (job.progress.current, job.progress.message) == (1, "begun")
        gate.set()
        job = await handle.wait(10)
        assert job.progress is not None
        assert (job.progress.current, job.progress.message) == (4, "done")
