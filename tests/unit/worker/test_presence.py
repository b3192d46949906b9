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


class Store(MemoryStorage):
    """Counts its calls."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryOptions(), PluginContext(clock=clock))
        self.calls = self.sweeps = 0

    def __getattribute__(self, name: str) -> Any:
        if name in VERBS:
            self.calls += 1
            self.sweeps += name == "sweep"
        return super().__getattribute__(name)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Store(self.clock)
        self.assembly = Assembly({}, storage=self.store, clock=self.clock)
        self.app = plugq.App()
        self.app.task("t", queue="q")(lambda: None)

    def engine(self, name: str) -> Engine:
        runner = Runner(
            self.assembly.serdes(),
            self.clock,
            threads=1,
            result_limit=1000,
            finished=lambda *_: None,
        )
        broker = self.assembly.broker(maintain=True, listed=False)
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
    engines = [world.engine("a"), world.engine("b")]
    await engines[0].start()
    await world.advance(15)
    world.store.calls = world.store.sweeps = 0
    await world.advance(30)
    assert world.store.calls <= 3 * 30
    elected = world.store.calls - world.store.sweeps
    await engines[1].start()
    await world.advance(15)
    world.store.calls = world.store.sweeps = 0
    await world.advance(30)
    # Only the elected one sweeps.
    assert 0 < world.store.calls - world.store.sweeps - elected <= 30
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
