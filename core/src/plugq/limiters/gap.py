"""``delay`` and ``spaced``: a least time between two starts."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import msgspec

from plugq.fields import Span
from plugq.limiters.moments import LARGEST, SHORTEST, after, pack, unpack
from plugq.protocols.limiter import Step
from plugq.protocols.plugin import API_VERSION, Capability

if TYPE_CHECKING:
    from plugq.protocols.plugin import PluginContext

_TAG = b"G"


class DelayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At least ``every`` seconds from one start to the next."""

    every: Annotated[float, Span(SHORTEST)]


class SpacedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``limit`` starts in every window of ``per`` seconds, one at a time, evenly."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
    per: Annotated[float, Span(SHORTEST)]


def _step(state: bytes | None, want: int, now: float, gap: float) -> Step:
    latest, moments = unpack(_TAG, state)
    at = max(now, latest)
    last = moments[-1][0] if moments else -math.inf
    granted = int(want >= 1 and at - last >= gap)
    if granted:
        last, state = at, pack(_TAG, at, [(at, 1)])
    retry_at = None if granted >= want else after(last, gap)
    return Step(state=state, granted=granted, at=at, retry_at=retry_at)


class DelayLimiter:
    """Grants one start at a time, the next one ``every`` seconds after the last."""

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = DelayOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(self, options: DelayOptions, context: PluginContext) -> None:
        self._context = context
        self._every = float(options.every)

    @property
    def window(self) -> float:
        """``every``, and what it was widened by."""
        return self._every

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        """Grant one if the last one was long enough ago."""
        return _step(state, want, now, self._every)

    def widened(self, seconds: float) -> Self:
        """Wait longer, by as much as a start may be late: the gap of the starts is exact."""
        return type(self)(DelayOptions(every=self._every + seconds), self._context)


class SpacedLimiter:
    """Grants one start at a time, ``per / limit`` seconds from one to the next.

    What was not used is not made up for. Widened, it holds the limit in every window of the
    starts, while two of them may be nearer than the spacing by as much as one is late.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = SpacedOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(self, options: SpacedOptions, context: PluginContext) -> None:
        self._context = context
        self._limit = options.limit
        self._window = float(options.per)
        self._spacing = self._window / self._limit
        # Rounded up, so that `limit` of them are no less than the window.
        while Fraction(self._spacing) * self._limit < Fraction(self._window):
            self._spacing = math.nextafter(self._spacing, math.inf)

    @property
    def window(self) -> float:
        """``per``, and what it was widened by."""
        return self._window

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        """Grant one if the last one was a spacing ago."""
        return _step(state, want, now, self._spacing)

    def widened(self, seconds: float) -> Self:
        """Spread the limit over a longer window."""
        options = SpacedOptions(limit=self._limit, per=self._window + seconds)
        return type(self)(options, self._context)


__all__ = ["DelayLimiter", "DelayOptions", "SpacedLimiter", "SpacedOptions"]
