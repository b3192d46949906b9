"""What proves a plugin: the contracts, a clock that tests control, and the pytest plugin.

Nothing here needs pytest to be imported, and only the serde contract needs Hypothesis. The names
are loaded on first use, because pytest loads this package in every session of an environment in
which plugq is installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plugq.testing.clock import ManualClock
    from plugq.testing.contract.scene import UserTransaction
    from plugq.testing.limiter import LimiterContract
    from plugq.testing.requirements import MissingCapability, requires
    from plugq.testing.serde import SerdeContract
    from plugq.testing.storage import StorageContract

_HOMES = {
    "LimiterContract": "plugq.testing.limiter",
    "ManualClock": "plugq.testing.clock",
    "MissingCapability": "plugq.testing.requirements",
    "SerdeContract": "plugq.testing.serde",
    "StorageContract": "plugq.testing.storage",
    "UserTransaction": "plugq.testing.contract.scene",
    "requires": "plugq.testing.requirements",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    return getattr(import_module(home), name)


__all__ = [
    "LimiterContract",
    "ManualClock",
    "MissingCapability",
    "SerdeContract",
    "StorageContract",
    "UserTransaction",
    "requires",
]
