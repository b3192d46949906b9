from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from plugq.fields import Reader
from plugq.options import BUILT_IN, SubmitOptions
from plugq.retry import RetryPolicy


def read(**values: Any) -> SubmitOptions:
    reader = Reader()
    options = reader.struct(SubmitOptions, values)
    reader.finish()
    assert options is not None
    return options


def test_a_layer_without_options_sets_nothing() -> None:
    assert SubmitOptions().given() == {}
    assert all(value is msgspec.UNSET for value in msgspec.structs.astuple(SubmitOptions()))


def test_none_is_something_else_than_left_out() -> None:
    options = read(timeout=None, deadline="none", lane="none", result_ttl="forever")
    assert options.given() == {"timeout": None, "deadline": None, "lane": None, "result_ttl": None}


def test_durations_are_seconds() -> None:
    options = read(delay="1m", timeout=timedelta(seconds=5), failure_ttl=60, id_ttl="1h")
    assert options.given() == {"delay": 60.0, "timeout": 5.0, "failure_ttl": 60.0, "id_ttl": 3600.0}


def test_what_holds_where_no_layer_says_otherwise() -> None:
    assert BUILT_IN.given() == {
        "queue": "default",
        "priority": 0,
        "delay": 0.0,
        "deadline": None,
        "timeout": None,
        "retry": RetryPolicy(
            max_attempts=4, backoff="exponential", base=5, factor=4, max_delay=3600, jitter=0.5
        ),
        "lane": None,
        "headers": {},
        "result_ttl": 3600.0,
        "failure_ttl": 604800.0,
        "id_ttl": 600.0,
    }
    unset = {
        name for name in SubmitOptions.__struct_fields__ if getattr(BUILT_IN, name) is msgspec.UNSET
    }
    assert unset == {"max_attempts"}


def test_a_retry_table_is_a_policy() -> None:
    options = read(retry={"max_attempts": 9, "base": "1s", "retry_on": ["ValueError"]})
    assert options.retry == RetryPolicy(max_attempts=9, base=1.0, retry_on=("ValueError",))
    policy = RetryPolicy(max_attempts=2)
    assert read(retry=policy).retry is policy


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"priority": 1001}, "priority: expected a whole number from -1000 to 1000, got 1001"),
        ({"priority": -1001}, "priority: expected a whole number from -1000 to 1000, got -1001"),
        ({"priority": True}, "priority: expected a whole number from -1000 to 1000, got True"),
        (
            {"max_attempts": 0},
            "max_attempts: expected a whole number of at least 1 (1 means no retry), got 0",
        ),
        ({"max_attempts": "none"}, "max_attempts: expected a whole number, got 'none'"),
        ({"max_attempts": None}, "max_attempts: expected a whole number, got None"),
        (
            {"retry": {"max_attempts": 0}},
            "retry.max_attempts: expected an integer of at least 1 (1 means no retry), got 0",
        ),
        ({"retry": {"jitter": 2}}, "retry.jitter: expected a number from 0 to 1, got 2.0"),
        ({"retry": {"factor": 0.5}}, "retry.factor: expected at least 1, got 0.5"),
        (
            {"retry": {"base": "soon"}},
            "retry.base: 'soon' is no duration; write it like '30s', '5m' or '1h30m'",
        ),
        (
            {"retry": {"backoff": "exp"}},
            "retry.backoff: expected 'exponential', 'linear' or 'fixed', got 'exp'",
        ),
        ({"retry": {"retry_on": [3]}}, "retry.retry_on[0]: expected text, got 3"),
        ({"retry": 5}, "retry: expected a table, got 5"),
        (
            {"max_attempts": 2, "retry": {}},
            "max_attempts: give it inside `retry`, or give no `retry` beside it",
        ),
        ({"timeout": 0}, "timeout: expected at least 0.001 s, got 0"),
        ({"deadline": 0}, "deadline: expected at least 0.001 s, got 0"),
        (
            {"delay": "none"},
            "delay: expected a duration such as '30s' or '1h30m', got 'none'",
        ),
        (
            {"id_ttl": "forever"},
            "id_ttl: expected a duration such as '30s' or '1h30m', got 'forever'",
        ),
        ({"queue": ""}, "queue: expected text that is not empty, got ''"),
        ({"lane": ""}, "lane: expected text that is not empty, got ''"),
        ({"headers": {"a": 1}}, "headers.a: expected text, got 1"),
        ({"headers": {"authorization": 1}}, "headers.authorization: expected text, got ***"),
        ({"timout": 1}, "timout: unknown option, did you mean 'timeout'?"),
    ],
)
def test_what_can_not_be(values: dict[str, Any], line: str) -> None:
    reader = Reader()
    assert reader.struct(SubmitOptions, values) is None
    assert reader.problems == [line]
