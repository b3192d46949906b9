"""Retry: whether and when."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugq.retry import RetryPolicy, RetryTerms


def delays(policy: RetryPolicy, *, draw: float = 0.0) -> list[float]:
    terms = policy.terms()
    return [terms.delay(attempt, draw=lambda: draw) for attempt in range(1, 6)]


def test_exponential_grows_by_its_factor_up_to_the_longest_delay() -> None:
    policy = RetryPolicy(base="5s", factor=4, max_delay="2m", jitter=0)
    assert delays(policy) == [5, 20, 80, 120, 120]


def test_linear_and_fixed() -> None:
    assert delays(RetryPolicy(backoff="linear", base=3, max_delay=10, jitter=0)) == [
        3,
        6,
        9,
        10,
        10,
    ]
    assert delays(RetryPolicy(backoff="fixed", base=timedelta(seconds=2), jitter=0)) == [2] * 5


def test_the_defaults_are_the_documented_ones() -> None:
    policy = RetryPolicy()
    assert policy.max_attempts == 4
    assert delays(policy) == [5, 20, 80, 320, 1280]
    assert delays(policy, draw=1.0) == [2.5, 10, 40, 160, 640]
    assert policy.terms().max_delay == 3600


@given(
    attempt=st.integers(1, 10_000),
    backoff=st.sampled_from(["exponential", "linear", "fixed"]),
    base=st.floats(0, 1e6),
    factor=st.floats(1, 100),
    longest=st.floats(0, 1e6),
    jitter=st.floats(0, 1),
    draw=st.floats(0, 1, exclude_max=True),
)
def test_a_delay_is_never_negative_nor_over_the_longest(  # noqa: PLR0917
    attempt: int,
    backoff: Any,
    base: float,
    factor: float,
    longest: float,
    jitter: float,
    draw: float,
) -> None:
    policy = RetryPolicy(
        backoff=backoff, base=base, factor=factor, max_delay=longest, jitter=jitter
    )
    delay = policy.terms().delay(attempt, draw=lambda: draw)
    full = policy.terms().delay(attempt, draw=lambda: 0.0)
    assert 0 <= delay <= longest
    assert delay >= full * (1 - jitter) - 1e-9


class Odd(LookupError):
    pass


def test_without_a_list_every_error_is_worth_another_attempt() -> None:
    assert RetryTerms().retries(ValueError())


def test_classes_match_by_name_over_the_inheritance() -> None:
    policy = RetryPolicy(retry_on=(LookupError, "ConnectionError")).terms()
    assert policy.retries(KeyError())
    assert policy.retries(Odd())
    assert policy.retries(ConnectionResetError())
    assert not policy.retries(ValueError())


def test_give_up_wins_over_retry() -> None:
    policy = RetryPolicy(retry_on=(LookupError,), give_up_on=(f"{__name__}.Odd",)).terms()
    assert policy.retries(KeyError())
    assert not policy.retries(Odd())


def test_the_name_of_a_module_counts() -> None:
    assert not RetryPolicy(retry_on=("elsewhere.Odd",)).terms().retries(Odd())
    assert RetryPolicy(retry_on=("Odd",)).terms().retries(Odd())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_attempts": 0}, "max_attempts: expected an integer of at least 1 (1 means no retry)"),
        ({"max_attempts": True}, "max_attempts"),
        ({"max_attempts": 2**70}, "max_attempts: expected less than 2,147,483,648"),
        ({"max_attempts": 1.5}, "max_attempts"),
        ({"backoff": "quadratic"}, "backoff: expected exponential, linear or fixed"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
        ({"factor": 0.5}, "factor"),
        ({"base": -1}, "base"),
        ({"base": "soon"}, "base: 'soon' is no duration"),
        ({"max_delay": "x"}, "max_delay"),
        ({"retry_on": (3,)}, "retry_on"),
    ],
)
def test_what_can_not_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=re.escape(message)):
        RetryPolicy(**options)


def test_another_number_of_attempts_leaves_the_rest() -> None:
    policy = RetryPolicy(base=7, retry_on=(KeyError,)).with_max_attempts(9)
    assert policy.max_attempts == 9
    assert policy.base == 7
    assert policy.retry_on == ("builtins.KeyError",)
    with pytest.raises(ValueError, match="max_attempts"):
        policy.with_max_attempts(0)


def test_a_delay_beyond_all_numbers_is_the_longest() -> None:
    terms = RetryPolicy(max_attempts=1000, factor=1e9, jitter=0, max_delay="1h").terms()
    assert terms.delay(900) == 3600


def test_terms_have_the_defaults_of_the_policy() -> None:
    assert RetryTerms() == RetryPolicy().terms()


def test_one_attempt_means_no_retry() -> None:
    assert RetryPolicy(max_attempts=1).terms().max_attempts == 1
    assert RetryPolicy().with_max_attempts(1).terms().max_attempts == 1


def test_the_draw_is_named() -> None:
    with pytest.raises(TypeError):
        RetryTerms().delay(1, lambda: 0.0)  # type: ignore[call-arg]
