"""The storage contract, proven: each storage here breaks one promise and must be caught.

A contract that no bad storage has ever failed proves nothing. Every class below is the memory
storage with one fault; the test runs those contract tests that are there for that promise, on
the sound storage and on the broken one.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any, ClassVar

import msgspec
import pytest

from plugq.allowance import Use
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.builtin.memory_signals import Listener
from plugq.events import JobEvent
from plugq.job import JobRecord, JobRef, JobState, Outcome
from plugq.protocols import (
    BACKLOG,
    BatchCounts,
    Budget,
    Cancel,
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
)
from plugq.protocols.edits import JobEdit
from plugq.testing import StorageContract
from plugq.testing.levels import Level

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
        "a_limited_queue_grants_nothing_without_a_budget",
        "a_budget_is_spent_exactly",
    ),
    TakesMoreThanABudget: ("a_budget_is_spent_exactly",),
    SpendsOutdatedBudgets: (
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
    KeepsExpiredResults: ("a_result_that_is_not_kept_reaches_those_who_waited",),
    DropsResultsAtOnce: ("a_result_that_is_not_kept_reaches_those_who_waited",),
    ForgetsIdsWithTheirResults: ("an_id_is_kept_at_least_for_its_ttl",),
    LivesInThePast: (
        "time_does_not_run_backwards",
        "every_user_of_a_store_has_its_time",
    ),
    NeverWakes: (
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
    RemembersBatchesForEver: ("counts_are_forgotten_a_while_after_the_last_change",),
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
    RestoresAsNew: ("a_restored_job_is_the_same_job",),
    LeaksForeignErrors: ("a_stopped_storage_refuses_every_verb",),
    WorksAfterStop: (
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
    FailsToTell: ("telling_never_raises",),
    CancelsWhatRuns: (
        "cancelling_a_running_job_asks_for_it",
        "every_settlement_but_success_ends_a_cancelled_run_as_cancelled",
    ),
    CutsTextAtNul: ("any_text_is_an_id",),
    GrantsInDribs: ("the_number_of_calls_to_drain_does_not_grow_with_the_backlog",),
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
    assert run(MemoryStorage, name) is None
    assert run(broken, name) is not None


def test_every_subject_of_the_contract_has_caught_something() -> None:
    names = {f"test_{name}" for names in CAUGHT_BY.values() for name in names}
    untried = {
        subject.__name__
        for subject in StorageContract.__bases__
        # Those of crashes need a storage that outlives a process: tests/faults has the broken ones.
        if getattr(subject, "level", None) is not Level.CRASH
        and not any(name in vars(subject) for name in names)
    }
    assert untried == set()
