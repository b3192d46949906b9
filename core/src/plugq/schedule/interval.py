"""Ticks at a fixed distance in real time."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from plugq.duration import Duration, seconds
from plugq.errors import ConfigError
from plugq.schedule.rule import Rule, utc

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SHORTEST = 0.05


@dataclass(frozen=True, slots=True)
class Interval(Rule):
    """Ticks every so many seconds, at ``anchor + n * every`` for every whole number n.

    The ticks lie on a grid in real time: they do not drift with the duration of a job or a late
    scheduler, and the changes of daylight saving do not move them. ``anchor`` says where the grid
    lies, not when it begins: n may be negative. Without it, it is 1970-01-01 00:00 UTC, so that
    ``Interval("1h")`` ticks at every full hour of UTC. ``every`` is taken to the microsecond.

    Raises:
        ConfigError: ``every`` is no duration or shorter than 0.05 s, or ``anchor`` is not an aware
            ``datetime``.
    """

    every: Duration
    anchor: datetime = _EPOCH
    _step: timedelta = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check both and bring them into one form: seconds and UTC."""
        try:
            every = seconds(self.every, name="interval")
            anchor = utc(self.anchor, "interval: anchor")
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from None
        if every < _SHORTEST:
            raise ConfigError(f"interval: expected at least {_SHORTEST} s, got {self.every!r}")
        object.__setattr__(self, "every", every)
        object.__setattr__(self, "anchor", anchor)
        object.__setattr__(self, "_step", timedelta(seconds=every))

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick later than a moment, in UTC; ``None`` beyond the year 9999.

        Raises:
            ValueError: the moment is naive.
            TypeError: it is no ``datetime``.
        """
        passed = (utc(after, "after") - self.anchor) // self._step
        try:
            return self.anchor + (passed + 1) * self._step
        except OverflowError:
            return None


__all__ = ["Interval"]
