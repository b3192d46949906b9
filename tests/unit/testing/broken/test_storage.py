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
from plugq.job import JobRecord, JobRef, JobState, Outcome
from plugq.protocols import (
    Budget,
    Cancel,
    ClaimReply,
    ClaimRequest,
    Edit,
    EditReply,
    FindQuery,
    Grant,
    Holder,
    LeaseRef,
    NewJob,
    Page,
    PluginContext,
    Purge,
    QueueSettings,
    RegisterChange,
    RenewReply,
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


class RestoresAsNew(MemoryStorage):
    """A restored job begins anew."""

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        await super().restore([replace(job, attempt=0, token=0) for job in jobs])


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


CAUGHT_BY: dict[type[MemoryStorage], tuple[str, ...]] = {
    LosesAJob: (
        "jobs_of_one_priority_run_in_the_order_of_submission",
        "concurrent_claims_give_each_job_to_one",
    ),
    AcceptsWithoutStoring: ("a_full_queue_refuses_the_whole_call",),
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
    LeavesTheRestOfABudget: ("a_full_claim_that_leaves_budget_wakes_one_peer",),
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
    RestoresAsNew: ("a_restored_job_is_the_same_job",),
    LeaksForeignErrors: ("a_stopped_storage_refuses_every_verb",),
    WorksAfterStop: (
        "a_stopped_storage_refuses_every_verb",
        "stopping_the_storage_ends_a_watch",
    ),
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
        if not any(name in vars(subject) for name in names)
    }
    assert untried == set()
