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
acquire = st.tuples(st.just("acquire"), waits, st.integers(1, 8) | st.just(PLENTY))
refund = st.tuples(st.just("refund"), st.integers(0, 3), st.floats(0.0, 1.0))
acts = st.lists(acquire | acquire | refund, max_size=60)


class Life:
    """Acts on one limiter and remembers what was granted and kept."""

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.now = START
        self.state: bytes | None = None
        self.retry_at: float | None = None
        self.kept: list[tuple[float, int]] = []

    def live(self, acts: Sequence[tuple[str, float | str, float]]) -> list[tuple[float, int]]:
        for kind, first, second in acts:
            if kind == "acquire":
                self.wait(first)
                self.acquire(int(second))
            else:
                self.give_back(int(first), second)
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

    def give_back(self, back: int, share: float) -> None:
        if back < len(self.kept):
            index = len(self.kept) - 1 - back
            at, number = self.kept.pop(index)
            unused = math.ceil(share * number)
            if unused < number:
                self.kept.insert(index, (at, number - unused))
            self.state = self.limiter.refund(self.state, unused, at)


def assert_bounded(kept: Sequence[tuple[float, int]], most: Callable[[Fraction], int]) -> None:
    """Look at every window that begins and ends with a grant; exactly, without rounding."""
    for begin, (first, _) in enumerate(kept):
        total = 0
        for last, number in kept[begin:]:
            total += number
            assert total <= most(Fraction(last) - Fraction(first))


@given(rate_options, acts)
def test_rate_holds_in_every_window(
    options: RateOptions, acts: list[tuple[str, float | str, float]]
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
    options: DelayOptions, acts: list[tuple[str, float | str, float]]
) -> None:
    kept = Life(DelayLimiter(options, context)).live(acts)
    assert_bounded(kept, lambda span: math.floor(span / Fraction(options.every)) + 1)


@given(spaced_options, acts)
def test_spaced_holds_between_any_two(
    options: SpacedOptions, acts: list[tuple[str, float | str, float]]
) -> None:
    kept = Life(SpacedLimiter(options, context)).live(acts)
    spacing = Fraction(options.per) / options.limit
    assert_bounded(kept, lambda span: math.floor(span / spacing) + 1)


@given(bucket_options, acts)
def test_token_bucket_holds_over_any_time(
    options: TokenBucketOptions, acts: list[tuple[str, float | str, float]]
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
    acts: list[tuple[str, float | str, float]],
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
    limiter: Limiter, acts: list[tuple[str, float | str, float]]
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


@given(limiters | chains, acts, st.integers(1, 20) | st.just(PLENTY), st.floats(0.0, 1.0))
def test_a_refund_restores_the_budget_and_not_more(
    limiter: Limiter, acts: list[tuple[str, float | str, float]], want: int, share: float
) -> None:
    life = Life(limiter)
    life.live(acts)
    before = limiter.step(life.state, PLENTY, life.now).granted
    step = limiter.step(life.state, want, life.now)
    assert step.granted == min(want, before)
    unused = math.ceil(share * step.granted)
    state = limiter.refund(step.state, unused, step.at)
    assert limiter.step(state, PLENTY, life.now).granted == before - step.granted + unused


@given(limiters | chains, acts, st.floats(0.0, 3.0))
def test_a_clock_that_was_set_back_gains_nothing(
    limiter: Limiter, acts: list[tuple[str, float | str, float]], back: float
) -> None:
    life = Life(limiter)
    life.live(acts)
    now = limiter.step(life.state, PLENTY, life.now)
    earlier = limiter.step(life.state, PLENTY, life.now - back * limiter.window)
    assert earlier.granted <= now.granted
    assert earlier.at <= now.at


@given(st.lists(limiters, min_size=2, max_size=4), acts)
def test_a_chain_leaks_nothing(
    members: list[Limiter], acts: list[tuple[str, float | str, float]]
) -> None:
    """Each member ends as one that was asked alone for what the chain granted."""
    chain = Chain(members)
    life, alone = Life(chain), [Life(member) for member in members]
    for kind, first, second in acts:
        if kind == "acquire":
            life.wait(first)
            granted = life.acquire(int(second)).granted
            for each in alone:
                each.now = life.now
                assert each.acquire(granted).granted == granted
        else:
            life.give_back(int(first), second)
            for each in alone:
                each.give_back(int(first), second)
        assert all(each.kept == life.kept for each in alone)
    budgets = [each.acquire(PLENTY).granted for each in alone]
    assert life.acquire(PLENTY).granted == min(budgets)


@given(limiters, acts)
def test_the_state_is_small(limiter: Limiter, acts: list[tuple[str, float | str, float]]) -> None:
    life = Life(limiter)
    life.live(acts * 5)
    assert len(life.state or b"") <= 1600


@given(limiters | chains, st.binary(max_size=80))
def test_any_bytes_are_borne(limiter: Limiter, state: bytes) -> None:
    step = limiter.step(state, 1, START)
    assert step.granted in {0, 1}
    limiter.refund(state, 1, START)
