"""The scheduler: each tick once, by any number of schedulers, paused ones among them."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from plugq.broker.local import LocalBroker
from plugq.broker.scheduler import Scheduler
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.errors import InvalidJob, OutcomeUnknown
from plugq.job import JobState, Outcome
from plugq.protocols import (
    ClaimRequest,
    Configure,
    Drain,
    FindQuery,
    NewJob,
    PluginContext,
    QueueSettings,
    RegisterChange,
    Settlement,
    SubmitReply,
    SubmitStatus,
    SweepRequest,
)
from plugq.schedule import (
    CatchUp,
    Cron,
    Definition,
    Entry,
    Interval,
    Overlap,
    Rule,
    Stored,
    changes,
)
from plugq.schedule.stored import NEWS, encode, key_of, read
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


@pytest.mark.parametrize("missed", [2, 250])
async def test_all_without_overlap_submits_the_newest_however_many_were_missed(missed: int) -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(60), catch_up="all", overlap="skip")
    world.clock.advance(60 * missed)
    for number in (1, 0, 0):
        assert await scheduler.round() == number
        await world.finish_everything()
    assert await world.ticks() == expected(missed)[-1:]


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


@pytest.mark.parametrize("error", [RuntimeError, InvalidJob])
async def test_a_schedule_that_fails_does_not_stop_the_others(error: type[Exception]) -> None:
    world = World()
    await world.store.start()
    submit = world.store.submit

    async def fails(jobs: Any) -> Any:
        if any(job.task == "broken" for job in jobs):
            raise error("no")
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


async def entry_of(world: World, name: str = "s") -> Entry:
    (register,) = (await world.store.load([key_of(name)])).registers
    assert register is not None
    stored = read(register)
    assert isinstance(stored, Stored)
    return stored.entry


async def change(world: World, edit: Any, name: str = "s") -> None:
    loaded = await world.store.load([key_of(name)])
    (register,) = loaded.registers
    assert register is not None
    stored = read(register)
    assert isinstance(stored, Stored)
    entry = edit(stored.entry, loaded.now)
    value = None if entry is None else encode(entry)
    written = RegisterChange(key=key_of(name), expect=register.version, value=value)
    assert (await world.store.swap([written])).done


def minutely(name: str = "s", **options: Any) -> Definition:
    wanted: dict[str, Any] = {
        "name": name,
        "rule": Interval(60),
        "job": template(),
        "catch_up": "all",
        "overlap": "allow",
        "source": "code",
        "digest": "1",
    }
    return Definition(**wanted | options)


async def test_a_paused_schedule_submits_nothing_and_makes_up_for_nothing() -> None:
    world = World()
    await world.store.start()
    scheduler = await world.announced(minutely())
    world.clock.advance(60)
    assert await scheduler.round() == 1
    await change(world, lambda entry, _: changes.paused(entry))
    world.clock.advance(300)
    assert await scheduler.round() == 0
    await change(world, changes.resumed)
    assert await scheduler.round() == 0
    world.clock.advance(60)
    assert await scheduler.round() == 1
    assert await world.ticks() == [expected(7)[0], expected(7)[6]]


async def test_an_elected_scheduler_runs_what_others_have_announced() -> None:
    world = World()
    await world.store.start()
    scheduler = await world.announced(minutely("a"), owner="one")
    await world.announced(minutely("b"), owner="two")
    world.clock.advance(60)
    assert await scheduler.round() == 2


async def test_what_its_owner_defines_no_longer_goes_and_others_stay() -> None:
    world = World()
    await world.store.start()
    await world.announced(minutely("a"), minutely("b"), owner="one")
    await world.announced(minutely("c"), owner="two")
    scheduler = await world.announced(minutely("b"), owner="one")
    world.clock.advance(60)
    assert await scheduler.round() == 2
    assert list(scheduler.state()) == ["b", "c"]
    await world.announced(owner="one")
    world.clock.advance(60)
    assert await scheduler.round() == 1


async def test_the_same_definition_leaves_a_pause_and_another_one_ends_it() -> None:
    world = World()
    await world.store.start()
    await world.announced(minutely())
    await change(world, lambda entry, _: changes.paused(entry))
    await world.announced(minutely())
    assert (await entry_of(world)).paused
    world.clock.advance(300)
    scheduler = await world.announced(minutely(digest="2"))
    assert await scheduler.round() == 0
    world.clock.advance(60)
    assert await scheduler.round() == 1


async def test_a_restart_goes_on_where_the_ticks_were() -> None:
    world = World()
    await world.store.start()
    await world.announced(minutely())
    world.clock.advance(300)
    scheduler = await world.announced(minutely(digest="2"))
    assert await scheduler.round() == 5
    world.clock.advance(300)
    scheduler = await world.announced(minutely(digest="3", rule=Interval(30)))
    assert await scheduler.round() == 0


async def test_of_two_owners_of_one_name_the_last_one_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    await world.store.start()
    await world.announced(minutely(), owner="one")
    await world.announced(minutely(digest="2", job=template(queue="other")), owner="two")
    assert "defined by one too" in caplog.text
    await world.announced(owner="one")
    entry = await entry_of(world)
    assert (entry.owner, entry.job.queue) == ("two", "other")


async def test_a_definition_that_moves_while_its_tick_is_submitted_runs_it_once() -> None:
    world = World()
    await world.store.start()
    one, two = await world.announced(minutely()), await world.announced(minutely())
    world.clock.advance(60)
    gate = asyncio.Event()
    world.store.gates.append(gate)
    paused = asyncio.create_task(one.round())
    await world.store.reached.wait()
    await world.announced(minutely(digest="2", job=template(queue="other")))
    assert await two.round() == 1
    gate.set()
    await paused
    world.clock.advance(60)
    assert await two.round() == 1
    jobs = (await world.store.find(FindQuery())).jobs
    assert sorted((job.queue, job.id) for job in jobs) == [
        ("other", f"s@{expected(2)[1]}"),
        ("q", f"s@{expected(2)[0]}"),
    ]


async def test_a_job_whose_scheduler_died_before_it_could_say_so_is_not_overlapped() -> None:
    world = World()
    await world.store.start()
    one = await world.scheduler(Interval(60), catch_up="one", overlap="skip")
    world.clock.advance(60)
    swap = world.store.swap
    swaps = 0

    async def dies(changes: Any) -> Any:
        nonlocal swaps
        swaps += 1
        if swaps == 2:
            raise asyncio.CancelledError
        return await swap(changes)

    world.store.swap = dies  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await one.round()
    world.store.swap = swap  # type: ignore[method-assign]
    world.clock.advance(60)
    two = await world.scheduler(Interval(60), catch_up="one", overlap="skip")
    for _ in range(3):
        await two.round()
    assert await world.accepted() == 1


async def test_a_draining_queue_refuses_ticks_for_a_while_and_loses_none() -> None:
    world = World()
    await world.store.start()
    submit = world.store.submit
    draining = True

    async def refuses(jobs: Any) -> Any:
        if draining:
            return [SubmitReply(SubmitStatus.DRAINING, job.id, JobState.QUEUED) for job in jobs]
        return await submit(jobs)

    world.store.submit = refuses  # type: ignore[method-assign]
    scheduler = await world.scheduler(Interval(60))
    for _ in range(30):
        world.clock.advance(60)
        assert await scheduler.round() == 0
    draining = False
    for _ in range(3):
        await scheduler.round()
    assert await world.ticks() == expected(30)


async def test_a_refused_tick_that_is_skipped_is_told_as_dropped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    await world.store.start()
    await world.store.edit(Drain(queues=("q",)))
    scheduler = await world.scheduler(Interval(60), catch_up="skip")
    world.clock.advance(6)
    for number in range(1, 4):
        world.clock.advance(52)
        for _ in range(4):
            world.clock.advance(2)
            assert await scheduler.round() == 0
        assert caplog.text.count("was dropped, since queue 'q' is draining") == number
    assert caplog.text.count("queue 'q' is draining and is tried again") == 1
    assert "counts as submitted" not in caplog.text


async def test_a_refusal_says_nothing_of_a_later_try_whose_answer_was_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    await world.store.start()
    await world.store.edit(Drain(queues=("q",)))
    scheduler = await world.scheduler(Interval(60), catch_up="skip")
    world.clock.advance(60)
    assert await scheduler.round() == 0
    submit = world.store.submit

    async def lost(jobs: Any) -> Any:
        raise OutcomeUnknown("lost", ids=[job.id for job in jobs])

    world.store.submit = lost  # type: ignore[method-assign]
    with pytest.raises(OutcomeUnknown):
        await scheduler.round()
    world.store.submit = submit  # type: ignore[method-assign]
    world.clock.advance(6)
    assert await scheduler.round() == 0
    assert "was dropped" not in caplog.text
    assert "counts as submitted" in caplog.text


async def test_what_nobody_could_complete_in_time_counts_as_submitted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Else a job that ran, and whose id is forgotten by now, would run again."""
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(3600), id_ttl=600.0)
    world.clock.advance(3600)
    gate = asyncio.Event()
    world.store.gates.append(gate)
    dead = asyncio.create_task(scheduler.round())
    await world.store.reached.wait()
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)
    world.clock.advance(541)
    assert await scheduler.round() == 0
    assert "counts as submitted" in caplog.text
    world.clock.advance(3600)
    assert await scheduler.round() == 1


async def test_ids_that_are_forgotten_are_not_submitted_again() -> None:
    """A scheduler dies after it submitted; the job ends and is forgotten before another comes."""
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(3600), id_ttl=600.0, result_ttl=0.0)
    world.clock.advance(3600)
    submit = world.store.submit

    async def dies(jobs: Any) -> Any:
        await submit(jobs)
        raise asyncio.CancelledError

    world.store.submit = dies  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await scheduler.round()
    world.store.submit = submit  # type: ignore[method-assign]
    await world.finish_everything()
    world.clock.advance(700)
    await world.store.sweep(SweepRequest(limit=100))
    assert await world.ticks() == []
    await scheduler.round()
    assert await world.accepted() == 1


@pytest.mark.parametrize(
    ("away", "policy", "number"), [(4, "skip", 1), (6, "skip", 0), (6, "one", 1)]
)
async def test_a_tick_under_way_is_completed_unless_its_policy_finds_it_too_late(
    away: int, policy: CatchUp, number: int
) -> None:
    world = World()
    await world.store.start()
    scheduler = await world.scheduler(Interval(3600), catch_up=policy)
    world.clock.advance(3600)
    gate = asyncio.Event()
    world.store.gates.append(gate)
    dead = asyncio.create_task(scheduler.round())
    await world.store.reached.wait()
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)
    world.clock.advance(away)
    assert await scheduler.round() == number
    assert await world.accepted() == number


@pytest.mark.parametrize("value", [b"", b"\xc1 nonsense", b"\x93\x01\x02\x03"])
async def test_a_register_that_can_not_be_read_is_told_once_and_left_alone(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    world = World()
    await world.store.start()
    await world.store.swap([RegisterChange(key=key_of("bad"), expect=0, value=value)])
    scheduler = await world.announced(minutely())
    caplog.clear()
    for _ in range(3):
        world.clock.advance(60)
        assert await scheduler.round() == 1
    assert caplog.text.count("can not be read") == 1
    assert scheduler.state()["bad"].startswith("unreadable: ")
    (register,) = (await world.store.load([key_of("bad")])).registers
    assert register is not None
    assert register.value == value


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"", 1),
        (b"\xc1 nonsense", 1),
        (encode(minutely().entry(owner="me", last=0.0))[:-1], 1),
        (encode(minutely(catch_up="latest").entry(owner="me", last=0.0)), 1),
        (msgspec.msgpack.encode([START.timestamp() - 180, "q", "s@1", 1]), 4),
        (msgspec.msgpack.encode([1e300, "q", "s@1", 1]), 1),
    ],
)
async def test_a_definition_takes_the_place_of_what_can_not_be_read(
    value: bytes, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the form that held no definition, the ticks go on where they were."""
    world = World()
    await world.store.start()
    for expect, wrong in enumerate((b"wrong", value)):
        written = RegisterChange(key=key_of("s"), expect=expect, value=wrong)
        assert (await world.store.swap([written])).done
    scheduler = await world.announced(minutely())
    await world.announced(minutely())
    assert caplog.text.count("could not be read") == 1
    world.clock.advance(60)
    assert await scheduler.round() == number


async def test_of_many_who_replace_what_can_not_be_read_one_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    await world.store.start()
    await world.store.swap([RegisterChange(key=key_of("s7"), expect=0, value=b"wrong")])
    definitions = [minutely(f"s{number}") for number in range(20)]
    schedulers = await asyncio.gather(*(world.announced(*definitions) for _ in range(5)))
    assert caplog.text.count("could not be read") == 1
    world.clock.advance(60)
    assert await schedulers[0].round() == 20


async def test_of_the_former_form_the_last_job_is_not_overlapped() -> None:
    world = World()
    await world.store.start()
    await world.store.submit([template(id="s@1")])
    value = msgspec.msgpack.encode([START.timestamp(), "q", "s@1", 1])
    await world.store.swap([RegisterChange(key=key_of("s"), expect=0, value=value)])
    scheduler = await world.announced(minutely(catch_up="one", overlap="skip"))
    world.clock.advance(60)
    assert await scheduler.round() == 0
    await world.finish_everything()
    world.clock.advance(60)
    assert await scheduler.round() == 1


async def test_what_a_newer_release_wrote_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    await world.store.start()
    value = msgspec.msgpack.encode([2, {"unheard": "of"}])
    await world.store.swap([RegisterChange(key=key_of("s"), expect=0, value=value)])
    await world.announced(minutely())
    assert "a newer plugq wrote it, in version 2" in caplog.text
    (register,) = (await world.store.load([key_of("s")])).registers
    assert register is not None
    assert register.value == value


async def test_ten_thousand_schedules_cost_a_few_calls_for_each_hundred() -> None:
    world = World()
    await world.store.start()
    number = 10_000
    scheduler = await world.announced(*(minutely(f"s{at}") for at in range(number)))
    await scheduler.round()
    calls: Counter[str] = Counter()

    class Counted:
        def __getattr__(self, name: str) -> Any:
            calls[name] += 1
            return getattr(world.store, name)

    scheduler._storage = Counted()  # type: ignore[assignment]
    world.clock.advance(60)
    assert await scheduler.round() == number
    assert calls == {"load": 101, "scan": 1, "swap": 200, "submit": 100}
    calls.clear()
    assert await scheduler.round() == 0
    assert calls == {"load": 1, "scan": 1}


async def test_a_change_is_noticed_at_the_next_renewal_of_the_sweepers_term() -> None:
    clock = ManualClock(START)
    store = MemoryStorage(MemoryOptions(), PluginContext(clock=clock))
    broker = LocalBroker(store, clock, maintain=True)
    await broker.start()
    try:

        async def pass_time(seconds: float) -> None:
            for _ in range(round(seconds / 0.1)):
                for _ in range(20):
                    await asyncio.sleep(0)
                clock.advance(0.1)

        await pass_time(5)
        entry = minutely(rule=Interval(0.5)).entry(owner="", last=clock.time())
        await store.swap([RegisterChange(key=key_of("s"), expect=0, value=encode(entry))])
        await store.swap([RegisterChange(key=NEWS, expect=0, value=b"1")])
        await pass_time(1.6)
        assert (await store.find(FindQuery())).jobs
        assert (await store.load([NEWS])).registers == (None,)
    finally:
        await broker.stop()


async def test_many_who_announce_at_once_all_get_what_they_define() -> None:
    world = World()
    await world.store.start()
    definitions = [minutely(f"s{number}") for number in range(20)]
    await asyncio.gather(
        *(world.announced(*definitions) for _ in range(3)),
        *(world.announced(minutely(f"t{number}"), owner=f"o{number}") for number in range(5)),
    )
    scheduler = await world.announced(*definitions)
    world.clock.advance(60)
    assert await scheduler.round() == 25


async def test_each_tick_is_told_with_its_schedule_and_job() -> None:
    world = World()
    await world.store.start()
    told: list[tuple[str, str]] = []
    scheduler = Scheduler(
        world.store,
        world.clock,
        [minutely()],
        owner="me",
        ticked=lambda name, job: told.append((name, job.id)),
    )
    await scheduler.announce()
    world.clock.advance(120)
    await scheduler.round()
    await scheduler.round()
    assert told == [("s", f"s@{tick}") for tick in expected(2)]
    assert scheduler.state() == {"s": expected(3)[2]}
