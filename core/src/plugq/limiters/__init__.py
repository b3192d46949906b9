"""The limiters that come with plugq, and how several hold at once.

``rate`` bounds every window, ``delay`` and ``spaced`` the gap between two starts, and
``token_bucket`` the average with bursts. :class:`Chain` is what a list of limits becomes.
"""

from plugq.limiters.bucket import TokenBucketLimiter, TokenBucketOptions
from plugq.limiters.chain import Chain
from plugq.limiters.gap import DelayLimiter, DelayOptions, SpacedLimiter, SpacedOptions
from plugq.limiters.rate import RateLimiter, RateOptions
from plugq.limiters.specification import pack_limits, unpack_limits

__all__ = [
    "Chain",
    "DelayLimiter",
    "DelayOptions",
    "RateLimiter",
    "RateOptions",
    "SpacedLimiter",
    "SpacedOptions",
    "TokenBucketLimiter",
    "TokenBucketOptions",
    "pack_limits",
    "unpack_limits",
]
