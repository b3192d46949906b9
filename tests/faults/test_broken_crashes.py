"""The crash part of the storage contract, proven on faults that show when something dies.

The classes stand at the top of the module because the processes of a test make them anew. The
faults of core are put in only there: this process has to stay sound.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, ClassVar

import msgspec
import pytest

from plugq import failpoints
from plugq.broker import scheduler
from plugq.broker.local import LocalBroker
from plugq.broker.scheduler import Scheduler
from plugq.broker.ticks import advanced, jobs_of
from plugq.failpoints import VARIABLE
from plugq.job import JobRef, JobState, Outcome
from plugq.protocols import (
    ClaimReply,
    ClaimRequest,
    Holder,
    LeaseRef,
    NewJob,
    PluginContext,
    RenewReply,
    Settlement,
    SettleReply,
    Storage,
    SubmitReply,
    SubmitStatus,
    SweepReply,
    SweepRequest,
)
from plugq.schedule.stored import Pending, Stored
from plugq.testing.contract.crashes import Crashes
from plugq.worker.engine import Engine
from plugq.worker.outcome import succeeded
from plugq.worker.runner import Attempt, Runner
from plugq_sqlite import SqliteOptions, SqliteStorage

replace = msgspec.structs.replace


class AnswersBeforeItsCommit(SqliteStorage):
    """A submission is acknowledged at once and written a moment later."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        self._late = asyncio.create_task(self._write(jobs))
        return [
            SubmitReply(status=SubmitStatus.ACCEPTED, id=job.id, state=JobState.QUEUED)
            for job in jobs
        ]

    async def _write(self, jobs: Sequence[NewJob]) -> None:
        await asyncio.sleep(0.5)
        await super().submit(jobs)


class RenewsInMemory(SqliteStorage):
    """A renewal is acknowledged and never reaches the file."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        return [RenewReply.OK for _ in leases]


class ForgetsLeasesAtItsStart(SqliteStorage):
    """Whoever opens the file takes everything that runs for the remains of a crash."""

    async def start(self) -> None:
        await super().start()
        with closing(sqlite3.connect(self.file, timeout=10.0)) as db, db:
            db.execute("UPDATE job SET lease_until = 0 WHERE lease_until IS NOT NULL")

    @property
    def file(self) -> str:
        return str(FILES[id(self)])


class CountsTokensInMemory(SqliteStorage):
    """Tokens come from a counter of the process, which begins anew with it."""

    def __init__(self, options: SqliteOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        self._numbers = itertools.count(1)
        self._real: dict[int, int] = {}

    def _ours(self, reply: ClaimReply) -> ClaimReply:
        leases = []
        for lease in reply.leases:
            number = next(self._numbers)
            self._real[number] = lease.token
            leases.append(replace(lease, token=number))
        return replace(reply, leases=tuple(leases))

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        return self._ours(await super().claim(request))

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        real = [replace(s, token=self._real.get(s.token, s.token)) for s in settlements]
        replies, claimed = await super().settle(real, claim)
        return replies, None if claimed is None else self._ours(claimed)

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        real = [replace(ref, token=self._real.get(ref.token, ref.token)) for ref in leases]
        return await super().renew(real, lease=lease, holder=holder)


class TakesAtTheClaim(SqliteStorage):
    """What is claimed leaves the queue for good, as from a plain list."""

    async def _end(self, reply: ClaimReply) -> ClaimReply:
        await super().settle(
            [
                Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.SUCCEED)
                for x in reply.leases
            ]
        )
        return reply

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        return await self._end(await super().claim(request))

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        claimed = None if claim is None else await self.claim(claim)
        return [SettleReply(JobState.SUCCEEDED) for _ in settlements], claimed


class KnowsIdsInMemory(SqliteStorage):
    """An id is a duplicate only for the process that has seen it."""

    def __init__(self, options: SqliteOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        self._seen: set[str] = set()

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        found = await self.get([JobRef(job.queue, job.id) for job in jobs])
        changed = [
            replace(job, id=f"{job.id}-again", unique=None)
            if record is not None and job.id not in self._seen
            else job
            for job, record in zip(jobs, found, strict=True)
        ]
        self._seen.update(job.id for job in jobs)
        replies = await super().submit(changed)
        return [replace(reply, id=job.id) for job, reply in zip(jobs, replies, strict=True)]


class ForgivesCrashes(SqliteStorage):
    """Whoever killed its worker gets another one, for ever."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        return await super().sweep(replace(request, max_crashes=1_000))


class RemovesBeforeItSettles(SqliteStorage):
    """An end is two commits: the first takes the job out of the store, the second brings it back.

    Nobody who lives sees the moment between them, as both come before the answer.
    """

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        file = str(FILES[id(self)])
        tokens = [one.token for one in settlements]
        marks = ", ".join("?" * len(tokens))
        with closing(sqlite3.connect(file, timeout=10.0)) as db:
            with db:
                found = db.execute(
                    f"DELETE FROM job WHERE token IN ({marks}) AND state = 2 RETURNING *",
                    tokens,
                ).fetchall()
            if failpoints.ARMED:
                # The process dies here whatever was armed: counted passes depend on what else
                # it commits.
                os.write(2, f"failpoint {os.environ[VARIABLE].partition('@')[0]}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)
            with db:
                for row in found:
                    values = ", ".join("?" * len(row))
                    db.execute(f"INSERT INTO job VALUES ({values})", row)
        return await super().settle(settlements, claim)


class KeepsKeysInMemory(SqliteStorage):
    """A unique key is held for those who ask the process that took it."""

    def __init__(self, options: SqliteOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        self._pid = f"{os.getpid()}:"

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit(
            [
                job
                if job.unique is None
                else replace(job, unique=replace(job.unique, key=self._pid + job.unique.key))
                for job in jobs
            ]
        )


class ForgetsCancelsWithTheLease(SqliteStorage):
    """Whoever was told to stop a job has taken that with it."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        with closing(sqlite3.connect(str(FILES[id(self)]), timeout=10.0)) as db, db:
            db.execute("UPDATE job SET cancel = 0 WHERE lease_until < ?", (time.time(),))
        return await super().sweep(request)


def settles_at_the_start() -> None:
    """A worker settles a job before it runs it."""
    settled: set[int] = set()
    run, settle = Runner._run, Engine._settle

    async def settle_first(self: Runner, attempt: Attempt) -> None:
        lease = attempt.lease
        serde = self._serdes[attempt.envelope.content_type]
        self._finished(attempt, succeeded(lease, lease.token, serde, self._result_limit))
        while lease.token not in settled:
            await asyncio.sleep(0.005)
        await run(self, attempt)

    async def note(self: Engine, batch: list[Any]) -> None:
        await settle(self, batch)
        settled.update(held.lease.token for held in batch)

    Runner._run, Engine._settle = settle_first, note  # type: ignore[method-assign]


def settles_what_it_grants() -> None:
    """A broker takes a job that it has handed out for done."""
    claim = LocalBroker.claim

    async def claim_and_settle(
        self: LocalBroker, request: ClaimRequest, *, wait: float = 0.0
    ) -> ClaimReply:
        reply = await claim(self, request, wait=wait)
        await self._storage.settle(
            [
                Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.SUCCEED)
                for x in reply.leases
            ]
        )
        return reply

    async def say_so(
        self: LocalBroker, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        return [SettleReply(JobState.SUCCEEDED) for _ in settlements], None

    LocalBroker.claim, LocalBroker.settle = claim_and_settle, say_so  # type: ignore[method-assign]


def acknowledges_before_it_stores() -> None:
    """A broker answers a submission at once and stores it a moment later."""
    submit = LocalBroker.submit
    late: set[asyncio.Task[Any]] = set()

    async def store(self: LocalBroker, jobs: Sequence[NewJob]) -> None:
        await asyncio.sleep(0.5)
        await submit(self, jobs)

    async def answer(
        self: LocalBroker, jobs: Sequence[NewJob], *, within: object | None = None
    ) -> Sequence[SubmitReply]:
        del within
        late.add(asyncio.create_task(store(self, jobs)))
        return [
            SubmitReply(status=SubmitStatus.ACCEPTED, id=job.id, state=JobState.QUEUED)
            for job in jobs
        ]

    LocalBroker.submit = answer  # type: ignore[method-assign]


def advances_before_it_submits() -> None:
    """A scheduler answers for a tick before its job is stored."""
    submit = Scheduler._submit

    async def early(self: Scheduler, stored: Sequence[Stored], now: float) -> int:
        await self._write(
            {
                one.name: advanced(one, one.entry.pending, len(one.entry.pending.ticks))
                for one in stored
                if one.entry.pending is not None
            }
        )
        return await submit(self, stored, now)

    Scheduler._submit = early  # type: ignore[method-assign]


def names_ticks_by_its_own() -> None:
    """A scheduler gives the job of a tick an id that no other one would."""

    def of_this_process(stored: Stored, pending: Pending, now: float) -> list[NewJob]:
        return [
            replace(job, id=f"{job.id}#{os.getpid()}", submission=os.urandom(16))
            for job in jobs_of(stored, pending, now)
        ]

    setattr(scheduler, "jobs_of", of_this_process)  # noqa: B010 - no name that it exports


FILES: dict[int, Any] = {}


class Sound(Crashes):
    """The contract on the storage as it is; the others exchange the class."""

    storage: ClassVar[type[SqliteStorage]] = SqliteStorage

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = self.storage(SqliteOptions(path="jobs.db"), context)
        FILES[id(storage)] = context.base_dir / "jobs.db"
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


class Early(Sound):
    storage: ClassVar[type[SqliteStorage]] = AnswersBeforeItsCommit


class Unrenewed(Sound):
    storage: ClassVar[type[SqliteStorage]] = RenewsInMemory


class Forgetful(Sound):
    storage: ClassVar[type[SqliteStorage]] = ForgetsLeasesAtItsStart


class Repeating(Sound):
    storage: ClassVar[type[SqliteStorage]] = CountsTokensInMemory


class Taking(Sound):
    storage: ClassVar[type[SqliteStorage]] = TakesAtTheClaim


class Doubling(Sound):
    storage: ClassVar[type[SqliteStorage]] = KnowsIdsInMemory


class Forgiving(Sound):
    storage: ClassVar[type[SqliteStorage]] = ForgivesCrashes


class Removing(Sound):
    storage: ClassVar[type[SqliteStorage]] = RemovesBeforeItSettles


class Keyless(Sound):
    storage: ClassVar[type[SqliteStorage]] = KeepsKeysInMemory


class Deaf(Sound):
    storage: ClassVar[type[SqliteStorage]] = ForgetsCancelsWithTheLease


class Spoilt(Sound):
    """A sound storage under a core with one fault, which is put into the processes of a test."""

    fault: ClassVar[Callable[[], None]]

    def __init__(self) -> None:
        if VARIABLE in os.environ:
            type(self).fault()


class EarlyWorker(Spoilt):
    """A worker settles a job before it runs it."""

    fault = staticmethod(settles_at_the_start)


class GenerousBroker(Spoilt):
    """A broker takes a job that it has handed out for done."""

    fault = staticmethod(settles_what_it_grants)


class EarlyBroker(Spoilt):
    """A broker answers a submission at once and stores it a moment later."""

    fault = staticmethod(acknowledges_before_it_stores)


class HastyScheduler(Spoilt):
    """A scheduler answers for a tick before its job is stored."""

    fault = staticmethod(advances_before_it_submits)


class LonelyScheduler(Spoilt):
    """A scheduler gives the job of a tick an id that no other one would."""

    fault = staticmethod(names_ticks_by_its_own)


#: What is broken, the test that finds it, and the promise that it names.
CASES: list[tuple[type[Sound], str, str]] = [
    (Early, "a_submitter_dies", "I1"),
    (Unrenewed, "a_worker_dies_as_it_renews_or_sweeps", "I6"),
    (Forgetful, "the_death_of_one_ends_no_lease_of_another", "I9"),
    # A repeated token may be seen where it is granted, or where it settles another attempt.
    (Repeating, "a_worker_dies_around_its_handlers", "I4|I5"),
    (Taking, "a_worker_dies_as_it_claims", "I3"),
    (Removing, "a_worker_dies_as_it_settles", "I1"),
    (Doubling, "a_submitter_dies", "I8"),
    (Keyless, "one_of_two_who_submit_the_same_dies", "I8"),
    (Deaf, "the_worker_of_a_cancelled_job_dies", "I1"),
    (Forgiving, "a_job_that_kills_its_workers_is_given_up", "I7"),
    (EarlyWorker, "a_worker_dies_around_its_handlers", "I3"),
    (GenerousBroker, "a_worker_dies_as_it_claims", "I3"),
    (EarlyBroker, "a_submitter_dies", "I1"),
    (HastyScheduler, "a_scheduler_dies", "I12"),
    (LonelyScheduler, "a_scheduler_dies", "I12"),
]


@pytest.mark.parametrize(("broken", "test", "promise"), CASES)
def test_caught(broken: type[Sound], test: str, promise: str) -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)) as caught:
        asyncio.run(getattr(broken(), f"test_{test}")())
    assert re.search(f"({promise}): ", "\n".join(map(str, _leaves(caught.value))))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
