"""How jobs get into the memory storage: submit and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.builtin.memory_claims import Claim
from plugq.builtin.memory_records import Record, own_progress, submission_of
from plugq.job import JobState
from plugq.protocols.storage import SubmitReply, SubmitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.builtin.memory_jobs import JobTable
    from plugq.builtin.memory_queue import Queue
    from plugq.job import JobRecord
    from plugq.protocols.storage import NewJob

_DELAYED = JobState.DELAYED
_QUEUED = JobState.QUEUED
_CANCELLED = JobState.CANCELLED

#: What a record takes over from a job that is restored.
_RESTORED = (
    "attempt",
    "crashes",
    "token",
    "worker",
    "submitted_at",
    "ready_at",
    "started_at",
    "finished_at",
    "expires_at",
    "deadline_at",
    "cancel_requested",
    "code",
    "history",
    "result",
)


def submit(table: JobTable, jobs: Sequence[NewJob], now: float) -> list[SubmitReply]:
    """Store jobs in the order given, unless one of them finds its queue full or drained."""
    queues = [table.queue(name) for name in {job.queue for job in jobs}]
    if any(queue.max_length is not None or queue.draining for queue in queues):
        refused = _refusal(table, jobs, now)
        if refused is not None:
            return refused
    replies: list[SubmitReply] = []
    for job in jobs:
        queue = table.queues[job.queue]
        replies.append(_judge(queue, job, now) or _store(table, queue, job, now))
    return replies


def _judge(queue: Queue, job: NewJob, now: float) -> SubmitReply | None:
    """Return why a job is not stored, ``None`` if it is to be."""
    record = queue.jobs.get(job.id)
    if record is not None and not record.expired(now):
        cancelled = record.state is _CANCELLED
        if record.job.submission == job.submission:
            status = SubmitStatus.DUPLICATE if cancelled else SubmitStatus.ACCEPTED
            return _standing(status, record, now)
        if not cancelled:
            return _standing(SubmitStatus.DUPLICATE, record, now)
    if job.unique is not None:
        holder = queue.holder(job.unique.key, now)
        if holder is not None:
            present = queue.jobs.get(holder.job.id, holder)
            return _standing(SubmitStatus.DUPLICATE, present, now)
    if job.not_after is not None and job.not_after < now:
        return SubmitReply(SubmitStatus.LATE, job.id, _QUEUED)
    return None


def _refusal(table: JobTable, jobs: Sequence[NewJob], now: float) -> list[SubmitReply] | None:
    """Return the answers of a call that a queue refuses, ``None`` if none does."""
    stored: set[tuple[str, str]] = set()
    keys: set[tuple[str, str]] = set()
    added: dict[str, int] = {}
    replies: list[SubmitReply] = []
    full: set[str] = set()
    for job in jobs:
        queue = table.queues[job.queue]
        identity = (job.queue, job.id)
        reply = None if identity in stored else _judge(queue, job, now)
        if reply is not None:
            replies.append(reply)
            continue
        status = SubmitStatus.DRAINING if queue.draining else SubmitStatus.REFUSED
        replies.append(SubmitReply(status, job.id, _QUEUED))
        key = None if job.unique is None else (job.queue, job.unique.key)
        if identity in stored or key in keys:
            continue
        stored.add(identity)
        if key is not None:
            keys.add(key)
        added[job.queue] = added.get(job.queue, 0) + 1
        limit = queue.max_length
        if limit is not None and queue.waiting + added[job.queue] > limit:
            full.add(job.queue)
    if not full and all(reply.status is not SubmitStatus.DRAINING for reply in replies):
        return None
    return [
        SubmitReply(SubmitStatus.FULL, job.id, _QUEUED)
        if reply.status is SubmitStatus.REFUSED and job.queue in full
        else reply
        for job, reply in zip(jobs, replies, strict=True)
    ]


def _store(table: JobTable, queue: Queue, job: NewJob, now: float) -> SubmitReply:
    generation = 0
    former = queue.jobs.get(job.id)
    if former is not None:
        if not former.expired(now):
            generation = former.generation + 1
        table.remove(former)
    record = Record(job, queue, table.next_sequence(), generation)
    record.submitted_at = now
    record.ready_at = max(now, now + job.delay if job.run_at is None else job.run_at)
    record.deadline_at = job.deadline_at
    if job.deadline_in is not None:
        relative, absolute = now + job.deadline_in, job.deadline_at
        record.deadline_at = relative if absolute is None else min(absolute, relative)
    table.add(record, now)
    table.hold_key(record, now)
    table.wait(record, _DELAYED if record.ready_at > now else _QUEUED)
    return SubmitReply(SubmitStatus.ACCEPTED, job.id, record.state, record.sequence, generation)


def _standing(status: SubmitStatus, record: Record, now: float) -> SubmitReply:
    state = JobState.FAILED if record.overdue(now) else record.state
    return SubmitReply(status, record.job.id, state, record.sequence, record.generation)


def restore(table: JobTable, job: JobRecord, now: float) -> None:
    """Write a whole job, unless its id is taken."""
    queue = table.queue(job.queue)
    if job.id in queue.jobs:
        return
    sequence = table.reserve_sequence(job.sequence)
    record = Record(submission_of(job), queue, sequence, job.generation)
    for name in _RESTORED:
        setattr(record, name, getattr(job, name))
    record.progress = own_progress(job.progress)
    queue.token = max(queue.token, job.token)
    table.add(record, now)
    if job.state.final:
        record.value_until = job.expires_at
        record.finished_at = now if job.finished_at is None else job.finished_at
        table.shift(record, job.state)
        if record.batch is not None:
            table.batches.ended(record.batch, now)
        table.schedule_expiry(record)
    elif job.state is JobState.RUNNING:
        until = now if job.lease_until is None else job.lease_until
        # No worker repeats a claim of this number: those of workers are positive.
        claim = Claim(table.claims.worker(job.worker), -sequence, "", until)
        table.shift(record, job.state)
        queue.run_restored(record)
        claim.grant(record, until)
        table.claims.enter(claim, forget_at=until)
        if record.deadline_at is not None:
            table.running_overdue.add(record.deadline_at, record)
    else:
        table.wait(record, job.state)


__all__ = ["restore", "submit"]
