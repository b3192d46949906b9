"""The housekeeping of the memory storage: what time makes due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.builtin.memory_attempts import stamped
from plugq.job import AttemptRecord, Event, JobState, state_after_lapse
from plugq.protocols.storage import Change, SweepReply

if TYPE_CHECKING:
    from plugq.builtin.memory_jobs import JobTable
    from plugq.builtin.memory_records import Record
    from plugq.protocols.storage import SweepRequest

_FAILED = JobState.FAILED
_CANCELLED = JobState.CANCELLED


def sweep(table: JobTable, request: SweepRequest, now: float) -> SweepReply:
    """Do what time has made due, at most ``limit`` of each kind."""
    changes: list[Change] = []
    limit = request.limit
    if request.end_leases:
        _end_lapsed(table, request, changes, now)
        _end_running_overdue(table, request, changes, now)
    for record in table.overdue.pop_due(now, limit):
        table.finish(record, _FAILED, now, "deadline")
        record.finished_at = record.deadline_at
        changes.append(_change(record, Event.DEADLINE))
    left = limit
    for queue in table.queues.values():
        due = table.promote(queue, now, left)
        left -= len(due)
        changes += [_change(record, Event.DUE) for record in due]
    _apply_retention(table, limit, changes, now)
    table.expire_keys(now, limit)
    table.claims.forget(now, limit)
    table.batches.forget(now, limit)
    more = _let_in(table, limit, now) >= limit
    more = table.budgets.expire(now, limit) >= limit or more
    next_in = 0.0 if more else _next(table, request, now)
    return SweepReply(changes=tuple(changes), next_in=next_in)


def _let_in(table: JobTable, limit: int, now: float) -> int:
    """Let in lanes and queues that are parked no longer, and return how many lanes."""
    count = 0
    for queue in table.queues.values():
        if queue.limited is not None:
            count += queue.let_in(now, limit - count)
    return count


def _end_lapsed(table: JobTable, request: SweepRequest, changes: list[Change], now: float) -> None:
    left = request.limit
    while left and (claim := table.claims.first()) is not None and claim.due <= now:
        for record in claim.standing():
            if left and record.lease_until <= now:
                left -= 1
                _crash(table, record, request.max_crashes, now)
                changes.append(_change(record, Event.LAPSE))


def _crash(table: JobTable, record: Record, max_crashes: int, now: float) -> None:
    record.crashes += 1
    state = state_after_lapse(
        cancel_requested=record.cancel_requested,
        attempts_left=record.attempt < record.job.max_attempts,
        crashes=record.crashes,
        max_crashes=max_crashes,
    )
    message = f"the lease of worker {record.worker!r} ended without a settlement"
    _remember(record, "crashed", "Crashed", message, now)
    record.tally.totals["lease_ended"] += 1
    table.end_lease(record)
    if state.final:
        table.finish(record, state, now, "crashed" if state is _FAILED else "")
    else:
        table.wait(record, state)


def _end_running_overdue(
    table: JobTable, request: SweepRequest, changes: list[Change], now: float
) -> None:
    for record in table.running_overdue.pop_due(now - request.deadline_grace, request.limit):
        message = f"worker {record.worker!r} still ran it when the deadline had passed"
        _remember(record, "deadline", "DeadlineExceeded", message, now)
        state = _CANCELLED if record.cancel_requested else _FAILED
        table.end_lease(record)
        table.finish(record, state, now, "deadline" if state is _FAILED else "")
        changes.append(_change(record, Event.DEADLINE))


def _remember(record: Record, code: str, kind: str, message: str, now: float) -> None:
    entry = AttemptRecord(attempt=record.attempt, code=code, type=kind, message=message)
    record.history += (stamped(entry, record, now),)


def _apply_retention(table: JobTable, limit: int, changes: list[Change], now: float) -> None:
    for record in table.expiry.pop_due(now, limit):
        removable_at = record.removable_at()
        if removable_at is not None and removable_at <= now:
            table.remove(record)
            changes.append(_change(record, Event.REMOVE))
        else:
            record.result = None
            table.schedule_expiry(record)


def _next(table: JobTable, request: SweepRequest, now: float) -> float | None:
    times = [queue.delayed.first() for queue in table.queues.values()]
    times += [table.overdue.first(), table.expiry.first(), table.next_key_expiry()]
    if request.end_leases:
        claim = table.claims.first()
        times.append(None if claim is None else claim.due)
        deadline = table.running_overdue.first()
        times.append(None if deadline is None else deadline + request.deadline_grace)
    soonest = min((time for time in times if time is not None), default=None)
    return None if soonest is None else max(0.0, soonest - now)


def _change(record: Record, event: Event) -> Change:
    job = record.job
    return Change(
        queue=job.queue,
        id=job.id,
        task=job.task,
        event=event,
        state=None if event is Event.REMOVE else record.state,
        sequence=record.sequence,
        attempt=record.attempt,
        code="crashed" if event is Event.LAPSE else record.code,
        lane=job.lane,
        batch=job.batch,
    )


__all__ = ["sweep"]
