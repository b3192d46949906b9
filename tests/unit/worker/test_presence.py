"""The engine among others: what it says of itself, and what being idle costs."""

from __future__ import annotations

import asyncio
from typing import Any

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.presence import LOOK, PREFIX, Live, decode
from plugq.protocols import PluginContext
from plugq.testing import ManualClock
from plugq.worker import Engine, EngineSettings, Runner

VERBS = {"submit", "claim", "settle", "renew", "sweep", "get", "find", "stats", "edit"}
VERBS |= {"load", "swap", "scan"}


class Counted:
    """The store as one process sees it, which counts the calls of that one."""

    def __init__(self, store: MemoryStorage) -> None:
        self.store = store
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += name in VERBS
        return getattr(self.store, name)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = MemoryStorage(MemoryOptions(), PluginContext(clock=self.clock))
        self.app = plugq.App()
        self.app.task("t", queue="q")(lambda: None)

    def engine(self, name: str, store: Any = None) -> Engine:
        assembly = Assembly({}, storage=store or self.store, clock=self.clock)
        runner = Runner(
            assembly.serdes(),
            self.clock,
            threads=1,
            result_limit=1000,
            finished=lambda *_: None,
        )
        broker = assembly.broker(maintain=True, listed=False)
        settings = EngineSettings(worker=name, queues=("q",), concurrency=4)
        return Engine(broker, runner, {}, settings, self.clock, tasks=self.app.tasks)

    async def advance(self, seconds: float, *, step: float = 0.2) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def live(self) -> list[Live]:
        return decode(await self.store.scan(PREFIX))


async def test_an_idle_worker_makes_one_call_a_second_and_an_elected_one_three() -> None:
    world = World()
    stores = [Counted(world.store), Counted(world.store)]
    engines = [world.engine("elected", stores[0]), world.engine("other", stores[1])]
    for engine in engines:
        await engine.start()
        await world.advance(15)
    before = [store.calls for store in stores]
    await world.advance(60)
    calls = [store.calls - former for store, former in zip(stores, before, strict=True)]
    assert 60 < calls[0] <= 180
    assert 0 < calls[1] <= 60
    for engine in engines:
        await engine.stop()


async def test_what_changes_is_told_at_once_and_a_stop_takes_it_back() -> None:
    world = World()
    await world.store.start()
    engine = world.engine("a")
    await engine.start()
    await world.settle()
    (one,) = await world.live()
    assert (one.id, one.queues, one.concurrency) == (engine.state()["worker"], ("q",), 4)
    engine.scale(9)
    await world.settle()
    assert [one.concurrency for one in await world.live()] == [9]
    assert engine.state()["presence"] == {"told": 0.0}
    await world.advance(LOOK)
    assert engine.state()["presence"]["told"] >= LOOK - 0.1
    await engine.stop()
    engine.scale(1)
    await world.settle()
    assert await world.live() == []
    await world.store.stop()
