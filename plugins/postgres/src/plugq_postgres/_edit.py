"""An operator's changes to jobs and queues."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import LINGER, Event, JobState, allowed
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    EditReply,
    EditStatus,
    Pause,
    Redrive,
    Reprioritise,
    Retain,
)
from plugq_postgres._budgets import park_queue, unpark
from plugq_postgres._rows import (
    CANCELLED,
    FIRST_FINAL,
    QUEUED,
    RUNNING,
    STATES,
    SUCCEEDED,
    THROTTLE,
    Row,
    text,
)
from plugq_postgres._transaction import ALL, Finish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRef
    from plugq.protocols.edits import JobEdit, QueueSettings, Resume
    from plugq_postgres._transaction import Transaction

    #: What an edit did to a job, and the state after it.
    _Outcome = tuple[EditStatus, JobState | None]

_DONE = EditReply(EditStatus.DONE)
_NOT_FOUND = EditReply(EditStatus.NOT_FOUND)

_COPIED = (
    "seq, namespace, queue, task, priority, token, max_attempts, generation, number, entered, "
    "submitted_at, started_at, result_ttl, failure_ttl, id_ttl, unique_ttl, unique_mode, id, "
    "submission, lane, batch, unique_key, origin, worker, peer, history, body"
)
_REDRIVE = (
    f"WITH again AS (DELETE FROM done WHERE seq = $1 RETURNING *) INSERT INTO job ({_COPIED}, "
    f"state, eligible, ready_at) SELECT {_COPIED}, 1, (lane IS NULL)::integer, $2 FROM again"
)
_HOLDER = (
    "SELECT seq FROM unique_key WHERE queue = $1 AND key = $2 AND (until IS NULL OR until > $3)"
)
_HOLD = (
    "INSERT INTO unique_key (queue, key, seq, id, generation, state, until) "
    "VALUES ($1, $2, $3, $4, $5, 1, $6) ON CONFLICT (queue, key) DO UPDATE SET "
    "seq = excluded.seq, id = excluded.id, generation = excluded.generation, "
    "state = excluded.state, until = excluded.until"
)
_ASK = (
    "WITH asked AS (UPDATE job SET cancel = true WHERE seq = $1 RETURNING peer, queue, id) "
    "SELECT ROW (NULL, ARRAY[ROW (NULL, peer, 2, queue, id)::letter_v1])::effect_v1::text "
    "FROM asked WHERE peer <> ''"
)


async def edit_jobs(tx: Transaction, change: JobEdit) -> list[EditReply]:
    """Change jobs and answer for each that is named."""
    replies: list[EditReply] = []
    seen: set[JobRef] = set()
    moved: list[Row] = []
    sequences = change.sequences or (0,) * len(change.refs)
    rows = await tx.rows(change.refs)
    await tx.names.learn((), {row.task for row in rows if row is not None}, db=tx.db)
    for ref, sequence, row in zip(change.refs, sequences, rows, strict=True):
        if ref in seen:
            # A job that is named twice is looked at again as the first time left it.
            await _write(tx, change, moved)
            row = (await tx.rows([ref]))[0]  # noqa: PLW2901
        seen.add(ref)
        if row is None or not _meant(change, sequence, row, tx.now):
            replies.append(_NOT_FOUND)
        else:
            status, state = await _change(tx, change, row, moved)
            task = tx.names.task(row.task)
            replies.append(EditReply(status, state, task, text(row.lane), text(row.batch)))
    await _write(tx, change, moved)
    return replies


async def _change(
    tx: Transaction, change: JobEdit, row: Row, moved: list[Row]
) -> _Outcome:
    """Make the change of one job, or collect it; return what is done, and the state after it."""
    if isinstance(change, Cancel):
        return await _cancel(tx, row, moved)
    if isinstance(change, Redrive):
        return await _redrive(tx, row)
    if isinstance(change, Retain):
        return await _retain(tx, row, change.ttl)
    if isinstance(change, Reprioritise):
        return await _reprioritise(tx, row, change.priority)
    if allowed(STATES[row.state], Event.REMOVE):
        moved.append(row)
        return EditStatus.DONE, None
    return EditStatus.CONFLICT, STATES[row.state]


async def _write(tx: Transaction, change: JobEdit, moved: list[Row]) -> None:
    """Cancel or remove the jobs collected so far, all at once."""
    if isinstance(change, Cancel):
        await tx.finish([Finish(row=row, state=CANCELLED, crashes=row.crashes) for row in moved])
    else:
        tx.changed.update(row.queue for row in moved)
        await tx.remove([row.seq for row in moved])
    moved.clear()


def _meant(change: JobEdit, sequence: int, row: Row, now: float) -> bool:
    """Return whether the row is still there for the edit and is the one that it means."""
    if (row.state >= FIRST_FINAL and row.expired <= now) or sequence not in {0, row.seq}:
        return False
    return not change.states or row.shown(now) in change.states


async def _cancel(tx: Transaction, row: Row, moved: list[Row]) -> _Outcome:
    state = row.shown(tx.now)
    if not allowed(state, Event.CANCEL):
        return EditStatus.FINISHED, state
    if row.state < RUNNING:
        moved.append(row)
        return EditStatus.DONE, JobState.CANCELLED
    tx.changed.add(row.queue)
    tx.note(await tx.db.fetchval(_ASK, row.seq))
    return EditStatus.REQUESTED, JobState.RUNNING


async def _redrive(tx: Transaction, row: Row) -> _Outcome:
    if not allowed(STATES[row.state], Event.REDRIVE) or not await _retake_key(tx, row):
        return EditStatus.CONFLICT, STATES[row.state]
    await tx.db.execute(_REDRIVE, row.seq, tx.now)
    entered = row.seq if row.entered is None else row.entered
    counted, since = True, None
    if row.batch is not None:
        # Its batch may have been forgotten since it ended, and then counts it anew.
        stored = await tx.db.fetchval(
            "SELECT since FROM batch WHERE namespace = $1 AND name = $2 "
            "AND (expires IS NULL OR expires > $3)",
            tx.namespace,
            row.batch,
            tx.now,
        )
        counted = stored is not None and entered >= stored
        if not counted:
            since = await tx.db.fetchval("SELECT nextval('job_sequence')")
            await tx.db.execute("UPDATE job SET entered = $2 WHERE seq = $1", row.seq, since)
    await tx.book(row, row.state, QUEUED, "redriven", fresh=not counted, since=since)
    return EditStatus.DONE, JobState.QUEUED


async def _retain(tx: Transaction, row: Row, ttl: float | None) -> _Outcome:
    state = row.shown(tx.now)
    tx.changed.add(row.queue)
    if row.state < FIRST_FINAL:
        await tx.db.execute(
            "UPDATE job SET result_ttl = $2, failure_ttl = $2 WHERE seq = $1", row.seq, ttl
        )
        return EditStatus.DONE, state
    ended = tx.now if row.finished_at is None else row.finished_at
    result_ttl = row.result_ttl
    if row.state == SUCCEEDED and (result_ttl is None or ended + result_ttl > tx.now):
        result_ttl = None if ttl is None else tx.now + ttl - ended
    expires = tidy = None
    if ttl is not None:
        expires = max(tx.now + ttl, ended + row.id_ttl)
        tidy = max(expires, ended + LINGER)
    if row.state == SUCCEEDED and row.has_result and result_ttl is not None:
        looked_at = ended + max(result_ttl, LINGER)
        tidy = looked_at if tidy is None else min(tidy, looked_at)
    await tx.db.execute(
        "UPDATE done SET expires_at = $2, tidy_at = $3, result_ttl = $4 WHERE seq = $1",
        row.seq,
        expires,
        tidy,
        result_ttl,
    )
    return EditStatus.DONE, state


async def _reprioritise(tx: Transaction, row: Row, priority: int) -> _Outcome:
    state = row.shown(tx.now)
    if state.final:
        return EditStatus.FINISHED, state
    tx.changed.add(row.queue)
    await tx.db.execute("UPDATE job SET priority = $2 WHERE seq = $1", row.seq, priority)
    if row.state == QUEUED and row.lane is not None:
        await tx.repair([(row.queue, row.lane)])
    return EditStatus.DONE, state


async def _retake_key(tx: Transaction, row: Row) -> bool:
    """Give a job its unique key again, unless another job holds it."""
    if row.unique_key is None:
        return True
    holder = await tx.db.fetchval(_HOLDER, row.queue, row.unique_key, tx.now)
    if holder is not None and holder != row.seq:
        return False
    until = tx.now + (row.unique_ttl or 0.0) if row.unique_mode == THROTTLE else None
    await tx.db.execute(
        _HOLD, row.queue, row.unique_key, row.seq, row.id, row.generation, until
    )
    return True


async def edit_queues(
    tx: Transaction, change: Pause | Drain | Resume | Configure
) -> list[EditReply]:
    """Change queues and answer for each that is named."""
    if isinstance(change, Configure):
        numbers, _ = await tx.names.number(
            {settings.queue for settings in change.settings}, db=tx.db
        )
        for settings in change.settings:
            await _configure(tx, await _queue(tx, numbers[settings.queue]), settings)
        return [_DONE] * len(change.settings)
    numbers, _ = await tx.names.number(change.queues, db=tx.db)
    for name in change.queues:
        await _set_queue(tx, await _queue(tx, numbers[name]), change)
    return [_DONE] * len(change.queues)


async def _queue(tx: Transaction, number: int) -> Any:
    await tx.db.execute("UPDATE queue SET said = true WHERE id = $1 AND NOT said", number)
    return await tx.db.fetchrow("SELECT * FROM queue WHERE id = $1", number)


async def _set_queue(tx: Transaction, queue: Any, change: Pause | Drain | Resume) -> None:
    paused, draining = queue["paused"], queue["draining"]
    if isinstance(change, Pause):
        paused = True
    elif isinstance(change, Drain):
        draining = True
    else:
        paused = draining = False
    if (paused, draining) == (queue["paused"], queue["draining"]):
        return
    await tx.db.execute(
        "UPDATE queue SET paused = $2, draining = $3 WHERE id = $1", queue["id"], paused, draining
    )
    tx.changed.add(queue["id"])
    if queue["paused"] and not paused:
        tx.opened(queue["id"], ALL)


#: Lanes with queued jobs, found one after the other.
_LANES = """
    WITH RECURSIVE found (lane) AS (
        (SELECT lane FROM job WHERE queue = $1 AND state = 1 AND eligible < 2
            AND lane IS NOT NULL ORDER BY lane LIMIT 1)
        UNION ALL
        SELECT n.lane FROM found CROSS JOIN LATERAL (
            SELECT job.lane FROM job WHERE job.queue = $1 AND state = 1 AND eligible < 2
                AND job.lane IS NOT NULL AND job.lane > found.lane ORDER BY job.lane LIMIT 1
        ) n
    )
    SELECT lane FROM found
"""


async def _configure(tx: Transaction, queue: Any, settings: QueueSettings) -> None:
    number = queue["id"]
    await _limit(tx, queue, settings)
    wanted = (settings.max_running, settings.lane_max_running, settings.max_length)
    stored = (queue["max_running"], queue["lane_max_running"], queue["max_length"])
    if queue["configured"] and wanted == stored:
        return
    await tx.db.execute(
        "UPDATE queue SET configured = true, max_running = $2, lane_max_running = $3, "
        "max_length = $4 WHERE id = $1",
        number,
        *wanted,
    )
    if settings.lane_max_running != queue["lane_max_running"]:
        await tx.repair([(number, row["lane"]) for row in await tx.db.fetch(_LANES, number)])
    tx.opened(number, ALL)


async def _limit(tx: Transaction, queue: Any, settings: QueueSettings) -> None:
    """Set what limiters decide; new limits hold from the next claim on, whatever is parked."""
    limits = (settings.limits, settings.lane_limits)
    if limits == (queue["limits"], queue["lane_limits"]):
        return
    number = queue["id"]
    await tx.db.execute(
        "UPDATE queue SET limits = $2, lane_limits = $3, revision = revision + 1 WHERE id = $1",
        number,
        *limits,
    )
    if queue["parked_until"] is not None:
        await park_queue(tx, number, None)
    parked = await tx.db.fetch(
        "SELECT name FROM lane WHERE queue = $1 AND parked_until IS NOT NULL", number
    )
    await unpark(tx, number, [row["name"] for row in parked])
    tx.opened(number, ALL)
