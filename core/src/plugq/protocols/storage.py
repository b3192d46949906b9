"""The storage contract: where jobs live, and the one place where a job is decided upon.

A storage is the sum of four protocols, split by what they guarantee: :class:`JobStore` (the life
of a job), :class:`JobIndex` (looking and steering), :class:`Signals` (hints between processes)
and :class:`Registers` (small shared values). Every verb takes and returns sequences, in order,
one answer an item, so that one round trip serves many jobs.

What holds for every verb:

* **Atomic.** A call happens as a whole or, when it raises, not at all; a claim is atomic per
  queue. When the caller is cancelled the call may still happen.
* **Fenced.** Whatever carries a token is refused unless the job is running under exactly that
  token.
* **One clock.** Times are judged and stamped by the storage's clock, which never runs backwards.
* **Errors.** :class:`~plugq.errors.Unavailable` when the storage can not be reached and nothing
  happened, :class:`~plugq.errors.OutcomeUnknown` when it may have happened. No foreign exception
  gets out.
* **Values.** A number of seconds that is not finite, a whole number beyond 64 bits and text that
  UTF-8 can not write are refused by every verb that writes with
  :class:`~plugq.errors.InvalidJob`, and the whole call with them; :mod:`plugq.protocols.checks`
  does it. Negative times are legal and count as passed.
* **Cost.** O(log n) a job. No verb scans finished, future or blocked jobs.
* Concurrent calls are allowed; what arrives while a write is under way goes into the next one.
* **Apart.** A storage of which one queue may be out of reach while others are not has an attribute
  ``apart`` that is true once it has started. Then submissions and looks of different callers are
  merged into one call only where they name the same queues.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, ClassVar, Protocol

import msgspec

from plugq.events import JobEvent
from plugq.job import AttemptRecord, Event, JobRecord, JobRef, JobState, Outcome, Progress
from plugq.protocols.budgets import Grant, LimitState, Want
from plugq.protocols.edits import Edit, EditReply, QueueSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from plugq.protocols.plugin import Capability


#: Beyond so many events that it has not fetched a listener is told to look again instead.
BACKLOG = 10_000
#: Seconds for which the counts of a batch outlast its last change.
BATCH_TTL = 604800.0
#: The time constant of ``TaskStats.rate``, in seconds.
RATE_TIME = 60.0


class UniqueMode(enum.StrEnum):
    """How long a unique key is held."""

    #: Until the job starts for the first time or ends.
    UNTIL_STARTED = "until_started"
    #: Until the job ends.
    UNTIL_FINISHED = "until_finished"
    #: For its ttl, whatever becomes of the job.
    THROTTLE = "throttle"


class UniqueKey(msgspec.Struct, frozen=True, array_like=True):
    """A key that at most one job of its queue holds."""

    mode: UniqueMode
    key: str
    ttl: float = 0.0


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """A submission, validated and encoded.

    ``submission`` is random and the same in every re-sending of one submission. ``body`` is
    opaque. ``run_at`` and ``deadline_at`` are absolute, ``delay`` and ``deadline_in`` count from
    the storage's now; a ``run_at`` that has passed counts as now. A ttl of ``None`` means for
    ever. A time that is NaN is refused with :class:`~plugq.errors.InvalidJob`. ``not_after``
    refuses the job once the storage's clock has passed it. ``origin`` is the peer to be told when
    the job ends.
    """

    queue: str
    id: str
    task: str
    submission: bytes
    body: bytes
    priority: int = 0
    delay: float = 0.0
    run_at: float | None = None
    deadline_in: float | None = None
    deadline_at: float | None = None
    max_attempts: int = 1
    lane: str | None = None
    batch: str | None = None
    unique: UniqueKey | None = None
    result_ttl: float | None = 3600.0
    failure_ttl: float | None = 604800.0
    id_ttl: float = 600.0
    not_after: float | None = None
    origin: str = ""


class SubmitStatus(enum.StrEnum):
    """What became of one submission."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    #: The queue has not the room for its jobs of the call under ``max_length``; nothing of the
    #: call was stored.
    FULL = "full"
    #: The queue is being drained; nothing of the call was stored.
    DRAINING = "draining"
    #: Another queue of the call is full or being drained; nothing of the call was stored.
    REFUSED = "refused"
    #: ``not_after`` has passed.
    LATE = "late"


class SubmitReply(msgspec.Struct, frozen=True, array_like=True):
    """The answer to one submission: the job that now stands for it.

    For a duplicate ``id`` is the holder's, which differs where a unique key was held. The same
    submission sent again is ``ACCEPTED`` again, except on a cancelled job.
    """

    status: SubmitStatus
    id: str
    state: JobState
    sequence: int = 0
    generation: int = 0


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for up to ``limit`` jobs of the queues, tried in that order.

    (``worker``, ``number``) is the claim id: asked again, it returns the leases that it was
    granted and that still stand, without any new one; one that was granted nothing may be asked
    again and then is a new one. Numbers of a worker rise. ``lease`` is in seconds. A claim that
    comes back short registers ``peer`` as idle for these queues in the same step, unless ``peer``
    is empty. ``grants`` are the budgets of limited queues. A limit of 0 takes nothing and is never
    short; it lets in those parked lanes and queues whose time has come.
    """

    worker: str
    number: int
    queues: tuple[str, ...]
    limit: int
    lease: float = 30.0
    peer: str = ""
    grants: tuple[Grant, ...] = ()


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to run one attempt of a job, with all that running it takes.

    ``unknown`` counts the releases of workers that did not know the task, ``unknown_for`` the
    seconds since the first of them.
    """

    queue: str
    id: str
    task: str
    token: int
    attempt: int
    max_attempts: int
    body: bytes
    sequence: int = 0
    generation: int = 0
    priority: int = 0
    lane: str | None = None
    batch: str | None = None
    crashes: int = 0
    submitted_at: float = 0.0
    started_at: float = 0.0
    deadline_in: float | None = None
    unknown: int = 0
    unknown_for: float = 0.0


class Spent(msgspec.Struct, frozen=True, array_like=True):
    """A budget of which the claim took ``count`` starts, and the state that it wrote."""

    queue: str
    count: int
    state: LimitState


class ClaimReply(msgspec.Struct, frozen=True, kw_only=True):
    """Leases, best first, and in how many seconds the next job falls due, if one is waiting.

    ``wants`` are the limited queues that could give more if there were budgets, ``spent`` the
    budgets of which something was taken. ``now`` is the storage's time.
    """

    leases: tuple[Lease, ...] = ()
    next_in: float | None = None
    wants: tuple[Want, ...] = ()
    spent: tuple[Spent, ...] = ()
    now: float = 0.0


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """Ends an attempt.

    ``delay`` is the retry, snooze or release delay; ``at`` stands in its place for a retry at a
    moment; NaN is refused with :class:`~plugq.errors.InvalidJob`. ``error`` goes into the history;
    the storage fills in its worker and times. ``code`` is kept as the reason of the final state; a
    release with the code ``unknown_task`` is counted in ``Lease.unknown``. ``task``, ``attempt``,
    ``lane`` and ``batch`` are those of the lease, for whoever tells of it; a storage does not read
    them.
    """

    queue: str
    id: str
    token: int
    outcome: Outcome
    result: bytes | None = None
    delay: float = 0.0
    at: float | None = None
    code: str = ""
    error: AttemptRecord | None = None
    progress: Progress | None = None
    task: str = ""
    attempt: int = 0
    lane: str | None = None
    batch: str | None = None


class SettleReply(msgspec.Struct, frozen=True, array_like=True):
    """Where the job went; ``lost`` when the token was not the current one and nothing changed."""

    state: JobState | None
    lost: bool = False


class LeaseRef(msgspec.Struct, frozen=True, array_like=True):
    """Names a lease, with the progress of its job where there is news.

    With the progress come ``task``, ``attempt``, ``lane`` and ``batch`` of the lease, for whoever
    tells of it; a storage does not read them.
    """

    queue: str
    id: str
    token: int
    progress: Progress | None = None
    task: str = ""
    attempt: int = 0
    lane: str | None = None
    batch: str | None = None


class Holder(msgspec.Struct, frozen=True, array_like=True):
    """Says that a renewal lists every lease of ``worker`` granted by its claims up to ``number``.

    What the storage has beyond that list was granted in a reply that was lost; it is released
    without an attempt.
    """

    worker: str
    number: int


class RenewReply(enum.StrEnum):
    """The answer to the renewal of one lease."""

    OK = "ok"
    #: The token is not the current one.
    LOST = "lost"
    #: Renewed, and cancelling the job was asked for.
    CANCEL = "cancel"


class SweepRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for housekeeping of at most ``limit`` jobs of each kind.

    ``end_leases`` is off while holders must first get the chance to renew; nothing that runs is
    ended then. A running job is ended ``deadline_grace`` seconds after its deadline, should its
    holder not have done so.
    """

    limit: int = 500
    max_crashes: int = 3
    end_leases: bool = True
    deadline_grace: float = 30.0


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """A move that a sweep or an edit made."""

    queue: str
    id: str
    task: str
    event: Event
    state: JobState | None
    sequence: int = 0
    attempt: int = 0
    code: str = ""
    lane: str | None = None
    batch: str | None = None


class SweepReply(msgspec.Struct, frozen=True, kw_only=True):
    """What was moved, and in how many seconds the next call has work; 0 when some was left.

    Work is what makes jobs move: due jobs, lapsed leases, deadlines, retention. Parked queues and
    lanes, states of budgets and counts of batches are looked after by whichever sweep comes next
    and call for none: ``next_in`` may be ``None`` or later while some of them are due.
    """

    changes: tuple[Change, ...] = ()
    next_in: float | None = None


class FindQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for one page of jobs, newest first, in the immutable order of submission.

    ``since`` and ``until`` bound the time of submission. ``cursor`` is the one of the page
    before; a page examines at most 1,000 jobs and may therefore be short and yet not the last.
    """

    states: tuple[JobState, ...] = ()
    queue: str | None = None
    task: str | None = None
    batch: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 100
    cursor: str | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs without body and result, and the cursor of the next page; ``None`` ends the walk."""

    jobs: tuple[JobRecord, ...] = ()
    cursor: str | None = None


class TaskStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one task in one queue.

    ``counts`` is by state, now. ``totals`` is cumulative: ``accepted``, ``started``,
    ``succeeded``, ``failed``, ``cancelled``, ``skipped``, ``retried``, ``snoozed``,
    ``released``, ``lease_ended``, ``redriven`` and ``removed``. Always
    accepted = the sum of ``counts`` + removed; a cancelled id that is submitted again counts as
    removed and accepted.

    ``run_time`` is the mean of the seconds that attempts ran which their holders ended by success,
    failure, retry or skip; ``None`` where there was none. ``rate`` is how many jobs a second come
    to an end, each weighted with exp(-age / RATE_TIME) / RATE_TIME.
    """

    queue: str
    task: str
    counts: dict[str, int] = {}
    totals: dict[str, int] = {}
    run_time: float | None = None
    rate: float = 0.0


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """One queue: whether it is paused or drained, and the age in seconds of its oldest ready job.

    A job is ready that stands in the ready order: none that waits for its time, or in a lane that
    is busy or parked. A pause, ``max_running`` or a limit of the whole queue may still keep it from
    starting now. ``oldest`` counts from its ready time.
    """

    queue: str
    paused: bool = False
    draining: bool = False
    oldest: float | None = None
    settings: QueueSettings | None = None


class BatchCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of one batch by state; those that are gone count as what they were in the end.

    A job that a new generation replaced counts on as ``cancelled``. Counts are forgotten once
    none of the jobs is live and ``BATCH_TTL`` seconds have passed since they last changed.
    """

    batch: str
    counts: dict[str, int]


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The whole store in numbers, and the storage's time."""

    now: float
    queues: tuple[QueueStats, ...] = ()
    tasks: tuple[TaskStats, ...] = ()


class Wake(msgspec.Struct, frozen=True, tag="wake"):
    """There may be something to claim."""


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """Jobs that this peer submitted have become final."""

    refs: tuple[JobRef, ...]


class CancelAsked(msgspec.Struct, frozen=True, tag="cancel_asked"):
    """Cancelling was asked for jobs that this peer's workers run."""

    refs: tuple[JobRef, ...]


class Resync(msgspec.Struct, frozen=True, tag="resync"):
    """Signals may have been lost: look at everything again."""


class Happened(msgspec.Struct, frozen=True, tag="happened"):
    """Things that happened, told by the processes that did them."""

    events: tuple[JobEvent, ...]


Notice = Wake | Finished | CancelAsked | Resync
Heard = Happened | Resync


class Register(msgspec.Struct, frozen=True, kw_only=True):
    """A small value and its version; versions of a key never repeat."""

    key: str
    version: int
    value: bytes


class RegisterChange(msgspec.Struct, frozen=True, kw_only=True):
    """Writes a register if its version is still ``expect``; 0 expects that there is none.

    ``value=None`` removes it. It is gone ``ttl`` seconds after this change; ``None``: never.
    """

    key: str
    expect: int
    value: bytes | None
    ttl: float | None = None


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """The registers asked for, ``None`` where there is none, and the storage's time."""

    registers: tuple[Register | None, ...]
    now: float


class Swapped(msgspec.Struct, frozen=True, kw_only=True):
    """Whether all changes were made, and how the registers stand after the call."""

    done: bool
    registers: tuple[Register | None, ...]
    now: float


class JobStore(Protocol):
    """The life of a job."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs durably and answer for each.

        Ids and unique keys are judged and written in one step (I8). What is ready now wakes at
        most as many idle peers as there are jobs.
        """
        ...

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs as they are, for migration; an id that exists is left alone."""
        ...

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in the order (priority high to low, ready time, sequence).

        Jobs that have fallen due count as ready. Each grant takes a token greater than every
        one granted before in its queue, counts the attempt and, as everything in the step,
        honours pauses and limits.
        """
        ...

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim if there is one, in the same step."""
        ...

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases to ``lease`` seconds from now; a lapsed one that no sweep ended, too."""
        ...

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due: due jobs, lapsed leases, deadlines, retention.

        Also wakes idle peers where jobs are ready, so that a lost signal costs one sweep.
        """
        ...


class JobIndex(Protocol):
    """Looking and steering."""

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs, with their result where it is kept and their body if asked for.

        ``waiting`` asks for a caller who waited for the end: until ``LINGER`` seconds after it a
        job is shown with its result although its ttls, 0 for instance, have passed.
        """
        ...

    async def find(self, query: FindQuery) -> Page:
        """Return one page; a job that matches throughout a walk appears in it exactly once."""
        ...

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches, ``None`` for one that never had a job or is forgotten.

        They move in the same step as the jobs: also those of a retry, a redrive or a deadline.
        """
        ...

    async def stats(self) -> Stats:
        """Return counts that agree with what is stored (I13)."""
        ...

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change and answer for each job or queue that it names."""
        ...


class Signals(Protocol):
    """Hints between processes, which may be lost but not silently."""

    def watch(self, peer: str) -> AsyncGenerator[Notice, None]:
        """Iterate over the notices to a peer until the iterator is closed.

        The peer is known to the other processes from the first ``__anext__`` on, which returns
        ``Resync``. Wherever notices may have been lost, a ``Resync`` stands for them.
        """
        ...

    def listen(self) -> AsyncGenerator[Heard, None]:
        """Iterate over what happens in the namespace, until the iterator is closed.

        It is told by the processes that did it, from the first ``__anext__`` on, which returns
        ``Resync``. Wherever events may have been lost, at the latest when ``BACKLOG`` of them
        wait to be fetched, a ``Resync`` stands for these and for all that came before it. So it
        does, a few seconds later at most, where a process may not reach the listener or is stopped
        before that has taken what it was told. A process that dies takes along what it has not
        told yet. Closing the iterator or stopping the storage ends it; a cancelled ``__anext__``
        loses nothing.

        Events of one job that one process tells arrive in that order. Those of several processes
        may overtake each other; ``JobEvent.at`` orders them.
        """
        ...

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens, in this process, too.

        It never waits, and it never raises because a listener can not be reached.
        """
        ...

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening, as of the last change that this instance made.

        That is the last call of submit, claim, settle, renew, sweep or edit. With nobody listening
        no event needs to be built.
        """
        ...


class Registers(Protocol):
    """Versioned compare-and-set on small values."""

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers, all as of one moment."""
        ...

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all the changes, or none if any version is another than expected."""
        ...

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return every register whose key starts with ``prefix``, by key."""
        ...


class Storage(JobStore, JobIndex, Signals, Registers, Protocol):
    """Everything a storage plugin implements, checked structurally.

    An instance belongs to the event loop that starts it, except where the class is neither
    ``SHARED_PROCESSES`` nor ``SHARED_HOSTS``: then one instance serves every loop of its process.

    The class also has ``Options`` and is made as ``Class(options, context)`` without any I/O.
    """

    api_version: ClassVar[int]
    capabilities: ClassVar[frozenset[Capability]]

    async def start(self) -> None:
        """Open the store and check that it can be used; a second call does nothing.

        Raises:
            ConfigError: the options can not work; the message says what to change.
            Unavailable: it can not be reached now.
        """
        ...

    async def stop(self) -> None:
        """Finish what is under way and let go of everything; a second call does nothing."""
        ...


__all__ = [
    "BACKLOG",
    "BATCH_TTL",
    "RATE_TIME",
    "BatchCounts",
    "CancelAsked",
    "Change",
    "ClaimReply",
    "ClaimRequest",
    "FindQuery",
    "Finished",
    "Happened",
    "Heard",
    "Holder",
    "JobIndex",
    "JobStore",
    "Lease",
    "LeaseRef",
    "Loaded",
    "NewJob",
    "Notice",
    "Page",
    "QueueStats",
    "Register",
    "RegisterChange",
    "Registers",
    "RenewReply",
    "Resync",
    "SettleReply",
    "Settlement",
    "Signals",
    "Spent",
    "Stats",
    "Storage",
    "SubmitReply",
    "SubmitStatus",
    "Swapped",
    "SweepReply",
    "SweepRequest",
    "TaskStats",
    "UniqueKey",
    "UniqueMode",
    "Wake",
]
