"""Limiters under whatever Hypothesis thinks of: acquire, wait, give back, in any order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

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
from plugq.protocols import Limiter, PluginContext, Step

START = 1_700_000_000.0
PLENTY = 10**12

limits = st.integers(1, 12) | st.integers(1, 10_000) | st.just(1_000_000_000)
windows = st.sampled_from([0.05, 0.1, 1.0, 7.0, 60.0, 3600.0]) | st.floats(0.05, 1e6)
rates = st.sampled_from([1e-6, 0.1, 1 / 3, 1.0, 10.0, 1e9]) | st.floats(0.01, 1e4)

rate_options = st.builds(RateOptions, limit=limits, per=windows)
delay_options = st.builds(DelayOptions, every=windows)
spaced_options = st.builds(SpacedOptions, limit=limits, per=windows)
bucket_options = st.builds(TokenBucketOptions, rate=rates, burst=limits)

context = PluginContext()
limiters: st.SearchStrategy[Limiter] = st.one_of(
    rate_options.map(lambda options: RateLimiter(options, context)),
    delay_options.map(lambda options: DelayLimiter(options, context)),
    spaced_options.map(lambda options: SpacedLimiter(options, context)),
    bucket_options.map(lambda options: TokenBucketLimiter(options, context)),
)
chains = st.lists(limiters, min_size=1, max_size=4).map(Chain)

#: Wait a share of the window, up to or just before the time to try again, or not at all.
waits = st.floats(0.0, 2.0) | st.floats(0.0, 0.01) | st.sampled_from(["due", "soon", 0.0])
acts = st.lists(st.tuples(waits, st.integers(1, 8) | st.just(PLENTY)), max_size=60)


class Life:
    """Acts on one limiter and remembers what was granted."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.now = START
        self.state: bytes | None = None
        self.retry_at: float | None = None
        self.kept: list[tuple[float, int]] = []

    def live(self, acts: Sequence[tuple[float | str, int]]) -> list[tuple[float, int]]:
        for share, want in acts:
            self.wait(share)
            self.acquire(want)
        return self.kept

    def wait(self, share: float | str) -> None:
        if isinstance(share, float):
            self.now += share * min(self.limiter.window, 1e6)
        elif self.retry_at is not None:
            soon = math.nextafter(self.retry_at, 0.0)
            self.now = max(self.now, self.retry_at if share == "due" else soon)

    def acquire(self, want: int) -> Step:
        step = self.limiter.step(self.state, want, self.now)
        self.state, self.retry_at = step.state, step.retry_at
        if step.granted:
            self.kept.append((step.at, step.granted))
        return step


def assert_bounded(kept: Sequence[tuple[float, int]], most: Callable[[Fraction], int]) -> None:
    """Look at every window that begins and ends with a grant; exactly, without rounding."""
    for begin, (first, _) in enumerate(kept):
        total = 0
        for last, number in kept[begin:]:
            total += number
            assert total <= most(Fraction(last) - Fraction(first))


@given(rate_options, acts)
def test_rate_holds_in_every_window(
    options: RateOptions, acts: list[tuple[float | str, int]]
) -> None:
    kept = Life(RateLimiter(options, context)).live(acts)
    recent: deque[tuple[float, int]] = deque()
    for at, number in kept:
        recent.append((at, number))
        while at - recent[0][0] >= options.per:
            recent.popleft()
        assert sum(each for _, each in recent) <= options.limit
    assert_bounded(
        kept, lambda span: options.limit * (math.floor(span / Fraction(options.per)) + 1)
    )


@given(delay_options, acts)
def test_delay_holds_between_any_two(
    options: DelayOptions, acts: list[tuple[float | str, int]]
) -> None:
    kept = Life(DelayLimiter(options, context)).live(acts)
    assert_bounded(kept, lambda span: math.floor(span / Fraction(options.every)) + 1)


@given(spaced_options, acts)
def test_spaced_holds_between_any_two(
    options: SpacedOptions, acts: list[tuple[float | str, int]]
) -> None:
    kept = Life(SpacedLimiter(options, context)).live(acts)
    spacing = Fraction(options.per) / options.limit
    assert_bounded(kept, lambda span: math.floor(span / spacing) + 1)


@given(bucket_options, acts)
def test_token_bucket_holds_over_any_time(
    options: TokenBucketOptions, acts: list[tuple[float | str, int]]
) -> None:
    kept = Life(TokenBucketLimiter(options, context)).live(acts)
    per_second = Fraction(repr(options.rate))
    assert_bounded(kept, lambda span: math.floor(options.burst + per_second * span))


@given(
    bucket_options,
    st.floats(0.0, 3.0),
    acts,
    st.lists(st.floats(0.0, 1.0), min_size=1, max_size=7),
)
def test_a_widened_token_bucket_holds_for_starts_that_come_late(
    options: TokenBucketOptions,
    late: float,
    acts: list[tuple[float | str, int]],
    shares: list[float],
) -> None:
    kept = Life(TokenBucketLimiter(options, context).widened(late)).live(acts)
    exact = [
        (Fraction(at) + Fraction(late) * Fraction(shares[index % len(shares)]), number)
        for index, (at, number) in enumerate(kept)
    ]
    starts = sorted(exact)
    for begin, (first, _) in enumerate(starts):
        total = 0
        for last, number in starts[begin:]:
            total += number
            assert total <= options.burst + Fraction(repr(options.rate)) * (last - first)


@given(limiters | chains, acts)
def test_retry_at_is_neither_too_early_nor_too_late(
    limiter: Limiter, acts: list[tuple[float | str, int]]
) -> None:
    life = Life(limiter)
    life.live(acts)
    for _ in range(5):
        step = life.acquire(PLENTY)
        assert step.retry_at is not None
        assert step.retry_at > step.at
        soon = math.nextafter(step.retry_at, 0.0)
        assert limiter.step(step.state, 1, soon).granted == 0
        assert limiter.step(step.state, 1, step.retry_at).granted == 1
        life.now = step.retry_at


@given(limiters | chains, acts, st.floats(0.0, 3.0))
def test_a_clock_that_was_set_back_gains_nothing(
    limiter: Limiter, acts: list[tuple[float | str, int]], back: float
) -> None:
    life = Life(limiter)
    life.live(acts)
    now = limiter.step(life.state, PLENTY, life.now)
    earlier = limiter.step(life.state, PLENTY, life.now - back * limiter.window)
    assert earlier.granted <= now.granted
    assert earlier.at <= now.at


@given(st.lists(limiters, min_size=2, max_size=4), acts)
def test_a_chain_leaks_nothing(members: list[Limiter], acts: list[tuple[float | str, int]]) -> None:
    """Each member ends as one that was asked alone for what the chain granted."""
    chain = Chain(members)
    life, alone = Life(chain), [Life(member) for member in members]
    for share, want in acts:
        life.wait(share)
        granted = life.acquire(want).granted
        for each in alone:
            each.now = life.now
            assert each.acquire(granted).granted == granted
        assert all(each.kept == life.kept for each in alone)
    budgets = [each.acquire(PLENTY).granted for each in alone]
    assert life.acquire(PLENTY).granted == min(budgets)


@given(limiters, acts)
def test_the_state_is_small(limiter: Limiter, acts: list[tuple[float | str, int]]) -> None:
    life = Life(limiter)
    life.live(acts * 5)
    assert len(life.state or b"") <= 1600


@given(limiters | chains, st.binary(max_size=80))
def test_any_bytes_are_borne(limiter: Limiter, state: bytes) -> None:
    step = limiter.step(state, 1, START)
    assert step.granted in {0, 1}
