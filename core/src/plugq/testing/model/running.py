"""How the model's jobs are run: claim, settle and renew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from plugq.job import TRANSITIONS, AttemptRecord, Event, JobState, Outcome
from plugq.protocols.storage import RenewReply
from plugq.testing.model.jobs import Jobs
from plugq.testing.model.records import Disagreement, Job, close, expect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import (
        ClaimReply,
        ClaimRequest,
        Holder,
        Lease,
        LeaseRef,
        Settlement,
        SettleReply,
    )

_COUNTED = {Outcome.RETRY: "retried", Outcome.SNOOZE: "snoozed", Outcome.RELEASE: "released"}


@dataclass(eq=False)
class Granted:
    """A claim that was granted something: its jobs with their tokens."""

    leases: list[tuple[Job, int]]
    at: float
    lease: float


class Running(Jobs):
    """Who holds which lease."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.claims: dict[tuple[str, int], Granted] = {}

    # Claiming

    def claimed(self, request: ClaimRequest, reply: ClaimReply) -> None:
        """Take in what a claim was granted."""
        self.same_time(reply.now, "claim")
        expect(not reply.wants and not reply.spent, "answers", "claim spends budgets of no limit")
        claim = (request.worker, request.number)
        known = self.claims.get(claim)
        if known is None or request.limit == 0 or not self._repeated(known, reply):
            self._granted(request, reply)
        soonest = self._soonest(request)
        fits = any(close(reply.next_in, wait) for wait in soonest)
        expect(fits, "answers", f"claim says {reply.next_in} for next_in, not one of {soonest}")

    def _repeated(self, known: Granted, reply: ClaimReply) -> bool:
        """Check the answer to a claim that was made before; ``False`` if it may count as new."""
        standing = [(job, token) for job, token in known.leases if self._holds(job, token)]
        if not standing and self.now > known.at + known.lease:
            # How long a claim without leases is remembered is the storage's own affair.
            return not reply.leases
        given = [(lease.queue, lease.id, lease.token) for lease in reply.leases]
        wanted = [(job.queue, job.id, token) for job, token in standing]
        expect(given == wanted, "I4", f"a repeated claim was given {given}, but it holds {wanted}")
        for lease, (job, _) in zip(reply.leases, standing, strict=True):
            self._shows(lease, job)
        return True

    def _granted(self, request: ClaimRequest, reply: ClaimReply) -> None:
        ready = self._ready(request)
        taken: list[tuple[Job, int]] = []
        for lease in reply.leases:
            job = self._entitled(lease)
            wanted = ready[len(taken)] if len(taken) < len(ready) else None
            if job is not wanted:
                raise self._wrong(job, wanted, ready)
            self._start(job, lease, request)
            self._shows(lease, job)
            taken.append((job, lease.token))
        left = ready[len(taken) :]
        expect(not left, "I3", f"a claim left {[job.name for job in left]}, which it has to start")
        if taken:
            made = Granted(taken, self.now, request.lease)
            self.claims[request.worker, request.number] = made

    def _ready(self, request: ClaimRequest) -> list[Job]:
        """Return what a claim has to be granted, in order (I3, I9, I10)."""
        chosen: list[Job] = []
        for name in dict.fromkeys(request.queues):
            queue = self.queue(name)
            if queue.paused:
                continue
            ready = [job for job in queue.jobs.values() if self._waits_for_a_worker(job)]
            ready.sort(key=lambda job: (-job.priority, job.ready_at, job.sequence))
            lanes: dict[str, int] = {}
            running = queue.running()
            limit = None if queue.settings is None else queue.settings.max_running
            for job in ready:
                lane = job.new.lane
                if len(chosen) == request.limit or (limit is not None and running >= limit):
                    break
                if lane is not None:
                    held = lanes.setdefault(lane, queue.running(lane))
                    if held >= queue.lane_limit:
                        continue
                    lanes[lane] = held + 1
                running += 1
                chosen.append(job)
        return chosen

    def _waits_for_a_worker(self, job: Job) -> bool:
        waits = job.state is JobState.QUEUED or job.due(self.now)
        return waits and not job.overdue(self.now)

    def _entitled(self, lease: Lease) -> Job:
        """Return the job of a new lease, which must be one that may start."""
        what = f"{lease.queue}/{lease.id} was granted"
        job = self.queue(lease.queue).jobs.get(lease.id)
        expect(job is not None, "I2", f"{what} but was never submitted, or is gone")
        assert job is not None
        expect(lease.body == job.new.body, "I2", f"{what} with {lease.body!r}, {job.new.body!r}")
        running = job.state is JobState.RUNNING
        expect(not running, "I4", f"{what} to a second holder while {job.worker} holds it")
        waits = job.state in {JobState.QUEUED, JobState.DELAYED}
        expect(waits, "I6", f"{what} again although it is {job.state}")
        queue = self.queue(lease.queue)
        expect(lease.token > queue.token, "I5", f"{what} with {lease.token} after {queue.token}")
        return job

    def _wrong(self, job: Job, wanted: Job | None, ready: list[Job]) -> Disagreement:
        """Return what is wrong with a job that was granted out of turn."""
        queue = self.queue(job.queue)
        if queue.paused:
            return Disagreement("pause", f"{job.name} was granted while its queue is paused")
        if job.overdue(self.now):
            return Disagreement("deadline", f"{job.name} was granted past its deadline")
        if not self._waits_for_a_worker(job):
            return Disagreement("I10", f"{job.name} was granted before its time {job.ready_at}")
        limit = None if queue.settings is None else queue.settings.max_running
        if limit is not None and queue.running() >= limit:
            return Disagreement("I9", f"{job.name} was granted beyond max_running {limit}")
        lane = job.new.lane
        if lane is not None and queue.running(lane) >= queue.lane_limit:
            return Disagreement("I9", f"{job.name} was granted while its lane {lane!r} is full")
        name = "nothing" if wanted is None else wanted.name
        order = [one.name for one in ready]
        return Disagreement("I10", f"{job.name} was granted in place of {name}; order: {order}")

    def _start(self, job: Job, lease: Lease, request: ClaimRequest) -> None:
        job.starts += 1
        what = f"{job.name} starts {job.starts} times for {job.reasons} reasons"
        expect(job.starts <= job.reasons, "I6", what)
        queue = self.queue(job.queue)
        queue.token = job.token = lease.token
        self.shift(job, JobState.RUNNING)
        queue.count(job.new.task, "started")
        job.attempt += 1
        job.started_at = self.now
        job.lease_until = self.now + request.lease
        job.worker = request.worker
        job.number = request.number
        self.free(job, started=True)

    def _shows(self, lease: Lease, job: Job) -> None:
        """Check what a lease tells of its job."""
        spent = (lease.attempt, lease.max_attempts, lease.crashes)
        wanted = (job.attempt, job.new.max_attempts, job.crashes)
        expect(spent == wanted, "I7", f"the lease of {job.name} says {spent}, not {wanted}")
        if not job.restored:
            within = lease.attempt <= lease.max_attempts
            expect(within, "I7", f"{job.name} starts attempt {lease.attempt}")
        facts = (lease.task, lease.body, lease.lane, lease.batch)
        wanted_facts = (job.new.task, job.new.body, job.new.lane, job.new.batch)
        expect(facts == wanted_facts, "I2", f"the lease of {job.name} says {facts}")
        place = (lease.sequence, lease.generation, lease.priority)
        wanted_place = (job.sequence, job.generation, job.priority)
        expect(place == wanted_place, "I10", f"the lease of {job.name} says {place}")
        left = None if job.deadline_at is None else job.deadline_at - self.now
        unknown_for = self.now - job.unknown_since if job.unknown else 0.0
        for name, shown, right in (
            ("submitted_at", lease.submitted_at, job.submitted_at),
            ("started_at", lease.started_at, job.started_at),
            ("deadline_in", lease.deadline_in, left),
            ("unknown", lease.unknown, job.unknown),
            ("unknown_for", lease.unknown_for, unknown_for),
        ):
            what = f"the lease of {job.name} says {shown} for {name}, not {right}"
            expect(close(shown, right), "answers", what)

    def _soonest(self, request: ClaimRequest) -> list[float | None]:
        """Return what a claim may say of when the next job falls due."""
        found: list[float | None] = []
        for overdue in (False, True):
            times = [
                max(0.0, job.ready_at - self.now)
                for name in request.queues
                if not self.queue(name).paused
                for job in self.queue(name).jobs.values()
                if job.state is JobState.DELAYED and (overdue or not job.overdue(self.now))
            ]
            # A job that is due may have been noticed, whatever came of it.
            found += [min(times, default=None), min((t for t in times if t), default=None)]
        return found

    def _holds(self, job: Job, token: int) -> bool:
        stored = self.queue(job.queue).jobs.get(job.id)
        return stored is job and job.state is JobState.RUNNING and job.token == token

    # Settling

    def settled(self, settlements: Sequence[Settlement], replies: Sequence[SettleReply]) -> None:
        """Take in what became of settlements."""
        same = len(settlements) == len(replies)
        expect(same, "answers", "settle answered another number of settlements")
        for settlement, reply in zip(settlements, replies, strict=True):
            job = self.queue(settlement.queue).jobs.get(settlement.id)
            what = f"the settlement {settlement.outcome} of {settlement.queue}/{settlement.id}"
            if job is None or not self._holds(job, settlement.token):
                token = settlement.token
                expect(reply.lost, "I5", f"{what} was taken with {token}, not the current token")
                expect(reply.state is None, "answers", f"{what} was refused with a state")
                continue
            expect(not reply.lost, "I4", f"{what} was refused although it holds the lease")
            self._settle(job, settlement)
            expect(reply.state is job.state, "moves", f"{what} led to {reply.state}, {job.state}")

    def _settle(self, job: Job, settlement: Settlement) -> None:
        outcome = settlement.outcome
        state = self._after(job, settlement)
        expect(state in TRANSITIONS[job.state, Event(outcome)], "moves", f"{job.name}: {state}")
        if settlement.progress is not None:
            job.progress = settlement.progress
        if outcome is Outcome.SUCCEED:
            job.result = settlement.result
        elif settlement.error is not None:
            self.remember(job, settlement.error)
        if outcome in {Outcome.SNOOZE, Outcome.RELEASE}:
            job.attempt -= 1
        self._note_unknown(job, settlement)
        if state.final:
            failed = state is JobState.FAILED
            self.finish(job, state, settlement.code or ("error" if failed else ""))
            return
        self.queue(job.queue).count(job.new.task, _COUNTED[outcome])
        if state is JobState.DELAYED:
            job.ready_at = self.now + settlement.delay
            if outcome is Outcome.RETRY and settlement.at is not None:
                job.ready_at = max(self.now, settlement.at)
        self.wait(job, state)

    def _note_unknown(self, job: Job, settlement: Settlement) -> None:
        if settlement.outcome is not Outcome.RELEASE:
            job.unknown = 0
        elif settlement.code == "unknown_task":
            if not job.unknown:
                job.unknown_since = self.now
            job.unknown += 1

    def _after(self, job: Job, settlement: Settlement) -> JobState:
        """Return where a settlement leads, as the table in section 3 of the design says."""
        outcome = settlement.outcome
        if outcome is Outcome.SUCCEED:
            return JobState.SUCCEEDED
        if job.cancel_requested:
            return JobState.CANCELLED
        if outcome is Outcome.SKIP:
            return JobState.SKIPPED
        if outcome is Outcome.SNOOZE:
            return JobState.DELAYED
        if outcome is Outcome.RELEASE:
            return JobState.DELAYED if settlement.delay > 0 else JobState.QUEUED
        left = job.attempt < job.new.max_attempts
        return JobState.DELAYED if outcome is Outcome.RETRY and left else JobState.FAILED

    def wait(self, job: Job, state: JobState) -> None:
        """Let a job that ran wait again, with one more reason to be started."""
        self.shift(job, state)
        job.reasons += 1
        job.lease_until = job.number = None

    def remember(self, job: Job, error: AttemptRecord) -> None:
        """Keep an attempt that did not succeed."""
        entry = msgspec.structs.replace(
            error,
            attempt=job.attempt,
            worker=job.worker,
            started_at=self.now if job.started_at is None else job.started_at,
            ended_at=self.now,
        )
        job.history += (entry,)

    # Renewing

    def renewed(
        self,
        leases: Sequence[LeaseRef],
        replies: Sequence[RenewReply],
        *,
        lease: float,
        holder: Holder | None,
    ) -> None:
        """Take in the answers to renewals, and what the holder did not list."""
        same = len(leases) == len(replies)
        expect(same, "answers", "renew answered another number of leases")
        for ref, reply in zip(leases, replies, strict=True):
            job = self.queue(ref.queue).jobs.get(ref.id)
            what = f"the renewal of {ref.queue}/{ref.id} with token {ref.token}"
            if job is None or not self._holds(job, ref.token):
                expect(reply is RenewReply.LOST, "I5", f"{what}, not the current one: {reply}")
                continue
            wanted = RenewReply.CANCEL if job.cancel_requested else RenewReply.OK
            expect(reply is wanted, "I9", f"{what} was answered {reply}, not {wanted}")
            job.lease_until = self.now + lease
            if ref.progress is not None:
                job.progress = ref.progress
        if holder is not None:
            self._release_unlisted({(ref.queue, ref.id, ref.token) for ref in leases}, holder)

    def _release_unlisted(self, listed: set[tuple[str, str, int]], holder: Holder) -> None:
        for job in self.all():
            if job.state is not JobState.RUNNING or job.worker != holder.worker:
                continue
            if (job.number or 0) > holder.number or (job.queue, job.id, job.token) in listed:
                continue
            job.attempt -= 1
            if job.cancel_requested:
                self.finish(job, JobState.CANCELLED, "")
            else:
                self.queue(job.queue).count(job.new.task, "released")
                self.wait(job, JobState.QUEUED)


__all__ = ["Granted", "Running"]
