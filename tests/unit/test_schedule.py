"""Schedules: what an expression says, when it ticks where clocks are changed, and what is due."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import pickle
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from plugq.errors import ConfigError
from plugq.schedule import CatchUp, Cron, Due, Interval, due

FAR = datetime(9000, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    """Return a moment; without an offset it is UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def ticks(expression: str, zone: str, after: str, count: int) -> list[str]:
    """Return ticks as the clock of that zone shows them, from a time of that clock on."""
    start = datetime.fromisoformat(after)
    if start.tzinfo is None:
        start = start.replace(tzinfo=ZoneInfo(zone))
    found = Cron(expression, zone).ticks(start, FAR, count)
    assert all(tick.tzinfo is UTC for tick in found)
    return [tick.astimezone(ZoneInfo(zone)).strftime("%Y-%m-%d %H:%M:%S %z") for tick in found]


def days(expression: str, after: str, count: int) -> list[str]:
    return [line[:10] for line in ticks(expression, "UTC", after, count)]


def times(expression: str, count: int) -> list[str]:
    """Return the first times of a day."""
    return [line[11:19] for line in ticks(expression, "UTC", "2025-12-31 23:59:59", count)]


# What an expression says


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("*/20 * * * *", ["00:00:00", "00:20:00", "00:40:00", "01:00:00"]),
        ("5/20 * * * *", ["00:05:00", "00:25:00", "00:45:00", "01:05:00"]),
        ("1,3,2 4 * * *", ["04:01:00", "04:02:00", "04:03:00", "04:01:00"]),
        ("0 8-12/2 * * *", ["08:00:00", "10:00:00", "12:00:00", "08:00:00"]),
        ("0 22-4/2 * * *", ["00:00:00", "02:00:00", "04:00:00", "22:00:00", "00:00:00"]),
        ("58-1 0 * * *", ["00:00:00", "00:01:00", "00:58:00", "00:59:00", "00:00:00"]),
        ("0 7 * * *", ["07:00:00", "07:00:00"]),
        ("*/30 0 0 * * *", ["00:00:00", "00:00:30", "00:00:00"]),
        ("7,52 59 23 * * *", ["23:59:07", "23:59:52", "23:59:07"]),
        ("59 59 23 * * *", ["23:59:59", "23:59:59"]),
        ("05 04 * * *", ["04:05:00", "04:05:00"]),
        ("0,0-0,0/60 0 * * *", ["00:00:00", "00:00:00"]),
        ("@hourly", ["00:00:00", "01:00:00", "02:00:00"]),
        ("@Daily", ["00:00:00", "00:00:00"]),
        ("  */20\t0   * * *\n", ["00:00:00", "00:20:00", "00:40:00", "00:00:00"]),
    ],
)
def test_times_of_the_day(expression: str, expected: list[str]) -> None:
    assert times(expression, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 1 * *", ["2026-02-01", "2026-03-01", "2026-04-01"]),
        ("0 0 31 * *", ["2026-01-31", "2026-03-31", "2026-05-31"]),
        ("0 0 L * *", ["2026-01-31", "2026-02-28", "2026-03-31"]),
        ("0 0 l-3 * ?", ["2026-01-28", "2026-02-25", "2026-03-28"]),
        ("0 0 L-30 * *", ["2026-03-01", "2026-05-01", "2026-07-01"]),
        ("0 0 L-2,2 * *", ["2026-01-02", "2026-01-29", "2026-02-02", "2026-02-26"]),
        ("0 0 30-2 * *", ["2026-01-02", "2026-01-30", "2026-01-31", "2026-02-01", "2026-02-02"]),
        ("0 0 25/3 1 *", ["2026-01-25", "2026-01-28", "2026-01-31", "2027-01-25"]),
        ("0 0 1 JAN,jul *", ["2026-07-01", "2027-01-01"]),
        ("0 0 1 NOV-FEB *", ["2026-02-01", "2026-11-01", "2026-12-01", "2027-01-01"]),
        ("0 0 ? * MON", ["2026-01-05", "2026-01-12"]),
        ("0 0 * * 0", ["2026-01-04", "2026-01-11"]),
        ("0 0 * * 7", ["2026-01-04", "2026-01-11"]),
        ("0 0 * * sun", ["2026-01-04", "2026-01-11"]),
        ("0 0 * * FRI-MON", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05", "2026-01-09"]),
        ("0 0 * * 6-7", ["2026-01-03", "2026-01-04", "2026-01-10"]),
        ("0 0 * * 7-1", ["2026-01-04", "2026-01-05", "2026-01-11"]),
        ("0 0 * * 0-7", ["2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05"]),
        ("0 0 * * 2/5", ["2026-01-04", "2026-01-06", "2026-01-11"]),
        ("0 0 * * 5L", ["2026-01-30", "2026-02-27", "2026-03-27"]),
        ("0 0 * * FRIL", ["2026-01-30", "2026-02-27", "2026-03-27"]),
        ("0 0 * * 7l", ["2026-01-25", "2026-02-22", "2026-03-29"]),
        ("0 0 * * MON#1", ["2026-01-05", "2026-02-02", "2026-03-02"]),
        ("0 0 * * 0#5", ["2026-03-29", "2026-05-31", "2026-08-30"]),
        ("@weekly", ["2026-01-04", "2026-01-11"]),
        ("@monthly", ["2026-02-01", "2026-03-01"]),
        ("@yearly", ["2027-01-01", "2028-01-01"]),
    ],
)
def test_days(expression: str, expected: list[str]) -> None:
    assert days(expression, "2026-01-01", len(expected)) == expected


def test_restricted_days_of_month_and_week_are_alternatives() -> None:
    assert days("0 0 13 * FRI", "2026-03-01", 4) == [
        "2026-03-06",
        "2026-03-13",
        "2026-03-20",
        "2026-03-27",
    ]
    assert days("0 0 5 * FRI", "2026-03-01", 3) == ["2026-03-05", "2026-03-06", "2026-03-13"]


@pytest.mark.parametrize("expression", ["0 0 */2 * FRI", "0 0 1-31/2 * */5"])
def test_a_field_of_days_that_begins_with_a_star_must_match_too(expression: str) -> None:
    found = [datetime.fromisoformat(day) for day in days(expression, "2026-01-01", 40)]
    assert all(day.day % 2 and day.isoweekday() % 7 in {0, 5} for day in found)
    assert (found[0].day, found[1].day) in {(9, 23), (9, 11)}


def test_leap_days() -> None:
    assert days("0 0 29 2 *", "2026-01-01", 3) == ["2028-02-29", "2032-02-29", "2036-02-29"]
    assert days("0 0 29 2 *", "2095-01-01", 3) == ["2096-02-29", "2104-02-29", "2108-02-29"]
    assert days("0 0 29 2 *", "1999-01-01", 2) == ["2000-02-29", "2004-02-29"]
    assert days("0 0 L 2 *", "2098-01-01", 4) == [
        "2098-02-28",
        "2099-02-28",
        "2100-02-28",
        "2101-02-28",
    ]
    # 29 February on a Sunday, across the year that is none.
    assert days("0 0 29 2 */7", "2060-01-01", 3) == ["2060-02-29", "2088-02-29", "2128-02-29"]


def test_a_tick_is_strictly_later() -> None:
    rule = Cron("0 3 * * *")
    assert rule.next(at("2026-01-01 03:00:00")) == at("2026-01-02 03:00:00")
    assert rule.next(at("2026-01-01 02:59:59.999999")) == at("2026-01-01 03:00:00")
    assert rule.next(at("2026-01-01 03:00:00.000001")) == at("2026-01-02 03:00:00")
    assert rule.next(at("2026-01-01 05:00:00+03:00")) == at("2026-01-01 03:00:00")


def test_the_calendar_ends() -> None:
    assert Cron("0 3 * * *").next(datetime.max.replace(tzinfo=UTC)) is None
    assert Cron("0 0 1 1 *").next(at("9999-01-01 00:00:00")) is None
    assert Cron("* * * * *", "Europe/Berlin").next(datetime.max.replace(tzinfo=UTC)) is None
    assert Cron("0 3 * * *", "Europe/Berlin").next(at("9999-12-31 20:00:00")) is None
    assert Cron("*/5 3 * * *", "America/New_York").next(at("9999-12-31 22:00:00")) is None
    assert Cron("59 59 23 31 12 *").next(at("9999-12-31 00:00:00")) == at("9999-12-31 23:59:59")


# What an expression must not say


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("0 25 * * *", "cron: field 2 (hours): 25 is outside 0-23"),
        ("60 * * * *", "cron: field 1 (minutes): 60 is outside 0-59"),
        ("60 * * * * *", "cron: field 1 (seconds): 60 is outside 0-59"),
        ("0 0 24 * * *", "cron: field 3 (hours): 24 is outside 0-23"),
        ("0 0 0 * *", "cron: field 3 (day of month): 0 is outside 1-31"),
        ("0 0 * 13 *", "cron: field 4 (month): 13 is outside 1-12"),
        ("0 0 * * 8", "cron: field 5 (day of week): 8 is outside 0-7"),
        ("0 1-24 * * *", "cron: field 2 (hours): 24 is outside 0-23"),
        (f"0 {'9' * 5000} * * *", f"cron: field 2 (hours): {'9' * 5000} is outside 0-23"),
        ("x * * * *", "cron: field 1 (minutes): expected a number of 0-59, got 'x'"),
        ("-5 * * * *", "cron: field 1 (minutes): expected a number of 0-59, got ''"),
        ("1-2-3 * * * *", "cron: field 1 (minutes): expected a number of 0-59, got '2-3'"),
        ("*-3 * * * *", "cron: field 1 (minutes): expected a number of 0-59, got '*'"),
        ("? * * * *", "cron: field 1 (minutes): expected a number of 0-59, got '?'"),
        ("٣ * * * *", "cron: field 1 (minutes): expected a number of 0-59, got '٣'"),
        ("0 0 ?,3 * *", "cron: field 3 (day of month): expected a number of 1-31, got '?'"),
        ("0 0 15W * *", "cron: field 3 (day of month): expected a number of 1-31, got '15W'"),
        ("0 0 L/2 * *", "cron: field 3 (day of month): expected a number of 1-31, got 'L'"),
        ("0 0 L-31 * *", "cron: field 3 (day of month): 31 is outside 1-30"),
        ("0 0 L-0 * *", "cron: field 3 (day of month): 0 is outside 1-30"),
        ("0 0 * MAI *", "cron: field 4 (month): expected a number of 1-12 or JAN-DEC, got 'MAI'"),
        (
            "0 0 * * JAN",
            "cron: field 5 (day of week): expected a number of 0-7 or SUN-SAT, got 'JAN'",
        ),
        ("0 0 * * 1#6", "cron: field 5 (day of week): 6 is outside 1-5"),
        (
            "0 0 * * L",
            (
                "cron: field 5 (day of week): 'L' needs the day before it, like 5L or FRIL for the"
                " last Friday of the month"
            ),
        ),
        ("1,,2 * * * *", "cron: field 1 (minutes): '1,,2' has an empty item"),
        (
            "*/0 * * * *",
            "cron: field 1 (minutes): expected a step of at least 1 after '/', got '0'",
        ),
        ("*/ * * * *", "cron: field 1 (minutes): expected a step of at least 1 after '/', got ''"),
        (
            "*/1/2 * * * *",
            "cron: field 1 (minutes): expected a step of at least 1 after '/', got '1/2'",
        ),
        (
            "*/90 * * * *",
            (
                "cron: field 1 (minutes): a step of 90 is longer than the field (60 values) and"
                " would start over with it; use an interval"
            ),
        ),
        (
            "* * * *",
            (
                "cron: expected 5 fields (minute, hour, day of month, month, day of week) or 6 with"
                " the second first, got 4 in '* * * *'"
            ),
        ),
        (
            "* * * * * * *",
            (
                "cron: expected 5 fields (minute, hour, day of month, month, day of week) or 6 with"
                " the second first, got 7 in '* * * * * * *'"
            ),
        ),
        (
            "@reboot",
            (
                "cron: unknown alias '@reboot'; there are @yearly, @annually, @monthly, @weekly,"
                " @daily, @midnight, @hourly"
            ),
        ),
        (7, "cron: expected text such as '0 3 * * *', got 7"),
    ],
)
def test_what_can_not_be_read_is_told_by_its_place(expression: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cron(expression)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "expression",
    [
        "0 0 31 2 *",
        "0 0 30 FEB *",
        "0 0 31 4,6,9,11 *",
        "0 0 L-29 2 *",
        "0 0 L-30 4 ?",
        "0 0 */15 * MON#2",
        "0 0 0 31 2 *",
    ],
)
def test_what_never_comes_is_refused(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"never comes: the months of field \d have no day"):
        Cron(expression)


@pytest.mark.parametrize(
    "expression", ["0 0 31 2,3 *", "0 0 31 2 MON", "0 0 L-28 2 *", "0 0 * 2 MON#5", "0 0 29 2 *"]
)
def test_what_comes_rarely_is_not(expression: str) -> None:
    assert Cron(expression).next(at("2026-01-01")) is not None


def test_what_a_time_zone_always_leaves_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="never comes in Europe/Berlin: the clock is put forward"):
        Cron("*/10 2 * 3 SUNL", "Europe/Berlin")
    Cron("*/10 2 * 3 SUNL", "UTC")
    assert ticks("0-59/10 2 * 3 SUNL", "Europe/Berlin", "2026-01-01", 2) == [
        "2026-03-29 03:00:00 +0200",
        "2027-03-28 03:00:00 +0200",
    ]


@pytest.mark.parametrize("zone", ["Berlin", "../etc", "", "Europe", 3, None])
def test_unknown_time_zones(zone: Any) -> None:
    with pytest.raises(
        ConfigError, match=re.escape(f"timezone: unknown time zone {zone!r}; write")
    ):
        Cron("* * * * *", zone)


@pytest.mark.parametrize("rule", [Cron("* * * * *"), Interval(60)])
def test_moments_are_aware(rule: Cron | Interval) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001 - that is the point
    with pytest.raises(ValueError, match=r"^after: .* has no time zone"):
        rule.next(naive)
    with pytest.raises(ValueError, match=r"^until: .* has no time zone"):
        rule.ticks(at("2026-01-01"), naive, 1)
    with pytest.raises(ValueError, match=r"^now: .* has no time zone"):
        due(rule, None, naive, "one", 1)
    with pytest.raises(ValueError, match=r"^last: .* has no time zone"):
        due(rule, naive, at("2026-01-01"), "one", 1)
    with pytest.raises(TypeError, match=r"^after: expected a datetime"):
        rule.next(0)  # type: ignore[arg-type]


def test_rules_are_values() -> None:
    rule = Cron(" 0  3 * * *", "Europe/Berlin")
    assert rule == Cron("0 3 * * *", "Europe/Berlin") != Cron("0 3 * * *")
    assert str(rule) == "0 3 * * *"
    assert repr(rule) == "Cron(expression='0 3 * * *', timezone='Europe/Berlin')"
    assert len({rule, Cron("0 3 * * *", "Europe/Berlin"), Interval("1m"), Interval(60)}) == 2
    for value in (rule, Interval("1m")):
        for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):  # noqa: S301
            assert twin == value
            assert twin.next(at("2026-01-01")) == value.next(at("2026-01-01"))
        with pytest.raises(AttributeError):
            setattr(value, dataclasses.fields(value)[0].name, "1 1 1 1 1")


# Where clocks are changed


@pytest.mark.parametrize(
    ("zone", "expression", "after", "expected"),
    [
        # 2:00 becomes 3:00.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-03-28 12:00",
            ["2026-03-29 03:00:00 +0200", "2026-03-30 02:30:00 +0200"],
        ),
        (
            "Europe/Berlin",
            "0,20,40 2,3 * * *",
            "2026-03-28 12:00",
            [
                "2026-03-29 03:00:00 +0200",
                "2026-03-29 03:20:00 +0200",
                "2026-03-29 03:40:00 +0200",
                "2026-03-30 02:00:00 +0200",
            ],
        ),
        (
            "Europe/Berlin",
            "*/30 * * * *",
            "2026-03-29 01:00",
            ["2026-03-29 01:30:00 +0100", "2026-03-29 03:00:00 +0200", "2026-03-29 03:30:00 +0200"],
        ),
        (
            "Europe/Berlin",
            "*/30 2 * * *",
            "2026-03-28 02:00",
            ["2026-03-28 02:30:00 +0100", "2026-03-30 02:00:00 +0200"],
        ),
        (
            "Europe/Berlin",
            "0 */2 * * *",
            "2026-03-29 00:00",
            ["2026-03-29 04:00:00 +0200", "2026-03-29 06:00:00 +0200"],
        ),
        # 3:00 becomes 2:00.
        (
            "Europe/Berlin",
            "30 2 * * *",
            "2026-10-24 12:00",
            ["2026-10-25 02:30:00 +0200", "2026-10-26 02:30:00 +0100"],
        ),
        (
            "Europe/Berlin",
            "*/30 2 * * *",
            "2026-10-24 12:00",
            [
                "2026-10-25 02:00:00 +0200",
                "2026-10-25 02:30:00 +0200",
                "2026-10-25 02:00:00 +0100",
                "2026-10-25 02:30:00 +0100",
                "2026-10-26 02:00:00 +0100",
            ],
        ),
        (
            "Europe/Berlin",
            "0 * * * *",
            "2026-10-25 01:30",
            ["2026-10-25 02:00:00 +0200", "2026-10-25 02:00:00 +0100", "2026-10-25 03:00:00 +0100"],
        ),
        (
            "Europe/Berlin",
            "0 0-23 * * *",
            "2026-10-25 01:30",
            ["2026-10-25 02:00:00 +0200", "2026-10-25 03:00:00 +0100"],
        ),
        (
            "America/New_York",
            "15 2 * * *",
            "2026-03-07 12:00",
            ["2026-03-08 03:00:00 -0400", "2026-03-09 02:15:00 -0400"],
        ),
        (
            "America/New_York",
            "15 1 * * *",
            "2026-10-31 12:00",
            ["2026-11-01 01:15:00 -0400", "2026-11-02 01:15:00 -0500"],
        ),
        # 2:00 becomes 2:30, and 2:00 becomes 1:30.
        (
            "Australia/Lord_Howe",
            "15 2 * * *",
            "2026-10-03 12:00",
            ["2026-10-04 02:30:00 +1100", "2026-10-05 02:15:00 +1100"],
        ),
        (
            "Australia/Lord_Howe",
            "15,45 2 * * *",
            "2026-10-03 12:00",
            ["2026-10-04 02:30:00 +1100", "2026-10-04 02:45:00 +1100", "2026-10-05 02:15:00 +1100"],
        ),
        (
            "Australia/Lord_Howe",
            "15 * * * *",
            "2026-10-04 01:00",
            ["2026-10-04 01:15:00 +1030", "2026-10-04 03:15:00 +1100"],
        ),
        (
            "Australia/Lord_Howe",
            "*/10 5 * * *",
            "2026-10-04 00:00",
            ["2026-10-04 05:00:00 +1100", "2026-10-04 05:10:00 +1100"],
        ),
        (
            "Australia/Lord_Howe",
            "*/20 * * * *",
            "2026-04-05 01:30",
            [
                "2026-04-05 01:40:00 +1100",
                "2026-04-05 01:40:00 +1030",
                "2026-04-05 02:00:00 +1030",
            ],
        ),
        (
            "Australia/Lord_Howe",
            "45 1 * * *",
            "2026-04-04 12:00",
            ["2026-04-05 01:45:00 +1100", "2026-04-06 01:45:00 +1030"],
        ),
        # Ramadan of 2026: 3:00 becomes 2:00 on 15 February, 2:00 becomes 3:00 on 22 March.
        (
            "Africa/Casablanca",
            "30 2 * * *",
            "2026-02-14 12:00",
            ["2026-02-15 02:30:00 +0100", "2026-02-16 02:30:00 +0000"],
        ),
        (
            "Africa/Casablanca",
            "30 2 * * *",
            "2026-03-21 12:00",
            ["2026-03-22 03:00:00 +0100", "2026-03-23 02:30:00 +0100"],
        ),
        # 30 December 2011 was left out.
        (
            "Pacific/Apia",
            "0 3 * * *",
            "2011-12-29 00:00",
            ["2011-12-29 03:00:00 -1000", "2011-12-31 00:00:00 +1400", "2011-12-31 03:00:00 +1400"],
        ),
        (
            "Pacific/Apia",
            "0 3 30 12 *",
            "2011-01-01 00:00",
            ["2011-12-31 00:00:00 +1400", "2012-12-30 03:00:00 +1400"],
        ),
        (
            "Pacific/Apia",
            "0 * 30 12 *",
            "2011-01-01 00:00",
            ["2012-12-30 00:00:00 +1400", "2012-12-30 01:00:00 +1400"],
        ),
        (
            "Pacific/Apia",
            "*/30 * * * *",
            "2011-12-29 23:00",
            ["2011-12-29 23:30:00 -1000", "2011-12-31 00:00:00 +1400"],
        ),
        # 24:00 becomes 1:00: midnight is left out.
        (
            "America/Santiago",
            "0 0 * * *",
            "2026-09-05 12:00",
            ["2026-09-06 01:00:00 -0300", "2026-09-07 00:00:00 -0300"],
        ),
        (
            "America/Santiago",
            "*/20 0 * * *",
            "2026-09-05 12:00",
            ["2026-09-07 00:00:00 -0300", "2026-09-07 00:20:00 -0300"],
        ),
        # The change of 1972 was by an odd 44 min 30 s.
        (
            "Africa/Monrovia",
            "20 0 * * *",
            "1972-01-06 12:00",
            ["1972-01-07 00:44:30 +0000", "1972-01-08 00:20:00 +0000"],
        ),
    ],
)
def test_changed_clocks(zone: str, expression: str, after: str, expected: Sequence[str]) -> None:
    assert ticks(expression, zone, after, len(expected)) == expected


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("2026-10-25 02:10+02:00", "2026-10-25 02:30:00 +0200"),
        # The second time that the clock shows 2:10, 2:30 was already.
        ("2026-10-25 02:10+01:00", "2026-10-26 02:30:00 +0100"),
        ("2026-10-25 02:59:59.5+02:00", "2026-10-26 02:30:00 +0100"),
        ("2026-03-29 01:59:59.999999+01:00", "2026-03-29 03:00:00 +0200"),
        ("2026-03-29 03:00+02:00", "2026-03-30 02:30:00 +0200"),
    ],
)
def test_fixed_times_asked_for_inside_a_change(after: str, expected: str) -> None:
    assert ticks("30 2 * * *", "Europe/Berlin", after, 1) == [expected]


def test_fixed_times_right_behind_a_repeated_hour() -> None:
    assert ticks("0 2,3 * * *", "Europe/Berlin", "2026-10-25 02:10+01:00", 1) == [
        "2026-10-25 03:00:00 +0100"
    ]


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("2026-10-25 02:10+02:00", "2026-10-25 02:30:00 +0200"),
        ("2026-10-25 02:30:00.25+02:00", "2026-10-25 02:00:00 +0100"),
        ("2026-10-25 02:10+01:00", "2026-10-25 02:30:00 +0100"),
        ("2026-10-25 02:30+01:00", "2026-10-25 03:00:00 +0100"),
    ],
)
def test_repeating_times_asked_for_inside_a_change(after: str, expected: str) -> None:
    assert ticks("*/30 * * * *", "Europe/Berlin", after, 1) == [expected]


def test_six_fields_follow_the_rule_of_five() -> None:
    assert ticks("15 30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", 2) == [
        "2026-03-29 03:00:00 +0200",
        "2026-03-30 02:30:15 +0200",
    ]
    assert ticks("15 30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", 2) == [
        "2026-10-25 02:30:15 +0200",
        "2026-10-26 02:30:15 +0100",
    ]
    # Seconds that begin with a star make it one that repeats.
    assert ticks("*/30 30 2 * * *", "Europe/Berlin", "2026-10-24 12:00", 5) == [
        "2026-10-25 02:30:00 +0200",
        "2026-10-25 02:30:30 +0200",
        "2026-10-25 02:30:00 +0100",
        "2026-10-25 02:30:30 +0100",
        "2026-10-26 02:30:00 +0100",
    ]


# Intervals


def test_an_interval_ticks_on_a_grid() -> None:
    rule = Interval("10m")
    assert rule.next(at("2026-01-01 00:00:00")) == at("2026-01-01 00:10:00")
    assert rule.next(at("2026-01-01 00:09:59.999999")) == at("2026-01-01 00:10:00")
    assert rule.next(at("2026-01-01 00:10:00.000001")) == at("2026-01-01 00:20:00")


def test_an_interval_counts_from_its_anchor_in_both_directions() -> None:
    berlin = datetime(2026, 3, 29, 1, 30, tzinfo=ZoneInfo("Europe/Berlin"))
    rule = Interval(timedelta(hours=7), anchor=berlin)
    assert rule.anchor == at("2026-03-29 00:30:00")
    assert rule.anchor.tzinfo is UTC
    assert rule.next(berlin) == at("2026-03-29 07:30:00")
    assert rule.next(at("2026-03-28 17:29:59")) == at("2026-03-28 17:30:00")
    assert rule.next(at("2026-03-28 17:30:00")) == at("2026-03-29 00:30:00")


def test_an_interval_does_not_drift() -> None:
    rule = Interval(0.1)
    assert rule.every == 0.1
    start = at("2026-01-01")
    assert len(rule.ticks(start, start + timedelta(hours=1), 10**6)) == 36_000
    assert rule.next(at("2060-01-01 00:00:00.05")) == at("2060-01-01 00:00:00.1")


def test_an_interval_ends_with_the_calendar() -> None:
    assert Interval("1d").next(at("9999-12-31")) is None
    assert Interval("36000d").next(at("9990-01-01")) is None


@pytest.mark.parametrize(
    ("every", "anchor", "message"),
    [
        ("10ms", None, "interval: expected at least 0.05 s, got '10ms'"),
        (0, None, "interval: expected at least 0.05 s, got 0"),
        (-1, None, "interval: a duration is finite and not negative, got -1"),
        (1e15, None, "interval: a duration is at most 100 years, got 1000000000000000.0"),
        ("often", None, "interval: 'often' is no duration; write it like '30s', '5m' or '1h30m'"),
        (None, None, "interval: expected seconds, a timedelta or text such as '30s', got None"),
        (60, "2026", "interval: anchor: expected a datetime with a time zone, got '2026'"),
    ],
)
def test_intervals_that_are_none(every: Any, anchor: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Interval(every, anchor) if anchor else Interval(every)
    assert str(caught.value) == message


# What is due

MINUTE = Cron("* * * * *")


def minutes(*numbers: int) -> list[datetime]:
    return [at("2026-01-01") + timedelta(minutes=number) for number in numbers]


def test_ticks_are_later_than_one_moment_and_not_later_than_the_other() -> None:
    start, end = minutes(1, 4)
    assert MINUTE.ticks(start, end, 10) == minutes(2, 3, 4)
    assert MINUTE.ticks(start, end, 2) == minutes(2, 3)
    assert MINUTE.ticks(end, start, 10) == []
    assert Cron("0 0 31 12 *").ticks(at("9999-12-31"), FAR, 5) == []
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        MINUTE.ticks(start, end, 0)


@pytest.mark.parametrize("policy", ["skip", "one", "all"])
def test_a_new_schedule_counts_from_now(policy: CatchUp) -> None:
    now = at("2026-01-01 12:00:00+02:00")
    assert due(MINUTE, None, now, policy, 5) == Due([], now)
    assert due(MINUTE, None, now, policy, 5).last.tzinfo is UTC


@pytest.mark.parametrize("policy", ["skip", "one", "all"])
def test_nothing_is_due_between_ticks_nor_when_time_went_back(policy: CatchUp) -> None:
    (last,) = minutes(3)
    for passed in (-100, -1, 0, 59.999):
        assert due(MINUTE, last, last + timedelta(seconds=passed), policy, 5) == Due([], last)
    late, later = at("9990-01-01"), at("9999-12-31")
    assert due(Interval("36000d"), late, later, policy, 5) == Due([], late)


@pytest.mark.parametrize("policy", ["skip", "one", "all"])
def test_a_tick_in_time_is_due_under_every_policy(policy: CatchUp) -> None:
    last, tick = minutes(3, 4)
    for late in (0, 0.3, 5):
        now = tick + timedelta(seconds=late)
        assert due(MINUTE, last, now, policy, 5) == Due([tick], tick)
        assert due(MINUTE, tick, now, policy, 5) == Due([], tick)


def test_what_was_missed_is_caught_up_by_policy() -> None:
    last, now = at("2026-01-01 00:00:00"), at("2026-01-01 00:04:20")
    assert due(MINUTE, last, now, "all", 100) == Due(minutes(1, 2, 3, 4), minutes(4)[0])
    assert due(MINUTE, last, now, "one", 100) == Due(minutes(4), minutes(4)[0])
    assert due(MINUTE, last, now, "skip", 100) == Due([], minutes(4)[0])
    assert due(MINUTE, last, now, "skip", 100, on_time=20) == Due(minutes(4), minutes(4)[0])
    assert due(MINUTE, last, now, "skip", 100, on_time=19.9) == Due([], minutes(4)[0])


def test_all_goes_on_where_the_limit_ended() -> None:
    last, now = at("2026-01-01 00:00:00"), at("2026-01-01 00:05:00")
    answers = []
    for _ in range(4):
        ticks, last = due(MINUTE, last, now, "all", 2)
        answers.append(ticks)
    assert answers == [minutes(1, 2), minutes(3, 4), minutes(5), []]
    assert last == now


@pytest.mark.parametrize(
    ("rule", "newest"),
    [
        (Cron("* * * * * *"), "2036-01-01 00:00:00"),
        (Interval("50ms"), "2036-01-01 00:00:00"),
        (Cron("* * 3 * * *", "Europe/Berlin"), "2035-12-31 02:59:59"),
        (Cron("0 0 29 2 *"), "2032-02-29 00:00:00"),
    ],
)
def test_a_long_absence_costs_no_more_than_a_short_one(
    rule: Cron | Interval, newest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = itertools.count()
    real = type(rule).next

    def counted(self: Any, after: datetime) -> datetime | None:
        next(asked)
        return real(self, after)

    monkeypatch.setattr(type(rule), "next", counted)
    answer = due(rule, at("2026-01-01"), at("2036-01-01"), "one", 1)
    assert answer == Due([at(newest)], at(newest))
    assert next(asked) < 150


def test_due_refuses_what_it_does_not_know() -> None:
    now = at("2026-01-01")
    with pytest.raises(ValueError, match="catch_up: expected 'skip', 'one' or 'all', got 'none'"):
        due(MINUTE, now, now, "none", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="limit: expected at least 1, got 0"):
        due(MINUTE, None, now, "one", 0)


def test_moments_of_any_zone_are_the_same() -> None:
    tokyo = timezone(timedelta(hours=9))
    rule = Cron("0 3 * * *", "Europe/Berlin")
    assert rule.next(at("2026-01-01").astimezone(tokyo)) == at("2026-01-01 02:00:00")
