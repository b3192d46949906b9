"""Waiting for jobs to end: by notice, and by a slow poll that makes up for a lost one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from plugq.errors import Unavailable
from plugq.lifecycle import Supervisor
from plugq.protocols.storage import Finished, Resync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from plugq.clock import Clock
    from plugq.job import JobRecord, JobRef
    from plugq.protocols.broker import Broker
    from plugq.protocols.storage import Notice

#: Jobs that are looked at in one call, and waiters for which one second of polling is enough.
CHUNK = 1000
#: Seconds until jobs are looked at again after a failure to; doubles up to the poll.
FIRST_PAUSE = 0.05

logger: logging.Logger = logging.getLogger(__name__)


class Endings:
    """Jobs that are waited for together: gives out each as it ends, for one caller at a time."""

    __slots__ = ("_ended", "_error", "_more")

    def __init__(self) -> None:
        self._ended: deque[Ended] = deque()
        self._error: Exception | None = None
        self._more: asyncio.Future[None] | None = None

    def take(self) -> Ended | None:
        """Return the next one if one is at hand."""
        return self._ended.popleft() if self._ended else None

    async def next(self) -> Ended:
        """Return the next one as soon as there is one."""
        while (ended := self.take()) is None:
            if self._error is not None:
                raise self._error
            self._more = asyncio.get_running_loop().create_future()
            await self._more
        return ended

    def add(self, ended: Ended) -> None:
        """Take in one that has ended."""
        self._ended.append(ended)
        self._wake()

    def fail(self, error: Exception) -> None:
        """Raise the error from :meth:`next` once all that has ended is given out."""
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)


@dataclass(frozen=True, eq=False, slots=True)
class Wait:
    """A wait for one job, with the sequence that it was submitted under, or 0 if not known."""

    ref: JobRef
    sequence: int
    endings: Endings


class Ended(NamedTuple):
    """The end of a wait."""

    wait: Wait
    #: ``None`` where there is no such job (any more).
    job: JobRecord | None
    #: :attr:`Waiters.retries` from before the look that found it.
    retries: int


class Waiters:
    """Everybody in one client who waits for a job to become final.

    Each job that is waited for is looked at once at the beginning, again when a notice names it,
    and every ``poll`` seconds, or n/1,000 s where n > 1,000 jobs are waited for.
    """

    def __init__(self, broker: Broker, clock: Clock, *, poll: float) -> None:
        self._broker = broker
        self._clock = clock
        self._poll = poll
        self._waiting: dict[JobRef, list[Wait]] = {}
        self._due: dict[JobRef, None] = {}
        self._kick = asyncio.Event()
        self._supervisor = Supervisor(clock)
        self._unsubscribe: Callable[[], None] | None = None
        self._started = False
        #: Grows with each retry of this client: an end that was seen before may be none any more.
        self.retries = 0

    def start(self) -> None:
        """Listen for notices."""
        self._started = True
        # Of this start's loop, which may be another than that of the one before.
        self._kick = asyncio.Event()
        self._unsubscribe = self._broker.subscribe(self._noticed)

    async def stop(self) -> None:
        """End every wait with ``Unavailable``, and refuse others from now on."""
        self._started = False
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._supervisor.stop()
        for waits in self._waiting.values():
            for wait in waits:
                wait.endings.fail(Unavailable("the client was stopped during the wait"))
        self._waiting.clear()

    async def wait(self, ref: JobRef, *, sequence: int = 0) -> JobRecord | None:
        """Return the job once it is final, or ``None`` when there is no such job (any more).

        With a ``sequence`` another job that has the id now is returned in whatever state it is:
        the one that was waited for has ended.
        """
        with self.together([(ref, sequence)]) as endings:
            return (await endings.next()).job

    @contextlib.contextmanager
    def together(self, jobs: Iterable[tuple[JobRef, int]]) -> Iterator[Endings]:
        """Wait for jobs, each given with its sequence or 0, until the block is left.

        They are given out in the order in which their ends are seen, those that are seen in one
        look in the order in which they ended.

        Raises:
            Unavailable: the client is not started, or was stopped meanwhile.
        """
        if not self._started:
            raise Unavailable("the client is not started, or was stopped before the wait began")
        endings = Endings()
        waits = [Wait(ref, sequence, endings) for ref, sequence in jobs]
        for wait in waits:
            self._waiting.setdefault(wait.ref, []).append(wait)
        if waits:
            self._look([wait.ref for wait in waits])
            self._supervisor.run("look", self._look_loop)
            self._supervisor.run("poll", self._poll_loop)
        try:
            yield endings
        finally:
            for wait in waits:
                self._leave(wait)

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
                # Taken out first: a notice that comes during the call asks for another look, and
                # who comes during it may wait for a job that was not there at its beginning.
                refs = list(itertools.islice(self._due, CHUNK))
                for ref in refs:
                    del self._due[ref]
                refs = [ref for ref in refs if ref in self._waiting]
                waits = [tuple(self._waiting[ref]) for ref in refs]
                if not refs:
                    continue
                retries = self.retries
                try:
                    jobs = await self._broker.get(refs, waiting=True)
                except Exception as error:  # noqa: BLE001 - whatever it is, the waiters stay
                    logger.warning("jobs that are waited for can not be looked at: %s", error)
                    self._look(refs)
                    await self._clock.sleep(pause)
                    pause = min(pause * 2, self._poll)
                    continue
                pause = FIRST_PAUSE
                for job, waiting in sorted(zip(jobs, waits, strict=True), key=_end):
                    self._resolve(waiting, job, retries)

    async def _poll_loop(self) -> None:
        waited = 0.0
        while self._waiting:
            # In steps: the many for whom a long pause was due may have gone meanwhile.
            await self._clock.sleep(self._poll)
            waited += self._poll
            if waited * CHUNK >= len(self._waiting):
                waited = 0.0
                self._look(list(self._waiting))

    def _resolve(self, waits: Sequence[Wait], job: JobRecord | None, retries: int) -> None:
        ended = job is None or job.state.final
        for wait in waits:
            gone = job is not None and wait.sequence not in {0, job.sequence}
            if (ended or gone) and self._leave(wait):
                wait.endings.add(Ended(wait, job, retries))

    def _leave(self, wait: Wait) -> bool:
        """Wait no more, and return whether that was going on."""
        waits = self._waiting.get(wait.ref, [])
        if wait not in waits:
            return False
        waits.remove(wait)
        if not waits:
            del self._waiting[wait.ref]
        return True


def _end(seen: tuple[JobRecord | None, object]) -> float:
    job = seen[0]
    return 0.0 if job is None else job.finished_at or 0.0


__all__ = ["Ended", "Endings", "Wait", "Waiters"]
