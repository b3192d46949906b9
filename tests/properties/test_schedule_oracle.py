"""Schedules against two oracles, in every time zone and around every change of its clock.

One is a model of the rule as ``Cron`` states it, found by trying every minute or second and reading
fields in another way than the code does. The other is cronsim, which follows Debian's cron. Where
cronsim differs, the model alone decides:

* six fields: to cronsim they always repeat, to us they follow the rule of five;
* fixed times asked for while the clock shows an hour for the second time: cronsim answers with the
  first time, which is over; we answer with what comes next. It is not asked there;
* times that repeat, where a clock is put over midnight, or not from one full hour to another:
  cronsim steps by hours and days of 24 hours and returns times that are not shown, or misses some;
* a range of one value with a step, as ``3-3/5``: cronsim reads ``3/5``, to us it is one value;
* wrap-around ranges, ``?`` and ``L-3`` are not in its language.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from hypothesis import assume, example, given, note, reject, settings
from hypothesis import strategies as st

from plugq.errors import ConfigError
from plugq.schedule import CatchUp, Cron, Due, Interval, due

FIRST, LAST = datetime(1973, 1, 1, tzinfo=UTC), datetime(2102, 1, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = (timedelta(seconds=n) for n in (1, 60, 3600, 86400))
#: Half a thousand years, in seconds.
FAR = 500 * 366 * 86400
NOTED = (
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Africa/Casablanca",
    "Pacific/Apia",
    "America/Santiago",
    "America/St_Johns",
    "Africa/Cairo",
    "Asia/Pyongyang",
    "Europe/Dublin",
    "Antarctica/Troll",
    "Asia/Kathmandu",
    "UTC",
)
#: Without links of the database that are no zone of its own.
ZONES = sorted(
    name
    for name in available_timezones()
    if "/" in name and not name.startswith(("Etc/", "posix", "right", "SystemV"))
)


# Changes of clocks


@functools.cache
def changes(name: str) -> tuple[datetime, ...]:
    """Return the moments at which the clock of a zone is put."""
    zone = ZoneInfo(name)
    found: list[datetime] = []
    early, offset = FIRST, FIRST.astimezone(zone).utcoffset()
    while early < LAST:
        late = early + DAY
        if late.astimezone(zone).utcoffset() != offset:
            low, high = early, late
            while high - low > SECOND:
                middle = low + (high - low) // (2 * SECOND) * SECOND
                if middle.astimezone(zone).utcoffset() == offset:
                    low = middle
                else:
                    high = middle
            found.append(high)
            late, offset = high, high.astimezone(zone).utcoffset()
        early = late
    return tuple(found)


def odd(change: datetime, zone: ZoneInfo) -> bool:
    """Whether a clock is put over a midnight, or not from one full hour to another."""
    before = (change - SECOND).astimezone(zone).replace(tzinfo=None) + SECOND
    after = change.astimezone(zone).replace(tzinfo=None, fold=0)
    low, high = min(before, after), max(before, after)
    midnight = datetime(high.year, high.month, high.day)  # noqa: DTZ001 - of the wall
    return low <= midnight < high or (low.minute, high.minute) != (0, 0)


# Expressions: how they are written, and what that means


class Column(NamedTuple):
    """One field as text, with what it matches: numbers, or days told by their date."""

    text: str
    matches: Callable[[int], bool]
    on: Callable[[date], bool] = lambda _: False

    @property
    def star(self) -> bool:
        return self.text[0] in "*?"


class Written(NamedTuple):
    second: Column
    minute: Column
    hour: Column
    day: Column
    month: Column
    weekday: Column
    six: bool

    @property
    def text(self) -> str:
        columns = [self.minute, self.hour, self.day, self.month, self.weekday]
        return " ".join(column.text for column in [self.second, *columns][not self.six :])

    @property
    def fixed(self) -> bool:
        return not (self.second.star or self.minute.star or self.hour.star)

    def on(self, day: date) -> bool:
        if not self.month.matches(day.month):
            return False
        month_day = self.day.matches(day.day) or self.day.on(day)
        weekday = self.weekday.matches(day.isoweekday() % 7) or self.weekday.on(day)
        if self.day.star or self.weekday.star:
            return month_day and weekday
        return month_day or weekday

    def at(self, wall: datetime) -> bool:
        return (
            self.second.matches(wall.second)
            and self.minute.matches(wall.minute)
            and self.hour.matches(wall.hour)
            and self.on(wall.date())
        )


def union(columns: Iterable[Column]) -> Column:
    parts = list(columns)
    return Column(
        ",".join(part.text for part in parts),
        lambda value: any(part.matches(value) for part in parts),
        lambda day: any(part.on(day) for part in parts),
    )


def walk(start: int, end: int, step: int, values: list[int]) -> set[int]:
    """Return every so manieth value on the way from start to end, round the clock if need be."""
    ring = itertools.islice(itertools.cycle(values), values.index(start), None)
    way: list[int] = []
    for value in ring:
        way.append(value)
        if value == end:
            break
    return set(way[::step])


@st.composite
def numbers(
    draw: st.DrawFn,
    low: int,
    high: int,
    names: str = "",
    *,
    plain: bool = False,
    weekday: bool = False,
) -> Column:
    """Draw a star, a value or a range, each with or without a step."""
    values = list(range(low, high + 1))
    symbols = names.split()

    def spell(value: int) -> str:
        other: bool = draw(st.booleans())
        if weekday and value == 0 and other:
            return "7"
        if symbols and other:
            name = symbols[value - low]
            return name if plain else draw(st.sampled_from([name, name.lower(), name.title()]))
        return str(value) if plain else draw(st.sampled_from([str(value), f"{value:02}"]))

    kinds = ["star", "every", "value", "from", "range", "steps"]
    step = draw(st.integers(1, len(values)) | st.sampled_from([2, 5]))
    match draw(st.sampled_from(kinds)):
        case "star":
            return Column("*", lambda _: True)
        case "every":
            every = set(values[::step])
            return Column(f"*/{step}", every.__contains__)
        case "value":
            value = draw(st.sampled_from(values))
            return Column(spell(value), value.__eq__)
        case "from":
            start = draw(st.integers(low, high))
            # Sunday is 7 too, at the end of the field.
            found = {
                value % 7 if weekday else value
                for value in range(start, high + 1 + weekday)[::step]
            }
            return Column(f"{start}/{step}", found.__contains__)
        case kind:
            start, end = draw(st.sampled_from(values)), draw(st.sampled_from(values))
            if plain:
                start, end = min(start, end), max(start, end)
                kind = kind if start < end else "range"
            found = walk(start, end, step if kind == "steps" else 1, values)
            first, last = (str(start), str(end)) if plain else (spell(start), spell(end))
            # 0-7 would be the whole week.
            if weekday and last == "7" and start == 0:
                last = "0"
            return Column(
                f"{first}-{last}" + (f"/{step}" if kind == "steps" else ""), found.__contains__
            )


def lists(item: st.SearchStrategy[Column]) -> st.SearchStrategy[Column]:
    return item | st.lists(item, min_size=1, max_size=3).map(union)


def never(_: int) -> bool:
    return False


def from_end(number: int) -> Column:
    def on(day: date) -> bool:
        end = date(day.year + day.month // 12, day.month % 12 + 1, 1) - DAY
        return day == end - number * DAY

    return Column(f"L-{number}" if number else "L", never, on)


def last_weekday(weekday: int, text: str) -> Column:
    def on(day: date) -> bool:
        return day.isoweekday() % 7 == weekday % 7 and (day + 7 * DAY).month != day.month

    return Column(text, never, on)


def nth_weekday(weekday: int, nth: int) -> Column:
    def on(day: date) -> bool:
        same = [day.replace(day=n) for n in range(1, day.day + 1)]
        return (
            day.isoweekday() % 7 == weekday % 7
            and sum(each.isoweekday() == day.isoweekday() for each in same) == nth
        )

    return Column(f"{weekday}#{nth}", never, on)


MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC"
WEEKDAYS = "SUN MON TUE WED THU FRI SAT"
ANY = st.just(Column("*", lambda _: True))
QUESTION = st.just(Column("?", lambda _: True))
ZERO = Column("0", (0).__eq__)


@st.composite
def expressions(draw: st.DrawFn, *, plain: bool = False, six: bool = False) -> Written:
    """Draw an expression; a plain one is in cronsim's language."""
    ends = st.just(from_end(0)) if plain else st.integers(0, 30).map(from_end)
    lasts = st.builds(lambda n: last_weekday(n, f"{n}L"), st.integers(0, 7))
    if not plain:
        names = WEEKDAYS.split()
        lasts |= st.builds(lambda n: last_weekday(n, f"{names[n]}l"), st.integers(0, 6))
    nths = st.builds(nth_weekday, st.integers(0, 7), st.integers(1, 5))
    day = lists(numbers(1, 31, plain=plain) | ends)
    weekday = lists(numbers(0, 6, WEEKDAYS, plain=plain, weekday=True) | lasts | nths)
    if not plain:
        day |= QUESTION
        weekday |= QUESTION
    return Written(
        draw(lists(numbers(0, 59, plain=plain))) if six else ZERO,
        draw(lists(numbers(0, 59, plain=plain))),
        # Where clocks are changed.
        draw(
            lists(
                numbers(0, 23, plain=plain)
                | numbers(0, 3, plain=True).filter(lambda c: not c.star and "/" not in c.text)
            )
        ),
        # Mostly days that come: what happens in a day is the subject too.
        draw(ANY | day),
        draw(ANY | lists(numbers(1, 12, MONTHS, plain=plain))),
        draw(ANY | weekday),
        six,
    )


def rule(written: Written, zone: str) -> Cron:
    note(f"{written.text} in {zone}")
    try:
        return Cron(written.text, zone)
    except ConfigError as error:
        refused = str(error)
    if "never comes: the months" in refused:
        # The model knows no day of it either, in all combinations of lengths and weekdays.
        days = (date(2000, 1, 1) + n * DAY for n in range(28 * 366))
        assert not any(written.on(day) for day in days)
    else:
        assert "never comes in" in refused
        assert not written.fixed
    return reject()


# The model


def model(
    written: Written, zone: ZoneInfo, start: datetime, end: datetime, step: timedelta
) -> list[datetime]:
    """Return the ticks later than start and not later than end by trying every time."""
    if not written.fixed:
        count = (end - start) // step
        moments = (start + n * step for n in range(1, count + 1))
        return [each for each in moments if written.at(each.astimezone(zone).replace(tzinfo=None))]
    found = set()
    # Times that are left out tick up to a day later.
    wall = start.astimezone(zone).replace(tzinfo=None, fold=0) - 26 * HOUR
    final = end.astimezone(zone).replace(tzinfo=None, fold=0) + 2 * HOUR
    while wall <= final:
        if written.at(wall):
            shown = wall
            while True:
                moment = shown.replace(tzinfo=zone).astimezone(UTC)
                if moment.astimezone(zone).replace(tzinfo=None, fold=0) == shown:
                    break
                shown += step
            if start < moment <= end:
                found.add(moment)
        wall += step
    return sorted(found)


def zones() -> st.SearchStrategy[str]:
    return st.sampled_from(NOTED) | st.sampled_from(ZONES)


@st.composite
def places(draw: st.DrawFn) -> tuple[str, datetime]:
    """Draw a zone and a moment close to one of the changes of its clock, if it has any."""
    zone = draw(zones())
    moments = changes(zone)
    moment = draw(st.sampled_from(moments)) if moments else datetime(2026, 3, 1, tzinfo=UTC)
    return zone, moment


def whole(moment: datetime, step: timedelta) -> datetime:
    return moment - (moment - FIRST) % step


@given(expressions(), places(), st.integers(-2880, 240))
def test_minutes_follow_the_model(
    written: Written, place: tuple[str, datetime], offset: int
) -> None:
    zone, moment = place
    start = whole(moment, MINUTE) + offset * MINUTE
    end = start + 2 * DAY
    expected = model(written, ZoneInfo(zone), start, end, MINUTE)
    assert rule(written, zone).ticks(start, end, 10**6) == expected


@given(expressions(six=True), places(), st.integers(-5400, 3600))
@settings(max_examples=50)
def test_seconds_follow_the_model(
    written: Written, place: tuple[str, datetime], offset: int
) -> None:
    zone, moment = place
    start = moment + offset * SECOND
    end = start + 90 * MINUTE
    expected = model(written, ZoneInfo(zone), start, end, SECOND)
    assert rule(written, zone).ticks(start, end, 10**6) == expected


@given(expressions(), st.dates(date(1900, 1, 1), date(2400, 1, 1)))
@example(
    Written(
        ZERO,
        ZERO,
        ZERO,
        Column("29", (29).__eq__),
        Column("2", (2).__eq__),
        Column("*", lambda _: True),
        six=False,
    ),
    date(2096, 3, 1),
)
def test_days_follow_the_model(written: Written, start: date) -> None:
    cron = rule(written, "UTC")
    days = [start + n * DAY for n in range(1, 367 * 9)]
    expected = [day for day in days if written.on(day)]
    found: list[date] = []
    moment = datetime(start.year, start.month, start.day, 23, 59, 59, tzinfo=UTC)
    while len(found) <= 40:
        tick = cron.next(moment)
        if tick is None or tick.date() > days[-1]:
            break
        found.append(tick.date())
        moment = tick.replace(hour=23, minute=59, second=59)
    assert found == expected[: len(found)]
    assert len(found) == min(41, len(expected))


# The oracle


def oracle_knows(written: Written, zone: str, start: datetime, end: datetime) -> bool:
    local = start.astimezone(ZoneInfo(zone))
    if written.fixed:
        return not local.fold
    crossed = [change for change in changes(zone) if start - DAY <= change <= end + DAY]
    return not any(odd(change, ZoneInfo(zone)) for change in crossed)


def compare(written: Written, zone: str, start: datetime, end: datetime, limit: int) -> bool:
    """Compare with cronsim and return whether it could be asked."""
    if not oracle_knows(written, zone, start, end):
        return False
    found = Cron(written.text, zone).ticks(start, end, limit)
    oracle = CronSim(written.text, start.astimezone(ZoneInfo(zone)))
    expected = []
    for tick in itertools.islice(oracle, limit):
        if tick.astimezone(UTC) > end:
            break
        expected.append(tick.astimezone(UTC))
    assert found == expected, f"{written.text} in {zone} from {start}"
    return True


@given(expressions(plain=True), places(), st.integers(-200_000, 20_000))
def test_cronsim_agrees(written: Written, place: tuple[str, datetime], offset: int) -> None:
    zone, moment = place
    rule(written, zone)
    start = moment + offset * SECOND
    assume(compare(written, zone, start, start + 4 * 365 * DAY, 50))


SOAKED = (
    "30 2 * * *",
    "0 0 * * *",
    "15,45 0-3 * * *",
    "0 0-23/2 * * *",
    "59 23 * * *",
    "*/15 * * * *",
    "7 * * * *",
    "*/20 0-3 * * *",
    "0 */3 * * *",
    "0 3 L * *",
    "30 1 * * 0L",
    "0 2 1-7,L * 0",
)


def read(text: str) -> Written:
    """Return an expression of the soak; the oracle looks only at its stars."""
    minute, hour, day, month, weekday = (Column(column, never) for column in text.split())
    return Written(ZERO, minute, hour, day, month, weekday, six=False)


@pytest.mark.soak
@pytest.mark.parametrize("zone", ZONES)
def test_cronsim_agrees_around_every_change(zone: str) -> None:
    dice = random.Random(zone)  # noqa: S311 - not a secret
    for change in changes(zone):
        for text in SOAKED:
            start = change - dice.randrange(200_000) * SECOND
            compare(read(text), zone, start, change + 3 * DAY, 40)


# What holds for every rule


def rules() -> st.SearchStrategy[Cron | Interval]:
    def build(written: Written, zone: str) -> Cron:
        return rule(written, zone)

    crons = st.builds(build, expressions() | expressions(six=True), zones())
    return crons | st.builds(Interval, st.floats(0.05, 1e7), moments())


def moments() -> st.SearchStrategy[datetime]:
    near = st.builds(
        lambda place, offset: place[1] + offset, places(), st.timedeltas(-2 * HOUR, 2 * HOUR)
    )
    return near | st.integers(-FAR, FAR).map(lambda seconds: FIRST + seconds * SECOND)


@given(rules(), moments(), st.floats(0, 1, exclude_max=True))
def test_next_is_later_and_the_same_from_everywhere_before_it(
    rule: Cron | Interval, moment: datetime, share: float
) -> None:
    tick = rule.next(moment)
    assert tick is not None
    assert moment < tick
    between = moment + (tick - moment) * share
    assert rule.next(min(between, tick - timedelta(microseconds=1))) == tick
    following = rule.next(tick)
    assert following is not None
    assert tick < following
    if isinstance(rule, Cron):
        assert tick.microsecond == 0
    else:
        assert following - tick == timedelta(seconds=float(str(rule.every)))


@given(expressions(), st.sampled_from(NOTED), moments())
def test_an_expression_means_the_same_however_it_is_written(
    written: Written, zone: str, moment: datetime
) -> None:
    cron = rule(written, zone)
    assert Cron(str(cron), zone) == cron
    for text in (
        written.text.upper(),
        written.text.lower(),
        f"\t{written.text} ",
        f"0 {written.text}",
    ):
        assert Cron(text, zone).next(moment) == cron.next(moment)


@given(st.text(alphabet="0123456789*/-,?L#@ MONSUNJAN", max_size=30) | st.text(max_size=20))
def test_any_text_is_a_rule_or_one_error(text: str) -> None:
    try:
        cron = Cron(text)
    except ConfigError as error:
        assert str(error).startswith("cron: ")  # noqa: PT017 - both outcomes are right
    else:
        assert Cron(cron.expression) == cron


@given(rules(), moments(), st.lists(st.timedeltas(-HOUR, 9 * HOUR), max_size=6), st.integers(1, 9))
def test_under_all_every_tick_is_due_once(
    rule: Cron | Interval, begin: datetime, waits: list[timedelta], limit: int
) -> None:
    last, now, found = due(rule, None, begin, "all", limit).last, begin, []
    for wait in waits:
        now += wait
        for _ in range(20):
            ticks, following = due(rule, last, now, "all", limit)
            assert len(ticks) <= limit
            assert following >= last
            found += ticks
            last = following
    assert found == rule.ticks(begin, last, 10**6)
    if found:
        assert last == found[-1]


@given(rules(), moments(), st.timedeltas(timedelta(), 30 * DAY), st.floats(0, 1e5))
def test_under_one_and_skip_only_the_newest_is_due(
    rule: Cron | Interval, last: datetime, absence: timedelta, on_time: float
) -> None:
    now = last + absence
    answer = due(rule, last, now, "one", 1)
    policy: CatchUp = "skip"
    skipping = due(rule, last, now, policy, 1, on_time=on_time)
    if not answer.ticks:
        tick = rule.next(last)
        assert tick is None or tick > now
        assert answer == skipping == Due([], last)
        return
    (newest,) = answer.ticks
    assert last < newest <= now
    following = rule.next(newest)
    assert following is None or following > now
    assert rule.next(newest - timedelta(microseconds=1)) == newest
    assert answer.last == skipping.last == newest
    late = (now - newest).total_seconds()
    assert skipping.ticks == ([newest] if late <= on_time else [])
