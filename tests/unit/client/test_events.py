"""Events for users: what a stream gives, when it says that something is missing, how it ends."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

import plugq
from plugq import EventKind, JobEvent, Resync
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.client.events import BUFFER, EventStream
from plugq.errors import Unavailable
from plugq.protocols import PluginContext
from plugq.protocols.storage import Heard
from plugq.testing import ManualClock


class Store(MemoryStorage):
    """Can fail to listen, never begin to, or lose the listener in the middle."""

    def __init__(self) -> None:
        super().__init__(MemoryOptions(), PluginContext())
        self.broken = False
        self.mute = False
        self.begun = 0
        self.cut = asyncio.Event()

    async def _heard(self) -> AsyncGenerator[Heard, None]:
        self.begun += 1
        if self.broken:
            raise Unavailable("gone")
        if self.mute:
            await asyncio.Event().wait()
        stream = MemoryStorage.listen(self)
        cut = asyncio.ensure_future(self.cut.wait())
        one: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        try:
            while True:
                one = asyncio.ensure_future(anext(stream))
                await asyncio.wait({one, cut}, return_when=asyncio.FIRST_COMPLETED)
                if cut.done():
                    self.cut.clear()
                    raise Unavailable("cut")
                try:
                    heard = one.result()
                except StopAsyncIteration:
                    return
                yield heard
        finally:
            cut.cancel()
            one.cancel()
            await asyncio.gather(cut, one, return_exceptions=True)
            await stream.aclose()

    def listen(self) -> Any:
        return self._heard()

    async def lose_listeners(self) -> None:
        """Cut every listener and wait until it is gone."""
        self.cut.set()
        while self.listened:
            await asyncio.sleep(0)


def deployment(clock: ManualClock | None = None, **config: Any) -> tuple[plugq.Client, Store]:
    store = Store()
    return Assembly(config, storage=store, clock=clock).client(), store


def event(number: int = 0, kind: EventKind = EventKind.STARTED, **facts: Any) -> JobEvent:
    return JobEvent(kind=kind, attempt=number, **{"queue": "q", "id": "a", **facts})


async def taken(stream: EventStream, number: int) -> list[JobEvent | Resync]:
    """Return so many of what a stream gives."""
    async with asyncio.timeout(10):
        return [await anext(stream) for _ in range(number)]


async def until(what: Any) -> None:
    """Wait for other tasks to get there; bounded by the timeout of the test."""
    while not what():
        await asyncio.sleep(0)


async def test_from_the_entering_on_everything_is_heard() -> None:
    client, store = deployment()
    async with client:
        async with client.events() as stream:
            handle = await client.submit(plugq.job("t"), batch="b")
            await handle.cancel()
            [submitted, cancelled] = await taken(stream, 2)
        assert isinstance(submitted, JobEvent)
        assert isinstance(cancelled, JobEvent)
        assert (submitted.kind, submitted.id, submitted.batch) == ("submitted", handle.id, "b")
        assert (cancelled.kind, cancelled.id) == ("cancelled", handle.id)
        assert not store.listened
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_iterating_enters_as_well() -> None:
    client, store = deployment()
    async with client:
        stream = client.events("submitted")
        first = asyncio.ensure_future(anext(stream))
        await until(lambda: store.listened)
        await until(lambda: client.state()["events"]["listening"])
        await client.submit(plugq.job("t"), id="a")
        assert (await first).id == "a"  # type: ignore[union-attr]
        await stream.aclose()
        await stream.aclose()
        assert [one async for one in stream] == []


async def test_a_stream_that_is_left_without_being_closed_is_dropped() -> None:
    client, store = deployment()
    async with client:
        await client.submit(plugq.job("t"), id="a")
        for number in range(3):
            feeding = asyncio.ensure_future(feed(client, store))
            async for one in client.events("submitted"):
                assert isinstance(one, JobEvent)
                break
            feeding.cancel()
            gc.collect()
            await until(lambda: not client.state()["events"]["streams"])
            await until(lambda: not store.listened)
            assert store.begun == number + 1
        # What somebody still has goes on.
        stream = client.events("submitted")
        feeding = asyncio.ensure_future(feed(client, store))
        async for _ in stream:
            break
        feeding.cancel()
        gc.collect()
        await client.submit(plugq.job("t"), id="last")
        while True:
            one = await anext(stream)
            if isinstance(one, JobEvent) and one.id == "last":
                break
        await stream.aclose()


async def feed(client: plugq.Client, store: Store) -> None:
    """Submit until somebody has heard of it."""
    await until(lambda: client.state()["events"]["listening"])
    while True:
        await client.submit(plugq.job("t"))


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"kinds": "started"}, [0, 2, 3, 4, 5]),
        ({"kinds": ["failed", EventKind.TICK]}, [1]),
        ({"kinds": []}, []),
        ({"queue": "other"}, [2]),
        ({"task": "t"}, [3]),
        ({"batch": "b"}, [4]),
        ({"id": "z"}, [5]),
        ({"id": "a", "queue": "q"}, [0, 1, 3, 4]),
        ({"kinds": "failed", "task": "t"}, []),
    ],
)
async def test_a_stream_gives_what_was_chosen(choice: Any, expected: list[int]) -> None:
    client, store = deployment()
    events = [
        event(0),
        event(1, EventKind.FAILED),
        event(2, queue="other"),
        event(3, task="t"),
        event(4, batch="b"),
        event(5, id="z"),
    ]
    async with client, client.events(**choice) as stream, client.events() as everything:
        store.tell(events)
        assert await taken(everything, 6) == events
        assert [one.attempt for one in list(stream._events)] == expected


@pytest.mark.parametrize("kinds", ["begun", ["started", "begun"]])
async def test_a_kind_that_is_none_is_named(kinds: Any) -> None:
    client, _ = deployment()
    async with client:
        with pytest.raises(plugq.InvalidJob, match="kind: 'begun' is none; use one of submitted, "):
            client.events(kinds)
        with pytest.raises(plugq.InvalidJob, match="kind: 'begun' is none"):
            client.on("begun", print)


async def test_a_client_that_is_not_started_hears_nothing() -> None:
    client, _ = deployment()
    with pytest.raises(Unavailable, match="not started"):
        await anext(client.events())
    async with client:
        pass
    with pytest.raises(Unavailable, match="not started"):
        async with client.events():
            pass


async def test_one_listener_serves_all_and_goes_with_the_last() -> None:
    client, store = deployment()
    async with client:
        first, second = client.events(), client.events()
        async with first:
            async with second:
                remove = client.on("started", lambda _: None)
                assert store.begun == 1
                assert len(store._signals.listeners) == 1
            assert store.listened
        assert store.listened
        remove()
        remove()
        await until(lambda: not store.listened)
        async with client.events() as again:
            store.tell([event(7)])
            assert await taken(again, 1) == [event(7)]
        assert store.begun == 2
        assert client.state()["events"] == {
            "streams": 0,
            "functions": 0,
            "listening": False,
            "loops": {},
        }


async def test_a_subscriber_that_does_not_fetch_gets_a_resync_and_hurts_nobody() -> None:
    client, store = deployment()
    async with client, client.events() as slow, client.events() as quick:
        for number in range(BUFFER + 10):
            store.tell([event(number)])
            assert await taken(quick, 1) == [event(number)]
        rest = await taken(slow, 10)
        assert rest[0] == Resync()
        assert rest[1:] == [event(number) for number in range(BUFFER + 1, BUFFER + 10)]


async def test_a_gap_in_the_storage_becomes_one_resync() -> None:
    client, store = deployment()
    async with client, client.events() as stream:
        store.tell([event(number) for number in range(30_000)])
        store.tell([event(1)])
        assert await taken(stream, 2) == [Resync(), event(1)]


async def test_a_listener_that_fails_is_started_again_and_says_so() -> None:
    client, store = deployment()
    missed: list[object] = []
    async with client, client.events() as stream:
        client.on("resync", missed.append)
        store.tell([event(1)])
        assert await taken(stream, 1) == [event(1)]
        assert missed == []
        await store.lose_listeners()
        assert not client.state()["events"]["listening"]
        # Whoever comes now hears everything from here on, so it has missed nothing.
        async with client.events() as other:
            store.tell([event(2)])
            assert await taken(stream, 2) == [Resync(), event(2)]
            assert await taken(other, 1) == [event(2)]
        assert missed == [Resync()]


async def test_listening_that_ends_without_an_error_is_started_again() -> None:
    client, store = deployment()
    async with client, client.events() as stream:
        for listener in list(store._signals.listeners):
            await listener.aclose()
        assert await taken(stream, 1) == [Resync()]
        assert store.begun > 1


async def test_entering_has_a_deadline() -> None:
    client, store = deployment(client={"deadline": 0.05})
    async with client:
        store.mute = True
        with pytest.raises(Unavailable, match=r"no events from the storage within 0\.05 s"):
            async with client.events():
                pass
        store.broken = True
        with pytest.raises(Unavailable, match="no events from the storage"):
            await anext(client.events())
        assert client.state()["events"]["streams"] == 0
        assert client.state()["events"]["loops"] == {}


async def test_stopping_the_client_ends_every_stream() -> None:
    client, store = deployment()
    await client.start()
    stream = client.events()
    await stream.__aenter__()
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    store.mute = True
    remove = client.on("started", print)
    await client.stop()
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert [one async for one in stream] == []
    assert not store.listened
    remove()
    await stream.aclose()


async def test_a_cancelled_wait_loses_nothing() -> None:
    client, store = deployment()
    async with client, client.events() as stream:
        heard = []
        for number in range(20):
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            store.tell([event(number)])
            for _ in range(number // 2):
                await asyncio.sleep(0)
            waiting.cancel()
            heard += [
                one
                for one in await asyncio.gather(waiting, return_exceptions=True)
                if not isinstance(one, BaseException)
            ]
        heard += await taken(stream, 20 - len(heard))
        assert heard == [event(number) for number in range(20)]


async def test_a_cancelled_entering_leaves_nothing() -> None:
    client, store = deployment()
    async with client:
        store.mute = True
        entering = asyncio.ensure_future(client.events().__aenter__())
        await until(lambda: store.begun)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert client.state()["events"]["streams"] == 0


async def test_functions_are_called_for_their_kind_until_they_are_removed() -> None:
    client, store = deployment()
    seen: list[JobEvent] = []
    # Before the start, too.
    remove = client.on("started", seen.append)
    async with client, client.events() as stream:
        client.on(EventKind.FAILED, seen.append)
        store.tell([event(1), event(2, EventKind.SKIPPED), event(3, EventKind.FAILED)])
        await taken(stream, 3)
        remove()
        store.tell([event(4), event(5, EventKind.FAILED)])
        await taken(stream, 2)
    assert [one.attempt for one in seen] == [1, 3, 5]
    async with client, client.events() as stream:
        store.tell([event(6, EventKind.FAILED)])
        await taken(stream, 1)
    assert seen[-1].attempt == 6


async def test_a_function_that_raises_is_logged_and_hurts_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client, store = deployment()
    seen: list[JobEvent] = []

    def broken(_: JobEvent) -> None:
        raise RuntimeError("boom")

    async with client, client.events() as stream:
        client.on("started", broken)
        client.on("started", seen.append)
        with caplog.at_level(logging.ERROR):
            store.tell([event(1), event(2)])
            assert await taken(stream, 2) == [event(1), event(2)]
    assert seen == [event(1), event(2)]
    ours = [record for record in caplog.records if record.name == "plugq.client.events"]
    assert [record.getMessage() for record in ours] == [
        "a function that listens to events failed"
    ] * 2


async def test_a_function_may_remove_itself_and_others() -> None:
    client, store = deployment()
    seen: list[int] = []
    removers: list[Any] = []

    def once(one: JobEvent) -> None:
        seen.append(one.attempt)
        for remove in removers:
            remove()

    async with client:
        removers += [client.on("started", once), client.on("started", lambda _: None)]
        await until(lambda: client.state()["events"]["listening"])
        store.tell([event(1), event(2)])
        await until(lambda: seen)
        await until(lambda: not store.listened)
    assert seen == [1]


class Called:
    async def __call__(self, _: object) -> None:
        pass


async def _coroutine(_: object) -> None:
    pass


@pytest.mark.parametrize("function", [_coroutine, Called()])
async def test_a_coroutine_function_is_refused(function: Any) -> None:
    client, _ = deployment()
    async with client:
        with pytest.raises(plugq.InvalidJob, match=r"on\('started', …\) takes a plain function"):
            client.on("started", function)
        with pytest.raises(plugq.InvalidJob, match="takes a function, not 3"):
            client.on("started", 3)  # type: ignore[arg-type]


def test_the_stream_takes_any_sequence_of_kinds() -> None:
    client, _ = deployment()
    kinds: Sequence[EventKind] = tuple(EventKind)
    assert client.events(kinds)._choice.kinds == frozenset(EventKind)
