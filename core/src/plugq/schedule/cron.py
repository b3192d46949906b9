"""Ticks at times on the wall of some time zone."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from plugq.errors import ConfigError
from plugq.schedule.expression import Expression, parse
from plugq.schedule.rule import Rule, utc

_SECOND = timedelta(seconds=1)
#: From here on the rules of every time zone repeat with the calendar, or do not change any more.
_FAR = datetime(2100, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Cron(Rule):
    """Ticks where the clock of a time zone shows a time that a cron expression matches.

    **Expression.** Five fields: minute (0-59), hour (0-23), day of month (1-31), month (1-12 or
    JAN-DEC), day of week (0-7 or SUN-SAT, where 0 and 7 are Sunday); or six with the second (0-59)
    first. Upper and lower case are equal. A field is a list, with commas, of

    * ``*``, every value; in the two fields of days ``?`` is the same;
    * a value, or a range ``a-b``. A range whose end is before its start goes round: ``22-2`` in
      hours is 22, 23, 0, 1, 2 and ``FRI-MON`` four days;
    * one of these with a step: ``*/15``, ``8-18/2``, ``22-4/2``; ``5/10`` counts from 5 to the end
      of the field. A step longer than the field is refused, since ``*/90`` minutes can not be
      written in cron;
    * in days of the month ``L``, the last day, and ``L-3``, the third day before it;
    * in days of the week ``5L`` or ``FRIL``, the last Friday of the month, and ``MON#1``, the
      first Monday.

    If day of month and day of week are both restricted, a day matches that fits either. If one of
    them begins with ``*`` or ``?``, a day has to fit both; ``*/2`` counts as beginning with it.
    ``@yearly``, ``@annually``, ``@monthly``, ``@weekly``, ``@daily``, ``@midnight`` and ``@hourly``
    stand for expressions.

    **Daylight saving.** The rule is that of Debian's cron, for changes of any size and reason.
    What counts is whether seconds, minutes or hours begin with ``*``:

    * None does, as in ``30 2 * * *``: a job at fixed times. Where the clock is put forward over
      such times, there is one tick for all of them at the moment of the change. Where it is put
      back, the repeated times tick once, when they come first.
    * One does, as in ``*/5 * * * *`` or ``0 */2 * * *``: a job that repeats. It ticks when the
      clock shows a matching time, and only then: not in what is left out, and both times in what
      comes twice, so that ``*/5 * * * *`` ticks every 5 minutes of real time.

    Six fields follow the same rule as five.

    Raises:
        ConfigError: the expression can not be read, never matches or does so only at times that
            the time zone leaves out, or the time zone is unknown.
    """

    expression: str
    timezone: str = "UTC"
    _wall: Expression = field(init=False, repr=False, compare=False)
    _zone: ZoneInfo | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Read the expression and find the time zone."""
        if not isinstance(self.expression, str):
            raise ConfigError(f"cron: expected text such as '0 3 * * *', got {self.expression!r}")
        text = " ".join(self.expression.split())
        object.__setattr__(self, "expression", text)
        object.__setattr__(self, "_wall", parse(text))
        object.__setattr__(self, "_zone", _zone(self.timezone))
        if self.next(_FAR) is None:
            raise ConfigError(
                f"cron: {text!r} never comes in {self.timezone}: the clock is put forward over"
                " every such time; name fixed minutes and hours, or other ones"
            )

    def __str__(self) -> str:
        return self.expression

    def next(self, after: datetime) -> datetime | None:
        """Return the first tick later than a moment, in UTC; ``None`` at the end of the year 9999.

        Raises:
            ValueError: the moment is naive.
            TypeError: it is no ``datetime``.
        """
        moment = utc(after, "after")
        try:
            if self._zone is None:
                found = self._wall.following(moment.replace(tzinfo=None))
            elif self._wall.fixed:
                found = self._fixed(moment, self._zone)
            else:
                found = self._repeating(moment, self._zone)
        except OverflowError:
            return None
        return None if found is None else found.replace(tzinfo=UTC)

    def _fixed(self, moment: datetime, zone: ZoneInfo) -> datetime | None:
        local = moment.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0, microsecond=0)
        if local.fold:
            # The times that come twice had their ticks: go on where they end.
            change = _Change(wall, zone)
            wall = change.moment + change.before - _SECOND
        found = self._wall.following(wall)
        if found is None:
            return None
        change = _Change(found, zone)
        return change.moment if change.forward else found - change.before

    def _repeating(self, moment: datetime, zone: ZoneInfo) -> datetime | None:
        local = moment.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0, microsecond=0)
        found = self._wall.following(wall)
        change = _Change(wall, zone)
        if change.back and not local.fold:
            if found is not None and found < change.moment + change.before:
                return found - change.before
            found = self._wall.following(change.moment + change.after - _SECOND)
        while found is not None:
            change = _Change(found, zone)
            if not change.forward:
                first = found - change.before
                # In times that come twice, the first pass may be over.
                return first if first > moment.replace(tzinfo=None) else found - change.after
            found = self._wall.following(change.moment + change.after - _SECOND)
        return None


class _Change:
    """What the clock of a zone does around a time on its wall: go on, or be put forward or back.

    ``before`` and ``after`` are its distances from UTC on both sides, equal if it just goes on.
    """

    __slots__ = ("_wall", "_zone", "after", "before")

    def __init__(self, wall: datetime, zone: ZoneInfo) -> None:
        self._wall = wall
        self._zone = zone
        self.before = _offset(wall.replace(tzinfo=zone))
        self.after = _offset(wall.replace(tzinfo=zone, fold=1))

    @property
    def forward(self) -> bool:
        """Whether the time is one of those that the clock leaves out."""
        return self.before < self.after

    @property
    def back(self) -> bool:
        """Whether the time is one of those that the clock shows twice."""
        return self.before > self.after

    @property
    def moment(self) -> datetime:
        """When the clock is put, in UTC without its mark."""
        early = self._wall - max(self.before, self.after)
        low, high = 0, int(abs(self.before - self.after).total_seconds())
        while high - low > 1:
            middle = (low + high) // 2
            then = (early + middle * _SECOND).replace(tzinfo=UTC)
            if _offset(then.astimezone(self._zone)) == self.after:
                high = middle
            else:
                low = middle
        return early + high * _SECOND


def _offset(local: datetime) -> timedelta:
    offset = local.utcoffset()
    return timedelta() if offset is None else offset


def _zone(name: str) -> ZoneInfo | None:
    if name == "UTC":
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError, TypeError):
        raise ConfigError(
            f"timezone: unknown time zone {name!r}; write it like 'Europe/Berlin' or 'UTC'"
        ) from None


__all__ = ["Cron"]
