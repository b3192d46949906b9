"""What a broker tells about the jobs that pass through it, in batches, and only if asked to.

With no listener for a kind the events of that kind are never built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from plugq.events import EventKind, JobEvent
from plugq.job import Event, JobState, Outcome
from plugq.protocols.edits import Cancel, EditStatus, Pause, Purge, Resume
from plugq.protocols.storage import SubmitStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.clock import Clock
    from plugq.protocols.edits import Edit, EditReply
    from plugq.protocols.storage import Change, Lease, NewJob, Settlement, SettleReply, SubmitReply


class Observer(Protocol):
    """Whoever wants to know; it neither raises nor blocks."""

    def listens(self, kind: EventKind) -> bool:
        """Whether events of that kind reach anybody."""
        ...

    def emit(self, kind: EventKind, events: Sequence[JobEvent]) -> None:
        """Pass a batch of events on."""
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


class Reports:
    """Builds the events of each verb's answers and hands them to the observer."""

    def __init__(self, clock: Clock, observer: Observer | None) -> None:
        self._clock = clock
        self._observer = observer

    def submitted(self, jobs: Sequence[NewJob], replies: Sequence[SubmitReply]) -> None:
        """Tell of submissions and duplicates."""
        for status, kind in (
            (SubmitStatus.ACCEPTED, EventKind.SUBMITTED),
            (SubmitStatus.DUPLICATE, EventKind.DUPLICATE),
        ):
            if self._listens(kind):
                self._emit(
                    kind,
                    [
                        self._event(kind, job.queue, reply.id, job.task, state=reply.state)
                        for job, reply in zip(jobs, replies, strict=True)
                        if reply.status is status
                    ],
                )

    def started(self, leases: Sequence[Lease], worker: str) -> None:
        """Tell of granted leases."""
        kind = EventKind.STARTED
        if leases and self._listens(kind):
            self._emit(
                kind,
                [
                    self._event(
                        kind,
                        lease.queue,
                        lease.id,
                        lease.task,
                        attempt=lease.attempt,
                        worker=worker,
                        state=JobState.RUNNING,
                    )
                    for lease in leases
                ],
            )

    def ticked(self, schedule: str, job: NewJob) -> None:
        """Tell that a schedule has submitted a job."""
        kind = EventKind.TICK
        if self._listens(kind):
            event = self._event(kind, job.queue, job.id, job.task)
            self._emit(kind, [msgspec.structs.replace(event, schedule=schedule)])

    def settled(
        self,
        settlements: Sequence[Settlement],
        replies: Sequence[SettleReply],
    ) -> None:
        """Tell how attempts ended."""
        if self._observer is None:
            return
        events: dict[EventKind, list[JobEvent]] = {}
        for settlement, reply in zip(settlements, replies, strict=True):
            if reply.lost or reply.state is None:
                continue
            kind = _AFTER_SETTLEMENT.get(reply.state) or _AFTER_OUTCOME[settlement.outcome]
            if self._observer.listens(kind):
                error = settlement.error
                events.setdefault(kind, []).append(
                    self._event(
                        kind,
                        settlement.queue,
                        settlement.id,
                        code=settlement.code,
                        attempt=0 if error is None else error.attempt,
                        message="" if error is None else error.message,
                        delay=settlement.delay,
                        state=reply.state,
                    ),
                )
        for kind, batch in events.items():
            self._emit(kind, batch)

    def changed(self, changes: Sequence[Change]) -> None:
        """Tell what a sweep has moved."""
        if self._observer is None:
            return
        events: dict[EventKind, list[JobEvent]] = {}
        for change in changes:
            kinds = []
            if change.event is Event.LAPSE:
                kinds.append(EventKind.LEASE_ENDED)
            if (final := _AFTER_CHANGE.get(change.state)) is not None:
                kinds.append(final)
            for kind in kinds:
                if self._observer.listens(kind):
                    events.setdefault(kind, []).append(
                        self._event(
                            kind,
                            change.queue,
                            change.id,
                            change.task,
                            attempt=change.attempt,
                            code=change.code,
                            state=change.state,
                        ),
                    )
        for kind, batch in events.items():
            self._emit(kind, batch)

    def edited(self, edit: Edit, replies: Sequence[EditReply]) -> None:
        """Tell what an operator has changed."""
        if isinstance(edit, Pause | Resume):
            paused = isinstance(edit, Pause)
            kind = EventKind.QUEUE_PAUSED if paused else EventKind.QUEUE_RESUMED
            if self._listens(kind):
                self._emit(kind, [self._event(kind, queue) for queue in edit.queues])
        elif isinstance(edit, Cancel | Purge):
            done = EventKind.CANCELLED if isinstance(edit, Cancel) else EventKind.REMOVED
            for status, kind in (
                (EditStatus.DONE, done),
                (EditStatus.REQUESTED, EventKind.CANCEL_REQUESTED),
            ):
                if self._listens(kind):
                    self._emit(
                        kind,
                        [
                            self._event(kind, ref.queue, ref.id, state=reply.state)
                            for ref, reply in zip(edit.refs, replies, strict=True)
                            if reply.status is status
                        ],
                    )

    def _listens(self, kind: EventKind) -> bool:
        return self._observer is not None and self._observer.listens(kind)

    def _emit(self, kind: EventKind, events: list[JobEvent]) -> None:
        if events and self._observer is not None:
            self._observer.emit(kind, events)

    def _event(
        self,
        kind: EventKind,
        queue: str,
        id: str = "",
        task: str = "",
        *,
        attempt: int = 0,
        worker: str = "",
        code: str = "",
        message: str = "",
        delay: float | None = None,
        state: JobState | None = None,
    ) -> JobEvent:
        return JobEvent(
            kind=kind,
            at=self._clock.time(),
            queue=queue,
            id=id,
            task=task,
            attempt=attempt,
            worker=worker,
            code=code,
            message=message,
            delay=delay,
            state=state,
        )


__all__ = ["Observer", "Reports"]
