"""An operator's changes to jobs and queues."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from plugq.job import Event, JobRef, JobState, allowed
from plugq.protocols.edits import Cancel, Configure, EditReply, EditStatus, Pause, Purge, Redrive
from plugq_sqlite._budgets import let_all_in
from plugq_sqlite._moves import Finish, finish, remove, rows_by_ref
from plugq_sqlite._rows import (
    CANCELLED,
    FIRST_FINAL,
    QUEUED,
    REDRIVEN,
    RUNNING,
    STATES,
    THROTTLE,
)

if TYPE_CHECKING:
    from plugq.protocols.edits import Edit, QueueSettings
    from plugq_sqlite._rows import Row
    from plugq_sqlite._transaction import Queue, Transaction

_DONE = EditReply(EditStatus.DONE)
_NOT_FOUND = EditReply(EditStatus.NOT_FOUND)

_REDRIVE = """
    UPDATE job SET state = 1, eligible = lane IS NULL, ready_at = ?, attempt = 0, crashes = 0,
        cancel = 0, unknown = 0, unknown_since = NULL, deadline_at = NULL, finished_at = NULL,
        expires_at = NULL, tidy_at = NULL, code = '', result = NULL, progress = NULL
    WHERE seq = ?
"""


def edit(tx: Transaction, change: Edit) -> list[EditReply]:
    """Make the change and answer for each job or queue that it names."""
    if isinstance(change, Cancel | Redrive | Purge):
        replies = _edit_jobs(tx, change)
    elif isinstance(change, Configure):
        for settings in change.settings:
            _configure(tx, settings)
        replies = [_DONE] * len(change.settings)
    else:
        paused = int(isinstance(change, Pause))
        for name in change.queues:
            _pause(tx, name, paused)
        replies = [_DONE] * len(change.queues)
    tx.end_call()
    return replies


def _edit_jobs(tx: Transaction, change: Cancel | Redrive | Purge) -> list[EditReply]:
    replies: list[EditReply] = []
    seen: set[JobRef] = set()
    moved: list[Row] = []
    for ref, row in zip(change.refs, rows_by_ref(tx, change.refs), strict=True):
        if ref in seen:
            # A job that is named twice is looked at again as the first time left it.
            _write(tx, change, moved)
            row = rows_by_ref(tx, [ref])[0]  # noqa: PLW2901
        seen.add(ref)
        if row is None or _expired(row, tx.now):
            replies.append(_NOT_FOUND)
        elif isinstance(change, Cancel):
            replies.append(_cancel(tx, ref, row, moved))
        elif isinstance(change, Redrive):
            replies.append(_redrive(tx, row))
        elif allowed(STATES[row.state], Event.REMOVE):
            moved.append(row)
            replies.append(_DONE)
        else:
            replies.append(EditReply(EditStatus.CONFLICT, STATES[row.state]))
    _write(tx, change, moved)
    return replies


def _write(tx: Transaction, change: Cancel | Redrive | Purge, moved: list[Row]) -> None:
    """Cancel or remove the jobs collected so far, all at once."""
    if isinstance(change, Cancel):
        finish(tx, [Finish(row=row, state=CANCELLED, code="") for row in moved])
    else:
        remove(tx, moved)
    moved.clear()


def _expired(row: Row, now: float) -> bool:
    return row.state >= FIRST_FINAL and row.expires_at is not None and row.expires_at <= now


def _cancel(tx: Transaction, ref: JobRef, row: Row, moved: list[Row]) -> EditReply:
    if row.state < RUNNING and row.deadline_at is not None and row.deadline_at <= tx.now:
        return EditReply(EditStatus.FINISHED, JobState.FAILED)
    if not allowed(STATES[row.state], Event.CANCEL):
        return EditReply(EditStatus.FINISHED, STATES[row.state])
    if row.state < RUNNING:
        moved.append(row)
        return EditReply(EditStatus.DONE, JobState.CANCELLED)
    tx.db.execute("UPDATE job SET cancel = 1 WHERE seq = ?", (row.seq,))
    peer = tx.db.execute(
        "SELECT peer FROM worker WHERE namespace = ? AND name = ?",
        (tx.namespace, row.worker),
    ).fetchone()
    if peer is not None and peer[0]:
        tx.cancel_asked.setdefault(peer[0], []).append(ref)
    return EditReply(EditStatus.REQUESTED, JobState.RUNNING)


def _redrive(tx: Transaction, row: Row) -> EditReply:
    if not allowed(STATES[row.state], Event.REDRIVE) or not _retake_key(tx, row):
        return EditReply(EditStatus.CONFLICT, STATES[row.state])
    tx.db.execute(_REDRIVE, (tx.now, row.seq))
    tally = tx.tally(row.queue, row.task)
    tally[row.state] -= 1
    tally[QUEUED] += 1
    tally[REDRIVEN] += 1
    if row.lane is None:
        tx.claimable(row.queue)
    else:
        tx.lanes.joined(row.queue, row.lane)
    return EditReply(EditStatus.DONE, JobState.QUEUED)


def _retake_key(tx: Transaction, row: Row) -> bool:
    """Give a job its unique key again, unless another job holds it."""
    if row.unique_key is None:
        return True
    holder = tx.db.execute(
        "SELECT seq FROM unique_key WHERE queue = ? AND key = ? AND (until IS NULL OR until > ?)",
        (row.queue, row.unique_key, tx.now),
    ).fetchone()
    if holder is not None and holder[0] != row.seq:
        return False
    until = tx.now + (row.unique_ttl or 0.0) if row.unique_mode == THROTTLE else None
    tx.db.execute(
        "INSERT OR REPLACE INTO unique_key (queue, key, seq, id, generation, state, until) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (row.queue, row.unique_key, row.seq, row.id, row.generation, QUEUED, until),
    )
    return True


def _pause(tx: Transaction, name: str, paused: int) -> None:
    queue = tx.make_queue(name)
    if queue.paused != paused:
        tx.db.execute("UPDATE queue SET paused = ? WHERE id = ?", (paused, queue.id))
        queue.paused = paused
        if not paused:
            tx.opened(queue.id, sys.maxsize)


def _configure(tx: Transaction, settings: QueueSettings) -> None:
    queue = tx.make_queue(settings.queue)
    _limit(tx, queue, settings)
    wanted = (settings.max_running, settings.lane_max_running, settings.max_length)
    if queue.configured and wanted == (
        queue.max_running,
        queue.lane_max_running,
        queue.max_length,
    ):
        return
    tx.db.execute(
        "UPDATE queue SET configured = 1, max_running = ?, lane_max_running = ?, max_length = ? "
        "WHERE id = ?",
        (*wanted, queue.id),
    )
    if settings.lane_max_running != queue.lane_max_running:
        tx.lanes.recheck_queue(queue.id)
    queue.configured = 1
    queue.max_running, queue.lane_max_running, queue.max_length = wanted
    tx.opened(queue.id, sys.maxsize)


def _limit(tx: Transaction, queue: Queue, settings: QueueSettings) -> None:
    """Set what limiters decide; new limits hold from the next claim on, whatever is parked."""
    limits = (settings.limits, settings.lane_limits)
    if limits == (queue.limits, queue.lane_limits):
        return
    queue.revision += 1
    tx.db.execute(
        "UPDATE queue SET limits = ?, lane_limits = ?, revision = ? WHERE id = ?",
        (*limits, queue.revision, queue.id),
    )
    queue.limits, queue.lane_limits = limits
    let_all_in(tx, queue)
    tx.opened(queue.id, sys.maxsize)
