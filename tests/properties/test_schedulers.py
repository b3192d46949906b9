"""Two schedulers, stepped by hand: between any two storage calls the other may run, or one dies.

Model: each tick is accepted at most once, in whatever queue; and each that lies in no pause is
accepted in the end.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plugq.broker.scheduler import Scheduler
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.job import Outcome
from plugq.protocols import (
    ClaimRequest,
    NewJob,
    PluginContext,
    RegisterChange,
    Settlement,
    SubmitStatus,
    SweepRequest,
)
from plugq.schedule import CatchUp, Definition, Entry, Interval, Overlap, Stored, changes
from plugq.schedule.stored import encode, key_of, read
from plugq.testing import ManualClock

START = datetime(2026, 1, 1, tzinfo=UTC)
EVERY = 60
KEY = key_of("s")
QUEUES = ("a", "b")


class Gate:
    """Passes the storage calls of one scheduler on, each in two steps: before and after it."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.waiting: asyncio.Future[None] | None = None

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        verb = getattr(self._world.store, name)

        async def call(*args: Any) -> Any:
            await self._turn()
            answer = await verb(*args)
            if name == "submit":
                self._world.note(args[0], answer)
            await self._turn()
            return answer

        return call

    async def _turn(self) -> None:
        self.waiting = asyncio.get_running_loop().create_future()
        await self.waiting

    def open(self) -> None:
        if self.waiting is not None and not self.waiting.done():
            self.waiting.set_result(None)


class World:
    def __init__(self, *, catch_up: CatchUp, overlap: Overlap, id_ttl: float) -> None:
        self.clock = ManualClock(START)
        self.store = MemoryStorage(MemoryOptions(), PluginContext(clock=self.clock))
        self.accepted: dict[tuple[str, str, int], None] = {}
        self.overlapping: list[str] = []
        self.claims = 0
        self.optional: set[float] = set()
        self.paused_from: float | None = None
        self.actors: list[tuple[Gate, asyncio.Task[int]] | None] = [None, None]
        self.overlap = overlap
        self.catch_up = catch_up
        job = NewJob(
            queue="a",
            id="",
            task="t",
            submission=b"",
            body=b"",
            id_ttl=id_ttl,
            result_ttl=0.0,
            failure_ttl=0.0,
        )
        self.definition = Definition(
            name="s",
            rule=Interval(EVERY),
            job=job,
            catch_up=catch_up,
            overlap=overlap,
            source="code",
            digest="1",
        )

    def note(self, jobs: Any, replies: Any) -> None:
        for job, reply in zip(jobs, replies, strict=True):
            if reply.status is SubmitStatus.ACCEPTED:
                self.accepted[job.id, job.queue, reply.sequence] = None

    async def settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)

    async def begin(self) -> None:
        await self.store.start()
        scheduler = Scheduler(self.store, self.clock, [self.definition], owner="me")
        await scheduler.announce()

    async def step(self, number: int) -> None:
        """Let one scheduler make half a storage call; where it is done it begins anew."""
        actor = self.actors[number]
        if actor is None or actor[1].done():
            if actor is not None:
                actor[1].result()
            gate = Gate(self)
            scheduler = Scheduler(gate, self.clock)  # type: ignore[arg-type]
            actor = self.actors[number] = gate, asyncio.create_task(scheduler.round())
            await self.settle()
        actor[0].open()
        await self.settle()

    async def crash(self, number: int) -> None:
        actor, self.actors[number] = self.actors[number], None
        if actor is not None:
            actor[1].cancel()
            await asyncio.gather(actor[1], return_exceptions=True)

    async def change(self, edit: Callable[[Entry, float], Entry | None]) -> None:
        loaded = await self.store.load([KEY])
        (register,) = loaded.registers
        assert register is not None
        stored = read(register)
        assert isinstance(stored, Stored)
        entry = edit(stored.entry, loaded.now)
        value = None if entry is None else encode(entry)
        swap = RegisterChange(key=KEY, expect=register.version, value=value)
        assert (await self.store.swap([swap])).done

    async def pause(self, _: int = 0) -> None:
        def edit(entry: Entry, _: float) -> Entry:
            if self.paused_from is None:
                self.paused_from = entry.last
            return changes.paused(entry)

        await self.change(edit)

    async def resume(self, _: int = 0) -> None:
        def edit(entry: Entry, now: float) -> Entry:
            if self.paused_from is not None:
                self.optional |= set(self.ticks(self.paused_from, now))
                self.paused_from = None
            return changes.resumed(entry, now)

        await self.change(edit)

    async def move(self, number: int) -> None:
        """Have the schedule use another queue from now on."""
        job = msgspec.structs.replace(self.definition.job, queue=QUEUES[number])
        definition = Definition(
            name="s",
            rule=Interval(EVERY),
            job=job,
            catch_up=self.catch_up,
            overlap=self.overlap,
        )
        await self.change(lambda entry, now: changes.put(entry, definition, now))

    async def finish(self, _: int = 0) -> None:
        """Have every job that waits run and end, and forget what may be forgotten."""
        self.claims += 1
        claim = ClaimRequest(worker="w", number=self.claims, queues=QUEUES, limit=1000)
        leases = (await self.store.claim(claim)).leases
        if self.overlap == "skip" and len(leases) > 1:
            self.overlapping += [lease.id for lease in leases]
        await self.store.settle(
            [
                Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.SUCCEED)
                for x in leases
            ]
        )
        await self.store.sweep(SweepRequest(limit=10_000))

    async def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    def ticks(self, after: float, until: float) -> list[float]:
        first = int(after // EVERY + 1) * EVERY
        return [float(tick) for tick in range(first, int(until) + 1, EVERY)]

    async def recover(self) -> None:
        """Whoever is under way goes on to the end, and then somebody looks at everything."""
        await self.resume()
        for number in (0, 1):
            actor = self.actors[number]
            while actor is not None and not actor[1].done():
                actor[0].open()
                await self.settle()
            if actor is not None:
                actor[1].result()
        scheduler = Scheduler(Passing(self), self.clock)  # type: ignore[arg-type]
        for _ in range(6):
            await scheduler.round()

    def counts(self) -> Counter[float]:
        return Counter(
            datetime.fromisoformat(id.removeprefix("s@")).timestamp() for id, _, _ in self.accepted
        )


class Passing:
    """Passes calls on and notes what was accepted."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._world.store, name)

        async def call(*args: Any) -> Any:
            answer = await verb(*args)
            if name == "submit":
                self._world.note(args[0], answer)
            return answer

        return call


actors = st.integers(0, 1)
steps = st.tuples(st.just("step"), actors)
acts = st.lists(
    st.one_of(
        steps,
        steps,
        steps,
        steps,
        st.tuples(st.just("crash"), actors),
        st.tuples(st.just("wait"), st.sampled_from([1, 30, 60, 61, 150])),
        st.tuples(st.just("move"), actors),
        st.tuples(st.sampled_from(["pause", "resume", "finish"]), st.just(0)),
    ),
    max_size=60,
)
Acts = list[tuple[str, int]]
TICK: Acts = [("wait", 60)]
#: Half calls of a round in which a tick is due: time, registers, these anew, note, submit, advance.
UNTIL_SUBMITTED = 10


async def play(world: World, script: Acts) -> None:
    await world.begin()
    for name, argument in script:
        await getattr(world, name)(argument)
    await world.recover()


def at_most_once(world: World) -> None:
    assert max(world.counts().values(), default=0) <= 1, world.accepted


@settings(max_examples=100, deadline=None)
@given(acts)
@example([*TICK, *[("step", 0)] * UNTIL_SUBMITTED, ("crash", 0), ("move", 1)])
@example([*TICK, *[("step", 0)] * 8, ("crash", 0), ("wait", 150)])
@example([*TICK, *[("step", 0)] * 8, ("wait", 30), *[("step", 1)] * 14, ("step", 0)])
def test_each_tick_once_and_none_missed(script: Acts) -> None:
    """With every tick wanted, and ids known for longer than anybody is away."""
    world = World(catch_up="all", overlap="allow", id_ttl=1e6)
    asyncio.run(play(world, script))
    at_most_once(world)
    wanted = world.ticks(START.timestamp(), world.clock.time())
    missing = [tick for tick in wanted if tick not in world.counts()]
    assert set(missing) <= world.optional


@settings(max_examples=100, deadline=None)
@given(acts, st.sampled_from(["skip", "one", "all"]), st.sampled_from(["skip", "allow"]))
def test_each_tick_at_most_once_though_ids_are_soon_forgotten(
    script: Acts, catch_up: CatchUp, overlap: Overlap
) -> None:
    world = World(catch_up=catch_up, overlap=overlap, id_ttl=0.0)
    asyncio.run(play(world, script))
    at_most_once(world)
    assert set(world.counts()) <= set(world.ticks(START.timestamp(), world.clock.time()))


@settings(max_examples=100, deadline=None)
@given(acts)
@example([*TICK, *[("step", 0)] * UNTIL_SUBMITTED, ("crash", 0), *TICK, *[("step", 1)] * 14])
def test_no_tick_overlaps_the_job_of_another(script: Acts) -> None:
    """A job that was submitted by a scheduler that died before it could say so counts, too."""
    world = World(catch_up="one", overlap="skip", id_ttl=1e6)

    async def all_of_it() -> None:
        await play(world, script)
        await world.finish()

    asyncio.run(all_of_it())
    at_most_once(world)
    assert world.overlapping == []
