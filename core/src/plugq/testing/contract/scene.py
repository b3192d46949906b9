"""Where the contract's tests take place: one open storage, a manual clock and short verbs."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
import uuid
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import msgspec

from plugq.job import JobRecord, JobRef, JobState, Outcome
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    EditReply,
    Pause,
    Purge,
    QueueSettings,
    Redrive,
    Reprioritise,
    Resume,
    Retain,
)
from plugq.protocols.plugin import PluginContext
from plugq.protocols.storage import (
    ClaimReply,
    ClaimRequest,
    FindQuery,
    Finished,
    Lease,
    LeaseRef,
    NewJob,
    Notice,
    Settlement,
    SettleReply,
    Storage,
    SubmitReply,
    SubmitStatus,
    SweepReply,
    SweepRequest,
    TaskStats,
    Wake,
)
from plugq.testing.children import Child, child
from plugq.testing.clock import ManualClock
from plugq.testing.levels import Level
from plugq.testing.requirements import MissingHook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
    from types import TracebackType

    from plugq.protocols.plugin import Capability
    from plugq.protocols.storage import Holder, RenewReply

#: The job's queue and task where a test does not say.
QUEUE = "q"
TASK = "t"

#: Every state, those in which a job could be claimed in place of another one last.
STATES = (
    JobState.RUNNING,
    JobState.SUCCEEDED,
    JobState.FAILED,
    JobState.SKIPPED,
    JobState.CANCELLED,
    JobState.DELAYED,
    JobState.QUEUED,
)

_SETTLED_AS = {
    JobState.SUCCEEDED: Outcome.SUCCEED,
    JobState.FAILED: Outcome.FAIL,
    JobState.SKIPPED: Outcome.SKIP,
}


@dataclass(frozen=True)
class UserTransaction:
    """A transaction that has begun on a connection of the user's own, and what ends it."""

    connection: object
    commit: Callable[[], Awaitable[None]]
    rollback: Callable[[], Awaitable[None]]


class Contract:
    """Opens the storage under test; every test makes its own scene and thus its own store."""

    #: By this the pytest plugin knows whose coroutine tests it runs.
    plugq_contract: ClassVar[bool] = True
    #: How many real seconds a signal may take.
    patience: ClassVar[float] = 5.0
    #: Whether all who write wait while a user's transaction with jobs in it is open, as on a file
    #: that has one writer. A storage that hosts share must not let them wait.
    writers_wait: ClassVar[bool] = False
    #: What the tests of a class are about.
    level: ClassVar[Level] = Level.SEMANTICS

    def open(self, context: PluginContext) -> AbstractAsyncContextManager[Storage]:
        """Return a context manager that yields a started storage and stops it.

        It is called several times with one context, also while it is open, and then gives the
        same store each time. Another context is another, empty store: its namespace and its
        ``base_dir`` differ. One that differs in its clock alone is the same store, opened by a
        process with that clock; only the tests of shared storages make such.
        """
        raise NotImplementedError

    def outage(self, context: PluginContext) -> AbstractAsyncContextManager[None]:
        """Return a context manager inside which the store of that context can not be reached.

        Optional: without it the tests of outages are skipped. Inside it some calls may still
        work; what matters is that those which do not fail in time and say so. After it the store
        is as it was.
        """
        del context
        raise MissingHook("outage")

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        """Return what begins a transaction on the store of that context, for each kind of driver.

        Each opens a connection of its own, as a user would, begins a transaction on it, yields
        both and closes the connection in the end, whatever became of the transaction. It is named
        after its driver. A class that declares ``TRANSACTIONAL_SUBMIT`` needs this hook.
        """
        del context
        return ()

    @asynccontextmanager
    async def scene(self, *, real_time: bool = False) -> AsyncIterator[Scene]:
        """Open an empty store with a clock of its own, or with the one of production."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            context = PluginContext(
                namespace=f"test-{uuid.uuid4().hex}",
                clock=None if real_time else ManualClock(),
                base_dir=Path(folder),
            )
            async with self.open(context) as storage:
                yield Scene(self, context, storage)

    async def declared(self) -> frozenset[Capability]:
        """Return the capabilities that the storage under test declares."""
        async with self.scene() as scene:
            return scene.storage.capabilities


class Scene:
    """One user of the store under test, with verbs that fill in what a test does not care for."""

    _numbers = itertools.count(1)

    def __init__(self, contract: Contract, context: PluginContext, storage: Storage) -> None:
        self.contract = contract
        self.context = context
        self.storage = storage
        self.leases: dict[str, Lease] = {}

    @property
    def clock(self) -> ManualClock:
        """The clock of a scene that is not in real time."""
        assert isinstance(self.context.clock, ManualClock)
        return self.context.clock

    def child(
        self, part: str, *, environment: Mapping[str, str] | None = None, **arguments: Any
    ) -> AbstractAsyncContextManager[Child]:
        """Let a process of its own work on this store; see :mod:`plugq.testing.children`."""
        return child(self.contract, self.context, part, environment=environment, **arguments)

    @asynccontextmanager
    async def another(self) -> AsyncIterator[Scene]:
        """Open the same store once more, as another process would."""
        async with self.contract.open(self.context) as storage:
            yield Scene(self.contract, self.context, storage)

    def job(self, id: str = "a", **fields: Any) -> NewJob:
        """Return a submission with a submission id of its own."""
        given = {"queue": QUEUE, "task": TASK, "submission": os.urandom(16), "body": b"{}"}
        return NewJob(id=id, **{**given, **fields})

    async def send(self, *jobs: NewJob) -> Sequence[SubmitReply]:
        """Submit jobs in one call."""
        return await self.storage.submit(jobs)

    async def submit(self, *ids: str, **fields: Any) -> Sequence[SubmitReply]:
        """Submit new jobs in one call; all of them must be accepted."""
        jobs = [self.job(id, **fields) for id in ids or ("a",)]
        replies = await self.send(*jobs)
        assert [reply.status for reply in replies] == [SubmitStatus.ACCEPTED] * len(jobs)
        return replies

    def request(self, limit: int = 1, **fields: Any) -> ClaimRequest:
        """Return a claim request with a number that was not used before."""
        given = {"worker": "w", "number": next(self._numbers), "queues": (QUEUE,), "limit": limit}
        return ClaimRequest(**{**given, **fields})

    async def ask(self, limit: int = 1, **fields: Any) -> ClaimReply:
        """Claim and return the whole reply."""
        return await self.storage.claim(self.request(limit, **fields))

    async def claim(self, limit: int = 1, **fields: Any) -> tuple[Lease, ...]:
        """Claim and return the leases."""
        return (await self.ask(limit, **fields)).leases

    async def take(self, id: str | None = None, **fields: Any) -> Lease:
        """Claim one job, which must be there, and be the one named."""
        leases = await self.claim(1, **fields)
        assert len(leases) == 1, f"claimed {len(leases)} jobs instead of {id or 'one'}"
        assert id is None or leases[0].id == id, f"claimed {leases[0].id!r} instead of {id!r}"
        return leases[0]

    async def claimed_ids(self, limit: int = 100, **fields: Any) -> list[str]:
        """Claim and return the ids in the order of the grant."""
        return [lease.id for lease in await self.claim(limit, **fields)]

    def settlement(
        self, lease: Lease, outcome: Outcome = Outcome.SUCCEED, **fields: Any
    ) -> Settlement:
        """Return a settlement; a success has the result ``null`` unless said otherwise."""
        if outcome is Outcome.SUCCEED:
            fields.setdefault("result", b"null")
        return Settlement(
            queue=lease.queue, id=lease.id, token=lease.token, outcome=outcome, **fields
        )

    async def settle(
        self, lease: Lease, outcome: Outcome = Outcome.SUCCEED, **fields: Any
    ) -> SettleReply:
        """Settle one lease."""
        replies, _ = await self.storage.settle([self.settlement(lease, outcome, **fields)])
        return replies[0]

    async def end(
        self, lease: Lease, outcome: Outcome = Outcome.SUCCEED, **fields: Any
    ) -> JobState:
        """Settle one lease, which must be current, and return the state it led to."""
        reply = await self.settle(lease, outcome, **fields)
        assert not reply.lost, f"the lease of {lease.id!r} was refused"
        assert reply.state is not None
        return reply.state

    async def advance_to(self, lease: Lease, state: JobState) -> None:
        """Settle a running job so that it comes into that state, or leave it running."""
        outcome = _SETTLED_AS.get(state)
        if outcome is not None:
            assert await self.end(lease, outcome) is state

    def relabel(self, lease: Lease, **fields: Any) -> Lease:
        """Return a forged copy of a lease."""
        return msgspec.structs.replace(lease, **fields)

    async def renew(
        self, *leases: Lease, lease: float = 30.0, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        """Renew leases."""
        refs = [LeaseRef(held.queue, held.id, held.token) for held in leases]
        return await self.storage.renew(refs, lease=lease, holder=holder)

    async def sweep(self, **fields: Any) -> SweepReply:
        """Sweep once."""
        return await self.storage.sweep(SweepRequest(**fields))

    async def look(self, id: str = "a", queue: str = QUEUE, **flags: bool) -> JobRecord | None:
        """Return a job or ``None``."""
        return (await self.storage.get([JobRef(queue, id)], **flags))[0]

    async def show(self, id: str = "a", queue: str = QUEUE, **flags: bool) -> JobRecord:
        """Return a job, which must be there."""
        job = await self.look(id, queue, **flags)
        assert job is not None, f"job {id!r} is gone"
        return job

    async def state(self, id: str = "a", queue: str = QUEUE) -> JobState:
        """Return the state of a job, which must be there."""
        return (await self.show(id, queue)).state

    def refs(self, *ids: str, queue: str = QUEUE) -> tuple[JobRef, ...]:
        """Return the names of jobs."""
        return tuple(JobRef(queue, id) for id in ids)

    async def cancel(self, id: str = "a", queue: str = QUEUE) -> EditReply:
        """Cancel one job."""
        return (await self.storage.edit(Cancel(self.refs(id, queue=queue))))[0]

    async def redrive(self, id: str = "a", queue: str = QUEUE) -> EditReply:
        """Queue one final job again."""
        return (await self.storage.edit(Redrive(self.refs(id, queue=queue))))[0]

    async def purge(self, id: str = "a", queue: str = QUEUE) -> EditReply:
        """Remove one final job."""
        return (await self.storage.edit(Purge(self.refs(id, queue=queue))))[0]

    async def retain(self, ttl: float | None, id: str = "a", queue: str = QUEUE) -> EditReply:
        """Let one job be kept for another time."""
        return (await self.storage.edit(Retain(self.refs(id, queue=queue), ttl)))[0]

    async def reprioritise(self, priority: int, *ids: str, queue: str = QUEUE) -> list[EditReply]:
        """Give jobs another priority."""
        edit = Reprioritise(self.refs(*ids, queue=queue), priority)
        return list(await self.storage.edit(edit))

    async def pause(self, queue: str = QUEUE) -> None:
        """Pause a queue."""
        await self.storage.edit(Pause((queue,)))

    async def drain(self, queue: str = QUEUE) -> None:
        """Let a queue take nothing new."""
        await self.storage.edit(Drain((queue,)))

    async def resume(self, queue: str = QUEUE) -> None:
        """Resume a queue."""
        await self.storage.edit(Resume((queue,)))

    async def configure(self, queue: str = QUEUE, **limits: Any) -> None:
        """Set the limits of a queue."""
        await self.storage.edit(Configure((QueueSettings(queue=queue, **limits),)))

    async def lapse(self, lease: float = 30.0, **fields: Any) -> SweepReply:
        """Let leases of that length lapse and have them ended."""
        self.clock.advance(lease)
        return await self.sweep(**fields)

    async def bring(self, id: str, state: JobState, **fields: Any) -> Lease | None:
        """Submit a job and bring it into a state; return the lease that it had, if any."""
        if state is JobState.DELAYED:
            await self.submit(id, **{"delay": 3600.0, **fields})
            return None
        await self.submit(id, **fields)
        if state is JobState.QUEUED:
            return None
        if state is JobState.CANCELLED:
            await self.cancel(id, fields.get("queue", QUEUE))
            return None
        lease = await self.take(id, queues=(fields.get("queue", QUEUE),))
        await self.advance_to(lease, state)
        return lease

    def remember(self, id: str, lease: Lease | None) -> None:
        """Keep a lease for later, if there is one."""
        if lease is not None:
            self.leases[id] = lease

    async def clear(self) -> None:
        """End and remove every job, so that the next part of a test starts with none."""
        cursor: str | None = None
        while True:
            page = await self.storage.find(FindQuery(cursor=cursor))
            for job in page.jobs:
                await self.cancel(job.id, job.queue)
                if job.state is JobState.RUNNING:
                    held = Lease(
                        queue=job.queue,
                        id=job.id,
                        task=job.task,
                        token=job.token,
                        attempt=job.attempt,
                        max_attempts=job.max_attempts,
                        body=b"",
                    )
                    await self.settle(held, Outcome.FAIL)
                await self.purge(job.id, job.queue)
            cursor = page.cursor
            if cursor is None:
                return

    async def batch(self, name: str = "x") -> dict[str, int] | None:
        """Return the counts of a batch that are not 0; ``None`` if nothing is known of it."""
        (found,) = await self.storage.batches([name])
        if found is None:
            return None
        assert found.batch == name
        return {state: count for state, count in found.counts.items() if count}

    async def task_stats(self, queue: str = QUEUE, task: str = TASK) -> TaskStats:
        """Return the counters of a task; all zero if it is not known."""
        for stats in (await self.storage.stats()).tasks:
            if (stats.queue, stats.task) == (queue, task):
                return stats
        return TaskStats(queue=queue, task=task)

    async def total(self, name: str, queue: str = QUEUE, task: str = TASK) -> int:
        """Return one cumulative counter."""
        return (await self.task_stats(queue, task)).totals.get(name, 0)

    async def count(self, state: JobState, queue: str = QUEUE, task: str = TASK) -> int:
        """Return how many jobs of a task are in a state."""
        return (await self.task_stats(queue, task)).counts.get(state, 0)

    async def settled_store(self) -> None:
        """Check that in every task accepted = live + final + removed."""
        for stats in (await self.storage.stats()).tasks:
            stored = sum(stats.counts.values())
            removed = stats.totals.get("removed", 0)
            assert stats.totals.get("accepted", 0) == stored + removed, stats

    @asynccontextmanager
    async def expecting_an_end(self) -> AsyncIterator[None]:
        """Fail if the body takes longer than a signal may."""
        try:
            async with asyncio.timeout(self.contract.patience):
                yield
        except TimeoutError:
            message = f"it did not end within {self.contract.patience} s"
            raise AssertionError(message) from None

    def listen(self, peer: str) -> Ear:
        """Watch as a peer, within ``async with``."""
        return Ear(self, peer)


class Ear:
    """Reads the notices to one peer in the background and keeps all of them."""

    def __init__(self, scene: Scene, peer: str) -> None:
        self.peer = peer
        self.heard: list[Notice] = []
        self._scene = scene
        self._changed = asyncio.Event()
        self._failure: Exception | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._listen())
        await self.until(lambda: bool(self.heard), "the first notice")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Watch no more; leaving the ``async with`` does so, too."""
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        stream = self._scene.storage.watch(self.peer)
        try:
            async for notice in stream:
                self.heard.append(notice)
                self._changed.set()
        except Exception as error:  # noqa: BLE001 - whoever waits is told
            self._failure = error
            self._changed.set()
        finally:
            await stream.aclose()

    async def until(self, reached: Callable[[], bool], what: str) -> None:
        """Wait until something has been heard."""
        try:
            async with asyncio.timeout(self._scene.contract.patience):
                while not reached():
                    if self._failure is not None:
                        raise self._failure
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            message = f"{self.peer!r} waited in vain for {what}; it heard {self.heard}"
            raise AssertionError(message) from None

    def wakes(self) -> int:
        """Return how many wake-ups were heard."""
        return sum(isinstance(notice, Wake) for notice in self.heard)

    def refs(self, kind: type[Notice]) -> set[JobRef]:
        """Return every job that notices of that kind named."""
        named: set[JobRef] = set()
        for notice in self.heard:
            if isinstance(notice, kind):
                named.update(getattr(notice, "refs", ()))
        return named

    async def hears_wake(self, times: int = 1) -> None:
        """Wait for a wake-up."""
        await self.until(lambda: self.wakes() >= times, "a wake-up")

    async def hears(self, kind: type[Notice], *refs: JobRef) -> None:
        """Wait until notices of that kind have named these jobs."""
        await self.until(lambda: self.refs(kind) >= set(refs), f"{kind.__name__} of {refs}")

    async def catch_up(self) -> None:
        """Wait until everything that was sent to this peer so far has been heard.

        A job that ends now is the last thing that the peer is told of, so whatever was sent
        before it and has not been heard was not sent.
        """
        id = uuid.uuid4().hex
        await self._scene.submit(id, queue="catch-up", delay=60.0, origin=self.peer)
        await self._scene.cancel(id, "catch-up")
        await self.hears(Finished, JobRef("catch-up", id))


__all__ = ["QUEUE", "STATES", "TASK", "Contract", "Ear", "Scene", "UserTransaction"]
