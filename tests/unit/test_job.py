"""The life of a job: the table as the design has it, written down a second time on purpose."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from plugq.job import (
    FINAL,
    GIVES_ATTEMPT_BACK,
    TRANSITIONS,
    WAITING,
    AttemptRecord,
    Event,
    JobRecord,
    JobState,
    Outcome,
    Progress,
    allowed,
    state_after_lapse,
    state_after_settlement,
)

D, Q, R = JobState.DELAYED, JobState.QUEUED, JobState.RUNNING
S, F, C, K = JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED

TABLE: dict[tuple[JobState | None, str], set[JobState | None]] = {
    (None, "submit"): {Q, D},
    (C, "submit"): {Q, D},
    (D, "due"): {Q},
    (D, "cancel"): {C},
    (D, "deadline"): {F},
    (Q, "claim"): {R},
    (Q, "cancel"): {C},
    (Q, "deadline"): {F},
    (R, "succeed"): {S},
    (R, "retry"): {D, F, C},
    (R, "fail"): {F, C},
    (R, "snooze"): {D, C},
    (R, "skip"): {K, C},
    (R, "release"): {Q, D, C},
    (R, "lapse"): {Q, F, C},
    (R, "cancel"): {R},
    (R, "deadline"): {F, C},
    (F, "redrive"): {Q},
    (C, "redrive"): {Q},
    (K, "redrive"): {Q},
    (S, "remove"): {None},
    (F, "remove"): {None},
    (C, "remove"): {None},
    (K, "remove"): {None},
}


def test_the_table_of_moves_is_that_of_the_design() -> None:
    assert {(state, str(event)): set(after) for (state, event), after in TRANSITIONS.items()} == (
        TABLE
    )


def test_whatever_is_not_in_the_table_is_not_allowed() -> None:
    for state, event in itertools.product([None, *JobState], Event):
        assert allowed(state, event) is ((state, str(event)) in TABLE)


def test_states_are_waiting_running_or_final() -> None:
    assert {D, Q} == WAITING
    assert {S, F, C, K} == FINAL
    assert [state for state in JobState if not state.final] == [D, Q, R]
    assert {Outcome.SNOOZE, Outcome.RELEASE} == GIVES_ATTEMPT_BACK


@pytest.mark.parametrize(
    ("outcome", "left", "delay", "after"),
    [
        (Outcome.SUCCEED, True, 0.0, S),
        (Outcome.SUCCEED, False, 0.0, S),
        (Outcome.RETRY, True, 0.0, D),
        (Outcome.RETRY, True, 5.0, D),
        (Outcome.RETRY, False, 5.0, F),
        (Outcome.FAIL, True, 0.0, F),
        (Outcome.FAIL, False, 0.0, F),
        (Outcome.SNOOZE, True, 0.0, D),
        (Outcome.SNOOZE, False, 5.0, D),
        (Outcome.SKIP, True, 0.0, K),
        (Outcome.SKIP, False, 0.0, K),
        (Outcome.RELEASE, True, 0.0, Q),
        (Outcome.RELEASE, False, 0.0, Q),
        (Outcome.RELEASE, False, 0.001, D),
    ],
)
def test_where_a_settlement_leads(
    outcome: Outcome, left: bool, delay: float, after: JobState
) -> None:
    def settle(*, cancel_requested: bool) -> JobState:
        return state_after_settlement(
            outcome,
            cancel_requested=cancel_requested,
            attempts_left=left,
            delay=delay,
        )

    assert settle(cancel_requested=False) is after
    assert settle(cancel_requested=True) is (S if outcome is Outcome.SUCCEED else C)


@pytest.mark.parametrize(
    ("left", "crashes", "after"),
    [(True, 1, Q), (True, 2, Q), (True, 3, F), (True, 4, F), (False, 1, F), (False, 3, F)],
)
def test_where_a_lapsed_lease_leads(left: bool, crashes: int, after: JobState) -> None:
    def lapse(*, cancel_requested: bool) -> JobState:
        return state_after_lapse(
            cancel_requested=cancel_requested,
            attempts_left=left,
            crashes=crashes,
            max_crashes=3,
        )

    assert lapse(cancel_requested=False) is after
    assert lapse(cancel_requested=True) is C


def test_records_begin_empty() -> None:
    record = JobRecord(queue="q", id="i", task="t", state=Q, sequence=1)
    assert msgspec.structs.asdict(record) == {
        "queue": "q",
        "id": "i",
        "task": "t",
        "state": Q,
        "sequence": 1,
        "generation": 0,
        "submission": b"",
        "priority": 0,
        "lane": None,
        "batch": None,
        "attempt": 0,
        "max_attempts": 1,
        "crashes": 0,
        "token": 0,
        "worker": "",
        "submitted_at": 0.0,
        "ready_at": 0.0,
        "started_at": None,
        "finished_at": None,
        "expires_at": None,
        "deadline_at": None,
        "lease_until": None,
        "cancel_requested": False,
        "progress": None,
        "code": "",
        "history": (),
        "body": None,
        "result": None,
        "result_expired": False,
    }
    attempt = AttemptRecord(attempt=1, code="error")
    assert msgspec.structs.astuple(attempt) == (1, "error", "", "", "", "", 0.0, 0.0)
    assert Progress(current=3).total == 100.0
    assert record.error is None
    failed = msgspec.structs.replace(record, history=(attempt, AttemptRecord(attempt=2, code="x")))
    assert failed.error == AttemptRecord(attempt=2, code="x")
