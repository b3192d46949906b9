"""How the memory storage's jobs are run: claim, settle and renew."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from plugq.allowance import examined
from plugq.builtin.memory_budgets import Budgeting
from plugq.builtin.memory_claims import Claim
from plugq.builtin.memory_records import lease_of, own_progress
from plugq.job import FINAL, GIVES_ATTEMPT_BACK, JobState, Outcome, state_after_settlement
from plugq.protocols.storage import ClaimReply, RenewReply, SettleReply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.builtin.memory_jobs import JobTable
    from plugq.builtin.memory_queue import Queue
    from plugq.builtin.memory_records import Record
    from plugq.job import AttemptRecord
    from plugq.protocols.storage import ClaimRequest, Holder, Lease, LeaseRef, Settlement

_DELAYED = JobState.DELAYED
_RUNNING = JobState.RUNNING
_FAILED = JobState.FAILED
_SUCCEED = Outcome.SUCCEED

_LOST = SettleReply(None, lost=True)
_SETTLED = {state: SettleReply(state) for state in JobState}
_COUNTED = {
    Outcome.RETRY: "retried",
    Outcome.SNOOZE: "snoozed",
    Outcome.RELEASE: "released",
}
#: Outcomes of attempts whose time counts as the run time of their task.
_RAN = frozenset({Outcome.SUCCEED, Outcome.FAIL, Outcome.RETRY, Outcome.SKIP})


def claim(table: JobTable, request: ClaimRequest, now: float) -> ClaimReply:
    """Grant leases, or show again those that this claim was granted."""
    claims = table.claims
    worker = claims.worker(request.worker)
    repeated = worker.claims.get(request.number)
    if repeated is not None and request.limit > 0:
        leases = tuple([lease_of(record, now) for record in repeated.standing()])
        return ClaimReply(leases=leases, next_in=_next_due(table, request, now), now=now)
    claims.forget(now)
    granted: list[Lease] = []
    until = now + request.lease
    made = Claim(worker, request.number, request.peer, until)
    budgeting = Budgeting(table.budgets, request, now)
    for name in dict.fromkeys(request.queues):
        queue = table.queues.get(name)
        if queue is not None and not queue.paused:
            left = request.limit - len(granted)
            if queue.limited is not None:
                queue.let_in(now, examined(left))
            if left > 0:
                granted += _grant(table, queue, made, left, budgeting)
    if granted:
        # A claim that was granted nothing is not kept: a long poll asks again under its number.
        claims.enter(made, forget_at=until + request.lease)
    if len(granted) < request.limit and request.peer:
        table.signals.idle(request.peer, [table.queue(name) for name in request.queues])
    return ClaimReply(
        leases=tuple(granted),
        next_in=_next_due(table, request, now),
        wants=tuple(budgeting.wants),
        spent=tuple(budgeting.spent),
        now=now,
    )


def _grant(
    table: JobTable, queue: Queue, made: Claim, most: int, budgeting: Budgeting
) -> list[Lease]:
    now = budgeting.now
    table.promote(queue, now, 2 * most + 100)
    taken = queue.take(most, now) if queue.limited is None else budgeting.pick(queue, most)
    if not taken:
        return []
    # The clock keeps tokens rising where a store is begun anew in a namespace used before.
    token = max(queue.token + 1, int(now * 1_000_000))
    queue.token = token + len(taken) - 1
    for number, record in enumerate(taken, token):
        table.start(record, number, now)
        made.grant(record, made.due)
    return [lease_of(record, now) for record in taken]


def _next_due(table: JobTable, request: ClaimRequest, now: float) -> float | None:
    soonest: float | None = None
    for name in request.queues:
        queue = table.queues.get(name)
        if queue is not None and not queue.paused:
            at = queue.delayed.first()
            if at is not None and (soonest is None or at < soonest):
                soonest = at
    return None if soonest is None else max(0.0, soonest - now)


def settle(table: JobTable, settlement: Settlement, now: float) -> SettleReply:
    """End the attempt that the token stands for, if it still runs."""
    record = table.find(settlement.queue, settlement.id)
    if record is None or record.token != settlement.token or record.state is not _RUNNING:
        return _LOST
    outcome = settlement.outcome
    state = state_after_settlement(
        outcome,
        cancel_requested=record.cancel_requested,
        attempts_left=record.attempt < record.job.max_attempts,
        delay=settlement.delay,
    )
    if settlement.progress is not None:
        record.progress = own_progress(settlement.progress)
    if outcome is _SUCCEED:
        record.result = settlement.result
    else:
        _note(record, settlement, now)
    if outcome in _RAN and record.started_at is not None:
        tally = record.tally
        tally.run_seconds += now - record.started_at
        tally.run_count += 1
    table.end_lease(record)
    if state in FINAL:
        code = settlement.code or ("error" if state is _FAILED else "")
        table.finish(record, state, now, code)
        return _SETTLED[state]
    record.tally.totals[_COUNTED[outcome]] += 1
    if state is _DELAYED:
        at = settlement.at if outcome is Outcome.RETRY else None
        record.ready_at = max(now, now + settlement.delay if at is None else at)
    table.wait(record, state)
    return _SETTLED[state]


def _note(record: Record, settlement: Settlement, now: float) -> None:
    """Keep what an attempt that did not succeed leaves behind."""
    if settlement.error is not None:
        record.history += (stamped(settlement.error, record, now),)
    if settlement.outcome in GIVES_ATTEMPT_BACK:
        record.attempt -= 1
    if settlement.outcome is not Outcome.RELEASE:
        record.unknown = 0
    elif settlement.code == "unknown_task":
        if not record.unknown:
            record.unknown_since = now
        record.unknown += 1


def stamped(error: AttemptRecord, record: Record, now: float) -> AttemptRecord:
    """Return an entry of the history with the attempt, the worker and the times filled in."""
    return msgspec.structs.replace(
        error,
        attempt=record.attempt,
        worker=record.worker,
        started_at=now if record.started_at is None else record.started_at,
        ended_at=now,
    )


def renew(
    table: JobTable,
    leases: Sequence[LeaseRef],
    lease: float,
    holder: Holder | None,
    now: float,
) -> list[RenewReply]:
    """Extend leases, then release those of the holder that it does not know of."""
    replies: list[RenewReply] = []
    until = now + lease
    for ref in leases:
        record = table.find(ref.queue, ref.id)
        if record is None or record.token != ref.token or record.claim is None:
            replies.append(RenewReply.LOST)
            continue
        record.lease_until = until
        if until < record.claim.due:
            table.claims.schedule(record.claim, until)
        if ref.progress is not None:
            record.progress = own_progress(ref.progress)
        replies.append(RenewReply.CANCEL if record.cancel_requested else RenewReply.OK)
    if holder is not None:
        _release_unlisted(table, leases, holder, now)
    return replies


def _release_unlisted(
    table: JobTable, leases: Sequence[LeaseRef], holder: Holder, now: float
) -> None:
    listed = {(ref.queue, ref.id, ref.token) for ref in leases}
    for made in table.claims.live(holder.worker, holder.number):
        for record in made.standing():
            job = record.job
            if (job.queue, job.id, record.token) in listed:
                continue
            state = state_after_settlement(
                Outcome.RELEASE,
                cancel_requested=record.cancel_requested,
                attempts_left=True,
                delay=0.0,
            )
            record.attempt -= 1
            table.end_lease(record)
            if state.final:
                table.finish(record, state, now)
            else:
                record.tally.totals["released"] += 1
                table.wait(record, state)


__all__ = ["claim", "renew", "settle", "stamped"]
