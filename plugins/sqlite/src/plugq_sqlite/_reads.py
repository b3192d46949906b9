"""Reading: jobs, pages, counts and registers, each from one statement and so as of one moment."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.errors import PlugqError
from plugq.job import LINGER, JobRecord
from plugq.protocols.edits import QueueSettings
from plugq.protocols.storage import (
    BatchCounts,
    Loaded,
    Page,
    QueueStats,
    Register,
    Stats,
    TaskStats,
)
from plugq_sqlite._counts import decayed
from plugq_sqlite._rows import (
    CODES,
    FAILED,
    FIRST_FINAL,
    RUNNING,
    STATES,
    SUCCEEDED,
    TOTALS,
    attempt_record,
    progress_record,
)
from plugq_sqlite._statements import joins

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from plugq.job import JobRef
    from plugq.protocols.storage import FindQuery

    #: Runs one statement on the reading connection and returns its rows.
    Fetch = Callable[[str, Sequence[Any]], Awaitable[list[Any]]]
    #: Returns the storage's time, given the persisted one.
    Now = Callable[[float], float]

#: How many jobs one page looks at.
EXAMINED = 1_000

_JOB = """
    job.seq, queue.name, job.id, task.name, job.state, job.generation, job.submission, job.nprio,
    job.lane, job.batch, job.attempt, job.max_attempts, job.crashes, job.token, job.worker,
    job.submitted_at, job.ready_at, job.started_at, job.finished_at, job.expires_at,
    job.deadline_at, job.lease_until, job.cancel, job.progress, job.code, job.result_ttl,
    CASE WHEN job.failures > 0 THEN (SELECT group_concat(hex(record), ',') FROM
        (SELECT record FROM failure WHERE failure.seq = job.seq ORDER BY n)) END,
    job.result IS NOT NULL
"""
_GET = (
    "WITH s (k, queue, id) AS (VALUES ?) "
    f"SELECT s.k, meta.now, {_JOB}, job.result, {{body}} FROM s CROSS JOIN meta "
    "CROSS JOIN queue ON queue.namespace = {namespace} AND queue.name = s.queue "
    "CROSS JOIN job INDEXED BY job_id ON job.queue = queue.id AND job.id = s.id "
    "CROSS JOIN task ON task.id = job.task"
)
_BODY = "(SELECT data FROM body WHERE body.seq = job.seq)"
_BOUND = (
    "SELECT count(*), min(seq), (SELECT now FROM meta) "
    "FROM (SELECT seq FROM job {index} WHERE {where} ORDER BY seq DESC LIMIT ?)"
)
_PAGE = (
    f"SELECT {_JOB} FROM job {{index}} CROSS JOIN queue ON queue.id = job.queue "
    "CROSS JOIN task ON task.id = job.task WHERE {where} ORDER BY job.seq DESC LIMIT ?"
)
_TALLY_SUM = "tally.delayed, tally.queued, tally.running, tally.succeeded, tally.failed, " + (
    "tally.cancelled, tally.skipped, " + ", ".join(f"tally.total_{name}" for name in TOTALS)
)
#: The first of each priority, found one after the other, so that the jobs between cost nothing.
_OLDEST = """
    WITH RECURSIVE level (nprio) AS (
        SELECT (SELECT nprio FROM job INDEXED BY job_ready WHERE job.queue = queue.id
            AND state = 1 AND eligible = 1 ORDER BY nprio LIMIT 1)
        UNION ALL
        SELECT (SELECT job.nprio FROM job INDEXED BY job_ready WHERE job.queue = queue.id
            AND state = 1 AND eligible = 1 AND job.nprio > level.nprio ORDER BY job.nprio LIMIT 1)
        FROM level WHERE level.nprio IS NOT NULL
    )
    SELECT min((SELECT ready_at FROM job INDEXED BY job_ready WHERE job.queue = queue.id
        AND state = 1 AND eligible = 1 AND job.nprio = level.nprio ORDER BY ready_at LIMIT 1))
    FROM level
"""
_STATS = f"""
    WITH oldest (queue, ready_at) AS MATERIALIZED (
        SELECT queue.id, ({_OLDEST}) FROM queue WHERE queue.namespace = ?1
    )
    SELECT meta.now, queue.name, queue.paused, queue.draining, queue.configured,
        queue.max_running, queue.lane_max_running, queue.max_length, queue.limits,
        queue.lane_limits, oldest.ready_at,
        task.name, tally.run_seconds, tally.run_count, tally.rate, tally.rate_at, {_TALLY_SUM}
    FROM meta LEFT JOIN queue ON queue.namespace = ?1
        LEFT JOIN oldest ON oldest.queue = queue.id
        LEFT JOIN tally ON tally.queue = queue.id LEFT JOIN task ON task.id = tally.task
    ORDER BY queue.name, task.name
"""
_BATCHES = (
    "WITH s (k, name) AS (VALUES ?) "
    f"SELECT s.k, meta.now, batch.expires, {', '.join(f'batch.{state}' for state in STATES)} "
    "FROM s CROSS JOIN meta CROSS JOIN batch ON batch.namespace = ? AND batch.name = s.name"
)
_LOAD = (
    "WITH s (k, key) AS (VALUES ?) SELECT meta.now, s.k, r.version, r.value, r.expires FROM meta "
    "CROSS JOIN s LEFT JOIN register AS r ON r.namespace = ? AND r.key = s.key "
    "WHERE s.k IS NOT NULL"
)
_SCAN = (
    "SELECT meta.now, r.key, r.version, r.value, r.expires FROM meta CROSS JOIN register AS r "
    "WHERE r.namespace = ? AND r.key >= ? {below} ORDER BY r.key"
)


async def get(
    fetch: Fetch,
    now_of: Now,
    namespace: int,
    refs: Sequence[JobRef],
    *,
    body: bool,
    waiting: bool,
) -> list[JobRecord | None]:
    """Return jobs with their results."""
    found: list[JobRecord | None] = [None] * len(refs)
    template = _GET.format(namespace=namespace, body=_BODY if body else "NULL")
    keys = [(place, ref.queue, ref.id) for place, ref in enumerate(refs)]
    for statement, parameters in joins(template, keys):
        for place, stored, *columns in await fetch(statement, parameters):
            now = now_of(stored)
            expires_at = columns[19]
            finished_at = columns[18]
            lingers = waiting and finished_at is not None and now < finished_at + LINGER
            if lingers or expires_at is None or expires_at > now:
                data, text = columns[-2], columns[-1]
                found[place] = _job(columns, now, result=data, body=text, lingers=lingers)
    return found


def _job(
    columns: Sequence[Any],
    now: float,
    *,
    result: bytes | None = None,
    body: bytes | None = None,
    lingers: bool = False,
) -> JobRecord:
    """Return a job as it stands at ``now``; deadlines hold before a sweep stores them."""
    (seq, queue, id_, task, state, generation, submission, nprio, lane, batch) = columns[:10]
    (attempt, max_attempts, crashes, token, worker, submitted_at, ready_at) = columns[10:17]
    (started_at, finished_at, expires_at, deadline_at, lease_until) = columns[17:22]
    (cancel, progress, code, result_ttl, history, has_result) = columns[22:28]
    if _overdue(state, deadline_at, now):
        state, finished_at, code = FAILED, deadline_at, "deadline"
    kept = bool(has_result)
    if not lingers and result_ttl is not None and finished_at is not None:
        kept = kept and finished_at + result_ttl > now
    return JobRecord(
        queue=queue,
        id=id_,
        task=task,
        state=STATES[state],
        sequence=seq,
        generation=generation,
        submission=submission,
        priority=-nprio,
        lane=lane,
        batch=batch,
        attempt=attempt,
        max_attempts=max_attempts,
        crashes=crashes,
        token=token,
        worker=worker,
        submitted_at=submitted_at,
        ready_at=ready_at,
        started_at=started_at,
        finished_at=finished_at,
        expires_at=expires_at,
        deadline_at=deadline_at,
        lease_until=lease_until,
        cancel_requested=bool(cancel),
        progress=progress_record(progress),
        code=code,
        history=tuple(
            attempt_record(bytes.fromhex(record)) for record in (history or "").split(",") if record
        ),
        body=body,
        result=result if kept else None,
        result_expired=state == SUCCEEDED and not kept,
    )


def _overdue(state: int, deadline_at: float | None, now: float) -> bool:
    return state < RUNNING and deadline_at is not None and deadline_at <= now


async def find(fetch: Fetch, now_of: Now, namespace: int, query: FindQuery) -> Page:
    """Return one page, newest first.

    Raises:
        PlugqError: the cursor is none that a page has given out.
    """
    index, where, parameters = _range(namespace, query)
    bound = _BOUND.format(index=index, where=" AND ".join(where) or "TRUE")
    [(examined, lowest, stored)] = await fetch(bound, [*parameters, EXAMINED])
    if not examined:
        return Page()
    now = now_of(stored)
    more, values = _filters(namespace, query, now)
    where = [*where, "job.seq >= ?", *more]
    page = _PAGE.format(index=index, where=" AND ".join(where))
    rows = await fetch(page, [*parameters, lowest, *values, query.limit])
    jobs = tuple(_job(row, now) for row in rows)
    if len(jobs) == query.limit:
        return Page(jobs=jobs, cursor=str(jobs[-1].sequence))
    return Page(jobs=jobs, cursor=str(lowest) if examined == EXAMINED else None)


def _range(namespace: int, query: FindQuery) -> tuple[str, list[str], list[Any]]:
    """Return which part of the jobs is walked: an index, conditions on it and their values."""
    index = "NOT INDEXED"
    where: list[str] = []
    parameters: list[Any] = []
    if query.batch is not None:
        index = "INDEXED BY job_batch"
        where += ["job.namespace = ?", "job.batch = ?"]
        parameters += [namespace, query.batch]
    if query.cursor is not None:
        if not query.cursor.isascii() or not query.cursor.isdigit():
            message = f"find: {query.cursor!r} is no cursor; pass the one of the page before"
            raise PlugqError(message)
        where.append("job.seq < ?")
        parameters.append(int(query.cursor))
    return index, where, parameters


def _filters(namespace: int, query: FindQuery, now: float) -> tuple[list[str], list[Any]]:
    where = [
        # Not part of the range: a page would examine any number of another namespace's jobs.
        "job.namespace = ?",
        "NOT (job.state >= ? AND job.expires_at IS NOT NULL AND job.expires_at <= ?)",
    ]
    values: list[Any] = [namespace, FIRST_FINAL, now]
    if query.states:
        codes = ", ".join(str(CODES[state]) for state in query.states)
        where.append(
            "CASE WHEN job.state < ? AND job.deadline_at IS NOT NULL AND job.deadline_at <= ? "
            f"THEN ? ELSE job.state END IN ({codes})",
        )
        values += [RUNNING, now, FAILED]
    for condition, value in (
        ("queue.name = ?", query.queue),
        ("task.name = ?", query.task),
        ("job.submitted_at >= ?", query.since),
        ("job.submitted_at < ?", query.until),
    ):
        if value is not None:
            where.append(condition)
            values.append(value)
    return where, values


async def batches(
    fetch: Fetch, now_of: Now, namespace: int, names: Sequence[str]
) -> list[BatchCounts | None]:
    """Return the counts of each batch that is not forgotten."""
    found: list[BatchCounts | None] = [None] * len(names)
    rows = list(enumerate(names))
    for statement, parameters in joins(_BATCHES, rows, (namespace,)):
        for place, stored, expires, *counts in await fetch(statement, parameters):
            if expires is None or expires > now_of(stored):
                states = [str(state) for state in STATES]
                found[place] = BatchCounts(
                    batch=names[place],
                    counts=dict(zip(states, counts, strict=True)),
                )
    return found


async def stats(fetch: Fetch, now_of: Now, namespace: int) -> Stats:
    """Return the counters of every task and the state of every queue."""
    queues: dict[str, QueueStats] = {}
    tasks: list[TaskStats] = []
    now = 0.0
    for stored, name, *columns in await fetch(_STATS, [namespace]):
        now = now_of(stored)
        if name is None:
            break
        (paused, draining, configured, max_running, lane_max_running) = columns[:5]
        (max_length, limits, lane_limits, ready_at, task) = columns[5:10]
        (run_seconds, run_count, rate, rate_at) = columns[10:14]
        counts = columns[14:]
        if name not in queues:
            settings = QueueSettings(
                queue=name,
                max_running=max_running,
                lane_max_running=lane_max_running,
                max_length=max_length,
                limits=limits,
                lane_limits=lane_limits,
            )
            queues[name] = QueueStats(
                queue=name,
                paused=bool(paused),
                draining=bool(draining),
                oldest=None if ready_at is None else max(0.0, now - ready_at),
                settings=settings if configured else None,
            )
        if task is not None:
            states = [str(state) for state in STATES]
            tasks.append(
                TaskStats(
                    queue=name,
                    task=task,
                    counts=dict(zip(states, counts[: len(states)], strict=True)),
                    totals=dict(zip(TOTALS, counts[len(states) :], strict=True)),
                    run_time=run_seconds / run_count if run_count else None,
                    rate=decayed(rate, now - rate_at),
                ),
            )
    return Stats(now=now, queues=tuple(queues.values()), tasks=tuple(tasks))


async def load(fetch: Fetch, now_of: Now, namespace: int, keys: Sequence[str]) -> Loaded:
    """Return registers and the time."""
    found: list[Register | None] = [None] * len(keys)
    now = 0.0
    rows = [(place, key.encode()) for place, key in enumerate(keys)]
    if not rows:
        [(stored,)] = await fetch("SELECT now FROM meta", [])
        now = now_of(stored)
    for statement, parameters in joins(_LOAD, rows, (namespace,), whole=True):
        for stored, place, version, value, expires in await fetch(statement, parameters):
            now = now_of(stored)
            if version is not None and (expires is None or expires > now):
                found[place] = Register(key=keys[place], version=version, value=value)
    return Loaded(registers=tuple(found), now=now)


async def scan(fetch: Fetch, now_of: Now, namespace: int, prefix: str) -> list[Register]:
    """Return the registers whose key starts with the prefix, by key."""
    start = prefix.encode()
    parameters: list[Any] = [namespace, start]
    statement = _SCAN.format(below="AND r.key < ?" if start else "")
    if start:
        # No byte of UTF-8 is 0xFF, so the last one can always be raised.
        parameters.append(start[:-1] + bytes([start[-1] + 1]))
    found = []
    for stored, key, version, value, expires in await fetch(statement, parameters):
        if expires is None or expires > now_of(stored):
            found.append(Register(key=key.decode(), version=version, value=value))
    return found
