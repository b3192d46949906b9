"""What a process hears: the notices to a peer, and the events of the namespace."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Self, TypeVar

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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType

    from plugq.events import JobEvent
    from plugq.job import JobRef

T = TypeVar("T")


class Receiver(AsyncGenerator[T, None]):
    """What arrives for one task that fetches it.

    ``enter`` makes the receiver known to the other processes, ``leave`` takes that back. Closing
    it, or stopping the storage, ends the iteration. A cancelled ``__anext__`` loses nothing.
    """

    def __init__(
        self,
        enter: Callable[[Any], Awaitable[None]],
        leave: Callable[[Any], Awaitable[None]],
    ) -> None:
        self._enter = enter
        self._leave = leave
        self._arrived = asyncio.Event()
        self._entered = self._closed = False
        self._resync = False

    async def asend(self, value: None, /) -> T:
        """Return the next notice, once there is one; the first is a resync.

        Raises:
            StopAsyncIteration: it was closed or the storage was stopped.
            Unavailable: the storage is not started or the server can not be reached.
        """
        del value
        if not self._entered and not self._closed:
            await self._enter(self)
            self._entered = True
            self._resync = True
        while not self._closed:
            notice = self._next()
            if notice is not None:
                return notice
            self._arrived.clear()
            await self._arrived.wait()
        raise StopAsyncIteration

    @abstractmethod
    def _next(self) -> T | None: ...

    @abstractmethod
    def lose(self) -> None:
        """Let a resync stand for everything that was not fetched, and for what was not heard."""

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
        was_open = not self._closed
        self.shut()
        if was_open:
            await self._leave(self)

    def shut(self) -> None:
        """End the iteration."""
        self._closed = True
        self._arrived.set()


class Watch(Receiver[Notice]):
    """The notices to one peer, merged while nobody fetches them."""

    def __init__(
        self,
        peer: str,
        enter: Callable[[Self], Awaitable[None]],
        leave: Callable[[Self], Awaitable[None]],
    ) -> None:
        super().__init__(enter, leave)
        self.peer = peer
        self._wake = False
        self._finished: list[JobRef] = []
        self._cancels: list[JobRef] = []

    def take(self, notices: Sequence[Notice]) -> None:
        """Keep notices until they are fetched."""
        for notice in notices:
            if isinstance(notice, Wake):
                self._wake = True
            elif isinstance(notice, Finished):
                self._finished += notice.refs
            elif isinstance(notice, CancelAsked):
                self._cancels += notice.refs
            else:
                self._resync = True
        if len(self._finished) + len(self._cancels) > BACKLOG:
            self._finished.clear()
            self._cancels.clear()
            self._resync = True
        self._arrived.set()

    def lose(self) -> None:
        """Let a resync stand for what was not heard."""
        self._resync = True
        self._arrived.set()

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

    def __init__(
        self,
        enter: Callable[[Self], Awaitable[None]],
        leave: Callable[[Self], Awaitable[None]],
    ) -> None:
        super().__init__(enter, leave)
        self._events: list[JobEvent] = []

    def take(self, events: Sequence[JobEvent]) -> None:
        """Keep events until they are fetched; none of them means that some were lost."""
        self._events += events
        if not events or len(self._events) > BACKLOG:
            self.lose()
        self._arrived.set()

    def lose(self) -> None:
        """Let a resync stand for everything up to now."""
        self._events.clear()
        self._resync = True
        self._arrived.set()

    def _next(self) -> Heard | None:
        if self._resync:
            self._resync = False
            return Resync()
        if self._events:
            events, self._events = tuple(self._events), []
            return Happened(events)
        return None
