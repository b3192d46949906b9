"""An operator's changes to jobs and queues."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from dataclasses import dataclass, field
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
    columns,
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
    "seq, place, namespace, queue, task, priority, token, max_attempts, generation, number, "
    "entered, submitted_at, started_at, result_ttl, failure_ttl, id_ttl, unique_ttl, "
    "unique_mode, id, submission, lane, batch, unique_key, origin, worker, peer, history, body"
)
_REDRIVE = (
    f"WITH again AS (DELETE FROM done WHERE seq = ANY ($1) RETURNING *) INSERT INTO job ({_COPIED},"
    f" state, eligible, ready_at) SELECT {_COPIED}, 1, (lane IS NULL)::integer, $2 FROM again"
)
_HOLDERS = (
    "SELECT u.queue, u.key, u.seq FROM unnest($1::int[], $2::bytea[]) AS s (queue, key) "
    "JOIN unique_key u ON u.queue = s.queue AND u.key = s.key WHERE u.until IS NULL OR u.until > $3"
)
_HOLD = (
    "INSERT INTO unique_key (namespace, queue, key, seq, place, id, generation, state, until) "
    "SELECT $1, s.queue, s.key, s.seq, s.place, s.id, s.generation, 1, s.until "
    "FROM unnest($2::int[], $3::bytea[], $4::int8[], $5::int8[], $6::bytea[], $7::int8[], "
    "$8::float8[]) AS s (queue, key, seq, place, id, generation, until) "
    "ON CONFLICT (queue, key) DO UPDATE SET "
    "seq = excluded.seq, place = excluded.place, id = excluded.id, "
    "generation = excluded.generation, state = excluded.state, until = excluded.until"
)
_BATCHES = (
    "SELECT name, since FROM batch WHERE namespace = $1 AND name = ANY ($2) "
    "AND (expires IS NULL OR expires > $3)"
)
_ENTER = (
    "WITH s AS MATERIALIZED (SELECT nextval('job_sequence') AS since), "
    "entered AS (UPDATE job SET entered = s.since FROM s WHERE job.seq = ANY ($1)) "
    "SELECT since FROM s"
)
_ASK = (
    "WITH asked AS (UPDATE job SET cancel = true WHERE seq = ANY ($1) RETURNING peer, queue, id) "
    "SELECT ROW (NULL, array_agg(ROW (NULL, peer, 2, queue, id)::letter_v1))::effect_v1::text "
    "FROM asked WHERE peer <> ''"
)
_RETAIN = "UPDATE job SET result_ttl = $2, failure_ttl = $2 WHERE seq = ANY ($1)"
_KEEP = (
    "UPDATE done SET expires_at = s.expires_at, tidy_at = s.tidy_at, result_ttl = s.result_ttl "
    "FROM unnest($1::int8[], $2::float8[], $3::float8[], $4::float8[]) "
    "AS s (seq, expires_at, tidy_at, result_ttl) WHERE done.seq = s.seq"
)
_REPRIORITISE = "UPDATE job SET priority = $2 WHERE seq = ANY ($1)"


async def edit_jobs(tx: Transaction, change: JobEdit) -> list[EditReply]:
    """Change jobs and answer for each that is named."""
    replies: list[EditReply] = []
    seen: set[JobRef] = set()
    pending = _Pending()
    sequences = change.sequences or (0,) * len(change.refs)
    rows = await tx.rows(change.refs)
    await tx.names.learn((), {row.task for row in rows if row is not None}, db=tx.db)
    if isinstance(change, Redrive):
        pending.holders = await _holders(tx, rows)
    for ref, sequence, row in zip(change.refs, sequences, rows, strict=True):
        if ref in seen:
            # A job that is named twice is looked at again as the first time left it.
            await pending.write(tx, change)
            row = (await tx.rows([ref]))[0]  # noqa: PLW2901
        seen.add(ref)
        if row is None or not _meant(change, sequence, row, tx.now):
            replies.append(_NOT_FOUND)
        else:
            status, state = _change(tx, change, row, pending)
            task = tx.names.task(row.task)
            replies.append(EditReply(status, state, task, text(row.lane), text(row.batch)))
    await pending.write(tx, change)
    return replies


@dataclass(slots=True)
class _Pending:
    """What is written for all jobs of an edit at once."""

    #: Waiting jobs to be cancelled, or ended ones to be removed.
    moved: list[Row] = field(default_factory=list)
    #: Running jobs whose cancelling is asked for.
    asked: list[int] = field(default_factory=list)
    #: Jobs that live, by sequence, and ended ones with their times.
    retained: list[int] = field(default_factory=list)
    kept: list[tuple[int, float | None, float | None, float | None]] = field(default_factory=list)
    reprioritised: list[Row] = field(default_factory=list)
    #: Ended jobs that are to run again, and who holds the unique keys that these had.
    redriven: list[Row] = field(default_factory=list)
    holders: dict[tuple[int, bytes], int] = field(default_factory=dict)

    async def write(self, tx: Transaction, change: JobEdit) -> None:
        """Write it."""
        if isinstance(change, Cancel):
            await tx.finish(
                [Finish(row=row, state=CANCELLED, crashes=row.crashes) for row in self.moved]
            )
        else:
            tx.changed.update(row.queue for row in self.moved)
            await tx.remove([row.seq for row in self.moved])
        if self.redriven:
            await _run_again(tx, self.redriven)
        if self.asked:
            tx.note(await tx.db.fetchval(_ASK, self.asked))
        if isinstance(change, Retain):
            await tx.db.execute(_RETAIN, self.retained, change.ttl)
            await tx.db.execute(_KEEP, *columns(self.kept, 4))
        if isinstance(change, Reprioritise):
            rows = self.reprioritised
            await tx.db.execute(_REPRIORITISE, [row.seq for row in rows], change.priority)
            await tx.repair(
                {
                    (row.queue, row.lane)
                    for row in rows
                    if row.lane is not None and row.state == QUEUED
                }
            )
        for collected in (self.moved, self.asked, self.retained, self.kept):
            collected.clear()
        self.reprioritised.clear()
        self.redriven.clear()


def _change(tx: Transaction, change: JobEdit, row: Row, pending: _Pending) -> _Outcome:
    """Collect the change of one job; return what is done, and the state after it."""
    tx.changed.add(row.queue)
    if isinstance(change, Cancel):
        return _cancel(tx, row, pending)
    if isinstance(change, Redrive):
        return _redrive(row, pending)
    if isinstance(change, Retain):
        return _retain(tx, row, change.ttl, pending)
    if isinstance(change, Reprioritise):
        state = row.shown(tx.now)
        if state.final:
            return EditStatus.FINISHED, state
        pending.reprioritised.append(row)
        return EditStatus.DONE, state
    if allowed(STATES[row.state], Event.REMOVE):
        pending.moved.append(row)
        return EditStatus.DONE, None
    return EditStatus.CONFLICT, STATES[row.state]


def _meant(change: JobEdit, sequence: int, row: Row, now: float) -> bool:
    """Return whether the row is still there for the edit and is the one that it means."""
    if (row.state >= FIRST_FINAL and row.expired <= now) or sequence not in {0, row.place}:
        return False
    return not change.states or row.shown(now) in change.states


def _cancel(tx: Transaction, row: Row, pending: _Pending) -> _Outcome:
    state = row.shown(tx.now)
    if not allowed(state, Event.CANCEL):
        return EditStatus.FINISHED, state
    if row.state < RUNNING:
        pending.moved.append(row)
        return EditStatus.DONE, JobState.CANCELLED
    pending.asked.append(row.seq)
    return EditStatus.REQUESTED, JobState.RUNNING


def _redrive(row: Row, pending: _Pending) -> _Outcome:
    if not allowed(STATES[row.state], Event.REDRIVE):
        return EditStatus.CONFLICT, STATES[row.state]
    if row.unique_key is not None:
        key = (row.queue, row.unique_key)
        if pending.holders.setdefault(key, row.seq) != row.seq:
            return EditStatus.CONFLICT, STATES[row.state]
    pending.redriven.append(row)
    return EditStatus.DONE, JobState.QUEUED


async def _holders(tx: Transaction, rows: Sequence[Row | None]) -> dict[tuple[int, bytes], int]:
    """Return which jobs hold the unique keys of these."""
    keys = {
        (row.queue, row.unique_key)
        for row in rows
        if row is not None and row.unique_key is not None
    }
    if not keys:
        return {}
    found = await tx.db.fetch(_HOLDERS, *columns(list(keys), 2), tx.now)
    return {(row["queue"], row["key"]): row["seq"] for row in found}


async def _run_again(tx: Transaction, rows: Sequence[Row]) -> None:
    """Queue ended jobs again, with the unique keys that they had."""
    held = [
        (
            row.queue,
            row.unique_key,
            row.seq,
            row.place,
            row.id,
            row.generation,
            tx.now + (row.unique_ttl or 0.0) if row.unique_mode == THROTTLE else None,
        )
        for row in rows
        if row.unique_key is not None
    ]
    if held:
        await tx.db.execute(_HOLD, tx.namespace, *columns(held, 7))
    await tx.db.execute(_REDRIVE, [row.seq for row in rows], tx.now)
    batches = sorted({row.batch for row in rows if row.batch is not None})
    fresh: set[int] = set()
    since = None
    if batches:
        stored = await tx.db.fetch(_BATCHES, tx.namespace, batches, tx.now)
        began = {row["name"]: row["since"] for row in stored}
        # A batch may have been forgotten since a job of it ended, and then counts it anew.
        fresh = {
            row.seq
            for row in rows
            if row.batch is not None
            and (row.batch not in began or _entered(row) < began[row.batch])
        }
    if fresh:
        since = await tx.db.fetchval(_ENTER, list(fresh))
    await tx.book(rows, QUEUED, "redriven", fresh=fresh, since=since)


def _entered(row: Row) -> int:
    """Return the sequence at which a job entered its batch."""
    return row.place if row.entered is None else row.entered


def _retain(tx: Transaction, row: Row, ttl: float | None, pending: _Pending) -> _Outcome:
    state = row.shown(tx.now)
    if row.state < FIRST_FINAL:
        pending.retained.append(row.seq)
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
    pending.kept.append((row.seq, expires, tidy, result_ttl))
    return EditStatus.DONE, state


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
