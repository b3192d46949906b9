"""Submitting by name: what is announced counts, is remembered for a while, and is not needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import plugq
from plugq.announcement import encode, key_of
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.client import announced
from plugq.client.announced import FRESH, Announcements
from plugq.envelope import open_body
from plugq.errors import OutcomeUnknown
from plugq.options import SubmitOptions
from plugq.protocols import Loaded, NewJob, PluginContext, Register, RegisterChange
from plugq.testing import ManualClock

POLICY = plugq.RetryPolicy(max_attempts=7, base="2s")


class Store(MemoryStorage):
    """Counts what is loaded, keeps what was submitted, and loses answers when told to."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryOptions(), PluginContext(clock=clock))
        self.loads: list[list[str]] = []
        self.jobs: list[NewJob] = []
        self.fault: Exception | None = None
        self.hangs = False

    async def load(self, keys: Any) -> Loaded:
        self.loads.append(list(keys))
        if self.hangs:
            await asyncio.Event().wait()
        if self.fault is not None:
            raise self.fault
        return await super().load(keys)

    async def submit(self, jobs: Any) -> Any:
        self.jobs += jobs
        return await super().submit(jobs)


class World:
    def __init__(self, **config: Any) -> None:
        self.clock = ManualClock()
        self.store = Store(self.clock)
        self.config = config

    def client(self, app: plugq.App | None = None) -> plugq.Client:
        assembly = Assembly(self.config, storage=self.store, clock=self.clock)
        return assembly.client(None if app is None else app.tasks)

    async def announce(self, app: plugq.App) -> None:
        changes = []
        for name, task in app.tasks.items():
            (held,) = (await self.store.load([key_of(name)])).registers
            expect = 0 if held is None else held.version
            value = encode(task, 0.0)
            changes.append(RegisterChange(key=key_of(name), expect=expect, value=value))
        assert (await self.store.swap(changes)).done
        self.store.loads.clear()


def an_app(name: str = "t", **options: Any) -> plugq.App:
    app = plugq.App()

    @app.task(name, **options)
    async def function(value: int = 0) -> int:
        return value

    return app


async def counts() -> None:
    """What a task announces is what a submission by name gets."""
    world = World()
    async with world.client() as client:
        await world.announce(an_app(queue="reports", timeout=9, retry=POLICY))
        handle = await client.submit(plugq.job("t", 1))
        assert handle.queue == "reports"
        (job,) = world.store.jobs
        body = open_body(job.body)
        assert (job.max_attempts, body.timeout, body.retry) == (7, 9.0, POLICY.terms())


async def test_what_is_announced_counts() -> None:
    await counts()


async def test_an_announcement_that_is_ignored_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announced, "decode", lambda _: None)
    with pytest.raises(AssertionError):
        await counts()


@pytest.mark.parametrize(
    ("config", "options", "priority"),
    [
        ({"tasks": {"t": {"priority": 3}}}, {"priority": 5}, 5),
        ({"tasks": {"t": {"priority": 3}}}, {}, 3),
        ({"queues": {"reports": {"priority": 2}}}, {}, 1),
        ({"defaults": {"priority": 2}}, {}, 1),
    ],
)
async def test_it_counts_at_the_place_of_the_task(
    config: dict[str, Any],
    options: dict[str, Any],
    priority: int,
) -> None:
    world = World(**config)
    async with world.client() as client:
        await world.announce(an_app(priority=1, queue="reports"))
        await client.submit(plugq.job("t"), **options)
    assert (world.store.jobs[0].priority, world.store.jobs[0].queue) == (priority, "reports")


async def test_the_options_of_the_queue_that_was_announced_count() -> None:
    world = World(queues={"reports": {"timeout": 3}})
    async with world.client() as client:
        await world.announce(an_app(queue="reports"))
        await client.submit(plugq.job("t"))
    assert open_body(world.store.jobs[0].body).timeout == 3


async def test_a_lane_that_is_a_function_has_to_be_given() -> None:
    world = World()
    async with world.client() as client:
        await world.announce(an_app(lane=str))
        with pytest.raises(plugq.InvalidJob, match=r"lane: task 't' makes it .* give lane=…"):
            await client.submit(plugq.job("t", 1))
        with pytest.raises(plugq.InvalidJob, match="lane: "):
            await client.submit_many([plugq.job("u"), plugq.job("t", 1)])
        assert world.store.jobs == []
        await client.submit(plugq.job("t", 1), lane="a")
        await client.submit(plugq.job("t", 1).options(lane=None))
    assert [job.lane for job in world.store.jobs] == ["a", None]


async def test_the_file_may_give_the_lane() -> None:
    world = World(tasks={"t": {"lane": "b"}})
    async with world.client() as client:
        await world.announce(an_app(lane=str))
        await client.submit(plugq.job("t", 1))
    assert world.store.jobs[0].lane == "b"


async def test_a_unique_key_that_is_a_function_has_to_be_given() -> None:
    world = World()
    async with world.client() as client:
        await world.announce(an_app(unique=lambda _: plugq.Unique.until_started()))
        with pytest.raises(plugq.InvalidJob, match=r"unique: task 't' makes it .* give unique=…"):
            await client.submit(plugq.job("t", 1))
        await client.submit(plugq.job("t", 1), unique=plugq.Unique.until_finished("k"))
        await client.submit(plugq.job("t", 1), unique=None)
    assert [job.unique and job.unique.key for job in world.store.jobs] == ["k", None]


async def test_a_unique_mode_that_is_announced_makes_duplicates() -> None:
    app = an_app(unique=plugq.Unique.until_finished())
    world = World()
    async with world.client() as client, world.client(app) as owner:
        await world.announce(app)
        first = await owner.submit(app.tasks["t"].job(1))
        again = await client.submit(plugq.job("t", 1))
        other = await client.submit(plugq.job("t", 2))
    assert (again.outcome, again.id) == ("duplicate", first.id)
    assert other.outcome == "accepted"


async def test_nobody_announced_it_is_submitted_as_it_is() -> None:
    world = World()
    async with world.client() as client:
        handle = await client.submit(plugq.job("t"))
    assert handle.queue == "default"


async def test_a_task_that_is_here_needs_no_announcement() -> None:
    world = World()
    async with world.client(an_app(queue="mine", lane=lambda value: f"l{value}")) as client:
        await world.announce(an_app(queue="theirs"))
        await client.submit(plugq.job("t", 1))
    assert (world.store.jobs[0].queue, world.store.jobs[0].lane) == ("mine", "l1")
    assert world.store.loads == []


async def test_what_is_known_is_not_asked_again_for_a_while() -> None:
    world = World()
    async with world.client() as client:
        await world.announce(an_app(queue="old"))
        await client.submit_many([plugq.job(name) for name in ("t", "u", "t")])
        assert world.store.loads == [[key_of("t"), key_of("u")]]
        await world.announce(an_app(queue="new"))
        await world.announce(an_app("u", queue="new"))
        world.clock.advance(FRESH - 0.1)
        await client.submit_many([plugq.job("t"), plugq.job("u")])
        assert world.store.loads == []
        world.clock.advance(0.1)
        await client.submit_many([plugq.job("t"), plugq.job("u")])
        assert world.store.loads == [[key_of("t"), key_of("u")]]
    queues = [job.queue for job in world.store.jobs]
    assert queues == ["old", "default", "old", "old", "default", "new", "new"]


async def test_a_storage_that_can_not_be_asked_stores_nothing() -> None:
    world = World(client={"deadline": 0.05})
    async with world.client() as client:
        for fault in (plugq.Unavailable("gone"), OutcomeUnknown("lost")):
            world.store.fault = fault
            with pytest.raises(plugq.Unavailable):
                await client.submit(plugq.job("t"))
        world.store.hangs = True
        with pytest.raises(plugq.Unavailable, match=r"no answer .* within 0.05 s"):
            await client.submit_many([plugq.job("t")])
    assert world.store.jobs == []


async def test_what_can_not_be_read_counts_as_nothing() -> None:
    world = World()
    async with world.client() as client:
        value = b"\xc1 garbage"
        await world.store.swap([RegisterChange(key=key_of("t"), expect=0, value=value)])
        await client.submit(plugq.job("t"))
    assert world.store.jobs[0].queue == "default"


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(announced, "MOST", 5)
    monkeypatch.setattr(announced, "CHUNK", 2)
    sizes: list[int] = []
    value = encode(an_app(queue="q").tasks["t"], 0.0)

    async def load(keys: Any) -> Loaded:
        sizes.append(len(keys))
        found = tuple(Register(key=key, version=1, value=value) for key in keys)
        return Loaded(registers=found, now=0.0)

    known = Announcements(load, ManualClock())
    found = await known.of([f"t{number}" for number in range(9)])
    assert sizes == [2, 2, 2, 2, 1]
    assert len(known._known) <= 5
    assert {one and one.asked.layer for one in found.values()} == {SubmitOptions(queue="q")}
