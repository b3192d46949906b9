"""Events between processes: how they are packed into messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from plugq.events import JobEvent

if TYPE_CHECKING:
    from collections.abc import Sequence

_VERSION = 1
#: As many bytes of events go into one message.
_LONGEST = 64_000
#: Characters of a message that is cut since its event would not fit.
_CUT = 500


class _Packet(msgspec.Struct, array_like=True, frozen=True):
    """Events, or none of them: then some were lost."""

    version: int
    events: list[JobEvent]


class _Outgoing(msgspec.Struct, array_like=True, frozen=True):
    version: int
    events: list[msgspec.Raw]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packet).decode

#: The message that says that events were lost.
RESYNC: bytes = _encode(_Packet(_VERSION, []))


def packets(events: Sequence[JobEvent]) -> list[bytes]:
    """Return the messages that carry the events; a resync stands for one that can not travel."""
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


def events_in(data: bytes) -> list[JobEvent]:
    """Return the events of a message, none if it says that some were lost.

    Raises:
        DecodeError: it is no such message.
    """
    packet = _decode(data)
    # A later version may tell what this one does not know.
    return packet.events if packet.version == _VERSION else []
