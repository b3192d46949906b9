"""Every limiter that comes with plugq, by the contract that plugins are held to."""

from __future__ import annotations

import math

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
from plugq.testing import LimiterContract


def in_windows(limit: int, per: float, seconds: float) -> int:
    return limit * (math.floor(seconds / per) + 1)


class TestRate(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return RateLimiter(RateOptions(limit=5, per=2.0), context)

    def most(self, seconds: float) -> int:
        return in_windows(5, 2.0, seconds)


class TestRateOfOne(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return RateLimiter(RateOptions(limit=1, per=0.1), context)

    def most(self, seconds: float) -> int:
        return in_windows(1, 0.1, seconds)


class TestLargeRate(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return RateLimiter(RateOptions(limit=1_000_000, per=3600.0), context)

    def most(self, seconds: float) -> int:
        return in_windows(1_000_000, 3600.0, seconds)


class TestDelay(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return DelayLimiter(DelayOptions(every=0.3), context)

    def most(self, seconds: float) -> int:
        return in_windows(1, 0.3, seconds)


class TestSpaced(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return SpacedLimiter(SpacedOptions(limit=7, per=1.0), context)

    def most(self, seconds: float) -> int:
        return in_windows(1, 1 / 7, seconds)

    def most_late(self, seconds: float) -> int:
        return in_windows(7, 1.0, seconds)


class TestTokenBucket(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return TokenBucketLimiter(TokenBucketOptions(rate=3.0, burst=10), context)

    def most(self, seconds: float) -> int:
        return math.floor(10 + 3.0 * seconds)


class TestTokenBucketOfOne(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return TokenBucketLimiter(TokenBucketOptions(rate=0.7, burst=1), context)

    def most(self, seconds: float) -> int:
        return math.floor(1 + 0.7 * seconds)


class TestFastTokenBucket(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return TokenBucketLimiter(TokenBucketOptions(rate=5000.0, burst=300), context)

    def most(self, seconds: float) -> int:
        return math.floor(300 + 5000.0 * seconds)


class TestChain(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return Chain(
            [
                TokenBucketLimiter(TokenBucketOptions(rate=3.0, burst=10), context),
                RateLimiter(RateOptions(limit=5, per=2.0), context),
                RateLimiter(RateOptions(limit=30, per=60.0), context),
            ]
        )

    def most(self, seconds: float) -> int:
        return min(
            math.floor(10 + 3.0 * seconds),
            in_windows(5, 2.0, seconds),
            in_windows(30, 60.0, seconds),
        )

    def largest(self) -> int:
        return 3 * MAX_STATE


class TestChainWithDelay(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return Chain(
            [
                RateLimiter(RateOptions(limit=5, per=2.0), context),
                DelayLimiter(DelayOptions(every=0.1), context),
            ]
        )

    def most(self, seconds: float) -> int:
        return min(in_windows(5, 2.0, seconds), in_windows(1, 0.1, seconds))
