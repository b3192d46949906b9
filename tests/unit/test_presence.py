"""Presence: what is written when, how it ends, and what is not believed."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.errors import OutcomeUnknown, Unavailable
from plugq.lifecycle import Supervisor
from plugq.presence import LOOK, PREFIX, RENEWAL, TTL, Live, Presence, decode, encode
from plugq.protocols import PluginContext, Register
from plugq.testing import ManualClock


class Store(MemoryStorage):
    """Counts its writes, fails them, or loses their answers."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryOptions(), PluginContext(clock=clock))
        self.swaps = 0
        self.broken = False
        self.lossy = False

    async def swap(self, changes: Any) -> Any:
        self.swaps += 1
        if self.broken:
            raise Unavailable("gone")
        answer = await super().swap(changes)
        if self.lossy:
            raise OutcomeUnknown("the answer was lost")
        return answer


class NeverForgets(Store):
    """Keeps registers for ever, as if presence had no ttl."""

    async def swap(self, changes: Any) -> Any:
        kept = [msgspec.structs.replace(change, ttl=None) for change in changes]
        return await super().swap(kept)


class World:
    def __init__(self, kind: type[Store] = Store) -> None:
        self.clock = ManualClock()
        self.store = kind(self.clock)
        self.supervisor = Supervisor(self.clock)
        self.facts = {name: Live(kind="worker", id=name, host="h", pid=1) for name in "ab"}
        self.members: dict[str, Presence] = {}

    def join(self, name: str) -> Presence:
        presence = self.members[name] = Presence(self.store, self.clock, lambda: self.facts[name])
        self.supervisor.run(name, presence.run)
        return presence

    def change(self, name: str, **facts: Any) -> None:
        self.facts[name] = msgspec.structs.replace(self.facts[name], **facts)

    def die(self, name: str) -> None:
        self.supervisor._tasks.pop(name).cancel()

    async def advance(self, seconds: float, *, step: float = 0.5) -> None:
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def live(self) -> dict[str, Live]:
        return {one.id: one for one in decode(await self.store.scan(PREFIX))}


async def started(world: World, *names: str) -> World:
    await world.store.start()
    for name in names:
        world.join(name)
    await world.settle()
    return world


async def dies_alone(kind: type[Store]) -> None:
    """Of two the one that died disappears when its ttl has passed, and not before."""
    world = await started(World(kind), "a", "b")
    try:
        assert set(await world.live()) == {"a", "b"}
        world.die("a")
        await world.advance(TTL - 1)
        assert set(await world.live()) == {"a", "b"}
        await world.advance(1)
        assert set(await world.live()) == {"b"}
        await world.advance(2 * TTL)
        assert set(await world.live()) == {"b"}
    finally:
        await world.supervisor.stop()


async def test_who_died_disappears_after_the_ttl_and_nobody_else() -> None:
    await dies_alone(Store)


async def test_a_presence_that_never_expires_is_caught() -> None:
    with pytest.raises(AssertionError):
        await dies_alone(NeverForgets)


async def test_an_idle_member_writes_once_in_ten_seconds() -> None:
    world = await started(World(), "a")
    world.store.swaps = 0
    await world.advance(60)
    assert world.store.swaps == 60 / RENEWAL
    await world.supervisor.stop()


async def test_the_times_are_those_of_the_storage() -> None:
    world = await started(World(), "a")
    begun = world.clock.time()
    world.clock.set_back(3600)
    await world.advance(RENEWAL)
    live = (await world.live())["a"]
    # The storage's time never runs backwards, whatever happens to the clock of the machine.
    assert live.started_at == begun
    assert begun <= live.seen <= begun + RENEWAL
    await world.supervisor.stop()


@pytest.mark.parametrize(
    "change",
    [{"concurrency": 7}, {"draining": True}, {"queues": ("q",)}],
)
async def test_a_change_is_told_soon_and_at_once_when_asked(change: dict[str, Any]) -> None:
    world = await started(World(), "a")
    world.change("a", **change)
    await world.advance(LOOK)
    (name, value) = next(iter(change.items()))
    assert getattr((await world.live())["a"], name) == value
    world.change("a", pid=99)
    await world.members["a"].tell()
    assert (await world.live())["a"].pid == 99
    await world.supervisor.stop()


async def test_running_jobs_are_told_early_only_when_the_slots_fill_up() -> None:
    world = await started(World(), "a")
    world.change("a", concurrency=4)
    await world.advance(LOOK)
    world.store.swaps = 0
    world.change("a", running=3)
    await world.advance(LOOK)
    assert world.store.swaps == 0
    world.change("a", running=4)
    await world.advance(LOOK)
    assert (await world.live())["a"].running == 4
    world.change("a", running=2)
    await world.advance(LOOK)
    assert (await world.live())["a"].running == 2
    await world.supervisor.stop()


async def test_a_storage_that_fails_is_shown_and_tried_again() -> None:
    world = World()
    world.store.broken = True
    await started(world, "a")
    assert "gone" in world.supervisor.state()["a"]["error"]
    assert world.members["a"].state() == {"told": None}
    await world.advance(5)
    world.store.broken = False
    await world.advance(3)
    assert set(await world.live()) == {"a"}
    assert world.supervisor.state()["a"]["running"]
    await world.supervisor.stop()


async def test_a_lost_answer_leaves_one_register() -> None:
    world = World()
    world.store.lossy = True
    await started(world, "a")
    await world.advance(5)
    world.store.lossy = False
    await world.advance(5)
    assert len(await world.store.scan(PREFIX)) == 1
    assert world.members["a"].state()["told"] is not None
    await world.supervisor.stop()


async def test_one_that_was_paused_past_its_ttl_comes_back() -> None:
    world = await started(World(), "a")
    world.clock.advance(TTL + 1)
    assert await world.live() == {}
    await world.settle()
    assert set(await world.live()) == {"a"}
    await world.supervisor.stop()


async def test_a_storage_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(Store):
        async def swap(self, changes: Any) -> Any:
            await asyncio.Event().wait()

    monkeypatch.setattr("plugq.presence.ANSWER", 0.01)
    monkeypatch.setattr("plugq.presence.LAST_MOMENT", 0.01)
    world = World(Hangs)
    await world.store.start()
    presence = Presence(world.store, world.clock, lambda: world.facts["a"])
    with pytest.raises(Unavailable, match="no answer"):
        await presence.tell()
    await presence.remove()


async def test_what_was_removed_is_gone_at_once_and_not_written_again() -> None:
    world = await started(World(), "a", "b")
    await world.members["a"].remove()
    assert set(await world.live()) == {"b"}
    await world.members["a"].tell()
    assert set(await world.live()) == {"b"}
    await world.supervisor.stop()


async def test_a_write_that_was_cut_off_is_removed_too() -> None:
    world = await started(World(), "a")
    world.store.lossy = True
    with pytest.raises(OutcomeUnknown):
        await world.members["a"].tell()
    world.store.lossy = False
    await world.supervisor.stop()
    await world.members["a"].remove()
    assert await world.live() == {}


async def test_a_remove_that_fails_raises_nothing() -> None:
    world = await started(World(), "a")
    await world.supervisor.stop()
    world.store.broken = True
    await world.members["a"].remove()


LIVE = Live(
    kind="worker",
    id="w",
    host="h",
    pid=3,
    queues=("b", "a"),
    tasks=("t",),
    concurrency=2,
    running=1,
    draining=True,
    started_at=1.0,
    seen=2.0,
)


def register(value: bytes) -> Register:
    return Register(key=f"{PREFIX}x", version=1, value=value)


def test_what_is_encoded_comes_back() -> None:
    assert decode([register(encode(LIVE))]) == [LIVE]


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([2, LIVE]),
        msgspec.msgpack.encode([1]),
        msgspec.msgpack.encode([1, {}]),
        msgspec.msgpack.encode([1, {"kind": "spy", "id": "w", "host": "h", "pid": 1}]),
        msgspec.msgpack.encode([1, {"kind": "worker", "id": "w", "host": "h", "pid": -1}]),
        b"\x91" * 100_000,
        encode(LIVE)[:-1],
    ],
)
def test_what_can_not_be_read_is_left_out_and_hides_nothing(value: bytes) -> None:
    assert decode([register(value), register(encode(LIVE))]) == [LIVE]


@given(st.binary(max_size=200))
def test_hostile_bytes_are_left_out(value: bytes) -> None:
    for one in decode([register(value)]):
        assert isinstance(one, Live)
