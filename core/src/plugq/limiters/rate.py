"""``rate``: never more than so many starts in any window."""

from __future__ import annotations

import math
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import msgspec

from plugq.fields import Span
from plugq.limiters.moments import LARGEST, SHORTEST, add, after, pack, unpack
from plugq.protocols.limiter import Step
from plugq.protocols.plugin import API_VERSION, Capability

if TYPE_CHECKING:
    from plugq.limiters.moments import Moment
    from plugq.protocols.plugin import PluginContext

_TAG = b"R"
#: Moments that a state keeps apart; a limit up to it is exact.
_EXACT = 128
#: Into how many parts of a window moments are merged once there are more. A window touches at
#: most one part more, and rounding may add another: what is merged fits into _EXACT.
_PARTS = 100


class RateOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At most ``limit`` starts in every window of ``per`` seconds."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=LARGEST)]
    per: Annotated[float, Span(SHORTEST)]


class RateLimiter:
    """A sliding window: the moments of the grants that are younger than ``per``.

    It is exact while at most 128 moments are in the window, so always for a limit up to 128.
    Beyond that, grants of one hundredth of the window are counted as of the last of them. The
    bound still holds in every window, and budget comes back up to a hundredth of ``per`` late.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = RateOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(self, options: RateOptions, context: PluginContext) -> None:
        self._context = context
        self._limit = options.limit
        self._window = float(options.per)

    @property
    def window(self) -> float:
        """``per``, and what it was widened by."""
        return self._window

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        """Grant what the last ``per`` seconds leave of the limit."""
        latest, moments = unpack(_TAG, state)
        at = max(now, latest)
        moments = [moment for moment in moments if at - moment[0] < self._window]
        used = sum([number for _, number in moments])
        granted = max(0, min(want, self._limit - used))
        if granted:
            add(moments, at, granted)
            state = pack(_TAG, at, self._bounded(moments))
        retry_at = None if granted >= want else self._frees(moments, used + granted)
        return Step(state=state, granted=granted, at=at, retry_at=retry_at)

    def widened(self, seconds: float) -> Self:
        """Count over a longer window: starts within ``per`` were granted within that."""
        options = RateOptions(limit=self._limit, per=self._window + seconds)
        return type(self)(options, self._context)

    def _frees(self, moments: list[Moment], used: int) -> float:
        """Return when so much has left the window that there is room for one."""
        gone = accumulate(number for _, number in moments)
        return next(
            after(at, self._window)
            for (at, _), count in zip(moments, gone, strict=True)
            if used - count < self._limit
        )

    def _bounded(self, moments: list[Moment]) -> list[Moment]:
        if len(moments) <= _EXACT:
            return moments
        # The later time of two stands for both, so that no window is counted short.
        parts = [list(part) for _, part in groupby(moments, self._part)]
        return [(part[-1][0], sum(number for _, number in part)) for part in parts]

    def _part(self, moment: Moment) -> int:
        return math.floor(moment[0] / self._window * _PARTS)


__all__ = ["RateLimiter", "RateOptions"]
