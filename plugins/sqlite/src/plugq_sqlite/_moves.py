"""The moves of jobs that several verbs make: to an end, back into line, and out of the store."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from plugq.job import LINGER, AttemptRecord, JobRef
from plugq_sqlite._rows import (
    CANCELLED,
    COLUMNS,
    DELAYED,
    ELIGIBLE,
    FINAL_TOTALS,
    QUEUED,
    REMOVED,
    RUNNING,
    SUCCEEDED,
    THROTTLE,
    Row,
    packed,
)
from plugq_sqlite._statements import insert_rows, join_rows, numbers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plugq.job import Progress
    from plugq_sqlite._transaction import Transaction

_FINISH = """
    WITH s (seq, state, code, attempt, crashes, finished_at, expires_at, tidy_at, failures,
        progress, result) AS (VALUES ?)
    UPDATE job SET state = s.state, code = s.code, attempt = s.attempt, crashes = s.crashes,
        finished_at = s.finished_at, expires_at = s.expires_at, tidy_at = s.tidy_at,
        failures = s.failures, progress = coalesce(s.progress, job.progress), result = s.result,
        lease_until = NULL
    FROM s WHERE job.seq = s.seq
"""
_REQUEUE = """
    WITH s (seq, state, eligible, ready_at, attempt, crashes, failures, unknown, unknown_since,
        progress) AS (VALUES ?)
    UPDATE job SET state = s.state, eligible = s.eligible, ready_at = s.ready_at,
        attempt = s.attempt, crashes = s.crashes, failures = s.failures, unknown = s.unknown,
        unknown_since = s.unknown_since, progress = coalesce(s.progress, job.progress),
        lease_until = NULL
    FROM s WHERE job.seq = s.seq
"""
_BY_REF = (
    "WITH s (k, queue, id) AS (VALUES ?) "
    f"SELECT s.k, {COLUMNS} FROM s CROSS JOIN job INDEXED BY job_id "
    "ON job.queue = s.queue AND job.id = s.id"
)


@dataclass(slots=True, kw_only=True)
class Finish:
    """A job that comes to a final state."""

    row: Row
    state: int
    code: str
    result: bytes | None = None
    error: AttemptRecord | None = None
    progress: Progress | None = None
    #: Whether the attempt that ends does not count.
    gives_back: bool = False
    #: When it ended, where that is not now.
    finished_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Requeue:
    """A job that goes back into line."""

    row: Row
    state: int
    ready_at: float
    attempt: int
    crashes: int = 0
    unknown: int = 0
    unknown_since: float | None = None
    error: AttemptRecord | None = None
    progress: Progress | None = None


def rows_by_ref(tx: Transaction, refs: Sequence[JobRef]) -> list[Row | None]:
    """Return the row of each job, ``None`` where there is no such job."""
    keys = []
    for place, ref in enumerate(refs):
        queue = tx.queue(ref.queue)
        if queue is not None:
            keys.append((place, queue.id, ref.id))
    found: list[Row | None] = [None] * len(refs)
    for place, *columns in join_rows(tx.db, _BY_REF, keys):
        found[place] = Row._make(columns)
    return found


def finish(tx: Transaction, items: Sequence[Finish]) -> None:
    """End jobs: retention, counters, lane, unique key and submitter are seen to."""
    changes = []
    for item in items:
        row = item.row
        failures = _append(tx, row, item.error)
        ended = tx.now if item.finished_at is None else item.finished_at
        expires, tidy = _retention(tx.now, item)
        changes.append(
            (
                row.seq,
                item.state,
                item.code,
                row.attempt - item.gives_back,
                row.crashes,
                ended,
                expires,
                tidy,
                failures,
                None if item.progress is None else packed(item.progress),
                item.result,
            ),
        )
        _leave(tx, row)
        tally = tx.tally(row.queue, row.task)
        tally[row.state] -= 1
        tally[item.state] += 1
        tally[FINAL_TOTALS[item.state]] += 1
        tx.batches.moved(row.batch, row.state, item.state)
        if row.origin:
            tx.tell_finished(row, JobRef(tx.queue_numbered(row.queue).name, row.id))
    join_rows(tx.db, _FINISH, changes)
    free_keys(tx, (item.row for item in items))


def _retention(now: float, item: Finish) -> tuple[float | None, float | None]:
    """Return when the record expires, and when a sweep has to look at it first.

    Nothing is cleared before those who waited for the end had time to fetch it.
    """
    row = item.row
    keep = row.result_ttl if item.state in {SUCCEEDED, CANCELLED} else row.failure_ttl
    expires = None if keep is None else now + max(keep, row.id_ttl)
    tidy = None if expires is None else max(expires, now + LINGER)
    if item.state == SUCCEEDED and row.result_ttl is not None:
        cleared = now + max(row.result_ttl, LINGER)
        tidy = cleared if tidy is None else min(tidy, cleared)
    return expires, tidy


def requeue(tx: Transaction, items: Sequence[Requeue]) -> None:
    """Put jobs back into line; what may be claimed at once is noted."""
    changes = []
    for item in items:
        row = item.row
        _leave(tx, row)
        eligible = int(item.state == QUEUED and row.lane is None)
        changes.append(
            (
                row.seq,
                item.state,
                eligible,
                item.ready_at,
                item.attempt,
                item.crashes,
                _append(tx, row, item.error),
                item.unknown,
                item.unknown_since,
                None if item.progress is None else packed(item.progress),
            ),
        )
        tally = tx.tally(row.queue, row.task)
        tally[row.state] -= 1
        tally[item.state] += 1
        tx.batches.moved(row.batch, row.state, item.state)
        if eligible:
            tx.claimable(row.queue)
        elif item.state == QUEUED and row.lane is not None:
            tx.lanes.joined(row.queue, row.lane)
    join_rows(tx.db, _REQUEUE, changes)


def remove(tx: Transaction, rows: Sequence[Row], *, tell: bool = True) -> None:
    """Take jobs out of the store."""
    if not rows:
        return
    listed = numbers(row.seq for row in rows)
    tx.db.execute("DELETE FROM job WHERE seq IN (SELECT value FROM json_each(?))", (listed,))
    tx.db.execute("DELETE FROM body WHERE seq IN (SELECT value FROM json_each(?))", (listed,))
    failed = [row.seq for row in rows if row.failures]
    if failed:
        tx.db.execute(
            "DELETE FROM failure WHERE seq IN (SELECT value FROM json_each(?))",
            (numbers(failed),),
        )
    # A throttle key outlives its job, and answers with the state that the job had.
    tx.db.executemany(
        "UPDATE unique_key SET state = ? WHERE queue = ? AND key = ? AND seq = ?",
        [
            (row.state, row.queue, row.unique_key, row.seq)
            for row in rows
            if row.unique_mode == THROTTLE
        ],
    )
    for row in rows:
        tally = tx.tally(row.queue, row.task)
        tally[row.state] -= 1
        tally[REMOVED] += 1
        if tell and row.origin:
            tx.tell_finished(row, JobRef(tx.queue_numbered(row.queue).name, row.id))


def free_keys(tx: Transaction, rows: Iterable[Row]) -> None:
    """Let go of the unique keys that these jobs hold no longer than now."""
    held = [
        (row.queue, row.unique_key, row.seq)
        for row in rows
        if row.unique_key is not None and row.unique_mode != THROTTLE
    ]
    if held:
        tx.db.executemany(
            "DELETE FROM unique_key WHERE queue = ? AND key = ? AND seq = ?",
            held,
        )


def _leave(tx: Transaction, row: Row) -> None:
    if row.state == RUNNING:
        if row.lane is not None:
            tx.lanes.ended(row.queue, row.lane)
        if tx.queue_numbered(row.queue).max_running is not None:
            tx.opened(row.queue, 1)
    elif row.state == QUEUED and row.lane is not None and row.eligible == ELIGIBLE:
        tx.lanes.left(row.queue, row.lane)


def _append(tx: Transaction, row: Row, error: AttemptRecord | None) -> int:
    """Add to the history of a job, and return how long that is now."""
    if error is None:
        return row.failures
    record = AttemptRecord(
        attempt=row.attempt,
        code=error.code,
        type=error.type,
        message=error.message,
        traceback=error.traceback,
        worker=row.worker,
        started_at=row.started_at or tx.now,
        ended_at=tx.now,
    )
    insert_rows(
        tx.db,
        "INSERT INTO failure (seq, n, record) VALUES ?",
        [(row.seq, row.failures, packed(record))],
    )
    return row.failures + 1


def promote(tx: Transaction, rows: Sequence[tuple[int, int, int, str | None, str | None]]) -> None:
    """Queue delayed jobs whose time has come, given as (seq, queue, task, lane, batch)."""
    tx.db.execute(
        "UPDATE job SET state = 1, eligible = lane IS NULL FROM json_each(?) AS s "
        "WHERE job.seq = s.value",
        (numbers(seq for seq, *_ in rows),),
    )
    for _, queue, task, lane, batch in rows:
        tally = tx.tally(queue, task)
        tally[DELAYED] -= 1
        tally[QUEUED] += 1
        tx.batches.moved(batch, DELAYED, QUEUED)
        if lane is None:
            tx.claimable(queue)
        else:
            tx.lanes.joined(queue, lane)
