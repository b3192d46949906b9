"""Writing whole jobs as they are, for a migration from another store."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import LINGER, JobRef, JobState
from plugq_postgres._rows import (
    CODES,
    KINDS,
    QUEUED,
    RUNNING,
    columns,
    name,
    packed,
    packed_failure,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plugq.job import JobRecord
    from plugq_postgres._transaction import Transaction

#: What a submission says when nothing else is said; a whole job does not tell its own.
_RESULT_TTL, _FAILURE_TTL, _ID_TTL = 3600.0, 604_800.0, 600.0

_COLUMNS = (
    ("seq", "int8"),
    ("place", "int8"),
    ("queue", "int4"),
    ("task", "int4"),
    ("state", "int2"),
    ("eligible", "int2"),
    ("cancel", "bool"),
    ("priority", "int8"),
    ("ready_at", "float8"),
    ("token", "int8"),
    ("attempt", "int8"),
    ("max_attempts", "int8"),
    ("crashes", "int8"),
    ("generation", "int8"),
    ("entered", "int8"),
    ("lease_until", "float8"),
    ("deadline_at", "float8"),
    ("submitted_at", "float8"),
    ("started_at", "float8"),
    ("finished_at", "float8"),
    ("expires_at", "float8"),
    ("tidy_at", "float8"),
    ("result_ttl", "float8"),
    ("id", "bytea"),
    ("submission", "bytea"),
    ("lane", "bytea"),
    ("batch", "bytea"),
    ("worker", "bytea"),
    ("code", "bytea"),
    ("progress", "bytea"),
    ("body", "bytea"),
    ("result", "bytea"),
)
_NAMES = ", ".join(column for column, _ in _COLUMNS)
_ARRAYS = ", ".join(f"${place}::{kind}[]" for place, (_, kind) in enumerate(_COLUMNS, 2))
_INSERT = (
    "INSERT INTO {table} "
    f"({_NAMES}, namespace, number, failure_ttl, id_ttl) "
    f"SELECT {_NAMES}, $1, -1, {_FAILURE_TTL}, {_ID_TTL} FROM unnest({_ARRAYS}) "
    f"AS s ({_NAMES})"
)
#: Each entry of a history comes with the job that it belongs to.
_HISTORY = (
    "UPDATE {table} SET history = s.history FROM ("
    "SELECT seq, array_agg(entry ORDER BY n) AS history "
    "FROM unnest($1::int8[], $2::bytea[]) WITH ORDINALITY AS s (seq, entry, n) GROUP BY seq"
    ") s WHERE {table}.seq = s.seq"
)
#: No two restore at once: sequences that are granted later are greater than all restored ones.
_ALONE = "SELECT pg_advisory_xact_lock('job_sequence'::regclass::oid::bigint)"
_NUMBERS = "SELECT nextval('job_sequence') AS seq FROM generate_series(1, $1)"
#: No more numbers than these are taken by others while a statement runs.
_GAP = 1_000_000
#: Far ahead it is set; near by, where others take numbers too, they are taken one by one, since to
#: set it then might give some of them out again.
_SKIP = f"SELECT setval('job_sequence', $1) FROM job_sequence WHERE last_value < $1 - {_GAP}"
_STEP = (
    "SELECT count(nextval('job_sequence')) FROM job_sequence, "
    "generate_series(last_value, $1) WHERE last_value < $1"
)
_TAKEN = (
    "SELECT place FROM job WHERE namespace = $1 AND place = ANY ($2) "
    "UNION ALL SELECT place FROM done WHERE namespace = $1 AND place = ANY ($2)"
)
_GRANTED = (
    "UPDATE queue SET token = greatest(queue.token, s.token), said = true "
    "FROM unnest($1::int[], $2::int8[]) AS s (id, token) WHERE queue.id = s.id"
)


async def restore(tx: Transaction, jobs: Sequence[JobRecord]) -> None:
    """Write jobs whose ids are new.

    A job keeps its sequence where that is free. Sequences and tokens that are granted later are
    greater than every one restored.
    """
    wanted = {(job.queue, job.id): job for job in reversed(jobs)}
    existing = await tx.rows([JobRef(queue, id_) for queue, id_ in wanted])
    new = [job for job, row in zip(wanted.values(), existing, strict=True) if row is None]
    if not new:
        return
    new.sort(key=lambda job: job.sequence)
    await tx.db.execute(_ALONE)
    places = [job.sequence for job in new]
    taken = {row["place"] for row in await tx.db.fetch(_TAKEN, tx.namespace, places)}
    await tx.db.execute(_SKIP, max(places))
    await tx.db.execute(_STEP, max(places))
    entered, *seqs = [row["seq"] for row in await tx.db.fetch(_NUMBERS, len(new) + 1)]
    queues, tasks = await tx.names.number(
        {job.queue for job in new}, {job.task for job in new}, db=tx.db
    )
    rows: list[tuple[Any, ...]] = []
    for job, seq in zip(new, seqs, strict=True):
        place = job.sequence
        if place < 1 or place in taken:
            place = seq
        taken.add(place)
        kept = (seq, place, entered)
        rows.append(_columns(tx.now, job, kept, queues, tasks))
    for table, ended in (("job", False), ("done", True)):
        part = [(job, row) for job, row in zip(new, rows, strict=True) if job.state.final is ended]
        if part:
            statement = _INSERT.format(table=table)
            values = columns([row for _, row in part], len(_COLUMNS))
            await tx.db.execute(statement, tx.namespace, *values)
        history = [(row[0], packed_failure(entry)) for job, row in part for entry in job.history]
        if history:
            await tx.db.execute(_HISTORY.format(table=table), *columns(history, 2))
    await _book(tx, new, entered, queues, tasks)


async def _book(
    tx: Transaction,
    jobs: Sequence[JobRecord],
    entered: int,
    queues: Mapping[str, int],
    tasks: Mapping[str, int],
) -> None:
    tokens: dict[int, int] = {}
    for job in jobs:
        number = queues[job.queue]
        tokens[number] = max(job.token, tokens.get(number, 0))
    await tx.db.execute(_GRANTED, list(tokens), list(tokens.values()))
    tx.changed.update(tokens)
    moves = [
        (
            queues[job.queue],
            tasks[job.task],
            name(job.lane),
            name(job.batch),
            CODES[job.state],
        )
        for job in jobs
    ]
    tx.note(
        await tx.db.fetchval(
            "SELECT ROW (book_v1($1, $2, $3, ARRAY(SELECT ROW (s.queue, s.task, s.lane, s.batch, "
            f"NULL, s.state, {KINDS['accepted']}, NULL, false)::move_v1 "
            "FROM unnest($4::int[], $5::int[], $6::bytea[], $7::bytea[], $8::int2[]) "
            "AS s (queue, task, lane, batch, state))), NULL)::effect_v1::text",
            tx.namespace,
            tx.now,
            entered,
            *columns(moves, 5),
        )
    )


def _columns(
    now: float,
    job: JobRecord,
    kept: tuple[int, int, int],
    queues: Mapping[str, int],
    tasks: Mapping[str, int],
) -> tuple[Any, ...]:
    seq, place, entered = kept
    state = CODES[job.state]
    finished_at = job.finished_at
    result_ttl: float | None = _RESULT_TTL
    tidy_at: float | None = None
    if job.state.final:
        finished_at = now if finished_at is None else finished_at
        if job.expires_at is not None:
            tidy_at = max(job.expires_at, finished_at + LINGER)
        if job.state is JobState.SUCCEEDED:
            result_ttl = None if job.expires_at is None else job.expires_at - finished_at
    lease_until = job.lease_until
    return (
        seq,
        place,
        queues[job.queue],
        tasks[job.task],
        state,
        int(state == QUEUED and job.lane is None),
        job.cancel_requested,
        job.priority,
        job.ready_at,
        job.token,
        job.attempt,
        job.max_attempts,
        job.crashes,
        job.generation,
        entered if job.batch is not None else None,
        (now if lease_until is None else lease_until) if state == RUNNING else None,
        job.deadline_at,
        job.submitted_at,
        job.started_at,
        finished_at,
        job.expires_at,
        tidy_at,
        result_ttl,
        job.id.encode(),
        job.submission,
        name(job.lane),
        name(job.batch),
        job.worker.encode(),
        job.code.encode(),
        packed(job.progress),
        job.body or b"",
        job.result,
    )
