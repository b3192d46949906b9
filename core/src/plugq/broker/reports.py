"""What a broker tells about the jobs that pass through it, in batches, and only if asked to.

With nobody who listens, in this process or in another, the events are never built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from plugq.events import EventKind, JobEvent
from plugq.job import Event, JobState, Outcome
from plugq.protocols.edits import Cancel, EditStatus, Pause, Purge, Redrive, Resume
from plugq.protocols.storage import RenewReply, SubmitStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plugq.clock import Clock
    from plugq.protocols.edits import Edit, EditReply
    from plugq.protocols.storage import (
        Change,
        Lease,
        LeaseRef,
        NewJob,
        Settlement,
        SettleReply,
        SubmitReply,
    )

#: The code of a job that an operator has queued again.
RETRIED = "retry"


class Observer(Protocol):
    """Whoever wants to know; it neither raises nor blocks."""

    def listens(self, kind: EventKind) -> bool:
        """Whether events of that kind reach anybody."""
        ...

    def emit(self, kind: EventKind, events: Sequence[JobEvent]) -> None:
        """Pass a batch of events on."""
        ...


class Voice(Protocol):
    """What carries events to other processes; a storage does."""

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening."""
        ...

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens."""
        ...


_AFTER_SETTLEMENT = {
    JobState.SUCCEEDED: EventKind.SUCCEEDED,
    JobState.FAILED: EventKind.FAILED,
    JobState.CANCELLED: EventKind.CANCELLED,
    JobState.SKIPPED: EventKind.SKIPPED,
}
_AFTER_OUTCOME = {
    Outcome.RETRY: EventKind.RETRYING,
    Outcome.SNOOZE: EventKind.SNOOZED,
    Outcome.RELEASE: EventKind.RELEASED,
}
_AFTER_CHANGE = {
    JobState.FAILED: EventKind.FAILED,
    JobState.CANCELLED: EventKind.CANCELLED,
    None: EventKind.REMOVED,
}
_AFTER_SUBMISSION = {
    SubmitStatus.ACCEPTED: EventKind.SUBMITTED,
    SubmitStatus.DUPLICATE: EventKind.DUPLICATE,
}
_AFTER_EDIT: dict[type[Edit], dict[EditStatus, EventKind]] = {
    Cancel: {
        EditStatus.DONE: EventKind.CANCELLED,
        EditStatus.REQUESTED: EventKind.CANCEL_REQUESTED,
    },
    Purge: {EditStatus.DONE: EventKind.REMOVED},
    Redrive: {EditStatus.DONE: EventKind.RELEASED},
}

_SUBMITTED = tuple(_AFTER_SUBMISSION.values())
_SETTLED = (EventKind.PROGRESS, *_AFTER_SETTLEMENT.values(), *_AFTER_OUTCOME.values())
_CHANGED = (EventKind.LEASE_ENDED, *_AFTER_CHANGE.values())


class Reports:
    """Builds the events of each verb's answers and hands them to whoever listens.

    ``began`` is what :meth:`now` returned before the verb was called: what follows from it in
    another process has a later time, whichever of the two is told first.
    """

    def __init__(self, clock: Clock, observer: Observer | None, voice: Voice, name: str) -> None:
        self._clock = clock
        self._observer = observer
        self._voice = voice
        self._name = name

    def now(self) -> float:
        """Return the time that an event of the next verb has."""
        return self._clock.time()

    def submitted(
        self, jobs: Sequence[NewJob], replies: Sequence[SubmitReply], began: float
    ) -> None:
        """Tell of submissions and duplicates."""
        if not self._wants_any(_SUBMITTED):
            return
        self._pass_on(
            [
                JobEvent(
                    kind=kind,
                    at=began,
                    queue=job.queue,
                    id=reply.id,
                    task=job.task,
                    state=reply.state,
                    max_attempts=job.max_attempts,
                    lane=job.lane,
                    batch=job.batch,
                )
                for job, reply in zip(jobs, replies, strict=True)
                if (kind := _AFTER_SUBMISSION.get(reply.status)) is not None and self._wants(kind)
            ],
        )

    def started(self, leases: Sequence[Lease], worker: str) -> None:
        """Tell of granted leases."""
        kind = EventKind.STARTED
        if leases and self._wants(kind):
            now = self._clock.time()
            self._pass_on(
                [
                    JobEvent(
                        kind=kind,
                        at=lease.started_at or now,
                        queue=lease.queue,
                        id=lease.id,
                        task=lease.task,
                        state=JobState.RUNNING,
                        attempt=lease.attempt,
                        max_attempts=lease.max_attempts,
                        worker=worker,
                        lane=lease.lane,
                        batch=lease.batch,
                    )
                    for lease in leases
                ],
            )

    def renewed(
        self, leases: Sequence[LeaseRef], replies: Sequence[RenewReply], began: float
    ) -> None:
        """Tell how far handlers have come."""
        if self._wants(EventKind.PROGRESS):
            self._pass_on(
                [
                    _progress(lease, began)
                    for lease, reply in zip(leases, replies, strict=True)
                    if lease.progress is not None and reply is not RenewReply.LOST
                ],
            )

    def ticked(self, schedule: str, job: NewJob) -> None:
        """Tell that a schedule has submitted a job."""
        kind = EventKind.TICK
        if self._wants(kind):
            event = JobEvent(
                kind=kind,
                at=self._clock.time(),
                queue=job.queue,
                id=job.id,
                task=job.task,
                max_attempts=job.max_attempts,
                lane=job.lane,
                batch=job.batch,
                schedule=schedule,
            )
            self._pass_on([event])

    def settled(
        self,
        settlements: Sequence[Settlement],
        replies: Sequence[SettleReply],
        began: float,
    ) -> None:
        """Tell how attempts ended."""
        if not self._wants_any(_SETTLED):
            return
        events: list[JobEvent] = []
        for settlement, reply in zip(settlements, replies, strict=True):
            if reply.lost or reply.state is None:
                continue
            if settlement.progress is not None and self._wants(EventKind.PROGRESS):
                events.append(_progress(settlement, began))
            kind = _AFTER_SETTLEMENT.get(reply.state) or _AFTER_OUTCOME[settlement.outcome]
            if self._wants(kind):
                events.append(_settled(settlement, kind, reply.state, began))
        self._pass_on(events)

    def changed(self, changes: Sequence[Change], began: float) -> None:
        """Tell what a sweep has moved."""
        if not self._wants_any(_CHANGED):
            return
        events: list[JobEvent] = []
        for change in changes:
            kinds = []
            if change.event is Event.LAPSE:
                kinds.append(EventKind.LEASE_ENDED)
            if (final := _AFTER_CHANGE.get(change.state)) is not None:
                kinds.append(final)
            events += [
                JobEvent(
                    kind=kind,
                    at=began,
                    queue=change.queue,
                    id=change.id,
                    task=change.task,
                    state=change.state,
                    attempt=change.attempt,
                    code=change.code,
                    lane=change.lane,
                    batch=change.batch,
                )
                for kind in kinds
                if self._wants(kind)
            ]
        self._pass_on(events)

    def edited(self, edit: Edit, replies: Sequence[EditReply], began: float) -> None:
        """Tell what an operator has changed."""
        if isinstance(edit, Pause | Resume):
            paused = isinstance(edit, Pause)
            kind = EventKind.QUEUE_PAUSED if paused else EventKind.QUEUE_RESUMED
            if self._wants(kind):
                self._pass_on(
                    [
                        JobEvent(kind=kind, at=began, queue=queue, worker=self._name)
                        for queue in edit.queues
                    ],
                )
        elif isinstance(edit, Cancel | Purge | Redrive):
            after = _AFTER_EDIT[type(edit)]
            if not self._wants_any(after.values()):
                return
            self._pass_on(
                [
                    JobEvent(
                        kind=after[reply.status],
                        at=began,
                        queue=ref.queue,
                        id=ref.id,
                        task=reply.task,
                        state=reply.state,
                        code=RETRIED if isinstance(edit, Redrive) else "",
                        lane=reply.lane,
                        batch=reply.batch,
                    )
                    for ref, reply in zip(edit.refs, replies, strict=True)
                    if reply.status in after and self._wants(after[reply.status])
                ],
            )

    def broker(self, kind: EventKind) -> None:
        """Tell that this broker has started to look after the store, or stopped to."""
        if self._wants(kind):
            self._pass_on([JobEvent(kind=kind, at=self._clock.time(), worker=self._name)])

    def _wants(self, kind: EventKind) -> bool:
        return self._voice.listened or (self._observer is not None and self._observer.listens(kind))

    def _wants_any(self, kinds: Iterable[EventKind]) -> bool:
        """Return whether anybody wants events of these kinds, asked once for many jobs."""
        return self._voice.listened or (
            self._observer is not None and any(map(self._observer.listens, kinds))
        )

    def _pass_on(self, events: list[JobEvent]) -> None:
        if not events:
            return
        if self._observer is not None:
            by_kind: dict[EventKind, list[JobEvent]] = {}
            for event in events:
                by_kind.setdefault(event.kind, []).append(event)
            for kind, batch in by_kind.items():
                if self._observer.listens(kind):
                    self._observer.emit(kind, batch)
        if self._voice.listened:
            self._voice.tell(events)


def _progress(said: Settlement | LeaseRef, began: float) -> JobEvent:
    return JobEvent(
        kind=EventKind.PROGRESS,
        at=began,
        queue=said.queue,
        id=said.id,
        task=said.task,
        state=JobState.RUNNING,
        attempt=said.attempt,
        progress=said.progress,
        lane=said.lane,
        batch=said.batch,
    )


def _settled(settlement: Settlement, kind: EventKind, state: JobState, began: float) -> JobEvent:
    error = settlement.error
    delay = None
    if kind in {EventKind.RETRYING, EventKind.SNOOZED, EventKind.RELEASED}:
        at = settlement.at
        delay = settlement.delay if at is None else max(0.0, at - began)
    attempt = settlement.attempt or (0 if error is None else error.attempt)
    return JobEvent(
        kind=kind,
        at=began,
        queue=settlement.queue,
        id=settlement.id,
        task=settlement.task,
        state=state,
        attempt=attempt,
        code=settlement.code,
        message="" if error is None else error.message,
        delay=delay,
        lane=settlement.lane,
        batch=settlement.batch,
    )


__all__ = ["RETRIED", "Observer", "Reports", "Voice"]
