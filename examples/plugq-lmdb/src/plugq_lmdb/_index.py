"""Looking and steering: get, find, batches, stats and edit."""

from __future__ import annotations

from itertools import islice
from math import inf
from typing import TYPE_CHECKING

from plugq.errors import PlugqError
from plugq.job import Event, JobState, allowed
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    EditReply,
    EditStatus,
    JobEdit,
    Pause,
    Redrive,
    Reprioritise,
    Resume,
    Retain,
)
from plugq.protocols.storage import BatchCounts, Page, QueueStats, Stats, TaskStats
from plugq_lmdb import _keys
from plugq_lmdb._claims import let_in
from plugq_lmdb._keys import digest, number, short
from plugq_lmdb._records import Job, Lane, Queue, Tally
from plugq_lmdb._transaction import find_batch, line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, QueueSettings
    from plugq.protocols.storage import FindQuery
    from plugq_lmdb._transaction import Transaction
    from plugq_lmdb._view import View

#: How many jobs one page of ``find`` looks at.
_EXAMINED = 1_000
#: A sequence that no cursor goes beyond.
_LAST = (1 << 63) - 1

_DONE = EditReply(EditStatus.DONE)
_NOT_FOUND = EditReply(EditStatus.NOT_FOUND)


def get(view: View, refs: Sequence[JobRef], *, body: bool, waiting: bool) -> list[JobRecord | None]:
    """Return the jobs; one whose retention has passed only to those who wait for it."""
    return [_get(view, ref, body=body, waiting=waiting) for ref in refs]


def _get(view: View, ref: JobRef, *, body: bool, waiting: bool) -> JobRecord | None:
    job = view.find_job(ref.queue, ref.id)
    if job is None:
        return None
    if job.expired(view.now) and not (waiting and job.lingers(view.now)):
        return None
    result = view.blob(_keys.RESULT, job) if job.keeps_result(view.now, waiting=waiting) else None
    payload = view.blob(_keys.BODY, job) if body else None
    return job.show(view.now, payload, result, waiting=waiting)


def find(view: View, query: FindQuery) -> Page:
    """Return one page, from the newest submission to the oldest.

    Raises:
        PlugqError: the cursor is none that a page has given out.
    """
    cursor = query.cursor
    if cursor is not None and not (cursor.isascii() and cursor.isdigit()):
        raise PlugqError(f"find: {cursor!r} is no cursor; pass the one of the page before")
    table = _keys.JOB if query.batch is None else _keys.MEMBER + digest(query.batch)
    below = None if cursor is None else min(int(cursor), _LAST)
    jobs: list[JobRecord] = []
    last = 0
    for examined, sequence in enumerate(view.backwards(table, below)):
        if examined >= _EXAMINED or len(jobs) >= query.limit:
            return Page(jobs=tuple(jobs), cursor=str(last))
        last = sequence
        job = view.job(sequence)
        if not job.expired(view.now) and _matches(query, job, view.now):
            jobs.append(job.show(view.now))
    return Page(jobs=tuple(jobs))


def _matches(query: FindQuery, job: Job, now: float) -> bool:
    return (
        (not query.states or job.shown_state(now) in query.states)
        and (query.queue is None or job.queue == query.queue)
        and (query.task is None or job.task == query.task)
        and (query.since is None or job.submitted_at >= query.since)
        and (query.until is None or job.submitted_at < query.until)
    )


def batches(view: View, names: Sequence[str]) -> list[BatchCounts | None]:
    """Return the counts of each batch."""
    found = [find_batch(view, name) for name in names]
    return [
        None if batch is None else BatchCounts(batch=name, counts=dict(batch.counts))
        for name, batch in zip(names, found, strict=True)
    ]


def stats(view: View) -> Stats:
    """Return the counters and what they belong to, by name."""
    queues: list[QueueStats] = []
    tasks: list[TaskStats] = []
    for queue in sorted(view.queues(), key=lambda each: each.name):
        oldest = min(_ready_times(view, queue), default=None)
        queues.append(
            QueueStats(
                queue=queue.name,
                paused=queue.paused,
                draining=queue.draining,
                oldest=None if oldest is None else max(0.0, view.now - oldest),
                settings=queue.settings,
            )
        )
        prefix = _keys.TALLY + short(queue.number)
        tallies = [view.held(prefix + key, Tally) for key in list(view.keys(prefix))]
        tasks += [
            TaskStats(
                queue=queue.name,
                task=tally.task,
                counts=dict(tally.counts),
                totals=dict(tally.totals),
                run_time=tally.run_seconds / tally.run_count if tally.run_count else None,
                rate=tally.rate_now(view.now),
            )
            for tally in sorted(filter(None, tallies), key=lambda each: each.task)
        ]
    return Stats(now=view.now, queues=tuple(queues), tasks=tuple(tasks))


def _ready_times(view: View, queue: Queue) -> Iterator[float]:
    """Return the first ready time of each priority, and those of jobs behind the head of a lane."""
    ready = _keys.READY + short(queue.number)
    order = view.first(ready)
    while order is not None:
        yield _keys.moment_in(order, _keys.PRIORITY)
        order = view.first(ready, order[: _keys.PRIORITY] + b"\xff" * 16)
    if queue.lane_limit > 1:
        prefix = _keys.LANE + short(queue.number)
        for key in list(view.keys(prefix)):
            lane = view.held(prefix + key, Lane)
            if lane is not None and lane.head is not None:
                shown = islice(view.keys(line(queue, lane.name)), queue.lane_limit - lane.running)
                yield from (_keys.moment_in(order, _keys.PRIORITY) for order in shown)


def edit(tx: Transaction, change: Edit) -> list[EditReply]:
    """Make an operator's change."""
    if isinstance(change, JobEdit):
        sequences = change.sequences or (0,) * len(change.refs)
        named = zip(change.refs, sequences, strict=True)
        return [_edit_job(tx, change, ref, sequence) for ref, sequence in named]
    if isinstance(change, Configure):
        for settings in change.settings:
            _configure(tx, settings)
        return [_DONE] * len(change.settings)
    for name in change.queues:
        queue = tx.queue(name)
        if isinstance(change, Drain):
            queue.draining = True
            continue
        queue.paused = isinstance(change, Pause)
        if isinstance(change, Resume):
            queue.draining = False
        tx.stir(queue)
    return [_DONE] * len(change.queues)


def _configure(tx: Transaction, settings: QueueSettings) -> None:
    queue = tx.queue(settings.queue)
    former = queue.settings
    before = (b"", b"") if former is None else (former.limits, former.lane_limits)
    if (settings.limits, settings.lane_limits) != before:
        queue.revision += 1
        queue.parked_until = None
        let_in(tx, queue, 1 << 62, inf)
    queue.settings = settings
    prefix = _keys.LANE + short(queue.number)
    for key in list(tx.keys(prefix)):
        lane = tx.held(prefix + key, Lane)
        if lane is not None:
            tx.touch(queue, lane.name)
    tx.settle_lanes()
    tx.stir(queue)


def _edit_job(tx: Transaction, change: JobEdit, ref: JobRef, sequence: int) -> EditReply:
    job = tx.find_job(ref.queue, ref.id)
    if job is None or job.expired(tx.now) or sequence not in {0, job.sequence}:
        return _NOT_FOUND
    state = job.shown_state(tx.now)
    if change.states and state not in change.states:
        return _NOT_FOUND
    status, after = _change(tx, change, job, state)
    return EditReply(status, after, job.task, job.lane, job.batch)


def _change(
    tx: Transaction, change: JobEdit, job: Job, state: JobState
) -> tuple[EditStatus, JobState | None]:
    """Make the change of one job; return what was done, and the state after it."""
    if isinstance(change, Cancel):
        if not allowed(state, Event.CANCEL):
            return EditStatus.FINISHED, state
        return _cancel(tx, job)
    if isinstance(change, Retain):
        _retain(tx, job, change.ttl)
        return EditStatus.DONE, state
    if isinstance(change, Reprioritise):
        if state.final:
            return EditStatus.FINISHED, state
        tx.lift(job)
        job.priority = change.priority
        tx.place(job, job.state)
        return EditStatus.DONE, state
    if isinstance(change, Redrive):
        if not allowed(job.state, Event.REDRIVE) or _key_is_taken(tx, job):
            return EditStatus.CONFLICT, job.state
        _redrive(tx, job)
        return EditStatus.DONE, job.state
    if not allowed(job.state, Event.REMOVE):
        return EditStatus.CONFLICT, job.state
    tx.remove(job)
    tx.tell_end(job)
    return EditStatus.DONE, None


def _cancel(tx: Transaction, job: Job) -> tuple[EditStatus, JobState]:
    if job.state is JobState.RUNNING:
        job.cancel_requested = True
        if (mail := tx.mail(job.peer)) is not None:
            mail.cancels.append(job.ref)
        return EditStatus.REQUESTED, job.state
    tx.lift(job)
    tx.finish(job, JobState.CANCELLED)
    return EditStatus.DONE, job.state


def _retain(tx: Transaction, job: Job, ttl: float | None) -> None:
    if job.finished_at is None or not job.state.final:
        job.result_ttl = job.failure_ttl = ttl
        return
    tx.lift(job)
    if job.value_until is None or job.value_until > tx.now:
        job.value_until = None if ttl is None else tx.now + ttl
    job.expires_at = None if ttl is None else max(tx.now + ttl, job.finished_at + job.id_ttl)
    tx.place(job, job.state)


def _redrive(tx: Transaction, job: Job) -> None:
    tx.lift(job)
    tx.txn.delete(_keys.RESULT + number(job.sequence))
    job.attempt = job.crashes = job.unknown = 0
    job.cancel_requested = job.has_result = False
    job.deadline_at = job.finished_at = job.expires_at = job.value_until = job.progress = None
    job.code = ""
    job.ready_at = tx.now
    tx.tally(job).totals["redriven"] += 1
    tx.hold_key(job)
    tx.place(job, JobState.QUEUED)


def _key_is_taken(tx: Transaction, job: Job) -> bool:
    holder = None if job.unique is None else tx.holder(tx.queue(job.queue), job.unique)
    return holder is not None and holder.sequence != job.sequence
