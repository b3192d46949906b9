"""Waiting for jobs to end: by notice, and by a slow poll that makes up for a lost one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

from plugq.lifecycle import Supervisor
from plugq.protocols.storage import Finished, Resync

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plugq.clock import Clock
    from plugq.job import JobRecord, JobRef
    from plugq.protocols.broker import Broker
    from plugq.protocols.storage import Notice

#: Jobs that are looked at in one call, and waiters for which one second of polling is enough.
CHUNK = 1000
#: Seconds until jobs are looked at again after a failure to; doubles up to the poll.
FIRST_PAUSE = 0.05

logger = logging.getLogger(__name__)


class Waiters:
    """Everybody in one client who waits for a job to become final.

    Each job that is waited for is looked at once at the beginning, again when a notice names it,
    and every ``poll`` seconds, or n/1,000 s where n > 1,000 jobs are waited for.
    """

    def __init__(self, broker: Broker, clock: Clock, *, poll: float) -> None:
        self._broker = broker
        self._clock = clock
        self._poll = poll
        self._waiting: dict[JobRef, list[asyncio.Future[JobRecord | None]]] = {}
        self._due: dict[JobRef, None] = {}
        self._kick = asyncio.Event()
        self._supervisor = Supervisor(clock)
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Listen for notices."""
        self._unsubscribe = self._broker.subscribe(self._noticed)

    async def stop(self) -> None:
        """End every wait with a cancellation."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._supervisor.stop()
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()
        self._waiting.clear()

    async def wait(self, ref: JobRef) -> JobRecord | None:
        """Return the job once it is final, or ``None`` when there is no such job (any more)."""
        future: asyncio.Future[JobRecord | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(ref, []).append(future)
        self._look([ref])
        self._supervisor.run("look", self._look_loop)
        self._supervisor.run("poll", self._poll_loop)
        try:
            return await future
        finally:
            futures = self._waiting.get(ref)
            if futures is not None:
                with contextlib.suppress(ValueError):
                    futures.remove(future)
                if not futures:
                    del self._waiting[ref]

    def state(self) -> dict[str, Any]:
        """Return how many jobs are waited for."""
        return {"waiting": len(self._waiting), "loops": self._supervisor.state()}

    def _look(self, refs: Sequence[JobRef]) -> None:
        self._due.update(dict.fromkeys(refs))
        self._kick.set()

    def _noticed(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, Finished):
                self._look([ref for ref in notice.refs if ref in self._waiting])
            elif isinstance(notice, Resync) and self._waiting:
                self._look(list(self._waiting))

    async def _look_loop(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await self._kick.wait()
            self._kick.clear()
            while self._due:
                # Taken out first: a notice that comes during the call asks for another look.
                refs = list(itertools.islice(self._due, CHUNK))
                for ref in refs:
                    del self._due[ref]
                try:
                    jobs = await self._broker.get(refs, waiting=True)
                except Exception as error:  # noqa: BLE001 - whatever it is, the waiters stay
                    logger.warning("jobs that are waited for can not be looked at: %s", error)
                    self._look(refs)
                    await self._clock.sleep(pause)
                    pause = min(pause * 2, self._poll)
                    continue
                pause = FIRST_PAUSE
                for ref, job in zip(refs, jobs, strict=True):
                    if job is None or job.state.final:
                        self._resolve(ref, job)

    async def _poll_loop(self) -> None:
        while self._waiting:
            await self._clock.sleep(max(self._poll, len(self._waiting) / CHUNK))
            self._look(list(self._waiting))

    def _resolve(self, ref: JobRef, job: JobRecord | None) -> None:
        for future in self._waiting.pop(ref, []):
            if not future.done():
                future.set_result(job)


__all__ = ["Waiters"]
