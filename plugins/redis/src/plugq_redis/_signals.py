"""What reaches one peer, and what whoever listens to events hears."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from plugq.job import JobRef
from plugq.protocols.storage import (
    BACKLOG,
    CancelAsked,
    Finished,
    Happened,
    Heard,
    Notice,
    Resync,
    Wake,
)
from plugq_redis._events import events_in

if TYPE_CHECKING:
    from types import TracebackType

    from plugq.events import JobEvent

T = TypeVar("T")

#: The channel of events, below the namespace.
EVENTS = "events"

_notice = msgspec.msgpack.Decoder(list[str]).decode


class Subscriptions(Protocol):
    """Where receivers are entered for their channel."""

    async def enter(self, receiver: Receiver[Any]) -> None:
        """Subscribe for a receiver."""
        ...

    async def leave(self, receiver: Receiver[Any]) -> None:
        """Unsubscribe a receiver."""
        ...


class Receiver(AsyncGenerator[T, None]):
    """What arrives on one channel, fetched by one task.

    Closing it, or stopping the storage, ends the iteration. A cancelled ``__anext__`` loses
    nothing.
    """

    def __init__(self, hub: Subscriptions, channel: str) -> None:
        self.channel = channel
        self._hub = hub
        self._arrived = asyncio.Event()
        self._entered = self._closed = False
        self._resync = False

    async def asend(self, value: None, /) -> T:
        """Return the next notice, once there is one; the first is a resync.

        Raises:
            StopAsyncIteration: it was closed or the storage was stopped.
            Unavailable: the storage is not started, or the server is out of reach.
        """
        del value
        if not self._entered and not self._closed:
            self._entered = True
            try:
                await self._hub.enter(self)
            except BaseException:
                self._entered = False
                raise
            self._resync = True
        while not self._closed:
            notice = self._next()
            if notice is not None:
                return notice
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> T:
        """End the iteration and raise the error."""
        del val
        await self.aclose()
        error = typ if isinstance(typ, BaseException) else typ()
        raise error.with_traceback(tb)

    async def aclose(self) -> None:
        """End the iteration; what was not fetched is dropped."""
        entered = self._entered and not self._closed
        self.shut()
        if entered:
            await self._hub.leave(self)

    def shut(self) -> None:
        """End the iteration."""
        self._closed = True
        self._arrived.set()

    def lose(self) -> None:
        """Note that something did not reach this receiver."""
        self._forget()
        self._resync = True
        self._arrived.set()

    def take(self, data: bytes) -> None:
        """Take a message in; one that makes no sense is taken as a loss."""
        try:
            self._read(data)
        except (msgspec.DecodeError, IndexError):
            # Perhaps of a later version, which tells what this one does not know.
            self.lose()
        self._arrived.set()

    @abstractmethod
    def _read(self, data: bytes) -> None: ...

    @abstractmethod
    def _forget(self) -> None: ...

    @abstractmethod
    def _next(self) -> T | None: ...


class Gate(Protocol):
    """Decides on wake-ups where queues do not know of each other."""

    def admit(self, peer: str) -> bool:
        """Return whether a wake-up is news to the peer."""
        ...

    def pass_on(self, queue: str) -> None:
        """Let a queue wake another peer."""
        ...

    async def forget_peer(self, peer: str) -> None:
        """Note that a peer watches no more."""
        ...


class Watch(Receiver[Notice]):
    """The notices to one peer, merged while nobody fetches them."""

    def __init__(self, peer: str, hub: Subscriptions, gate: Gate | None = None) -> None:
        super().__init__(hub, f"peer:{peer}")
        self._peer = peer
        self._gate = gate
        self._wake = False
        self._finished: list[JobRef] = []
        self._cancels: list[JobRef] = []

    def _read(self, data: bytes) -> None:
        kind, *names = _notice(data)
        if kind == "w":
            if self._gate is None or self._gate.admit(self._peer):
                self._wake = True
            else:
                self._gate.pass_on(*names)
            return
        refs = [JobRef(*pair) for pair in zip(names[::2], names[1::2], strict=True)]
        if kind == "f":
            self._finished += refs
        elif kind == "c":
            self._cancels += refs
        else:
            self.lose()
        if len(self._finished) + len(self._cancels) > BACKLOG:
            self.lose()

    async def aclose(self) -> None:
        """End the iteration; what was not fetched is dropped."""
        if self._gate is not None and not self._closed:
            await self._gate.forget_peer(self._peer)
        await super().aclose()

    def _forget(self) -> None:
        self._finished.clear()
        self._cancels.clear()

    def _next(self) -> Notice | None:
        if self._resync:
            self._resync = False
            return Resync()
        if self._wake:
            self._wake = False
            return Wake()
        if self._finished:
            refs, self._finished = tuple(self._finished), []
            return Finished(refs)
        if self._cancels:
            refs, self._cancels = tuple(self._cancels), []
            return CancelAsked(refs)
        return None


class Listener(Receiver[Heard]):
    """What happens in the namespace, told by the processes that did it."""

    def __init__(self, hub: Subscriptions) -> None:
        super().__init__(hub, EVENTS)
        self._events: list[JobEvent] = []

    def _read(self, data: bytes) -> None:
        events = events_in(data)
        self._events += events
        if not events or len(self._events) > BACKLOG:
            self.lose()

    def _forget(self) -> None:
        self._events.clear()

    def _next(self) -> Heard | None:
        if self._resync:
            self._resync = False
            return Resync()
        if self._events:
            events, self._events = tuple(self._events), []
            return Happened(events)
        return None
