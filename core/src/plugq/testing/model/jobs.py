"""The model's jobs: how they come, and the moves that everything else is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import FINAL, JobState
from plugq.protocols.storage import BATCH_TTL, NewJob, SubmitReply, SubmitStatus, UniqueMode
from plugq.testing.model.records import Batch, Job, Key, Queue, close, expect

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plugq.job import JobRecord

_REFUSED = frozenset({SubmitStatus.FULL, SubmitStatus.DRAINING, SubmitStatus.REFUSED})


class Jobs:
    """Every job of the store, by queue and id, and the time of the storage."""

    def __init__(self, now: float) -> None:
        self.now: float = now
        self.queues: dict[str, Queue] = {}
        self.batches: dict[str, Batch] = {}
        self.sequence: int = 0

    def queue(self, name: str) -> Queue:
        """Return a queue, which exists from its first mention on."""
        return self.queues.setdefault(name, Queue(name))

    def all(self) -> Iterator[Job]:
        """Iterate over the jobs that are stored, also those whose retention has passed."""
        for queue in self.queues.values():
            yield from list(queue.jobs.values())

    def find(self, queue: str, id: str) -> Job | None:
        """Return a job that is stored and whose retention has not passed."""
        job = self.queue(queue).jobs.get(id)
        return None if job is None or job.expired(self.now) else job

    # Submitting

    def submitted(self, jobs: Sequence[NewJob], replies: Sequence[SubmitReply]) -> None:
        """Take in what became of one call of ``submit``."""
        expect(len(jobs) == len(replies), "answers", "submit answered another number of jobs")
        for job in jobs:
            self.queue(job.queue)
        if self._refused(jobs, replies):
            return
        for job, reply in zip(jobs, replies, strict=True):
            judged = self._judged(job)
            if judged is None:
                self._stored(job, reply)
            else:
                self._stands(job, reply, *judged)

    def _judged(self, job: NewJob) -> tuple[SubmitStatus, list[Job]] | None:
        """Return the answer and the jobs of which one is in it; ``None`` if it is stored."""
        present = self.find(job.queue, job.id)
        if present is not None:
            cancelled = present.state is JobState.CANCELLED
            if present.new.submission == job.submission:
                again = SubmitStatus.DUPLICATE if cancelled else SubmitStatus.ACCEPTED
                return again, [present]
            if not cancelled:
                return SubmitStatus.DUPLICATE, [present]
        if job.unique is not None:
            holder = self.holder(job.queue, job.unique.key)
            if holder is not None:
                named = self.queue(job.queue).jobs.get(holder.id)
                return SubmitStatus.DUPLICATE, [holder] if named is None else [holder, named]
        if job.not_after is not None and job.not_after < self.now:
            return SubmitStatus.LATE, []
        return None

    def _stands(
        self, job: NewJob, reply: SubmitReply, status: SubmitStatus, standing: list[Job]
    ) -> None:
        what = f"{job.queue}/{job.id} was answered {reply}"
        expect(reply.status is status, "I8", f"{what}, which should be {status}")
        if standing:
            fits = [
                held
                for held in standing
                if (held.id, held.sequence, held.generation)
                == (reply.id, reply.sequence, reply.generation)
                and reply.state in held.shown(self.now)
            ]
            expect(fits, "I8", f"{what}, which is none of {[one.name for one in standing]}")

    def _refused(self, jobs: Sequence[NewJob], replies: Sequence[SubmitReply]) -> bool:
        """Return whether the call is refused as a whole, and check the answers if it is."""
        added: dict[str, set[str]] = {}
        keys: set[tuple[str, str]] = set()
        new: list[bool] = []
        either: set[int] = set()
        for job in jobs:
            ids = added.setdefault(job.queue, set())
            key = None if job.unique is None else (job.queue, job.unique.key)
            judged = None if job.id in ids else self._judged(job)
            if judged is not None and judged[0] is SubmitStatus.LATE and key in keys:
                # The key comes before the time, and a job of this very call would hold it; what
                # is said of it where the call is refused is left open.
                either.add(len(new))
            new.append(judged is None)
            if judged is None and key not in keys:
                ids.add(job.id)
                if key is not None:
                    keys.add(key)
        full = {name for name, ids in added.items() if ids and self._full(name, len(ids))}
        draining = {name for name, ids in added.items() if ids and self.queue(name).draining}
        for place, (job, reply, is_new) in enumerate(zip(jobs, replies, new, strict=True)):
            if not full and not draining:
                expect(
                    reply.status not in _REFUSED,
                    "answers",
                    f"{job.queue}/{job.id} was refused as {reply.status} where there was room",
                )
            elif not is_new and not (place in either and reply.status in _REFUSED):
                judged = self._judged(job)
                if judged is not None:
                    self._stands(job, reply, *judged)
            else:
                reasons = {
                    status
                    for status, names in (
                        (SubmitStatus.FULL, full),
                        (SubmitStatus.DRAINING, draining),
                    )
                    if job.queue in names
                } or {SubmitStatus.REFUSED}
                text = f"{job.queue}/{job.id} was answered {reply.status}, not {sorted(reasons)}"
                expect(reply.status in reasons, "I15", text)
        return bool(full or draining)

    def _full(self, name: str, added: int) -> bool:
        queue = self.queue(name)
        limit = None if queue.settings is None else queue.settings.max_length
        return limit is not None and queue.waiting() + added > limit

    def _stored(self, new: NewJob, reply: SubmitReply) -> None:
        former = self.find(new.queue, new.id)
        generation = 0 if former is None else former.generation + 1
        ready_at = self.now + new.delay if new.run_at is None else max(self.now, new.run_at)
        state = JobState.DELAYED if ready_at > self.now else JobState.QUEUED
        what = f"{new.queue}/{new.id} was answered {reply}"
        expect(reply.status is SubmitStatus.ACCEPTED, "I8", f"{what}, but it is a new job")
        expect((reply.id, reply.state) == (new.id, state), "answers", f"{what}, not {state}")
        expect(reply.generation == generation, "I8", f"{what}, not generation {generation}")
        expect(reply.sequence > self.sequence, "I10", f"{what}, after sequence {self.sequence}")
        deadlines = [] if new.deadline_at is None else [new.deadline_at]
        if new.deadline_in is not None:
            deadlines.append(self.now + new.deadline_in)
        self.add(
            Job(
                new=new,
                sequence=reply.sequence,
                generation=generation,
                priority=new.priority,
                result_ttl=new.result_ttl,
                failure_ttl=new.failure_ttl,
                submitted_at=self.now,
                ready_at=ready_at,
                state=state,
                deadline_at=min(deadlines, default=None),
            )
        )

    def add(self, job: Job) -> None:
        """Take in a new job, in place of one that has the same id."""
        queue = self.queue(job.queue)
        if job.id in queue.jobs:
            self.remove(queue.jobs[job.id])
        queue.jobs[job.id] = job
        queue.count(job.new.task, "accepted")
        self.sequence = max(self.sequence, job.sequence)
        self.join(job)
        self.hold(job)

    def restored(self, record: JobRecord, shown: JobRecord | None) -> None:
        """Take in a job that was restored under an id that was free."""
        expect(shown is not None, "I1", f"{record.queue}/{record.id} was restored and is not there")
        assert shown is not None
        taken = any(job.sequence == record.sequence for job in self.all())
        # One that a job had which is gone may be given another, since sequences never repeat.
        kept = shown.sequence == record.sequence and not taken
        new = shown.sequence > self.sequence
        expect(kept or new, "I10", f"{shown.id} was restored with sequence {shown.sequence}")
        job = Job(
            new=NewJob(
                queue=record.queue,
                id=record.id,
                task=record.task,
                submission=record.submission,
                body=record.body or b"",
                max_attempts=record.max_attempts,
                lane=record.lane,
                batch=record.batch,
            ),
            sequence=shown.sequence,
            generation=record.generation,
            priority=record.priority,
            result_ttl=3600.0,
            failure_ttl=604800.0,
            submitted_at=record.submitted_at,
            ready_at=record.ready_at,
            restored=True,
        )
        for name in ("state", "deadline_at", "attempt", "crashes", "token", "worker"):
            setattr(job, name, getattr(record, name))
        for name in ("started_at", "finished_at", "expires_at", "lease_until", "code", "result"):
            setattr(job, name, getattr(record, name))
        job.value_until = record.expires_at
        job.stored_at = self.now
        self.add(job)
        queue = self.queue(job.queue)
        queue.token = max(queue.token, job.token)

    # Moves

    def shift(self, job: Job, state: JobState) -> None:
        """Change the state of a job, and the counts of its batch with it."""
        if job.group is not None:
            job.group.counts[job.state] -= 1
            job.group.counts[state] += 1
            job.group.changed_at = self.now
        job.state = state

    def finish(self, job: Job, state: JobState, code: str, at: float | None = None) -> None:
        """End a job; ``at`` is its deadline where that ended it."""
        self.shift(job, state)
        job.code = code
        job.finished_at = self.now if at is None else at
        job.stored_at = self.now
        job.lease_until = job.number = None
        ttl = job.failure_ttl
        if state in {JobState.SUCCEEDED, JobState.CANCELLED}:
            ttl = job.result_ttl
            job.value_until = None if ttl is None else self.now + ttl
        job.expires_at = None if ttl is None else self.now + max(ttl, job.new.id_ttl)
        self.queue(job.queue).count(job.new.task, state)
        self.free(job)

    def remove(self, job: Job) -> None:
        """Forget a final job; its batch counts on what it was."""
        expect(job.state in FINAL, "I1", f"{job.name} was removed while it is {job.state}")
        del self.queue(job.queue).jobs[job.id]

    def join(self, job: Job) -> None:
        """Count a job in its batch, which may have been forgotten since it was last counted."""
        name = job.new.batch
        if name is None:
            return
        batch = self.batch(name)
        if batch is None:
            batch = self.batches[name] = Batch()
        if job.group is not batch:
            batch.counts[job.state] += 1
            job.group = batch
        batch.changed_at = self.now

    def batch(self, name: str) -> Batch | None:
        """Return a batch that is not forgotten."""
        batch = self.batches.get(name)
        if batch is None or (not batch.live and batch.changed_at + BATCH_TTL <= self.now):
            return None
        return batch

    # Unique keys

    def holder(self, queue: str, key: str) -> Job | None:
        """Return the job that holds a unique key."""
        held = self.queue(queue).keys.get(key)
        if held is None or (held.until is not None and held.until <= self.now):
            return None
        return held.holder

    def hold(self, job: Job) -> None:
        """Give a job its unique key, if it has one."""
        unique = job.new.unique
        if unique is not None:
            throttled = unique.mode is UniqueMode.THROTTLE
            until = self.now + unique.ttl if throttled else None
            self.queue(job.queue).keys[unique.key] = Key(job, until)

    def free(self, job: Job, *, started: bool = False) -> None:
        """Free the unique key of a job that has ended, or started."""
        unique = job.new.unique
        if unique is None or unique.mode is UniqueMode.THROTTLE:
            return
        keys = self.queue(job.queue).keys
        ends = not started or unique.mode is UniqueMode.UNTIL_STARTED
        if ends and unique.key in keys and keys[unique.key].holder is job:
            del keys[unique.key]

    def same_time(self, now: float, verb: str) -> None:
        """Check the storage's time as an answer tells it."""
        expect(close(now, self.now), "time", f"{verb} says it is {now}, not {self.now}")


__all__ = ["Jobs"]
