"""What the memory storage keeps of a job, and the agendas that order jobs by time.

Records are mutable and never leave the storage; :func:`show` makes the frozen picture of one.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heapify, heappop, heappush
from math import exp
from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from plugq.job import LINGER, WAITING, JobRecord, JobState
from plugq.protocols.storage import RATE_TIME, Lease, NewJob

if TYPE_CHECKING:
    from plugq.builtin.memory_batches import Batch
    from plugq.builtin.memory_claims import Claim
    from plugq.builtin.memory_queue import Queue
    from plugq.job import AttemptRecord, Progress

_SUCCEEDED = JobState.SUCCEEDED
_FAILED = JobState.FAILED
_SMALLEST_AGENDA = 256

_sequence = attrgetter("sequence")


class Record:
    """One job. ``move`` changes with every change of state, so that old entries betray themselves.

    ``job`` is the submission; only an operator changes it. ``place`` is the ticket of the entry
    in the ready order of its queue, 0 where it has none.
    """

    __slots__ = (
        "attempt",
        "batch",
        "cancel_requested",
        "claim",
        "code",
        "crashes",
        "deadline_at",
        "expires_at",
        "finished_at",
        "generation",
        "history",
        "job",
        "lease_until",
        "move",
        "order",
        "place",
        "progress",
        "queue",
        "ready_at",
        "result",
        "sequence",
        "started_at",
        "state",
        "submitted_at",
        "tally",
        "token",
        "unknown",
        "unknown_since",
        "value_until",
        "worker",
    )

    def __init__(self, job: NewJob, queue: Queue, sequence: int, generation: int) -> None:
        self.job: NewJob = job
        self.queue: Queue = queue
        self.tally: Tally = queue.tally(job.task)
        self.batch: Batch | None = None
        self.sequence: int = sequence
        self.generation: int = generation
        self.order: int = -job.priority
        self.state: JobState = JobState.QUEUED
        self.move: int = 0
        self.place: int = 0
        self.attempt: int = 0
        self.crashes: int = 0
        self.token: int = 0
        self.worker: str = ""
        self.claim: Claim | None = None
        self.submitted_at: float = 0.0
        self.ready_at: float = 0.0
        self.started_at: float | None = None
        self.finished_at: float | None = None
        self.expires_at: float | None = None
        self.value_until: float | None = None
        self.deadline_at: float | None = None
        self.lease_until: float = 0.0
        self.cancel_requested: bool = False
        self.progress: Progress | None = None
        self.code: str = ""
        self.history: tuple[AttemptRecord, ...] = ()
        self.result: bytes | None = None
        self.unknown: int = 0
        self.unknown_since: float = 0.0

    def overdue(self, now: float) -> bool:
        """Return whether it still waits although its deadline has passed."""
        return self.deadline_at is not None and self.deadline_at <= now and self.state in WAITING

    def expired(self, now: float) -> bool:
        """Return whether its retention has passed."""
        return self.expires_at is not None and self.expires_at <= now

    def lingers(self, now: float) -> bool:
        """Return whether it has ended so lately that those who waited for it still see it all."""
        return self.finished_at is not None and now < self.finished_at + LINGER

    def value_kept_until(self) -> float | None:
        """Return until when the value is physically there, ``None`` for ever."""
        if self.value_until is None or self.finished_at is None:
            return None
        return max(self.value_until, self.finished_at + LINGER)

    def removable_at(self) -> float | None:
        """Return when a sweep may remove the record, ``None`` for never."""
        if self.expires_at is None or self.finished_at is None:
            return None
        return max(self.expires_at, self.finished_at + LINGER)


class Tally:
    """The counters of one task in one queue.

    ``rate`` is as of ``rate_at``, ``run_seconds`` what ``run_count`` ended attempts ran.
    """

    __slots__ = (
        "counts",
        "queue",
        "rate",
        "rate_at",
        "run_count",
        "run_seconds",
        "task",
        "totals",
    )

    def __init__(self, queue: str, task: str) -> None:
        self.queue: str = queue
        self.task: str = task
        self.run_seconds: float = 0.0
        self.run_count: int = 0
        self.rate: float = 0.0
        self.rate_at: float = 0.0
        self.counts: dict[str, int] = dict.fromkeys(JobState, 0)
        self.totals: dict[str, int] = dict.fromkeys(
            (
                "accepted",
                "started",
                "succeeded",
                "failed",
                "cancelled",
                "skipped",
                "retried",
                "snoozed",
                "released",
                "lease_ended",
                "redriven",
                "removed",
            ),
            0,
        )

    def decay(self, now: float) -> None:
        """Bring the rate to another time."""
        self.rate = self.rate_now(now)
        self.rate_at = now

    def rate_now(self, now: float) -> float:
        """Return the rate as it has decayed until now."""
        if now <= self.rate_at:
            return self.rate
        return self.rate * exp((self.rate_at - now) / RATE_TIME)


class Series(list["Record"]):
    """Records by sequence; those that were removed stay until they are many."""

    __slots__ = ("_slack", "removed")

    def __init__(self, slack: int) -> None:
        super().__init__()
        self.removed: int = 0
        self._slack = slack

    def add(self, record: Record) -> None:
        """Enter a record, which is nearly always the newest."""
        if self and self[-1].sequence > record.sequence:
            self.insert(self.position(record.sequence), record)
        else:
            self.append(record)

    def drop(self) -> None:
        """Count one more record that was removed, and let them go if they are too many."""
        self.removed += 1
        if self.removed > len(self) // 2 + self._slack:
            self[:] = [kept for kept in self if kept.move]
            self.removed = 0

    def position(self, sequence: int) -> int:
        """Return where the first record with at least that sequence is."""
        return bisect_left(self, sequence, key=_sequence)


class Agenda:
    """Records by time, soonest first, each good until its record moves on.

    Outdated entries are dropped when they surface, and all of them whenever the agenda has
    doubled, which keeps memory in proportion to what is alive at constant cost a record.
    """

    __slots__ = ("_entries", "_limit")

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Record]] = []
        self._limit = _SMALLEST_AGENDA

    def add(self, at: float, record: Record) -> None:
        """Enter a record under its present move."""
        entries = self._entries
        if len(entries) >= self._limit:
            entries[:] = [entry for entry in entries if entry[2].move == entry[1]]
            heapify(entries)
            self._limit = max(_SMALLEST_AGENDA, 2 * len(entries))
        heappush(entries, (at, record.move, record))

    def first(self) -> float | None:
        """Return the time of the soonest entry."""
        entries = self._entries
        while entries:
            at, move, record = entries[0]
            if record.move == move:
                return at
            heappop(entries)
        return None

    def pop_due(self, now: float, limit: int) -> list[Record]:
        """Take out up to ``limit`` records whose time has come."""
        due: list[Record] = []
        entries = self._entries
        while entries and len(due) < limit and entries[0][0] <= now:
            _, move, record = heappop(entries)
            if record.move == move:
                due.append(record)
        return due


def own_progress(progress: Progress | None) -> Progress | None:
    """Return the progress with a ``details`` mapping that nobody else can change."""
    if progress is None or progress.details is None:
        return progress
    return msgspec.structs.replace(progress, details=dict(progress.details))


def show(record: Record, now: float, *, body: bool, value: bool, waiting: bool) -> JobRecord:
    """Return the job as a reader sees it at ``now``; deadlines hold before a sweep stores them."""
    job = record.job
    state, finished_at, code = record.state, record.finished_at, record.code
    if record.overdue(now):
        state, finished_at, code = _FAILED, record.deadline_at, "deadline"
    ended = record.value_until is not None and record.value_until <= now
    result = None if ended and not (waiting and record.lingers(now)) else record.result
    return JobRecord(
        queue=job.queue,
        id=job.id,
        task=job.task,
        state=state,
        sequence=record.sequence,
        generation=record.generation,
        submission=job.submission,
        priority=job.priority,
        lane=job.lane,
        batch=job.batch,
        attempt=record.attempt,
        max_attempts=job.max_attempts,
        crashes=record.crashes,
        token=record.token,
        worker=record.worker,
        submitted_at=record.submitted_at,
        ready_at=record.ready_at,
        started_at=record.started_at,
        finished_at=finished_at,
        expires_at=record.expires_at,
        deadline_at=record.deadline_at,
        lease_until=record.lease_until if state is JobState.RUNNING else None,
        cancel_requested=record.cancel_requested,
        progress=own_progress(record.progress),
        code=code,
        history=record.history,
        body=job.body if body else None,
        result=result if value else None,
        result_expired=state is _SUCCEEDED and result is None,
    )


def lease_of(record: Record, now: float) -> Lease:
    """Return what the holder of the running record's lease is given."""
    job = record.job
    deadline_at = record.deadline_at
    return Lease(
        queue=job.queue,
        id=job.id,
        task=job.task,
        token=record.token,
        attempt=record.attempt,
        max_attempts=job.max_attempts,
        body=job.body,
        sequence=record.sequence,
        generation=record.generation,
        priority=job.priority,
        lane=job.lane,
        batch=job.batch,
        crashes=record.crashes,
        submitted_at=record.submitted_at,
        started_at=now if record.started_at is None else record.started_at,
        deadline_in=None if deadline_at is None else deadline_at - now,
        unknown=record.unknown,
        unknown_for=now - record.unknown_since if record.unknown else 0.0,
    )


def submission_of(job: JobRecord) -> NewJob:
    """Return the submission that a restored job stands for, as far as the job still says."""
    return NewJob(
        queue=job.queue,
        id=job.id,
        task=job.task,
        submission=job.submission,
        body=job.body or b"",
        priority=job.priority,
        max_attempts=job.max_attempts,
        lane=job.lane,
        batch=job.batch,
    )


__all__ = [
    "Agenda",
    "Record",
    "Series",
    "Tally",
    "lease_of",
    "own_progress",
    "show",
    "submission_of",
]
