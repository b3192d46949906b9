"""Reading: jobs, pages, counts and registers, each from one statement and so as of one moment."""

# ruff: noqa: S608 - statements are put together from constants and a quoted name; values are bound

from __future__ import annotations

from math import exp
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import PlugqError
from plugq.job import LINGER, JobRecord
from plugq.protocols.edits import QueueSettings
from plugq.protocols.storage import (
    RATE_TIME,
    BatchCounts,
    Loaded,
    Page,
    QueueStats,
    Register,
    Stats,
    TaskStats,
)
from plugq_postgres._rows import (
    CODES,
    FAILED,
    FIRST_FINAL,
    KINDS,
    RUNNING,
    SHOWN,
    STATES,
    TOTALS,
    job_record,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from plugq.job import JobRef
    from plugq.protocols.storage import FindQuery
    from plugq_postgres._database import Database
    from plugq_postgres._names import Names

#: How many jobs one page looks at.
EXAMINED = 1_000
_MOST_CURSOR = 2**63


class Reader:
    """The verbs that change nothing; none of them takes a lock.

    Where a user's transaction has committed jobs that nobody has moved in, that is done first.
    """

    def __init__(
        self,
        database: Database,
        names: Names,
        admit: Callable[[Collection[str] | None], Awaitable[None]],
    ) -> None:
        self._database = database
        self._names = names
        #: Moves in what users have committed, in these queues or in all.
        self._admit = admit

    async def get(
        self, refs: Sequence[JobRef], *, body: bool, waiting: bool
    ) -> list[JobRecord | None]:
        """Return jobs with their results."""
        database = self._database

        async def read(*, look: bool) -> list[Any]:
            return await database.read(
                f"SELECT * FROM {database.schema}.get_v1($1, $2, $3, $4, $5, $6)",
                database.namespace,
                database.at,
                [ref.queue.encode() for ref in refs],
                [ref.id.encode() for ref in refs],
                body,
                look,
            )

        rows = await read(look=True)
        if rows and rows[0]["n"] == 0:
            await self._admit({ref.queue for ref in refs})
            rows = await read(look=False)
        found: list[JobRecord | None] = [None] * len(refs)
        for row in rows:
            now = database.now(row["now"])
            finished_at, expires_at = row["finished_at"], row["expires_at"]
            lingers = waiting and finished_at is not None and now < finished_at + LINGER
            if lingers or expires_at is None or expires_at > now:
                found[row["n"] - 1] = job_record(
                    row,
                    row["queue_name"].decode(),
                    row["task_name"].decode(),
                    now,
                    result=row["result"],
                    body=row["body"],
                    lingers=lingers,
                )
        return found

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first.

        Raises:
            PlugqError: the cursor is none that a page has given out.
        """
        database = self._database
        values: list[Any] = [database.namespace]
        ranged = _range(query, values)
        clock = _value(values, database.at)
        bound = (
            f"SELECT count(*), min(place), {database.schema}.clock_v1($1, {clock}) "
            f"FROM ({self._both('place', ranged, str(EXAMINED))}) u"
        )
        waits = f"EXISTS (SELECT 1 FROM {database.schema}.inbox WHERE namespace = $1"
        if query.queue is not None:
            waits += f" AND queue = {_value(values, query.queue.encode())}"
        bound = f"SELECT *, {waits}) FROM ({bound}) b"
        [(examined, lowest, seen, waiting)] = await database.read(bound, *values, in_order=True)
        if waiting:
            await self._admit(None if query.queue is None else {query.queue})
            [(examined, lowest, seen, _)] = await database.read(bound, *values, in_order=True)
        if not examined:
            return Page()
        now = database.now(seen)
        values = [database.namespace]
        where = [*_range(query, values), f"a.place >= {_value(values, lowest)}"]
        where += self._filters(query, now, values)
        limit = _value(values, query.limit)
        chosen = self._both(
            f"{SHOWN}, CASE WHEN result IS NOT NULL THEN ''::bytea END AS result", where, limit
        )
        rows = await database.read(chosen, *values, in_order=True)
        await self._names.learn([row["queue"] for row in rows], [row["task"] for row in rows])
        jobs = tuple(self._shown(row, now) for row in rows)
        if jobs and len(jobs) == query.limit:
            return Page(jobs=jobs, cursor=str(jobs[-1].sequence))
        return Page(jobs=jobs, cursor=str(lowest) if examined == EXAMINED else None)

    def _shown(self, row: Mapping[str, Any], now: float) -> JobRecord:
        queue, task = self._names.queue(row["queue"]), self._names.task(row["task"])
        shown = job_record(row, queue, task, now, result=row["result"])
        return shown if shown.result is None else _without_result(shown)

    def _both(self, columns: str, where: Sequence[str], limit: str) -> str:
        """Return a statement over live and ended jobs, newest first."""
        condition = " AND ".join(where) or "true"
        parts = [
            f"(SELECT {columns} FROM {self._database.schema}.{table} a WHERE {condition} "
            f"ORDER BY a.place DESC LIMIT {limit})"
            for table in ("job", "done")
        ]
        return f"{' UNION ALL '.join(parts)} ORDER BY place DESC LIMIT {limit}"

    def _filters(self, query: FindQuery, now: float, values: list[Any]) -> list[str]:
        moment = _value(values, now)
        where = [
            f"(a.state < {FIRST_FINAL} OR a.expires_at IS NULL OR a.expires_at > {moment}::float8)",
        ]
        if query.states:
            codes = ", ".join(str(CODES[state]) for state in query.states)
            where.append(
                f"CASE WHEN a.state < {RUNNING} AND a.deadline_at <= {moment}::float8 "
                f"THEN {FAILED} ELSE a.state END IN ({codes})"
            )
        schema = self._database.schema
        if query.queue is not None:
            name = _value(values, query.queue.encode())
            where.append(
                f"a.queue = (SELECT id FROM {schema}.queue WHERE namespace = $1 AND name = {name})"
            )
        if query.task is not None:
            name = _value(values, query.task.encode())
            where.append(f"a.task = (SELECT id FROM {schema}.task WHERE name = {name})")
        if query.since is not None:
            where.append(f"a.submitted_at >= {_value(values, query.since)}::float8")
        if query.until is not None:
            where.append(f"a.submitted_at < {_value(values, query.until)}::float8")
        return where

    async def batches(self, names: Sequence[str]) -> list[BatchCounts | None]:
        """Return the counts of each batch that is not forgotten."""
        database = self._database
        schema = database.schema
        statement = (
            f"SELECT s.n, one.now, one.waits, b.* FROM (SELECT {schema}.clock_v1($1, $2) AS now, "
            f"EXISTS (SELECT 1 FROM {schema}.inbox WHERE namespace = $1) AS waits) one "
            "LEFT JOIN unnest($3::bytea[]) WITH ORDINALITY AS s (name, n) ON true "
            f"LEFT JOIN {schema}.batch b ON b.namespace = $1 AND b.name = s.name"
        )
        values = (database.namespace, database.at, [name.encode() for name in names])
        rows = await database.read(statement, *values)
        if rows and rows[0]["waits"]:
            await self._admit(None)
            rows = await database.read(statement, *values)
        found: list[BatchCounts | None] = [None] * len(names)
        for row in rows:
            now = database.now(row["now"])
            if row["since"] is not None and (row["expires"] is None or row["expires"] > now):
                place = row["n"] - 1
                counts = {str(state): row[state.value] for state in STATES}
                found[place] = BatchCounts(batch=names[place], counts=counts)
        return found

    async def stats(self) -> Stats:
        """Return the counters of every task and the state of every queue."""
        database = self._database
        queues: dict[str, QueueStats] = {}
        tasks: list[TaskStats] = []
        now = 0.0
        statement = f"SELECT * FROM {database.schema}.stats_v1($1, $2, $3)"
        look = True
        rows = await database.read(statement, database.namespace, database.at, look)
        if rows[0]["now"] is None:
            await self._admit(None)
            look = False
            rows = await database.read(statement, database.namespace, database.at, look)
        for row in rows:
            now = database.now(row["now"])
            if row["queue"] is None:
                break
            name = row["queue"].decode()
            if name not in queues:
                queues[name] = _queue_stats(name, row, now)
            if row["task"] is not None:
                tasks.append(_task_stats(name, row, now))
        return Stats(now=now, queues=tuple(queues.values()), tasks=tuple(tasks))

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        database = self._database
        rows = await database.read(
            f"SELECT {database.schema}.clock_v1($1, $2) AS now, s.n, r.version, r.value, r.expires "
            "FROM (SELECT 1) one LEFT JOIN unnest($3::bytea[]) WITH ORDINALITY AS s (key, n) "
            f"ON true LEFT JOIN {database.schema}.register r "
            "ON r.namespace = $1 AND r.key = s.key",
            database.namespace,
            database.at,
            [key.encode() for key in keys],
        )
        now = max(database.now(row["now"]) for row in rows)
        found: list[Register | None] = [None] * len(keys)
        for row in rows:
            if row["version"] is not None and (row["expires"] is None or row["expires"] > now):
                place = row["n"] - 1
                found[place] = Register(key=keys[place], version=row["version"], value=row["value"])
        return Loaded(registers=tuple(found), now=now)

    async def scan(self, prefix: str) -> list[Register]:
        """Return the registers whose key starts with the prefix, by key."""
        database = self._database
        start = prefix.encode()
        values: list[Any] = [database.namespace, database.at, start]
        below = ""
        if start:
            # No byte of UTF-8 is 0xFF, so the last one can always be raised.
            below = f"AND r.key < {_value(values, start[:-1] + bytes([start[-1] + 1]))}"
        rows = await database.read(
            f"SELECT one.now, r.* FROM (SELECT {database.schema}.clock_v1($1, $2) AS now) one "
            f"LEFT JOIN {database.schema}.register r ON r.namespace = $1 AND r.key >= $3 {below} "
            "ORDER BY r.key",
            *values,
        )
        return [
            Register(key=row["key"].decode(), version=row["version"], value=row["value"])
            for row in rows
            if row["key"] is not None
            and (row["expires"] is None or row["expires"] > database.now(row["now"]))
        ]


def _value(values: list[Any], value: Any) -> str:
    values.append(value)
    return f"${len(values)}"


def _range(query: FindQuery, values: list[Any]) -> list[str]:
    """Return which part of the jobs is walked."""
    where = ["a.namespace = $1"]
    if query.batch is not None:
        where += [f"a.batch = {_value(values, query.batch.encode())}"]
    if query.cursor is not None:
        cursor = query.cursor
        known = cursor.isascii() and cursor.isdigit() and len(cursor) <= len(str(_MOST_CURSOR))
        if not known or int(cursor) >= _MOST_CURSOR:
            message = f"find: {cursor[:50]!r} is no cursor; pass the one of the page before"
            raise PlugqError(message)
        where.append(f"a.place < {_value(values, int(cursor))}")
    return where


def _without_result(job: JobRecord) -> JobRecord:
    return msgspec.structs.replace(job, result=None)


def _queue_stats(name: str, row: Mapping[str, Any], now: float) -> QueueStats:
    settings = QueueSettings(
        queue=name,
        max_running=row["max_running"],
        lane_max_running=row["lane_max_running"],
        max_length=row["max_length"],
        limits=row["limits"],
        lane_limits=row["lane_limits"],
    )
    oldest = row["oldest"]
    return QueueStats(
        queue=name,
        paused=row["paused"],
        draining=row["draining"],
        oldest=None if oldest is None else max(0.0, now - oldest),
        settings=settings if row["configured"] else None,
    )


def _task_stats(queue: str, row: Mapping[str, Any], now: float) -> TaskStats:
    counts = dict(zip(row["kinds"], row["counts"], strict=True))
    run_count = row["run_count"] or 0
    rate = row["rate"] or 0.0
    if rate:
        rate *= exp(-max(0.0, now - row["rate_at"]) / RATE_TIME)
    return TaskStats(
        queue=queue,
        task=row["task"].decode(),
        counts={str(state): counts.get(code, 0) for code, state in enumerate(STATES)},
        totals={total: counts.get(KINDS[total], 0) for total in TOTALS},
        run_time=row["run_seconds"] / run_count if run_count else None,
        rate=rate,
    )
