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
    from plugq.protocols.storage import QueueStats
    from plugq.protocols.storage import Stats as StoredStats
    from plugq.schedule import Rule, Stored

#: Totals that count attempts which their workers ended.
_MEASURED = ("succeeded", "failed", "skipped", "retried")


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
    """A job as it stood in the storage at the moment of the call.

    ``sequence`` is its place in the order of submission. No other job has it, ever, while the id
    may be that of another job later.
    """

    queue: str
    id: str
    sequence: int
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
    """One queue: its jobs by state, its cumulative totals, and how long its oldest job waits.

    ``oldest`` is the time since that job was due, of those that wait neither for their time nor
    behind their lane; a pause or a limit of the queue may still keep it from starting.
    ``run_time`` and ``rate`` are those of its tasks together, see :class:`TaskInfo`.
    """

    name: str
    paused: bool
    draining: bool
    counts: dict[str, int]
    totals: dict[str, int]
    oldest: timedelta | None
    run_time: timedelta | None
    rate: float


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One task in one queue: its jobs by state and its cumulative totals.

    ``run_time`` is how long an attempt takes on average, of those that their workers ended;
    ``rate`` is how many jobs end in a second, as of the last minute or so.
    """

    queue: str
    task: str
    counts: dict[str, int]
    totals: dict[str, int]
    run_time: timedelta | None
    rate: float


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
        sequence=record.sequence,
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
        TaskInfo(
            queue=row.queue,
            task=row.task,
            counts=row.counts,
            totals=row.totals,
            run_time=_span(row.run_time),
            rate=row.rate,
        )
        for row in stats.tasks
    )
    by_queue: dict[str, list[TaskInfo]] = {}
    for task in tasks:
        by_queue.setdefault(task.queue, []).append(task)
    queues = tuple(_queue_view(queue, by_queue.get(queue.queue, [])) for queue in stats.queues)
    return Stats(at=moment(stats.now), queues=queues, tasks=tasks)


def _queue_view(queue: QueueStats, tasks: list[TaskInfo]) -> QueueInfo:
    return QueueInfo(
        name=queue.queue,
        paused=queue.paused,
        draining=queue.draining,
        counts=_sum([task.counts for task in tasks]),
        totals=_sum([task.totals for task in tasks]),
        oldest=_span(queue.oldest),
        run_time=_mean_run_time(tasks),
        rate=sum(task.rate for task in tasks),
    )


def _mean_run_time(tasks: list[TaskInfo]) -> timedelta | None:
    """Return the mean over the attempts of all tasks, weighted with how many each had."""
    seconds, attempts = 0.0, 0
    for task in tasks:
        if task.run_time is not None:
            # Ended jobs and retries stand for the attempts that were measured; a task with a mean
            # had one at least.
            number = sum(task.totals.get(name, 0) for name in _MEASURED) or 1
            seconds += task.run_time.total_seconds() * number
            attempts += number
    return timedelta(seconds=seconds / attempts) if attempts else None


def _span(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


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
