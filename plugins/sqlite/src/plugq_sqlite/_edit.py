"""An operator's changes to jobs and queues."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from plugq.job import LINGER, Event, JobRef, JobState, allowed
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    EditReply,
    EditStatus,
    JobEdit,
    Pause,
    Redrive,
    Reprioritise,
    Retain,
)
from plugq_sqlite._budgets import let_all_in
from plugq_sqlite._moves import Finish, finish, remove, rows_by_ref
from plugq_sqlite._rows import (
    CANCELLED,
    FIRST_FINAL,
    QUEUED,
    REDRIVEN,
    RUNNING,
    STATES,
    SUCCEEDED,
    THROTTLE,
)

if TYPE_CHECKING:
    from plugq.protocols.edits import Edit, QueueSettings, Resume
    from plugq_sqlite._rows import Row
    from plugq_sqlite._transaction import Queue, Transaction

    #: What an edit did to a job, and the state after it.
    _Outcome = tuple[EditStatus, JobState | None]

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
    if isinstance(change, JobEdit):
        replies = _edit_jobs(tx, change)
    elif isinstance(change, Configure):
        for settings in change.settings:
            _configure(tx, settings)
        replies = [_DONE] * len(change.settings)
    else:
        for name in change.queues:
            _set_queue(tx, name, change)
        replies = [_DONE] * len(change.queues)
    tx.end_call()
    return replies


def _edit_jobs(tx: Transaction, change: JobEdit) -> list[EditReply]:
    replies: list[EditReply] = []
    seen: set[JobRef] = set()
    moved: list[Row] = []
    sequences = change.sequences or (0,) * len(change.refs)
    rows = rows_by_ref(tx, change.refs)
    for ref, sequence, row in zip(change.refs, sequences, rows, strict=True):
        if ref in seen:
            # A job that is named twice is looked at again as the first time left it.
            _write(tx, change, moved)
            row = rows_by_ref(tx, [ref])[0]  # noqa: PLW2901
        seen.add(ref)
        if row is None or not _meant(change, sequence, row, tx.now):
            replies.append(_NOT_FOUND)
        else:
            status, state = _change(tx, change, ref, row, moved)
            replies.append(EditReply(status, state, tx.task_name(row.task), row.lane, row.batch))
    _write(tx, change, moved)
    return replies


def _change(tx: Transaction, change: JobEdit, ref: JobRef, row: Row, moved: list[Row]) -> _Outcome:
    """Make the change of one job, or collect it; return what is done, and the state after it."""
    if isinstance(change, Cancel):
        return _cancel(tx, ref, row, moved)
    if isinstance(change, Redrive):
        return _redrive(tx, row)
    if isinstance(change, Retain):
        return _retain(tx, row, change.ttl)
    if isinstance(change, Reprioritise):
        return _reprioritise(tx, row, change.priority)
    if allowed(STATES[row.state], Event.REMOVE):
        moved.append(row)
        return EditStatus.DONE, None
    return EditStatus.CONFLICT, STATES[row.state]


def _write(tx: Transaction, change: JobEdit, moved: list[Row]) -> None:
    """Cancel or remove the jobs collected so far, all at once."""
    if isinstance(change, Cancel):
        finish(tx, [Finish(row=row, state=CANCELLED, code="") for row in moved])
    else:
        remove(tx, moved)
    moved.clear()


def _meant(change: JobEdit, sequence: int, row: Row, now: float) -> bool:
    """Return whether the row is still there for the edit and is the one that it means."""
    if _expired(row, now) or sequence not in {0, row.seq}:
        return False
    return not change.states or _shown(row, now) in change.states


def _expired(row: Row, now: float) -> bool:
    return row.state >= FIRST_FINAL and row.expires_at is not None and row.expires_at <= now


def _shown(row: Row, now: float) -> JobState:
    """Return the state as readers see it; a deadline holds before a sweep stores it."""
    overdue = row.state < RUNNING and row.deadline_at is not None and row.deadline_at <= now
    return JobState.FAILED if overdue else STATES[row.state]


def _cancel(tx: Transaction, ref: JobRef, row: Row, moved: list[Row]) -> _Outcome:
    state = _shown(row, tx.now)
    if not allowed(state, Event.CANCEL):
        return EditStatus.FINISHED, state
    if row.state < RUNNING:
        moved.append(row)
        return EditStatus.DONE, JobState.CANCELLED
    tx.db.execute("UPDATE job SET cancel = 1 WHERE seq = ?", (row.seq,))
    peer = tx.db.execute(
        "SELECT peer FROM worker WHERE namespace = ? AND name = ?",
        (tx.namespace, row.worker),
    ).fetchone()
    if peer is not None and peer[0]:
        tx.cancel_asked.setdefault(peer[0], []).append(ref)
    return EditStatus.REQUESTED, JobState.RUNNING


def _redrive(tx: Transaction, row: Row) -> _Outcome:
    if not allowed(STATES[row.state], Event.REDRIVE) or not _retake_key(tx, row):
        return EditStatus.CONFLICT, STATES[row.state]
    tx.db.execute(_REDRIVE, (tx.now, row.seq))
    tally = tx.tally(row.queue, row.task)
    tally[row.state] -= 1
    tally[QUEUED] += 1
    tally[REDRIVEN] += 1
    tx.batches.revived(row, QUEUED)
    if row.lane is None:
        tx.claimable(row.queue)
    else:
        tx.lanes.joined(row.queue, row.lane)
    return EditStatus.DONE, JobState.QUEUED


def _retain(tx: Transaction, row: Row, ttl: float | None) -> _Outcome:
    state = _shown(row, tx.now)
    if row.state < FIRST_FINAL:
        tx.db.execute(
            "UPDATE job SET result_ttl = ?, failure_ttl = ? WHERE seq = ?",
            (ttl, ttl, row.seq),
        )
        return EditStatus.DONE, state
    [(ended, cleared)] = tx.db.execute(
        "SELECT finished_at, result IS NULL FROM job WHERE seq = ?",
        (row.seq,),
    )
    result_ttl = row.result_ttl
    if row.state == SUCCEEDED and (result_ttl is None or ended + result_ttl > tx.now):
        result_ttl = None if ttl is None else tx.now + ttl - ended
    expires = tidy = None
    if ttl is not None:
        expires = max(tx.now + ttl, ended + row.id_ttl)
        tidy = max(expires, ended + LINGER)
    if row.state == SUCCEEDED and not cleared and result_ttl is not None:
        looked_at = ended + max(result_ttl, LINGER)
        tidy = looked_at if tidy is None else min(tidy, looked_at)
    tx.db.execute(
        "UPDATE job SET expires_at = ?, tidy_at = ?, result_ttl = ? WHERE seq = ?",
        (expires, tidy, result_ttl, row.seq),
    )
    return EditStatus.DONE, state


def _reprioritise(tx: Transaction, row: Row, priority: int) -> _Outcome:
    state = _shown(row, tx.now)
    if state.final:
        return EditStatus.FINISHED, state
    tx.db.execute("UPDATE job SET nprio = ? WHERE seq = ?", (-priority, row.seq))
    if row.state == QUEUED and row.lane is not None:
        tx.lanes.reordered(row.queue, row.lane)
    return EditStatus.DONE, state


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


def _set_queue(tx: Transaction, name: str, change: Pause | Drain | Resume) -> None:
    queue = tx.make_queue(name)
    paused, draining = queue.paused, queue.draining
    if isinstance(change, Pause):
        paused = 1
    elif isinstance(change, Drain):
        draining = 1
    else:
        paused = draining = 0
    if (paused, draining) == (queue.paused, queue.draining):
        return
    tx.db.execute(
        "UPDATE queue SET paused = ?, draining = ? WHERE id = ?",
        (paused, draining, queue.id),
    )
    if paused < queue.paused:
        tx.opened(queue.id, sys.maxsize)
    queue.paused, queue.draining = paused, draining


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
