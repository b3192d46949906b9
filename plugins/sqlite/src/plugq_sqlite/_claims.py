"""Claims and the renewal of what they granted."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from plugq.allowance import examined
from plugq.job import JobState, Outcome, state_after_settlement
from plugq.protocols.storage import ClaimReply, Lease, RenewReply
from plugq_sqlite._budgets import Budgeting, let_in
from plugq_sqlite._lanes import HEADS
from plugq_sqlite._moves import Finish, Requeue, finish, promote, requeue
from plugq_sqlite._rows import (
    CANCELLED,
    COLUMNS,
    OVERDUE,
    QUEUED,
    RELEASED,
    RUNNING,
    STARTED,
    UNTIL_STARTED,
    Row,
    packed,
)
from plugq_sqlite._statements import join_rows, numbers
from plugq_sqlite._workers import claims_of, remember

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plugq.allowance import Limited
    from plugq.protocols.storage import ClaimRequest, Holder, LeaseRef
    from plugq_sqlite._transaction import Queue, Transaction

_LEASABLE = """
    job.seq, job.lane, job.deadline_at, job.id, job.task, job.attempt, job.max_attempts,
    job.generation, job.nprio, job.batch, job.crashes, job.submitted_at, job.unknown,
    job.unknown_since, job.unique_mode, job.unique_key, body.data
"""
_READY_ORDER = """
    WHERE job.queue = ? AND job.state = 1 AND job.eligible = 1
    ORDER BY job.nprio, job.ready_at, job.seq LIMIT ?
"""
_READY = f"""
    SELECT {_LEASABLE} FROM job INDEXED BY job_ready CROSS JOIN body ON body.seq = job.seq
    {_READY_ORDER}
"""
_LOOK = f"""
    SELECT job.seq, job.lane, job.deadline_at FROM job INDEXED BY job_ready {_READY_ORDER}
"""
_PICKED = f"""
    SELECT {_LEASABLE} FROM json_each(?) AS s CROSS JOIN job ON job.seq = s.value
    CROSS JOIN body ON body.seq = job.seq ORDER BY s.key
"""
_GRANT = """
    UPDATE job SET state = 2, token = ? + s.key, attempt = attempt + 1, started_at = ?,
        lease_until = ?, worker = ?, number = ?
    FROM json_each(?) AS s WHERE job.seq = s.value
"""
_STANDING = """
    SELECT job.seq, job.id, job.task, job.attempt, job.max_attempts, job.generation, job.nprio,
        job.lane, job.batch, job.crashes, job.submitted_at, job.deadline_at, job.unknown,
        job.unknown_since, body.data, job.queue, job.token, job.started_at
    FROM job INDEXED BY job_lease CROSS JOIN body ON body.seq = job.seq
    WHERE job.namespace = ? AND job.worker = ? AND job.state = 2 AND job.number = ?
    ORDER BY job.token
"""
_LEASED = (
    "WITH s (k, queue, id, token) AS (VALUES ?) "
    "SELECT s.k, job.seq, job.cancel FROM s CROSS JOIN job INDEXED BY job_id "
    "ON job.queue = s.queue AND job.id = s.id WHERE job.token = s.token AND job.state = 2"
)
_HELD = (
    f"SELECT {COLUMNS} FROM job INDEXED BY job_lease "
    "WHERE namespace = ? AND worker = ? AND state = 2 AND number <= ?"
)


def claim(tx: Transaction, request: ClaimRequest) -> ClaimReply:
    """Grant leases, or return those that the same claim was granted before."""
    known = claims_of(tx, request.worker)
    if known.has(request.number) and request.limit > 0:
        leases = _standing(tx, request)
        return ClaimReply(leases=leases, next_in=_next_due(tx, request), now=tx.now)
    tx.lanes.repair()
    budgeting = Budgeting(tx, request)
    granted: list[Lease] = []
    due: list[float | None] = []
    names = tuple(dict.fromkeys(request.queues))
    for name in names:
        queue = tx.queue(name)
        if queue is None or queue.paused:
            continue
        left = request.limit - len(granted)
        limited = queue.limited
        if limited is not None:
            let_in(tx, queue, examined(left))
        if left <= 0:
            due.append(_due_in(tx, queue))
            continue
        due.append(_promote_due(tx, queue, left))
        if limited is None:
            whole = _take(tx, request, queue, granted)
        else:
            whole = _take_limited(tx, request, queue, budgeting, granted)
        if not whole:
            due.append(0.0)
    if granted:
        remember(tx, request, known)
    if request.peer and request.limit > 0:
        register = tx.register_idle if len(granted) < request.limit else tx.register_busy
        register(request.peer, names)
    return ClaimReply(
        leases=tuple(granted),
        next_in=_soonest(due),
        wants=tuple(budgeting.wants),
        spent=tuple(budgeting.spent),
        now=tx.now,
    )


def _promote_due(tx: Transaction, queue: Queue, limit: int) -> float | None:
    """Queue what has fallen due, and return in how many seconds the next job does."""
    due_in = _due_in(tx, queue)
    if due_in is None or due_in > 0:
        return due_in
    due = tx.db.execute(
        "SELECT seq, queue, task, lane, batch FROM job INDEXED BY job_due "
        "WHERE queue = ? AND state = 0 AND ready_at <= ? ORDER BY ready_at, seq LIMIT ?",
        (queue.id, tx.now, 2 * limit + 100),
    ).fetchall()
    promote(tx, due)
    tx.lanes.repair()
    return _due_in(tx, queue)


def _due_in(tx: Transaction, queue: Queue) -> float | None:
    row = tx.db.execute(
        "SELECT ready_at FROM job INDEXED BY job_due WHERE queue = ? AND state = 0 "
        "ORDER BY ready_at LIMIT 1",
        (queue.id,),
    ).fetchone()
    return None if row is None else max(0.0, row[0] - tx.now)


def _next_due(tx: Transaction, request: ClaimRequest) -> float | None:
    queues = [queue for name in request.queues if (queue := tx.queue(name)) and not queue.paused]
    return _soonest(_due_in(tx, queue) for queue in queues)


def _soonest(times: Iterable[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _take(tx: Transaction, request: ClaimRequest, queue: Queue, granted: list[Lease]) -> bool:
    """Grant the first jobs of an unlimited queue; return whether that was all it could give."""
    most = min(request.limit - len(granted), tx.room(queue))
    while most > 0:
        # Beyond its heads a lane may have jobs that come before those of others.
        part = min(most, HEADS) if queue.lane_max_running > HEADS else most
        rows = _first(tx, queue, _READY, part, examined(request.limit))
        if rows is None:
            return False
        granted += _lease(tx, request, queue, rows)
        tx.taken(queue.id, len(rows))
        most -= part
        if len(rows) < part:
            break
        if most > 0:
            tx.lanes.repair()
    return True


def _take_limited(
    tx: Transaction,
    request: ClaimRequest,
    queue: Queue,
    budgeting: Budgeting,
    granted: list[Lease],
) -> bool:
    """Grant what the budgets of a limited queue let start, as :func:`_take` does."""
    assert queue.limited is not None  # noqa: S101 - the caller has looked
    left = request.limit - len(granted)
    rows = _pick(tx, queue, budgeting, queue.limited, left)
    if rows is None:
        return False
    granted += _lease(tx, request, queue, rows)
    tx.taken(queue.id, len(rows))
    if budgeting.more:
        tx.wake_one(queue.id)
    return True


def _pick(
    tx: Transaction,
    queue: Queue,
    budgeting: Budgeting,
    limited: Limited,
    left: int,
) -> list[Any] | None:
    """Return the jobs of a limited queue that its budgets let start, as :func:`_first` does."""
    budgeting.more = False
    room = tx.room(queue)
    if room <= 0 or queue.parked_until is not None:
        return []
    rows = _look(tx, queue, examined(left))
    if not rows:
        return rows
    allowance = budgeting.allowance(queue, limited, left, room)
    picked = []
    for seq, lane, _ in rows:
        if allowance.done:
            break
        if allowance.take(lane):
            picked.append(seq)
    budgeting.finish(queue, allowance)
    tx.taken(queue.id, allowance.left)
    return tx.db.execute(_PICKED, (numbers(picked),)).fetchall() if picked else []


def _look(tx: Transaction, queue: Queue, most: int) -> list[Any] | None:
    """Return the first jobs of a limited queue in their order, as :func:`_first` does."""
    rows = _first(tx, queue, _LOOK, most, most)
    if not rows or len(rows) <= HEADS or queue.lane_max_running <= HEADS:
        return rows
    counts = Counter(lane for _, lane, _ in rows if lane is not None)
    crowded = [lane for lane, count in counts.items() if count >= HEADS]
    if not crowded:
        return rows
    # Jobs behind their heads may come before those of others.
    tx.lanes.widen(queue.id, crowded, most)
    return _first(tx, queue, _LOOK, most, most)


def _first(
    tx: Transaction,
    queue: Queue,
    look: str,
    most: int,
    overdue_left: int,
) -> list[Any] | None:
    """Return the first jobs of the ready order; ``None`` if overdue ones cut the search short.

    ``look`` says what to return of them, first the sequence, the lane and the deadline.
    """
    if most <= 0:
        return []
    while True:
        rows = tx.db.execute(look, (queue.id, most)).fetchall()
        overdue = [row for row in rows if row[2] is not None and row[2] <= tx.now]
        if not overdue:
            return rows
        # What stood behind them in their lanes may come before the rest of these rows.
        _set_aside(tx, queue, overdue)
        overdue_left -= len(overdue)
        if overdue_left <= 0:
            return None


def _set_aside(tx: Transaction, queue: Queue, rows: Sequence[Any]) -> None:
    """Take jobs past their deadline out of the ready order; the next sweep ends them."""
    tx.db.execute(
        "UPDATE job SET eligible = ? FROM json_each(?) AS s WHERE job.seq = s.value",
        (OVERDUE, numbers(row[0] for row in rows)),
    )
    for row in rows:
        if row[1] is not None:
            tx.lanes.left(queue.id, row[1])
    tx.lanes.repair()


def _lease(
    tx: Transaction,
    request: ClaimRequest,
    queue: Queue,
    rows: Sequence[Any],
) -> list[Lease]:
    if not rows:
        return []
    now = tx.now
    first = tx.tokens(queue, len(rows))
    tx.db.execute(
        _GRANT,
        (
            first,
            now,
            now + request.lease,
            request.worker,
            request.number,
            numbers(row[0] for row in rows),
        ),
    )
    leases, freed = [], []
    for token, row in enumerate(rows, first):
        (seq, lane, deadline_at, id_, task, attempt, max_attempts, generation, nprio) = row[:9]
        (batch, crashes, submitted_at, unknown, unknown_since, mode, key, body) = row[9:]
        tally = tx.tally(queue.id, task)
        tally[QUEUED] -= 1
        tally[RUNNING] += 1
        tally[STARTED] += 1
        tx.batches.moved(batch, QUEUED, RUNNING)
        if lane is not None:
            tx.lanes.started(queue.id, lane)
        if mode == UNTIL_STARTED:
            freed.append((queue.id, key, seq))
        leases.append(
            Lease(
                queue=queue.name,
                id=id_,
                task=tx.task_name(task),
                token=token,
                attempt=attempt + 1,
                max_attempts=max_attempts,
                body=body,
                sequence=seq,
                generation=generation,
                priority=-nprio,
                lane=lane,
                batch=batch,
                crashes=crashes,
                submitted_at=submitted_at,
                started_at=now,
                deadline_in=None if deadline_at is None else deadline_at - now,
                unknown=unknown,
                unknown_for=0.0 if unknown_since is None else now - unknown_since,
            ),
        )
    if freed:
        tx.db.executemany(
            "DELETE FROM unique_key WHERE queue = ? AND key = ? AND seq = ?",
            freed,
        )
    return leases


def _standing(tx: Transaction, request: ClaimRequest) -> tuple[Lease, ...]:
    """Return what is left of the leases that this claim was granted."""
    place = {name: order for order, name in enumerate(dict.fromkeys(request.queues))}
    leases = []
    rows = tx.db.execute(_STANDING, (tx.namespace, request.worker, request.number)).fetchall()
    for row in rows:
        (seq, id_, task, attempt, max_attempts, generation, nprio, lane, batch) = row[:9]
        (crashes, submitted_at, deadline_at, unknown, unknown_since) = row[9:14]
        (body, queue, token, started_at) = row[14:]
        leases.append(
            Lease(
                queue=tx.queue_numbered(queue).name,
                id=id_,
                task=tx.task_name(task),
                token=token,
                attempt=attempt,
                max_attempts=max_attempts,
                body=body,
                sequence=seq,
                generation=generation,
                priority=-nprio,
                lane=lane,
                batch=batch,
                crashes=crashes,
                submitted_at=submitted_at,
                started_at=started_at,
                deadline_in=None if deadline_at is None else deadline_at - tx.now,
                unknown=unknown,
                unknown_for=0.0 if unknown_since is None else tx.now - unknown_since,
            ),
        )
    leases.sort(key=lambda lease: (place.get(lease.queue, len(place)), lease.token))
    return tuple(leases)


def claim_alone(tx: Transaction, request: ClaimRequest) -> ClaimReply:
    """Serve a claim that comes without settlements."""
    reply = claim(tx, request)
    tx.end_call(request.peer, request.queues)
    return reply


def renew(
    tx: Transaction,
    refs: Sequence[LeaseRef],
    lease: float,
    holder: Holder | None,
) -> list[RenewReply]:
    """Extend leases, and release what the holder does not know of."""
    keys = []
    for place, ref in enumerate(refs):
        queue = tx.queue(ref.queue)
        if queue is not None:
            keys.append((place, queue.id, ref.id, ref.token))
    replies = [RenewReply.LOST] * len(refs)
    held: list[int] = []
    progress = []
    for place, seq, cancel in join_rows(tx.db, _LEASED, keys):
        replies[place] = RenewReply.CANCEL if cancel else RenewReply.OK
        held.append(seq)
        news = refs[place].progress
        if news is not None:
            progress.append((packed(news), seq))
    tx.db.execute(
        "UPDATE job SET lease_until = ? FROM json_each(?) AS s WHERE job.seq = s.value",
        (tx.now + lease, numbers(held)),
    )
    if progress:
        tx.db.executemany("UPDATE job SET progress = ? WHERE seq = ?", progress)
    if holder is not None:
        _release_unlisted(tx, holder, set(held))
    tx.end_call()
    return replies


def _release_unlisted(tx: Transaction, holder: Holder, listed: set[int]) -> None:
    rows = tx.db.execute(_HELD, (tx.namespace, holder.worker, holder.number)).fetchall()
    back, ended = [], []
    for row in map(Row._make, rows):
        if row.seq in listed:
            continue
        state = state_after_settlement(
            Outcome.RELEASE,
            cancel_requested=bool(row.cancel),
            attempts_left=True,
            delay=0.0,
        )
        if state is JobState.CANCELLED:
            ended.append(Finish(row=row, state=CANCELLED, code="", gives_back=True))
        else:
            tx.tally(row.queue, row.task)[RELEASED] += 1
            back.append(
                Requeue(
                    row=row,
                    state=QUEUED,
                    ready_at=row.ready_at,
                    attempt=row.attempt - 1,
                    crashes=row.crashes,
                    unknown=row.unknown,
                    unknown_since=row.unknown_since,
                ),
            )
    finish(tx, ended)
    requeue(tx, back)
