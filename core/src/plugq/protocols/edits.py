"""An operator's changes to jobs and queues, and the answers to them."""

from __future__ import annotations

import enum

import msgspec

from plugq.job import JobRef, JobState


class Conditions(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs an edit means, beside their ids; compared in the same step as the change.

    ``sequences`` are those of the jobs, in the order of the references; 0, or none at all, means
    whichever job has the id. ``states`` are those in which a job may be, by what readers see;
    none at all means any. A job of another sequence or in another state is ``NOT_FOUND``.
    """

    sequences: tuple[int, ...] = ()
    states: tuple[JobState, ...] = ()


class Cancel(Conditions, frozen=True, tag="cancel"):
    """Cancel waiting jobs at once; ask the workers of running ones to stop."""

    refs: tuple[JobRef, ...]


class Redrive(Conditions, frozen=True, tag="redrive"):
    """Queue failed, cancelled and skipped jobs again, with all their attempts given back."""

    refs: tuple[JobRef, ...]


class Purge(Conditions, frozen=True, tag="purge"):
    """Remove final jobs before their retention passes."""

    refs: tuple[JobRef, ...]


class Retain(Conditions, frozen=True, tag="retain"):
    """Keep jobs and their results for another time; ``None`` means for ever.

    A live job takes ``ttl`` in place of its ``result_ttl`` and its ``failure_ttl``. A final one,
    and its result where that is still kept, goes ``ttl`` seconds from now, but not sooner than
    ``id_ttl`` after its end.
    """

    refs: tuple[JobRef, ...]
    ttl: float | None


class Reprioritise(Conditions, frozen=True, tag="reprioritise"):
    """Give live jobs another priority; one that runs has it when it is queued again.

    The rest of the key by which a queue is ordered, ready time and sequence, stays.
    """

    refs: tuple[JobRef, ...]
    priority: int


class Pause(msgspec.Struct, frozen=True, tag="pause"):
    """Grant no more claims of these queues; submissions and running jobs go on."""

    queues: tuple[str, ...]


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Take no more submissions into these queues; what waits in them runs."""

    queues: tuple[str, ...]


class Resume(msgspec.Struct, frozen=True, tag="resume"):
    """Take back a pause and a drain."""

    queues: tuple[str, ...]


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What decides the claims of a queue, stored with it; ``None`` means no limit.

    A lane runs at least one job.

    ``limits`` and ``lane_limits`` say which limiters bound the starts of the queue and of each of
    its lanes. Both are opaque to a storage; where one is not empty, the queue is limited and
    grants only what a claim has budgets for.
    """

    queue: str
    max_running: int | None = None
    lane_max_running: int = 1
    max_length: int | None = None
    limits: bytes = b""
    lane_limits: bytes = b""


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Set the limits of queues; they hold from the next claim or submission on."""

    settings: tuple[QueueSettings, ...]


JobEdit = Cancel | Redrive | Purge | Retain | Reprioritise
Edit = JobEdit | Pause | Drain | Resume | Configure


class EditStatus(enum.StrEnum):
    """What an edit did to one job or queue."""

    #: It was done; ``EditReply.state`` is the state after it.
    DONE = "done"
    #: The worker of a running job will be told.
    REQUESTED = "requested"
    #: Nothing to do: the job is final already.
    FINISHED = "finished"
    #: There is no such job, or the one there is does not meet the conditions of the edit.
    NOT_FOUND = "not_found"
    #: The state of the job forbids it, or another job holds its unique key.
    CONFLICT = "conflict"


class EditReply(msgspec.Struct, frozen=True, array_like=True):
    """The answer for one job or queue of an edit; of a job that was found, what it is, too."""

    status: EditStatus
    state: JobState | None = None
    task: str = ""
    lane: str | None = None
    batch: str | None = None


__all__ = [
    "Cancel",
    "Conditions",
    "Configure",
    "Drain",
    "Edit",
    "EditReply",
    "EditStatus",
    "JobEdit",
    "Pause",
    "Purge",
    "QueueSettings",
    "Redrive",
    "Reprioritise",
    "Resume",
    "Retain",
]
