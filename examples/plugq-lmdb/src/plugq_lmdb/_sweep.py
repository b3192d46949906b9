"""The housekeeping: what time makes due."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from plugq.job import AttemptRecord, Event, JobState, state_after_lapse
from plugq.protocols.storage import Change, SweepReply
from plugq_lmdb import _keys
from plugq_lmdb._claims import let_in
from plugq_lmdb._keys import moment, number, short
from plugq_lmdb._records import Mail
from plugq_lmdb._transaction import EXPIRING

if TYPE_CHECKING:
    from plugq.protocols.storage import SweepRequest
    from plugq_lmdb._records import Job
    from plugq_lmdb._transaction import Transaction

#: Seconds after which a peer that fetches nothing is taken to be gone.
_GONE_AFTER = 600.0


def sweep(tx: Transaction, request: SweepRequest) -> SweepReply:
    """Do what time has made due, at most ``limit`` of each kind."""
    limit = request.limit
    changes: list[Change] = []
    if request.end_leases:
        changes += [_crash(tx, job, request) for job in tx.due(_keys.LAPSE, tx.now, limit)]
        since = tx.now - request.deadline_grace
        changes += [_end(tx, job) for job in tx.due(_keys.RUNNING_DEADLINE, since, limit)]
    for job in tx.due(_keys.WAITING_DEADLINE, tx.now, limit):
        tx.lift(job)
        tx.finish(job, JobState.FAILED, "deadline")
        # Only now, so that it lingers from here on for those who wait.
        job.finished_at = job.deadline_at
        changes.append(_change(job, Event.DEADLINE))
    queues = tx.queues()
    due: list[Job] = []
    for queue in queues:
        due += tx.promote(queue, limit - len(due))
    changes += [_change(job, Event.DUE) for job in due]
    changes += _apply_retention(tx, limit)
    more = _expire(tx, limit)
    for queue in queues:
        more = let_in(tx, queue, limit) >= limit or more
    tx.settle_lanes()
    for queue in queues:
        tx.stir(queue)
    return SweepReply(changes=tuple(changes), next_in=0.0 if more else _next_in(tx, request))


def _crash(tx: Transaction, job: Job, request: SweepRequest) -> Change:
    job.crashes += 1
    state = state_after_lapse(
        cancel_requested=job.cancel_requested,
        attempts_left=job.attempt < job.max_attempts,
        crashes=job.crashes,
        max_crashes=request.max_crashes,
    )
    message = f"the lease of worker {job.worker!r} ended without a settlement"
    error = AttemptRecord(attempt=0, code="crashed", type="Crashed", message=message)
    job.remember(error, tx.now)
    tx.tally(job).totals["lease_ended"] += 1
    tx.lift(job)
    if state.final:
        tx.finish(job, state, "crashed" if state is JobState.FAILED else "")
    else:
        tx.place(job, state)
    return _change(job, Event.LAPSE)


def _end(tx: Transaction, job: Job) -> Change:
    """End a running job whose holder has not done so at its deadline."""
    message = f"worker {job.worker!r} still ran it when the deadline had passed"
    error = AttemptRecord(attempt=0, code="deadline", type="DeadlineExceeded", message=message)
    job.remember(error, tx.now)
    state = JobState.CANCELLED if job.cancel_requested else JobState.FAILED
    tx.lift(job)
    tx.finish(job, state, "deadline" if state is JobState.FAILED else "")
    return _change(job, Event.DEADLINE)


def _apply_retention(tx: Transaction, limit: int) -> list[Change]:
    changes = []
    for job in tx.due(_keys.RETENTION, tx.now, limit):
        removable_at = job.removable_at()
        if removable_at is not None and removable_at <= tx.now:
            tx.remove(job)
            changes.append(_change(job, Event.REMOVE))
        else:
            tx.lift(job)
            tx.txn.delete(_keys.RESULT + number(job.sequence))
            job.has_result = False
            tx.place(job, job.state)
    return changes


def _expire(tx: Transaction, limit: int) -> bool:
    """Drop what has outlived its time and peers that are gone; return whether more is left."""
    more = False
    for table in (_keys.EXPIRY, _keys.QUIET_EXPIRY):
        due = list(islice(tx.keys(table, b""), limit))
        due = [key for key in due if _keys.moment_in(key, 0) <= tx.now]
        for key in due:
            kept = key[len(moment(0.0)) :]
            tx.txn.delete(table + key)
            if tx.held(kept, EXPIRING[kept[:1]]) is not None:
                tx.keep(kept, None)
        more = more or len(due) >= limit
    for key in list(tx.keys(_keys.PEER)):
        mail = tx.held(_keys.PEER + key, Mail)
        if mail is not None and mail.since and mail.since <= tx.now - _GONE_AFTER:
            tx.busy(mail)
            tx.keep(_keys.PEER + key, None)
    return more


def _next_in(tx: Transaction, request: SweepRequest) -> float | None:
    tables = [_keys.DELAYED + short(queue.number) for queue in tx.queues()]
    tables += [_keys.WAITING_DEADLINE, _keys.RETENTION, _keys.EXPIRY]
    times = [tx.next_at(table) for table in tables]
    if request.end_leases:
        times.append(tx.next_at(_keys.LAPSE))
        deadline = tx.next_at(_keys.RUNNING_DEADLINE)
        times.append(None if deadline is None else deadline + request.deadline_grace)
    soonest = min((at for at in times if at is not None), default=None)
    return None if soonest is None else max(0.0, soonest - tx.now)


def _change(job: Job, event: Event) -> Change:
    return Change(
        queue=job.queue,
        id=job.id,
        task=job.task,
        event=event,
        state=None if event is Event.REMOVE else job.state,
        sequence=job.sequence,
        attempt=job.attempt,
        code="crashed" if event is Event.LAPSE else job.code,
        lane=job.lane,
        batch=job.batch,
    )
