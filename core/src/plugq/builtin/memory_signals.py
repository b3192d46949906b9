"""Who watches the memory storage, who is idle, and how notices reach other threads' event loops.

All of it runs under the storage's lock.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeVar

from plugq.errors import Unavailable
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
    import threading
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from plugq.builtin.memory_queue import Queue
    from plugq.events import JobEvent
    from plugq.job import JobRef

T = TypeVar("T")


class _Stream(AsyncGenerator[T, None]):
    """What one task fetches while others tell, in other threads, too."""

    def __init__(self, signals: SignalBoard, lock: threading.Lock) -> None:
        self._signals = signals
        self._lock = lock
        self._open = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._resync = False

    async def asend(self, value: None, /) -> T:
        """Return the next notice, once there is one; the first is a resync.

        Raises:
            StopAsyncIteration: it was closed or the storage was stopped.
            Unavailable: the storage is not started.
        """
        del value
        while True:
            with self._lock:
                if self._closed:
                    raise StopAsyncIteration
                if not self._open:
                    self._signals.check_serving()
                    self._open = self._resync = True
                    self._enter()
                notice = self._next()
                if notice is not None:
                    return notice
                waiter = self._waiter = asyncio.get_running_loop().create_future()
            await waiter

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> T:
        """End the iteration and raise the error."""
        await self.aclose()
        if isinstance(typ, BaseException):
            raise typ.with_traceback(tb)
        raise (val if isinstance(val, BaseException) else typ()).with_traceback(tb)

    async def aclose(self) -> None:
        """End the iteration; what was not fetched is dropped."""
        with self._lock:
            self._leave()
            self.end()

    def end(self) -> None:
        """End the iteration, with the lock held."""
        self._closed = True
        self._rouse()

    @abstractmethod
    def _enter(self) -> None: ...

    @abstractmethod
    def _leave(self) -> None: ...

    @abstractmethod
    def _next(self) -> T | None: ...

    def _rouse(self) -> None:
        # One callback a wait, however many notices arrive before it runs.
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.cancelled():
            return
        loop = waiter.get_loop()
        try:
            loop.call_soon_threadsafe(_finish, waiter)
        except RuntimeError:
            # The loop was closed with the stream open: nobody can be waiting any more.
            self._closed = True
            self._leave()


class Watch(_Stream[Notice]):
    """The notices to one peer, merged while nobody fetches them; made by ``watch``.

    Closing it, or stopping the storage, ends the iteration. A cancelled ``__anext__`` loses
    nothing.
    """

    def __init__(self, peer: str, signals: SignalBoard, lock: threading.Lock) -> None:
        super().__init__(signals, lock)
        self._peer = peer
        self._wake = False
        self._finished: list[JobRef] = []
        self._cancels: list[JobRef] = []

    def tell_wake(self) -> None:
        """Say that there may be something to claim."""
        self._wake = True
        self._rouse()

    def tell_finished(self, refs: list[JobRef]) -> None:
        """Say which jobs of this peer have ended."""
        self._finished += refs
        self._bound()
        self._rouse()

    def tell_cancel(self, refs: list[JobRef]) -> None:
        """Say which running jobs shall stop."""
        self._cancels += refs
        self._bound()
        self._rouse()

    def _enter(self) -> None:
        self._signals.add(self._peer, self)

    def _leave(self) -> None:
        self._signals.discard(self._peer, self)

    def _bound(self) -> None:
        if len(self._finished) + len(self._cancels) > BACKLOG:
            self._finished.clear()
            self._cancels.clear()
            self._resync = True

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


class Listener(_Stream[Heard]):
    """What happens, batched while nobody fetches it; made by ``listen``."""

    def __init__(self, signals: SignalBoard, lock: threading.Lock) -> None:
        super().__init__(signals, lock)
        self._events: list[JobEvent] = []

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Say what has happened."""
        self._events += events
        if len(self._events) > BACKLOG:
            self._events.clear()
            self._resync = True
        self._rouse()

    def _enter(self) -> None:
        self._signals.listeners[self] = None

    def _leave(self) -> None:
        self._signals.listeners.pop(self, None)

    def _next(self) -> Heard | None:
        if self._resync:
            self._resync = False
            return Resync()
        if self._events:
            events, self._events = tuple(self._events), []
            return Happened(events)
        return None


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class SignalBoard:
    """The watches by peer, by queue the idle peers, longest idle first, and who listens."""

    def __init__(self) -> None:
        self.users = 0
        #: Those who listen to events, in the order in which they came.
        self.listeners: dict[Listener, None] = {}
        self._watches: dict[str, list[Watch]] = {}
        self._idle: dict[str, tuple[Queue, ...]] = {}
        self._idle_of: dict[Queue, dict[str, None]] = {}
        self._finished: dict[str, list[JobRef]] = {}
        self._cancels: dict[str, list[JobRef]] = {}

    def check_serving(self) -> None:
        """Refuse to work for nobody.

        Raises:
            Unavailable: the storage is not started.
        """
        if not self.users:
            message = "the memory storage is not started; call start() or use it through connect()"
            raise Unavailable(message)

    def add(self, peer: str, watch: Watch) -> None:
        """Make a watch known."""
        self._watches.setdefault(peer, []).append(watch)

    def discard(self, peer: str, watch: Watch) -> None:
        """Forget a watch, and its peer with the last one."""
        watches = self._watches.get(peer, [])
        if watch in watches:
            watches.remove(watch)
        if not watches:
            self._watches.pop(peer, None)
            self._busy(peer)

    def end(self) -> None:
        """End every watch and whatever listens."""
        for listener in tuple(self.listeners):
            listener.end()
        self.listeners.clear()
        for peer, watches in list(self._watches.items()):
            for watch in list(watches):
                self.discard(peer, watch)
                watch.end()

    def idle(self, peer: str, queues: Iterable[Queue]) -> None:
        """Register a peer as idle; one that nobody watches could not be woken."""
        if not peer or peer not in self._watches:
            return
        self._idle[peer] = tuple(dict.fromkeys((*self._idle.get(peer, ()), *queues)))
        for queue in self._idle[peer]:
            peers = self._idle_of.get(queue)
            if peers is None:
                peers = self._idle_of[queue] = {}
                queue.fresh = 0
            peers[peer] = None

    def finished(self, origin: str, ref: JobRef) -> None:
        """Note that a job has ended, for the peer that submitted it."""
        if origin in self._watches:
            self._finished.setdefault(origin, []).append(ref)

    def cancel_asked(self, peer: str, ref: JobRef) -> None:
        """Note that a running job shall stop, for the peer that runs it."""
        if peer in self._watches:
            self._cancels.setdefault(peer, []).append(ref)

    def flush(self, *, caller: str = "", everything: bool = False) -> None:
        """Send what was noted and wake idle peers, except the caller, for what is claimable.

        At most one peer is woken for each job that has become claimable, or, if ``everything``
        is set, for each job that is claimable.
        """
        if self._finished:
            noted, self._finished = self._finished, {}
            for peer, refs in noted.items():
                for watch in tuple(self._watches.get(peer, ())):
                    watch.tell_finished(refs)
        if self._cancels:
            noted, self._cancels = self._cancels, {}
            for peer, refs in noted.items():
                for watch in tuple(self._watches.get(peer, ())):
                    watch.tell_cancel(refs)
        if self._idle_of:
            for queue in tuple(self._idle_of):
                if queue.fresh or everything:
                    self._wake(queue, queue.room if everything else queue.fresh, caller)

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens."""
        for listener in tuple(self.listeners):
            listener.tell(events)

    def _wake(self, queue: Queue, most: int, caller: str) -> None:
        most = min(most, queue.room)
        queue.fresh = 0
        if most <= 0:
            return
        for peer in tuple(self._idle_of.get(queue, ())):
            if peer == caller:
                continue
            self._busy(peer)
            for watch in tuple(self._watches.get(peer, ())):
                watch.tell_wake()
            most -= 1
            if not most:
                return

    def _busy(self, peer: str) -> None:
        for queue in self._idle.pop(peer, ()):
            peers = self._idle_of.get(queue, {})
            peers.pop(peer, None)
            if not peers:
                self._idle_of.pop(queue, None)


__all__ = ["BACKLOG", "Listener", "SignalBoard", "Watch"]
