"""Waiting for jobs to end: by notice, and by a slow poll that makes up for a lost one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

from plugq.errors import Unavailable
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

logger: logging.Logger = logging.getLogger(__name__)


class Waiters:
    """Everybody in one client who waits for a job to become final.

    Each job that is waited for is looked at once at the beginning, again when a notice names it,
    and every ``poll`` seconds, or n/1,000 s where n > 1,000 jobs are waited for.
    """

    def __init__(self, broker: Broker, clock: Clock, *, poll: float) -> None:
        self._broker = broker
        self._clock = clock
        self._poll = poll
        #: By job the waits for it, each with the sequence that it was submitted under, if known.
        self._waiting: dict[JobRef, list[tuple[asyncio.Future[JobRecord | None], int]]] = {}
        self._due: dict[JobRef, None] = {}
        self._kick = asyncio.Event()
        self._supervisor = Supervisor(clock)
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Listen for notices."""
        self._unsubscribe = self._broker.subscribe(self._noticed)

    async def stop(self) -> None:
        """End every wait with ``Unavailable``."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._supervisor.stop()
        for waits in self._waiting.values():
            for future, _ in waits:
                if not future.done():
                    future.set_exception(Unavailable("the client was stopped during the wait"))
        self._waiting.clear()

    async def wait(self, ref: JobRef, *, sequence: int = 0) -> JobRecord | None:
        """Return the job once it is final, or ``None`` when there is no such job (any more).

        With a ``sequence`` another job that has the id now is returned in whatever state it is:
        the one that was waited for has ended.
        """
        future: asyncio.Future[JobRecord | None] = asyncio.get_running_loop().create_future()
        wait = (future, sequence)
        self._waiting.setdefault(ref, []).append(wait)
        self._look([ref])
        self._supervisor.run("look", self._look_loop)
        self._supervisor.run("poll", self._poll_loop)
        try:
            return await future
        finally:
            waits = self._waiting.get(ref)
            if waits is not None:
                with contextlib.suppress(ValueError):
                    waits.remove(wait)
                if not waits:
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
                    self._resolve(ref, job)

    async def _poll_loop(self) -> None:
        waited = 0.0
        while self._waiting:
            # In steps: the many for whom a long pause was due may have gone meanwhile.
            await self._clock.sleep(self._poll)
            waited += self._poll
            if waited * CHUNK >= len(self._waiting):
                waited = 0.0
                self._look(list(self._waiting))

    def _resolve(self, ref: JobRef, job: JobRecord | None) -> None:
        ended = job is None or job.state.final
        for future, sequence in self._waiting.get(ref, ()):
            gone = job is not None and sequence not in {0, job.sequence}
            if (ended or gone) and not future.done():
                future.set_result(job)


__all__ = ["Waiters"]
