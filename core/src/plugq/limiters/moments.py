"""What the limiters share: exact sums of times, and the moments of grants as bytes."""

from __future__ import annotations

import math
import struct

#: The largest number of starts in one window, which keeps a count within 32 bits.
LARGEST = 1_000_000_000
#: The shortest window or gap, in seconds.
SHORTEST = 0.05

#: Before every time.
NEVER = -math.inf
#: What no clock shows; a state with such a time is none of ours.
BEYOND = 1e12

#: A time, and how many grants count as of it.
Moment = tuple[float, int]

_HEAD = struct.Struct("<cd")
_MOMENT = struct.Struct("<dI")


def after(start: float, seconds: float) -> float:
    """Return the first time of which ``time - start >= seconds`` holds.

    The sum may be rounded to either side of it: to one where it would be too soon by a hair.
    """
    time = start + seconds
    while time - start < seconds:
        time = math.nextafter(time, math.inf)
    while (before := math.nextafter(time, NEVER)) - start >= seconds:
        time = before
    return time


def pack(tag: bytes, latest: float, moments: list[Moment]) -> bytes:
    """Return the state of a limiter: its tag, the time of its latest grant, and moments."""
    return _HEAD.pack(tag, latest) + b"".join([_MOMENT.pack(*moment) for moment in moments])


def unpack(tag: bytes, state: bytes | None) -> tuple[float, list[Moment]]:
    """Return the time of the latest grant and the moments; none of a state that is foreign."""
    if not state or not state.startswith(tag) or (len(state) - _HEAD.size) % _MOMENT.size:
        return NEVER, []
    latest = _HEAD.unpack_from(state)[1]
    moments = list(_MOMENT.iter_unpack(state[_HEAD.size :]))
    times = [-BEYOND, *(at for at, _ in moments), latest, BEYOND]
    # What is no number survives sorting in its place; the sum tells.
    sane = math.isfinite(sum(times)) and times == sorted(times)
    return (latest, moments) if sane else (NEVER, [])


def add(moments: list[Moment], at: float, count: int) -> None:
    """Put grants behind all others, or with those of the same time."""
    if moments and moments[-1][0] == at:
        count += moments.pop()[1]
    moments.append((at, count))


__all__ = [
    "BEYOND",
    "LARGEST",
    "NEVER",
    "SHORTEST",
    "Moment",
    "add",
    "after",
    "pack",
    "unpack",
]
