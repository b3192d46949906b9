"""Durations as users write them: seconds, ``timedelta`` or text such as ``"1h30m"``."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta

Duration = float | timedelta | str

_UNITS = {
    "ms": 0.001,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "w": 604800.0,
}
#: A hundred years in seconds; what is longer is a slip, such as milliseconds since 1970.
LONGEST = 100 * 366 * 86400.0
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def seconds(value: Duration, *, name: str = "duration") -> float:
    """Return a duration in seconds.

    Raises:
        ValueError: it is negative, not finite, or text that is no duration.
        TypeError: it is neither a number, a ``timedelta`` nor text.
    """
    if isinstance(value, bool):
        message = f"{name}: expected a duration such as '30s', got {value!r}"
        raise TypeError(message)
    if isinstance(value, int | float):
        result = float(value)
    elif isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        result = _parse(value, name)
    else:
        message = f"{name}: expected seconds, a timedelta or text such as '30s', got {value!r}"
        raise TypeError(message)
    if not math.isfinite(result) or result < 0:
        message = f"{name}: a duration is finite and not negative, got {value!r}"
        raise ValueError(message)
    if result > LONGEST:
        message = f"{name}: a duration is at most 100 years, got {value!r}"
        raise ValueError(message)
    return result


def _parse(text: str, name: str) -> float:
    compact = text.strip().replace(" ", "")
    total, end = 0.0, 0
    for part in _PART.finditer(compact):
        if part.start() != end:
            break
        total += float(part[1]) * _UNITS[part[2]]
        end = part.end()
    if not compact or end != len(compact):
        message = f"{name}: {text!r} is no duration; write it like '30s', '5m' or '1h30m'"
        raise ValueError(message)
    return total


def timestamp(value: datetime, *, name: str = "time") -> float:
    """Return an aware ``datetime`` as seconds since 1970-01-01 UTC.

    Raises:
        ValueError: the ``datetime`` is naive.
        TypeError: it is no ``datetime``.
    """
    if not isinstance(value, datetime):
        message = f"{name}: expected a datetime with a time zone, got {value!r}"
        raise TypeError(message)
    if value.tzinfo is None or value.utcoffset() is None:
        message = f"{name}: {value!r} has no time zone; use datetime.now(UTC) or an aware datetime"
        raise ValueError(message)
    return value.timestamp()


def moment(stamp: float) -> datetime:
    """Return seconds since 1970-01-01 UTC as an aware ``datetime``, the last one if it is later."""
    try:
        return datetime.fromtimestamp(stamp, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC)


__all__ = ["Duration", "moment", "seconds", "timestamp"]
