"""Events between processes: how they are packed into datagrams, and who listens for them.

Linux keeps no more than a handful of datagrams for a unix socket, whatever their size, so each
carries as many events as fit.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

import msgspec

from plugq.events import JobEvent
from plugq.protocols.storage import BACKLOG, Happened, Heard, Resync
from plugq_sqlite._signals import SUPPORTED, Receiver

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

_VERSION = 1
#: The longest datagram.
_LONGEST = 16_000
#: Characters of a message that is cut since its event would not fit into a datagram.
_CUT = 500
#: Seconds between two resyncs where no sockets are to be had.
POLL = 5.0


class _Packet(msgspec.Struct, array_like=True, frozen=True):
    """Events, or none of them: then some were lost."""

    version: int
    events: list[JobEvent]


class _Outgoing(msgspec.Struct, array_like=True, frozen=True):
    version: int
    events: list[msgspec.Raw]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packet).decode

#: The datagram that says that events were lost.
RESYNC: bytes = _encode(_Packet(_VERSION, []))


def datagrams(events: Sequence[JobEvent]) -> list[bytes]:
    """Return the datagrams that carry the events; a resync stands for one that can not travel."""
    found: list[bytes] = []
    fitting: list[msgspec.Raw] = []
    size = 0
    for event in events:
        data = _encoded(event)
        if fitting and (data is None or size + len(data) > _LONGEST):
            found.append(_encode(_Outgoing(_VERSION, fitting)))
            fitting, size = [], 0
        if data is None:
            found.append(RESYNC)
        else:
            fitting.append(msgspec.Raw(data))
            size += len(data)
    if fitting:
        found.append(_encode(_Outgoing(_VERSION, fitting)))
    return found


def _encoded(event: JobEvent) -> bytes | None:
    """Return an event as bytes, shortened where it is too long, ``None`` where that is no use."""
    try:
        data = _encode(event)
        if len(data) > _LONGEST:
            progress = event.progress
            if progress is not None:
                progress = msgspec.structs.replace(
                    progress, message=progress.message[:_CUT], details=None
                )
            message = event.message[:_CUT]
            data = _encode(msgspec.structs.replace(event, message=message, progress=progress))
    except (TypeError, ValueError, OverflowError):
        return None
    return data if len(data) <= _LONGEST else None


class Listener(Receiver[Heard]):
    """What happens in the namespace, told by the processes that did it.

    Where the platform has no unix sockets nothing is told; every ``POLL`` seconds a resync says to
    look again.
    """

    def __init__(
        self,
        enter: Callable[[Self], Awaitable[None]],
        leave: Callable[[Self], Awaitable[None]],
    ) -> None:
        super().__init__(enter, leave)
        self._events: list[JobEvent] = []

    async def _wait(self) -> None:
        if SUPPORTED:
            await self._arrived.wait()
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL):
                await self._arrived.wait()
            return
        self._resync = True

    def _read(self, data: bytes) -> None:
        try:
            packet = _decode(data)
        except msgspec.DecodeError:
            # Perhaps of a later version, which tells what this one does not know.
            packet = _Packet(_VERSION, [])
        if packet.events and packet.version == _VERSION:
            self._events += packet.events
        if packet.version != _VERSION or not packet.events or len(self._events) > BACKLOG:
            self._events.clear()
            self._resync = True
        self._arrived.set()

    def lose(self) -> None:
        """Note that events did not reach this listener."""
        self._read(RESYNC)

    def _next(self) -> Heard | None:
        if self._resync:
            self._resync = False
            return Resync()
        if self._events:
            events, self._events = tuple(self._events), []
            return Happened(events)
        return None
