"""One rule for everything that runs: idempotent start and stop, and loops that never end silently.

A :class:`Supervisor` owns the background loops of one service. A loop that raises is started
again after a growing pause, and its failure stays visible in :meth:`Supervisor.state` until the
loop has run undisturbed for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plugq.clock import Clock

logger: logging.Logger = logging.getLogger(__name__)


class Lifecycle(ABC):
    """Idempotent ``start`` and ``stop``, one at a time; subclasses write the two bodies.

    ``start`` after ``stop`` starts anew. When ``_start`` raises, ``_stop`` is run and the error
    goes to the caller. ``stop`` waits for a start that is under way. A stop that was cancelled or
    failed is made again by the next ``stop`` or ``start``, so ``_stop`` must bear to be repeated.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._started = False
        self._half_stopped = False

    @property
    def started(self) -> bool:
        """Whether the service is running."""
        return self._started

    async def start(self) -> None:
        """Start; a second call does nothing."""
        async with self._turn:
            if self._started:
                return
            if self._half_stopped:
                await self._finish_stop()
            try:
                await self._start()
            except BaseException:
                with contextlib.suppress(Exception):
                    await self._finish_stop()
                raise
            self._started = True

    async def stop(self) -> None:
        """Stop and wait until nothing is left running; a second call does nothing."""
        async with self._turn:
            if not self._started and not self._half_stopped:
                return
            self._started = False
            await self._finish_stop()

    async def _finish_stop(self) -> None:
        self._half_stopped = True
        await self._stop()
        self._half_stopped = False

    @abstractmethod
    async def _start(self) -> None: ...

    @abstractmethod
    async def _stop(self) -> None: ...


class Supervisor:
    """Keeps named loops running until :meth:`stop`.

    ``run(name, loop)`` starts ``loop()`` as a task. When it raises, it is started again after a
    pause of full jitter that doubles from ``first`` to ``longest`` seconds; when it returns it is
    done. Failures are counted and shown by :meth:`state`.
    """

    def __init__(self, clock: Clock, *, first: float = 0.1, longest: float = 2.0) -> None:
        self._clock = clock
        self._first = first
        self._longest = longest
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, dict[str, Any]] = {}

    def run(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Start a loop under that name; a running one of the same name stays as it is."""
        running = self._tasks.get(name)
        if running is None or running.done():
            self._tasks[name] = asyncio.create_task(self._supervise(name, loop), name=name)

    async def _supervise(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            began = self._clock.monotonic()
            try:
                await loop()
            except Exception as error:  # noqa: BLE001 - a loop may fail in any way and must go on
                if self._clock.monotonic() - began > self._longest * 5:
                    failures = 0
                failures += 1
                self._failures[name] = {
                    "failures": self._failures.get(name, {}).get("failures", 0) + 1,
                    "error": f"{type(error).__name__}: {error}",
                    "at": self._clock.time(),
                }
                pause = min(self._first * 2 ** (failures - 1), self._longest)
                pause *= random.uniform(0.5, 1)  # noqa: S311 - jitter
                logger.warning("%s failed and restarts in %.1f s: %s", name, pause, error)
                await self._clock.sleep(pause)
            else:
                return

    def state(self) -> dict[str, Any]:
        """Return, by loop, whether it runs and its failures so far."""
        return {
            name: {"running": not task.done(), **self._failures.get(name, {})}
            # A copy: the question may come from another thread.
            for name, task in list(self._tasks.items())
        }

    async def stop(self) -> None:
        """Cancel every loop and wait for all of them."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        await cancel_and_wait(tasks)


class Alarm:
    """Calls ``ring`` once the moment comes that was set last, on an injected clock."""

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._task: asyncio.Task[None] | None = None

    def set(self, at: float | None) -> None:
        """Ring at that moment of the monotonic clock instead; ``None``: not at all."""
        if self._task is not None:
            self._task.cancel()
        self._task = None if at is None else asyncio.create_task(self._wait(at))

    async def stop(self) -> None:
        """Ring no more."""
        task, self._task = self._task, None
        if task is not None:
            await cancel_and_wait([task])

    async def _wait(self, at: float) -> None:
        await self._clock.sleep(max(0.0, at - self._clock.monotonic()))
        self._task = None
        self._ring()


async def cancel_and_wait(tasks: list[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until each has ended, whatever it ends with."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


__all__ = ["Alarm", "Lifecycle", "Supervisor", "cancel_and_wait"]
