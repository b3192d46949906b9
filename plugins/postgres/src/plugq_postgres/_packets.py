"""What processes say to each other by NOTIFY: notices to one peer, and events to who listens.

A payload is text of less than 8,000 bytes: packed, then base64. A longer packet is sent in parts,
each but the last marked as such; the server delivers what one transaction sends in order and
without a break. Each part carries a number, for the server drops a payload that one transaction
sends twice.
"""

from __future__ import annotations

import itertools
from base64 import b64decode, b64encode
from binascii import Error as DamagedBase64
from typing import TYPE_CHECKING

import msgspec

from plugq.events import JobEvent
from plugq.protocols.storage import CancelAsked, Finished, Notice, Resync, Wake

if TYPE_CHECKING:
    from collections.abc import Sequence

_VERSION = 1
#: In the place of a peer, which always has a name: all of the process.
EVERYBODY = ""
#: The longest packet before base64, and how many of one peer one flush sends.
_LONGEST, _MOST = 16_000, 16
#: The longest part of a packet after base64, which also has a mark and a number.
_PART = 7_900
#: Characters of a message that is cut since its event would not fit into a packet.
_CUT = 500

_Notice = Wake | Finished | CancelAsked | Resync


class _Letter(msgspec.Struct, array_like=True, frozen=True):
    version: int
    peer: str
    notices: list[_Notice]


class _Told(msgspec.Struct, array_like=True, frozen=True):
    """Events, or none of them: then some were lost."""

    version: int
    events: list[JobEvent]


class _Telling(msgspec.Struct, array_like=True, frozen=True):
    version: int
    events: list[msgspec.Raw]


_encode = msgspec.msgpack.Encoder().encode
_decode_letter = msgspec.msgpack.Decoder(_Letter).decode
_decode_told = msgspec.msgpack.Decoder(_Told).decode
_numbers = itertools.count()


def letters(peer: str, notices: Sequence[Notice]) -> list[str]:
    """Return the payloads that carry notices, or one that says resync if they are too many."""
    whole = _letter(peer, list(notices))
    if len(whole) <= _LONGEST:
        return _sent(whole)
    parts = -(-len(whole) // (_LONGEST // 2))
    found = [
        _letter(peer, [piece]) for notice in notices for piece in _pieces(notice, max(2, parts))
    ]
    if parts > _MOST or any(len(one) > _LONGEST for one in found):
        found = [_letter(peer, [Resync()])]
    return [part for one in found for part in _sent(one)]


def wake() -> list[bytes]:
    """Return what stands before and behind the name of a peer in the letter that wakes it.

    The server puts it together, with a name of the longest form, where it chooses the peer itself.
    """
    whole = _letter("", [Wake()])
    return [whole[:2], whole[3:]]


def _letter(peer: str, notices: list[_Notice]) -> bytes:
    return _encode(_Letter(_VERSION, peer, notices))


def _pieces(notice: _Notice, parts: int) -> list[_Notice]:
    if not isinstance(notice, Finished | CancelAsked):
        return [notice]
    step = max(1, -(-len(notice.refs) // parts))
    kind = type(notice)
    return [kind(notice.refs[start : start + step]) for start in range(0, len(notice.refs), step)]


def read_letter(payload: str) -> tuple[str, Sequence[Notice]] | None:
    """Return who is meant and what is said; ``None`` for what is no letter of this version."""
    try:
        letter = _decode_letter(b64decode(payload, validate=True))
    except (msgspec.DecodeError, DamagedBase64, ValueError):
        return None
    return (letter.peer, letter.notices) if letter.version == _VERSION else None


def told(events: Sequence[JobEvent]) -> list[str]:
    """Return the payloads that carry events; a resync stands for one that can not travel."""
    found: list[str] = []
    fitting: list[msgspec.Raw] = []
    size = 0
    for event in events:
        data = _event(event)
        if fitting and (data is None or size + len(data) > _LONGEST - 64):
            found += _telling(fitting)
            fitting, size = [], 0
        if data is None:
            found += _telling([])
        else:
            fitting.append(msgspec.Raw(data))
            size += len(data)
    if fitting:
        found += _telling(fitting)
    return found


def resync() -> list[str]:
    """Return what says that events were lost."""
    return _telling([])


def _telling(events: list[msgspec.Raw]) -> list[str]:
    return _sent(_encode(_Telling(_VERSION, events)))


def _event(event: JobEvent) -> bytes | None:
    """Return an event as bytes, shortened where it is too long, ``None`` where that is no use."""
    try:
        data = _encode(event)
        if len(data) > _LONGEST - 64:
            progress = event.progress
            if progress is not None:
                progress = msgspec.structs.replace(
                    progress, message=progress.message[:_CUT], details=None
                )
            message = event.message[:_CUT]
            data = _encode(msgspec.structs.replace(event, message=message, progress=progress))
    except (TypeError, ValueError, OverflowError):
        return None
    return data if len(data) <= _LONGEST - 64 else None


def read_told(payload: str) -> Sequence[JobEvent]:
    """Return events; none where some were lost, or where another version tells them."""
    try:
        packet = _decode_told(b64decode(payload, validate=True))
    except (msgspec.DecodeError, DamagedBase64, ValueError):
        return ()
    return packet.events if packet.version == _VERSION else ()


class Parts:
    """Puts the parts of packets together that arrive on one channel."""

    def __init__(self) -> None:
        self._parts: list[str] = []

    def take(self, payload: str) -> str | None:
        """Return a packet that is whole with this part; ``None`` if there is more to come."""
        mark, _, part = payload.partition(":")
        self._parts.append(part)
        if mark.startswith(_MORE):
            return None
        whole = "".join(self._parts)
        self._parts.clear()
        return whole

    def clear(self) -> None:
        """Drop what has begun, since the rest was lost."""
        self._parts.clear()


_MORE, _LAST = "+", "."


def _sent(data: bytes) -> list[str]:
    whole = b64encode(data).decode("ascii")
    parts = [whole[start : start + _PART] for start in range(0, len(whole), _PART)]
    return [
        f"{_LAST if place == len(parts) else _MORE}{next(_numbers)}:{part}"
        for place, part in enumerate(parts, 1)
    ]
