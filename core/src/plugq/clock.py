"""Time as something that is handed in: every wait and every timestamp of plugq asks a clock."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from.

    ``time()`` is for stamps and may be set back by the machine; ``monotonic()`` is for
    intervals; ``sleep()`` returns after that many seconds of this clock and is cancellable.
    """

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC."""
        ...

    def monotonic(self) -> float:
        """Seconds since an arbitrary moment, never running backwards."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once that many seconds have passed on this clock."""
        ...


class SystemClock:
    """The machine's clock."""

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC, as the machine has it."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds on the machine's monotonic clock."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Sleep on the running event loop."""
        await asyncio.sleep(seconds)


__all__ = ["Clock", "SystemClock"]
