"""How jobs get into the store: submit and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import JobState
from plugq.protocols.storage import SubmitReply, SubmitStatus
from plugq_lmdb import _keys
from plugq_lmdb._records import Job, job_from, restored_from

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRecord
    from plugq.protocols.storage import NewJob
    from plugq_lmdb._transaction import Transaction


def submit(tx: Transaction, jobs: Sequence[NewJob]) -> list[SubmitReply]:
    """Store jobs in the order given, unless one of them finds its queue full or drained."""
    queues = [tx.queue(name) for name in {new.queue for new in jobs}]
    if any(queue.draining or queue.most is not None for queue in queues):
        refused = _refusal(tx, jobs)
        if refused is not None:
            return refused
    return [_judge(tx, new) or _store(tx, new) for new in jobs]


def _judge(tx: Transaction, new: NewJob) -> SubmitReply | None:
    """Return why a job is not stored, ``None`` if it is to be."""
    job = tx.find_job(new.queue, new.id)
    if job is not None and job.expired(tx.now):
        job = None
    if job is not None:
        cancelled = job.state is JobState.CANCELLED
        if job.submission == new.submission:
            status = SubmitStatus.DUPLICATE if cancelled else SubmitStatus.ACCEPTED
            return _standing(tx, status, job)
        if not cancelled:
            return _standing(tx, SubmitStatus.DUPLICATE, job)
    holder = None if new.unique is None else tx.holder(tx.queue(new.queue), new.unique)
    if holder is not None:
        job = tx.find_job(new.queue, holder.id)
        if job is not None:
            return _standing(tx, SubmitStatus.DUPLICATE, job)
        return SubmitReply(
            SubmitStatus.DUPLICATE, holder.id, holder.state, holder.sequence, holder.generation
        )
    if new.not_after is not None and new.not_after < tx.now:
        return SubmitReply(SubmitStatus.LATE, new.id, JobState.QUEUED)
    return None


def _standing(tx: Transaction, status: SubmitStatus, job: Job) -> SubmitReply:
    return SubmitReply(status, job.id, job.shown_state(tx.now), job.sequence, job.generation)


def _refusal(tx: Transaction, jobs: Sequence[NewJob]) -> list[SubmitReply] | None:
    """Return the answers of a call that a queue refuses, ``None`` if none does."""
    new: set[tuple[str, str]] = set()
    keys: set[tuple[str, str]] = set()
    added: dict[str, int] = {}
    replies: dict[int, SubmitReply] = {}
    for place, job in enumerate(jobs):
        identity = (job.queue, job.id)
        if identity in new:
            continue
        reply = _judge(tx, job)
        if reply is not None:
            replies[place] = reply
            continue
        key = None if job.unique is None else (job.queue, job.unique.key)
        if key is None or key not in keys:
            new.add(identity)
            keys.update(() if key is None else (key,))
            added[job.queue] = added.get(job.queue, 0) + 1
    verdicts: dict[str, SubmitStatus] = {}
    for name in {job.queue for place, job in enumerate(jobs) if place not in replies}:
        queue = tx.queue(name)
        if queue.draining:
            verdicts[name] = SubmitStatus.DRAINING
        elif queue.most is not None and queue.waiting + added[name] > queue.most:
            verdicts[name] = SubmitStatus.FULL
    if not verdicts:
        return None
    return [
        replies.get(place)
        or SubmitReply(verdicts.get(job.queue, SubmitStatus.REFUSED), job.id, JobState.QUEUED)
        for place, job in enumerate(jobs)
    ]


def _store(tx: Transaction, new: NewJob) -> SubmitReply:
    tx.meta.sequence += 1
    job = job_from(new, tx.meta.sequence)
    former = tx.find_job(new.queue, new.id)
    if former is not None:
        # Once its retention has passed an id is new.
        job.generation = 0 if former.expired(tx.now) else former.generation + 1
        tx.remove(former)
    job.submitted_at = tx.now
    job.ready_at = max(tx.now, tx.now + new.delay if new.run_at is None else new.run_at)
    relative = None if new.deadline_in is None else tx.now + new.deadline_in
    ends = [at for at in (relative, new.deadline_at) if at is not None]
    job.deadline_at = min(ends, default=None)
    state = JobState.DELAYED if job.ready_at > tx.now else JobState.QUEUED
    tx.add(job, new.body, state)
    tx.hold_key(job)
    return SubmitReply(SubmitStatus.ACCEPTED, job.id, state, job.sequence, job.generation)


def restore(tx: Transaction, records: Sequence[JobRecord]) -> None:
    """Write whole jobs; an id that exists is left alone."""
    for record in records:
        if tx.find_job(record.queue, record.id) is None:
            _restore(tx, record)


def _restore(tx: Transaction, record: JobRecord) -> None:
    queue = tx.queue(record.queue)
    queue.token = max(queue.token, record.token)
    sequence = record.sequence
    if sequence < 1 or tx.held(_keys.JOB + _keys.number(sequence), Job) is not None:
        sequence = tx.meta.sequence + 1
    tx.meta.sequence = max(tx.meta.sequence, sequence)
    job = restored_from(record, sequence)
    if record.state.final:
        job.value_until = record.expires_at
        job.finished_at = tx.now if record.finished_at is None else record.finished_at
    if record.state is JobState.RUNNING:
        job.lease_until = tx.now if record.lease_until is None else record.lease_until
        # No worker repeats a claim of this number: those of workers are positive.
        job.claim = -sequence
    if record.result is not None:
        tx.txn.put(_keys.RESULT + _keys.number(sequence), record.result)
    tx.add(job, record.body or b"", record.state)
