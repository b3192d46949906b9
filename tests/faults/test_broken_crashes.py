"""The crash part of the contract, proven: each storage here keeps every promise until one dies.

The classes stand at the top of the module because the processes of a test make them anew.
"""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any, ClassVar

import msgspec
import pytest

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
from plugq.testing.contract.crashes import Crashes
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


@pytest.mark.parametrize(
    ("broken", "test", "promise"),
    [
        (Early, "test_a_submitter_dies", "I1"),
        (Unrenewed, "test_a_worker_dies_as_it_renews_or_sweeps", "I6"),
        (Forgetful, "test_the_death_of_one_ends_no_lease_of_another", "I9"),
        (Repeating, "test_a_worker_dies_around_its_handlers", "I5"),
        (Taking, "test_a_worker_dies_as_it_claims", "I3"),
        (Doubling, "test_a_submitter_dies", "I8"),
        (Forgiving, "test_a_job_that_kills_its_workers_is_given_up", "I7"),
    ],
)
def test_caught(broken: type[Sound], test: str, promise: str) -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup)) as caught:
        asyncio.run(getattr(broken(), test)())
    assert f"{promise}: " in "\n".join(map(str, _leaves(caught.value)))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]
