"""The job: its states, the one table of its moves, and the records that show it.

Every storage decides a move with the functions below and writes it as a compare-and-set on
(state, token). Nothing else in plugq says which move is allowed.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping


class JobState(enum.StrEnum):
    """Where a job stands."""

    #: Waits for its time. Entered by a submission that is due later, a retry, a snooze or a
    #: release with a delay; left when its time comes.
    DELAYED = "delayed"
    #: Waits for a worker. Entered by a submission, its due time, a release or an ended lease.
    QUEUED = "queued"
    #: A worker holds its lease. Entered by a claim; left by a settlement or by the sweep.
    RUNNING = "running"
    #: The handler returned; its result is kept for ``result_ttl``.
    SUCCEEDED = "succeeded"
    #: No further attempt will be made; kept for ``failure_ttl``. This is the dead-letter store.
    FAILED = "failed"
    #: Cancelled before it ran, or while it ran and did not succeed all the same.
    CANCELLED = "cancelled"
    #: The handler decided that it should not run.
    SKIPPED = "skipped"

    @property
    def final(self) -> bool:
        """Whether the job will move no more unless an operator retries it."""
        return self in FINAL


FINAL = frozenset(
    {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED},
)
WAITING = frozenset({JobState.DELAYED, JobState.QUEUED})


#: Seconds for which a job that has ended is shown in full to those who waited for it, however
#: short its retention: a ttl of 0 must not lose the race against the waiter's own look.
LINGER = 10.0


class Event(enum.StrEnum):
    """What can happen to a job."""

    SUBMIT = "submit"
    DUE = "due"
    CLAIM = "claim"
    SUCCEED = "succeed"
    RETRY = "retry"
    FAIL = "fail"
    SNOOZE = "snooze"
    SKIP = "skip"
    RELEASE = "release"
    LAPSE = "lapse"
    CANCEL = "cancel"
    DEADLINE = "deadline"
    REDRIVE = "redrive"
    REMOVE = "remove"


_D, _Q, _R = JobState.DELAYED, JobState.QUEUED, JobState.RUNNING
_S, _F, _C, _K = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED

#: (state, event) → the states that may follow; ``None`` stands for "no such job".
TRANSITIONS: Mapping[tuple[JobState | None, Event], frozenset[JobState | None]] = MappingProxyType(
    {
        (None, Event.SUBMIT): frozenset({_Q, _D}),
        (_C, Event.SUBMIT): frozenset({_Q, _D}),
        (_D, Event.DUE): frozenset({_Q}),
        (_Q, Event.CLAIM): frozenset({_R}),
        (_R, Event.SUCCEED): frozenset({_S}),
        (_R, Event.RETRY): frozenset({_D, _F, _C}),
        (_R, Event.FAIL): frozenset({_F, _C}),
        (_R, Event.SNOOZE): frozenset({_D, _C}),
        (_R, Event.SKIP): frozenset({_K, _C}),
        (_R, Event.RELEASE): frozenset({_Q, _D, _C}),
        (_R, Event.LAPSE): frozenset({_Q, _F, _C}),
        (_R, Event.CANCEL): frozenset({_R}),
        (_R, Event.DEADLINE): frozenset({_F, _C}),
        (_Q, Event.CANCEL): frozenset({_C}),
        (_D, Event.CANCEL): frozenset({_C}),
        (_Q, Event.DEADLINE): frozenset({_F}),
        (_D, Event.DEADLINE): frozenset({_F}),
        (_F, Event.REDRIVE): frozenset({_Q}),
        (_C, Event.REDRIVE): frozenset({_Q}),
        (_K, Event.REDRIVE): frozenset({_Q}),
        (_S, Event.REMOVE): frozenset({None}),
        (_F, Event.REMOVE): frozenset({None}),
        (_C, Event.REMOVE): frozenset({None}),
        (_K, Event.REMOVE): frozenset({None}),
    },
)


class Outcome(enum.StrEnum):
    """How a worker ends an attempt."""

    SUCCEED = "succeed"
    RETRY = "retry"
    FAIL = "fail"
    SNOOZE = "snooze"
    SKIP = "skip"
    RELEASE = "release"


#: Outcomes after which the attempt does not count.
GIVES_ATTEMPT_BACK = frozenset({Outcome.SNOOZE, Outcome.RELEASE})


def allowed(state: JobState | None, event: Event) -> bool:
    """Return whether the event may happen to a job in that state."""
    return (state, event) in TRANSITIONS


def state_after_settlement(
    outcome: Outcome,
    *,
    cancel_requested: bool,
    attempts_left: bool,
    delay: float,
) -> JobState:
    """Return where a running job goes when the holder of its lease settles it.

    Every settlement but a success ends a job whose cancelling was asked for. A retry without
    attempts left fails. A release goes back to its place unless it carries a delay.
    """
    if outcome is Outcome.SUCCEED:
        return JobState.SUCCEEDED
    if cancel_requested:
        return JobState.CANCELLED
    if outcome is Outcome.RETRY:
        return JobState.DELAYED if attempts_left else JobState.FAILED
    if outcome is Outcome.SNOOZE:
        return JobState.DELAYED
    if outcome is Outcome.RELEASE:
        return JobState.DELAYED if delay > 0 else JobState.QUEUED
    return JobState.SKIPPED if outcome is Outcome.SKIP else JobState.FAILED


def state_after_lapse(
    *,
    cancel_requested: bool,
    attempts_left: bool,
    crashes: int,
    max_crashes: int,
) -> JobState:
    """Return where a running job goes when a sweep ends its lapsed lease.

    ``crashes`` counts the lease being ended. The crash has spent its attempt, so a job without
    attempts left fails as well as one that has used up its crashes.
    """
    if cancel_requested:
        return JobState.CANCELLED
    if crashes >= max_crashes or not attempts_left:
        return JobState.FAILED
    return JobState.QUEUED


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One attempt that did not succeed, as the history of a job keeps it.

    ``code`` is ``error``, ``timeout``, ``crashed``, ``result``, ``undecodable`` or what
    ``Fail(code=…)`` said; times are seconds since 1970 UTC by the storage's clock.
    """

    attempt: int
    code: str
    type: str = ""
    message: str = ""
    traceback: str = ""
    worker: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0


class Progress(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How far a running job says that it is."""

    current: float
    total: float = 100.0
    message: str = ""
    details: dict[str, str | int | float | bool | None] | None = None


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A job as it stands in the storage at one moment.

    Times are seconds since 1970 UTC by the storage's clock. ``body`` is the encoded envelope of
    the submission and ``result`` the encoded value, both opaque to storages; either is ``None``
    where it was not asked for or is not kept. ``generation`` counts the re-submissions of a
    cancelled id, ``sequence`` is the place in the order of submission and never repeats.
    """

    queue: str
    id: str
    task: str
    state: JobState
    sequence: int
    generation: int = 0
    submission: bytes = b""
    priority: int = 0
    lane: str | None = None
    batch: str | None = None
    attempt: int = 0
    max_attempts: int = 1
    crashes: int = 0
    token: int = 0
    worker: str = ""
    submitted_at: float = 0.0
    ready_at: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    deadline_at: float | None = None
    lease_until: float | None = None
    cancel_requested: bool = False
    progress: Progress | None = None
    code: str = ""
    history: tuple[AttemptRecord, ...] = ()
    body: bytes | None = None
    result: bytes | None = None
    result_expired: bool = False

    @property
    def error(self) -> AttemptRecord | None:
        """The last attempt that did not succeed."""
        return self.history[-1] if self.history else None


class JobRef(msgspec.Struct, frozen=True, array_like=True):
    """Names one job: its queue and its id."""

    queue: str
    id: str


__all__ = [
    "FINAL",
    "GIVES_ATTEMPT_BACK",
    "LINGER",
    "TRANSITIONS",
    "WAITING",
    "AttemptRecord",
    "Event",
    "JobRecord",
    "JobRef",
    "JobState",
    "Outcome",
    "Progress",
    "allowed",
    "state_after_lapse",
    "state_after_settlement",
]
