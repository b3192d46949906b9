"""What the store keeps, and how jobs look from outside."""

from __future__ import annotations

from math import exp

import msgspec

from plugq.job import LINGER, WAITING, AttemptRecord, JobRecord, JobRef, JobState, Progress
from plugq.protocols.edits import QueueSettings
from plugq.protocols.storage import RATE_TIME, Lease, NewJob, UniqueKey

#: The totals of a task that are no final states.
TOTALS = (
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
)


class Meta(msgspec.Struct, array_like=True):
    """The clock, and the last numbers given to jobs, queues, batches and versions of values."""

    now: float = 0.0
    sequence: int = 0
    queues: int = 0
    batches: int = 0
    version: int = 0


class Job(msgspec.Struct, array_like=True):
    """A job without its body and its result.

    ``tidy_at`` is the time of its entry under retention, ``epoch`` the beginning of the batch that
    counts it.
    """

    queue: str
    id: str
    task: str
    sequence: int
    submission: bytes
    priority: int = 0
    lane: str | None = None
    batch: str | None = None
    max_attempts: int = 1
    unique: UniqueKey | None = None
    result_ttl: float | None = 3600.0
    failure_ttl: float | None = 604800.0
    id_ttl: float = 600.0
    origin: str = ""
    state: JobState = JobState.QUEUED
    generation: int = 0
    attempt: int = 0
    crashes: int = 0
    token: int = 0
    worker: str = ""
    claim: int = 0
    peer: str = ""
    submitted_at: float = 0.0
    ready_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    value_until: float | None = None
    tidy_at: float | None = None
    deadline_at: float | None = None
    lease_until: float = 0.0
    cancel_requested: bool = False
    has_result: bool = False
    progress: Progress | None = None
    code: str = ""
    history: tuple[AttemptRecord, ...] = ()
    unknown: int = 0
    unknown_since: float = 0.0
    epoch: int = 0

    @property
    def ref(self) -> JobRef:
        """What names it."""
        return JobRef(self.queue, self.id)

    def overdue(self, now: float) -> bool:
        """Return whether it still waits although its deadline has passed."""
        return self.deadline_at is not None and self.deadline_at <= now and self.state in WAITING

    def shown_state(self, now: float) -> JobState:
        """Return the state that readers see; a deadline holds before a sweep has stored it."""
        return JobState.FAILED if self.overdue(now) else self.state

    def expired(self, now: float) -> bool:
        """Return whether its retention has passed."""
        return self.expires_at is not None and self.expires_at <= now

    def lingers(self, now: float) -> bool:
        """Return whether those who waited for its end are still shown all of it."""
        return self.finished_at is not None and now < self.finished_at + LINGER

    def keeps_result(self, now: float, *, waiting: bool) -> bool:
        """Return whether a reader, who may have waited for the end, is shown a result."""
        kept = self.value_until is None or self.value_until > now
        return self.has_result and (kept or (waiting and self.lingers(now)))

    def removable_at(self) -> float | None:
        """Return when it may be removed."""
        return self._not_before_lingering(self.expires_at)

    def next_loss_at(self) -> float | None:
        """Return when it loses its result or, where there is none, is removed."""
        kept = self.value_until if self.has_result else None
        return self._not_before_lingering(self.expires_at if kept is None else kept)

    def _not_before_lingering(self, at: float | None) -> float | None:
        return None if at is None else max(at, (self.finished_at or 0.0) + LINGER)

    def remember(self, error: AttemptRecord, now: float) -> None:
        """Add to the history how the present attempt ended."""
        started_at = now if self.started_at is None else self.started_at
        self.history += (
            msgspec.structs.replace(
                error,
                attempt=self.attempt,
                worker=self.worker,
                started_at=started_at,
                ended_at=now,
            ),
        )

    def show(
        self,
        now: float,
        body: bytes | None = None,
        result: bytes | None = None,
        *,
        waiting: bool = False,
    ) -> JobRecord:
        """Return the job as readers see it, with what is given of its body and its result."""
        values = {name: getattr(self, name) for name in _SHOWN}
        if self.overdue(now):
            values |= {"finished_at": self.deadline_at, "code": "deadline"}
        state = self.shown_state(now)
        return JobRecord(
            **values,
            state=state,
            lease_until=self.lease_until if state is JobState.RUNNING else None,
            body=body,
            result=result,
            result_expired=state is JobState.SUCCEEDED
            and not self.keeps_result(now, waiting=waiting),
        )

    def leased(self, now: float, body: bytes) -> Lease:
        """Return the lease under which it runs."""
        return Lease(
            queue=self.queue,
            id=self.id,
            task=self.task,
            token=self.token,
            attempt=self.attempt,
            max_attempts=self.max_attempts,
            body=body,
            sequence=self.sequence,
            generation=self.generation,
            priority=self.priority,
            lane=self.lane,
            batch=self.batch,
            crashes=self.crashes,
            submitted_at=self.submitted_at,
            started_at=now if self.started_at is None else self.started_at,
            deadline_in=None if self.deadline_at is None else self.deadline_at - now,
            unknown=self.unknown,
            unknown_for=now - self.unknown_since if self.unknown else 0.0,
        )


#: What a job and the record that shows it call by the same name, but for the state and the lease.
_SHOWN = tuple(
    name
    for name in Job.__struct_fields__
    if name in JobRecord.__struct_fields__ and name not in {"state", "lease_until"}
)


def job_from(new: NewJob, sequence: int) -> Job:
    """Return the job of a submission."""
    return Job(
        queue=new.queue,
        id=new.id,
        task=new.task,
        sequence=sequence,
        submission=new.submission,
        priority=new.priority,
        lane=new.lane,
        batch=new.batch,
        max_attempts=new.max_attempts,
        unique=new.unique,
        result_ttl=new.result_ttl,
        failure_ttl=new.failure_ttl,
        id_ttl=new.id_ttl,
        origin=new.origin,
    )


def restored_from(record: JobRecord, sequence: int) -> Job:
    """Return the job that a record shows."""
    job = Job(**{name: getattr(record, name) for name in _SHOWN})
    job.sequence = sequence
    job.has_result = record.result is not None
    return job


class Queue(msgspec.Struct, array_like=True):
    """A queue; ``revision`` changes with its limits, ``waiting`` counts delayed and queued jobs."""

    name: str
    number: int
    settings: QueueSettings | None = None
    paused: bool = False
    draining: bool = False
    token: int = 0
    running: int = 0
    waiting: int = 0
    revision: int = 0
    parked_until: float | None = None

    @property
    def limited(self) -> bool:
        """Whether limiters bound its starts."""
        return self.settings is not None and bool(self.settings.limits or self.settings.lane_limits)

    @property
    def most(self) -> int | None:
        """How many jobs may wait in it."""
        return None if self.settings is None else self.settings.max_length

    @property
    def lane_limit(self) -> int:
        """How many jobs of a lane may run at once."""
        return 1 if self.settings is None else self.settings.lane_max_running

    def slots(self, most: int) -> int:
        """Return how many of so many jobs may start now."""
        if self.paused or self.parked_until is not None:
            return 0
        limit = None if self.settings is None else self.settings.max_running
        return most if limit is None else max(0, min(most, limit - self.running))


class Lane(msgspec.Struct, array_like=True):
    """A lane with something in it; ``head`` is the order of its job in the ready order."""

    queue: str
    name: str
    running: int = 0
    head: bytes | None = None
    parked_until: float | None = None


class Tally(msgspec.Struct, array_like=True):
    """The counters of one task in one queue; ``rate`` is as of ``rate_at``."""

    task: str
    counts: dict[str, int]
    totals: dict[str, int]
    run_seconds: float = 0.0
    run_count: int = 0
    rate: float = 0.0
    rate_at: float = 0.0

    def rate_now(self, now: float) -> float:
        """Return the rate as it has decayed until now."""
        return self.rate * exp(min(0.0, self.rate_at - now) / RATE_TIME)

    def ended(self, now: float) -> None:
        """Count one more end in the rate."""
        self.rate = self.rate_now(now) + 1 / RATE_TIME
        self.rate_at = now


class Batch(msgspec.Struct, array_like=True):
    """The counts of a batch; ``epoch`` is a number that no other batch begins with."""

    until: float | None
    epoch: int
    counts: dict[str, int]


class Holder(msgspec.Struct, array_like=True):
    """Who holds a unique key, and of a throttle key until when; the state is that at its end."""

    until: float | None
    id: str
    sequence: int
    generation: int
    state: JobState


class Mail(msgspec.Struct, array_like=True):
    """What a peer that watches has not fetched yet, ``since`` when, and what it is idle for."""

    peer: str
    since: float = 0.0
    idle: list[int] = []
    wake: bool = False
    resync: bool = False
    finished: list[JobRef] = []
    cancels: list[JobRef] = []

    @property
    def empty(self) -> bool:
        """Whether there is nothing to fetch."""
        return not (self.wake or self.resync or self.finished or self.cancels)


class Value(msgspec.Struct, array_like=True):
    """A register or the state of a limiter."""

    until: float | None
    key: str
    version: int
    data: bytes | None


class Claimed(msgspec.Struct, array_like=True):
    """A claim that was granted leases."""

    until: float | None
