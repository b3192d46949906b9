"""A storage whose answers get lost: nothing runs twice, nothing is lost, nothing hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import plugq
from plugq.assembly import Assembly, Worker
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.errors import OutcomeUnknown, Unavailable
from plugq.protocols import PluginContext


class Lossy(MemoryStorage):
    """Loses the answer, or the request, of the calls that ``fault`` picks."""

    def __init__(self) -> None:
        super().__init__(MemoryOptions(), PluginContext())
        self.calls: dict[str, int] = {}
        self.fault: Callable[[str, int], str | None] = lambda verb, number: None

    async def _call(self, verb: str, call: Callable[[], Any]) -> Any:
        number = self.calls[verb] = self.calls.get(verb, 0) + 1
        fault = self.fault(verb, number)
        if fault == "request":
            raise Unavailable("the request was lost")
        answer = await call()
        if fault == "reply":
            raise OutcomeUnknown("the reply was lost")
        return answer

    async def submit(self, jobs: Any) -> Any:
        return await self._call("submit", lambda: super(Lossy, self).submit(jobs))

    async def claim(self, request: Any) -> Any:
        return await self._call("claim", lambda: super(Lossy, self).claim(request))

    async def settle(self, settlements: Any, claim: Any = None) -> Any:
        return await self._call("settle", lambda: super(Lossy, self).settle(settlements, claim))

    async def renew(self, leases: Any, **options: Any) -> Any:
        return await self._call("renew", lambda: super(Lossy, self).renew(leases, **options))

    async def get(self, refs: Any, **options: Any) -> Any:
        return await self._call("get", lambda: super(Lossy, self).get(refs, **options))


@asynccontextmanager
async def running(
    app: plugq.App, storage: MemoryStorage, **config: Any
) -> AsyncIterator[plugq.Client]:
    config = {"client": {"reconnect": {"first": 0.001, "max": 0.01}}, **config}
    assembly = Assembly(config, storage=storage)
    async with assembly.client() as client, Worker(app, assembly=assembly):
        yield client


@pytest.mark.parametrize("fault", ["request", "reply"])
@pytest.mark.parametrize("verb", ["submit", "claim", "settle", "renew", "get"])
async def test_each_job_runs_once_although_every_third_call_is_lost(verb: str, fault: str) -> None:
    app = plugq.App()
    runs: list[int] = []

    @app.task
    async def note(number: int) -> int:
        runs.append(number)
        return number

    storage = Lossy()
    storage.fault = lambda called, number: fault if called == verb and number % 3 == 1 else None
    short = {"broker": {"lease": 1.0, "renewal": 0.05}}
    async with running(app, storage, **short) as client:
        # One by one, so that each takes a claim and a settlement of its own.
        for number in range(30):
            assert await client.call(note.job(number), timeout=20) == number
        totals = (await client.stats()).queues[0].totals
    assert runs == list(range(30))
    assert totals["accepted"] == totals["succeeded"] == totals["started"] == 30
    assert totals["lease_ended"] == totals["released"] == 0


async def test_a_submission_without_an_answer_is_of_unknown_outcome_and_safe_to_repeat() -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    storage = Lossy()
    async with running(app, storage, client={"deadline": 0.05}) as client:
        storage.fault = lambda verb, _: "reply" if verb == "submit" else None
        with pytest.raises(plugq.OutcomeUnknown) as caught:
            await client.submit(one.job(), id="a")
        assert caught.value.ids == ("a",)
        storage.fault = lambda verb, _: "request" if verb == "submit" else None
        with pytest.raises(plugq.Unavailable):
            await client.submit(one.job(), id="b")
        storage.fault = lambda verb, _: None
        handle = await client.submit(one.job(), id="a")
        assert handle.outcome == "duplicate"
        assert await handle.result(10) == 1
        assert (await client.submit(one.job(), id="b")).outcome == "accepted"


async def test_the_ids_that_are_not_confirmed_are_named() -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    storage = Lossy()
    async with running(app, storage, client={"deadline": 0.05}) as client:
        storage.fault = lambda verb, number: "request" if verb == "submit" and number > 1 else None
        jobs = [one.job().options(id=str(n)) for n in range(2500)]
        with pytest.raises(plugq.OutcomeUnknown) as caught:
            await client.submit_many(jobs)
    assert caught.value.ids == tuple(str(n) for n in range(1000, 2500))


class Hanging(MemoryStorage):
    """Answers no submission."""

    async def submit(self, jobs: Any) -> Any:
        await asyncio.Event().wait()


async def test_a_storage_that_does_not_answer_never_hangs_a_client() -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    storage = Hanging(MemoryOptions(), PluginContext())
    async with running(app, storage, client={"deadline": 0.05}) as client:
        with pytest.raises(plugq.OutcomeUnknown, match=r"no answer within 0\.05 s"):
            await client.submit(one.job())


async def test_a_claim_whose_reply_was_lost_for_good_leases_jobs_to_nobody() -> None:
    """The broker's answer is lost on its way to the worker, which never asks again."""
    storage = MemoryStorage(MemoryOptions(), PluginContext())
    assembly = Assembly({}, storage=storage)
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    async with assembly.client() as client:
        handle = await client.submit(one.job())
        broker = assembly.broker(maintain=False)
        await broker.start()
        request = plugq.protocols.ClaimRequest(worker="w", number=1, queues=("default",), limit=1)
        assert (await broker.claim(request)).leases
        holder = plugq.protocols.Holder("w", 2)
        await broker.renew([], lease=30, holder=holder)
        job = await handle.status()
        assert (job.state, job.attempt, job.crashes) == ("queued", 0, 0)
        await broker.stop()


async def test_what_is_claimed_for_a_caller_who_has_left_is_given_back() -> None:
    storage = Lossy()
    gate, entered = asyncio.Event(), asyncio.Event()
    assembly = Assembly({}, storage=storage)
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    claim = MemoryStorage.claim

    async def slow(self: MemoryStorage, request: Any) -> Any:
        reply = await claim(self, request)
        entered.set()
        await gate.wait()
        return reply

    async with assembly.client() as client:
        handle = await client.submit(one.job())
        broker = assembly.broker(maintain=False)
        await broker.start()
        storage.claim = slow.__get__(storage)  # type: ignore[method-assign]
        request = plugq.protocols.ClaimRequest(worker="w", number=1, queues=("default",), limit=1)
        asking = asyncio.create_task(broker.claim(request, wait=10))
        await entered.wait()
        assert (await handle.status()).state == "running"
        asking.cancel()
        await asyncio.wait([asking])
        gate.set()
        await broker.stop()
        job = await handle.status()
        assert (job.state, job.attempt) == ("queued", 0)
