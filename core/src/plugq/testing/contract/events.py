"""What happens, told by the processes that did it: in order, to everybody, never lost silently."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Self

from plugq.errors import PlugqError
from plugq.events import EventKind, JobEvent
from plugq.job import JobState, Progress
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import BACKLOG, Happened, Resync
from plugq.testing.contract.scene import Contract
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from plugq.protocols.storage import Heard
    from plugq.testing.contract.scene import Scene

_push = requires(Capability.PUSH_WAKEUPS)

#: Texts that somebody may have meant harm with, or that some encoding does not take.
HOSTILE = (
    "",
    "\x00",
    "a\x00b",
    "line\nbreak\r\n\u2028",
    "\x1b[2J\x9b31m",
    "'; DROP TABLE listener; --",
    "\U0001f389 ü 日本 \u202e",
    "\uffff\U0010ffff",
    "x" * 1024,
)


def numbered(first: int, count: int, id: str = "a") -> list[JobEvent]:
    """Return events of one job that can be told apart by their attempt."""
    return [
        JobEvent(kind=EventKind.STARTED, at=1.5, queue="q", id=id, task="t", attempt=number)
        for number in range(first, first + count)
    ]


class Hearing:
    """Listens in the background and keeps whatever it hears."""

    def __init__(self, scene: Scene) -> None:
        self.heard: list[Heard] = []
        self._scene = scene
        self._changed = asyncio.Event()
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen())
        await self.until(lambda: bool(self.heard), "the first resync")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        try:
            async with aclosing(self._scene.storage.listen()) as stream:
                async for heard in stream:
                    self.heard.append(heard)
                    self._changed.set()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._failure = error
            self._changed.set()

    @property
    def events(self) -> list[JobEvent]:
        """The events of which it has heard."""
        return [
            event for heard in self.heard if isinstance(heard, Happened) for event in heard.events
        ]

    async def until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait until something has been heard."""
        try:
            async with asyncio.timeout(self._scene.contract.patience):
                while not reached():
                    if self._failure is not None:
                        raise self._failure
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            message = f"it waited in vain for {what}; it heard {len(self.events)} events"
            raise AssertionError(message) from None

    async def hears(self, events: Sequence[JobEvent]) -> None:
        """Wait until exactly these events have been heard, in this order."""
        await self.until(lambda: len(self.events) >= len(events), f"{len(events)} events")
        assert self.events == list(events)


async def refresh(scene: Scene) -> bool:
    """Make a change, and return whether anybody listens."""
    await scene.claim(0)
    return scene.storage.listened


class Events(Contract):
    """Who hears what, and what stands for what is lost."""

    async def test_the_first_thing_heard_is_resync(self) -> None:
        """What happened before may have been missed."""
        async with self.scene() as scene:
            for _ in range(3):
                async with Hearing(scene) as hearing:
                    assert hearing.heard == [Resync()]

    @_push
    async def test_everybody_who_listens_hears_everything(self) -> None:
        """Whoever opened the same store, and the one who tells."""
        async with (
            self.scene() as here,
            here.another() as there,
            Hearing(here) as one,
            Hearing(there) as two,
        ):
            assert await refresh(here)
            assert await refresh(there)
            first, second = numbered(0, 3, "a"), numbered(0, 3, "b")
            here.storage.tell(first)
            for hearing in (one, two):
                await hearing.hears(first)
            there.storage.tell(second)
            for hearing in (one, two):
                await hearing.hears([*first, *second])

    @_push
    async def test_events_of_one_teller_come_in_order(self) -> None:
        """However many there are, and whatever else it does meanwhile."""
        async with self.scene() as here, here.another() as there, Hearing(there) as hearing:
            assert await refresh(here)
            told: list[JobEvent] = []
            for count in (1, 2, 700, 1, 1, 300, 5):
                events = numbered(len(told), count)
                here.storage.tell(events)
                told += events
                await here.submit(str(len(told)))
            await hearing.hears(told)

    @_push
    async def test_an_event_arrives_as_it_was_told(self) -> None:
        """With every fact that it has, and without those that it does not have."""
        told = [
            JobEvent(kind=EventKind.BROKER_STARTED, worker="b"),
            JobEvent(
                kind=EventKind.RETRYING,
                at=1795.25,
                queue="q",
                id="i",
                task="t",
                state=JobState.DELAYED,
                attempt=2,
                max_attempts=5,
                worker="w",
                code="error",
                message="no",
                delay=0.5,
                progress=Progress(current=3, total=7, message="half", details={"a": None, "b": 1}),
                lane="l",
                batch="b",
                schedule="s",
            ),
            *(JobEvent(kind=kind, delay=0.0) for kind in EventKind),
        ]
        async with self.scene() as scene, Hearing(scene) as hearing:
            assert await refresh(scene)
            scene.storage.tell(told)
            await hearing.hears(told)

    @_push
    async def test_any_text_travels(self) -> None:
        """It was accepted as a name or a message somewhere."""
        told = [
            JobEvent(
                kind=EventKind.FAILED,
                queue=text,
                id=text,
                task=text,
                code=text,
                message=text,
                lane=text,
                batch=text,
            )
            for text in HOSTILE
        ]
        told.append(JobEvent(kind=EventKind.FAILED, id="long", message="ü" * 2000))
        async with self.scene() as scene, Hearing(scene) as hearing:
            assert await refresh(scene)
            scene.storage.tell(told)
            await hearing.hears(told)

    @_push
    async def test_an_event_that_can_not_travel_is_told_of_or_stood_for(self) -> None:
        """Too long, or with a text that is no Unicode: told, shortened, or a resync."""
        async with self.scene() as scene, Hearing(scene) as hearing:
            assert await refresh(scene)
            for text in ("x" * 1_000_000, "\udc80"):
                hearing.heard.clear()
                scene.storage.tell([JobEvent(kind=EventKind.FAILED, id=text, message=text)])
                await hearing.until(lambda: bool(hearing.heard), "an event or a resync")
            last = numbered(1, 1)
            hearing.heard.clear()
            scene.storage.tell(last)
            await hearing.hears(last)

    @_push
    async def test_a_flood_that_nobody_fetches_ends_in_a_resync(self) -> None:
        """The buffer is bounded, and there is no gap that is not told."""
        async with self.scene() as here, here.another() as there:
            async with aclosing(there.storage.listen()) as stream:
                assert await anext(stream) == Resync()
                assert await refresh(here)
                flood = 3 * BACKLOG
                for first in range(0, flood, 1000):
                    here.storage.tell(numbered(first, 1000))
                await refresh(here)
                heard: list[Heard] = []
                # What is told once the flood has been heard of comes after the resync.
                async with here.expecting_an_end():
                    while Resync() not in heard:
                        heard.append(await anext(stream))
                here.storage.tell(numbered(flood, 1))
                async with here.expecting_an_end():
                    while not _ends_with(heard, flood):
                        heard.append(await anext(stream))
            _check_gaps(heard)
            kept = [len(one.events) for one in heard if isinstance(one, Happened)]
            assert max(kept) <= BACKLOG

    @_push
    async def test_with_nobody_listening_that_is_known(self) -> None:
        """So that no event is built; and again when somebody comes."""
        async with self.scene() as here, here.another() as there:
            assert not await refresh(here)
            for _ in range(2):
                async with Hearing(there):
                    assert await refresh(here)
                    assert await refresh(there)
                    async with Hearing(here):
                        assert await refresh(here)
                    assert await refresh(here)
                assert not await refresh(here)
                assert not await refresh(there)

    async def test_every_change_looks_for_listeners(self) -> None:
        """It is known in time for the events of that very change."""
        async with self.scene() as here, here.another() as there:
            push = Capability.PUSH_WAKEUPS in here.storage.capabilities
            await here.submit("a", "b", max_attempts=3)
            lease, other = await here.claim(2)
            changes: dict[str, Callable[[], Awaitable[object]]] = {
                "submit": lambda: here.submit("c", delay=60.0),
                "claim": lambda: here.claim(0),
                "settle": lambda: here.end(lease),
                "renew": lambda: here.renew(other),
                "sweep": here.sweep,
                "edit": lambda: here.cancel("c"),
            }
            for name, change in changes.items():
                await here.claim(0)
                assert not here.storage.listened
                async with Hearing(there):
                    await change()
                    assert here.storage.listened or not push, name

    async def test_closing_ends_the_listening(self) -> None:
        """Also for whoever waits meanwhile."""
        async with self.scene() as scene:
            stream = scene.storage.listen()
            assert await anext(stream) == Resync()
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            async with scene.expecting_an_end():
                await stream.aclose()
                assert isinstance(
                    (await asyncio.gather(waiting, return_exceptions=True))[0], StopAsyncIteration
                )
                assert [one async for one in stream] == []
                await stream.aclose()
            assert not await refresh(scene)

    async def test_stopping_the_storage_ends_the_listening(self) -> None:
        """Nobody is left waiting."""
        async with self.scene() as scene:
            stream = scene.storage.listen()
            assert await anext(stream) == Resync()
            async with scene.expecting_an_end():
                await scene.storage.stop()
                try:
                    while True:
                        await anext(stream)
                except (StopAsyncIteration, PlugqError):
                    pass

    @_push
    async def test_a_cancelled_wait_loses_nothing(self) -> None:
        """In whichever moment it is cancelled."""
        async with self.scene() as scene:
            async with aclosing(scene.storage.listen()) as stream:
                assert await anext(stream) == Resync()
                assert await refresh(scene)
                heard: list[Heard] = []
                moments = 20
                for moment in range(moments):
                    waiting = asyncio.ensure_future(anext(stream))
                    await asyncio.sleep(0)
                    scene.storage.tell(numbered(moment, 1))
                    if moment % 2:
                        await refresh(scene)
                    for _ in range(moment // 2):
                        await asyncio.sleep(0)
                    waiting.cancel()
                    heard += [
                        one
                        for one in await asyncio.gather(waiting, return_exceptions=True)
                        if not isinstance(one, BaseException)
                    ]
                async with scene.expecting_an_end():
                    while not _ends_with(heard, moments - 1):
                        heard.append(await anext(stream))
            assert _numbers(heard) == list(range(moments))

    async def test_telling_never_raises(self) -> None:
        """Neither with nobody listening, nor before the start and after the stop."""
        async with self.scene() as scene:
            scene.storage.tell(numbered(0, 10))
            scene.storage.tell([])
            async with scene.another() as other:
                other.storage.tell(numbered(0, 10))
            other.storage.tell(numbered(0, 10))
            await scene.storage.stop()
            scene.storage.tell(numbered(0, 10))


def _numbers(heard: Sequence[Heard]) -> list[int]:
    return [event.attempt for one in heard if isinstance(one, Happened) for event in one.events]


def _ends_with(heard: Sequence[Heard], number: int) -> bool:
    return _numbers(heard)[-1:] == [number]


def _check_gaps(heard: Sequence[Heard]) -> None:
    """Check that between two resyncs no event is missing or twice there."""
    before: int | None = None
    for one in heard:
        if isinstance(one, Happened):
            for event in one.events:
                assert before is None or event.attempt == before + 1, (before, event.attempt)
                before = event.attempt
        else:
            before = None


__all__ = ["Events"]
