"""What a cron expression says about times on the wall; time zones are not its business."""

from __future__ import annotations

import calendar
from bisect import bisect_left
from dataclasses import dataclass
from datetime import MAXYEAR, date, datetime, timedelta
from typing import NamedTuple

from plugq.errors import ConfigError

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_SECOND = timedelta(seconds=1)


class _Kind(NamedTuple):
    """One column of an expression: its values, and how many of them differ."""

    name: str
    low: int
    high: int
    size: int
    names: tuple[str, ...] = ()


_SECONDS = _Kind("seconds", 0, 59, 60)
_MINUTES = _Kind("minutes", 0, 59, 60)
_HOURS = _Kind("hours", 0, 23, 24)
_DAYS = _Kind("day of month", 1, 31, 31)
_MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTHS = _Kind("month", 1, 12, 12, _MONTH_NAMES)
# Sunday is 0 and 7: one value more to write than there are days.
_WEEKDAYS = _Kind("day of week", 0, 7, 7, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"))
_KINDS = (_SECONDS, _MINUTES, _HOURS, _DAYS, _MONTHS, _WEEKDAYS)

#: Matching days of a month by its length (from 28) and the weekday of its first (from Monday).
_Calendar = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True, slots=True)
class Expression:
    """A cron expression, read and checked: the times on the wall that it matches.

    ``fixed`` says that neither seconds, minutes nor hours begin with ``*``.
    """

    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    days: _Calendar
    fixed: bool

    def following(self, wall: datetime) -> datetime | None:
        """Return the first matching time that is later, to the second; ``None`` after 9999."""
        try:
            start = wall.replace(microsecond=0) + _SECOND
        except OverflowError:
            return None
        day = self._day(start.year, start.month, start.day)
        if day == start.date():
            time = self._time(start.hour, start.minute, start.second)
            if time is not None:
                return datetime(day.year, day.month, day.day, *time)  # noqa: DTZ001 - of the wall
            day = self._day(start.year, start.month, start.day + 1)
        if day is None:
            return None
        return datetime(  # noqa: DTZ001 - of the wall
            day.year, day.month, day.day, self.hours[0], self.minutes[0], self.seconds[0]
        )

    def _day(self, year: int, month: int, day: int) -> date | None:
        """Return the first matching day from that one on, which may be one past its month."""
        index = bisect_left(self.months, month)
        if index < len(self.months) and self.months[index] != month:
            day = 1
        while year <= MAXYEAR:
            for each in self.months[index:]:
                first, length = calendar.monthrange(year, each)
                days = self.days[length - 28][first]
                place = bisect_left(days, day)
                if place < len(days):
                    return date(year, each, days[place])
                day = 1
            year, index, day = year + 1, 0, 1
        return None

    def _time(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """Return the first matching time of the day from that one on."""
        hours, minutes, seconds = self.hours, self.minutes, self.seconds
        h = bisect_left(hours, hour)
        if h < len(hours) and hours[h] == hour:
            m = bisect_left(minutes, minute)
            if m < len(minutes) and minutes[m] == minute:
                s = bisect_left(seconds, second)
                if s < len(seconds):
                    return hour, minute, seconds[s]
                m += 1
            if m < len(minutes):
                return hour, minutes[m], seconds[0]
            h += 1
        if h < len(hours):
            return hours[h], minutes[0], seconds[0]
        return None


@dataclass(frozen=True, slots=True)
class _Field:
    """The text of one column, read item by item."""

    number: int
    kind: _Kind
    text: str

    @property
    def open(self) -> bool:
        return self.text.startswith(("*", "?"))

    def items(self) -> list[str]:
        if self.text == "?" and self.kind in {_DAYS, _WEEKDAYS}:
            return ["*"]
        items = self.text.split(",")
        if "" in items:
            raise self.error(f"{self.text!r} has an empty item")
        return items

    def all(self) -> tuple[int, ...]:
        return tuple(sorted({value for item in self.items() for value in self.values(item)}))

    def values(self, item: str) -> list[int]:
        """Return the values of ``*``, a value or a range, each with or without a step."""
        kind = self.kind
        body, slash, step = item.partition("/")
        stride = self._stride(step) if slash else 1
        if body == "*":
            first, last = kind.low, kind.low + kind.size - 1
        else:
            start, dash, end = body.partition("-")
            first = last = self.value(start)
            if dash:
                last = self.value(end)
                if last < first:
                    last += kind.size
            elif slash:
                last = kind.high
        return [
            kind.low + (value - kind.low) % kind.size for value in range(first, last + 1, stride)
        ]

    def value(self, text: str) -> int:
        kind = self.kind
        if text.upper() in kind.names:
            return kind.low + kind.names.index(text.upper())
        return self.integer(text, kind.low, kind.high)

    def integer(self, text: str, low: int, high: int) -> int:
        if not (text.isascii() and text.isdigit()):
            names = f" or {self.kind.names[0]}-{self.kind.names[-1]}" if self.kind.names else ""
            raise self.error(f"expected a number of {low}-{high}{names}, got {text!r}")
        # int() refuses thousands of digits with an error of its own.
        if len(text) > len("0000") or not low <= int(text) <= high:
            raise self.error(f"{text} is outside {low}-{high}")
        return int(text)

    def _stride(self, text: str) -> int:
        kind = self.kind
        if not (text.isascii() and text.isdigit()) or not text.strip("0"):
            raise self.error(f"expected a step of at least 1 after '/', got {text!r}")
        if len(text) > len("0000") or int(text) > kind.size:
            raise self.error(
                f"a step of {text} is longer than the field ({kind.size} values) and would start"
                " over with it; use an interval"
            )
        return int(text)

    def error(self, what: str) -> ConfigError:
        return ConfigError(f"cron: field {self.number} ({self.kind.name}): {what}")


class _MonthDays:
    """The field of days of the month: numbers, and days counted from the end of the month."""

    def __init__(self, field: _Field) -> None:
        self._days: set[int] = set()
        self._before_last: set[int] = set()
        for item in field.items():
            upper = item.upper()
            if upper == "L":
                self._before_last.add(0)
            elif upper.startswith("L-"):
                self._before_last.add(field.integer(item[2:], 1, 30))
            else:
                self._days.update(field.values(item))

    def matches(self, day: int, length: int) -> bool:
        return day in self._days or length - day in self._before_last


class _WeekDays:
    """The field of days of the week: every such day, the last or the n-th one of its month."""

    def __init__(self, field: _Field) -> None:
        self._days: set[int] = set()
        self._last: set[int] = set()
        self._nth: set[tuple[int, int]] = set()
        for item in field.items():
            day, hash_, nth = item.partition("#")
            if hash_:
                self._nth.add((field.value(day) % 7, field.integer(nth, 1, 5)))
            elif item.upper() == "L":
                raise field.error(
                    "'L' needs the day before it, like 5L or FRIL for the last Friday of the month"
                )
            elif item.upper().endswith("L"):
                self._last.add(field.value(item[:-1]) % 7)
            else:
                self._days.update(field.values(item))

    def matches(self, day: int, weekday: int, length: int) -> bool:
        return (
            weekday in self._days
            or (weekday in self._last and day + 7 > length)
            or (weekday, (day + 6) // 7) in self._nth
        )


def parse(text: str) -> Expression:
    """Read a cron expression.

    Raises:
        ConfigError: it can not be read, or no day matches it in any year; says where and why.
    """
    columns = _columns(text)
    missing = len(_KINDS) - len(columns)
    fields = [
        _Field(number, kind, column)
        for number, (kind, column) in enumerate(zip(_KINDS[missing:], columns, strict=True), 1)
    ]
    if missing:
        fields.insert(0, _Field(0, _SECONDS, "0"))
    second, minute, hour, day, month, weekday = fields
    months = month.all()
    expression = Expression(
        seconds=second.all(),
        minutes=minute.all(),
        hours=hour.all(),
        months=months,
        days=_calendar(day, weekday),
        fixed=not (second.open or minute.open or hour.open),
    )
    # Every month begins on every weekday in the 400 years after which the calendar repeats.
    lengths = {length for each in months for length in _LENGTHS[each]}
    if not any(days for length in lengths for days in expression.days[length - 28]):
        raise ConfigError(
            f"cron: {text!r} never comes: the months of field {month.number} have no day that"
            f" fields {day.number} and {weekday.number} match"
        )
    return expression


_LENGTHS = {
    month: {calendar.monthrange(year, month)[1] for year in (2023, 2024)} for month in range(1, 13)
}


def _columns(text: str) -> list[str]:
    if text.startswith("@"):
        if text.lower() not in _ALIASES:
            known = ", ".join(_ALIASES)
            raise ConfigError(f"cron: unknown alias {text!r}; there are {known}")
        text = _ALIASES[text.lower()]
    columns = text.split()
    if len(columns) not in {5, 6}:
        raise ConfigError(
            "cron: expected 5 fields (minute, hour, day of month, month, day of week) or 6 with"
            f" the second first, got {len(columns)} in {text!r}"
        )
    return columns


def _calendar(day: _Field, weekday: _Field) -> _Calendar:
    month_days, week_days = _MonthDays(day), _WeekDays(weekday)
    both = day.open or weekday.open
    combine = all if both else any

    def days(length: int, first: int) -> tuple[int, ...]:
        return tuple(
            each
            for each in range(1, length + 1)
            if combine(
                (
                    month_days.matches(each, length),
                    # Months are told by their first day from Monday, columns count from Sunday.
                    week_days.matches(each, (first + each) % 7, length),
                )
            )
        )

    return tuple(tuple(days(length, first) for first in range(7)) for length in range(28, 32))


__all__ = ["Expression", "parse"]
