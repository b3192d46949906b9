"""Events as users get them: streams of their own choice, and functions called for a kind.

One listener of the storage serves a whole client. It starts with the first subscriber, stops with
the last, and is started again when it fails; a ``Resync`` then says that events are missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import weakref
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugq.errors import InvalidJob, Unavailable
from plugq.events import EventKind, JobEvent
from plugq.lifecycle import Supervisor
from plugq.protocols.storage import Happened, Resync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from plugq.clock import Clock
    from plugq.protocols.broker import Broker

logger: logging.Logger = logging.getLogger(__name__)

#: Events that a subscriber may leave unfetched; beyond them stands a ``Resync``.
BUFFER = 1000
#: The name under which a function is called when events may be missing.
RESYNC = "resync"

_STOPPED = "the client is not started; use `async with client:` or start()"

#: What :meth:`Client.on` takes as a kind.
Kind = EventKind | str
#: What a function is called with.
Called = JobEvent | Resync


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which events somebody wants; ``None`` stands for all."""

    kinds: frozenset[EventKind] | None = None
    queue: str | None = None
    task: str | None = None
    batch: str | None = None
    id: str | None = None

    def takes(self, event: JobEvent) -> bool:
        """Return whether an event is one of these."""
        return (
            (self.kinds is None or event.kind in self.kinds)
            and (self.queue is None or self.queue == event.queue)
            and (self.task is None or self.task == event.task)
            and (self.batch is None or self.batch == event.batch)
            and (self.id is None or self.id == event.id)
        )


class EventStream:
    """What happens in a deployment, for one subscriber; made by :meth:`Client.events`.

    Enter it with ``async with``: then everything is heard that happens from there on. Iterating
    over it enters it, too. It gives events, and a ``Resync`` where some may be missing, since 1,000
    of them were not fetched or there was a gap: what was known of the jobs has to be read again.
    Leaving the block, :meth:`aclose` or stopping the client ends it; a cancelled ``anext`` loses
    nothing. Only leaving the block and :meth:`aclose` end it at once: one whose ``async for`` was
    left without them ends when nobody refers to it any more.
    """

    def __init__(self, hub: EventHub, choice: Choice) -> None:
        self._hub = hub
        self._choice = choice
        self._events: deque[JobEvent] = deque()
        self._resync = False
        self._closed = False
        self._arrived = asyncio.Event()
        #: Set once everything is heard; a gap before that is none.
        self.stands: asyncio.Event = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Return once everything that happens from now on is heard.

        Raises:
            Unavailable: the client is not started, or the storage can not be reached.
        """
        await self._hub.enter(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Listen no more."""
        await self.aclose()

    def __aiter__(self) -> Self:
        """Return itself."""
        return self

    async def __anext__(self) -> JobEvent | Resync:
        """Return the next event, once there is one.

        Raises:
            StopAsyncIteration: it was closed, or the client was stopped.
            Unavailable: the client is not started, or the storage can not be reached.
        """
        if not self._closed:
            await self._hub.enter(self)
        while not self._closed:
            if self._resync:
                self._resync = False
                return Resync()
            if self._events:
                return self._events.popleft()
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Listen no more; what was not fetched is dropped."""
        self.end()
        await self._hub.leave(self)

    @property
    def closed(self) -> bool:
        """Whether it has ended."""
        return self._closed

    def end(self) -> None:
        """End the iteration."""
        self._closed = True
        self._events.clear()
        self._arrived.set()
        self.stands.set()

    def offer(self, event: JobEvent) -> None:
        """Keep an event if it is wanted."""
        if self.stands.is_set() and self._choice.takes(event):
            if len(self._events) >= BUFFER:
                self.resync()
            else:
                self._events.append(event)
                self._arrived.set()

    def resync(self) -> None:
        """Say that events are missing; what waits is one of them."""
        self._events.clear()
        self._resync = True
        self._arrived.set()


class EventHub:
    """Everybody in one client who listens."""

    def __init__(self, broker: Broker, clock: Clock, *, deadline: float) -> None:
        self._broker = broker
        self._clock = clock
        self._deadline = deadline
        # Weakly: one that was left without being closed hears until nobody has it any more.
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()
        self._functions: dict[str, dict[object, Callable[[Any], object]]] = {}
        self._started = False
        self._loop: asyncio.AbstractEventLoop | None = None
        #: The one that keeps the listener running; another one after each time that nobody listens.
        self._supervisor: Supervisor | None = None
        self._listening = False
        #: Whether that one has ever listened, so that the next resync means a gap.
        self._listened = False
        self._ending: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen for the functions that are there already."""
        self._loop = asyncio.get_running_loop()
        self._started = True
        if self._functions:
            self._listen_if_needed()

    async def stop(self) -> None:
        """End every stream; functions are called again after the next start."""
        self._started = False
        for stream in tuple(self._streams):
            stream.end()
        self._streams.clear()
        self._rest_if_possible()
        await self._ended()

    def stream(self, choice: Choice) -> EventStream:
        """Return a stream that nobody has entered yet."""
        return EventStream(self, choice)

    def on(self, kind: Kind, function: Callable[[Any], object]) -> Callable[[], None]:
        """Call a function for each event of a kind; the function returned ends that."""
        name = RESYNC if kind == RESYNC else str(kind_of(kind))
        if not callable(function):
            raise InvalidJob(f"on({name!r}, …) takes a function, not {function!r}")
        if _is_coroutine_function(function):
            raise InvalidJob(
                f"on({name!r}, …) takes a plain function: a coroutine would have nobody to wait "
                "for it; use `async for event in client.events()`"
            )
        key = object()
        self._functions.setdefault(name, {})[key] = function
        if self._started:
            self._listen_if_needed()

        def remove() -> None:
            functions = self._functions.get(name, {})
            functions.pop(key, None)
            if not functions:
                self._functions.pop(name, None)
            self._rest_if_possible()

        return remove

    async def enter(self, stream: EventStream) -> None:
        """Return once a stream hears everything."""
        if not self._started or asyncio.get_running_loop() is not self._loop:
            raise Unavailable(_STOPPED)
        if stream.closed:
            raise Unavailable("the stream of events was closed; ask for another one")
        if stream.stands.is_set():
            return
        joined = stream not in self._streams
        if joined:
            self._streams.add(stream)
            weakref.finalize(stream, self._dropped).atexit = False
            if self._listening:
                stream.stands.set()
        self._listen_if_needed()
        try:
            async with asyncio.timeout(self._deadline):
                await stream.stands.wait()
        except BaseException as error:
            if joined:
                self._streams.discard(stream)
                self._rest_if_possible()
            if isinstance(error, TimeoutError):
                message = f"no events from the storage within {self._deadline:g} s"
                raise Unavailable(message) from error
            raise

    async def leave(self, stream: EventStream) -> None:
        """Forget a stream; with the last subscriber the listening ends."""
        self._streams.discard(stream)
        self._rest_if_possible()
        await self._ended()

    def state(self) -> dict[str, Any]:
        """Return how many listen, and whether anything is heard."""
        return {
            "streams": len(self._streams),
            "functions": sum(map(len, self._functions.values())),
            "listening": self._listening,
            "loops": {} if self._supervisor is None else self._supervisor.state(),
        }

    def _dropped(self) -> None:
        """Rest with the last stream that nobody has any more; on whichever thread that is seen."""
        if self._started and self._loop is not None:
            # Stopped meanwhile there is nothing to rest.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._rest_if_possible)

    def _listen_if_needed(self) -> None:
        if self._supervisor is None:
            self._listened = False
            supervisor = self._supervisor = Supervisor(self._clock)
            supervisor.run("events", lambda: self._listen(supervisor))

    def _rest_if_possible(self) -> None:
        supervisor = self._supervisor
        wanted = self._started and (self._streams or self._functions)
        if supervisor is not None and not wanted and self._loop is not None:
            self._supervisor = None
            self._listening = False
            ending = self._loop.create_task(supervisor.stop())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _ended(self) -> None:
        if self._ending:
            await asyncio.wait(tuple(self._ending))

    async def _listen(self, supervisor: Supervisor) -> None:
        try:
            async with contextlib.aclosing(self._broker.listen()) as heard:
                async for one in heard:
                    if supervisor is not self._supervisor:
                        return
                    if isinstance(one, Happened):
                        for event in one.events:
                            self._happened(event)
                    else:
                        self._missed()
        finally:
            if supervisor is self._supervisor:
                self._listening = False
        raise Unavailable("the storage does not tell any more what happens")

    def _happened(self, event: JobEvent) -> None:
        for stream in tuple(self._streams):
            stream.offer(event)
        if functions := self._functions.get(event.kind):
            _call(functions, event)

    def _missed(self) -> None:
        """Pass a gap on to those who had heard everything before; the others hear from here on."""
        gap, self._listened = self._listened, True
        self._listening = True
        for stream in tuple(self._streams):
            if stream.stands.is_set():
                stream.resync()
            else:
                stream.stands.set()
        functions = self._functions.get(RESYNC)
        if gap and functions:
            _call(functions, Resync())


def kind_of(name: Kind) -> EventKind:
    """Return the kind of that name.

    Raises:
        InvalidJob: there is none.
    """
    try:
        return EventKind(name)
    except ValueError:
        known = ", ".join(EventKind)
        raise InvalidJob(f"kind: {name!r} is none; use one of {known}") from None


def choice_of(
    kinds: Kind | Iterable[Kind] | None,
    *,
    queue: str | None,
    task: str | None,
    batch: str | None,
    id: str | None,
) -> Choice:
    """Return what a user chose.

    Raises:
        InvalidJob: one of the kinds is none.
    """
    names = [kinds] if isinstance(kinds, str) else kinds
    chosen = None if names is None else frozenset(map(kind_of, names))
    return Choice(kinds=chosen, queue=queue, task=task, batch=batch, id=id)


def _is_coroutine_function(function: Callable[..., object]) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 - an object whose call is a coroutine
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _call(functions: dict[object, Callable[[Any], object]], argument: Called) -> None:
    for function in tuple(functions.values()):
        try:
            function(argument)
        except Exception:
            logger.exception("a function that listens to events failed")


__all__ = ["BUFFER", "RESYNC", "Choice", "EventHub", "EventStream", "Kind", "choice_of", "kind_of"]
