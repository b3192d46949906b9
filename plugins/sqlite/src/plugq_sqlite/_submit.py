"""Storing new jobs, judged for duplicates, time and room."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plugq.job import JobState
from plugq.protocols.storage import SubmitReply, SubmitStatus, UniqueMode
from plugq_sqlite._moves import remove
from plugq_sqlite._rows import (
    ACCEPTED,
    BEHIND,
    CANCELLED,
    COLUMNS,
    DELAYED,
    ELIGIBLE,
    FAILED,
    FIRST_FINAL,
    QUEUED,
    RUNNING,
    STATES,
    UNIQUE_CODES,
    Row,
)
from plugq_sqlite._statements import insert_rows, join_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import NewJob
    from plugq_sqlite._transaction import Queue, Transaction

_INSERT = (
    "INSERT INTO job (seq, namespace, queue, id, task, state, eligible, nprio, ready_at, "
    "max_attempts, generation, deadline_at, submitted_at, result_ttl, failure_ttl, id_ttl, "
    "unique_mode, unique_ttl, unique_key, lane, batch, origin, submission) VALUES ?"
)
_INSERT_BODY = "INSERT INTO body (seq, data) VALUES ?"
_EXISTING = (
    "WITH s (queue, id) AS (VALUES ?) "
    f"SELECT {COLUMNS} FROM s CROSS JOIN job INDEXED BY job_id "
    "ON job.queue = s.queue AND job.id = s.id"
)
_HELD = (
    "WITH s (queue, key) AS (VALUES ?) "
    "SELECT u.queue, u.key, u.until, u.id, coalesce(job.state, u.state), "
    "coalesce(job.seq, u.seq), coalesce(job.generation, u.generation), job.deadline_at "
    "FROM s CROSS JOIN unique_key AS u ON u.queue = s.queue AND u.key = s.key "
    "LEFT JOIN job ON job.queue = u.queue AND job.id = u.id"
)
_HOLD = "INSERT OR REPLACE INTO unique_key (queue, key, seq, id, generation, state, until) VALUES ?"


@dataclass(slots=True)
class _Holder:
    """The job that stands for an id or a unique key, stored or about to be."""

    id: str
    state: int
    seq: int
    generation: int
    deadline_at: float | None
    submission: bytes = b""
    row: Row | None = None


@dataclass(slots=True)
class _New:
    """A job of the call that will be stored."""

    job: NewJob
    queue: Queue
    seq: int
    state: int
    ready_at: float
    generation: int
    replaces: Row | None


class _Submission:
    """One call of submit: first everything is judged, then everything is written."""

    def __init__(self, tx: Transaction, jobs: Sequence[NewJob]) -> None:
        self.tx = tx
        self.jobs = jobs
        self.queues = [tx.make_queue(job.queue) for job in jobs]
        self.ids = self._stored_ids()
        self.keys = self._stored_keys()
        self.new: list[_New] = []
        self.expired: dict[tuple[int, str], Row] = {}
        self.gone: list[Row] = []
        self.lengths: dict[int, int] = {}
        self.sequence: int = tx.sequence
        self.full: set[int] = set()
        self.draining = False

    def _stored_ids(self) -> dict[tuple[int, str], _Holder]:
        keys = [(queue.id, job.id) for queue, job in zip(self.queues, self.jobs, strict=True)]
        holders = {}
        for columns in join_rows(self.tx.db, _EXISTING, keys):
            row = Row._make(columns)
            holders[row.queue, row.id] = _Holder(
                row.id,
                row.state,
                row.seq,
                row.generation,
                row.deadline_at,
                row.submission,
                row,
            )
        return holders

    def _stored_keys(self) -> dict[tuple[int, str], _Holder]:
        keys = [
            (queue.id, job.unique.key)
            for queue, job in zip(self.queues, self.jobs, strict=True)
            if job.unique is not None
        ]
        holders = {}
        for queue, key, until, *holder in join_rows(self.tx.db, _HELD, keys):
            if until is None or until > self.tx.now:
                holders[queue, key] = _Holder(*holder)
        return holders

    def run(self) -> list[SubmitReply]:
        """Judge and store."""
        replies = [
            self._judge(job, queue) for job, queue in zip(self.jobs, self.queues, strict=True)
        ]
        if self.full or self.draining:
            # A reply that names a job of this very call stands for nothing that is stored.
            return [
                self._refusal(job, queue)
                if reply is None or reply.sequence > self.tx.sequence
                else reply
                for job, queue, reply in zip(self.jobs, self.queues, replies, strict=True)
            ]
        self._write()
        new = iter(self.new)
        return [_accepted(next(new)) if reply is None else reply for reply in replies]

    def _judge(self, job: NewJob, queue: Queue) -> SubmitReply | None:
        """Return the answer, or ``None`` for a job that is to be stored."""
        tx = self.tx
        held = self.ids.get((queue.id, job.id))
        if held is not None and held.row is not None and _expired(held.row, tx.now):
            self.expired[queue.id, job.id] = held.row
            del self.ids[queue.id, job.id]
            held = None
        replaces: Row | None = None
        generation = 0
        if held is not None:
            cancelled = held.state == CANCELLED
            if held.submission == job.submission:
                status = SubmitStatus.DUPLICATE if cancelled else SubmitStatus.ACCEPTED
                return _standing(status, held, tx.now)
            if not cancelled:
                return _standing(SubmitStatus.DUPLICATE, held, tx.now)
            replaces = held.row
            generation = held.generation + 1
        if job.unique is not None:
            holder = self.keys.get((queue.id, job.unique.key))
            if holder is not None:
                return _standing(SubmitStatus.DUPLICATE, holder, tx.now)
        if job.not_after is not None and job.not_after < tx.now:
            return SubmitReply(SubmitStatus.LATE, job.id, JobState.QUEUED)
        self._take(job, queue, generation, replaces)
        return None

    def _take(self, job: NewJob, queue: Queue, generation: int, replaces: Row | None) -> None:
        tx = self.tx
        if queue.max_length is not None:
            length = self.lengths.get(queue.id)
            length = tx.waiting(queue.id) if length is None else length
            self.lengths[queue.id] = length + 1
            if length >= queue.max_length:
                self.full.add(queue.id)
        self.draining = self.draining or bool(queue.draining)
        ready_at = max(tx.now, tx.now + job.delay if job.run_at is None else job.run_at)
        state = DELAYED if ready_at > tx.now else QUEUED
        self.sequence += 1
        self.new.append(_New(job, queue, self.sequence, state, ready_at, generation, replaces))
        holder = _Holder(job.id, state, self.sequence, generation, None, job.submission)
        self.ids[queue.id, job.id] = holder
        # What has expired makes room for what is stored; until then its waiters may look at it.
        expired = self.expired.pop((queue.id, job.id), None)
        if expired is not None:
            self.gone.append(expired)
        if job.unique is not None:
            self.keys[queue.id, job.unique.key] = holder

    def _refusal(self, job: NewJob, queue: Queue) -> SubmitReply:
        status = SubmitStatus.FULL if queue.id in self.full else SubmitStatus.REFUSED
        if queue.draining:
            status = SubmitStatus.DRAINING
        return SubmitReply(status, job.id, JobState.QUEUED)

    def _write(self) -> None:
        tx = self.tx
        remove(tx, self.gone)
        remove(tx, [new.replaces for new in self.new if new.replaces is not None], tell=False)
        rows = []
        for new in self.new:
            job, queue = new.job, new.queue
            task = tx.task(job.task)
            eligible = ELIGIBLE if new.state == QUEUED and job.lane is None else BEHIND
            unique = job.unique
            rows.append(
                (
                    new.seq,
                    tx.namespace,
                    queue.id,
                    job.id,
                    task,
                    new.state,
                    eligible,
                    -job.priority,
                    new.ready_at,
                    job.max_attempts,
                    new.generation,
                    _deadline(job, tx.now),
                    tx.now,
                    job.result_ttl,
                    job.failure_ttl,
                    job.id_ttl,
                    None if unique is None else UNIQUE_CODES[unique.mode],
                    None if unique is None else unique.ttl,
                    None if unique is None else unique.key,
                    job.lane,
                    job.batch,
                    job.origin,
                    job.submission,
                ),
            )
            tally = tx.tally(queue.id, task)
            tally[new.state] += 1
            tally[ACCEPTED] += 1
            tx.batches.moved(job.batch, None, new.state)
            if eligible:
                tx.claimable(queue.id)
            elif new.state == QUEUED and job.lane is not None:
                tx.lanes.joined(queue.id, job.lane)
        insert_rows(tx.db, _INSERT, rows)
        insert_rows(tx.db, _INSERT_BODY, [(new.seq, new.job.body) for new in self.new])
        self._hold_keys()
        tx.sequence = self.sequence

    def _hold_keys(self) -> None:
        held = []
        for new in self.new:
            unique = new.job.unique
            if unique is not None:
                until = self.tx.now + unique.ttl if unique.mode is UniqueMode.THROTTLE else None
                held.append(
                    (
                        new.queue.id,
                        unique.key,
                        new.seq,
                        new.job.id,
                        new.generation,
                        new.state,
                        until,
                    ),
                )
        insert_rows(self.tx.db, _HOLD, held)


def submit(tx: Transaction, jobs: Sequence[NewJob]) -> list[SubmitReply]:
    """Store jobs and answer for each, or store none if a queue is drained or has not the room."""
    replies = _Submission(tx, jobs).run()
    tx.end_call()
    return replies


def _expired(row: Row, now: float) -> bool:
    return row.state >= FIRST_FINAL and row.expires_at is not None and row.expires_at <= now


def _deadline(job: NewJob, now: float) -> float | None:
    if job.deadline_in is None:
        return job.deadline_at
    relative = now + job.deadline_in
    return relative if job.deadline_at is None else min(relative, job.deadline_at)


def _standing(status: SubmitStatus, holder: _Holder, now: float) -> SubmitReply:
    state = holder.state
    # A deadline holds from the moment it passes, not from the sweep that stores it.
    if state < RUNNING and holder.deadline_at is not None and holder.deadline_at <= now:
        state = FAILED
    return SubmitReply(
        status,
        holder.id,
        STATES[state],
        holder.seq,
        holder.generation,
    )


def _accepted(new: _New) -> SubmitReply:
    return SubmitReply(
        SubmitStatus.ACCEPTED,
        new.job.id,
        STATES[new.state],
        new.seq,
        new.generation,
    )
