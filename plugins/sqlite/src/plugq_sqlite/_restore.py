"""Writing whole jobs as they are, for a migration from another store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import LINGER, JobRef, JobState
from plugq_sqlite._moves import rows_by_ref
from plugq_sqlite._rows import (
    ACCEPTED,
    BEHIND,
    CODES,
    ELIGIBLE,
    QUEUED,
    RUNNING,
    packed,
)
from plugq_sqlite._statements import insert_rows, numbers
from plugq_sqlite._workers import keep_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRecord
    from plugq_sqlite._transaction import Transaction

#: What a submission says when nothing else is said; a whole job does not tell its own.
_RESULT_TTL, _FAILURE_TTL, _ID_TTL = 3600.0, 604_800.0, 600.0

_INSERT = (
    "INSERT INTO job (seq, namespace, queue, id, task, state, eligible, nprio, ready_at, token, "
    "attempt, max_attempts, crashes, generation, cancel, failures, number, lease_until, "
    "deadline_at, submitted_at, started_at, finished_at, expires_at, tidy_at, result_ttl, "
    "failure_ttl, id_ttl, lane, batch, origin, worker, code, submission, progress, result, "
    "entered) VALUES ?"
)


def restore(tx: Transaction, jobs: Sequence[JobRecord]) -> None:
    """Write jobs whose ids are new.

    A job keeps its sequence where that is free. Sequences and tokens that are granted later are
    greater than every one restored.
    """
    wanted = {(job.queue, job.id): job for job in reversed(jobs)}
    refs = [JobRef(queue, id_) for queue, id_ in wanted]
    existing = rows_by_ref(tx, refs)
    new = [job for job, row in zip(wanted.values(), existing, strict=True) if row is None]
    new.sort(key=lambda job: job.sequence)
    taken = {
        seq
        for (seq,) in tx.db.execute(
            "SELECT seq FROM job WHERE seq IN (SELECT value FROM json_each(?))",
            (numbers(job.sequence for job in new),),
        )
    }
    batched = any(job.batch is not None for job in new)
    entered = tx.batches.entering() if batched else None
    last = max([tx.sequence, *(job.sequence for job in new)])
    rows, bodies, failures = [], [], []
    for job in new:
        seq = job.sequence
        if seq < 1 or seq in taken:
            last += 1
            seq = last
        taken.add(seq)
        rows.append(_columns(tx, job, seq, entered))
        bodies.append((seq, job.body or b""))
        failures += [(seq, n, packed(record)) for n, record in enumerate(job.history)]
    tx.sequence = last
    insert_rows(tx.db, _INSERT, rows)
    insert_rows(tx.db, "INSERT INTO body (seq, data) VALUES ?", bodies)
    insert_rows(tx.db, "INSERT INTO failure (seq, n, record) VALUES ?", failures)
    tx.end_call()


def _columns(tx: Transaction, job: JobRecord, seq: int, entered: int | None) -> tuple[object, ...]:
    queue = tx.make_queue(job.queue)
    task = tx.task(job.task)
    state = CODES[job.state]
    eligible = ELIGIBLE if state == QUEUED and job.lane is None else BEHIND
    tally = tx.tally(queue.id, task)
    tally[state] += 1
    tally[ACCEPTED] += 1
    tx.batches.moved(job.batch, None, state)
    tx.raise_token(queue, job.token)
    if eligible:
        tx.claimable(queue.id)
    elif state == QUEUED and job.lane is not None:
        tx.lanes.joined(queue.id, job.lane)
    elif state == RUNNING:
        keep_worker(tx, job.worker)
        if job.lane is not None:
            tx.lanes.restored(queue.id, job.lane)
    finished_at = job.finished_at
    result_ttl: float | None = _RESULT_TTL
    tidy_at: float | None = None
    if job.state.final:
        finished_at = tx.now if finished_at is None else finished_at
        if job.expires_at is not None:
            tidy_at = max(job.expires_at, finished_at + LINGER)
        if job.state is JobState.SUCCEEDED:
            result_ttl = None if job.expires_at is None else job.expires_at - finished_at
    return (
        seq,
        tx.namespace,
        queue.id,
        job.id,
        task,
        state,
        eligible,
        -job.priority,
        job.ready_at,
        job.token,
        job.attempt,
        job.max_attempts,
        job.crashes,
        job.generation,
        int(job.cancel_requested),
        len(job.history),
        0,
        (job.lease_until or tx.now) if state == RUNNING else None,
        job.deadline_at,
        job.submitted_at,
        job.started_at,
        finished_at,
        job.expires_at,
        tidy_at,
        result_ttl,
        _FAILURE_TTL,
        _ID_TTL,
        job.lane,
        job.batch,
        "",
        job.worker,
        job.code,
        job.submission,
        None if job.progress is None else packed(job.progress),
        job.result,
        entered,
    )
