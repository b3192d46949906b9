"""Announcements: stable bytes, careful reading, and who writes what when."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import plugq
from plugq.announcement import DAY, PREFIX, TTL, Announcer, decode, encode, key_of
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.errors import Unavailable
from plugq.options import SubmitOptions
from plugq.protocols import PluginContext, Register, RegisterChange
from plugq.task import Task
from plugq.testing import ManualClock

POLICY = plugq.RetryPolicy(max_attempts=7, backoff="linear", base="2s", retry_on=(OSError,))
FULL: dict[str, Any] = {
    "queue": "reports",
    "priority": -5,
    "delay": 1.5,
    "deadline": "1h",
    "timeout": None,
    "retry": POLICY,
    "lane": "tenant",
    "unique": plugq.Unique.throttle("k", ttl="5s"),
    "headers": {"b": "2", "a": "1"},
    "result_ttl": "forever",
    "failure_ttl": 60,
}


def task(**options: Any) -> Task[Any, Any]:
    app = plugq.App()

    @app.task("t", **options)
    async def function(value: int = 0) -> int:
        return value

    return function


def register(value: bytes) -> Register:
    return Register(key=key_of("t"), version=1, value=value)


class Store(MemoryStorage):
    """Counts its calls and keeps what was written."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(MemoryOptions(), PluginContext(clock=clock))
        self.loads = 0
        self.written: list[list[str]] = []

    async def load(self, keys: Any) -> Any:
        self.loads += 1
        return await super().load(keys)

    async def swap(self, changes: Any) -> Any:
        answer = await super().swap(changes)
        if answer.done:
            self.written.append([change.key for change in changes])
        return answer


@pytest.mark.parametrize("options", [{}, FULL, {"max_attempts": 2}, {"lane": None}])
def test_what_is_announced_comes_back(options: dict[str, Any]) -> None:
    one = task(**options)
    found = decode(register(encode(one, 5.0)))
    assert found is not None
    layer, own = found.asked.layer, one.asked.layer
    if "retry" in options:
        assert isinstance(layer.retry, plugq.RetryPolicy)
        assert isinstance(own.retry, plugq.RetryPolicy)
        assert layer.retry.terms() == own.retry.terms()
        layer = msgspec.structs.replace(layer, retry=own.retry)
    assert layer == own
    assert found.asked.unique == one.asked.unique
    assert (found.lane_computed, found.unique_computed) == (False, False)


def test_functions_are_announced_as_such() -> None:
    one = task(lane=str, unique=lambda _: plugq.Unique.until_started())
    found = decode(register(encode(one, 5.0)))
    assert found is not None
    assert (found.lane_computed, found.unique_computed) == (True, True)
    assert found.asked.layer == SubmitOptions()


def test_equal_tasks_give_equal_bytes() -> None:
    turned = FULL | {"headers": {"a": "1", "b": "2"}}
    assert encode(task(**FULL), 5.0) == encode(task(**turned), 5.0)
    assert encode(task(**FULL), 5.0) != encode(task(**FULL | {"priority": 1}), 5.0)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        b"\x91" * 100_000,
        msgspec.msgpack.encode([2, 5.0, {}]),
        msgspec.msgpack.encode([1, 5.0, {"priority": 5000}]),
        msgspec.msgpack.encode([1, 5.0, {"queue": ""}]),
        msgspec.msgpack.encode([1, 5.0, {"queue": "q" * 256}]),
        msgspec.msgpack.encode([1, 5.0, {"timeout": 0}]),
        msgspec.msgpack.encode([1, 5.0, {"timeout": -1}]),
        msgspec.msgpack.encode([1, 5.0, {"delay": float("nan")}]),
        msgspec.msgpack.encode([1, 5.0, {"max_attempts": 0}]),
        msgspec.msgpack.encode([1, 5.0, {"max_attempts": 2, "retry": [4]}]),
        msgspec.msgpack.encode([1, 5.0, {"retry": [0]}]),
        msgspec.msgpack.encode([1, 5.0, {"retry": [4, "exponential", float("inf")]}]),
        msgspec.msgpack.encode([1, 5.0, {"unique": ["never", None, 0.0]}]),
        msgspec.msgpack.encode([1, 5.0, {"unique": ["throttle", "", 0.0]}]),
        msgspec.msgpack.encode([1, 5.0, {"unique": ["throttle", "k", -1.0]}]),
        msgspec.msgpack.encode([1, 5.0, {"unique": ["throttle", "k", float("nan")]}]),
    ],
)
def test_what_can_not_be_is_not_believed(value: bytes) -> None:
    assert decode(register(value)) is None


@given(st.binary(max_size=200))
def test_hostile_bytes_do_no_harm(value: bytes) -> None:
    decode(register(value))
    decode(register(msgspec.msgpack.encode([1, 5.0, msgspec.Raw(value)]) if value else b""))


@given(
    st.dictionaries(
        st.sampled_from(["queue", "priority", "delay", "timeout", "retry", "lane", "headers"]),
        st.none() | st.integers() | st.floats() | st.text() | st.lists(st.integers()),
    ),
)
def test_hostile_options_do_no_harm(options: dict[str, Any]) -> None:
    try:
        value = msgspec.msgpack.encode([1, 5.0, options])
    except (OverflowError, UnicodeEncodeError):
        return
    decode(register(value))


async def world() -> tuple[ManualClock, Store]:
    clock = ManualClock()
    store = Store(clock)
    await store.start()
    return clock, store


async def announced(store: Store, name: str = "t") -> Any:
    (found,) = (await store.load([key_of(name)])).registers
    return None if found is None else decode(found)


async def test_what_is_there_already_is_not_written_again() -> None:
    clock, store = await world()
    tasks = {f"t{number:03}": task(priority=number) for number in range(450)}
    await Announcer(store, clock, tasks).round()
    assert [len(keys) for keys in store.written] == [200, 200, 50]
    store.written.clear()
    await Announcer(store, clock, tasks | {"t007": task(priority=999)}).round()
    assert store.written == [[key_of("t007")]]


async def test_the_worker_that_started_last_wins_and_the_other_keeps_out() -> None:
    clock, store = await world()
    old = Announcer(store, clock, {"t": task(queue="old")})
    await old.round()
    old._first = False
    await Announcer(store, clock, {"t": task(queue="new")}).round()
    clock.advance(DAY)
    await old.round()
    assert (await announced(store)).asked.layer.queue == "new"
    # Once the other's has gone, its own counts again.
    clock.advance(TTL)
    await old.round()
    assert (await announced(store)).asked.layer.queue == "old"


async def test_an_announcement_is_kept_alive_by_those_who_run_and_those_who_start() -> None:
    clock, store = await world()
    assert TTL >= 7 * DAY
    running = Announcer(store, clock, {"t": task()})
    await running.round()
    running._first = False
    for _ in range(30):
        clock.advance(DAY)
        await running.round()
        assert await announced(store) is not None
    # A worker that is restarted more than once a day never gets to its second round.
    for _ in range(60):
        clock.advance(0.75 * DAY)
        await Announcer(store, clock, {"t": task()}).round()
        assert await announced(store) is not None
    clock.advance(TTL)
    assert await announced(store) is None


async def test_what_can_not_be_read_is_replaced_at_a_start() -> None:
    clock, store = await world()
    await store.swap([RegisterChange(key=key_of("t"), expect=0, value=b"\xc1")])
    await Announcer(store, clock, {"t": task(queue="q")}).round()
    assert (await announced(store)).asked.layer.queue == "q"


async def test_two_that_start_at_one_time_both_get_through() -> None:
    clock, store = await world()
    first = Announcer(store, clock, {"t": task(queue="first")})

    class Meddles(Store):
        meddled = False

        async def swap(self, changes: Any) -> Any:
            if not self.meddled:
                self.meddled = True
                await first.round()
            return await store.swap(changes)

        async def load(self, keys: Any) -> Any:
            return await store.load(keys)

    await Announcer(Meddles(clock), clock, {"t": task(queue="second")}).round()
    assert (await announced(store)).asked.layer.queue == "second"


async def test_a_register_that_never_keeps_still_is_given_up() -> None:
    clock, store = await world()

    class Refuses(Store):
        async def load(self, keys: Any) -> Any:
            return await store.load(keys)

        async def swap(self, changes: Any) -> Any:
            late = [msgspec.structs.replace(change, expect=7) for change in changes]
            return await store.swap(late)

    with pytest.raises(Unavailable, match="over and over"):
        await Announcer(Refuses(clock), clock, {"t": task()}).round()


async def test_nothing_to_announce_costs_nothing() -> None:
    clock, store = await world()
    await Announcer(store, clock, {}).run()
    assert (store.loads, store.written) == (0, [])
    assert PREFIX == "announced:"
