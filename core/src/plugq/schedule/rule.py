"""What every rule of a schedule can do, and which of its ticks are due."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from plugq.duration import timestamp

CatchUp = Literal["skip", "one", "all"]

#: While a sweeper is replaced a tick is noticed up to 4 s late; a tick that late is not missed.
ON_TIME = 5.0


class Rule(ABC):
    """A rule that names moments, its ticks; it is immutable and the same in every process."""

    __slots__ = ()

    @abstractmethod
    def next(self, after: datetime) -> datetime | None:
        """Return the first tick that is later than a moment, in UTC, or ``None`` if there is none.

        Raises:
            ValueError: the moment is naive.
            TypeError: it is no ``datetime``.
        """

    def ticks(self, after: datetime, until: datetime, limit: int) -> list[datetime]:
        """Return the ticks later than ``after`` and not later than ``until``, oldest first.

        At most ``limit`` of them: where that many come back, there may be more.

        Raises:
            ValueError: a moment is naive, or the limit is below 1.
            TypeError: a moment is no ``datetime``.
        """
        end = utc(until, "until")
        _check_limit(limit)
        found: list[datetime] = []
        tick = self.next(after)
        while tick is not None and tick <= end:
            found.append(tick)
            if len(found) == limit:
                break
            tick = self.next(tick)
        return found


class Due(NamedTuple):
    """The ticks to submit now, oldest first, and the moment to continue from the next time."""

    ticks: list[datetime]
    last: datetime


def due(
    rule: Rule,
    last: datetime | None,
    now: datetime,
    policy: CatchUp,
    limit: int,
    *,
    on_time: float = ON_TIME,
) -> Due:
    """Return which ticks to submit of those later than ``last`` and not later than ``now``.

    By policy:

    * ``"all"``: each of them, oldest first. At most ``limit`` in one call; the next call goes on
      behind the last of these.
    * ``"one"``: the newest only, which stands for all that came due since ``last``.
    * ``"skip"``: the newest only, and only if it is at most ``on_time`` seconds old. What came due
      while no scheduler ran is dropped.

    ``last`` is ``None`` for a schedule that was never looked at: nothing is due, and it counts
    from ``now``. The returned ``last`` is otherwise that tick up to which everything is answered,
    or the given ``last`` where none was due, and never earlier than it, even if ``now`` is. Passing
    it on and storing it before another scheduler asks is what makes each tick come back once.
    A long absence costs no more than a short one.

    Raises:
        ValueError: a moment is naive, the limit is below 1 or the policy is unknown.
        TypeError: a moment is no ``datetime``.
    """
    _check_limit(limit)
    if policy not in {"skip", "one", "all"}:
        message = f"catch_up: expected 'skip', 'one' or 'all', got {policy!r}"
        raise ValueError(message)
    moment = utc(now, "now")
    if last is None:
        return Due([], moment)
    start = utc(last, "last")
    if policy == "all":
        ticks = rule.ticks(start, moment, limit)
        return Due(ticks, ticks[-1] if ticks else start)
    newest = _newest(rule, start, moment)
    if newest is None:
        return Due([], start)
    if policy == "skip" and (moment - newest).total_seconds() > on_time:
        return Due([], newest)
    return Due([newest], newest)


def _newest(rule: Rule, after: datetime, until: datetime) -> datetime | None:
    """Return the last tick of (after, until] in a number of steps that does not grow with them."""

    def next_until(moment: datetime) -> datetime | None:
        tick = rule.next(moment)
        return tick if tick is not None and tick <= until else None

    newest = next_until(after)
    beyond = until
    while newest is not None and (tick := next_until(newest)) is not None:
        newest = tick
        middle = newest + (beyond - newest) / 2
        tick = next_until(middle)
        if tick is None:
            beyond = middle
        else:
            newest = tick
    return newest


def utc(value: datetime, name: str) -> datetime:
    """Return an aware ``datetime`` in UTC; a naive one and other types are refused."""
    timestamp(value, name=name)
    return value.astimezone(UTC)


def _check_limit(limit: int) -> None:
    if limit < 1:
        message = f"limit: expected at least 1, got {limit}"
        raise ValueError(message)


__all__ = ["ON_TIME", "CatchUp", "Due", "Rule", "due", "utc"]
