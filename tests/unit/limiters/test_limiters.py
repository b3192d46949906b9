"""What is special about each limiter, in numbers."""

from __future__ import annotations

import math

import pytest

from plugq.limiters import (
    Chain,
    DelayLimiter,
    DelayOptions,
    RateLimiter,
    RateOptions,
    SpacedLimiter,
    SpacedOptions,
    TokenBucketLimiter,
    TokenBucketOptions,
)
from plugq.protocols import MAX_STATE, Limiter, PluginContext

NOW = 1_700_000_000.0
PLENTY = 10**9


def rate(limit: int, per: float) -> RateLimiter:
    return RateLimiter(RateOptions(limit=limit, per=per), PluginContext())


def delay(every: float) -> DelayLimiter:
    return DelayLimiter(DelayOptions(every=every), PluginContext())


def spaced(limit: int, per: float) -> SpacedLimiter:
    return SpacedLimiter(SpacedOptions(limit=limit, per=per), PluginContext())


def bucket(per_second: float, burst: int) -> TokenBucketLimiter:
    return TokenBucketLimiter(TokenBucketOptions(rate=per_second, burst=burst), PluginContext())


def greedy(limiter: Limiter, seconds: float) -> list[float]:
    """Return when a caller is granted something who comes as soon as there is anything."""
    state, now, moments = None, NOW, []
    while now < NOW + seconds:
        step = limiter.step(state, PLENTY, now)
        moments += [round(now - NOW, 6)] * step.granted
        assert step.retry_at is not None
        state, now = step.state, step.retry_at
    return moments


def test_rate_gives_its_limit_at_once_and_again_after_its_window() -> None:
    assert greedy(rate(3, 2.0), 5.0) == [0.0] * 3 + [2.0] * 3 + [4.0] * 3


def test_rate_slides() -> None:
    limiter, state = rate(3, 2.0), None
    for at in (0.0, 0.5, 1.0):
        state = limiter.step(state, 1, NOW + at).state
    full = limiter.step(state, 1, NOW + 1.5)
    assert (full.granted, full.retry_at) == (0, NOW + 2.0)
    step = limiter.step(state, 5, NOW + 2.5)
    assert (step.granted, step.retry_at) == (2, NOW + 3.0)


def test_delay_counts_from_the_last_start() -> None:
    assert greedy(delay(0.5), 2.0) == [0.0, 0.5, 1.0, 1.5]
    limiter = delay(0.5)
    step = limiter.step(limiter.step(None, 1, NOW).state, 1, NOW + 0.75)
    assert limiter.step(step.state, 1, NOW + 1.0).retry_at == NOW + 1.25


def test_spaced_is_even() -> None:
    assert greedy(spaced(4, 1.0), 1.5) == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]


@pytest.mark.parametrize(("limit", "per"), [(3, 1.0), (7, 0.1), (1_000_000, 3600.0), (11, 1e9)])
def test_so_many_spacings_are_a_window(limit: int, per: float) -> None:
    limiter = spaced(limit, per)
    first = limiter.step(None, 2, 0.0)
    assert first.retry_at is not None
    assert first.retry_at * limit == pytest.approx(per)
    assert limit * first.retry_at >= per


def test_token_bucket_bursts_and_then_keeps_its_rate() -> None:
    assert greedy(bucket(4.0, 3), 1.0) == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75]


def test_token_bucket_is_exact_in_the_long_run() -> None:
    limiter, state, granted = bucket(0.1, 2), None, 0
    for tick in range(10_001):
        step = limiter.step(state, 1, NOW + tick * 0.5)
        state, granted = step.state, granted + step.granted
    assert granted == 2 + 500


@pytest.mark.parametrize("per_second", [10.0, 3.0, 7.0, 0.7, 1000.0])
def test_token_bucket_is_full_again_in_time(per_second: float) -> None:
    limiter = bucket(per_second, 7)
    empty = limiter.step(None, 7, NOW).state
    assert limiter.step(empty, 7, NOW + math.ceil(7 / per_second)).granted == 7


def test_a_million_an_hour_is_kept_in_little() -> None:
    limiter, state, granted, largest = rate(1_000_000, 3600.0), None, 0, 0
    for second in range(3600):
        step = limiter.step(state, 500, NOW + second)
        state, granted = step.state, granted + step.granted
        largest = max(largest, len(state or b""))
    assert granted == 1_000_000
    assert largest < 1600 < MAX_STATE
    assert limiter.step(state, 1, NOW + 3599.0).granted == 0


def test_budget_comes_back_no_later_than_a_hundredth_of_the_window() -> None:
    limiter, state = rate(10_000, 1000.0), None
    kept: list[tuple[float, int]] = []
    for turn in range(2_000):
        now = NOW + turn * 2.5
        step = limiter.step(state, 40, now)
        state = step.state
        younger = sum(number for at, number in kept[-410:] if now - at < 1010.0)
        assert step.granted >= min(40, 10_000 - younger)
        if step.granted:
            kept.append((now, step.granted))


@pytest.mark.parametrize("many", [1, 64, 128])
def test_rate_is_exact_up_to_128_moments(many: int) -> None:
    limiter, state = rate(many, 10.0), None
    for turn in range(3 * many):
        step = limiter.step(state, PLENTY, NOW + turn * 10.0 / many)
        state = step.state
        assert step.granted == (many if turn == 0 else 0 if turn % many else many)
    moments: list[float] = []
    state = None
    for turn in range(5 * many):
        now = NOW + turn * 9.0 / many
        younger = sum(now - at < 10.0 for at in moments)
        step = limiter.step(state, 1, now)
        state = step.state
        assert step.granted == int(younger < many)
        moments += [now] * step.granted


def test_other_options_read_the_state() -> None:
    used = rate(10, 60.0).step(None, 10, NOW).state
    assert rate(20, 60.0).step(used, PLENTY, NOW + 1.0).granted == 10
    lowered = rate(5, 60.0).step(used, 1, NOW + 1.0)
    assert (lowered.granted, lowered.retry_at) == (0, NOW + 60.0)
    # A bucket that was days from being full must not stay closed for days when it is made faster.
    slow = bucket(1e-5, 10).step(None, 10, NOW).state
    assert bucket(10.0, 10).step(slow, PLENTY, NOW + 1.0).granted == 10


@pytest.mark.parametrize(
    ("per_second", "burst", "late", "at_once", "next_in"),
    [
        (10.0, 50, 0.5, 45, 0.1),  # five tokens less, the same rate
        (10.0, 6, 0.5, 1, 0.1),  # the last bucket for which that leaves one
        (10.0, 2, 0.5, 1, 0.3),  # one token; three starts are never nearer than a tenth
        (2.0, 1, 0.5, 1, 1.0),  # one token; two starts are never nearer than half a second
    ],
)
def test_a_widened_bucket_grants_less(
    per_second: float, burst: int, late: float, at_once: int, next_in: float
) -> None:
    step = bucket(per_second, burst).widened(late).step(None, PLENTY, NOW)
    assert step.granted == at_once
    assert step.retry_at is not None
    assert math.isclose(step.retry_at - NOW, next_in, abs_tol=1e-6)


def test_widening_adds_up() -> None:
    for limiter in (rate(3, 1.0), delay(1.0), spaced(3, 1.0), bucket(3.0, 3)):
        twice = limiter.widened(0.25).widened(0.25)
        assert twice.window == limiter.widened(0.5).window
        assert greedy(twice, 5.0) == greedy(limiter.widened(0.5), 5.0)


def test_a_chain_grants_what_all_of_them_have() -> None:
    chain = Chain([rate(5, 1.0), bucket(1.0, 3), delay(0.25)])
    assert chain.window == 3.0
    assert greedy(chain, 2.0) == [0.0, 0.25, 0.5, 1.0]


def test_a_chain_takes_from_all_what_it_grants_and_no_more() -> None:
    members: list[Limiter] = [rate(5, 10.0), bucket(1.0, 3)]
    step = Chain(members).step(None, 4, NOW)
    assert step.granted == 3
    for member in members:
        alone = member.step(None, 3, NOW).state
        assert alone is not None
        assert step.state is not None
        assert alone in step.state


def test_a_chain_tries_again_when_the_last_of_them_is_ready() -> None:
    chain = Chain([delay(2.0), rate(1, 5.0)])
    step = chain.step(None, 1, NOW)
    assert chain.step(step.state, 1, NOW + 1.0).retry_at == NOW + 5.0
    chain = Chain([delay(2.0), rate(10, 5.0)])
    step = chain.step(None, 1, NOW)
    assert chain.step(step.state, 1, NOW + 1.0).retry_at == NOW + 2.0


def test_chains_nest() -> None:
    chain = Chain([Chain([rate(5, 1.0), delay(0.25)]), bucket(1.0, 2)])
    assert greedy(chain, 3.5) == [0.0, 0.25, 1.0, 2.0, 3.0]


def test_an_empty_chain_bounds_nothing() -> None:
    step = Chain([]).step(None, PLENTY, NOW)
    assert (step.granted, step.retry_at) == (PLENTY, None)


def test_a_chain_of_other_limiters_starts_anew() -> None:
    state = Chain([rate(5, 1.0)]).step(None, 5, NOW).state
    assert Chain([rate(5, 1.0), delay(1.0)]).step(state, 1, NOW).granted == 1
    assert Chain([delay(1.0)]).step(state, 1, NOW).granted == 1
