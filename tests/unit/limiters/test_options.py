"""The limiters as a configuration names them."""

from __future__ import annotations

from typing import Any

import pytest

from plugq.errors import ConfigError
from plugq.limiters import DelayLimiter, RateLimiter, SpacedLimiter, TokenBucketLimiter
from plugq.protocols import PluginContext
from plugq.registry import Registry

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("name", "options", "kind", "window"),
    [
        ("rate", {"limit": 10, "per": "1m"}, RateLimiter, 60.0),
        ("rate", {"limit": 10, "per": 2}, RateLimiter, 2.0),
        ("delay", {"every": "250ms"}, DelayLimiter, 0.25),
        ("spaced", {"limit": 10, "per": "1s"}, SpacedLimiter, 1.0),
        ("token_bucket", {"rate": 5, "burst": 10}, TokenBucketLimiter, 2.0),
        ("token_bucket", {"rate": 0.5, "burst": 1}, TokenBucketLimiter, 2.0),
    ],
)
def test_a_limiter_is_made_by_its_name(
    name: str, options: dict[str, Any], kind: type[Any], window: float
) -> None:
    limiter = Registry().build("limiter", name, options, PluginContext())
    assert type(limiter) is kind
    assert limiter.window == window
    assert limiter.capabilities == frozenset()
    assert limiter.step(None, 1, NOW).granted == 1


@pytest.mark.parametrize(
    ("name", "options", "line"),
    [
        (
            "rate",
            {"limit": 0, "per": "1s"},
            "limits[0].limit: expected a whole number from 1 to 1e+09, got 0",
        ),
        ("rate", {"limit": 1}, "limits[0].per: this option is required"),
        ("rate", {"limit": 1, "per": "1ms"}, "limits[0].per: expected at least 0.05 s, got '1ms'"),
        ("delay", {"evry": 1}, "limits[0].evry: unknown option, did you mean 'every'?"),
        (
            "delay",
            {"every": "soon"},
            "limits[0].every: expected a duration such as '30s' or '1h30m', got 'soon'",
        ),
        (
            "token_bucket",
            {"rate": 0, "burst": 1},
            "limits[0].rate: expected a number from 1e-06 to 1e+09, got 0",
        ),
    ],
)
def test_a_mistake_is_one_line(name: str, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Registry().build("limiter", name, options, PluginContext(), path="limits[0]")
    assert line in caught.value.problems  # type: ignore[attr-defined]
