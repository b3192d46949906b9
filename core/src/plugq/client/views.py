"""Jobs and counts as users see them: aware datetimes, decoded where that was asked for."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.duration import moment
from plugq.job import AttemptRecord, JobState, Progress
from plugq.schedule import CatchUp, Overlap, Source, rule_text
from plugq.schedule.stored import moment_of

if TYPE_CHECKING:
    from plugq.job import JobRecord
    from plugq.protocols.storage import Stats as StoredStats
    from plugq.schedule import Rule, Stored


class AttemptError(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that did not succeed.

    ``code`` is ``error``, ``timeout``, ``crashed``, ``result``, ``arguments``, ``undecodable``,
    ``retry`` or what ``Fail(code=…)`` said.
    """

    attempt: int
    code: str
    type: str
    message: str
    traceback: str
    worker: str
    started_at: datetime | None
    ended_at: datetime | None


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stood in the storage at the moment of the call."""

    queue: str
    id: str
    task: str
    state: JobState
    priority: int
    lane: str | None
    batch: str | None
    attempt: int
    max_attempts: int
    crashes: int
    worker: str
    code: str
    submitted_at: datetime
    ready_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None
    deadline_at: datetime | None
    cancel_requested: bool
    progress: Progress | None
    attempts: tuple[AttemptError, ...]

    @property
    def final(self) -> bool:
        """Whether the job will move no more unless an operator retries it."""
        return self.state.final

    @property
    def error(self) -> AttemptError | None:
        """The last attempt that did not succeed."""
        return self.attempts[-1] if self.attempts else None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that were found, and the cursor for the next page; ``None`` when there is none."""

    jobs: tuple[Job, ...]
    cursor: str | None


class QueueInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: its jobs by state, its cumulative totals, and how long its oldest job waits."""

    name: str
    paused: bool
    counts: dict[str, int]
    totals: dict[str, int]
    oldest: timedelta | None


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One task in one queue: its jobs by state and its cumulative totals."""

    queue: str
    task: str
    counts: dict[str, int]
    totals: dict[str, int]


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The whole store in numbers, at one moment by the storage's clock."""

    at: datetime
    queues: tuple[QueueInfo, ...]
    tasks: tuple[TaskInfo, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Jobs by state over all queues."""
        return _sum([queue.counts for queue in self.queues])


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule as it stood in the storage at the moment of the call.

    ``rule`` is its cron expression and time zone, or ``every N s``; ``timezone`` is ``None`` for
    the latter. ``source`` says whether the definition that counts was written in the file or in
    code, or was given at run time. ``last`` is the tick up to which everything is answered, or
    the moment from which it counts, ``queue`` where its next jobs go. ``next`` are the next runs,
    none while it is paused or removed.
    """

    name: str
    task: str
    queue: str
    rule: str
    timezone: str | None
    catch_up: CatchUp
    overlap: Overlap
    paused: bool
    removed: bool
    source: Source
    last: datetime
    next: tuple[datetime, ...]


def view(record: JobRecord) -> Job:
    """Return a stored job as users see it."""
    return Job(
        queue=record.queue,
        id=record.id,
        task=record.task,
        state=record.state,
        priority=record.priority,
        lane=record.lane,
        batch=record.batch,
        attempt=record.attempt,
        max_attempts=record.max_attempts,
        crashes=record.crashes,
        worker=record.worker,
        code=record.code,
        submitted_at=moment(record.submitted_at),
        ready_at=moment(record.ready_at),
        started_at=_moment(record.started_at),
        finished_at=_moment(record.finished_at),
        expires_at=_moment(record.expires_at),
        deadline_at=_moment(record.deadline_at),
        cancel_requested=record.cancel_requested,
        progress=record.progress,
        attempts=tuple(map(attempt_view, record.history)),
    )


def attempt_view(record: AttemptRecord) -> AttemptError:
    """Return a stored attempt as users see it."""
    return AttemptError(
        attempt=record.attempt,
        code=record.code,
        type=record.type,
        message=record.message,
        traceback=record.traceback,
        worker=record.worker,
        started_at=_moment(record.started_at or None),
        ended_at=_moment(record.ended_at or None),
    )


def stats_view(stats: StoredStats) -> Stats:
    """Return the numbers of a store as users see them."""
    tasks = tuple(
        TaskInfo(queue=row.queue, task=row.task, counts=row.counts, totals=row.totals)
        for row in stats.tasks
    )
    queues = tuple(
        QueueInfo(
            name=queue.queue,
            paused=queue.paused,
            counts=_sum([row.counts for row in tasks if row.queue == queue.queue]),
            totals=_sum([row.totals for row in tasks if row.queue == queue.queue]),
            oldest=None if queue.oldest is None else timedelta(seconds=queue.oldest),
        )
        for queue in stats.queues
    )
    return Stats(at=moment(stats.now), queues=queues, tasks=tasks)


def _moment(stamp: float | None) -> datetime | None:
    return None if stamp is None else moment(stamp)


def _sum(rows: list[dict[str, int]]) -> dict[str, int]:
    total: dict[str, Any] = {}
    for row in rows:
        for name, number in row.items():
            total[name] = total.get(name, 0) + number
    return total


def schedule_view(stored: Stored, now: datetime, number: int) -> ScheduleInfo:
    """Return a stored schedule with the runs that come after a moment."""
    entry = stored.entry
    return ScheduleInfo(
        name=stored.name,
        task=entry.job.task,
        queue=entry.job.queue,
        rule=rule_text(stored.rule),
        timezone=None if entry.cron is None else entry.timezone,
        catch_up=entry.catch_up,
        overlap=entry.overlap,
        paused=entry.paused,
        removed=entry.removed,
        source=entry.source,
        last=moment_of(entry.last),
        next=() if stored.idle else next_runs(stored.rule, now, number),
    )


def next_runs(rule: Rule, after: datetime, number: int) -> tuple[datetime, ...]:
    """Return the first ticks of a rule that come after a moment."""
    runs: list[datetime] = []
    while len(runs) < number and (tick := rule.next(after)) is not None:
        runs.append(tick)
        after = tick
    return tuple(runs)


__all__ = [
    "AttemptError",
    "Job",
    "Page",
    "QueueInfo",
    "ScheduleInfo",
    "Stats",
    "TaskInfo",
    "attempt_view",
    "next_runs",
    "schedule_view",
    "stats_view",
    "view",
]
