"""What a handler can learn and say about its own job."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

import msgspec

from plugq.errors import Fail
from plugq.job import Progress

if TYPE_CHECKING:
    from datetime import datetime

    from plugq.envelope import Envelope
    from plugq.protocols.storage import Lease

from plugq.duration import moment

logger: logging.Logger = logging.getLogger(__name__)

CancelReason = Literal["cancel", "timeout", "deadline", "shutdown", "lease_lost"]


class CurrentJob:
    """The job that a handler runs, as it was when it was claimed."""

    __slots__ = ("_envelope", "_lease")

    def __init__(self, lease: Lease, envelope: Envelope) -> None:
        self._lease = lease
        self._envelope = envelope

    @property
    def id(self) -> str:
        """The id of the job, unique in its queue."""
        return self._lease.id

    @property
    def queue(self) -> str:
        """The queue in which the job waited."""
        return self._lease.queue

    @property
    def task(self) -> str:
        """The name of the task."""
        return self._lease.task

    @property
    def priority(self) -> int:
        """The priority; higher runs first."""
        return self._lease.priority

    @property
    def lane(self) -> str | None:
        """The lane, if the job has one."""
        return self._lease.lane

    @property
    def batch(self) -> str | None:
        """The batch, if the job belongs to one."""
        return self._lease.batch

    @property
    def max_attempts(self) -> int:
        """How many executions there may be in all."""
        return self._lease.max_attempts

    @property
    def headers(self) -> dict[str, str]:
        """The headers given at submission."""
        return dict(self._envelope.headers)

    @property
    def submitted_at(self) -> datetime:
        """When the job was accepted, by the storage's clock."""
        return moment(self._lease.submitted_at)


class JobContext:
    """The running attempt, as :func:`current` gives it to its handler."""

    __slots__ = ("_job", "_lease", "_progress", "_reason")

    def __init__(self, lease: Lease, envelope: Envelope) -> None:
        self._lease = lease
        self._job = CurrentJob(lease, envelope)
        self._reason: CancelReason | None = None
        self._progress: Progress | None = None

    @property
    def job(self) -> CurrentJob:
        """The job itself."""
        return self._job

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._lease.attempt

    @property
    def token(self) -> int:
        """A number that rises with every lease of the queue: a fence for one's own side effects."""
        return self._lease.token

    @property
    def cancelled(self) -> bool:
        """Whether the handler should stop; a thread has to look, a coroutine is cancelled."""
        return self._reason is not None

    @property
    def cancel_reason(self) -> CancelReason | None:
        """Why the handler should stop."""
        return self._reason

    def raise_if_cancelled(self) -> None:
        """End a handler in a thread that should stop.

        Raises:
            Cancelled: it should; let it through.
        """
        if self._reason is not None:
            raise Cancelled(self._reason)

    def progress(
        self,
        current: float,
        total: float = 100.0,
        message: str = "",
        *,
        details: dict[str, str | int | float | bool | None] | None = None,
    ) -> None:
        """Say how far the job is; cheap, coalesced, and never raises.

        It travels with the next renewal or settlement.
        """
        self._progress = _portable(current, total, message, details)

    def take_progress(self) -> Progress | None:
        """Return what the handler has said since this was asked last."""
        said, self._progress = self._progress, None
        return said

    def keep_progress(self, said: Progress | None) -> None:
        """Take back what could not be delivered, unless the handler has said something since."""
        if self._progress is None:
            self._progress = said


def _portable(current: object, total: object, message: object, details: object) -> Progress | None:
    """Return progress that every storage can keep, without details or at all where it can not.

    What can not be written would hold up the renewals and settlements that it travels with.
    """
    for some in (details, None):
        said = {"current": current, "total": total, "message": message, "details": some}
        try:
            # Written and read back: checked, and out of reach of whatever the handler does next.
            return _progress.decode(msgspec.msgpack.encode(Progress(**said)))  # type: ignore[arg-type]
        except Exception:
            logger.warning("progress can not be kept: %r", said, exc_info=True)
    return None


class Cancelled(Fail):
    """Raised inside a handler in a thread by ``raise_if_cancelled``."""

    def __init__(self, reason: CancelReason) -> None:
        super().__init__(f"the handler was asked to stop: {reason}", code=reason)


_progress = msgspec.msgpack.Decoder(Progress)
_current: ContextVar[JobContext] = ContextVar("plugq_job")


def current() -> JobContext:
    """Return the context of the job that the calling handler runs.

    Works in every executor and in ``asyncio.to_thread``; a thread of one's own needs a copy of
    the context.

    Raises:
        RuntimeError: the caller is no handler.
    """
    try:
        return _current.get()
    except LookupError:
        message = (
            "plugq.current() works inside a handler; in a thread of your own run it with "
            "contextvars.copy_context()"
        )
        raise RuntimeError(message) from None


__all__ = ["CancelReason", "Cancelled", "CurrentJob", "JobContext", "current"]
