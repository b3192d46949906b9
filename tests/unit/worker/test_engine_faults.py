"""The engine and its handlers where something goes wrong: no slot, lease or outcome is lost."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import plugq
from plugq.assembly import Assembly, Worker
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.errors import OutcomeUnknown, Unavailable
from plugq.protocols import PluginContext


class Store(MemoryStorage):
    """Holds, refuses or loses the calls that a test names in ``down``."""

    def __init__(self) -> None:
        super().__init__(MemoryOptions(), PluginContext())
        self.hold = threading.Event()
        self.held = threading.Event()
        self.down: set[str] = set()
        self.lose_claims = False
        self.lost = 0
        self.calls: list[str] = []

    async def start(self) -> None:
        if "start" in self.down:
            self.held.set()
            while "start" in self.down:
                await asyncio.sleep(0.001)
        await super().start()

    async def claim(self, request: Any) -> Any:
        reply = await super().claim(request)
        if self.lose_claims and (reply.leases or self.lost):
            self.lost += 1
            raise OutcomeUnknown("the reply was lost")
        return reply

    async def settle(self, settlements: Any, claim: Any = None) -> Any:
        self._check("settle")
        if "settle before" in self.down and claim is not None:
            await self._wait()
        replies = await super().settle(settlements, claim)
        claimed = replies[1]
        if "settle after" in self.down and claimed is not None and not claimed.leases:
            await self._wait()
        return replies

    async def renew(self, leases: Any, **options: Any) -> Any:
        self._check("renew")
        return await super().renew(leases, **options)

    async def _wait(self) -> None:
        self.held.set()
        while not self.hold.is_set():
            await asyncio.sleep(0.001)

    def _check(self, verb: str) -> None:
        self.calls.append(verb)
        if verb in self.down:
            raise Unavailable("the storage is away")


async def until(what: Callable[[], object]) -> None:
    """Wait for the other threads to get there; bounded by the timeout of the test."""
    while not what():
        await asyncio.sleep(0.001)


@asynccontextmanager
async def running(
    app: plugq.App, config: Any, storage: MemoryStorage | None = None
) -> AsyncIterator[tuple[plugq.Client, Worker]]:
    assembly = Assembly(config, storage=storage)
    async with assembly.client() as client, Worker(app, assembly=assembly) as worker:
        yield client, worker


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Let the threads of a test go, however it ends."""
    event = threading.Event()
    yield event
    event.set()


class Bare(plugq.Fail):
    """Forgets to call the constructor of its base."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("kind", ["coroutine", "function"])
async def test_an_exception_without_what_its_base_has_fails_the_job(kind: str) -> None:
    app = plugq.App()

    async def coroutine() -> None:
        raise Bare

    def function() -> None:
        raise Bare

    task = app.task("t", max_attempts=1)(coroutine if kind == "coroutine" else function)
    async with running(app, {}) as (client, worker):
        with pytest.raises(plugq.JobFailed, match="has no attribute 'code'"):
            await client.call(task.job(), timeout=10)
        await until(lambda: worker.state()["leases"] == 0)


@pytest.mark.parametrize(
    "details", [{"a": object()}, {"a": 2**80}, "text"], ids=["object", "large", "text"]
)
@pytest.mark.parametrize("storage", ["memory", "sqlite"])
async def test_what_a_handler_says_never_holds_up_its_worker(
    tmp_path: Path, storage: str, details: Any
) -> None:
    app = plugq.App()

    @app.task(max_attempts=1)
    async def say() -> None:
        plugq.current().progress(1, message="half", details=details)
        raise ValueError("no character: \udcff")

    use: dict[str, Any] = {"use": storage}
    if storage == "sqlite":
        use["path"] = str(tmp_path / "jobs.db")
    async with running(app, {"storage": use}) as (client, _):
        handle = await client.submit(say.job())
        with pytest.raises(plugq.JobFailed, match="no character"):
            await handle.result(10)
        job = await handle.status()
        assert job.progress is not None
        assert (job.progress.message, job.progress.details) == ("half", None)


async def test_a_thread_that_is_left_behind_does_not_take_the_place_of_another(
    release: threading.Event,
) -> None:
    app = plugq.App()

    @app.task(timeout=0.05, retry=plugq.RetryPolicy(max_attempts=2, base=0.01))
    def stuck() -> int:
        attempt = plugq.current().attempt
        if attempt == 1:
            release.wait(20)
        return attempt

    config = {"worker": {"concurrency": 1, "threads": 1, "abandon_after": 0.05}}
    async with running(app, config) as (client, _):
        assert await client.call(stuck.job(), timeout=10) == 2


async def test_a_thread_stuck_in_an_earlier_life_does_not_hinder_the_next(
    release: threading.Event,
) -> None:
    app = plugq.App()
    started = threading.Event()

    @app.task(max_attempts=1)
    def stuck() -> None:
        started.set()
        release.wait(20)

    @app.task
    def one() -> int:
        return 1

    assembly = Assembly({"worker": {"grace": 0.01, "concurrency": 1, "threads": 1}})
    worker = Worker(app, assembly=assembly)
    async with assembly.client() as client:
        async with worker:
            handle = await client.submit(stuck.job())
            await until(started.is_set)
        assert await handle.cancel() == "cancelled"
        async with worker:
            assert await client.call(one.job(), timeout=10) == 1
            release.set()
            assert await client.call(one.job(), timeout=10) == 1


async def test_a_job_for_which_there_is_no_thread_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = plugq.App()
    refused: list[int] = []

    @app.task
    def one() -> int:
        return 1

    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "plugq-handler" and not refused:
            refused.append(1)
            raise RuntimeError("can't start new thread")
        start(self)

    async with running(app, {}) as (client, _):
        monkeypatch.setattr(threading.Thread, "start", refuse)
        handle = await client.submit(one.job())
        assert await handle.result(10) == 1
        assert (await handle.status()).attempt == 1


async def test_a_timeout_begins_with_the_handler_not_with_the_claim() -> None:
    app = plugq.App()
    cancelled: list[bool] = []

    @app.task(timeout=0.5, max_attempts=1)
    def work() -> None:
        ctx = plugq.current()
        until = time.monotonic() + 0.35
        while time.monotonic() < until and not ctx.cancelled:
            threading.Event().wait(0.005)
        cancelled.append(ctx.cancelled)

    config = {"worker": {"concurrency": 2, "threads": 1}}
    async with running(app, config) as (client, _):
        for handle in await client.submit_many([work.job(), work.job()]):
            await handle.wait(10)
    assert cancelled == [False, False]


async def test_timers_of_jobs_that_have_ended_do_not_pile_up() -> None:
    app = plugq.App()

    @app.task(timeout="1h", deadline="1h")
    async def one() -> None: ...

    async with running(app, {}) as (client, worker):
        handles = await client.submit_many([one.job() for _ in range(3000)])
        for handle in handles:
            await handle.wait(20)
        assert worker._engine is not None
        assert len(worker._engine._timers) < 2000


async def test_what_a_claim_under_way_is_granted_during_the_stop_does_not_start() -> None:
    app = plugq.App()
    runs: list[int] = []

    @app.task
    async def note(number: int) -> None:
        runs.append(number)

    store = Store()
    assembly = Assembly({"worker": {"concurrency": 1, "grace": 0.01}}, storage=store)
    worker = Worker(app, assembly=assembly)
    async with assembly.client() as client:
        store.down.add("settle before")
        first, second = await client.submit_many([note.job(0), note.job(1)])
        await worker.start()
        await until(store.held.is_set)
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: not worker.state()["claiming"])
        store.hold.set()
        await stopping
        assert (await first.status()).state == "succeeded"
        job = await second.status()
        assert (job.state, job.attempt, runs) == ("queued", 0, [0])


async def test_a_success_that_waits_behind_an_outage_is_not_given_back_at_the_stop() -> None:
    app = plugq.App()
    runs: list[int] = []
    gate = asyncio.Event()

    @app.task
    async def work(number: int) -> int:
        runs.append(number)
        if number:
            await gate.wait()
        return number

    store = Store()
    config = {"worker": {"concurrency": 2, "grace": 0.05}, "broker": {"lease": 10}}
    assembly = Assembly(config, storage=store)
    worker = Worker(app, assembly=assembly)
    async with assembly.client() as client:
        store.down.add("settle")
        handles = await client.submit_many([work.job(0), work.job(1)])
        await worker.start()
        await until(lambda: len(runs) == 2 and "settle" in store.calls)
        gate.set()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.wait({stopping}, timeout=1.5)
        store.down.clear()
        await stopping
        assert [await handle.result(10) for handle in handles] == [0, 1]
    assert sorted(runs) == [0, 1]


async def test_what_a_lost_reply_granted_is_given_back_at_the_stop() -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    store = Store()
    async with Assembly({}, storage=store).client() as client:
        async with running(app, {"worker": {"grace": 0.01}}, store):
            store.lose_claims = True
            handle = await client.submit(one.job())
            await until(lambda: store.lost)
        job = await handle.status()
        assert (job.state, job.attempt, job.crashes) == ("queued", 0, 0)


async def test_renewals_are_tried_again_soon_until_one_succeeds() -> None:
    app = plugq.App()
    gate = asyncio.Event()

    @app.task
    async def work() -> None:
        plugq.current().progress(5)
        await gate.wait()

    store = Store()
    config = {"broker": {"lease": 60, "renewal": 0.4}}
    async with running(app, config, store) as (client, _):
        store.down.add("renew")
        handle = await client.submit(work.job())
        began = time.monotonic()
        await until(lambda: store.calls.count("renew") == 5)
        # Without the short pauses the fifth would come after more than 5 / 2 renewals.
        assert time.monotonic() - began < 0.95
        store.down.clear()
        while (await handle.status()).progress is None:
            await asyncio.sleep(0.001)
        gate.set()
        await handle.wait(10)


async def test_a_wake_up_during_a_settlement_with_a_claim_is_not_lost() -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    store = Store()
    async with running(app, {"worker": {"concurrency": 1}}, store) as (client, _):
        store.down.add("settle after")
        await client.submit(one.job())
        await until(store.held.is_set)
        handle = await client.submit(one.job())
        # The notice of it reaches the worker in the meantime.
        await asyncio.sleep(0.05)
        store.hold.set()
        assert await handle.result(3) == 1


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    store = Store()
    store.down.add("start")
    worker = Worker(plugq.App(), assembly=Assembly({}, storage=store))
    starting = asyncio.create_task(worker.start())
    await until(store.held.is_set)
    starting.cancel()
    asyncio.get_running_loop().call_later(0.01, store.down.clear)
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert store._signals.users == 0
    # The thread has said that it is done, and needs a moment to be gone.
    await until(lambda: all(one.name != "plugq-engine" for one in threading.enumerate()))


async def test_a_stop_during_the_start_waits_for_it_and_stops() -> None:
    store = Store()
    store.down.add("start")
    worker = Worker(plugq.App(), assembly=Assembly({}, storage=store))
    starting = asyncio.create_task(worker.start())
    await asyncio.sleep(0)
    stopping = asyncio.create_task(worker.stop())
    await until(store.held.is_set)
    store.down.clear()
    await stopping
    await starting
    assert store._signals.users == 0


async def test_a_cancelled_run_still_gives_back_what_it_holds() -> None:
    app = plugq.App()
    started = asyncio.Event()

    @app.task
    async def long() -> None:
        started.set()
        await asyncio.Event().wait()

    assembly = Assembly({"worker": {"grace": 0.01}})
    async with assembly.client() as client:
        run = asyncio.create_task(Worker(app, assembly=assembly).run())
        handle = await client.submit(long.job())
        await started.wait()
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        job = await handle.status()
        assert (job.state, job.attempt) == ("queued", 0)


def test_threads_that_ask_at_once_get_one_private_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    assembly = Assembly({})
    build, met = assembly._build, threading.Barrier(2)

    def slow(kind: str) -> Any:
        built = build(kind)
        time.sleep(0.01)
        return built

    monkeypatch.setattr(assembly, "_build", slow)
    got: list[Any] = []

    def ask() -> None:
        met.wait(5)
        got.append(assembly.storage())

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert got[0] is got[1]


class Spread(Store):
    """Takes no outcomes of the queues that a test names in ``down``, nor a call that has some."""

    refused = 0

    async def settle(self, settlements: Any, claim: Any = None) -> Any:
        if any(settlement.queue in self.down for settlement in settlements):
            self.refused += 1
            raise Unavailable("the node of that queue is away")
        return await super().settle(settlements, claim)


async def test_outcomes_of_one_queue_do_not_wait_for_those_of_another() -> None:
    app, store = plugq.App(), Spread()
    gate = threading.Event()

    @app.task
    def together() -> str:
        assert gate.wait(20)
        return "together"

    @app.task
    def single() -> str:
        return "single"

    store.down.add("lost")
    config = {"worker": {"queues": ["up", "lost"], "concurrency": 3}}
    async with running(app, config, store) as (client, worker):
        handles = [
            await client.submit(together.job().options(queue=queue)) for queue in ("up", "lost")
        ]
        await until(lambda: worker.state()["running"] == 2)
        gate.set()
        assert await handles[0].result(20) == "together"
        await until(lambda: store.refused > 1)
        for _ in range(3):
            assert await client.call(single.job().options(queue="up"), timeout=20) == "single"
        assert worker.state()["leases"] == 1
        store.down.clear()
        assert await handles[1].result(20) == "together"
        await until(lambda: worker.state()["leases"] == 0)
        assert await client.call(single.job().options(queue="lost"), timeout=20) == "single"


async def test_a_worker_stops_although_outcomes_of_one_queue_can_not_be_stored() -> None:
    app, store = plugq.App(), Spread()

    @app.task
    def one() -> int:
        return 1

    store.down.add("lost")
    config = {"worker": {"queues": ["up", "lost"], "grace": 0.1}}
    config |= {"broker": {"lease": "1s", "renewal": "0.3s"}}
    async with running(app, config, store) as (client, _):
        await client.submit(one.job().options(queue="lost"))
        await until(lambda: store.refused > 1)
        assert await client.call(one.job().options(queue="up"), timeout=20) == 1
    assert not [task for task in asyncio.all_tasks() if "outcomes" in task.get_name()]
