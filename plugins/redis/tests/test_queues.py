"""How long the server remembers queues, and that a sweep comes to those that need one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from plugq.job import JobRef
from plugq.protocols import (
    ClaimRequest,
    Configure,
    NewJob,
    Pause,
    PluginContext,
    Purge,
    QueueSettings,
    Resume,
    Resync,
    SweepRequest,
    Wake,
)
from plugq.testing import ManualClock
from plugq_redis import RedisOptions, RedisStorage
from plugq_redis._signals import Watch

NewJobs = Callable[..., NewJob]
Claim = Callable[..., ClaimRequest]
SWEEP = SweepRequest()
#: Seconds that a message may take on a machine that is busy.
PATIENCE = 30.0


class Store:
    """A store on a server of its own, at a time that the test sets."""

    def __init__(self, storage: RedisStorage, server: Any, clock: ManualClock) -> None:
        self.storage = storage
        self.server = server
        self.clock = clock

    async def sweep_after(self, time: str) -> None:
        self.clock.advance(time)
        await self.storage.sweep(SWEEP)

    async def queues(self) -> list[str]:
        return [each.queue for each in (await self.storage.stats()).queues]

    def keys(self) -> set[str]:
        return {key.decode().rpartition("}:")[2] for key in self.server.client().scan_iter()}


@pytest.fixture
def store(start_server: Any, tmp_path: Path) -> Any:
    @asynccontextmanager
    async def open_() -> AsyncIterator[Store]:
        server, clock = start_server(), ManualClock()
        context = PluginContext(base_dir=tmp_path, namespace="n", clock=clock)
        storage = RedisStorage(RedisOptions(url=server.url), context)
        await storage.start()
        try:
            yield Store(storage, server, clock)
        finally:
            await storage.stop()

    return open_


async def test_a_queue_that_is_not_used_is_forgotten_after_a_day(
    store: Any, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """Nothing of it is left, and its tokens rise all the same when it is used again."""
    async with store() as opened:
        storage = opened.storage
        await storage.submit([new_job(result_ttl=1.0, id_ttl=1.0)])
        (lease,) = (await storage.claim(claim(1))).leases
        await storage.settle(succeed([lease]))
        await opened.sweep_after("1m")
        await opened.sweep_after("23h")
        assert await opened.queues() == ["q"]
        await opened.sweep_after("2h")
        assert await opened.queues() == []
        assert opened.keys() <= {"clock", "sequence", "claims"}
        await storage.submit([new_job()])
        (again,) = (await storage.claim(claim(1))).leases
        assert again.token > lease.token
        assert await opened.queues() == ["q"]


async def test_the_last_job_that_is_purged_leaves_a_queue_to_be_forgotten(
    store: Any, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    async with store() as opened:
        storage = opened.storage
        await storage.submit([new_job("a", result_ttl=None)])
        await storage.settle(succeed((await storage.claim(claim(1))).leases))
        await opened.sweep_after("30d")
        await opened.sweep_after("30d")
        assert await opened.queues() == ["q"]
        await storage.edit(Purge((JobRef("q", "a"),)))
        await opened.sweep_after("1s")
        await opened.sweep_after("25h")
        assert await opened.queues() == []


async def test_a_queue_with_jobs_settings_or_a_state_is_kept(store: Any, new_job: NewJobs) -> None:
    """A pause that is taken back leaves it to be forgotten."""
    async with store() as opened:
        storage = opened.storage
        await storage.submit([new_job(queue="delayed", delay=1e8), new_job(queue="ready")])
        await storage.edit(Configure((QueueSettings(queue="set", max_length=5),)))
        await storage.edit(Pause(("paused", "resumed")))
        for _ in range(3):
            await opened.sweep_after("2d")
        assert await opened.queues() == ["delayed", "paused", "ready", "resumed", "set"]
        await storage.edit(Resume(("resumed",)))
        await opened.sweep_after("1s")
        await opened.sweep_after("2d")
        assert await opened.queues() == ["delayed", "paused", "ready", "set"]


async def heard(watch: Watch) -> object:
    async with asyncio.timeout(PATIENCE):
        return await anext(watch)


async def test_a_peer_that_was_woken_and_does_not_come_is_replaced(
    store: Any, new_job: NewJobs, claim: Claim
) -> None:
    """By one sweep after the other, although nothing is due in the queue."""
    async with store() as opened:
        storage = opened.storage
        watches = [storage.watch(name) for name in "abc"]
        for watch in watches:
            # Whoever is told that something may have been missed, listens from now on.
            assert isinstance(await heard(watch), Resync)
        for name in "abc":
            await storage.claim(claim(1, worker=name, peer=name))
        await storage.submit([new_job(delay=3600.0)])
        # From here on no sweep has anything to do there.
        await opened.sweep_after("1s")
        await storage.submit([new_job()])
        for watch in watches:
            assert isinstance(await heard(watch), Wake)
            await opened.sweep_after("1s")
        for watch in watches:
            await watch.aclose()
