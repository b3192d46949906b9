"""How an attempt ends: from what a handler returned or raised to a settlement."""

from __future__ import annotations

import asyncio
import traceback
from typing import TYPE_CHECKING

from plugq.duration import seconds, timestamp
from plugq.envelope import Result, pack
from plugq.errors import Fail, PayloadError, Retry, Skip, Snooze
from plugq.job import AttemptRecord, Outcome
from plugq.protocols.serde import Serde, SerdeContext
from plugq.protocols.storage import Lease, Settlement
from plugq.worker.context import Cancelled, CancelReason

if TYPE_CHECKING:
    from plugq.retry import RetryTerms

#: Characters of a traceback that are kept: its end, which names the error.
TRACEBACK = 16_000
MESSAGE = 2_000

#: What the reason for which a handler was stopped makes of its attempt.
_CODES: dict[CancelReason, str] = {
    "cancel": "cancelled",
    "timeout": "timeout",
    "deadline": "deadline",
}


def succeeded(lease: Lease, value: object, serde: Serde, limit: int) -> Settlement:
    """Settle a handler that returned; a result that can not travel fails the job for good."""
    try:
        data = serde.encode(
            value,
            SerdeContext(task=lease.task, queue=lease.queue, id=lease.id),
        )
    except PayloadError as error:
        return failed(lease, error, code="result")
    if len(data) > limit:
        message = f"the result has {len(data):,} bytes, and the limit is {limit:,}"
        return failed(lease, PayloadError(message), code="result")
    return Settlement(
        queue=lease.queue,
        id=lease.id,
        token=lease.token,
        task=lease.task,
        attempt=lease.attempt,
        lane=lease.lane,
        batch=lease.batch,
        outcome=Outcome.SUCCEED,
        result=pack(Result(serde.content_type, data)),
    )


def failed(lease: Lease, error: BaseException, *, code: str = "error") -> Settlement:
    """Fail the job for good."""
    return Settlement(
        queue=lease.queue,
        id=lease.id,
        token=lease.token,
        task=lease.task,
        attempt=lease.attempt,
        lane=lease.lane,
        batch=lease.batch,
        outcome=Outcome.FAIL,
        code=code,
        error=_record(lease, error, code),
    )


def released(lease: Lease, *, delay: float = 0.0, code: str = "") -> Settlement:
    """Give the job back without an attempt spent."""
    return Settlement(
        queue=lease.queue,
        id=lease.id,
        token=lease.token,
        task=lease.task,
        attempt=lease.attempt,
        lane=lease.lane,
        batch=lease.batch,
        outcome=Outcome.RELEASE,
        delay=delay,
        code=code,
    )


def stopped(lease: Lease, terms: RetryTerms, reason: CancelReason) -> Settlement | None:
    """Settle an attempt that was stopped for that reason; ``None`` where the lease is lost."""
    if reason == "lease_lost":
        return None
    if reason == "shutdown":
        return released(lease)
    if reason == "timeout":
        return _retried(
            lease, terms, TimeoutError("the attempt took longer than its timeout"), reason
        )
    return failed(lease, asyncio.CancelledError(f"stopped by {reason}"), code=_CODES[reason])


def raised(
    lease: Lease,
    terms: RetryTerms,
    error: BaseException,
    reason: CancelReason | None,
) -> Settlement | None:
    """Settle a handler that raised; ``reason`` is why it had been asked to stop, if it had."""
    if reason is not None and isinstance(error, asyncio.CancelledError | Cancelled | TimeoutError):
        return stopped(lease, terms, reason)
    if isinstance(error, Skip):
        return _signalled(
            lease, Outcome.SKIP, code="skipped", error=_record(lease, error, "skipped")
        )
    if isinstance(error, Fail):
        return failed(lease, error, code=_writable(str(error.code)))
    try:
        if isinstance(error, Snooze):
            return _signalled(lease, Outcome.SNOOZE, delay=seconds(error.delay))
        if isinstance(error, Retry) and error.after is not None:
            return _retried(lease, terms, error, "retry", delay=seconds(error.after))
        if isinstance(error, Retry) and error.at is not None:
            return _retried(lease, terms, error, "retry", delay=0.0, at=timestamp(error.at))
    except (TypeError, ValueError) as wrong:
        return failed(lease, wrong)
    if not isinstance(error, Retry) and not terms.retries(error):
        return failed(lease, error)
    return _retried(lease, terms, error, "error")


def _retried(
    lease: Lease,
    terms: RetryTerms,
    error: BaseException,
    code: str,
    *,
    delay: float | None = None,
    at: float | None = None,
) -> Settlement:
    return _signalled(
        lease,
        Outcome.RETRY,
        at=at,
        delay=terms.delay(lease.attempt) if delay is None else delay,
        code=code,
        error=_record(lease, error, code),
    )


def _signalled(
    lease: Lease,
    outcome: Outcome,
    *,
    delay: float = 0.0,
    at: float | None = None,
    code: str = "",
    error: AttemptRecord | None = None,
) -> Settlement:
    return Settlement(
        queue=lease.queue,
        id=lease.id,
        token=lease.token,
        task=lease.task,
        attempt=lease.attempt,
        lane=lease.lane,
        batch=lease.batch,
        outcome=outcome,
        at=at,
        delay=delay,
        code=code,
        error=error,
    )


def _record(lease: Lease, error: BaseException, code: str) -> AttemptRecord:
    text = "".join(traceback.format_exception(error)) if error.__traceback__ else ""
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - a user's __str__ may do anything
        message = f"(its message can not be shown: {type(broken).__name__})"
    return AttemptRecord(
        attempt=lease.attempt,
        code=code,
        type=type(error).__qualname__,
        message=_writable(message[:MESSAGE]),
        traceback=_writable(text[-TRACEBACK:]),
    )


def _writable(text: str) -> str:
    """Return text that every storage can keep: what is no Unicode, as in some file names, escaped.

    A settlement that can not be written would be repeated for ever and hold up all the others.
    """
    return text.encode("utf-8", "backslashreplace").decode()


__all__ = ["failed", "raised", "released", "stopped", "succeeded"]
