"""The sweeper: who has the office, and how long holders get to renew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from plugq.broker.sweeper import CANDIDACY, ROUND, TERM, Sweeper
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.errors import Unavailable
from plugq.job import JobRef, JobState
from plugq.lifecycle import Supervisor
from plugq.protocols import ClaimRequest, NewJob, PluginContext, SweepReply, SweepRequest
from plugq.testing import ManualClock


class Store(MemoryStorage):
    """Counts its calls, and fails or hangs on demand."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryOptions(), PluginContext(clock=clock))
        self.sweeps: list[SweepRequest] = []
        self.calls = 0
        self.broken = False

    async def sweep(self, request: SweepRequest) -> SweepReply:
        if self.broken:
            raise Unavailable("gone")
        self.calls += 1
        self.sweeps.append(request)
        return await super().sweep(request)

    async def swap(self, changes: Any) -> Any:
        if self.broken:
            raise Unavailable("gone")
        self.calls += 1
        return await super().swap(changes)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.store = Store(self.clock)
        self.supervisor = Supervisor(self.clock)
        self.sweepers: dict[str, Sweeper] = {}

    def join(self, name: str, *, patience: float = 5.0) -> Sweeper:
        sweeper = self.sweepers[name] = Sweeper(
            self.store,
            self.clock,
            name=name,
            max_crashes=3,
            patience=patience,
            deadline_grace=30.0,
            report=lambda *_: None,
        )
        self.supervisor.run(name, sweeper.run)
        return sweeper

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def advance(self, seconds: float, *, step: float = 0.05) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            await self.settle()

    async def until(self, what: Callable[[], bool], *, within: float) -> float:
        begin = self.clock.monotonic()
        while not what():
            if self.clock.monotonic() - begin > within:
                pytest.fail(f"not within {within} s")
            await self.advance(0.05)
        return self.clock.monotonic() - begin

    @property
    def elected(self) -> list[str]:
        return [name for name, one in self.sweepers.items() if one.state()["elected"]]


async def test_one_of_many_is_elected_and_the_others_do_not_sweep() -> None:
    world = World()
    await world.store.start()
    for name in "abc":
        world.join(name)
    await world.advance(10)
    assert len(world.elected) == 1
    rounds = [one.state()["rounds"] for one in world.sweepers.values()]
    assert sorted(rounds)[:2] == [0, 0]
    await world.supervisor.stop()


async def test_an_office_left_by_a_dead_process_is_taken_over_within_three_seconds() -> None:
    world = World()
    await world.store.start()
    world.join("a")
    await world.settle()
    world.join("b")
    await world.advance(5)
    assert world.elected == ["a"]
    dead = world.supervisor._tasks.pop("a")
    dead.cancel()
    await world.settle()
    del world.sweepers["a"]
    assert await world.until(lambda: world.elected == ["b"], within=3.0) <= 3.0
    assert TERM + CANDIDACY < 3.0
    await world.supervisor.stop()


async def test_an_office_that_is_given_up_is_free_at_once() -> None:
    world = World()
    await world.store.start()
    first = world.join("a")
    await world.settle()
    await world.supervisor.stop()
    await first.resign()
    world.join("b")
    await world.settle()
    assert world.sweepers["b"].state()["elected"]
    await world.supervisor.stop()


async def test_a_new_sweeper_lets_holders_renew_before_it_ends_leases() -> None:
    world = World()
    await world.store.start()
    world.join("a", patience=5.0)
    await world.advance(4.9)
    assert world.store.sweeps
    assert not any(request.end_leases for request in world.store.sweeps)
    await world.advance(2)
    assert world.store.sweeps[-1].end_leases
    await world.supervisor.stop()


async def test_a_sweeper_that_was_paused_is_patient_again() -> None:
    world = World()
    await world.store.start()
    world.join("a", patience=5.0)
    await world.advance(8)
    assert world.store.sweeps[-1].end_leases
    seen = len(world.store.sweeps)
    # One leap of the clock: the process slept through its term and much more.
    world.clock.advance(60)
    await world.settle()
    await world.advance(4.5)
    later = world.store.sweeps[seen:]
    assert later
    assert not any(request.end_leases for request in later)
    await world.advance(2)
    assert world.store.sweeps[-1].end_leases
    await world.supervisor.stop()


async def test_a_sweeper_whose_storage_was_away_is_patient_again() -> None:
    world = World()
    await world.store.start()
    world.join("a", patience=5.0)
    await world.advance(8)
    assert world.store.sweeps[-1].end_leases
    world.store.broken = True
    await world.advance(4)
    assert world.supervisor.state()["a"]["failures"] > 0
    seen = len(world.store.sweeps)
    world.store.broken = False
    await world.advance(4)
    later = world.store.sweeps[seen:]
    assert later
    assert not any(request.end_leases for request in later)
    await world.supervisor.stop()


async def test_a_lapsed_lease_is_ended_and_its_job_goes_back() -> None:
    world = World()
    await world.store.start()
    world.join("a", patience=2.0)
    job = NewJob(queue="q", id="1", task="t", submission=b"1", body=b"", max_attempts=3)
    await world.store.submit([job])
    await world.store.claim(ClaimRequest(worker="w", number=1, queues=("q",), limit=1, lease=5))

    async def state() -> JobState:
        (record,) = await world.store.get([JobRef("q", "1")])
        assert record is not None
        return record.state

    await world.advance(4.9)
    assert await state() is JobState.RUNNING
    await world.advance(ROUND + 0.2)
    assert await state() is JobState.QUEUED
    await world.supervisor.stop()


async def test_the_calls_of_an_idle_sweeper_and_of_a_candidate_are_few() -> None:
    world = World()
    await world.store.start()
    world.join("a")
    await world.settle()
    world.store.calls = 0
    await world.advance(60)
    alone = world.store.calls
    assert alone <= 2.8 * 60
    world.join("b")
    await world.settle()
    world.store.calls = 0
    await world.advance(60)
    assert world.store.calls - alone <= 0.9 * 60
    await world.supervisor.stop()
