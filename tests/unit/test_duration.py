from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugq.duration import LONGEST, moment, seconds, timestamp

UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
parts = st.lists(
    st.tuples(st.integers(0, 800), st.sampled_from(sorted(UNITS))), min_size=1, max_size=6
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (1, 1.0),
        (0.05, 0.05),
        (timedelta(minutes=1, milliseconds=5), 60.005),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        (" 1 h 30 m ", 5400.0),
        ("250ms", 0.25),
        ("1.5h", 5400.0),
        ("2w1d", 1_296_000.0),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_seconds(value: float | timedelta | str, expected: float) -> None:
    assert seconds(value) == pytest.approx(expected, abs=1e-9)


@given(parts)
def test_text_is_the_sum_of_its_parts(written: list[tuple[int, str]]) -> None:
    text = "".join(f"{number}{unit}" for number, unit in written)
    expected = sum(number * UNITS[unit] for number, unit in written)
    assert seconds(text) == pytest.approx(expected)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(seconds=LONGEST)))
def test_a_timedelta_keeps_its_length(value: timedelta) -> None:
    assert seconds(value) == value.total_seconds()


@given(st.floats(min_value=0, max_value=LONGEST))
def test_a_number_is_seconds_already(value: float) -> None:
    assert seconds(value) == value


@given(st.floats(min_value=LONGEST, exclude_min=True, allow_infinity=False))
def test_a_duration_ends_within_a_hundred_years(value: float) -> None:
    with pytest.raises(ValueError, match="a duration is at most 100 years, got"):
        seconds(value)


@given(st.floats(max_value=0, exclude_max=True) | st.just(float("nan")) | st.just(float("inf")))
def test_a_duration_is_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ValueError, match="a duration is finite and not negative, got"):
        seconds(value)


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        result = seconds(text)
    except ValueError as error:
        line = str(error)
    else:
        line = "duration: "
        assert result >= 0
    assert line.startswith("duration: ")


@pytest.mark.parametrize(
    "text", ["", " ", "30", "s", "30 seconds", "-5s", "1h30", "5s!", "1e3s", "1h-5m", "٣", "nan"]
)
def test_text_that_is_no_duration_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="timeout: ") as raised:
        seconds(text, name="timeout")
    assert str(raised.value) == (
        f"timeout: {text!r} is no duration; write it like '30s', '5m' or '1h30m'"
    )


def test_text_beyond_all_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        seconds("9" * 400 + "w")


@pytest.mark.parametrize("value", [True, False, None, [], b"5s", 1j])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="grace: expected"):
        seconds(value, name="grace")  # type: ignore[arg-type]


def test_a_time_needs_its_zone() -> None:
    berlin = timezone(timedelta(hours=2))
    assert timestamp(datetime(2026, 1, 1, 2, tzinfo=berlin)) == timestamp(
        datetime(2026, 1, 1, tzinfo=UTC)
    )
    with pytest.raises(ValueError, match=r"run_at: .* has no time zone; use datetime\.now\(UTC\)"):
        timestamp(datetime(2026, 1, 1), name="run_at")  # noqa: DTZ001 - that is what is refused
    with pytest.raises(TypeError, match="run_at: expected a datetime with a time zone, got 5"):
        timestamp(5, name="run_at")  # type: ignore[arg-type]


@given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001 - given its zone below
def test_a_time_comes_back(value: datetime) -> None:
    aware = value.replace(tzinfo=UTC)
    assert abs(moment(timestamp(aware)) - aware) <= timedelta(microseconds=2)
    assert moment(0.0).tzinfo is UTC
