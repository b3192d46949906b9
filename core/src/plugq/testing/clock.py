"""A clock that moves only when a test says so."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime
from heapq import heappop, heappush

from plugq.duration import Duration, seconds, timestamp

_START = 1_700_000_000.0
_SECOND = 1_000_000_000


def _nanoseconds(value: float) -> int:
    # Whole nanoseconds add up exactly, so that ten steps of 0.1 s make one second.
    return round(value * _SECOND)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class ManualClock:
    """Time for tests: it stands still until :meth:`advance`.

    ``start`` is the first ``time()``, in seconds since 1970 UTC or as an aware ``datetime``. One
    clock may be used from several threads and event loops at once; a sleeper is woken in its own
    loop, as soon as that loop gets to run.
    """

    def __init__(self, start: float | datetime = _START) -> None:
        self._lock = threading.Lock()
        first = timestamp(start, name="start") if isinstance(start, datetime) else start
        self._wall = _nanoseconds(first)
        self._monotonic = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._entered = 0

    def time(self) -> float:
        """Seconds since 1970-01-01 UTC, as far as the test has come."""
        with self._lock:
            return self._wall / _SECOND

    def monotonic(self) -> float:
        """Seconds that the clock was advanced in all; :meth:`set_back` does not change it."""
        with self._lock:
            return self._monotonic / _SECOND

    @property
    def sleeping(self) -> int:
        """How many callers of :meth:`sleep` wait."""
        with self._lock:
            return sum(not sleeper[2].done() for sleeper in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Return once the clock was advanced by that much; with 0 the other tasks run once."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._entered += 1
            due = self._monotonic + _nanoseconds(seconds)
            heappush(self._sleepers, (due, self._entered, waiter))
        await waiter

    def advance(self, duration: Duration) -> None:
        """Move the clock forward and wake the sleepers whose time has come, soonest first.

        They run when their event loops do, and all find the new time.
        """
        step = _nanoseconds(seconds(duration, name="advance"))
        with self._lock:
            self._wall += step
            self._monotonic += step
            due: list[asyncio.Future[None]] = []
            while self._sleepers and self._sleepers[0][0] <= self._monotonic:
                due.append(heappop(self._sleepers)[2])
        for waiter in due:
            loop = waiter.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, waiter)

    def set_back(self, duration: Duration) -> None:
        """Set the wall clock back, as an administrator might; ``monotonic()`` stays."""
        step = _nanoseconds(seconds(duration, name="set_back"))
        with self._lock:
            self._wall -= step


__all__ = ["ManualClock"]
