"""Slots of a cluster that move to another node, key by key, while their queue is in use."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from redis.crc import key_slot

from plugq.errors import OutcomeUnknown, Unavailable
from plugq.job import JobRef
from plugq_redis import RedisStorage, _place

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]

PATIENCE = 30.0
SLOTS, NODES = 16_384, 3


def place_of(namespace: str) -> tuple[str, int]:
    """Return a queue whose keys lie on the first node, and its slot."""
    for number in itertools.count():
        queue = f"q{number}"
        slot: int = key_slot(f"plugq:{{{namespace}/{queue}}}:clock".encode())
        if slot < SLOTS // NODES:
            return queue, slot
    raise AssertionError


#: Which keys of the queue have left first, by the ends of their names.
PARTS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "the clock": ("clock",),
    "the jobs": ("j:a", "j:b"),
    "an index": ("ready",),
    "all but the clock": ("queue", "all", "ready", "tally", "j:a", "j:b", "leases", "claims"),
}


class Bench:
    """A storage over the cluster, and what is put into its queue."""

    def __init__(self, storage: RedisStorage, new_job: Any, claim: Any, succeed: Any) -> None:
        self.queue, self.slot = place_of(storage._nodes.keys._namespace)
        self._storage = storage
        self._new_job = new_job
        self._claim = claim
        self._succeed = succeed

    async def submit(self, *ids: str) -> Any:
        jobs = [self._new_job(id, queue=self.queue, lane=None) for id in ids]
        return await until(functools.partial(self._storage.submit, jobs))

    async def claim(self, limit: int, worker: str = "w") -> Any:
        request = self._claim(limit, worker=worker, queues=(self.queue,))
        return (await until(functools.partial(self._storage.claim, request))).leases

    async def settle(self, leases: Any) -> Any:
        settlements = self._succeed(leases)
        replies, _ = await until(functools.partial(self._storage.settle, settlements))
        return replies

    async def work(self, worker: str, ended: list[str]) -> None:
        """Run jobs for ever and note which."""
        while True:
            leases = await self.claim(5, worker)
            assert not any(reply.lost for reply in await self.settle(leases))
            ended.extend(lease.id for lease in leases)
            await asyncio.sleep(0.001)

    def calls(self, leases: Any) -> list[Callable[[], Any]]:
        return [
            lambda: self._storage.submit([self._new_job("c", queue=self.queue, lane="l")]),
            lambda: self._storage.claim(self._claim(5, queues=(self.queue,))),
            lambda: self._storage.settle(self._succeed(leases)),
            lambda: self._storage.get([JobRef(self.queue, "a")]),
        ]

    async def ended(self) -> tuple[int, int]:
        """Return how many jobs were accepted, and how many have succeeded."""
        (stats,) = (await self._storage.stats()).tasks
        assert stats.counts["succeeded"] == stats.totals["succeeded"]
        return stats.totals["accepted"], stats.totals["succeeded"]


@pytest.fixture
def open_bench(
    moving_cluster: Any, open_store: OpenStore, new_job: Any, claim: Any, succeed: Any
) -> Any:
    @contextlib.asynccontextmanager
    async def open_(**options: Any) -> Any:
        async with open_store(moving_cluster.url, **options) as storage:
            yield Bench(storage, new_job, claim, succeed)

    return open_


async def until(call: Callable[[], Any]) -> Any:
    """Return what a call returns once it works."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(Unavailable):
                return await call()
            await asyncio.sleep(0.02)


async def half_moved(open_bench: Any, start_moving: Any, part: str) -> None:
    """No call does anything while a slot is on its way, whatever has left already."""
    async with open_bench(timeout=0.3) as bench:
        await bench.submit("a", "b")
        leases = await bench.claim(1)
        moving = start_moving(bench.slot, 0, 1)
        left = [key for key in moving.waiting() if key.decode().endswith(PARTS[part])]
        moving.send(*left)
        for call in bench.calls(leases):
            with pytest.raises(Unavailable, match="is moving the keys"):
                await call()
        settling = asyncio.create_task(bench.settle(leases))
        while moving.send(*moving.waiting(3)):
            await asyncio.sleep(0)
        moving.end()
        assert [reply.lost for reply in await settling] == [False]
        assert [lease.id for lease in await bench.claim(5)] == ["b"]
        assert await bench.ended() == (2, 1)


@pytest.mark.parametrize("part", PARTS)
async def test_a_call_waits_while_its_slot_moves(
    part: str, open_bench: Any, start_moving: Any
) -> None:
    await half_moved(open_bench, start_moving, part)


async def test_the_key_that_is_never_made_is_needed(
    open_bench: Any, start_moving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it scripts begin, and fail in their midst."""
    monkeypatch.setattr(_place, "_NONE", "")
    with pytest.raises(OutcomeUnknown):
        await half_moved(open_bench, start_moving, "the jobs")


async def test_a_load_goes_on_while_its_slot_moves(open_bench: Any, start_moving: Any) -> None:
    """To another node, to the third and back, a few keys at a time."""
    over = asyncio.Event()
    accepted: list[str] = []
    ended: list[str] = []

    async def submit(bench: Bench, name: str) -> None:
        for number in itertools.count():
            if over.is_set():
                return
            ids = [f"{name}-{number}-{each}" for each in range(3)]
            await bench.submit(*ids)
            accepted.extend(ids)
            await asyncio.sleep(0.001)

    async def move(bench: Bench) -> None:
        for source, target in ((0, 1), (1, 2), (2, 0)):
            await asyncio.sleep(0.05)
            moving = await asyncio.to_thread(start_moving, bench.slot, source, target)
            while keys := await asyncio.to_thread(moving.waiting, 5):
                await asyncio.to_thread(moving.send, *keys)
            await asyncio.to_thread(moving.end)
        over.set()

    async with open_bench() as bench:
        workers = [asyncio.create_task(bench.work(name, ended)) for name in ("v", "w")]
        await asyncio.gather(move(bench), *(submit(bench, name) for name in ("a", "b")))
        async with asyncio.timeout(PATIENCE):
            while len(ended) < len(accepted):
                await asyncio.sleep(0.01)
        for worker in workers:
            worker.cancel()
        results = await asyncio.gather(*workers, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
        assert sorted(ended) == sorted(accepted)
        assert await bench.ended() == (len(accepted), len(accepted))
