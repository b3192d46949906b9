"""Schedules that are changed at run time, on every storage and by many at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import plugq
from plugq.announcement import Announcer
from plugq.assembly import Assembly
from plugq.broker.scheduler import Scheduler
from plugq.testing import ManualClock

Deployment = dict[str, Any]
START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A client and two schedulers, each with a storage of its own where processes share it."""

    def __init__(self, client: plugq.Client, clock: ManualClock, stores: list[Any]) -> None:
        self.client = client
        self.clock = clock
        self.schedulers = [Scheduler(store, clock) for store in stores]

    async def round(self) -> None:
        await asyncio.gather(*(scheduler.round() for scheduler in self.schedulers))

    async def jobs(self) -> Counter[str]:
        found: Counter[str] = Counter()
        cursor = None
        while True:
            page = await self.client.find(limit=1000, cursor=cursor)
            found.update(job.id for job in page.jobs)
            if (cursor := page.cursor) is None:
                return found


@asynccontextmanager
async def opened(deployment: Deployment) -> AsyncIterator[World]:
    clock = ManualClock(START)
    assembly = Assembly(deployment, clock=clock)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(assembly.client())
        stores = [assembly.storage() for _ in range(2)]
        for store in stores:
            await store.start()
            stack.push_async_callback(store.stop)
        yield World(client, clock, stores)


def at(minute: int) -> str:
    return f"beat@{(START + timedelta(minutes=minute)).isoformat()}"


async def test_two_schedulers_submit_each_tick_once(deployment: Deployment) -> None:
    async with opened(deployment) as world:
        request = plugq.job("t", 1)
        await world.client.schedules.put("beat", request, every=60, catch_up="all", overlap="allow")
        for _ in range(100):
            world.clock.advance(60)
            await world.round()
        assert await world.jobs() == Counter(map(at, range(1, 101)))


async def test_a_schedule_lives_by_what_it_is_told(deployment: Deployment) -> None:
    async with opened(deployment) as world:
        schedules = world.client.schedules
        await schedules.put("beat", plugq.job("t", 1), every="1m", overlap="allow")
        (info,) = await schedules.list(runs=2)
        assert (info.name, info.task, info.queue, info.rule) == (
            "beat",
            "t",
            "default",
            "every 60 s",
        )
        assert (info.source, info.paused, info.timezone, info.last) == (
            "runtime",
            False,
            None,
            START,
        )
        assert info.next == (START + timedelta(minutes=1), START + timedelta(minutes=2))

        await schedules.pause("beat")
        world.clock.advance(300)
        await world.round()
        assert await world.jobs() == Counter()
        (info,) = await schedules.list()
        assert (info.paused, info.next) == (True, ())

        handle = await schedules.trigger("beat")
        assert handle.outcome == "accepted"
        assert await world.client.payload(handle.id, queue=handle.queue) == ([1], {})

        await schedules.resume("beat")
        world.clock.advance(60)
        await world.round()
        assert await world.jobs() == Counter([handle.id, at(6)])

        request = plugq.job("t", 2).options(queue="other")
        await schedules.put(
            "beat", request, cron="*/2 * * * *", timezone="Europe/Berlin", overlap="allow"
        )
        (info,) = await schedules.list()
        assert (info.rule, info.timezone, info.queue) == (
            "*/2 * * * * Europe/Berlin",
            "Europe/Berlin",
            "other",
        )
        world.clock.advance(120)
        await world.round()
        assert at(8) in await world.jobs()

        await schedules.remove("beat")
        assert await schedules.list() == ()
        world.clock.advance(600)
        await world.round()
        assert len(await world.jobs()) == 3
        for verb in (schedules.pause, schedules.resume, schedules.trigger, schedules.remove):
            with pytest.raises(plugq.Conflict, match="there is no schedule 'beat'"):
                await verb("beat")


async def test_changes_and_two_schedulers_at_once_double_no_tick(deployment: Deployment) -> None:
    async with opened(deployment) as world:
        schedules = world.client.schedules

        async def put(queue: str) -> None:
            request = plugq.job("t").options(queue=queue)
            await schedules.put("beat", request, every=60, catch_up="all", overlap="allow")

        await put("a")
        triggered = []
        for minute in range(1, 25):
            world.clock.advance(60)
            done = await asyncio.gather(
                world.round(),
                put("b" if minute % 2 else "a"),
                schedules.trigger("beat"),
                *([schedules.pause("beat")] if minute % 5 == 0 else []),
                *([schedules.resume("beat")] if minute % 5 == 1 else []),
                world.round(),
            )
            triggered += [one.id for one in done if isinstance(one, plugq.JobHandle)]
            # Every change may have come in between: now nothing does.
            await world.round()
        jobs = await world.jobs()
        assert set(jobs.values()) == {1}
        assert set(triggered) <= set(jobs)
        # What falls into a pause, and the ticks of its first and last moment, may be there or not.
        sure = {at(minute) for minute in range(1, 25) if minute % 5 not in {0, 1}}
        assert sure <= set(jobs)


async def test_many_who_change_one_schedule_all_get_their_turn(deployment: Deployment) -> None:
    async with opened(deployment) as world:
        schedules = world.client.schedules
        await asyncio.gather(
            *(schedules.put(f"s{at % 4}", plugq.job("t", at), every=60) for at in range(20))
        )
        assert [info.name for info in await schedules.list()] == ["s0", "s1", "s2", "s3"]
        world.clock.advance(60)
        await world.round()
        assert len(await world.jobs()) == 4


async def test_a_worker_runs_what_a_client_puts(deployment: Deployment) -> None:
    app = plugq.App()
    ran = asyncio.Event()

    @app.task
    async def note(text: str) -> str:
        ran.set()
        return text

    async with app.running(deployment) as client:
        await client.schedules.put("often", note.job("x"), every=0.1)
        await ran.wait()
        await client.schedules.pause("often")
        handle = await client.schedules.trigger("often")
        assert await handle.result("20s") == "x"


async def test_what_is_changed_at_run_time_outlives_a_restart(deployment: Deployment) -> None:
    if Assembly(deployment).private:
        pytest.skip("needs a storage that outlives its processes")
    deployment["schedules"] = {
        "kept": {"task": "t", "every": "1h"},
        "gone": {"task": "t", "every": "1h"},
        "changed": {"task": "t", "every": "1h"},
    }
    app = plugq.App()

    @app.task("t")
    async def task() -> None:
        pass

    async def names(client: plugq.Client, number: int) -> dict[str, plugq.client.ScheduleInfo]:
        while True:
            found = {one.name: one for one in await client.schedules.list()}
            if len(found) == number:
                return found
            await asyncio.sleep(0.02)

    async with app.running(deployment) as client:
        found = await names(client, 3)
        assert {one.source for one in found.values()} == {"config"}
        await client.schedules.pause("kept")
        await client.schedules.remove("gone")
        await client.schedules.put("changed", task.job(), every="2h")
    async with app.running(deployment) as client:
        await asyncio.sleep(0)
        found = await names(client, 2)
        assert found["kept"].paused
        assert (found["changed"].rule, found["changed"].source) == ("every 7200 s", "runtime")
        removed = {one.name for one in await client.schedules.list(removed=True) if one.removed}
        assert removed == {"gone"}
    for table in deployment["schedules"].values():
        table["every"] = "3h"
    async with app.running(deployment) as client:
        while {one.rule for one in (await names(client, 3)).values()} != {"every 10800 s"}:
            await asyncio.sleep(0.02)
        assert not any(one.paused for one in await client.schedules.list())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cron": [1]}, "cron: expected text, got [1]"),
        ({"every": 60, "timezone": []}, "timezone: expected text, got []"),
        ({"cron": "0 3 * * *", "timezone": None}, "timezone: expected text, got None"),
    ],
)
async def test_a_rule_of_another_type_is_refused_in_a_line(
    deployment: Deployment, options: dict[str, Any], said: str
) -> None:
    async with opened(deployment) as world:
        with pytest.raises(plugq.ConfigError) as caught:
            await world.client.schedules.put("beat", plugq.job("t"), **options)
    assert str(caught.value) == said


@pytest.mark.parametrize("name", [5, None, "\ud800", ""])
@pytest.mark.parametrize("verb", ["trigger", "pause", "resume", "remove"])
async def test_a_name_that_can_not_be_is_refused(
    deployment: Deployment, verb: str, name: Any
) -> None:
    async with opened(deployment) as world:
        with pytest.raises(plugq.InvalidJob, match=r"^schedule: "):
            await getattr(world.client.schedules, verb)(name)


async def test_what_is_put_by_name_has_the_options_that_are_announced(
    deployment: Deployment,
) -> None:
    app = plugq.App()

    @app.task("rep", queue="reports", lane=lambda number: f"t{number}")
    def rep(number: int) -> None: ...

    async with opened(deployment) as world:
        schedules = world.client.schedules
        await Announcer(world.client._broker, world.clock, app.tasks).round()
        with pytest.raises(plugq.InvalidJob, match=r"^lane: task 'rep'"):
            await schedules.put("beat", plugq.job("rep", 1), every=60)
        await schedules.put("beat", plugq.job("rep", 1).options(lane="mine"), every=60)
        job = await (await schedules.trigger("beat")).status()
    assert (job.queue, job.lane) == ("reports", "mine")
