"""What the model keeps: jobs, queues, batches and registers, and how it says what is wrong."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plugq.job import FINAL, LINGER, WAITING, AttemptRecord, JobState, Progress

if TYPE_CHECKING:
    from plugq.protocols.edits import QueueSettings
    from plugq.protocols.storage import NewJob

#: Times that differ by less are the same: a storage may keep milliseconds.
_PRECISION = 0.002


class Disagreement(AssertionError):
    """A storage did what the model does not allow; the message begins with the promise."""

    def __init__(self, promise: str, message: str) -> None:
        super().__init__(f"{promise}: {message}")
        self.promise = promise


def expect(true: object, promise: str, message: str) -> None:
    """Raise unless something holds; ``promise`` is a number of the design or a word."""
    if not true:
        raise Disagreement(promise, message)


def close(one: float | None, other: float | None) -> bool:
    """Return whether two times or durations are the same."""
    if one is None or other is None:
        return one is other
    return abs(one - other) < _PRECISION


@dataclass(eq=False)
class Batch:
    """The jobs of a batch by state, and when they last changed."""

    counts: dict[JobState, int] = field(default_factory=lambda: dict.fromkeys(JobState, 0))
    changed_at: float = 0.0

    @property
    def live(self) -> bool:
        """Whether any of its jobs is not final."""
        return any(count for state, count in self.counts.items() if state not in FINAL)


@dataclass(eq=False)
class Job:
    """One job as it has to stand in the storage.

    ``starts`` and ``reasons`` count its claims and what entitled to one more of them.
    ``stored_at`` is when its end was written, which a deadline may precede.
    """

    new: NewJob
    sequence: int
    generation: int
    priority: int
    result_ttl: float | None
    failure_ttl: float | None
    submitted_at: float
    ready_at: float
    state: JobState = JobState.QUEUED
    deadline_at: float | None = None
    attempt: int = 0
    crashes: int = 0
    token: int = 0
    worker: str = ""
    number: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    stored_at: float = 0.0
    expires_at: float | None = None
    value_until: float | None = None
    lease_until: float | None = None
    cancel_requested: bool = False
    progress: Progress | None = None
    code: str = ""
    history: tuple[AttemptRecord, ...] = ()
    result: bytes | None = None
    unknown: int = 0
    unknown_since: float = 0.0
    group: Batch | None = None
    restored: bool = False
    starts: int = 0
    reasons: int = 1

    @property
    def queue(self) -> str:
        """The queue that it was submitted to."""
        return self.new.queue

    @property
    def id(self) -> str:
        """Its id."""
        return self.new.id

    @property
    def name(self) -> str:
        """How a message calls it."""
        return f"job {self.queue}/{self.id} (sequence {self.sequence})"

    def overdue(self, now: float) -> bool:
        """Return whether it waits although its deadline has passed."""
        return self.state in WAITING and self.deadline_at is not None and self.deadline_at <= now

    def due(self, now: float) -> bool:
        """Return whether it may be shown as queued or as delayed, since its time has come."""
        return self.state is JobState.DELAYED and self.ready_at <= now

    def expired(self, now: float) -> bool:
        """Return whether its retention has passed."""
        return self.expires_at is not None and self.expires_at <= now

    def lingers(self, now: float) -> bool:
        """Return whether those who waited for its end still see all of it."""
        return self.finished_at is not None and now < self.finished_at + LINGER

    def removable_at(self, *, latest: bool) -> float:
        """Return when a sweep may remove it, or has to at the latest."""
        if self.state not in FINAL or self.expires_at is None or self.finished_at is None:
            return float("inf")
        ended = max(self.finished_at, self.stored_at) if latest else self.finished_at
        return max(self.expires_at, ended + LINGER)

    def shown(self, now: float) -> set[JobState]:
        """Return the states of which a reader may see one."""
        if self.overdue(now):
            return {JobState.FAILED}
        if self.due(now):
            return {JobState.DELAYED, JobState.QUEUED}
        return {self.state}


@dataclass(eq=False)
class Key:
    """A unique key that is held; of a throttle key, until when."""

    holder: Job
    until: float | None


@dataclass(eq=False)
class Queue:
    """One queue: its jobs by id, its keys and its counters by task."""

    name: str
    jobs: dict[str, Job] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    totals: dict[str, dict[str, int]] = field(default_factory=dict)
    settings: QueueSettings | None = None
    paused: bool = False
    draining: bool = False
    token: int = 0

    def count(self, task: str, name: str) -> None:
        """Add one to a counter."""
        totals = self.totals.setdefault(task, {})
        totals[name] = totals.get(name, 0) + 1

    def running(self, lane: str | None = None) -> int:
        """Return how many of its jobs run, or of those of one lane."""
        return sum(
            job.state is JobState.RUNNING and (lane is None or job.new.lane == lane)
            for job in self.jobs.values()
        )

    def waiting(self) -> int:
        """Return how many of its jobs wait, for their time or for a worker."""
        return sum(job.state in WAITING for job in self.jobs.values())

    @property
    def lane_limit(self) -> int:
        """How many jobs of one lane may run."""
        return 1 if self.settings is None else self.settings.lane_max_running


__all__ = ["Batch", "Disagreement", "Job", "Key", "Queue", "close", "expect"]
