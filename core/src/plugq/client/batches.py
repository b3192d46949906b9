"""Batches: the jobs of one key, to be counted, waited for and cancelled together."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.client.holds import Ask, Holds, holders_of, register_of
from plugq.duration import Duration, seconds
from plugq.errors import Conflict, JobNotFound, PlugqError, Unavailable, WaitTimeout
from plugq.job import FINAL, JobState
from plugq.lifecycle import Supervisor
from plugq.protocols.storage import Finished, Resync

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Self

    from plugq.client.client import CancelAnswer, Client
    from plugq.clock import Clock
    from plugq.protocols.broker import Broker
    from plugq.protocols.storage import BatchCounts, Notice

#: Batches that are looked at in one call.
CHUNK = 1000
#: Seconds until they are looked at again after a failure to; doubles up to the poll.
FIRST_PAUSE = 0.05

logger: logging.Logger = logging.getLogger(__name__)


class BatchProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs of a batch have ended, of how many that were submitted so far."""

    done: int
    total: int

    @property
    def fraction(self) -> float:
        """What part has ended, from 0 to 1; 0 where there is no job."""
        return self.done / self.total if self.total else 0.0


class Batch:
    """The jobs of one batch, whoever submitted them.

    ``async with client.batch(key) as batch`` holds it open while the block fills it: nobody's
    :meth:`wait` ends meanwhile. Several may fill it at once, here and elsewhere. Its hold ends by
    itself should the process die, not reach the storage or block its loop for 2 minutes; one that
    goes on logs that, and holds the batch open again.
    """

    def __init__(self, client: Client, key: str) -> None:
        self._client = client
        self.key: str = key
        #: Who holds it open through this object, each with the task that entered.
        self._fillers: list[tuple[str, asyncio.Task[Any] | None]] = []
        self._opened = False

    async def counts(self) -> dict[str, int]:
        """Return the jobs by state, those that are gone as what they were in the end.

        All are 0 where no job was ever submitted. Counts are kept for 7 days after the last job.
        """
        return _complete(await self._stored())

    async def progress(self) -> BatchProgress:
        """Return how many of the jobs have ended."""
        counts = await self.counts()
        live = _live(counts)
        total = sum(counts.values())
        return BatchProgress(done=total - live, total=total)

    async def wait(self, timeout: Duration | None = None) -> dict[str, int]:
        """Wait until no job is live and nobody holds the batch open; return the final counts.

        Whatever was submitted before the last who held it open let go is in them. A timeout or the
        cancellation of the caller leaves the jobs as they are.

        Raises:
            JobNotFound: the batch never had a job and is not open, as one whose key is mistyped; it
                is no error where it was opened through this object and left empty.
            WaitTimeout: it was not over after ``timeout``.
            Conflict: the caller holds the batch open, through whichever object of this client, and
                would wait for itself.
            Unavailable: the client was stopped.
        """
        limit = None if timeout is None else seconds(timeout, name="timeout")
        holds = self._client._batches.holds  # noqa: SLF001
        if holds.opened_by(asyncio.current_task(), self.key):
            message = f"batch {self.key!r} is held open here; wait for it after the block"
            raise Conflict(message)
        self._client._running()  # noqa: SLF001
        try:
            async with asyncio.timeout(limit):
                counts = await self._client._batches.wait(self.key)  # noqa: SLF001
        except TimeoutError:
            raise await self._timed_out(limit or 0.0) from None
        if counts is None and not self._opened:
            message = f"no job was ever submitted to batch {self.key!r}, and nobody holds it open"
            raise JobNotFound(message)
        return _complete(counts)

    async def cancel(self) -> list[CancelAnswer]:
        """Cancel all live jobs, as :meth:`Client.cancel` does, and answer for each."""
        return await self._client.cancel(batch=self.key)

    async def __aenter__(self) -> Self:
        """Hold it open."""
        holder = await self._client._batches.holds.open(self.key)  # noqa: SLF001
        self._opened = True
        self._fillers.append((holder, asyncio.current_task()))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let go, also after an error."""
        task = asyncio.current_task()
        # Several tasks may fill one object; each lets go of what it took.
        mine = [at for at, filler in enumerate(self._fillers) if filler[1] is task]
        holder, _task = self._fillers.pop(mine[-1] if mine else -1)
        await self._client._batches.let_go(self.key, holder)  # noqa: SLF001

    def __repr__(self) -> str:
        """Show which batch it is."""
        return f"<Batch {self.key!r}>"

    async def _stored(self) -> dict[str, int] | None:
        ask, broker = self._client._ask, self._client._broker  # noqa: SLF001
        found = (await ask(lambda: broker.batches([self.key])))[0]
        return None if found is None else found.counts

    async def _timed_out(self, limit: float) -> WaitTimeout:
        try:
            counts = await self.counts()
        except PlugqError:
            return WaitTimeout(f"batch {self.key!r} is not over after {limit:g} s")
        live, total = _live(counts), sum(counts.values())
        if live:
            said = f"{live:,} of {total:,} jobs of batch {self.key!r} have not ended"
        else:
            said = f"batch {self.key!r} is still held open by somebody who fills it"
        return WaitTimeout(f"{said} after {limit:g} s")


class Batches:
    """Everybody in one client who waits for a batch, and the batches that it holds open.

    All batches that are waited for are looked at together: at the beginning, when a notice says
    that a job has ended, and every ``poll`` seconds; one look at a time.
    """

    def __init__(self, broker: Broker, clock: Clock, ask: Ask, *, poll: float) -> None:
        self._broker = broker
        self._clock = clock
        self._poll = poll
        self.holds: Holds = Holds(broker, clock, ask)
        self._waiting: dict[str, list[asyncio.Future[dict[str, int] | None]]] = {}
        self._kick = asyncio.Event()
        self._supervisor = Supervisor(clock)
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        """Listen for notices."""
        # Of this start's loop, which may be another than that of the one before.
        self._kick = asyncio.Event()
        self._unsubscribe = self._broker.subscribe(self._noticed)

    async def stop(self) -> None:
        """End every wait with ``Unavailable``, and renew no hold any longer."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._supervisor.stop()
        await self.holds.stop()
        for waits in self._waiting.values():
            for future in waits:
                if not future.done():
                    future.set_exception(Unavailable("the client was stopped during the wait"))
        self._waiting.clear()

    async def wait(self, key: str) -> dict[str, int] | None:
        """Return the counts once the batch is over; ``None`` if it has none and is not open."""
        future: asyncio.Future[dict[str, int] | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        self._kick.set()
        self._supervisor.run("look", self._look_loop)
        self._supervisor.run("poll", self._poll_loop)
        try:
            return await future
        finally:
            waits = self._waiting.get(key, [])
            if future in waits:
                waits.remove(future)
                if not waits:
                    del self._waiting[key]

    async def let_go(self, key: str, holder: str) -> None:
        """Hold a batch open no longer, and look whether it is over."""
        await self.holds.close(key, holder)
        self._kick.set()

    def state(self) -> dict[str, Any]:
        """Return how many batches are waited for and held open."""
        return {
            "waiting": len(self._waiting),
            "holds": self.holds.state(),
            "loops": self._supervisor.state(),
        }

    def _noticed(self, notices: Sequence[Notice]) -> None:
        if self._waiting and any(isinstance(notice, Finished | Resync) for notice in notices):
            self._kick.set()

    async def _look_loop(self) -> None:
        pause = FIRST_PAUSE
        while True:
            await self._kick.wait()
            self._kick.clear()
            keys = list(self._waiting)
            try:
                for start in range(0, len(keys), CHUNK):
                    await self._look(keys[start : start + CHUNK])
            except Exception as error:  # noqa: BLE001 - whatever it is, the waiters stay
                logger.warning("batches that are waited for can not be looked at: %s", error)
                await self._clock.sleep(pause)
                pause = min(pause * 2, self._poll)
                self._kick.set()
            else:
                pause = FIRST_PAUSE

    async def _look(self, keys: Sequence[str]) -> None:
        # Who comes during the look may wait for what was not there at its beginning.
        waits = {key: tuple(self._waiting.get(key, ())) for key in keys}
        found = await self._broker.batches(keys)
        quiet = [key for key, counts in zip(keys, found, strict=True) if _over(counts)]
        if not quiet:
            return
        # The holds before the counts: what was submitted while somebody held it open is counted.
        loaded = await self._broker.load([register_of(key) for key in quiet])
        found = await self._broker.batches(quiet)
        for key, register, counts in zip(quiet, loaded.registers, found, strict=True):
            if not holders_of(register, loaded.now) and _over(counts):
                for future in waits[key]:
                    if not future.done():
                        future.set_result(None if counts is None else counts.counts)

    async def _poll_loop(self) -> None:
        while self._waiting:
            await self._clock.sleep(self._poll)
            self._kick.set()


def _over(counts: BatchCounts | None) -> bool:
    return counts is None or not _live(counts.counts)


def _live(counts: Mapping[str, int]) -> int:
    return sum(counts.get(state, 0) for state in JobState if state not in FINAL)


def _complete(counts: Mapping[str, int] | None) -> dict[str, int]:
    return {str(state): (counts or {}).get(state, 0) for state in JobState}


__all__ = ["Batch", "BatchProgress", "Batches"]
