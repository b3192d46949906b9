"""The bare engines: what the same work costs without anything that plugq promises.

No lease, no retry, no duplicate is looked for, nobody is woken. They are the yardstick beside which
a figure of plugq means something on a machine that nobody else has.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from pathlib import Path

BATCH = 100
_SCHEMA = """
    CREATE TABLE job (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, payload BLOB, token INTEGER,
        result BLOB);
    CREATE INDEX job_ready ON job (id) WHERE state = 1;
"""


def sqlite_cycles(path: Path, synchronous: str, jobs: int) -> tuple[float, float]:
    """Return rows inserted and rows claimed and completed a second, 100 in a transaction each."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {synchronous}")
        db.executescript(_SCHEMA)
        began = time.perf_counter()
        for start in range(0, jobs, 1000):
            rows = [(number, bytes(100)) for number in range(start, min(start + 1000, jobs))]
            db.execute("BEGIN IMMEDIATE")
            db.executemany("INSERT INTO job (id, state, payload) VALUES (?, 1, ?)", rows)
            db.execute("COMMIT")
        inserted = time.perf_counter()
        done = 0
        while claimed := _claim(db):
            _complete(db, claimed)
            done += len(claimed)
        ended = time.perf_counter()
    assert done == jobs
    return jobs / (inserted - began), jobs / (ended - inserted)


def _claim(db: sqlite3.Connection) -> list[tuple[int, bytes]]:
    db.execute("BEGIN IMMEDIATE")
    rows = db.execute(
        "SELECT id, payload FROM job WHERE state = 1 ORDER BY id LIMIT ?", (BATCH,)
    ).fetchall()
    db.executemany(
        "UPDATE job SET state = 2, token = ? WHERE id = ?", [(id_, id_) for id_, _ in rows]
    )
    db.execute("COMMIT")
    return rows


def _complete(db: sqlite3.Connection, rows: list[tuple[int, bytes]]) -> None:
    db.execute("BEGIN IMMEDIATE")
    db.executemany(
        "UPDATE job SET state = 3, result = ? WHERE id = ? AND token = ?",
        [(b"1", id_, id_) for id_, _ in rows],
    )
    db.execute("COMMIT")


async def asyncio_loop(jobs: int, concurrency: int) -> float:
    """Return jobs a second of a queue in memory with one task for each job."""
    line: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    for number in range(jobs):
        line.put_nowait((number, "text"))
    results: dict[int, int] = {}
    slots = asyncio.Semaphore(concurrency)

    async def run(number: int) -> None:
        results[number] = number
        slots.release()

    began = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    for _ in range(jobs):
        await slots.acquire()
        number, _ = await line.get()
        task = asyncio.create_task(run(number))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    took = time.perf_counter() - began
    assert len(results) == jobs
    return jobs / took
