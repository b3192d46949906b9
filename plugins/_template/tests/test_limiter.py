"""The limiter contract, with and without windows that binary numbers can express."""

from __future__ import annotations

import math

import pytest

from plugq.errors import ConfigError
from plugq.protocols import Limiter, PluginContext
from plugq.testing import LimiterContract
from plugq_template import TemplateLimiter, TemplateLimiterOptions

LIMITER: type[Limiter] = TemplateLimiter


def windows(per: float, seconds: float) -> int:
    """Return how many windows a time can touch; a hair more, because sums are rounded."""
    return math.ceil(seconds / per + 1e-6) + 1 if seconds else 1


class TestTemplateLimiter(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return TemplateLimiter(TemplateLimiterOptions(limit=5, per=2.0), context)

    def most(self, seconds: float) -> int:
        return 5 * windows(2.0, seconds)


class TestShortWindows(LimiterContract):
    def make(self, context: PluginContext) -> Limiter:
        return TemplateLimiter(TemplateLimiterOptions(limit=1000, per="300ms"), context)

    def most(self, seconds: float) -> int:
        return 1000 * windows(0.3, seconds)


def test_a_window_begins_with_the_hour() -> None:
    hourly = TemplateLimiter(TemplateLimiterOptions(limit=2, per="1h"), PluginContext())
    noon = 1_767_268_800.0
    step = hourly.step(None, 5, noon - 1.0)
    assert (step.granted, step.retry_at) == (2, noon)
    assert hourly.step(step.state, 5, noon).granted == 2


def test_a_start_that_may_come_in_the_next_hour_counts_there_too() -> None:
    hourly = TemplateLimiter(TemplateLimiterOptions(limit=2, per="1h"), PluginContext()).widened(1)
    noon = 1_767_268_800.0
    late = hourly.step(None, 1, noon - 0.5)
    assert hourly.step(late.state, 5, noon).granted == 1
    full = hourly.step(late.state, 5, noon - 0.25)
    assert (full.granted, full.retry_at) == (1, noon + 3600)


@pytest.mark.parametrize("per", ["soon", "1ms", -1.0])
def test_a_window_that_can_not_be_is_told(per: float | str) -> None:
    with pytest.raises(ConfigError, match=r"^per: "):
        TemplateLimiter(TemplateLimiterOptions(limit=1, per=per), PluginContext())
