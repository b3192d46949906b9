"""Outcomes: from what a handler returned or raised to a settlement."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any, ClassVar

import msgspec
import pytest

from plugq.envelope import open_result
from plugq.errors import Fail, PayloadError, Retry, Skip, Snooze
from plugq.job import Outcome
from plugq.protocols.serde import SerdeContext
from plugq.protocols.storage import Lease, Settlement
from plugq.retry import RetryTerms
from plugq.worker.context import Cancelled
from plugq.worker.outcome import failed, raised, released, stopped, succeeded

LEASE = Lease(queue="q", id="1", task="t", token=7, attempt=2, max_attempts=4, body=b"")
TERMS = RetryTerms(base=5.0, factor=4.0, jitter=0.0, give_up_on=("KeyError",))


class Json:
    api_version: ClassVar[int] = 1
    content_type: ClassVar[str] = "application/json"

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        try:
            return msgspec.json.encode(value)
        except TypeError as error:
            raise PayloadError(str(error)) from error

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        return msgspec.json.decode(data)


def settle(error: BaseException, reason: Any = None) -> Settlement:
    settlement = raised(LEASE, TERMS, error, reason)
    assert settlement is not None
    assert (settlement.queue, settlement.id, settlement.token) == ("q", "1", 7)
    return settlement


@pytest.mark.parametrize("value", [None, 0, False, "", [], {"a": 1}])
def test_every_value_is_a_result(value: object) -> None:
    settlement = succeeded(LEASE, value, Json(), 1000)
    assert settlement.outcome is Outcome.SUCCEED
    assert settlement.result is not None
    assert msgspec.json.decode(open_result(settlement.result).value) == value


def test_a_result_that_can_not_be_encoded_fails_the_job_for_good() -> None:
    settlement = succeeded(LEASE, object(), Json(), 1000)
    assert (settlement.outcome, settlement.code) == (Outcome.FAIL, "result")
    assert settlement.error is not None
    assert "object" in settlement.error.message


def test_a_result_over_the_limit_fails_the_job_for_good() -> None:
    assert succeeded(LEASE, "x" * 8, Json(), 10).outcome is Outcome.SUCCEED
    settlement = succeeded(LEASE, "x" * 9, Json(), 10)
    assert (settlement.outcome, settlement.code) == (Outcome.FAIL, "result")


def test_an_error_is_retried_after_the_delay_of_the_policy() -> None:
    settlement = settle(ValueError("no"))
    assert (settlement.outcome, settlement.delay) == (Outcome.RETRY, 20.0)
    assert settlement.error is not None
    assert (settlement.error.type, settlement.error.message) == ("ValueError", "no")
    assert (settlement.error.attempt, settlement.error.code) == (2, "error")


def test_the_history_keeps_the_traceback() -> None:
    try:
        raise ValueError("deep")  # noqa: TRY301
    except ValueError as error:
        settlement = settle(error)
    assert settlement.error is not None
    assert "test_the_history_keeps_the_traceback" in settlement.error.traceback


def test_an_error_whose_text_can_not_be_made_is_an_error_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    settlement = settle(Mute())
    assert settlement.outcome is Outcome.RETRY
    assert settlement.error is not None
    assert "RuntimeError" in settlement.error.message


def test_an_error_that_the_policy_gives_up_on_is_final() -> None:
    assert settle(KeyError("x")).outcome is Outcome.FAIL


def test_the_handler_may_end_the_job() -> None:
    settlement = settle(Fail("no such user", code="gone"))
    assert (settlement.outcome, settlement.code) == (Outcome.FAIL, "gone")
    assert settlement.error is not None
    assert settlement.error.message == "no such user"


def test_the_handler_may_skip_the_job() -> None:
    settlement = settle(Skip("weekend"))
    assert (settlement.outcome, settlement.code) == (Outcome.SKIP, "skipped")
    assert settlement.error is not None
    assert settlement.error.message == "weekend"


def test_the_handler_may_snooze_the_job() -> None:
    settlement = settle(Snooze("1m"))
    assert (settlement.outcome, settlement.delay, settlement.error) == (Outcome.SNOOZE, 60.0, None)


def test_the_handler_may_choose_when_to_retry() -> None:
    assert settle(Retry(after="2m")).delay == 120.0
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    assert settle(Retry(at=moment)).at == moment.timestamp()
    assert settle(Retry()).delay == 20.0
    assert {settle(signal).outcome for signal in (Retry(), Retry(after=1))} == {Outcome.RETRY}


def test_retry_is_not_subject_to_giving_up() -> None:
    terms = RetryTerms(give_up_on=("Exception",))
    settlement = raised(LEASE, terms, Retry(), None)
    assert settlement is not None
    assert settlement.outcome is Outcome.RETRY


@pytest.mark.parametrize(
    "signal",
    [Snooze("soon"), Retry(after="x"), Retry(at=datetime(2030, 1, 1))],  # noqa: DTZ001
)
def test_a_signal_that_can_not_be_fails_the_job_and_says_why(signal: Exception) -> None:
    settlement = settle(signal)
    assert settlement.outcome is Outcome.FAIL
    assert settlement.error is not None
    assert settlement.error.message


@pytest.mark.parametrize("error", [asyncio.CancelledError(), TimeoutError()])
def test_a_timeout_retries_by_policy(error: BaseException) -> None:
    settlement = settle(error, "timeout")
    assert (settlement.outcome, settlement.code, settlement.delay) == (
        Outcome.RETRY,
        "timeout",
        20.0,
    )


def test_a_deadline_and_a_cancel_are_final() -> None:
    assert settle(asyncio.CancelledError(), "deadline").code == "deadline"
    assert settle(Cancelled("cancel"), "cancel").code == "cancelled"
    assert settle(asyncio.CancelledError(), "cancel").outcome is Outcome.FAIL


def test_a_shutdown_gives_the_job_back() -> None:
    assert settle(asyncio.CancelledError(), "shutdown").outcome is Outcome.RELEASE
    assert settle(Cancelled("shutdown"), "shutdown").outcome is Outcome.RELEASE


def test_a_lost_lease_has_nothing_to_settle() -> None:
    assert raised(LEASE, TERMS, asyncio.CancelledError(), "lease_lost") is None
    assert stopped(LEASE, TERMS, "lease_lost") is None


def test_an_error_of_its_own_counts_although_the_handler_was_asked_to_stop() -> None:
    assert settle(ValueError("broken"), "shutdown").outcome is Outcome.RETRY


def test_a_cancellation_that_nobody_asked_for_is_an_error() -> None:
    assert settle(asyncio.CancelledError()).outcome is Outcome.RETRY


def test_release_and_failure() -> None:
    assert released(LEASE).outcome is Outcome.RELEASE
    assert released(LEASE, delay=2, code="unknown_task").code == "unknown_task"
    assert failed(LEASE, ValueError("x"), code="undecodable").code == "undecodable"
