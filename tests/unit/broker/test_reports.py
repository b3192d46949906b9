"""What a broker tells, to whom, and that it builds nothing for nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from plugq.broker import reports
from plugq.broker.reports import Reports
from plugq.events import EventKind, JobEvent
from plugq.job import AttemptRecord, Event, JobRef, JobState, Outcome, Progress
from plugq.protocols import (
    Cancel,
    Change,
    Configure,
    Drain,
    EditReply,
    EditStatus,
    Lease,
    LeaseRef,
    NewJob,
    Pause,
    Purge,
    Redrive,
    RenewReply,
    Reprioritise,
    Resume,
    Settlement,
    SettleReply,
    SubmitReply,
    SubmitStatus,
)
from plugq.testing import ManualClock

REF = JobRef("q", "a")
HALF = Progress(current=50)


class Voice:
    def __init__(self, *, listened: bool = True) -> None:
        self.listened = listened
        self.told: list[JobEvent] = []

    def tell(self, events: Sequence[JobEvent]) -> None:
        self.told += events


class Observer:
    def __init__(self, *kinds: EventKind) -> None:
        self.kinds = kinds
        self.seen: list[tuple[EventKind, list[JobEvent]]] = []

    def listens(self, kind: EventKind) -> bool:
        return kind in self.kinds

    def emit(self, kind: EventKind, events: Sequence[JobEvent]) -> None:
        self.seen.append((kind, list(events)))


def new(id: str = "a") -> NewJob:
    return NewJob(
        queue="q",
        id=id,
        task="t",
        submission=b"s",
        body=b"",
        max_attempts=4,
        lane="l",
        batch="b",
    )


def lease() -> Lease:
    return Lease(
        queue="q",
        id="a",
        task="t",
        token=7,
        attempt=2,
        max_attempts=4,
        body=b"",
        lane="l",
        batch="b",
        started_at=90.0,
    )


def settlement(outcome: Outcome, **fields: Any) -> Settlement:
    return Settlement(
        queue="q",
        id="a",
        token=7,
        outcome=outcome,
        task="t",
        attempt=2,
        lane="l",
        batch="b",
        **fields,
    )


def tell_everything(to: Reports) -> None:
    to.submitted([new()], [SubmitReply(SubmitStatus.ACCEPTED, "a", JobState.QUEUED)], 1.0)
    to.started([lease()], "w")
    to.renewed([LeaseRef("q", "a", 7, HALF)], [RenewReply.OK], 1.0)
    to.settled([settlement(Outcome.SUCCEED)], [SettleReply(JobState.SUCCEEDED)], 1.0)
    change = Change(queue="q", id="a", task="t", event=Event.LAPSE, state=JobState.FAILED)
    to.changed([change], 1.0)
    to.edited(Pause(("q",)), [EditReply(EditStatus.DONE)], 1.0)
    for edit in (Cancel((REF,)), Purge((REF,)), Redrive((REF,))):
        to.edited(edit, [EditReply(EditStatus.DONE)], 1.0)
    to.ticked("s", new())
    to.broker(EventKind.BROKER_STARTED)


@pytest.fixture
def voice() -> Voice:
    return Voice()


@pytest.fixture
def told(voice: Voice) -> Reports:
    return Reports(ManualClock(), None, voice, "me")


@pytest.mark.parametrize("observer", [None, Observer()])
def test_with_nobody_listening_no_event_is_built(
    observer: Observer | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**_: Any) -> JobEvent:
        raise AssertionError("an event was built for nobody")

    monkeypatch.setattr(reports, "JobEvent", refused)
    tell_everything(Reports(ManualClock(), observer, Voice(listened=False), "me"))
    with pytest.raises(AssertionError, match="for nobody"):
        tell_everything(Reports(ManualClock(), None, Voice(), "me"))


def test_both_hear_the_same_and_each_hook_its_kind() -> None:
    observer, voice = Observer(*EventKind), Voice()
    tell_everything(Reports(ManualClock(), observer, voice, "me"))
    assert [event for _, events in observer.seen for event in events] == voice.told
    assert all(event.kind is kind for kind, events in observer.seen for event in events)
    only = Observer(EventKind.SUCCEEDED)
    tell_everything(Reports(ManualClock(), only, Voice(listened=False), "me"))
    assert [kind for kind, _ in only.seen] == [EventKind.SUCCEEDED]


def test_submissions(told: Reports, voice: Voice) -> None:
    replies = [
        SubmitReply(SubmitStatus.ACCEPTED, "a", JobState.DELAYED),
        SubmitReply(SubmitStatus.DUPLICATE, "holder", JobState.RUNNING),
        SubmitReply(SubmitStatus.LATE, "c", JobState.QUEUED),
    ]
    told.submitted([new("a"), new("b"), new("c")], replies, 5.0)
    facts: dict[str, Any] = {
        "at": 5.0,
        "queue": "q",
        "task": "t",
        "max_attempts": 4,
        "lane": "l",
        "batch": "b",
    }
    assert voice.told == [
        JobEvent(kind=EventKind.SUBMITTED, id="a", state=JobState.DELAYED, **facts),
        JobEvent(kind=EventKind.DUPLICATE, id="holder", state=JobState.RUNNING, **facts),
    ]


def test_a_start_has_the_time_of_the_storage(told: Reports, voice: Voice) -> None:
    told.started([lease()], "w")
    assert voice.told == [
        JobEvent(
            kind=EventKind.STARTED,
            at=90.0,
            queue="q",
            id="a",
            task="t",
            state=JobState.RUNNING,
            attempt=2,
            max_attempts=4,
            worker="w",
            lane="l",
            batch="b",
        ),
    ]


def test_progress_comes_with_renewals_that_hold(told: Reports, voice: Voice) -> None:
    refs = [
        LeaseRef("q", "a", 7, HALF, "t", 2, "l", "b"),
        LeaseRef("q", "lost", 8, HALF),
        LeaseRef("q", "silent", 9),
        LeaseRef("q", "cancelled", 10, HALF),
    ]
    replies = [RenewReply.OK, RenewReply.LOST, RenewReply.OK, RenewReply.CANCEL]
    told.renewed(refs, replies, 5.0)
    assert [event.id for event in voice.told] == ["a", "cancelled"]
    assert voice.told[0] == JobEvent(
        kind=EventKind.PROGRESS,
        at=5.0,
        queue="q",
        id="a",
        task="t",
        state=JobState.RUNNING,
        attempt=2,
        progress=HALF,
        lane="l",
        batch="b",
    )


@pytest.mark.parametrize(
    ("outcome", "state", "fields", "kind", "delay"),
    [
        (Outcome.SUCCEED, JobState.SUCCEEDED, {}, "succeeded", None),
        (Outcome.FAIL, JobState.FAILED, {"code": "error"}, "failed", None),
        (Outcome.SKIP, JobState.SKIPPED, {"code": "skipped"}, "skipped", None),
        (Outcome.RETRY, JobState.DELAYED, {"delay": 3.0, "code": "error"}, "retrying", 3.0),
        (Outcome.RETRY, JobState.DELAYED, {"at": 12.0}, "retrying", 7.0),
        (Outcome.RETRY, JobState.QUEUED, {"at": 2.0}, "retrying", 0.0),
        (Outcome.SNOOZE, JobState.DELAYED, {"delay": 4.0}, "snoozed", 4.0),
        (Outcome.RELEASE, JobState.QUEUED, {}, "released", 0.0),
        (Outcome.RETRY, JobState.FAILED, {"delay": 3.0}, "failed", None),
        (Outcome.RELEASE, JobState.CANCELLED, {}, "cancelled", None),
    ],
)
def test_settlements(  # noqa: PLR0917 - as many as there are parameters
    told: Reports,
    voice: Voice,
    outcome: Outcome,
    state: JobState,
    fields: dict[str, Any],
    kind: str,
    delay: float | None,
) -> None:
    error = AttemptRecord(attempt=2, code="error", message="no")
    one = settlement(outcome, error=error, progress=HALF, **fields)
    told.settled([one], [SettleReply(state)], 5.0)
    progress, event = voice.told
    assert (progress.kind, progress.progress, progress.task) == (EventKind.PROGRESS, HALF, "t")
    assert event == JobEvent(
        kind=EventKind(kind),
        at=5.0,
        queue="q",
        id="a",
        task="t",
        state=state,
        attempt=2,
        code=fields.get("code", ""),
        message="no",
        delay=delay,
        lane="l",
        batch="b",
    )


def test_of_a_lost_lease_nothing_is_told(told: Reports, voice: Voice) -> None:
    told.settled([settlement(Outcome.SUCCEED, progress=HALF)], [SettleReply(None, lost=True)], 5.0)
    assert voice.told == []


def test_sweeps(told: Reports, voice: Voice) -> None:
    def change(event: Event, state: JobState | None) -> Change:
        return Change(
            queue="q", id="a", task="t", event=event, state=state, attempt=2, lane="l", batch="b"
        )

    changes = [
        change(Event.LAPSE, JobState.QUEUED),
        change(Event.LAPSE, JobState.FAILED),
        change(Event.LAPSE, JobState.CANCELLED),
        change(Event.DUE, JobState.QUEUED),
        change(Event.REMOVE, None),
    ]
    told.changed(changes, 5.0)
    assert [str(event.kind) for event in voice.told] == [
        "lease_ended",
        "lease_ended",
        "failed",
        "lease_ended",
        "cancelled",
        "removed",
    ]
    assert {(event.at, event.attempt, event.lane, event.batch) for event in voice.told} == {
        (5.0, 2, "l", "b")
    }


def test_edits(told: Reports, voice: Voice) -> None:
    refs = (REF, JobRef("q", "b"), JobRef("q", "c"))
    replies = [
        EditReply(EditStatus.DONE, JobState.CANCELLED, "t", "l", "b"),
        EditReply(EditStatus.REQUESTED, JobState.RUNNING),
        EditReply(EditStatus.NOT_FOUND),
    ]
    told.edited(Cancel(refs), replies, 5.0)
    assert [(str(event.kind), event.id) for event in voice.told] == [
        ("cancelled", "a"),
        ("cancel_requested", "b"),
    ]
    assert voice.told[0] == JobEvent(
        kind=EventKind.CANCELLED,
        at=5.0,
        queue="q",
        id="a",
        task="t",
        state=JobState.CANCELLED,
        lane="l",
        batch="b",
    )
    voice.told.clear()
    told.edited(Purge((REF,)), [EditReply(EditStatus.DONE)], 5.0)
    told.edited(Redrive((REF,)), [EditReply(EditStatus.DONE, JobState.QUEUED)], 5.0)
    told.edited(Redrive((REF,)), [EditReply(EditStatus.CONFLICT, JobState.QUEUED)], 5.0)
    told.edited(Pause(("q", "r")), [EditReply(EditStatus.DONE)] * 2, 5.0)
    told.edited(Resume(("q",)), [EditReply(EditStatus.DONE)], 5.0)
    assert [(str(event.kind), event.queue, event.code, event.worker) for event in voice.told] == [
        ("removed", "q", "", ""),
        ("released", "q", "retry", ""),
        ("queue_paused", "q", "", "me"),
        ("queue_paused", "r", "", "me"),
        ("queue_resumed", "q", "", "me"),
    ]


def test_changes_without_a_kind_are_not_told(told: Reports, voice: Voice) -> None:
    for edit in (Drain(("q",)), Configure(()), Reprioritise((REF,), 3)):
        told.edited(edit, [EditReply(EditStatus.DONE)], 5.0)
    assert voice.told == []


def test_ticks_and_brokers(told: Reports, voice: Voice) -> None:
    told.ticked("s", new())
    told.broker(EventKind.BROKER_STOPPED)
    tick, broker = voice.told
    assert (tick.kind, tick.schedule, tick.id, tick.batch) == (EventKind.TICK, "s", "a", "b")
    assert (broker.kind, broker.worker) == (EventKind.BROKER_STOPPED, "me")
