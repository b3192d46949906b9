"""The cost part of the storage contract, proven on storages that look at every job they have."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import pytest

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.job import JobRecord, JobRef, JobState, Outcome
from plugq.protocols import (
    Cancel,
    ClaimReply,
    ClaimRequest,
    Edit,
    EditReply,
    FindQuery,
    Holder,
    LeaseRef,
    NewJob,
    Page,
    PluginContext,
    Purge,
    Redrive,
    RenewReply,
    Reprioritise,
    Retain,
    Settlement,
    SettleReply,
    Stats,
    Storage,
    SubmitReply,
    SweepReply,
    SweepRequest,
)
from plugq.testing import StorageContract
from plugq.testing.contract.cost import Cost


class Scans(MemoryStorage):
    """Looks at every job where it should know."""

    #: How many jobs it has looked at in vain.
    looked = 0

    def look(self, *states: JobState) -> None:
        for record in self._jobs.by_sequence:
            self.looked += not states or record.state in states


class ScansToSubmit(Scans):
    """Searches for an id."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        self.look()
        return await super().submit(jobs)


class ScansWhatHasEnded(Scans):
    """Skips finished jobs one by one in each claim."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self.look(JobState.SUCCEEDED)
        return await super().claim(request)


class ScansToSettle(Scans):
    """Searches for the next job of a lane, alone or with a claim."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        self.look()
        return await super().settle(settlements, claim)


class ScansToRenew(Scans):
    """Searches for leases."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        self.look()
        return await super().renew(leases, lease=lease, holder=holder)


class ScansToSweep(Scans):
    """Asks every job whether its time has come."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        self.look(JobState.DELAYED)
        return await super().sweep(request)


class ScansToGet(Scans):
    """Searches for an id."""

    async def get(
        self, refs: Sequence[JobRef], *, body: bool = False, waiting: bool = False
    ) -> Sequence[JobRecord | None]:
        self.look()
        return await super().get(refs, body=body, waiting=waiting)


class ScansToFind(Scans):
    """Sorts everything for one page."""

    async def find(self, query: FindQuery) -> Page:
        self.look()
        return await super().find(query)


class ScansToCount(Scans):
    """Counts the jobs when it is asked."""

    async def stats(self) -> Stats:
        self.look(JobState.QUEUED)
        return await super().stats()


class ScansToEdit(Scans):
    """Searches for the jobs of one kind of edit."""

    kind: ClassVar[type[Any]]

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if isinstance(edit, self.kind):
            self.look()
        return await super().edit(edit)


class ScansToCancel(ScansToEdit):
    """Of one or two."""

    kind = Cancel


class ScansToRedrive(ScansToEdit):
    """Of one."""

    kind = Redrive


class ScansToReprioritise(ScansToEdit):
    """Of one."""

    kind = Reprioritise


class ScansToRetain(ScansToEdit):
    """Of one."""

    kind = Retain


class ScansToPurge(ScansToEdit):
    """Of one."""

    kind = Purge


class GivesUpEarly(Scans):
    """Passes over so many jobs and grants half of what it might."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self.looked = 0
        self.look(JobState.SUCCEEDED, JobState.CANCELLED)
        if self.looked >= 1_000:
            request = msgspec.structs.replace(request, limit=request.limit // 2)
        return await super().claim(request)


class GivesUpRetrying(Scans):
    """One of the jobs does not come back."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        last = [one for one in settlements if one.id != "7" or one.outcome is not Outcome.RETRY]
        replies = iter((await super().settle(last))[0])
        answers = [next(replies) if one in last else SettleReply(None) for one in settlements]
        return answers, None if claim is None else await self.claim(claim)


class GrantsInDribs(Scans):
    """A claim is never filled."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        limit = min(request.limit, 10)
        return await super().claim(msgspec.structs.replace(request, limit=limit))


CAUGHT_BY: dict[type[Scans], tuple[str, ...]] = {
    GivesUpEarly: (
        "a_claim_is_filled_however_much_has_ended_or_is_yet_to_come",
        "a_burst_of_cancelled_jobs_is_passed_over",
    ),
    GivesUpRetrying: ("a_retry_storm_keeps_every_job_once",),
    GrantsInDribs: ("the_number_of_calls_to_drain_does_not_grow_with_the_backlog",),
}

_GROWTH = "what_a_verb_costs_does_not_grow_with_what_is_stored"

CAUGHT_IN: dict[type[Scans], str] = {
    ScansToSubmit: "'submit'",
    ScansWhatHasEnded: "'claim'",
    ScansToSettle: "'settle'",
    ScansToRenew: "'renew'",
    ScansToSweep: "'sweep'",
    ScansToGet: "'get'",
    ScansToFind: "'find'",
    ScansToCount: "'stats'",
    ScansToCancel: "'cancel'",
    ScansToRedrive: "'redrive'",
    ScansToReprioritise: "'reprioritise'",
    ScansToRetain: "'retain'",
    ScansToPurge: "'purge'",
}


class Subject(StorageContract):
    """The contract for one class of storage, which is told how many jobs it looks at."""

    stored: ClassVar[int] = 5_000
    counts: ClassVar[bool] = True

    def __init__(self, storage: type[Scans]) -> None:
        self._class = storage
        self._stores: weakref.WeakKeyDictionary[PluginContext, Scans] = weakref.WeakKeyDictionary()

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

    async def work(self, storage: Storage) -> int | None:
        assert isinstance(storage, Scans)
        return storage.looked if self.counts else None


class Timed(Subject):
    """The same where nothing is counted."""

    stored = 20_000
    counts = False


def run(subject: StorageContract, name: str = _GROWTH) -> AssertionError | None:
    """Run one contract test and return what it failed with."""
    try:
        with asyncio.Runner() as runner:
            runner.run(getattr(subject, f"test_{name}")())
    except AssertionError as error:
        return error
    return None


@pytest.mark.parametrize("broken", CAUGHT_IN)
def test_a_verb_that_looks_at_every_job_is_caught_by_its_work(broken: type[Scans]) -> None:
    error = run(Subject(broken))
    assert error is not None
    assert CAUGHT_IN[broken] in str(error)
    assert "of its own work" in str(error)


@pytest.mark.parametrize("broken", [ScansWhatHasEnded, ScansToSettle, ScansToSweep])
def test_a_verb_that_looks_at_every_job_is_caught_by_its_time(broken: type[Scans]) -> None:
    error = run(Timed(broken))
    assert error is not None
    assert CAUGHT_IN[broken] in str(error)
    assert "CPU time" in str(error)


@pytest.mark.parametrize("kind", [Subject, Timed])
def test_a_storage_that_knows_its_jobs_passes(kind: type[Subject]) -> None:
    assert run(kind(Scans)) is None


CASES = [
    pytest.param(broken, name, id=f"{broken.__name__}-{name}")
    for broken, names in CAUGHT_BY.items()
    for name in names
]


@pytest.mark.parametrize(("broken", "name"), CASES)
def test_work_that_is_not_in_proportion_is_caught(broken: type[Scans], name: str) -> None:
    assert run(Subject(Scans), name) is None
    assert run(Subject(broken), name) is not None


def test_every_test_of_cost_has_caught_something() -> None:
    tests = {name for name in vars(Cost) if name.startswith("test_")}
    names = {_GROWTH, *(name for names in CAUGHT_BY.values() for name in names)}
    assert tests == {f"test_{name}" for name in names}
