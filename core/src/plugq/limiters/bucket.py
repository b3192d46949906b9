"""``token_bucket``: an average rate with bursts."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import msgspec

from plugq.limiters.moments import LARGEST, pack, unpack
from plugq.protocols.limiter import Step
from plugq.protocols.plugin import API_VERSION, Capability

if TYPE_CHECKING:
    from plugq.protocols.plugin import PluginContext

_TAG = b"T"
#: Time is counted in 2 ** -96 s. Every time of a clock is a whole number of them, and the time of
#: a token is rounded down by less than one: so little that no clock can tell a start by it.
_SECOND = 1 << 96
#: Bytes of such a time.
_WIDTH = 24


class TokenBucketOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``burst`` starts at once, and ``rate`` a second on the average."""

    rate: Annotated[float, msgspec.Meta(ge=1e-6, le=LARGEST)]
    burst: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]


class TokenBucketLimiter:
    """A bucket that holds ``burst`` tokens and gains ``rate`` a second; a start takes one.

    In every span of *t* seconds there are at most ``burst + rate * t`` starts. Instead of the
    tokens the state holds the time by which the bucket is full again, as a whole number, so that
    no rounding adds up however long it runs.

    Widened, it holds fewer tokens, by as many as it gains in that time. Where that would leave
    less than one it holds one and, with a short burst, gains them more slowly.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = TokenBucketOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(
        self, options: TokenBucketOptions, context: PluginContext, *, late: float = 0.0
    ) -> None:
        self._options, self._context, self._late = options, context, late
        # Of the number as it is written: 0.7, not the binary one beside it.
        token = 1 / Fraction(repr(options.rate))
        depth = options.burst * token - Fraction(late)
        if depth < token:
            # One token must do. No `burst + 1` starts may be nearer than a token's time, and the
            # first of their grants may be that much older: this is when they just are not.
            depth = token = (token + Fraction(late)) / options.burst
        self._token, self._depth = math.floor(token * _SECOND), math.floor(depth * _SECOND)

    @property
    def window(self) -> float:
        """Seconds in which the empty bucket fills."""
        return _time(self._depth)

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        """Grant the tokens that are there."""
        full_at, latest = self._read(state)
        at = max(now, latest)
        full_at = max(full_at, _ticks(at))
        granted = max(0, min(want, (_ticks(at) + self._depth - full_at) // self._token))
        if granted:
            full_at += granted * self._token
            state = full_at.to_bytes(_WIDTH, "big", signed=True) + pack(_TAG, at, [])
        retry_at = None if granted >= want else _time(full_at + self._token - self._depth)
        return Step(state=state, granted=granted, at=at, retry_at=retry_at)

    def widened(self, seconds: float) -> Self:
        """Hold fewer tokens, so that those of late starts make up for it."""
        return type(self)(self._options, self._context, late=self._late + seconds)

    def _read(self, state: bytes | None) -> tuple[int, float]:
        """Return when the bucket is full, and the time of the latest grant."""
        head, rest = (state or b"")[:_WIDTH], (state or b"")[_WIDTH:]
        latest, _ = unpack(_TAG, rest)
        if not math.isfinite(latest):
            return 0, latest
        full_at = int.from_bytes(head, "big", signed=True)
        # Only a state of other options is beyond that, and must not close the bucket for long.
        return min(full_at, _ticks(latest) + self._depth), latest


def _ticks(time: float) -> int:
    return math.floor(time * float(_SECOND))


def _time(ticks: int) -> float:
    """Return the first time that has come to so many ticks."""
    time = ticks / _SECOND
    while _ticks(time) < ticks:
        time = math.nextafter(time, math.inf)
    return time


__all__ = ["TokenBucketLimiter", "TokenBucketOptions"]
