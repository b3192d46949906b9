"""Looking at the memory storage's jobs and steering them: get, find, batches, stats and edit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.builtin.memory_records import Series, show
from plugq.errors import PlugqError
from plugq.job import Event, JobRef, JobState, allowed
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.builtin.memory_jobs import JobTable
    from plugq.builtin.memory_records import Record
    from plugq.job import JobRecord
    from plugq.protocols.edits import Edit
    from plugq.protocols.storage import FindQuery

#: How many jobs one page of ``find`` looks at.
EXAMINED = 1_000

_DONE = EditReply(EditStatus.DONE)
_NOT_FOUND = EditReply(EditStatus.NOT_FOUND)


def get(
    table: JobTable,
    refs: Sequence[JobRef],
    now: float,
    *,
    body: bool,
    waiting: bool,
) -> list[JobRecord | None]:
    """Return the jobs; one whose retention has passed only to those who wait for it."""
    jobs: list[JobRecord | None] = []
    for ref in refs:
        record = table.find(ref.queue, ref.id)
        if record is None or (record.expired(now) and not (waiting and record.lingers(now))):
            jobs.append(None)
        else:
            jobs.append(show(record, now, body=body, value=True, waiting=waiting))
    return jobs


def find(table: JobTable, query: FindQuery, now: float) -> Page:
    """Return one page, from the newest submission to the oldest.

    Raises:
        PlugqError: the cursor is none that a page has given out.
    """
    series = table.by_sequence
    if query.batch is not None:
        series = table.by_batch.get(query.batch, Series(0))
    at = len(series)
    if query.cursor is not None:
        if not query.cursor.isascii() or not query.cursor.isdigit():
            message = f"find: {query.cursor!r} is no cursor; pass the one of the page before"
            raise PlugqError(message)
        at = series.position(int(query.cursor))
    jobs: list[JobRecord] = []
    lowest = max(0, at - EXAMINED)
    while at > lowest and len(jobs) < query.limit:
        at -= 1
        record = series[at]
        if record.move and not record.expired(now) and _matches(query, record, now):
            jobs.append(show(record, now, body=False, value=False, waiting=False))
    cursor = str(series[at].sequence) if at else None
    return Page(jobs=tuple(jobs), cursor=cursor)


def _matches(query: FindQuery, record: Record, now: float) -> bool:
    job = record.job
    state = JobState.FAILED if record.overdue(now) else record.state
    return (
        (not query.states or state in query.states)
        and (query.queue is None or job.queue == query.queue)
        and (query.task is None or job.task == query.task)
        and (query.since is None or record.submitted_at >= query.since)
        and (query.until is None or record.submitted_at < query.until)
    )


def batches(table: JobTable, names: Sequence[str], now: float) -> list[BatchCounts | None]:
    """Return the counts of each batch."""
    return [table.batches.show(name, now) for name in names]


def stats(table: JobTable, now: float) -> Stats:
    """Return the counters and what they belong to, by name."""
    queues: list[QueueStats] = []
    tasks: list[TaskStats] = []
    for name, queue in sorted(table.queues.items()):
        oldest = queue.oldest()
        queues.append(
            QueueStats(
                queue=name,
                paused=queue.paused,
                draining=queue.draining,
                oldest=None if oldest is None else max(0.0, now - oldest),
                settings=queue.settings,
            ),
        )
        tasks += [
            TaskStats(
                queue=name,
                task=task,
                counts={str(state): count for state, count in tally.counts.items()},
                totals=dict(tally.totals),
                run_time=tally.run_seconds / tally.run_count if tally.run_count else None,
                rate=tally.rate_now(now),
            )
            for task, tally in sorted(queue.tallies.items())
        ]
    return Stats(now=now, queues=tuple(queues), tasks=tuple(tasks))


def edit(table: JobTable, change: Edit, now: float) -> list[EditReply]:
    """Make an operator's change."""
    if isinstance(change, JobEdit):
        sequences = change.sequences or (0,) * len(change.refs)
        named = zip(change.refs, sequences, strict=True)
        return [_edit_job(table, change, ref, sequence, now) for ref, sequence in named]
    if isinstance(change, Configure):
        for settings in change.settings:
            table.queue(settings.queue).configure(settings)
        return [_DONE] * len(change.settings)
    for name in change.queues:
        queue = table.queue(name)
        if isinstance(change, Drain):
            queue.draining = True
            continue
        queue.paused = isinstance(change, Pause)
        if isinstance(change, Resume):
            queue.draining = False
        queue.fresh = queue.ready
    return [_DONE] * len(change.queues)


def _edit_job(
    table: JobTable, change: JobEdit, ref: JobRef, sequence: int, now: float
) -> EditReply:
    record = table.find(ref.queue, ref.id)
    if record is None or record.expired(now):
        return _NOT_FOUND
    if sequence not in {0, record.sequence}:
        return _NOT_FOUND
    shown = JobState.FAILED if record.overdue(now) else record.state
    if change.states and shown not in change.states:
        return _NOT_FOUND
    status, state = _change(table, change, record, now)
    job = record.job
    return EditReply(status, state, job.task, job.lane, job.batch)


def _change(
    table: JobTable, change: JobEdit, record: Record, now: float
) -> tuple[EditStatus, JobState | None]:
    """Make the change of one job; return what was done, and the state after it."""
    state = JobState.FAILED if record.overdue(now) else record.state
    if isinstance(change, Cancel):
        if not allowed(state, Event.CANCEL):
            return EditStatus.FINISHED, state
        table.cancel(record, now)
        done = EditStatus.REQUESTED if state is JobState.RUNNING else EditStatus.DONE
        return done, record.state
    if isinstance(change, Retain):
        table.retain(record, change.ttl, now)
        return EditStatus.DONE, state
    if isinstance(change, Reprioritise):
        if state.final:
            return EditStatus.FINISHED, state
        table.reprioritise(record, change.priority)
        return EditStatus.DONE, state
    if isinstance(change, Redrive):
        if not allowed(record.state, Event.REDRIVE) or _key_is_taken(record, now):
            return EditStatus.CONFLICT, record.state
        table.redrive(record, now)
        return EditStatus.DONE, record.state
    if not allowed(record.state, Event.REMOVE):
        return EditStatus.CONFLICT, record.state
    table.remove(record)
    if record.job.origin:
        table.signals.finished(record.job.origin, JobRef(record.job.queue, record.job.id))
    return EditStatus.DONE, None


def _key_is_taken(record: Record, now: float) -> bool:
    if record.job.unique is None:
        return False
    holder = record.queue.holder(record.job.unique.key, now)
    return holder is not None and holder is not record


__all__ = ["EXAMINED", "batches", "edit", "find", "get", "stats"]
