"""A file that an older plugq wrote is brought to the newest schema and goes on as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest

from plugq.errors import Unavailable
from plugq.job import JobRef, JobState, Outcome
from plugq.protocols import (
    BATCH_TTL,
    BatchCounts,
    ClaimRequest,
    Drain,
    FindQuery,
    NewJob,
    PluginContext,
    Redrive,
    Reprioritise,
    Resume,
    Retain,
    Settlement,
    SubmitStatus,
    SweepRequest,
)
from plugq_sqlite import SqliteStorage, _schema

OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]
Claims = Callable[..., ClaimRequest]

#: The end of the failed job, in the time of the file.
ENDED = 1_000.0


_QUEUE = "INSERT INTO queue (id, namespace, name, token) VALUES (1, ?, 'q', 7)"
_TALLY = f"INSERT INTO tally VALUES (1, 1, 0, 1, 1, 0, 1, 0, 0, 3, 2, 0, 1{', 0' * 8})"
_JOB = (
    "INSERT INTO job (seq, namespace, queue, id, task, state, eligible, nprio, ready_at, token, "
    "max_attempts, submitted_at, result_ttl, failure_ttl, id_ttl, batch, origin, submission, "
    "worker, lease_until, started_at, finished_at) VALUES "
    "(?, ?, 1, ?, 1, ?, 1, 0, 1.0, ?, 3, 1.0, 3600, NULL, 600, 'x', '', x'00', ?, ?, ?, ?)"
)
#: Sequence, id, state, token, worker, end of the lease, start and end of each job.
_JOBS = (
    (1, "failed", 4, 6, "w", None, 2.0, ENDED),
    (2, "running", 2, 7, "w", 9e9, 2.0, None),
    (3, "queued", 1, 0, "", None, None, None),
)


def write_first(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a file of schema 1 with a failed job, a running and a queued one, of one batch."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute("PRAGMA journal_mode = WAL").fetchone() == ("wal",)
        with monkeypatch.context() as patched:
            patched.setattr(_schema, "MIGRATIONS", _schema.MIGRATIONS[:1])
            _schema.migrate(db, path)
        namespace = _schema.namespace_number(db, PluginContext().namespace)
        db.execute(_QUEUE, (namespace,))
        db.execute("INSERT INTO task VALUES (1, 't')")
        db.execute(_TALLY)
        db.execute("UPDATE meta SET sequence = 3, now = ?", (ENDED,))
        for seq, *job in _JOBS:
            db.execute(_JOB, (seq, namespace, *job))
            db.execute("INSERT INTO body VALUES (?, ?)", (seq, b"of an older plugq"))


def counts(found: BatchCounts | None) -> dict[str, int]:
    assert found is not None
    return {state: count for state, count in found.counts.items() if count}


async def test_a_file_of_the_first_schema_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_store: OpenStore,
    new_job: NewJobs,
    claim: Claims,
) -> None:
    write_first(tmp_path / "jobs.db", monkeypatch)
    queued, running, failed = (JobRef("q", id) for id in ("queued", "running", "failed"))
    async with open_store() as storage:
        (known,) = await storage.batches(["x"])
        assert counts(known) == {"queued": 1, "running": 1, "failed": 1}
        (queue,) = (await storage.stats()).queues
        assert (queue.paused, queue.draining) == (False, False)
        assert queue.oldest is not None
        (task,) = (await storage.stats()).tasks
        assert (task.totals["accepted"], task.run_time, task.rate) == (3, None, 0.0)

        await storage.edit(Drain(("q",)))
        (refused,) = await storage.submit([new_job()])
        assert refused.status is SubmitStatus.DRAINING
        await storage.edit(Resume(("q",)))
        await storage.submit([new_job("new", batch="x")])
        await storage.edit(Retain((failed,), 900.0))
        await storage.edit(Redrive((failed,)))
        await storage.edit(Reprioritise((queued,), 5))
        leases = (await storage.claim(claim(10))).leases
        assert [lease.id for lease in leases] == ["queued", "new", "failed"]
        assert leases[0].body == b"of an older plugq"
        assert min(lease.token for lease in leases) > 7
        ends = [
            Settlement(queue="q", id=lease.id, token=lease.token, outcome=Outcome.SUCCEED)
            for lease in leases
        ]
        replies, _ = await storage.settle(ends)
        assert not any(reply.lost for reply in replies)
        (job,) = await storage.get([running])
        assert job is not None
        assert job.state is JobState.RUNNING
        (known,) = await storage.batches(["x"])
        assert counts(known) == {"running": 1, "succeeded": 3}
        (task,) = (await storage.stats()).tasks
        assert task.rate > 0
        assert task.run_time is not None
        assert len((await storage.find(FindQuery(batch="x"))).jobs) == 4
        await storage.sweep(SweepRequest())


async def test_a_batch_that_was_over_before_the_migration_is_forgotten_in_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_store: OpenStore
) -> None:
    write_first(tmp_path / "jobs.db", monkeypatch)
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as db:
        db.execute("DELETE FROM job WHERE state < 3")
        assert ENDED + BATCH_TTL < 1e9
    async with open_store() as storage:
        assert list(await storage.batches(["x"])) == [None]
        await storage.sweep(SweepRequest())
        rows = await storage._fetch("SELECT count(*) FROM batch", [])
        assert [tuple(row) for row in rows] == [(0,)]


async def test_a_file_that_another_process_migrated_is_not_written_any_more(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job("a")])
        with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
            other.execute(f"PRAGMA user_version = {len(_schema.MIGRATIONS) + 1}")
        with pytest.raises(Unavailable, match="migrated by a newer plugq-sqlite; restart"):
            await storage.submit([new_job("b")])
        assert await storage.get([JobRef("q", "b")]) == [None]
