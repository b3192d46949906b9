"""The storage contract, proven: each storage here breaks one promise and must be caught.

A contract that no bad storage has ever failed proves nothing. Every class below is the memory
storage with one fault; the test runs those contract tests that are there for that promise, on
the sound storage and on the broken one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import weakref
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from math import floor, inf
from typing import Any, ClassVar

import msgspec
import pytest

from plugq.allowance import Use
from plugq.builtin import memory_index
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.builtin.memory_signals import Listener, Watch
from plugq.errors import InvalidJob, Unavailable
from plugq.events import JobEvent
from plugq.job import JobRecord, JobRef, JobState, Outcome
from plugq.protocols import (
    BACKLOG,
    BatchCounts,
    Budget,
    Cancel,
    Capability,
    ClaimReply,
    ClaimRequest,
    Configure,
    Drain,
    Edit,
    EditReply,
    EditStatus,
    FindQuery,
    Grant,
    Heard,
    Holder,
    Lease,
    LeaseRef,
    NewJob,
    Notice,
    Page,
    Pause,
    PluginContext,
    Purge,
    QueueSettings,
    Redrive,
    RegisterChange,
    RenewReply,
    Reprioritise,
    Retain,
    Settlement,
    SettleReply,
    Stats,
    Storage,
    SubmitReply,
    SubmitStatus,
    Swapped,
    SweepReply,
    SweepRequest,
    UniqueKey,
    UniqueMode,
)
from plugq.protocols.edits import JobEdit
from plugq.testing import StorageContract

replace = msgspec.structs.replace


class LosesAJob(MemoryStorage):
    """Every third submission of a call is acknowledged and forgotten."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        replies = list(await super().submit(jobs))
        for job, reply in list(zip(jobs, replies, strict=True))[2::3]:
            record = self._jobs.find(job.queue, reply.id)
            if record is not None and record.state is JobState.QUEUED:
                self._jobs.cancel(record, 0.0)
                self._jobs.remove(record)
        return replies


class AcceptsWithoutStoring(MemoryStorage):
    """A submission to a full queue is answered as if it had been stored."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        replies = await super().submit(jobs)
        return [
            replace(reply, status=SubmitStatus.ACCEPTED)
            if reply.status is SubmitStatus.FULL
            else reply
            for reply in replies
        ]


class BlamesEveryQueue(MemoryStorage):
    """Of a call that is refused each job is told that its own queue is full."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        replies = await super().submit(jobs)
        return [
            replace(reply, status=SubmitStatus.FULL)
            if reply.status is SubmitStatus.REFUSED
            else reply
            for reply in replies
        ]


class StoresHalfOfAFullCall(MemoryStorage):
    """What fits is stored, the rest is refused."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return [(await super(StoresHalfOfAFullCall, self).submit([job]))[0] for job in jobs]


class RevivesTheCancelled(MemoryStorage):
    """A submission that is sent again opens a new generation of a cancelled job."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        changed = []
        for job in jobs:
            record = self._jobs.find(job.queue, job.id)
            cancelled = record is not None and record.state is JobState.CANCELLED
            changed.append(replace(job, submission=b"another") if cancelled else job)
        return await super().submit(changed)


class ForgetsUniqueKeys(MemoryStorage):
    """Unique keys are judged, but freed as soon as anything is swept or claimed."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        for queue in self._jobs.queues.values():
            queue.keys.clear()
        return await super().claim(request)


class GrantsTwice(MemoryStorage):
    """Claims that arrive together are given the same jobs."""

    _last: tuple[Any, ...] = ()

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        room = request.limit - len(reply.leases)
        current = [lease for lease in self._last if self._stands(lease)][:room]
        self._last = reply.leases
        return replace(reply, leases=(*reply.leases, *current))

    def _stands(self, lease: Any) -> bool:
        record = self._jobs.find(lease.queue, lease.id)
        return record is not None and record.claim is not None and record.token == lease.token


class GrantsMoreToARepeatedClaim(MemoryStorage):
    """Claim numbers mean nothing."""

    _number = 0

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self._number += 1
        return await super().claim(replace(request, number=self._number))


class EditsWhoeverHasTheId(MemoryStorage):
    """An edit is made to the job that has the id now."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        return await super().edit(
            replace(edit, sequences=()) if isinstance(edit, JobEdit) else edit
        )


class EditsInAnyState(MemoryStorage):
    """An edit is made to jobs that have moved on."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        return await super().edit(replace(edit, states=()) if isinstance(edit, JobEdit) else edit)


class IgnoresTheTokenOnSettle(MemoryStorage):
    """Whoever names a running job may settle it."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        forged = []
        for settlement in settlements:
            record = self._jobs.find(settlement.queue, settlement.id)
            token = settlement.token if record is None else record.token
            forged.append(replace(settlement, token=token))
        return await super().settle(forged, claim)


class IgnoresTheTokenOnRenew(MemoryStorage):
    """Whoever names a running job may renew its lease."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        forged = []
        for ref in leases:
            record = self._jobs.find(ref.queue, ref.id)
            forged.append(ref if record is None else replace(ref, token=record.token))
        return await super().renew(forged, lease=lease, holder=holder)


class IgnoresTheHolder(MemoryStorage):
    """Leases of lost replies stay with a worker that knows nothing of them."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        del holder
        return await super().renew(leases, lease=lease)


class RepeatsATokenAfterPurge(MemoryStorage):
    """The counter goes with the last job of its queue."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        replies = await super().edit(edit)
        for queue in self._jobs.queues.values():
            if isinstance(edit, Purge) and not queue.jobs:
                queue.token = 0
        return replies


class EndsLeasesByTime(MemoryStorage):
    """A lease that has lapsed is refused before any sweep has ended it."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        checked = []
        for settlement in settlements:
            record = self._jobs.find(settlement.queue, settlement.id)
            lapsed = record is not None and record.lease_until <= self._clock.time()
            checked.append(replace(settlement, token=-1) if lapsed else settlement)
        return await super().settle(checked, claim)


class EndsLeasesTooSoon(MemoryStorage):
    """A sweep ends leases although it was told not to."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        return await super().sweep(replace(request, end_leases=True))


class CountsNoCrash(MemoryStorage):
    """A job may kill as many workers as it likes."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        return await super().sweep(replace(request, max_crashes=10**6))


class ReleasesSpendAnAttempt(MemoryStorage):
    """A shutdown costs the job one of its attempts."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, claimed = await super().settle(settlements, claim)
        for settlement, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(settlement.queue, settlement.id)
            if record is not None and settlement.outcome is Outcome.RELEASE and not reply.lost:
                record.attempt += 1
        return replies, claimed


class ForgetsLanes(MemoryStorage):
    """Any number of jobs of a lane may run."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        for name in {job.queue for job in jobs}:
            if self._jobs.queue(name).settings is None:
                settings = QueueSettings(queue=name, lane_max_running=10**6)
                self._jobs.queue(name).configure(settings)
        return await super().submit(jobs)


class TakesTheHeadsOfLanesFirst(MemoryStorage):
    """In one claim the rest of a lane comes after what stands behind it."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        heads: list[Lease] = []
        rest: list[Lease] = []
        for lease in reply.leases:
            full = sum(head.lane == lease.lane for head in heads) >= 128
            (rest if full and lease.lane is not None else heads).append(lease)
        return replace(reply, leases=(*heads, *rest))


class LetsInOnlyTheFirstOfALane(MemoryStorage):
    """A start lets nothing in where many of a lane may run."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if isinstance(edit, Configure):
            edit = Configure(
                tuple(
                    replace(settings, lane_max_running=min(settings.lane_max_running, 128))
                    for settings in edit.settings
                )
            )
        return await super().edit(edit)


class LetsALateHolderFreeTheLane(MemoryStorage):
    """A settlement that is refused still counts down what runs in its lane."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, _ = await super().settle(settlements)
        for settlement, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(settlement.queue, settlement.id)
            if reply.lost and record is not None and record.job.lane in record.queue.lanes:
                lane = record.queue.lanes[record.job.lane]
                if lane.running:
                    record.queue.running += 1
                    record.queue.leave_running(record)
        return replies, None if claim is None else await self.claim(claim)


class IgnoresMaxRunning(MemoryStorage):
    """The limit of a queue is shown but not kept."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        for queue in self._jobs.queues.values():
            queue.running = 0
        return await super().claim(request)


class IgnoresBudgets(MemoryStorage):
    """A limited queue grants what it has."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        for queue in self._jobs.queues.values():
            queue.limited = None
        return await super().claim(request)


class WithOtherGrants(MemoryStorage):
    """Uses other grants than those that a claim brings."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        grants = tuple(self._changed(grant) for grant in request.grants)
        return await super().claim(replace(request, grants=grants))

    def _changed(self, grant: Grant) -> Grant:
        budgets = tuple(self._other(grant.queue, budget) for budget in grant.budgets)
        return replace(grant, budgets=budgets)

    def _other(self, queue: str, budget: Budget) -> Budget:
        raise NotImplementedError


class TakesMoreThanABudget(WithOtherGrants):
    """One start too many."""

    def _other(self, queue: str, budget: Budget) -> Budget:
        return replace(budget, states=(*budget.states, *budget.states[-1:]))


class SpendsOutdatedBudgets(WithOtherGrants):
    """What two have decided on one state starts twice as much."""

    def _other(self, queue: str, budget: Budget) -> Budget:
        state = self._jobs.budgets.read(self._jobs.queue(queue), budget.lane, self._latest)
        return replace(budget, expect=state.version)


class ForgetsToPark(WithOtherGrants):
    """Every claim walks over what limiters have refused."""

    def _other(self, queue: str, budget: Budget) -> Budget:
        return replace(budget, retry_at=None)


class SpendsOldGrants(WithOtherGrants):
    """Starts lag behind the moment as of which they were counted."""

    def _changed(self, grant: Grant) -> Grant:
        return replace(grant, at=self._latest)


class SpendsGrantsOfOtherLimits(WithOtherGrants):
    """New limits hold from some later claim on."""

    def _changed(self, grant: Grant) -> Grant:
        return replace(grant, revision=self._jobs.queue(grant.queue).revision)


class WritesUnspentBudgets(MemoryStorage):
    """A budget that was brought is gone, whether it was used or not."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        spent = {(spent.queue, spent.state.lane) for spent in reply.spent}
        for grant in request.grants:
            for budget in grant.budgets:
                if budget.states and (grant.queue, budget.lane) not in spent:
                    use = Use(budget.lane, 1, budget.states[-1], budget.ttl)
                    self._jobs.budgets.write(self._jobs.queue(grant.queue), use, self._latest)
        return reply


class RepeatsBudgetVersions(MemoryStorage):
    """A state counts from 1 again when the one before has expired."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self._registers._version = 0
        return await super().claim(request)


class NeverLetsIn(MemoryStorage):
    """What is parked stays so."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self._forget()
        return await super().claim(request)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        self._forget()
        return await super().sweep(request)

    def _forget(self) -> None:
        for queue in self._jobs.queues.values():
            queue._parked.clear()
            if queue.parked_until is not None:
                queue.park(inf)


class LetsInByClaimsAlone(NeverLetsIn):
    """Where the process that parked a lane has died, nobody is woken for it."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        return await MemoryStorage.claim(self, request)


class KeepsParkedLanesUnderNewLimits(MemoryStorage):
    """They go on waiting for what the former limits said."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        held = {queue: queue._parked for queue in self._jobs.queues.values()}
        for queue in held:
            queue._parked = []
        try:
            return await super().edit(edit)
        finally:
            for queue, parked in held.items():
                queue._parked = parked


class WaitsAtALane(MemoryStorage):
    """A lane without a budget holds up what stands behind it."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        if reply.wants and reply.leases:
            for lease in reply.leases:
                record = self._jobs.find(lease.queue, lease.id)
                assert record is not None
                self._jobs.end_lease(record)
                self._jobs.wait(record, JobState.QUEUED)
            return replace(reply, leases=(), spent=())
        return reply


class ClaimsOfNothingCountAsIdle(MemoryStorage):
    """A peer without a free place is woken in place of one that has some."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        if not request.limit and request.peer:
            queues = [self._jobs.queue(name) for name in request.queues]
            self._signals.idle(request.peer, queues)
        return reply


class IdlesForItsLastClaimAlone(MemoryStorage):
    """A broker that claims for workers of different queues is woken for the last one's only."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        if len(reply.leases) < request.limit and request.peer:
            self._signals._busy(request.peer)
            queues = [self._jobs.queue(name) for name in request.queues]
            self._signals.idle(request.peer, queues)
        return reply


class WakesForWhatAClaimWants(MemoryStorage):
    """Everybody comes for jobs that the claimer fetches in its next breath."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        for want in reply.wants:
            self._jobs.queue(want.queue).fresh = len(want.ready)
        self._signals.flush(caller=request.peer)
        return reply


class WakesAllForAQueue(MemoryStorage):
    """A queue that is let in brings every idle peer, and one can spend its budget."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        parked = [queue for queue in self._jobs.queues.values() if queue.parked_until is not None]
        reply = await super().claim(request)
        for queue in parked:
            queue.fresh = queue.ready if queue.parked_until is None else 0
        self._signals.flush(caller=request.peer)
        return reply


class LeavesTheRestOfABudget(MemoryStorage):
    """A claim that is full keeps the rest of the budget from those that have room."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        idle, self._signals._idle_of = self._signals._idle_of, {}
        try:
            return await super().claim(request)
        finally:
            self._signals._idle_of = idle


class IgnoresThePriority(MemoryStorage):
    """First come, first served."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit([replace(job, priority=0) for job in jobs])


class Reorders(MemoryStorage):
    """The jobs of one claim come in any order."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        return replace(reply, leases=reply.leases[::-1])


class SendsReleasedJobsToTheBack(MemoryStorage):
    """A released job takes its place anew."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        for settlement in settlements:
            record = self._jobs.find(settlement.queue, settlement.id)
            if record is not None and settlement.outcome is Outcome.RELEASE:
                record.ready_at = self._clock.time()
                record.sequence += 10**6
        return await super().settle(settlements, claim)


class RunsJobsPastTheirDeadline(MemoryStorage):
    """Only the sweep looks at deadlines."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        records = [record for queue in self._jobs.queues.values() for record in queue.jobs.values()]
        deadlines = [record.deadline_at for record in records]
        for record in records:
            record.deadline_at = None
        reply = await super().claim(request)
        for record, deadline_at in zip(records, deadlines, strict=True):
            record.deadline_at = deadline_at
        return reply


class KeepsExpiredResults(MemoryStorage):
    """A value is shown until its job is removed."""

    async def get(
        self, refs: Sequence[JobRef], *, body: bool = False, waiting: bool = False
    ) -> Sequence[JobRecord | None]:
        del waiting
        return await super().get(refs, body=body, waiting=True)


class DropsResultsAtOnce(MemoryStorage):
    """A result with a ttl of 0 does not reach those who wait for it."""

    async def get(
        self, refs: Sequence[JobRef], *, body: bool = False, waiting: bool = False
    ) -> Sequence[JobRecord | None]:
        del waiting
        return await super().get(refs, body=body, waiting=False)


class ForgetsIdsWithTheirResults(MemoryStorage):
    """``id_ttl`` is not kept."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit([replace(job, id_ttl=0.0) for job in jobs])


class LivesInThePast(MemoryStorage):
    """Its clock runs backwards when the machine's does."""

    def _now(self) -> float:
        self._latest = 0.0
        return super()._now()


class NeverWakes(MemoryStorage):
    """Idle peers have to poll."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        return await super().claim(replace(request, peer=""))


class WakesEverybody(MemoryStorage):
    """One job, a hundred peers."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        replies = await super().submit(jobs)
        for queue in {job.queue for job in jobs}:
            self._jobs.queue(queue).fresh = 10**6
        for watches in self._signals._watches.values():
            for watch in watches:
                watch.tell_wake()
        return replies


class TellsNobodyOfAPurge(MemoryStorage):
    """Those who wait for a job that was purged wait on."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if isinstance(edit, Purge):
            for ref in edit.refs:
                record = self._jobs.find(ref.queue, ref.id)
                if record is not None:
                    record.job = replace(record.job, origin="")
        return await super().edit(edit)


class SwapsHalf(MemoryStorage):
    """Of several changes those that fit are made."""

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        parts = [await super(SwapsHalf, self).swap([change]) for change in changes]
        return Swapped(
            done=all(part.done for part in parts),
            registers=tuple(part.registers[0] for part in parts),
            now=parts[0].now,
        )


class RepeatsVersions(MemoryStorage):
    """A register that was removed begins anew with version 1."""

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        if not self._registers._values:
            self._registers._version = 0
        return await super().swap(changes)


class PagesByOffset(MemoryStorage):
    """A page begins where the one before ended, counted from the newest."""

    async def find(self, query: FindQuery) -> Page:
        skipped = int(query.cursor or "0")
        whole = await super().find(replace(query, cursor=None, limit=10**6))
        jobs = whole.jobs[skipped : skipped + query.limit]
        more = skipped + query.limit < len(whole.jobs)
        return Page(jobs=jobs, cursor=str(skipped + query.limit) if more else None)


class Miscounts(MemoryStorage):
    """What was removed is not counted."""

    async def stats(self) -> Stats:
        stats = await super().stats()
        tasks = tuple(replace(task, totals={**task.totals, "removed": 0}) for task in stats.tasks)
        return replace(stats, tasks=tasks)


class TakesJobsWhileItDrains(MemoryStorage):
    """A drain is shown but not kept."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        drained = [queue for queue in self._jobs.queues.values() if queue.draining]
        for queue in drained:
            queue.draining = False
        replies = await super().submit(jobs)
        for queue in drained:
            queue.draining = True
        return replies


class StopsWhileItDrains(MemoryStorage):
    """A queue that is drained is paused, too."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if isinstance(edit, Drain):
            await super().edit(Pause(edit.queues))
        return await super().edit(edit)


class IgnoresRetain(MemoryStorage):
    """Jobs are kept as long as they came with."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if isinstance(edit, Retain):
            records = [self._jobs.find(ref.queue, ref.id) for ref in edit.refs]
            return [
                EditReply(EditStatus.NOT_FOUND)
                if record is None
                else EditReply(EditStatus.DONE, record.state)
                for record in records
            ]
        return await super().edit(edit)


class RetainsAtTheCostOfTheId(MemoryStorage):
    """A short retention makes an id free for whoever sends it again."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        for ref in edit.refs if isinstance(edit, Retain) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None:
                record.job = replace(record.job, id_ttl=0.0)
        return await super().edit(edit)


class RevivesExpiredResults(MemoryStorage):
    """What nobody could see any more is shown again when its job is retained."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        for ref in edit.refs if isinstance(edit, Retain) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None:
                record.value_until = None
        return await super().edit(edit)


class OnlyShowsANewPriority(MemoryStorage):
    """What is queued keeps its place."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if not isinstance(edit, Reprioritise):
            return await super().edit(edit)
        replies = []
        for ref in edit.refs:
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.state is JobState.QUEUED:
                record.job = replace(record.job, priority=edit.priority)
                replies.append(EditReply(EditStatus.DONE, record.state))
            else:
                replies += await super().edit(Reprioritise((ref,), edit.priority))
        return replies


class ReprioritisesToTheBack(MemoryStorage):
    """A job with another priority is ready only from now on."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        for ref in edit.refs if isinstance(edit, Reprioritise) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.state is JobState.QUEUED:
                record.ready_at = self._clock.time()
        return await super().edit(edit)


class LeavesTheLaneAsItWas(MemoryStorage):
    """The head of a lane stays the head, whatever its priority is now."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if not isinstance(edit, Reprioritise):
            return await super().edit(edit)
        free = tuple(
            ref
            for ref in edit.refs
            if (record := self._jobs.find(ref.queue, ref.id)) is None or record.job.lane is None
        )
        return await super().edit(Reprioritise(free, edit.priority))


class SaysLittleOfWhatItEdits(MemoryStorage):
    """An answer tells only what was done."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        return [EditReply(reply.status, reply.state) for reply in await super().edit(edit)]


class SaysLittleOfWhatItSweeps(MemoryStorage):
    """A change tells neither lane nor batch."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        reply = await super().sweep(request)
        changes = tuple(replace(change, lane=None, batch=None) for change in reply.changes)
        return replace(reply, changes=changes)


class CountsBatchesByWhatIsStored(MemoryStorage):
    """What retention, a purge or a new generation removed is missing in its batch."""

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        return [
            counts if counts is None else self._recount(counts)
            for counts in await super().batches(batches)
        ]

    def _recount(self, counts: BatchCounts) -> BatchCounts:
        stored: Sequence[Any] = self._jobs.by_batch.get(counts.batch, ())
        states = [record.state for record in stored if record.move]
        return replace(counts, counts={str(state): states.count(state) for state in JobState})


class CountsARedrivenJobTwice(MemoryStorage):
    """It is queued in its batch and failed as well."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        before = {}
        for ref in edit.refs if isinstance(edit, Redrive) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None:
                before[ref] = record.state
        replies = await super().edit(edit)
        for ref, state in before.items():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.batch is not None and record.state is not state:
                record.batch.counts[state] += 1
        return replies


class ForgetsTheCancelledInItsBatch(MemoryStorage):
    """A new generation takes the place of the one before in the counts."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        former = [self._jobs.find(job.queue, job.id) for job in jobs]
        replies = await super().submit(jobs)
        for record, reply in zip(former, replies, strict=True):
            if record is not None and record.batch is not None:
                replaced = reply.generation > record.generation
                record.batch.counts[JobState.CANCELLED] -= replaced
        return replies


class ForgetsBatchesWithTheirLastJob(MemoryStorage):
    """Counts go as soon as nothing of the batch is live."""

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        live = ("delayed", "queued", "running")
        return [
            counts if counts is not None and any(counts.counts[state] for state in live) else None
            for counts in await super().batches(batches)
        ]


class RemembersBatchesForEver(MemoryStorage):
    """Counts are never forgotten."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        self._keep()
        return await super().edit(edit)

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        self._keep()
        return await super().batches(batches)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        self._keep()
        return await super().sweep(request)

    def _keep(self) -> None:
        for batch in self._jobs.batches._batches.values():
            batch.until = None


class TakesFromCountsThatAreForgotten(MemoryStorage):
    """A job that is redriven leaves a state in which its new batch never had it."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        former = {}
        for ref in edit.refs if isinstance(edit, Redrive) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.batch is not None:
                former[ref] = (record.batch, record.state)
        replies = await super().edit(edit)
        for ref, (batch, state) in former.items():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.batch is not None and record.batch is not batch:
                record.batch.counts[state] -= 1
        return replies


class FindsBatchesBySearching(MemoryStorage):
    """Every job is looked at for those of one batch."""

    async def find(self, query: FindQuery) -> Page:
        page = await super().find(replace(query, batch=None))
        if query.batch is None:
            return page
        return replace(page, jobs=tuple(job for job in page.jobs if job.batch == query.batch))


class TakesTheNextForTheOldest(MemoryStorage):
    """The job that is claimed next stands for the one that has waited longest."""

    async def stats(self) -> Stats:
        stats = await super().stats()
        queues = []
        for queue in stats.queues:
            ready = [
                record for record in self._jobs.queue(queue.queue).jobs.values() if record.place
            ]
            first = min(ready, key=lambda one: (one.order, one.ready_at), default=None)
            oldest = None if first is None else stats.now - first.ready_at
            queues.append(replace(queue, oldest=oldest))
        return replace(stats, queues=tuple(queues))


class CountsTheBlockedAsReady(MemoryStorage):
    """What waits behind its lane ages, too."""

    async def stats(self) -> Stats:
        stats = await super().stats()
        queues = []
        for queue in stats.queues:
            jobs = self._jobs.queue(queue.queue).jobs.values()
            ready = [record.ready_at for record in jobs if record.state is JobState.QUEUED]
            queues.append(replace(queue, oldest=stats.now - min(ready) if ready else None))
        return replace(stats, queues=tuple(queues))


class LooksOnlyAtTheHeadsOfLanes(MemoryStorage):
    """What else a lane may run is not taken for ready."""

    async def stats(self) -> Stats:
        stats = await super().stats()
        queues = []
        for queue in stats.queues:
            jobs = self._jobs.queue(queue.queue).jobs.values()
            ready = [record.ready_at for record in jobs if record.place]
            queues.append(replace(queue, oldest=stats.now - min(ready) if ready else None))
        return replace(stats, queues=tuple(queues))


class ItsRateNeverDecays(MemoryStorage):
    """A burst of an hour ago counts as one of now."""

    async def stats(self) -> Stats:
        for queue in self._jobs.queues.values():
            for tally in queue.tallies.values():
                tally.rate_at = float("inf")
        return await super().stats()


class CountsOnlySettledEnds(MemoryStorage):
    """What was cancelled or swept has no part in the rate."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        rates = self._rates()
        replies = await super().edit(edit)
        for tally, rate in rates.items():
            tally.rate = rate
        return replies

    def _rates(self) -> dict[Any, float]:
        queues = self._jobs.queues.values()
        return {tally: tally.rate for queue in queues for tally in queue.tallies.values()}


class TakesEveryAttemptForARun(MemoryStorage):
    """Attempts that were given back count as runs as well."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        for settlement in settlements:
            record = self._jobs.find(settlement.queue, settlement.id)
            if record is not None and settlement.outcome in {Outcome.SNOOZE, Outcome.RELEASE}:
                record.tally.run_seconds += self._clock.time() - (record.started_at or 0.0)
                record.tally.run_count += 1
        return await super().settle(settlements, claim)


class RestoresAsNew(MemoryStorage):
    """A restored job begins anew."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore([replace(job, attempt=0, token=0) for job in jobs])


class RestoresWhatIsLeft(MemoryStorage):
    """What is left of the retention of a restored job is what its results are kept for."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore(jobs)
        for job in jobs:
            record = self._jobs.find(job.queue, job.id)
            if record is not None and job.expires_at is not None and job.finished_at is not None:
                left = job.expires_at - job.finished_at
                record.job = replace(record.job, result_ttl=left)


class LeaksForeignErrors(MemoryStorage):
    """After stop its verbs fail with whatever comes up."""

    def _now(self) -> float:
        if not self._signals.users:
            raise KeyError("store")
        return super()._now()


class WorksAfterStop(MemoryStorage):
    """Stopping it has no effect."""

    async def stop(self) -> None:
        self._signals.users = max(self._signals.users, 2)
        await super().stop()


class CancelsWhatRuns(MemoryStorage):
    """A running job that is cancelled is ended under its holder."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        for ref in edit.refs if isinstance(edit, Cancel) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.state is JobState.RUNNING:
                self._jobs.end_lease(record)
                self._jobs.finish(record, JobState.CANCELLED, self._clock.time())
        return await super().edit(edit)


class CutsTextAtNul(MemoryStorage):
    """Text is kept as C would keep it."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit([replace(job, id=job.id.split("\x00")[0]) for job in jobs])


class GrantsInDribs(MemoryStorage):
    """However much is asked for, a claim grants no more than ten."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        return await super().claim(replace(request, limit=min(10, request.limit)))


class OwnListener(MemoryStorage):
    """Its listeners are of another class."""

    listener: ClassVar[type[Listener]] = Listener

    def listen(self) -> Listener:
        return self.listener(self._signals, self._lock)


class DropsEventsSilently(OwnListener):
    """Of too many events the oldest go, and nobody learns of it."""

    class listener(Listener):  # noqa: N801 - in place of the attribute
        def tell(self, events: Sequence[JobEvent]) -> None:
            self._events = [*self._events, *events][-BACKLOG:]
            self._rouse()


class KeepsEveryEvent(OwnListener):
    """A listener that fetches nothing fills the memory."""

    class listener(Listener):  # noqa: N801 - in place of the attribute
        def tell(self, events: Sequence[JobEvent]) -> None:
            self._events += events
            self._rouse()


class LosesEventsOfACancelledWait(OwnListener):
    """What a wait had in hand when it was cancelled is gone."""

    class listener(Listener):  # noqa: N801 - in place of the attribute
        async def asend(self, value: None, /) -> Heard:
            heard = await super().asend(value)
            await asyncio.sleep(0)
            return heard


class LeaksAClosedListener(OwnListener):
    """Events are built and kept for those who have gone."""

    class listener(Listener):  # noqa: N801 - in place of the attribute
        def _leave(self) -> None:
            pass


class BeginsToListenWithoutAWord(OwnListener):
    """Nothing says from when on everything is heard."""

    class listener(Listener):  # noqa: N801 - in place of the attribute
        def _enter(self) -> None:
            super()._enter()
            self._resync = False


class TellsTheNewestOnly(OwnListener):
    """One listener hears what happens, the others do not."""

    def tell(self, events: Sequence[JobEvent]) -> None:
        with self._lock:
            for listener in list(self._signals.listeners)[-1:]:
                listener.tell(events)


class TellsInAnyOrder(MemoryStorage):
    """The events of a call come as they like."""

    def tell(self, events: Sequence[JobEvent]) -> None:
        super().tell(events[::-1])


class NeverListened(MemoryStorage):
    """So that nothing is ever told."""

    @property
    def listened(self) -> bool:
        return False


class AlwaysListened(MemoryStorage):
    """So that events are built for nobody."""

    @property
    def listened(self) -> bool:
        return True


class TellsWithoutTheirTexts(MemoryStorage):
    """What is no ASCII is left out."""

    def tell(self, events: Sequence[JobEvent]) -> None:
        super().tell(
            [replace(e, message=e.message.encode("ascii", "ignore").decode()) for e in events]
        )


class FailsToTell(MemoryStorage):
    """Whoever tells with nobody there is in trouble."""

    def tell(self, events: Sequence[JobEvent]) -> None:
        self._signals.check_serving()
        super().tell(events)


class LetsTheLastSettlementCount(MemoryStorage):
    """Whoever settles what has ended replaces its result."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, claimed = await super().settle(settlements, claim)
        taken = []
        for settlement, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(settlement.queue, settlement.id)
            same = record is not None and record.token == settlement.token
            if record is not None and reply.lost and same and record.state.final:
                record.result = settlement.result
                taken.append(SettleReply(record.state))
            else:
                taken.append(reply)
        return taken, claimed


class KeepsTheTokenOfAJob(MemoryStorage):
    """Every attempt of a job runs under the token of the first."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        first = {
            (job.job.queue, job.job.id): job.token
            for queue in self._jobs.queues.values()
            for job in queue.jobs.values()
            if job.token
        }
        reply = await super().claim(request)
        leases = []
        for lease in reply.leases:
            token = first.get((lease.queue, lease.id), lease.token)
            record = self._jobs.find(lease.queue, lease.id)
            if record is not None:
                record.token = token
            leases.append(replace(lease, token=token))
        return replace(reply, leases=tuple(leases))


class CountsWhatItRefuses(MemoryStorage):
    """A settlement that is refused counts as an end all the same."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, claimed = await super().settle(settlements, claim)
        for settlement, reply in zip(settlements, replies, strict=True):
            if reply.lost:
                self._jobs.queue(settlement.queue).tally("t").totals["failed"] += 1
        return replies, claimed


class KeepsStaleErrors(MemoryStorage):
    """A settlement that is refused leaves its error with the job."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, claimed = await super().settle(settlements, claim)
        for settlement, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(settlement.queue, settlement.id)
            if reply.lost and record is not None and settlement.error is not None:
                record.history += (settlement.error,)
        return replies, claimed


class KeepsStaleProgress(MemoryStorage):
    """Progress is taken from whoever names the job."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        replies = await super().renew(leases, lease=lease, holder=holder)
        for ref in leases:
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and ref.progress is not None:
                record.progress = ref.progress
        return replies


class FreesTheKeyForALateHolder(MemoryStorage):
    """A settlement that is refused still gives the unique key away."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, claimed = await super().settle(settlements, claim)
        for settlement, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(settlement.queue, settlement.id)
            if reply.lost and record is not None:
                record.queue.free(record)
        return replies, claimed


class EndsLeasesInClaims(MemoryStorage):
    """Whoever claims next is given what has lapsed."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        await super().sweep(SweepRequest())
        return await super().claim(request)


class EndsLeasesWithTheWatch(MemoryStorage):
    """A worker that watches no more has lost its leases."""

    async def stop(self) -> None:
        with self._lock:
            for queue in self._jobs.queues.values():
                for record in list(queue.jobs.values()):
                    if record.state is JobState.RUNNING:
                        self._jobs.end_lease(record)
                        self._jobs.wait(record, JobState.QUEUED)
        await super().stop()


class EndsTheLeaseOfADuplicate(MemoryStorage):
    """A submission of an id that runs makes it run again."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        for job in jobs:
            record = self._jobs.find(job.queue, job.id)
            if record is not None and record.state is JobState.RUNNING:
                self._jobs.end_lease(record)
                self._jobs.wait(record, JobState.QUEUED)
        return await super().submit(jobs)


class Lasting(MemoryStorage):
    """Sound: outlives its users, and several instances with clocks of their own share it."""

    capabilities: ClassVar[frozenset[Capability]] = MemoryStorage.capabilities | {
        Capability.DURABLE,
        Capability.SHARED_PROCESSES,
    }

    def __init__(self, options: MemoryOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        self._times = [0.0]

    def join(self, other: Lasting) -> None:
        """Use what another instance holds."""
        self._lock, self._signals, self._jobs = other._lock, other._signals, other._jobs
        self._registers, self._times = other._registers, other._times

    def _now(self) -> float:
        self._times[0] = max(self._times[0], super()._now())
        return self._times[0]


class EndsLeasesWithTheProcess(Lasting, EndsLeasesWithTheWatch):
    """A restart begins with every lease ended."""


class HasATimeForEachUser(Lasting):
    """Each instance goes by its own clock."""

    def _now(self) -> float:
        return MemoryStorage._now(self)


class TrustsTheClock(Lasting):
    """What the clock says is the time, forwards and backwards."""

    def _now(self) -> float:
        self._signals.check_serving()
        return self._clock.time()


class MakesTokensOfTheClock(Lasting):
    """Tokens are the time of the grant by the clock of whoever grants."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        for queue in self._jobs.queues.values():
            queue.token = 0
        kept, self._times = self._times, [0.0]
        try:
            return await super().claim(request)
        finally:
            self._times = kept


class SubmitsInHalves(MemoryStorage):
    """Other tasks, and the end of the caller, come between the jobs of one call."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        first = await super().submit(jobs[:1])
        await asyncio.sleep(0)
        return [*first, *await super().submit(jobs[1:])]


class SettlesInHalves(MemoryStorage):
    """The claim of a settlement is a step of its own."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, _ = await super().settle(settlements)
        await asyncio.sleep(0)
        return replies, None if claim is None else await self.claim(claim)


class ForgetsACancelledClaim(GrantsMoreToARepeatedClaim):
    """What was granted to a caller who did not wait for it is granted to nobody."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        await asyncio.sleep(0)
        return reply


class FailsTheNeighbours(MemoryStorage):
    """When one of those who wait is cancelled, all of them fail."""

    _poisoned = False

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self._poisoned = True
            raise
        if self._poisoned:
            raise Unavailable("somebody was cancelled")
        return await super().submit(jobs)


class StaysLockedByACancelledReader(MemoryStorage):
    """A reader that is cancelled never gives back what it took."""

    _taken = False

    async def stats(self) -> Stats:
        if self._taken:
            raise Unavailable("somebody reads")
        self._taken = True
        await asyncio.sleep(0)
        self._taken = False
        return await super().stats()


class OwnWatch(MemoryStorage):
    """Its watches are of another class."""

    watcher: ClassVar[type[Watch]] = Watch

    def watch(self, peer: str) -> Watch:
        return self.watcher(peer, self._signals, self._lock)


class BreaksAWatchThatIsCancelled(OwnWatch):
    """A watch that was cancelled while it opened is over."""

    class watcher(Watch):  # noqa: N801 - in place of the attribute
        async def asend(self, value: None, /) -> Notice:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                self._closed = True
                raise
            return await super().asend(value)


class BeginsToWatchWithoutAWord(OwnWatch):
    """Who comes back does not learn that something was missed."""

    class watcher(Watch):  # noqa: N801 - in place of the attribute
        def _enter(self) -> None:
            super()._enter()
            self._resync = False


class DropsNoticesSilently(OwnWatch):
    """Too many notices are thrown away."""

    class watcher(Watch):  # noqa: N801 - in place of the attribute
        def _bound(self) -> None:
            super()._bound()
            self._resync = False


class KeepsTheLastNotice(OwnWatch):
    """A notice that was not fetched makes room for the next one."""

    class watcher(Watch):  # noqa: N801 - in place of the attribute
        def tell_finished(self, refs: list[JobRef]) -> None:
            self._finished = []
            super().tell_finished(refs)


class IsDeafAfterACancelledWait(OwnWatch):
    """Whoever gave up waiting once hears nothing any more."""

    class watcher(Watch):  # noqa: N801 - in place of the attribute
        async def asend(self, value: None, /) -> Notice:
            try:
                return await super().asend(value)
            except asyncio.CancelledError:
                self._signals.discard(self._peer, self)
                raise


class SweepsWithoutWaking(MemoryStorage):
    """A wake-up that was lost is lost for good."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        idle, self._signals._idle_of = self._signals._idle_of, {}
        try:
            return await super().sweep(request)
        finally:
            self._signals._idle_of = idle


class WorksOnceOnly(MemoryStorage):
    """After a stop there is no start."""

    _over = False

    async def stop(self) -> None:
        await super().stop()
        self._over = True

    def _now(self) -> float:
        if self._over:
            raise Unavailable("it was stopped")
        return super()._now()


class HangsAtStop(MemoryStorage):
    """Whoever has called before a stop waits for ever."""

    _stopping = False

    async def start(self) -> None:
        await super().start()
        self._stopping = False

    async def stop(self) -> None:
        self._stopping = True
        await super().stop()

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        if self._stopping:
            await asyncio.Event().wait()
        return await super().submit(jobs)


class StopsForEverybody(MemoryStorage):
    """The first of its users who leaves turns off the light."""

    async def stop(self) -> None:
        self._signals.users = min(1, self._signals.users)
        await super().stop()


class LeavesATask(MemoryStorage):
    """Something goes on after stop."""

    _task: asyncio.Task[bool] | None = None

    async def start(self) -> None:
        await super().start()
        self._task = asyncio.create_task(asyncio.Event().wait())


class LeavesAFile(MemoryStorage):
    """A file stays open after stop, for as long as the storage is there."""

    def __init__(self, options: MemoryOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        self._files: list[int] = []

    async def start(self) -> None:
        await super().start()
        ours, theirs = os.pipe()
        os.close(theirs)
        self._files.append(ours)

    def __del__(self) -> None:
        for file in self._files:
            os.close(file)


class LeaksWhenItsStartIsCancelled(LeavesATask):
    """A stop ends what a start has begun only if that came to its end."""

    _ready = False

    async def start(self) -> None:
        await super().start()
        await asyncio.sleep(0)
        self._ready = True

    async def stop(self) -> None:
        await super().stop()
        if self._ready and self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._ready = False


class LeaksWhenItsStopIsCancelled(LeavesATask):
    """A second stop has nothing to do, whatever became of the first."""

    _forgotten: asyncio.Task[bool] | None = None

    async def stop(self) -> None:
        await super().stop()
        task, self._task = self._task, None
        self._forgotten = task or self._forgotten
        await asyncio.sleep(0)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class SwallowsRefusals(MemoryStorage):
    """What means nothing is answered like everything else."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        with contextlib.suppress(InvalidJob):
            return await super().submit(jobs)
        return []

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        with contextlib.suppress(InvalidJob):
            await super().restore(jobs)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        with contextlib.suppress(InvalidJob):
            return await super().claim(request)
        return ClaimReply()

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        with contextlib.suppress(InvalidJob):
            return await super().settle(settlements, claim)
        return [], None

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        with contextlib.suppress(InvalidJob):
            return await super().renew(leases, lease=lease, holder=holder)
        return []

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        with contextlib.suppress(InvalidJob):
            return await super().edit(edit)
        return []


class StoresTheSoundPart(MemoryStorage):
    """Of a call that is refused the first job is there all the same."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        try:
            return await super().submit(jobs)
        except InvalidJob:
            await super().submit(jobs[:1])
            raise


class EncodesWithoutCare(MemoryStorage):
    """Text without an encoding ends in an error of Python's."""

    async def get(
        self, refs: Sequence[JobRef], *, body: bool = False, waiting: bool = False
    ) -> Sequence[JobRecord | None]:
        for ref in refs:
            ref.id.encode()
        return await super().get(refs, body=body, waiting=waiting)


class TakesNegativeDelaysForUrgent(MemoryStorage):
    """Whoever asks for a time that has passed is served first."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit(
            [replace(job, priority=job.priority + (job.delay < 0)) for job in jobs]
        )


class CutsLongText(MemoryStorage):
    """Ids have 255 characters."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit([replace(job, id=job.id[:255]) for job in jobs])


class CutsLargeBodies(MemoryStorage):
    """A body has less than a mebibyte."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit([replace(job, body=job.body[: 2**20 - 1]) for job in jobs])


class KeepsALittleLonger(MemoryStorage):
    """Retention, throttles and registers are rounded up to the next second."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        rounded = []
        for job in jobs:
            unique = job.unique
            if unique is not None:
                unique = UniqueKey(unique.mode, unique.key, floor(unique.ttl) + 1.0)
            rounded.append(replace(job, unique=unique))
        return await super().submit(rounded)

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        rounded = [
            change if change.ttl is None else replace(change, ttl=floor(change.ttl) + 1.0)
            for change in changes
        ]
        return await super().swap(rounded)

    async def find(self, query: FindQuery) -> Page:
        with self._lock:
            return memory_index.find(self._jobs, query, self._now() - 1.0)


class UnreachableInPart(MemoryStorage):
    """What an outage cuts off is up to the class."""

    cut_off = False


class ForeignErrorsInAnOutage(UnreachableInPart):
    """What the driver says goes to whoever asked, also to who starts it."""

    async def start(self) -> None:
        if self.cut_off:
            raise OSError("no route to host")
        await super().start()

    async def get(
        self, refs: Sequence[JobRef], *, body: bool = False, waiting: bool = False
    ) -> Sequence[JobRecord | None]:
        if self.cut_off:
            raise OSError("no route to host")
        return await super().get(refs, body=body, waiting=waiting)


class HangsInAnOutage(UnreachableInPart):
    """Whoever asks, and whoever stops it, waits for the end of the outage."""

    async def stats(self) -> Stats:
        if self.cut_off:
            await asyncio.Event().wait()
        return await super().stats()

    async def stop(self) -> None:
        if self.cut_off:
            await asyncio.Event().wait()
        await super().stop()


class AcknowledgesInAnOutage(UnreachableInPart):
    """What it can not store or settle it says it has."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        if self.cut_off:
            return [SubmitReply(SubmitStatus.ACCEPTED, job.id, JobState.QUEUED) for job in jobs]
        return await super().submit(jobs)

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        if self.cut_off:
            return [SettleReply(JobState.SUCCEEDED) for _ in settlements], None
        return await super().settle(settlements, claim)


class StoresAfterAnOutage(UnreachableInPart):
    """What was said not to have happened happens later."""

    _late: tuple[NewJob, ...] = ()

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        try:
            return await super().submit(jobs)
        except Unavailable:
            self._late = (*self._late, *jobs)
            raise

    async def get(
        self, refs: Sequence[JobRef], *, body: bool = False, waiting: bool = False
    ) -> Sequence[JobRecord | None]:
        late, self._late = self._late, ()
        await super().submit(late)
        return await super().get(refs, body=body, waiting=waiting)


class EndsWatchesInAnOutage(UnreachableInPart):
    """Whoever watches or listens hears nothing any more, not even that."""

    def _now(self) -> float:
        if self.cut_off:
            self._signals._watches.clear()
            self._signals.listeners.clear()
        return super()._now()

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        if self.cut_off:
            self._signals._watches.clear()
            self._signals.listeners.clear()
        return await super().claim(request)

    async def stats(self) -> Stats:
        if self.cut_off:
            self._signals._watches.clear()
        return await super().stats()


class RetriesForEver(MemoryStorage):
    """Attempts are counted and never used up."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        for settlement in settlements:
            record = self._jobs.find(settlement.queue, settlement.id)
            if record is not None:
                record.job = replace(record.job, max_attempts=record.attempt + 1)
        return await super().settle(settlements, claim)


class TakesAnyEditForDone(MemoryStorage):
    """An edit is answered as if it had been made."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        return [replace(reply, status=EditStatus.DONE) for reply in await super().edit(edit)]


class RestoresOverWhatIsThere(MemoryStorage):
    """The job that is restored takes the place of one that has ended."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        for job in jobs:
            record = self._jobs.find(job.queue, job.id)
            if record is not None and not record.state.final:
                if record.state is JobState.RUNNING:
                    self._jobs.end_lease(record)
                self._jobs.finish(record, JobState.CANCELLED, self._now())
            if record is not None:
                self._jobs.remove(record)
            await super().restore([job])


class RestoresTheLastOfAnId(MemoryStorage):
    """Of two jobs of one id the later one stays."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore(jobs[::-1])


class RestoresWithNewSequences(MemoryStorage):
    """What is restored stands behind everything that is there."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore([replace(job, sequence=0) for job in jobs])


class ForgetsRestoredTokens(MemoryStorage):
    """Tokens go on from those that it granted itself."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        before = {name: queue.token for name, queue in self._jobs.queues.items()}
        await super().restore(jobs)
        for name, queue in self._jobs.queues.items():
            queue.token = before.get(name, 0)


class RestoresNoLeases(MemoryStorage):
    """What ran is queued."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore(
            [
                replace(job, state=JobState.QUEUED, lease_until=None)
                if job.state is JobState.RUNNING
                else job
                for job in jobs
            ]
        )


class RestoresForEver(MemoryStorage):
    """A retention that has passed already never passes."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        now = self._now()
        await super().restore(
            [
                replace(job, expires_at=None)
                if job.expires_at is not None and job.expires_at <= now
                else job
                for job in jobs
            ]
        )


class ForgetsRestoredSubmissions(MemoryStorage):
    """A submission that is sent again is not known as that of a restored job."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore([replace(job, submission=b"") for job in jobs])


class RestoresWithoutWaking(MemoryStorage):
    """What is restored has to be found by polling."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        idle, self._signals._idle_of = self._signals._idle_of, {}
        try:
            await super().restore(jobs)
        finally:
            self._signals._idle_of = idle
            for queue in self._jobs.queues.values():
                queue.fresh = 0


class RestoresOutsideBatches(MemoryStorage):
    """The counts of a batch are of what was submitted here."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore([replace(job, batch=None) for job in jobs])


class RestoresLongAfterTheEnd(MemoryStorage):
    """Nobody is thought to wait for a job that is restored."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore(
            [
                job if job.finished_at is None else replace(job, finished_at=job.finished_at - 60)
                for job in jobs
            ]
        )


class RemovesForWhatItDoesNotStore(MemoryStorage):
    """Any submission of its id takes away a job whose retention has passed."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        for job in jobs:
            record = self._jobs.find(job.queue, job.id)
            if record is not None and record.expired(self._clock.time()):
                self._jobs.remove(record)
        return await super().submit(jobs)


class RestoresBesideTheLane(MemoryStorage):
    """A restored job that runs takes no place in its lane."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore(jobs)
        for queue in self._jobs.queues.values():
            for name, lane in list(queue.lanes.items()):
                lane.running = 0
                queue._elect(name, lane)


class RepeatsInAnotherOrder(MemoryStorage):
    """A claim that is asked again gives its leases by name."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        worker = self._jobs.claims.worker(request.worker)
        known = request.number in worker.claims
        reply = await super().claim(request)
        if not known:
            return reply
        leases = sorted(reply.leases, key=lambda lease: (lease.queue, lease.id))
        return replace(reply, leases=tuple(leases))


class SweepsTwiceAsMuch(MemoryStorage):
    """The limit of a sweep is taken for half of it."""

    async def sweep(self, request: SweepRequest) -> SweepReply:
        return await super().sweep(replace(request, limit=2 * request.limit))


class KnowsOnlyTheLastClaim(MemoryStorage):
    """An earlier claim of the same worker that is asked again is granted something new."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        worker = self._jobs.claims.worker(request.worker)
        for number in [known for known in worker.claims if known != request.number]:
            del worker.claims[number]
        return await super().claim(request)


class KnowsOnlyTheHighestClaim(MemoryStorage):
    """A claim that was overtaken is served and not remembered."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        worker = self._jobs.claims.worker(request.worker)
        highest = max(worker.claims, default=0)
        if request.number < highest:
            worker.claims.pop(request.number, None)
        return await super().claim(request)


class ForgetsClaimsByTime(MemoryStorage):
    """A claim is forgotten a while after it was made, whether its leases stand or not."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        worker = self._jobs.claims.worker(request.worker)
        made = worker.claims.get(request.number)
        if made is not None and any(
            record.started_at is not None and self._now() > record.started_at + 2 * request.lease
            for record in made.standing()
        ):
            del worker.claims[request.number]
        return await super().claim(request)


class ForgetsAWorkerByItsFirstClaim(MemoryStorage):
    """When one claim of a worker is forgotten all of them are, unless they hold leases."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        with self._forgetting():
            return await super().claim(request)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        with self._forgetting():
            return await super().sweep(request)

    @contextlib.contextmanager
    def _forgetting(self) -> Iterator[None]:
        workers = self._jobs.claims._workers
        counts = {name: len(worker.claims) for name, worker in workers.items()}
        yield
        for name, count in counts.items():
            worker = workers.get(name)
            if worker is not None and len(worker.claims) < count and not worker.live:
                del workers[name]


class GivesBackOneClaim(MemoryStorage):
    """Of what a holder never received only that of its last claim is released."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        if holder is not None:
            worker = self._jobs.claims.worker(holder.worker)
            others = [
                LeaseRef(record.job.queue, record.job.id, record.token)
                for made in worker.live.values()
                if made.number != holder.number
                for record in made.standing()
            ]
            replies = await super().renew([*leases, *others], lease=lease, holder=holder)
            return replies[: len(leases)]
        return await super().renew(leases, lease=lease, holder=holder)


class GivesNothingBackBesideALostLease(MemoryStorage):
    """A holder that lists one lost lease keeps what it never received."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        replies = await super().renew(leases, lease=lease)
        if RenewReply.LOST in replies:
            return replies
        return await super().renew(leases, lease=lease, holder=holder)


class RemembersThatATaskWasUnknown(MemoryStorage):
    """The count of unknown tasks goes on after a worker has run the job."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        records = [self._jobs.find(each.queue, each.id) for each in settlements]
        counts = [0 if record is None else record.unknown for record in records]
        replies, _ = await super().settle(settlements)
        for record, count in zip(records, counts, strict=True):
            if record is not None:
                record.unknown = max(record.unknown, count)
        return replies, None if claim is None else await self.claim(claim)


class TakesAMomentForAnyDelay(MemoryStorage):
    """A snooze and a release wait until the moment that is meant for retries."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        now = self._now()
        changed = [
            each if each.at is None else replace(each, delay=each.at - now) for each in settlements
        ]
        return await super().settle(changed, claim)


class KeepsTheObjectsOfItsCallers(MemoryStorage):
    """What is stored changes with the mapping that the caller has handed over."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        replies = await super().renew(leases, lease=lease, holder=holder)
        for ref in leases:
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and ref.progress is not None:
                record.progress = ref.progress
        return replies


class IgnoresNewsOfTheCancelled(MemoryStorage):
    """A job that is to be cancelled makes no progress any more."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        kept = []
        for ref in leases:
            record = self._jobs.find(ref.queue, ref.id)
            cancelled = record is not None and record.cancel_requested
            kept.append(replace(ref, progress=None) if cancelled else ref)
        return await super().renew(kept, lease=lease, holder=holder)


class PassesOverTheFirstOfALane(MemoryStorage):
    """When only one of a lane may run any more it is not the first."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        replies = await super().edit(edit)
        for settings in edit.settings if isinstance(edit, Configure) else ():
            waiting = [
                record
                for record in self._jobs.queues[settings.queue].jobs.values()
                if record.state is JobState.QUEUED and record.job.lane is not None
            ]
            if settings.lane_max_running == 1 and waiting:
                first = min(waiting, key=lambda record: (record.order, record.sequence))
                first.ready_at += 60.0
                self._jobs.reprioritise(first, first.job.priority)
        return replies


class RemembersCrashes(MemoryStorage):
    """A job that is queued again by an operator has used up its crashes."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if not isinstance(edit, Redrive):
            return await super().edit(edit)
        records = [self._jobs.find(ref.queue, ref.id) for ref in edit.refs]
        counts = [0 if record is None else record.crashes for record in records]
        replies = await super().edit(edit)
        for record, count in zip(records, counts, strict=True):
            if record is not None:
                record.crashes = count
        return replies


class HoldsRedrivenKeysForEver(MemoryStorage):
    """A throttle key that a redrive has taken again is never free."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        replies = await super().edit(edit)
        for ref in edit.refs if isinstance(edit, Redrive) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.job.unique is not None:
                record.queue.hold(record, record.job.unique.key, None)
        return replies


class RetakesOnlyLastingKeys(MemoryStorage):
    """A job that is redriven does not hold a key that its start would free."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        replies = await super().edit(edit)
        for ref in edit.refs if isinstance(edit, Redrive) else ():
            record = self._jobs.find(ref.queue, ref.id)
            if record is not None and record.job.unique is not None:
                record.queue.free(record, UniqueMode.UNTIL_STARTED)
        return replies


class TakesWhatComesBackForNew(MemoryStorage):
    """What a holder gives back goes to the end of its queue and has never crashed."""

    async def renew(
        self, leases: Sequence[LeaseRef], *, lease: float, holder: Holder | None = None
    ) -> Sequence[RenewReply]:
        if holder is not None:
            for made in self._jobs.claims.worker(holder.worker).live.values():
                for record in made.standing():
                    record.ready_at = self._now()
                    record.crashes = 0
        return await super().renew(leases, lease=lease, holder=holder)


class KeepsAttemptsOfTheCancelled(MemoryStorage):
    """An attempt that a cancelled job was given and did not run is counted."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, _ = await super().settle(settlements)
        for each, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(each.queue, each.id)
            if record is not None and reply.state is JobState.CANCELLED:
                record.attempt += each.outcome in {Outcome.RELEASE, Outcome.SNOOZE}
        return replies, None if claim is None else await self.claim(claim)


class ForgivesCrashes(MemoryStorage):
    """Whoever settles an attempt makes good what the job did to the workers before."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, _ = await super().settle(settlements)
        for each, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(each.queue, each.id)
            if record is not None and not reply.lost:
                record.crashes = 0
        return replies, None if claim is None else await self.claim(claim)


class HearsOnlyOneDeadline(MemoryStorage):
    """Of two deadlines the one that counts from now hides the other."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit(
            [job if job.deadline_in is None else replace(job, deadline_at=None) for job in jobs]
        )


class IsContentWithTheOverdue(MemoryStorage):
    """A claim that has met a job past its deadline grants nothing and says no more."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        now = self._now()
        for name in request.queues:
            queue = self._jobs.queues.get(name)
            if queue is not None and any(
                record.deadline_at is not None and record.deadline_at <= now
                for record in queue.jobs.values()
                if record.state is JobState.QUEUED
            ):
                return ClaimReply(leases=(), now=now)
        return await super().claim(request)


class RepeatsLittleOfALease(MemoryStorage):
    """A repeated claim says the names and tokens again, and forgets the rest."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        known = request.number in self._jobs.claims.worker(request.worker).claims
        reply = await super().claim(request)
        if not known:
            return reply
        leases = [replace(lease, generation=0, unknown_for=0.0) for lease in reply.leases]
        return replace(reply, leases=tuple(leases))


class TakesWhatIsNoNumber(MemoryStorage):
    """A NaN is taken for nothing at all."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        return await super().submit(
            [replace(job, delay=0.0) if job.delay != job.delay else job for job in jobs]
        )


CAUGHT_BY: dict[type[MemoryStorage], tuple[str, ...]] = {
    LosesAJob: (
        "jobs_of_one_priority_run_in_the_order_of_submission",
        "concurrent_claims_give_each_job_to_one",
    ),
    AcceptsWithoutStoring: ("a_full_queue_refuses_the_whole_call",),
    BlamesEveryQueue: (
        "a_full_queue_refuses_the_whole_call",
        "a_drained_queue_takes_nothing_new",
    ),
    StoresHalfOfAFullCall: ("a_full_queue_refuses_the_whole_call",),
    RevivesTheCancelled: ("the_same_submission_of_a_cancelled_job_opens_no_generation",),
    ForgetsUniqueKeys: (
        "until_finished_holds_the_key_through_every_attempt",
        "a_throttle_key_outlives_its_job",
    ),
    GrantsTwice: (
        "concurrent_claims_give_each_job_to_one",
        "a_lapsed_lease_holds_until_a_sweep_ends_it",
    ),
    GrantsMoreToARepeatedClaim: (
        "a_repeated_claim_gives_the_same_leases",
        "a_claim_sent_twice_at_once_is_granted_once",
    ),
    EditsWhoeverHasTheId: ("an_edit_means_one_job_of_an_id",),
    EditsInAnyState: ("an_edit_means_jobs_in_some_states",),
    IgnoresTheTokenOnSettle: (
        "a_stale_token_is_refused_while_the_job_runs_elsewhere",
        "a_token_that_was_never_granted_is_refused",
    ),
    IgnoresTheTokenOnRenew: (
        "a_stale_token_is_refused_while_the_job_runs_elsewhere",
        "progress_of_a_stale_lease_is_refused",
    ),
    IgnoresTheHolder: ("a_holder_gives_back_what_it_never_received",),
    RepeatsATokenAfterPurge: (
        "tokens_go_on_rising_when_the_queue_has_become_empty",
        "a_token_is_refused_after_purge_and_resubmission_of_the_id",
    ),
    EndsLeasesByTime: ("a_lapsed_lease_holds_until_a_sweep_ends_it",),
    EndsLeasesTooSoon: ("a_sweep_that_may_not_end_leases_ends_none",),
    CountsNoCrash: ("the_third_crash_fails_the_job",),
    ReleasesSpendAnAttempt: ("a_release_goes_back_to_its_place_without_an_attempt",),
    ForgetsLanes: (
        "jobs_of_a_lane_run_one_at_a_time",
        "two_jobs_of_a_lane_are_never_in_one_claim",
        "lanes_hold_under_concurrent_claims",
    ),
    TakesTheHeadsOfLanesFirst: ("a_lane_of_which_many_may_run_keeps_its_order_in_a_claim_of_many",),
    LetsInOnlyTheFirstOfALane: (
        "every_start_lets_the_next_job_of_a_lane_in",
        "a_want_names_the_jobs_of_a_lane_before_those_behind_them",
    ),
    LetsALateHolderFreeTheLane: ("a_late_holder_can_not_free_the_next_ones_lane",),
    IgnoresMaxRunning: (
        "max_running_limits_a_queue",
        "max_running_holds_under_concurrent_claims",
    ),
    IgnoresBudgets: (
        "a_limit_of_a_queue_holds_in_every_window",
        "limits_of_lanes_hold_in_every_window",
        "a_limited_queue_grants_nothing_without_a_budget",
        "a_budget_is_spent_exactly",
    ),
    TakesMoreThanABudget: (
        "a_limit_of_a_queue_holds_in_every_window",
        "limits_of_lanes_hold_in_every_window",
        "a_budget_is_spent_exactly",
    ),
    SpendsOutdatedBudgets: (
        "a_limit_of_a_queue_holds_in_every_window",
        "limits_of_lanes_hold_in_every_window",
        "a_grant_serves_one_claim",
        "of_those_who_decided_on_one_state_only_one_starts_something",
    ),
    ForgetsToPark: (
        "a_lane_whose_budget_is_used_up_is_parked",
        "a_queue_whose_budget_is_used_up_is_parked",
    ),
    SpendsOldGrants: ("an_old_grant_is_not_used", "a_grant_from_the_future_is_not_used"),
    SpendsGrantsOfOtherLimits: ("a_grant_by_other_limits_is_not_used",),
    WritesUnspentBudgets: ("a_budget_of_which_nothing_was_taken_is_not_written",),
    RepeatsBudgetVersions: ("a_state_is_forgotten_after_its_time",),
    NeverLetsIn: (
        "a_lane_whose_budget_is_used_up_is_parked",
        "a_queue_whose_budget_is_used_up_is_parked",
    ),
    LetsInByClaimsAlone: ("a_sweep_wakes_for_lanes_that_it_lets_in",),
    KeepsParkedLanesUnderNewLimits: ("new_limits_let_in_what_is_parked",),
    WaitsAtALane: (
        "jobs_without_a_lane_are_not_bound_by_the_limits_of_lanes",
        "a_limited_queue_holds_up_no_other",
    ),
    IdlesForItsLastClaimAlone: ("a_peer_idles_for_all_that_it_claimed_from",),
    ClaimsOfNothingCountAsIdle: ("a_claim_of_nothing_registers_nobody",),
    WakesForWhatAClaimWants: ("what_a_claim_wants_is_left_to_it",),
    WakesAllForAQueue: ("a_queue_that_is_let_in_wakes_one_peer",),
    LeavesTheRestOfABudget: (
        "a_full_claim_that_leaves_budget_wakes_one_peer",
        "as_many_peers_wake_as_a_lane_may_run",
    ),
    IgnoresThePriority: ("a_higher_priority_comes_first",),
    Reorders: (
        "jobs_of_one_priority_run_in_the_order_of_submission",
        "tokens_rise_in_the_order_of_the_grants",
    ),
    SendsReleasedJobsToTheBack: ("a_released_job_keeps_its_place",),
    RunsJobsPastTheirDeadline: ("a_job_past_its_deadline_is_never_claimed",),
    KeepsExpiredResults: (
        "a_result_goes_at_its_edge_for_readers_who_wait_and_who_do_not",
        "a_result_that_is_not_kept_reaches_those_who_waited",
    ),
    DropsResultsAtOnce: (
        "a_result_goes_at_its_edge_for_readers_who_wait_and_who_do_not",
        "a_waiting_reader_sees_an_end_until_it_has_lingered",
        "a_result_that_is_not_kept_reaches_those_who_waited",
    ),
    ForgetsIdsWithTheirResults: ("an_id_is_kept_at_least_for_its_ttl",),
    LivesInThePast: (
        "time_does_not_run_backwards",
        "every_user_of_a_store_has_its_time",
    ),
    NeverWakes: (
        "a_wake_up_that_nobody_acts_on_costs_one_sweep",
        "a_submission_wakes_an_idle_peer",
        "a_sweep_wakes_for_what_falls_due",
    ),
    WakesEverybody: (
        "n_jobs_wake_at_most_n_peers",
        "jobs_that_are_not_ready_wake_nobody",
    ),
    TellsNobodyOfAPurge: ("the_origin_is_told_of_every_end",),
    SwapsHalf: ("several_registers_change_together_or_not_at_all",),
    RepeatsVersions: ("versions_never_repeat",),
    PagesByOffset: ("a_walk_is_stable_under_insertion_removal_and_moves",),
    Miscounts: (
        "stats_agree_with_what_is_stored",
        "purge_removes_final_jobs",
    ),
    TakesJobsWhileItDrains: (
        "a_drained_queue_takes_nothing_new",
        "a_drained_queue_answers_duplicates",
        "a_queue_is_drained_for_every_user_of_the_store",
    ),
    StopsWhileItDrains: ("a_drained_queue_runs_what_it_has",),
    IgnoresRetain: (
        "what_was_retained_goes_at_the_edge_of_its_new_time",
        "a_live_job_takes_the_new_time_for_every_end",
        "a_final_job_goes_that_long_from_now",
        "a_result_goes_with_the_new_time",
        "none_keeps_for_ever",
    ),
    RetainsAtTheCostOfTheId: ("an_id_stays_safe_for_its_ttl",),
    RevivesExpiredResults: ("a_result_that_has_gone_does_not_come_back",),
    OnlyShowsANewPriority: (
        "a_job_with_another_priority_moves_to_its_new_place",
        "another_priority_changes_the_head_of_a_lane",
        "another_priority_holds_among_several_heads_of_a_lane",
    ),
    ReprioritisesToTheBack: (
        "a_job_with_another_priority_moves_to_its_new_place",
        "another_priority_leaves_ready_time_and_sequence",
    ),
    LeavesTheLaneAsItWas: ("another_priority_changes_the_head_of_a_lane",),
    SaysLittleOfWhatItEdits: ("an_edit_says_what_it_found",),
    SaysLittleOfWhatItSweeps: ("a_sweep_says_what_it_moved",),
    CountsBatchesByWhatIsStored: (
        "counts_outlast_the_jobs",
        "a_replaced_job_counts_on_as_cancelled",
    ),
    CountsARedrivenJobTwice: (
        "counts_follow_a_job_through_its_life",
        "counts_agree_with_what_is_stored",
    ),
    ForgetsTheCancelledInItsBatch: ("a_replaced_job_counts_on_as_cancelled",),
    ForgetsBatchesWithTheirLastJob: ("counts_are_forgotten_a_while_after_the_last_change",),
    RemembersBatchesForEver: (
        "batch_counts_go_at_the_edge_of_their_time",
        "counts_are_forgotten_a_while_after_the_last_change",
    ),
    TakesFromCountsThatAreForgotten: (
        "a_job_that_outlived_its_batch_is_counted_when_it_is_redriven",
        "a_job_that_outlived_its_batch_joins_those_that_came_after_it",
    ),
    FindsBatchesBySearching: ("find_by_batch_examines_only_that_batch",),
    TakesTheNextForTheOldest: ("the_oldest_ready_job_may_have_any_priority",),
    CountsTheBlockedAsReady: ("only_what_a_free_worker_could_run_is_ready",),
    LooksOnlyAtTheHeadsOfLanes: ("as_many_of_a_lane_are_ready_as_it_may_run",),
    ItsRateNeverDecays: ("the_rate_decays",),
    CountsOnlySettledEnds: ("the_rate_counts_every_end",),
    TakesEveryAttemptForARun: ("run_time_is_the_mean_of_what_holders_ended",),
    RestoresWhatIsLeft: ("a_restored_failure_that_is_redriven_keeps_its_result_as_any_other",),
    RestoresAsNew: (
        "jobs_taken_from_one_store_are_the_same_in_another",
        "a_restored_job_is_the_same_job",
    ),
    LeaksForeignErrors: ("a_stopped_storage_refuses_every_verb",),
    WorksAfterStop: (
        "a_stopped_storage_has_no_verb_that_works_or_hangs",
        "a_stopped_storage_refuses_every_verb",
        "stopping_the_storage_ends_a_watch",
        "stopping_the_storage_ends_the_listening",
    ),
    DropsEventsSilently: ("a_flood_that_nobody_fetches_ends_in_a_resync",),
    KeepsEveryEvent: ("a_flood_that_nobody_fetches_ends_in_a_resync",),
    LosesEventsOfACancelledWait: ("a_cancelled_wait_loses_nothing",),
    LeaksAClosedListener: (
        "with_nobody_listening_that_is_known",
        "closing_ends_the_listening",
    ),
    BeginsToListenWithoutAWord: ("the_first_thing_heard_is_resync",),
    TellsTheNewestOnly: ("everybody_who_listens_hears_everything",),
    TellsInAnyOrder: ("events_of_one_teller_come_in_order",),
    NeverListened: (
        "with_nobody_listening_that_is_known",
        "every_change_looks_for_listeners",
    ),
    AlwaysListened: ("with_nobody_listening_that_is_known",),
    TellsWithoutTheirTexts: ("any_text_travels",),
    FailsToTell: ("telling_a_stopped_storage_does_nothing", "telling_never_raises"),
    CancelsWhatRuns: (
        "edits_end_no_lease",
        "cancelling_a_running_job_asks_for_it",
        "every_settlement_but_success_ends_a_cancelled_run_as_cancelled",
    ),
    CutsTextAtNul: ("any_text_is_an_id",),
    GrantsInDribs: (
        "ten_thousand_jobs_in_one_call",
        "the_number_of_calls_to_drain_does_not_grow_with_the_backlog",
    ),
    LetsTheLastSettlementCount: (
        "of_two_settlements_in_one_call_the_first_counts",
        "concurrent_settlements_of_one_lease_count_once",
    ),
    KeepsTheTokenOfAJob: (
        "tokens_rise_from_attempt_to_attempt",
        "a_stale_token_is_refused_while_the_job_runs_elsewhere",
    ),
    CountsWhatItRefuses: (
        "a_stale_token_is_refused_after_the_job_was_queued_again",
        "a_token_is_refused_after_the_job_was_settled",
        "a_token_is_refused_after_the_job_was_purged",
        "a_token_is_refused_by_a_new_generation",
        "a_token_is_refused_after_a_redrive",
        "a_refused_settlement_changes_nothing_of_a_job_that_waits_again",
        "a_refused_settlement_changes_nothing_of_a_job_that_runs_elsewhere",
        "a_refused_settlement_changes_nothing_of_what_has_ended",
        "a_refused_settlement_changes_nothing_of_another_life_of_the_id",
    ),
    KeepsStaleErrors: (
        "a_refused_settlement_changes_nothing_of_a_job_that_waits_again",
        "a_refused_settlement_changes_nothing_of_what_has_ended",
        "what_the_table_lacks_changes_nothing",
    ),
    KeepsStaleProgress: (
        "a_refused_settlement_changes_nothing_of_a_job_that_waits_again",
        "a_refused_settlement_changes_nothing_of_another_life_of_the_id",
    ),
    FreesTheKeyForALateHolder: (
        "a_refused_settlement_changes_nothing_of_a_job_that_waits_again",
        "a_refused_settlement_changes_nothing_of_a_job_that_runs_elsewhere",
    ),
    EndsLeasesInClaims: (
        "time_alone_ends_no_lease",
        "claims_and_settlements_of_others_end_no_lease",
    ),
    EndsLeasesWithTheWatch: ("the_end_of_the_process_that_claimed_ends_no_lease",),
    EndsLeasesWithTheProcess: ("a_restart_ends_no_lease",),
    EndsTheLeaseOfADuplicate: ("submissions_of_the_same_id_end_no_lease",),
    HasATimeForEachUser: (
        "users_with_different_clocks_agree_on_the_time",
        "jobs_of_users_with_different_clocks_keep_the_order_of_submission",
        "a_user_that_is_ahead_ends_no_lease_of_the_others_early",
        "a_lease_by_any_clock_is_ended_once_it_has_lapsed",
        "retention_is_never_early_by_any_clock",
        "a_clock_that_jumps_forward_takes_all_along",
    ),
    TrustsTheClock: (
        "users_with_different_clocks_agree_on_the_time",
        "a_clock_that_is_set_back_while_open_changes_nothing",
        "a_clock_that_jumps_forward_takes_all_along",
    ),
    MakesTokensOfTheClock: (
        "tokens_go_on_rising_when_the_clock_is_set_back",
        "tokens_go_on_rising_after_a_restart",
        "tokens_rise_across_users_with_different_clocks",
    ),
    SubmitsInHalves: (
        "a_write_that_is_cancelled_while_it_waits_is_whole",
        "a_write_whose_answer_is_lost_is_whole",
    ),
    SettlesInHalves: (
        "a_write_that_is_cancelled_while_it_waits_is_whole",
        "a_write_whose_answer_is_lost_is_whole",
    ),
    ForgetsACancelledClaim: ("a_write_whose_answer_is_lost_is_whole",),
    FailsTheNeighbours: (
        "a_write_that_is_cancelled_while_it_waits_is_whole",
        "many_callers_that_are_cancelled_at_once_harm_nobody",
    ),
    StaysLockedByACancelledReader: ("a_read_that_is_cancelled_can_be_made_again",),
    BreaksAWatchThatIsCancelled: ("an_opening_watch_that_is_cancelled_can_be_opened_again",),
    BeginsToWatchWithoutAWord: (
        "the_first_notice_is_resync",
        "a_watch_that_comes_back_begins_with_a_resync",
    ),
    DropsNoticesSilently: ("a_watch_that_nobody_fetches_from_ends_in_a_resync",),
    KeepsTheLastNotice: ("what_was_not_fetched_yet_is_kept",),
    IsDeafAfterACancelledWait: ("a_cancelled_wait_for_a_notice_loses_nothing",),
    SweepsWithoutWaking: ("a_wake_up_that_is_lost_costs_one_sweep",),
    WorksOnceOnly: (
        "a_storage_works_again_after_stop_and_start",
        "starts_and_stops_that_overlap_end_as_the_last_says",
    ),
    HangsAtStop: ("a_stop_answers_every_call_under_way",),
    StopsForEverybody: ("one_instance_may_stop_while_another_works",),
    LeavesATask: ("nothing_is_left_after_stop",),
    LeavesAFile: ("nothing_is_left_after_stop",),
    LeaksWhenItsStartIsCancelled: ("a_cancelled_start_leaves_nothing_behind",),
    LeaksWhenItsStopIsCancelled: ("a_cancelled_stop_can_be_made_again",),
    SwallowsRefusals: (
        "a_job_with_a_time_that_is_none_is_refused",
        "a_number_of_more_than_64_bits_is_refused",
        "a_claim_that_means_nothing_is_refused",
        "a_settlement_that_means_nothing_is_refused",
        "a_renewal_that_means_nothing_is_refused",
        "edits_sweeps_and_registers_that_mean_nothing_are_refused",
        "text_without_an_encoding_is_refused",
        "restoring_what_can_not_be_kept_is_refused",
    ),
    StoresTheSoundPart: (
        "a_job_with_a_time_that_is_none_is_refused",
        "a_number_of_more_than_64_bits_is_refused",
        "text_without_an_encoding_is_refused",
    ),
    EncodesWithoutCare: ("looking_for_what_can_not_be_there_finds_nothing",),
    TakesNegativeDelaysForUrgent: ("times_that_have_passed_count_as_now",),
    CutsLongText: ("the_longest_ids_and_long_names_go_through_a_life",),
    CutsLargeBodies: ("fifty_bodies_of_a_mebibyte_in_one_call",),
    KeepsALittleLonger: (
        "every_final_state_goes_at_the_edge_of_its_ttl",
        "what_was_retained_goes_at_the_edge_of_its_new_time",
        "a_throttle_key_is_free_at_the_edge_of_its_ttl",
        "a_register_goes_at_the_edge_of_its_ttl",
    ),
    ForeignErrorsInAnOutage: (
        "every_verb_ends_in_time_while_the_store_is_away",
        "a_start_in_an_outage_fails_in_time_or_works",
    ),
    HangsInAnOutage: (
        "every_verb_ends_in_time_while_the_store_is_away",
        "a_stop_in_an_outage_ends",
    ),
    AcknowledgesInAnOutage: (
        "nothing_acknowledged_is_lost_in_an_outage",
        "leases_outlive_an_outage",
    ),
    StoresAfterAnOutage: ("nothing_acknowledged_is_lost_in_an_outage",),
    EndsWatchesInAnOutage: (
        "a_watch_survives_an_outage",
        "listening_survives_an_outage",
    ),
    RetriesForEver: ("every_target_of_every_row_is_reached",),
    TakesAnyEditForDone: ("an_event_that_may_not_happen_is_answered_so",),
    RestoresOverWhatIsThere: (
        "restoring_leaves_an_existing_id_alone",
        "an_id_that_exists_is_left_alone_in_every_state",
    ),
    RestoresTheLastOfAnId: ("restoring_the_same_jobs_twice_is_restoring_them_once",),
    RestoresWithNewSequences: ("sequences_are_kept_where_they_are_free",),
    ForgetsRestoredTokens: ("tokens_rise_above_those_restored",),
    RestoresNoLeases: ("a_restored_lease_is_a_lease",),
    RestoresForEver: ("a_restored_job_whose_time_has_passed_is_treated_so",),
    ForgetsRestoredSubmissions: (
        "a_restored_job_is_found_and_deduplicated",
        "a_restored_submission_is_known_when_it_is_sent_again",
    ),
    RestoresWithoutWaking: ("a_restored_job_wakes_an_idle_peer",),
    RestoresOutsideBatches: ("restored_jobs_are_counted",),
    RestoresLongAfterTheEnd: ("a_restored_job_lingers_for_those_who_wait",),
    RemovesForWhatItDoesNotStore: (
        "a_submission_that_is_not_stored_removes_nothing",
        "histories_that_once_went_wrong_agree_with_the_model",
    ),
    RestoresBesideTheLane: (
        "a_restored_job_that_runs_fills_its_lane",
        "histories_that_once_went_wrong_agree_with_the_model",
    ),
    RepeatsInAnotherOrder: (
        "a_repeated_claim_keeps_the_order_of_its_queues",
        "histories_that_once_went_wrong_agree_with_the_model",
    ),
    SweepsTwiceAsMuch: (
        "a_sweep_notices_no_more_due_jobs_than_its_limit",
        "a_sweep_ends_no_more_leases_than_its_limit",
    ),
    KnowsOnlyTheLastClaim: (
        "an_earlier_claim_can_be_repeated_after_later_ones",
        "a_claim_that_was_overtaken_can_be_repeated",
        "a_shorter_lease_shortens_no_memory_of_an_earlier_claim",
    ),
    KnowsOnlyTheHighestClaim: ("a_claim_that_was_overtaken_can_be_repeated",),
    ForgetsClaimsByTime: ("a_claim_whose_leases_are_renewed_can_be_repeated_for_as_long",),
    ForgetsAWorkerByItsFirstClaim: ("a_settled_claim_stays_one_while_an_earlier_is_forgotten",),
    GivesNothingBackBesideALostLease: (
        "a_holder_that_lost_a_lease_gives_back_what_it_never_received",
    ),
    GivesBackOneClaim: ("a_holder_gives_back_what_any_earlier_claim_was_granted",),
    RemembersThatATaskWasUnknown: ("a_run_forgets_that_the_task_was_unknown",),
    TakesAMomentForAnyDelay: ("a_moment_counts_for_a_retry_only",),
    KeepsTheObjectsOfItsCallers: ("what_was_handed_over_is_the_storages",),
    IgnoresNewsOfTheCancelled: ("progress_of_a_job_to_be_cancelled_is_kept",),
    PassesOverTheFirstOfALane: ("a_lane_keeps_its_order_when_its_limit_changes",),
    RemembersCrashes: ("a_redriven_job_may_crash_as_often_as_a_new_one",),
    HoldsRedrivenKeysForEver: ("a_redrive_holds_a_throttle_key_for_its_ttl_again",),
    RetakesOnlyLastingKeys: ("a_redriven_key_is_freed_at_the_next_claim_if_that_is_its_mode",),
    TakesWhatComesBackForNew: ("what_a_holder_gives_back_keeps_its_place_and_its_crashes",),
    KeepsAttemptsOfTheCancelled: ("an_attempt_is_given_back_to_a_job_that_ends_cancelled_too",),
    ForgivesCrashes: ("what_ends_well_in_between_takes_no_crash_back",),
    HearsOnlyOneDeadline: ("the_earlier_of_two_deadlines_counts",),
    IsContentWithTheOverdue: ("a_job_behind_many_past_their_deadline_is_reached",),
    RepeatsLittleOfALease: ("a_repeated_claim_gives_whole_leases",),
    TakesWhatIsNoNumber: ("a_time_that_is_no_number_is_refused",),
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
            others = [kept for known, kept in self._stores.items() if _same(known, context)]
            storage = self._stores[context] = self._class(MemoryOptions(), context)
            if others and isinstance(storage, Lasting) and isinstance(others[0], Lasting):
                storage.join(others[0])
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        storage = self._stores[context]
        reach = storage._now

        def refuse() -> float:
            raise Unavailable("the store is away; wait until it is back")

        if isinstance(storage, UnreachableInPart):
            storage.cut_off = True
        storage._now = refuse  # type: ignore[method-assign]
        try:
            yield
        finally:
            storage._now = reach  # type: ignore[method-assign]
            if isinstance(storage, UnreachableInPart):
                storage.cut_off = False


def _same(one: PluginContext, other: PluginContext) -> bool:
    return one.namespace == other.namespace


def run(storage: type[MemoryStorage], name: str) -> Exception | None:
    """Run one contract test and return what it failed with."""
    test = getattr(Subject(storage), f"test_{name}")
    try:
        with asyncio.Runner() as runner:
            runner.run(test())
    except Exception as error:  # noqa: BLE001 - a broken storage may fail a test in any way
        return error
    return None


CASES = [
    pytest.param(broken, name, id=f"{broken.__name__}-{name}")
    for broken, names in CAUGHT_BY.items()
    for name in names
]


@pytest.mark.parametrize(("broken", "name"), CASES)
def test_a_broken_storage_is_caught(broken: type[MemoryStorage], name: str) -> None:
    assert run(Lasting if issubclass(broken, Lasting) else MemoryStorage, name) is None
    assert run(broken, name) is not None
