"""What happened, told after the fact: the events that hooks, listeners and counters share."""

from __future__ import annotations

import enum

import msgspec

from plugq.job import JobState, Progress


class EventKind(enum.StrEnum):
    """What an event tells."""

    #: A submission was stored.
    SUBMITTED = "submitted"
    #: A submission found its id or its unique key held; ``id`` and ``state`` are the holder's.
    DUPLICATE = "duplicate"
    #: A worker was granted the lease of an attempt.
    STARTED = "started"
    #: A handler said how far it is.
    PROGRESS = "progress"
    #: An attempt failed and another one follows after ``delay``.
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    #: No further attempt is made; ``code`` says why.
    FAILED = "failed"
    #: The worker of a running job was asked to stop it.
    CANCEL_REQUESTED = "cancel_requested"
    CANCELLED = "cancelled"
    SKIPPED = "skipped"
    #: A handler put its job back for ``delay``.
    SNOOZED = "snoozed"
    #: A worker gave an attempt back without running it to its end; or, with the code ``retry``,
    #: an operator queued a final job again.
    RELEASED = "released"
    #: A sweep ended a lease that its holder no longer renewed.
    LEASE_ENDED = "lease_ended"
    #: A final job is gone, by retention or by purge.
    REMOVED = "removed"
    #: A schedule submitted a job; ``schedule`` names it. May come again for the same job where the
    #: schedule was changed, or another scheduler took over, at that very moment.
    TICK = "tick"
    WORKER_STARTED = "worker_started"
    WORKER_STOPPED = "worker_stopped"
    BROKER_STARTED = "broker_started"
    BROKER_STOPPED = "broker_stopped"
    QUEUE_PAUSED = "queue_paused"
    QUEUE_RESUMED = "queue_resumed"


class JobEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that happened, with the facts that its kind has; the others keep their defaults.

    ``at`` is in seconds since 1970 UTC: that of a start by the storage's clock, that of anything
    else by the clock of the process that tells it, read before it asked the storage for the change.
    So what follows from something has a later time than that, as far as clocks agree. ``state`` is
    the one after the event. ``worker`` is the id of a worker, in events of brokers and queues that
    of the broker. ``message`` is that of the error or of the reason, ``delay`` in seconds.
    """

    kind: EventKind
    at: float = 0.0
    queue: str = ""
    id: str = ""
    task: str = ""
    state: JobState | None = None
    attempt: int = 0
    max_attempts: int = 0
    worker: str = ""
    code: str = ""
    message: str = ""
    delay: float | None = None
    progress: Progress | None = None
    lane: str | None = None
    batch: str | None = None
    schedule: str = ""


__all__ = ["EventKind", "JobEvent"]
