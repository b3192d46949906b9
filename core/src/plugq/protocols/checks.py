"""What every storage refuses before it looks at anything: values that mean nothing to it.

A number that is not finite compares with no time, one beyond 64 bits fits no column, and text
with a lone surrogate has no encoding. Each function is called first thing in the verb that it is
named after, and raises for the whole call. Negative times are legal: they count as passed.
"""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

from plugq.errors import InvalidJob
from plugq.protocols.edits import Configure, JobEdit, Reprioritise, Retain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plugq.job import AttemptRecord, JobRecord, JobRef, Progress
    from plugq.protocols.edits import Edit, QueueSettings
    from plugq.protocols.storage import (
        ClaimRequest,
        Holder,
        LeaseRef,
        NewJob,
        RegisterChange,
        Settlement,
        SweepRequest,
    )

_LEAST, _MOST = -(2**63), 2**63 - 1
#: What a whole job brings must be less, since it is counted on.
_ROOM = 2**62
#: What the details of a progress may hold: as much as the wire carries.
_MOST_DETAIL = 2**64 - 1
_TIMES = ("delay", "run_at", "deadline_in", "deadline_at", "result_ttl", "failure_ttl", "id_ttl")
_TIMES_OF_RECORD = (
    "submitted_at",
    "ready_at",
    "started_at",
    "finished_at",
    "expires_at",
    "deadline_at",
    "lease_until",
)
_COUNTS_OF_RECORD = (
    "sequence",
    "generation",
    "priority",
    "attempt",
    "max_attempts",
    "crashes",
    "token",
)


def check_submit(jobs: Sequence[NewJob]) -> None:
    """Refuse submissions that no storage can keep.

    Raises:
        InvalidJob: one of them has such a value; the message names it.
    """
    for job in jobs:
        unique = job.unique
        # One sum finds what no single number may be; which one it was is asked only then.
        try:
            sound = isfinite(
                job.delay
                + job.id_ttl
                + (job.run_at or 0.0)
                + (job.deadline_in or 0.0)
                + (job.deadline_at or 0.0)
                + (job.result_ttl or 0.0)
                + (job.failure_ttl or 0.0)
                + (job.not_after or 0.0)
                + (0.0 if unique is None else unique.ttl)
            )
        except OverflowError:
            sound = False
        if not sound:
            for name in (*_TIMES, "not_after"):
                _time(name, getattr(job, name))
            _time("unique.ttl", None if unique is None else unique.ttl)
        _whole("priority", job.priority)
        _whole("max_attempts", job.max_attempts)
        key = "" if unique is None else unique.key
        _text(f"{job.id}{job.queue}{job.task}{job.lane}{job.batch}{job.origin}{key}")


def check_restore(jobs: Sequence[JobRecord]) -> None:
    """Refuse whole jobs that no storage can keep.

    Raises:
        InvalidJob: one of them has such a value; the message names it.
    """
    for job in jobs:
        for name in _TIMES_OF_RECORD:
            _time(name, getattr(job, name))
        for name in _COUNTS_OF_RECORD:
            value = getattr(job, name)
            _whole(name, value)
            if value is not None and value >= _ROOM:
                message = f"{name}: {value} leaves no room to count on; give a smaller number"
                raise InvalidJob(message)
        _text(f"{job.id}{job.queue}{job.task}{job.lane}{job.batch}{job.worker}{job.code}")
        _progress(job.progress)
        for attempt in job.history:
            _attempt(attempt)


def check_claim(request: ClaimRequest | None) -> None:
    """Refuse a claim that no storage can serve.

    Raises:
        InvalidJob: it has such a value; the message names it.
    """
    if request is None:
        return
    _time("lease", request.lease)
    _whole("number", request.number)
    _whole("limit", request.limit)
    _text(f"{request.worker}{request.peer}{''.join(request.queues)}")
    for grant in request.grants:
        _time("at", grant.at)
        for budget in grant.budgets:
            _time("ttl", budget.ttl)
            _time("retry_at", budget.retry_at)


def check_settle(settlements: Sequence[Settlement]) -> None:
    """Refuse settlements that no storage can keep.

    Raises:
        InvalidJob: one of them has such a value; the message names it.
    """
    for settlement in settlements:
        _time("delay", settlement.delay)
        _time("at", settlement.at)
        _whole("token", settlement.token)
        _text(f"{settlement.id}{settlement.queue}{settlement.code}")
        if settlement.error is not None:
            _attempt(settlement.error)
        _progress(settlement.progress)


def check_renew(leases: Sequence[LeaseRef], lease: float, holder: Holder | None) -> None:
    """Refuse a renewal that no storage can make.

    Raises:
        InvalidJob: it has such a value; the message names it.
    """
    _time("lease", lease)
    for ref in leases:
        _whole("token", ref.token)
        _text(f"{ref.id}{ref.queue}")
        _progress(ref.progress)
    if holder is not None:
        _whole("number", holder.number)
        _text(holder.worker)


def check_sweep(request: SweepRequest) -> None:
    """Refuse a sweep that no storage can make.

    Raises:
        InvalidJob: it has such a value; the message names it.
    """
    _time("deadline_grace", request.deadline_grace)
    _whole("limit", request.limit)
    _whole("max_crashes", request.max_crashes)


def check_edit(edit: Edit) -> None:
    """Refuse an edit that no storage can make.

    Raises:
        InvalidJob: it has such a value; the message names it.
    """
    if isinstance(edit, JobEdit):
        _refs(edit.refs)
        for sequence in edit.sequences:
            _whole("sequences", sequence)
        if isinstance(edit, Retain):
            _time("ttl", edit.ttl)
        elif isinstance(edit, Reprioritise):
            _whole("priority", edit.priority)
    elif isinstance(edit, Configure):
        for settings in edit.settings:
            _settings(settings)
    else:
        _text("".join(edit.queues))


def check_swap(changes: Sequence[RegisterChange]) -> None:
    """Refuse changes of registers that no storage can make.

    Raises:
        InvalidJob: one of them has such a value; the message names it.
    """
    for change in changes:
        _time("ttl", change.ttl)
        _whole("expect", change.expect)
        _text(change.key)


def _settings(settings: QueueSettings) -> None:
    for name in ("max_running", "lane_max_running", "max_length"):
        _whole(name, getattr(settings, name))
    if settings.lane_max_running < 1:
        message = "lane_max_running: no job of a lane could ever start; give 1 or more"
        raise InvalidJob(message)
    _text(settings.queue)


def _refs(refs: Iterable[JobRef]) -> None:
    for ref in refs:
        _text(f"{ref.id}{ref.queue}")


def _attempt(attempt: AttemptRecord) -> None:
    _whole("attempt", attempt.attempt)
    _time("started_at", attempt.started_at)
    _time("ended_at", attempt.ended_at)
    _text(
        f"{attempt.code}{attempt.type}{attempt.message}{attempt.traceback}{attempt.worker}",
    )


def _progress(progress: Progress | None) -> None:
    if progress is None:
        return
    _text(progress.message)
    for name, value in (progress.details or {}).items():
        _text(name)
        if isinstance(value, str):
            _text(value)
        elif isinstance(value, int) and not _LEAST <= value <= _MOST_DETAIL:
            message = f"progress: {value} does not fit into 64 bits; give a smaller number"
            raise InvalidJob(message)


def _time(name: str, value: float | None) -> None:
    try:
        sound = value is None or isfinite(value)
    except OverflowError:
        sound = False
    if not sound:
        message = f"{name}: {value!r} is no time; give a finite number of seconds"
        raise InvalidJob(message)


def _whole(name: str, value: int | None) -> None:
    if value is not None and not _LEAST <= value <= _MOST:
        message = f"{name}: {value} does not fit into 64 bits; give a smaller number"
        raise InvalidJob(message)


def _text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"a text can not be written as UTF-8 ({error.reason}); replace that character"
            raise InvalidJob(message) from None


__all__ = [
    "check_claim",
    "check_edit",
    "check_renew",
    "check_restore",
    "check_settle",
    "check_submit",
    "check_swap",
    "check_sweep",
]
