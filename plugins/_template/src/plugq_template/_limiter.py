"""So many starts in each window of the calendar: each full minute, each hour, each day in UTC."""

from __future__ import annotations

import math
import struct
from typing import Annotated, ClassVar, NamedTuple, Self

import msgspec

from plugq.duration import seconds
from plugq.errors import ConfigError
from plugq.protocols import Capability, PluginContext, Step

#: A tag, the time of the latest grant, how many starts may fall into its window, and how many of
#: those may come after it.
_STATE = struct.Struct("<cdII")
_TAG = b"C"
#: What no clock shows; a state with such a time is none of ours.
_BEYOND = 1e12
#: The shortest window, in seconds.
_SHORTEST = 0.05
#: The largest limit; a count fits into 32 bits.
_LARGEST = 1_000_000_000


class TemplateLimiterOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``limit`` starts in each window of ``per``, in seconds or as text such as "1h"."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=_LARGEST)]
    per: float | str


class _Used(NamedTuple):
    """The latest grant, the starts that may fall into its window, and those that may be later."""

    at: float
    here: int
    late: int


_NOTHING = _Used(-math.inf, 0, 0)


class TemplateLimiter:
    """Counts the starts of one window, and begins anew with the next one.

    Two windows that touch may use all of their limits at their border. Widened, a start that may
    come after the end of its window counts in the next one, too.
    """

    api_version: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = TemplateLimiterOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(
        self, options: TemplateLimiterOptions, context: PluginContext, *, late: float = 0.0
    ) -> None:
        self._options = options
        self._context = context
        self._limit = options.limit
        #: By how many seconds a start may be later than its grant.
        self._late = late
        per = _per(options)
        # Windows of several `per` where a start may be later than one of them is long.
        self._per = per * (math.floor(late / per) + 1)

    @property
    def window(self) -> float:
        """A window, and what a start may be late."""
        return self._per + self._late

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        """Grant what the window of ``now`` has left."""
        latest = _unpack(state)
        at = max(now, latest.at)
        number = self._number(at)
        here, late = self._carried(latest, number)
        granted = max(0, min(want, self._limit - here))
        if granted:
            here += granted
            late += granted if self._number(at + self._late) > number else 0
            state = _STATE.pack(_TAG, at, here, late)
        retry_at = None
        if granted < want:
            retry_at = self._start(number + (1 if late < self._limit else 2))
        return Step(state=state, granted=granted, at=at, retry_at=retry_at)

    def widened(self, seconds: float) -> Self:
        """Count what may come after the end of its window in the next one, too."""
        return type(self)(self._options, self._context, late=self._late + seconds)

    def _carried(self, latest: _Used, number: int) -> tuple[int, int]:
        """Return what is used of a window, and what of it may come later."""
        if latest is _NOTHING:
            return 0, 0
        age = number - self._number(latest.at)
        if age == 0:
            return latest.here, latest.late
        return (latest.late, 0) if age == 1 else (0, 0)

    def _number(self, at: float) -> int:
        return math.floor(at / self._per)

    def _start(self, number: int) -> float:
        """Return the first time in a window; the product may be rounded to either side of it."""
        at = number * self._per
        while self._number(at) < number:
            at = math.nextafter(at, math.inf)
        while self._number(before := math.nextafter(at, -math.inf)) >= number:
            at = before
        return at


def _per(options: TemplateLimiterOptions) -> float:
    try:
        per = seconds(options.per, name="per")
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if per < _SHORTEST:
        raise ConfigError(f"per: a window is at least {_SHORTEST} s, got {options.per!r}")
    return per


def _unpack(state: bytes | None) -> _Used:
    """Return what a state says, nothing if it is none of ours."""
    if state is None or len(state) != _STATE.size:
        return _NOTHING
    tag, at, here, late = _STATE.unpack(state)
    if tag != _TAG or not -_BEYOND < at < _BEYOND or not 0 <= late <= here:
        return _NOTHING
    return _Used(at, here, late)


__all__ = ["TemplateLimiter", "TemplateLimiterOptions"]
