"""Storages that break what they promise of a user's transaction: each must be caught.

The storage in memory has no transactions, so it gets some here: a connection is a list of jobs,
which are stored when it commits.
"""

from __future__ import annotations

import asyncio
import copy
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar

import msgspec
import pytest

from plugq.builtin import memory_submit
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.builtin.memory_jobs import JobTable
from plugq.builtin.memory_signals import SignalBoard
from plugq.errors import InvalidJob
from plugq.job import AttemptRecord, JobRecord, JobRef, JobState
from plugq.protocols import (
    Capability,
    ClaimReply,
    ClaimRequest,
    NewJob,
    PluginContext,
    QueueSettings,
    Storage,
    SubmitReply,
    SubmitStatus,
)
from plugq.protocols.checks import check_submit
from plugq.testing import MissingCapability, StorageContract, UserTransaction
from plugq.testing.contract.commits import Commits
from plugq.testing.contract.transacted import Transacted
from plugq.testing.contract.transactions import Transactions
from plugq.testing.requirements import required_by

replace = msgspec.structs.replace


class Deal:
    """A connection of the user's own, on which a transaction has begun."""

    def __init__(self, storage: Transactional) -> None:
        self.storage = storage
        self.jobs: list[NewJob] = []
        self.begun = True

    async def commit(self) -> None:
        self.begun = False
        jobs, self.jobs = self.jobs, []
        self.storage.enter(jobs)

    async def rollback(self) -> None:
        self.begun = False
        self.jobs = []


class Transactional(MemoryStorage):
    """Jobs of a transaction are judged when they are submitted, and stored when it commits."""

    capabilities = MemoryStorage.capabilities | {Capability.TRANSACTIONAL_SUBMIT}

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        check_submit(jobs)
        deal = self.deal_of(connection)
        table = self.imagine(deal.jobs)
        known = {(job.queue, job.id, job.submission) for job in deal.jobs}
        replies = memory_submit.submit(table, jobs, self._now())
        deal.jobs += [
            job
            for job, reply in zip(jobs, replies, strict=True)
            if reply.status is SubmitStatus.ACCEPTED
            and (job.queue, job.id, job.submission) not in known
        ]
        return [replace(reply, sequence=0) for reply in replies]

    def deal_of(self, connection: object) -> Deal:
        if not isinstance(connection, Deal):
            raise InvalidJob("connection: expected a Deal")
        if not connection.begun:
            raise InvalidJob("connection: no transaction has begun on it")
        if connection.storage is not self:
            raise InvalidJob("connection: it belongs to another store")
        return connection

    def imagine(self, jobs: Sequence[NewJob]) -> JobTable:
        """Return the jobs as they will be after the commit."""
        table = copy.deepcopy(self._jobs, {id(self._signals): SignalBoard()})
        memory_submit.submit(table, jobs, self._now())
        return table

    def enter(self, jobs: Sequence[NewJob]) -> None:
        """Store what has committed; what finds its unique key held by now is skipped."""
        with self._lock:
            for job in jobs:
                now = self._now()
                queue = self._jobs.queue(job.queue)
                limits = (queue.settings, queue.draining)
                queue.settings, queue.draining = QueueSettings(queue=job.queue), False
                (reply,) = memory_submit.submit(self._jobs, [job], now)
                queue.settings, queue.draining = limits
                if reply.id != job.id:
                    memory_submit.restore(self._jobs, _skipped(job, reply.id, now), now)
                    self._signals.finished(job.origin, JobRef(job.queue, job.id))
            self._signals.flush()


def _skipped(job: NewJob, holder: str, now: float) -> JobRecord:
    error = AttemptRecord(
        attempt=0, type="", message=f"its unique key is held by {holder!r}", code="duplicate"
    )
    return JobRecord(
        queue=job.queue,
        id=job.id,
        task=job.task,
        submission=job.submission,
        batch=job.batch,
        state=JobState.SKIPPED,
        sequence=0,
        submitted_at=now,
        finished_at=now,
        code="duplicate",
        history=(error,),
        body=job.body,
    )


class CommitsByItself(Transactional):
    """It commits the transaction of its user."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        replies = await super().submit_within(connection, jobs)
        deal = self.deal_of(connection)
        await deal.commit()
        deal.begun = True
        return replies


class SubmitsOutside(Transactional):
    """It submits as always, whatever becomes of the transaction."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        check_submit(jobs)
        self.deal_of(connection)
        return await self.submit(jobs)


class LosesTheLastOfACommit(Transactional):
    """The last job of a transaction is lost when that commits."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter(jobs[:-1])


class StoresTwice(Transactional):
    """What is submitted again within the transaction is stored again, under another id."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter(jobs)
        super().enter([replace(job, id=f"{job.id}-again", unique=None) for job in jobs])


class ChangesThePayload(Transactional):
    """What is stored at the commit is cut."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter([replace(job, body=job.body[:1024]) for job in jobs])


class ForgetsOptions(Transactional):
    """Priorities and lanes do not get through the transaction."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter([replace(job, priority=0, lane=None) for job in jobs])


class KeepsForAWeek(Transactional):
    """Whatever was asked for, a job of a transaction is kept for a week."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter([replace(job, result_ttl=604800.0) for job in jobs])


class ForgetsDelays(Transactional):
    """What should wait is ready at the commit."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter([replace(job, delay=0.0) for job in jobs])


class ForgetsDeadlines(Transactional):
    """No job of a transaction has a deadline."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter([replace(job, deadline_in=None, deadline_at=None) for job in jobs])


class ForgetsWhoSubmitted(Transactional):
    """Nobody is told of the end."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter([replace(job, origin="") for job in jobs])


class TurnsTheOrderAround(Transactional):
    """The last job of a transaction comes first."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter(jobs[::-1])


class IgnoresUniqueKeys(Transactional):
    """Jobs of a transaction have no unique key."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        return await super().submit_within(connection, [replace(job, unique=None) for job in jobs])


class IgnoresWhatIsStored(Transactional):
    """Ids are judged only within the transaction."""

    def imagine(self, jobs: Sequence[NewJob]) -> JobTable:
        table = JobTable(SignalBoard(), lambda: 1)
        memory_submit.submit(table, jobs, self._now())
        return table


class IgnoresItsOwnJobs(Transactional):
    """Ids are judged only by what is stored."""

    def imagine(self, jobs: Sequence[NewJob]) -> JobTable:
        del jobs
        return super().imagine([])


class RemembersWhatWasRolledBack(Transactional):
    """An id that a transaction has used is taken, whatever became of that."""

    def __init__(self, options: MemoryOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        self._used: set[str] = set()

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        self._used.update(job.id for job in jobs)
        return await super().submit_within(connection, jobs)

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        taken = [job for job in jobs if job.id in self._used]
        if taken:
            return [SubmitReply(SubmitStatus.DUPLICATE, job.id, JobState.QUEUED) for job in jobs]
        return await super().submit(jobs)


class DropsWhatItReplaces(Transactional):
    """A cancelled job makes room for the next one of its id before that has committed."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        replies = await super().submit_within(connection, jobs)
        for job in jobs:
            record = self._jobs.find(job.queue, job.id)
            if record is not None and record.state is JobState.CANCELLED:
                self._jobs.remove(record)
        return replies


class CountsBeforeTheCommit(Transactional):
    """The queue of a job is listed from its submission on."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        replies = await super().submit_within(connection, jobs)
        for job in jobs:
            self._jobs.queue(job.queue)
        return replies


class KnowsNoFullQueue(Transactional):
    """A queue takes what it has no room for."""

    def imagine(self, jobs: Sequence[NewJob]) -> JobTable:
        table = super().imagine(jobs)
        for queue in table.queues.values():
            queue.settings, queue.draining = QueueSettings(queue=queue.name), False
        return table


class StartsThePaused(Transactional):
    """A job that is committed ends the pause of its queue."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter(jobs)
        for job in jobs:
            self._jobs.queue(job.queue).paused = False


class KeepsTheFirstOfACommit(Transactional):
    """What is in a call beside a job that can not be is in the transaction."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        try:
            check_submit(jobs)
        except InvalidJob:
            await super().submit_within(connection, jobs[:1])
            raise
        return await super().submit_within(connection, jobs)


class TakesAnything(Transactional):
    """What is no connection with a transaction is taken for a wish to submit as always."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        if isinstance(connection, Deal) and connection.begun:
            return await super().submit_within(connection, jobs)
        return await self.submit(jobs)


class StoresElsewhere(Transactional):
    """Jobs go to the store of the connection, whichever that is."""

    def deal_of(self, connection: object) -> Deal:
        if isinstance(connection, Deal) and connection.begun:
            return connection
        return super().deal_of(connection)


class ForgetsWhoIsIdle(Transactional):
    """Those whom a job would wake are idle no more, and were not woken."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        for peer in tuple(self._signals._idle):
            self._signals._busy(peer)
        return await super().submit_within(connection, jobs)


class StopsOthers(Transactional):
    """Who claims waits until no transaction is open any more."""

    def __init__(self, options: MemoryOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        self._free = asyncio.Event()
        self._free.set()

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        self._free.clear()
        return await super().submit_within(connection, jobs)

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter(jobs)
        self._free.set()

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        await self._free.wait()
        return await super().claim(request)


class StoresWhoCameLast(Transactional):
    """Of two transactions with one id the second has its job stored, too, under another id."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        for job in jobs:
            taken = self._jobs.find(job.queue, job.id) is not None
            super().enter([replace(job, id=f"{job.id}-2") if taken else job])


class DropsWhoCameLast(Transactional):
    """A job that finds its unique key held at the commit is gone without a word."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        memory_submit.submit(self._jobs, jobs, self._now())


class RunsBothOfAKey(Transactional):
    """A unique key is not looked at any more at the commit."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        super().enter([replace(job, unique=None) for job in jobs])


class RefusesAtTheCommit(Transactional):
    """What was accepted finds no place any more in a queue that has filled up."""

    def enter(self, jobs: Sequence[NewJob]) -> None:
        for job in jobs:
            queue = self._jobs.queue(job.queue)
            if not queue.draining and queue.max_length is None:
                super().enter([job])


class HasNoVerb(MemoryStorage):
    """Says that it takes part in a transaction, and has no verb for it."""

    capabilities = Transactional.capabilities


CAUGHT_BY: dict[type[MemoryStorage], tuple[str, ...]] = {
    HasNoVerb: ("a_job_is_submitted_in_a_transaction_of_the_user",),
    CommitsByItself: (
        "a_transaction_that_is_rolled_back_leaves_nothing",
        "a_connection_that_is_closed_leaves_nothing",
        "nobody_sees_a_job_before_the_commit",
        "of_two_transactions_the_first_counts",
    ),
    SubmitsOutside: (
        "a_transaction_that_is_rolled_back_leaves_nothing",
        "a_connection_that_is_closed_leaves_nothing",
        "nobody_sees_a_job_before_the_commit",
    ),
    LosesTheLastOfACommit: (
        "a_job_is_submitted_in_a_transaction_of_the_user",
        "the_answer_is_there_before_the_commit",
        "many_jobs_fit_into_one_transaction",
    ),
    StoresTwice: (
        "a_job_is_submitted_in_a_transaction_of_the_user",
        "many_jobs_fit_into_one_transaction",
    ),
    ChangesThePayload: ("a_job_is_submitted_in_a_transaction_of_the_user",),
    ForgetsOptions: (
        "a_job_is_submitted_in_a_transaction_of_the_user",
        "jobs_of_a_transaction_keep_their_lanes",
    ),
    ForgetsDelays: (
        "the_answer_is_there_before_the_commit",
        "jobs_of_a_transaction_stand_in_their_order",
    ),
    KeepsForAWeek: ("a_job_of_a_transaction_lives_like_any_other",),
    ForgetsDeadlines: ("a_deadline_holds_for_a_job_of_a_transaction",),
    ForgetsWhoSubmitted: ("who_submitted_in_a_transaction_is_told_of_the_end",),
    TurnsTheOrderAround: ("jobs_of_a_transaction_stand_in_their_order",),
    IgnoresUniqueKeys: (
        "a_unique_key_is_judged_in_the_transaction",
        "of_two_transactions_the_first_counts",
    ),
    IgnoresWhatIsStored: (
        "an_id_is_judged_in_the_transaction",
        "a_unique_key_is_judged_in_the_transaction",
        "of_two_transactions_the_first_counts",
    ),
    IgnoresItsOwnJobs: (
        "an_id_is_judged_in_the_transaction",
        "a_unique_key_is_judged_in_the_transaction",
    ),
    RemembersWhatWasRolledBack: ("a_transaction_that_is_rolled_back_leaves_nothing",),
    DropsWhatItReplaces: ("a_rollback_brings_back_what_was_replaced",),
    CountsBeforeTheCommit: ("nobody_sees_a_job_before_the_commit",),
    KnowsNoFullQueue: ("a_queue_that_takes_nothing_takes_nothing_in_a_transaction",),
    StartsThePaused: ("a_job_of_a_transaction_waits_in_a_paused_queue",),
    KeepsTheFirstOfACommit: ("a_job_that_can_not_be_is_refused_in_a_transaction",),
    TakesAnything: (
        "a_connection_that_can_not_serve_is_refused",
        "without_a_transaction_nothing_is_stored",
    ),
    StoresElsewhere: ("a_job_goes_only_to_the_store_that_is_asked",),
    StopsOthers: ("an_open_transaction_stops_no_other_where_it_need_not",),
    StoresWhoCameLast: ("an_id_in_two_open_transactions_is_one_job",),
    DropsWhoCameLast: ("a_unique_key_in_two_open_transactions_is_held_by_one",),
    RunsBothOfAKey: ("a_unique_key_in_two_open_transactions_is_held_by_one",),
    RefusesAtTheCommit: ("what_was_accepted_finds_its_place_after_the_commit",),
    ForgetsWhoIsIdle: ("who_is_idle_is_woken_by_the_next_sweep_after_the_commit",),
}


class Subject(StorageContract):
    """The contract for one class of storage."""

    patience: ClassVar[float] = 0.2

    def __init__(self, storage: type[MemoryStorage]) -> None:
        self._class = storage
        self._stores: weakref.WeakKeyDictionary[PluginContext, MemoryStorage] = (
            weakref.WeakKeyDictionary()
        )

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = self._stores.get(context)
        if storage is None:
            storage = self._stores[context] = self._class(MemoryOptions(), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        @asynccontextmanager
        async def deal() -> AsyncIterator[UserTransaction]:
            storage = self._stores[context]
            made = Deal(storage)  # type: ignore[arg-type]
            yield UserTransaction(made, made.commit, made.rollback)
            await made.rollback()

        return [deal]


class SaysThatAllWait(Subject):
    """Says that all who write wait for an open transaction, and they do not."""

    writers_wait: ClassVar[bool] = True


class WithoutTheHook(Subject):
    """Declares the capability and does not say how a transaction begins."""

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        return StorageContract.transactions(self, context)


def run(contract: StorageContract, name: str) -> Exception | None:
    """Run one contract test and return what it failed with."""
    try:
        with asyncio.Runner() as runner:
            runner.run(getattr(contract, f"test_{name}")())
    except Exception as error:  # noqa: BLE001 - a broken storage may fail a test in any way
        return error
    return None


CASES = [
    pytest.param(broken, name, id=f"{broken.__name__}-{name}")
    for broken, names in CAUGHT_BY.items()
    for name in names
]
#: What one process can try; for the rest there are storages below plugins/sqlite.
TESTS = sorted(
    name.removeprefix("test_")
    for part in (Transactions, Transacted, Commits)
    for name in vars(part)
    if name.startswith("test_")
    and not required_by(vars(part)[name]) & {Capability.SHARED_PROCESSES}
)


@pytest.mark.parametrize("name", TESTS)
def test_a_sound_storage_passes(name: str) -> None:
    error = run(Subject(Transactional), name)
    assert error is None or isinstance(error, MissingCapability), error


@pytest.mark.parametrize(("broken", "name"), CASES)
def test_a_broken_storage_is_caught(broken: type[MemoryStorage], name: str) -> None:
    error = run(Subject(broken), name)
    assert error is not None
    assert not isinstance(error, MissingCapability)


@pytest.mark.parametrize("name", TESTS)
def test_who_does_not_declare_it_is_not_asked_for_it(name: str) -> None:
    assert isinstance(run(Subject(MemoryStorage), name), MissingCapability)


@pytest.mark.parametrize("name", TESTS)
def test_without_the_hook_a_declaration_fails(name: str) -> None:
    error = run(WithoutTheHook(Transactional), name)
    assert isinstance(error, AssertionError | MissingCapability)
    assert isinstance(error, MissingCapability) or "hook transactions()" in str(error)


def test_a_false_word_of_waiting_is_caught() -> None:
    name = "an_open_transaction_stops_no_other_where_it_need_not"
    assert "do not wait" in str(run(SaysThatAllWait(Transactional), name))


def test_every_test_of_transactions_has_caught_something() -> None:
    caught = {name for names in CAUGHT_BY.values() for name in names}
    assert set(TESTS) - caught == set()
