"""The scheduler: each tick once, by any number of schedulers, paused ones among them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from plugq.broker.scheduler import Scheduler
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.job import Outcome
from plugq.protocols import (
    ClaimRequest,
    Configure,
    FindQuery,
    NewJob,
    PluginContext,
    QueueSettings,
    Settlement,
    SweepRequest,
)
from plugq.schedule import CatchUp, Cron, Definition, Interval, Overlap, Rule
from plugq.testing import ManualClock

START = datetime(2026, 1, 1, tzinfo=UTC)


def template(**options: Any) -> NewJob:
    return NewJob(**{"queue": "q", "id": "", "task": "t", "submission": b"", "body": b""} | options)


class Store(MemoryStorage):
    """Lets a test stop a scheduler between two of its calls."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryOptions(), PluginContext(clock=clock))
        self.gates: list[asyncio.Event] = []
        self.reached = asyncio.Event()

    async def submit(self, jobs: Any) -> Any:
        if self.gates:
            gate = self.gates.pop()
            self.reached.set()
            await gate.wait()
        return await super().submit(jobs)


class World:
    def __init__(self, start: datetime = START) -> None:
        self.clock = ManualClock(start)
        self.store = Store(self.clock)

    async def scheduler(
        self,
        rule: Rule,
        *,
        catch_up: CatchUp = "all",
        overlap: Overlap = "allow",
        **options: Any,
    ) -> Scheduler:
        definition = Definition(
            name="s",
            rule=rule,
            job=template(**options),
            catch_up=catch_up,
            overlap=overlap,
            source="code",
            digest="1",
        )
        return await self.announced(definition)

    async def announced(self, *definitions: Definition, owner: str = "me") -> Scheduler:
        scheduler = Scheduler(self.store, self.clock, definitions, owner=owner)
        await scheduler.announce()
        return scheduler

    async def ticks(self) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page = await self.store.find(FindQuery(limit=1000, cursor=cursor))
            found += [job.id.removeprefix("s@") for job in page.jobs]
            if (cursor := page.cursor) is None:
                return sorted(found)

    async def accepted(self) -> int:
        stats = await self.store.stats()
        return sum(task.totals["accepted"] for task in stats.tasks)

    async def finish_everything(self) -> None:
        claim = ClaimRequest(worker="w", number=1, queues=("q",), limit=1000)
        reply = await self.store.claim(claim)
        await self.store.settle(
            [
                Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.SUCCEED)
                for x in reply.leases
            ]
        )


def expected(minutes: int) -> list[str]:
    return [
        datetime.fromtimestamp(START.timestamp() + 60 * (n + 1), UTC).isoformat()
        for n in range(minutes)
    ]


async def test_two_schedulers_submit_each_of_a_thousand_ticks_once() -> None:
    world = World()
    await world.store.start()
    one, two = [await world.scheduler(Interval(60)) for _ in range(2)]
    await asyncio.gather(one.round(), two.round())
    for _ in range(1000):
        world.clock.advance(60)
        await asyncio.gather(one.round(), two.round())
    assert await world.ticks() == expected(1000)
    assert await world.accepted() == 1000


@pytest.mark.parametrize("purged", [False, True])
async def test_a_scheduler_that_was_paused_over_fifty_ticks_doubles_none(*, purged: bool) -> None:
    """It was stopped after it had read the register and before it submitted."""
    world = World()
    await world.store.start()
    one, two = [await world.scheduler(Interval(60)) for _ in range(2)]
    await one.round()
    world.clock.advance(60)
    gate = asyncio.Event()
    world.store.gates.append(gate)
    paused = asyncio.create_task(two.round())
    await world.store.reached.wait()
    for _ in range(50):
        await one.round()
        if purged:
            # Retention passes and takes the ids with it: only not_after is left to refuse them.
            await world.finish_everything()
        world.clock.advance(60)
    if purged:
        world.clock.advance("2h")
        await world.store.sweep(SweepRequest(limit=10_000))
    before = await world.accepted()
    gate.set()
    await paused
    assert await world.accepted() == before
    if not purged:
        await asyncio.gather(one.round(), two.round())
        world.clock.advance(60)
        await asyncio.gather(one.round(), two.round())
        assert await world.ticks() == expected(52)
        assert await world.accepted() == 52


async def test_a_schedule_counts_from_when_it_was_first_seen() -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(60))
    assert await scheduler.round() == 0
    world.clock.advance(59)
    assert await scheduler.round() == 0
    world.clock.advance(1)
    assert await scheduler.round() == 1


@pytest.mark.parametrize(("policy", "number"), [("all", 10), ("one", 1), ("skip", 0)])
async def test_ticks_while_no_scheduler_ran(policy: CatchUp, number: int) -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(60), catch_up=policy)
    await scheduler.round()
    world.clock.advance(630)
    assert await scheduler.round() == number
    assert await scheduler.round() == 0
    world.clock.advance(30)
    assert await scheduler.round() == 1


async def test_a_tick_is_left_out_while_the_job_before_has_not_ended() -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(60), overlap="skip")
    await scheduler.round()
    for submitted in (1, 0, 0):
        world.clock.advance(60)
        assert await scheduler.round() == submitted
    await world.finish_everything()
    world.clock.advance(60)
    assert await scheduler.round() == 1


@pytest.mark.parametrize(
    ("start", "hours"),
    [
        # Europe/Berlin leaves out 02:30 on 29 March and has it twice on 25 October 2026.
        (datetime(2026, 3, 28, tzinfo=UTC), 72),
        (datetime(2026, 10, 24, tzinfo=UTC), 72),
    ],
)
async def test_both_changes_of_daylight_saving_tick_once_a_day(start: datetime, hours: int) -> None:
    world = World(start)
    await world.store.start()
    schedulers = [await world.scheduler(Cron("30 2 * * *", "Europe/Berlin")) for _ in range(2)]
    for _ in range(hours * 4):
        await asyncio.gather(*(scheduler.round() for scheduler in schedulers))
        world.clock.advance(900)
    assert await world.accepted() == 3


async def test_a_running_scheduler_ticks_in_time_and_asks_the_storage_rarely() -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(60))
    loads = 0
    load = world.store.load

    async def counted(keys: Any) -> Any:
        nonlocal loads
        loads += 1
        return await load(keys)

    world.store.load = counted  # type: ignore[method-assign]
    running = asyncio.create_task(scheduler.run())
    for _ in range(1220):
        for _ in range(8):
            await asyncio.sleep(0)
        world.clock.advance(0.5)
    for _ in range(10):
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await world.accepted() == 10
    assert loads <= 22


async def test_who_is_not_elected_does_nothing_until_it_is() -> None:
    world = World()
    await world.store.start()
    elected = False
    calls = 0

    def active() -> bool:
        return elected

    class Counted:
        def __getattr__(self, name: str) -> Any:
            nonlocal calls
            calls += 1
            return getattr(world.store, name)

    await world.scheduler(Interval(60))
    scheduler = Scheduler(Counted(), world.clock, active=active)  # type: ignore[arg-type]
    running = asyncio.create_task(scheduler.run())

    async def pass_time(seconds: int) -> None:
        for _ in range(2 * seconds):
            for _ in range(8):
                await asyncio.sleep(0)
            world.clock.advance(0.5)

    await pass_time(130)
    assert calls == 0
    elected = True
    scheduler.changed()
    await pass_time(120)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await world.accepted() == 4


async def test_ticks_that_a_full_queue_refuses_are_not_lost() -> None:
    world = World()
    await world.store.start()
    await world.store.edit(Configure((QueueSettings(queue="q", max_length=5),)))
    scheduler = await world.scheduler(Interval(60))
    await scheduler.round()
    world.clock.advance(600)
    for _ in range(5):
        await scheduler.round()
    assert await world.ticks() == expected(5)
    assert await scheduler.round() == 0
    await world.finish_everything()
    for _ in range(5):
        await scheduler.round()
    assert await world.ticks() == expected(10)


async def test_a_schedule_that_fails_does_not_stop_the_others() -> None:
    world = World()
    await world.store.start()
    submit = world.store.submit

    async def fails(jobs: Any) -> Any:
        if any(job.task == "broken" for job in jobs):
            raise RuntimeError("no")
        return await submit(jobs)

    world.store.submit = fails  # type: ignore[method-assign]
    rule = Interval(60)
    scheduler = await world.announced(
        Definition(name="a", rule=rule, job=template(task="broken"), digest="1"),
        Definition(name="s", rule=rule, job=template(), overlap="allow", digest="1"),
    )
    await scheduler.round()
    for _ in range(3):
        world.clock.advance(60)
        assert await scheduler.round() == 1


async def test_a_tick_that_came_too_late_to_the_storage_is_tried_again() -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(3600))
    await scheduler.round()
    world.clock.advance(3600)
    gate = asyncio.Event()
    world.store.gates.append(gate)
    paused = asyncio.create_task(scheduler.round())
    await world.store.reached.wait()
    world.clock.advance(61)
    gate.set()
    assert await paused == 0
    assert await world.accepted() == 0
    assert await scheduler.round() == 1


async def test_a_machine_that_slept_is_noticed_between_two_ticks() -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(36_000))
    await scheduler.round()
    assert not scheduler._stale()
    world.clock.advance(61)
    assert scheduler._stale()
    await scheduler.round()
    world.clock.set_back(1)
    assert scheduler._stale()
