"""What time and operators do to the model's jobs: sweep, edits and registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import FINAL, TRANSITIONS, AttemptRecord, Event, JobState
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    EditStatus,
    JobEdit,
    Pause,
    Purge,
    Reprioritise,
    Retain,
)
from plugq.testing.model.records import expect
from plugq.testing.model.running import Running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRef
    from plugq.protocols.edits import Edit, EditReply
    from plugq.protocols.storage import (
        Change,
        Register,
        RegisterChange,
        Swapped,
        SweepReply,
        SweepRequest,
    )
    from plugq.testing.model.records import Job

_NEVER = float("inf")


class Steering(Running):
    """Sweeps, edits and registers."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self.registers: dict[str, tuple[Register, float | None]] = {}
        self.versions: dict[str, int] = {}

    # Sweeping

    def swept(self, request: SweepRequest, reply: SweepReply) -> None:
        """Take in what a sweep moved; which jobs a bounded one takes is its own affair."""
        before = {id(job): (job, job.state) for job in self.all() if self._work(job, request)}
        kinds: dict[Event, int] = {}
        for change in reply.changes:
            kinds[change.event] = kinds.get(change.event, 0) + 1
            self._moved(request, change)
        for event, count in kinds.items():
            # Deadlines of what waits and of what runs are two kinds.
            limit = request.limit * (2 if event is Event.DEADLINE else 1)
            expect(count <= limit, "answers", f"a sweep of {request.limit} did {count}")
        if request.limit > len(before) or reply.next_in != 0:
            left = [
                job.name
                for job, state in before.values()
                if job.state is state
                and self.queue(job.queue).jobs.get(job.id) is job
                and self._work(job, request)
            ]
            expect(not left, "I14", f"a sweep left {left} and said to come in {reply.next_in}")
        soonest = min((self._next(job, request) for job in self.all()), default=_NEVER)
        said = _NEVER if reply.next_in is None else reply.next_in
        wait = max(0.0, soonest - self.now)
        text = f"a sweep has work in {wait} and said {reply.next_in}"
        expect(said <= wait + 0.002, "I14", text)

    def _work(self, job: Job, request: SweepRequest) -> bool:
        """Return whether a sweep has to move a job now."""
        return self._next(job, request) <= self.now

    def _next(self, job: Job, request: SweepRequest) -> float:
        """Return when a sweep has to move a job at the latest."""
        if job.state in FINAL:
            return job.removable_at(latest=True)
        deadline = _NEVER if job.deadline_at is None else job.deadline_at
        if job.state is JobState.RUNNING:
            if not request.end_leases:
                return _NEVER
            lapse = _NEVER if job.lease_until is None else job.lease_until
            return min(lapse, deadline + request.deadline_grace)
        return min(job.ready_at, deadline) if job.state is JobState.DELAYED else deadline

    def _moved(self, request: SweepRequest, change: Change) -> None:
        what = f"a sweep made {change.event} of {change.queue}/{change.id}"
        job = self.queue(change.queue).jobs.get(change.id)
        expect(job is not None, "I1", f"{what}, which is not there")
        assert job is not None
        may = TRANSITIONS.get((job.state, change.event))
        expect(may is not None, "moves", f"{what}, which is {job.state}")
        attempt = job.attempt
        if change.event is Event.DUE:
            expect(job.ready_at <= self.now, "I10", f"{what} before its time")
            self.shift(job, JobState.QUEUED)
        elif change.event is Event.REMOVE:
            gone = job.removable_at(latest=False) <= self.now
            expect(gone, "I1", f"{what} before its retention has passed")
            self.remove(job)
        elif change.event is Event.LAPSE:
            lapsed = job.lease_until is not None and job.lease_until <= self.now
            expect(request.end_leases, "I4", f"{what}, though it may end no lease")
            expect(lapsed, "I4", f"{what}, whose lease stands until {job.lease_until}")
            self._lapse(job, request)
        else:
            self._past_deadline(job, request, what)
        state = None if change.event is Event.REMOVE else job.state
        expect(change.state is state, "I7", f"{what} and says {change.state}, not {state}")
        told = (change.task, change.sequence, change.attempt, change.lane, change.batch)
        wanted = (job.new.task, job.sequence, attempt, job.new.lane, job.new.batch)
        expect(told == wanted, "answers", f"{what} and tells {told}, not {wanted}")

    def _lapse(self, job: Job, request: SweepRequest) -> None:
        job.crashes += 1
        self.remember(job, AttemptRecord(attempt=0, code="crashed"))
        self.queue(job.queue).count(job.new.task, "lease_ended")
        if job.cancel_requested:
            self.finish(job, JobState.CANCELLED, "")
        elif job.crashes >= request.max_crashes or job.attempt >= job.new.max_attempts:
            self.finish(job, JobState.FAILED, "crashed")
        else:
            self.wait(job, JobState.QUEUED)

    def _past_deadline(self, job: Job, request: SweepRequest, what: str) -> None:
        running = job.state is JobState.RUNNING
        grace = request.deadline_grace if running else 0.0
        past = job.deadline_at is not None and job.deadline_at + grace <= self.now
        expect(past, "deadline", f"{what} before its deadline")
        if not running:
            self.finish(job, JobState.FAILED, "deadline", job.deadline_at)
            return
        expect(request.end_leases, "I4", f"{what}, though it may end no lease")
        self.remember(job, AttemptRecord(attempt=0, code="deadline"))
        cancelled = job.cancel_requested
        state = JobState.CANCELLED if cancelled else JobState.FAILED
        self.finish(job, state, "" if cancelled else "deadline")

    # Edits

    def edited(self, edit: Edit, replies: Sequence[EditReply]) -> None:
        """Take in an operator's change."""
        if isinstance(edit, JobEdit):
            expect(len(replies) == len(edit.refs), "answers", "edit answered another number")
            sequences = edit.sequences or (0,) * len(edit.refs)
            for ref, sequence, reply in zip(edit.refs, sequences, replies, strict=True):
                self._edited(edit, ref, sequence, reply)
            return
        named = edit.settings if isinstance(edit, Configure) else edit.queues
        done = [reply.status for reply in replies] == [EditStatus.DONE] * len(named)
        expect(done, "answers", f"{edit} was answered {replies}")
        if isinstance(edit, Configure):
            for settings in edit.settings:
                self.queue(settings.queue).settings = settings
            return
        for name in edit.queues:
            queue = self.queue(name)
            if isinstance(edit, Drain):
                queue.draining = True
                continue
            queue.paused = isinstance(edit, Pause)
            queue.draining = queue.draining and queue.paused

    def _edited(self, edit: JobEdit, ref: JobRef, sequence: int, reply: EditReply) -> None:
        what = f"{type(edit).__name__} of {ref.queue}/{ref.id} was answered {reply}"
        job = self.find(ref.queue, ref.id)
        if job is None or sequence not in {0, job.sequence}:
            expect(reply.status is EditStatus.NOT_FOUND, "I8", f"{what}, but there is none")
            return
        shown = job.shown(self.now)
        meant = shown & set(edit.states) if edit.states else shown
        if reply.status is EditStatus.NOT_FOUND:
            expect(edit.states and shown - meant, "I1", f"{what}, but it is there as {shown}")
            return
        expect(meant, "I8", f"{what}, but it is {shown}")
        status, states = self._edit(edit, job)
        expect(reply.status is status, "moves", f"{what}, not {status}")
        expect(reply.state in states, "moves", f"{what}, not one of {states}")
        told, facts = (reply.task, reply.lane, reply.batch), job.new
        wanted = (facts.task, facts.lane, facts.batch)
        expect(told == wanted, "answers", f"{what}, which does not tell {wanted}")

    def _edit(self, edit: JobEdit, job: Job) -> tuple[EditStatus, set[JobState | None]]:
        """Make a change; return what was done and the states that the answer may name."""
        shown: set[JobState | None] = set(job.shown(self.now))
        stored: set[JobState | None] = {job.state, *shown}
        if job.due(self.now):
            stored.add(JobState.QUEUED)
        final = all(state is not None and state.final for state in shown)
        if isinstance(edit, Cancel):
            return self._cancel(job, final=final, shown=shown)
        if isinstance(edit, Retain):
            self._retain(job, edit.ttl)
            return EditStatus.DONE, shown
        if isinstance(edit, Reprioritise):
            if final:
                return EditStatus.FINISHED, shown
            job.priority = edit.priority
            return EditStatus.DONE, shown
        # A deadline that no sweep has stored yet forbids both as the stored state does.
        if isinstance(edit, Purge):
            if job.state not in FINAL:
                return EditStatus.CONFLICT, stored
            self.remove(job)
            return EditStatus.DONE, {None}
        if not self._redrive(job):
            return EditStatus.CONFLICT, stored
        return EditStatus.DONE, {JobState.QUEUED}

    def _cancel(
        self, job: Job, *, final: bool, shown: set[JobState | None]
    ) -> tuple[EditStatus, set[JobState | None]]:
        if final:
            return EditStatus.FINISHED, shown
        if job.state is JobState.RUNNING:
            job.cancel_requested = True
            return EditStatus.REQUESTED, {JobState.RUNNING}
        self.finish(job, JobState.CANCELLED, "")
        return EditStatus.DONE, {JobState.CANCELLED}

    def _redrive(self, job: Job) -> bool:
        unique = job.new.unique
        holder = None if unique is None else self.holder(job.queue, unique.key)
        redrivable = {JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED}
        if job.state not in redrivable or holder not in {None, job}:
            return False
        job.attempt = job.crashes = job.unknown = 0
        job.cancel_requested = False
        job.deadline_at = job.finished_at = job.expires_at = job.value_until = None
        job.result = job.progress = None
        job.code = ""
        job.ready_at = self.now
        job.reasons += 1
        self.queue(job.queue).count(job.new.task, "redriven")
        if job.new.batch is not None and self.batch(job.new.batch) is not job.group:
            job.group = None
        self.join(job)
        self.shift(job, JobState.QUEUED)
        self.hold(job)
        return True

    def _retain(self, job: Job, ttl: float | None) -> None:
        if job.finished_at is None:
            job.result_ttl = job.failure_ttl = ttl
            return
        if job.value_until is None or job.value_until > self.now:
            job.value_until = None if ttl is None else self.now + ttl
        kept = job.finished_at + job.new.id_ttl
        job.expires_at = None if ttl is None else max(self.now + ttl, kept)

    # Registers

    def register(self, key: str) -> Register | None:
        """Return a register unless its time has passed."""
        register, until = self.registers.get(key, (None, None))
        return None if until is not None and until <= self.now else register

    def swapped(self, changes: Sequence[RegisterChange], reply: Swapped) -> None:
        """Take in a compare-and-set of registers, each key at most once."""
        self.same_time(reply.now, "swap")
        present = [self.register(change.key) for change in changes]
        done = all(
            change.expect == (0 if register is None else register.version)
            for change, register in zip(changes, present, strict=True)
        )
        expect(reply.done is done, "registers", f"swap {changes} says done={reply.done}")
        if not done:
            expect(list(reply.registers) == present, "registers", f"swap shows {reply.registers}")
            return
        for change, register in zip(changes, reply.registers, strict=True):
            if change.value is None:
                expect(register is None, "registers", f"{change.key} was not removed")
                self.registers.pop(change.key, None)
                continue
            what = f"{change} led to {register}"
            expect(register is not None and register.value == change.value, "registers", what)
            assert register is not None
            expect(register.version > self.versions.get(change.key, 0), "registers", what)
            self.versions[change.key] = register.version
            until = None if change.ttl is None else self.now + change.ttl
            self.registers[change.key] = (register, until)

    def scanned(self, prefix: str, found: Sequence[Register]) -> None:
        """Check what a scan returned."""
        keys = sorted(key for key in self.registers if key.startswith(prefix))
        wanted = [register for key in keys if (register := self.register(key)) is not None]
        expect(list(found) == wanted, "registers", f"scan shows {found}, not {wanted}")


__all__ = ["Steering"]
