"""Jobs in a user's own transaction: what a connection may be like, and what it is left like."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import aiosqlite
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from plugq.errors import InvalidJob, Unavailable
from plugq.job import JobRef, JobState
from plugq.protocols import ClaimRequest, NewJob, PluginContext, SubmitStatus, Wake
from plugq_sqlite import SqliteOptions, SqliteStorage
from plugq_sqlite._schema import TABLES

OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]
Claims = Callable[..., ClaimRequest]


def connect(folder: Path, **options: object) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(folder / "jobs.db", **options))  # type: ignore[call-overload]


async def stored(storage: SqliteStorage, id: str) -> JobState | None:
    (job,) = await storage.get([JobRef("q", id)])
    return None if job is None else job.state


async def refusal(storage: SqliteStorage, connection: object, job: NewJob) -> str:
    with pytest.raises(InvalidJob) as caught:
        await storage.submit_within(connection, [job])
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_the_tables_of_the_file_are_known(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store():
        with connect(tmp_path) as db:
            rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    assert {name for (name,) in rows} == set(TABLES)


async def test_what_is_no_connection_is_refused_with_what_could_be_one(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        said = await refusal(storage, 7, new_job())
    assert said.startswith("connection: expected sqlite3.Connection, aiosqlite.Connection, or ")
    assert said.endswith("got builtins.int")


async def test_another_file_is_refused(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        for path in (tmp_path / "app.db", ":memory:"):
            with closing(sqlite3.connect(path)) as db:
                db.execute("BEGIN")
                said = await refusal(storage, db, new_job())
                assert f"the jobs are in {tmp_path / 'jobs.db'}; open that" in said
                db.execute("COMMIT")
                db.execute("ATTACH ? AS jobs", (str(tmp_path / "jobs.db"),))
                db.execute("BEGIN")
                assert "one transaction is in one file" in await refusal(storage, db, new_job())


@pytest.mark.skipif(sys.platform == "win32", reason="needs symbolic links")
async def test_another_name_of_the_file_is_the_same(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        (tmp_path / "app.db").symlink_to(tmp_path / "jobs.db")
        with closing(sqlite3.connect(tmp_path / "app.db")) as db:
            await storage.submit_within(db, [new_job("a")])
            db.commit()
        assert await stored(storage, "a") is JobState.QUEUED


async def test_without_a_transaction_it_says_how_to_begin_one(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path, isolation_level=None) as db:
            assert "execute BEGIN IMMEDIATE" in await refusal(storage, db, new_job())
        async with aiosqlite.connect(tmp_path / "jobs.db", isolation_level=None) as there:
            assert "execute BEGIN IMMEDIATE" in await refusal(storage, there, new_job())
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")
        async with engine.connect() as one:
            automatic = await one.execution_options(isolation_level="AUTOCOMMIT")
            assert "execute BEGIN IMMEDIATE" in await refusal(storage, automatic, new_job())
        await engine.dispose()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="needs the attribute autocommit")
async def test_the_attribute_autocommit_counts(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path, autocommit=True) as db:
            assert "execute BEGIN IMMEDIATE" in await refusal(storage, db, new_job())
        with connect(tmp_path, autocommit=False) as db:
            await storage.submit_within(db, [new_job("a")])
            assert await stored(storage, "a") is None
            db.commit()
        assert await stored(storage, "a") is JobState.QUEUED


@pytest.mark.parametrize("level", ["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
async def test_a_connection_that_begins_by_itself_does_so(
    level: str, open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path, isolation_level=level) as db:
            await storage.submit_within(db, [new_job("a")])
            assert db.in_transaction
            assert await stored(storage, "a") is None
            db.rollback()
            await storage.submit_within(db, [new_job("b")])
            db.commit()
        assert (await stored(storage, "a"), await stored(storage, "b")) == (None, JobState.QUEUED)


async def test_what_the_user_has_set_up_does_not_matter_and_stays(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    def row(cursor: sqlite3.Cursor, values: tuple[object, ...]) -> dict[str, object]:
        names = [description[0] for description in cursor.description]
        return dict(zip(names, values, strict=True))

    async with open_store() as storage:
        with connect(tmp_path, detect_types=sqlite3.PARSE_DECLTYPES, timeout=0.25) as db:
            db.executescript("CREATE TABLE mine (x TEXT); INSERT INTO mine VALUES ('1'), ('2')")
            db.row_factory = row
            db.text_factory = bytes
            db.execute("BEGIN IMMEDIATE")
            reading = db.execute("SELECT x FROM mine ORDER BY x")
            assert reading.fetchone() == {"x": b"1"}
            job = new_job("a", batch="b", lane="l")
            await storage.submit_within(db, [job])
            assert reading.fetchone() == {"x": b"2"}
            (reply,) = await storage.submit_within(db, [job])
            assert (reply.status, reply.id) == (SubmitStatus.ACCEPTED, "a")
            assert db.row_factory is row
            assert db.text_factory is bytes
            assert db.execute("PRAGMA busy_timeout").fetchone() == {"timeout": 250}
            db.commit()
        assert await stored(storage, "a") is JobState.QUEUED


async def test_a_savepoint_of_the_user_takes_its_jobs_with_it(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path) as db:
            await storage.submit_within(db, [new_job("a")])
            db.execute("SAVEPOINT mine")
            await storage.submit_within(db, [new_job("b", queue="q")])
            db.execute("ROLLBACK TO mine")
            await storage.submit_within(db, [new_job("c")])
            db.commit()
        found = [await stored(storage, id) for id in "abc"]
    assert found == [JobState.QUEUED, None, JobState.QUEUED]


async def test_a_transaction_that_has_read_too_early_is_told_what_to_do(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path, isolation_level=None) as db:
            db.execute("BEGIN")
            db.execute("SELECT count(*) FROM job").fetchone()
            await storage.submit([new_job("other")])
            with pytest.raises(Unavailable, match="begin it anew, with BEGIN IMMEDIATE"):
                await storage.submit_within(db, [new_job("a")])
            assert db.in_transaction
            db.execute("ROLLBACK")
            db.execute("BEGIN IMMEDIATE")
            await storage.submit_within(db, [new_job("a")])
            db.execute("COMMIT")
        assert await stored(storage, "a") is JobState.QUEUED


async def test_whoever_waits_for_the_lock_blocks_no_event_loop(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path) as first, connect(tmp_path, timeout=60.0) as second:
            await storage.submit_within(first, [new_job("a")])
            second.execute("BEGIN")
            waiting = asyncio.create_task(storage.submit_within(second, [new_job("b")]))
            await asyncio.wait([waiting], timeout=0.05)
            assert not waiting.done()
            first.commit()
            (reply,) = await waiting
            assert reply.status is SubmitStatus.ACCEPTED
            second.commit()
        assert await stored(storage, "b") is JobState.QUEUED


async def test_the_user_says_how_long_to_wait_for_the_lock(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path) as first, connect(tmp_path, timeout=0.02) as second:
            await storage.submit_within(first, [new_job("a")])
            with pytest.raises(Unavailable, match="is locked by another connection"):
                await storage.submit_within(second, [new_job("b")])
            first.commit()
            await storage.submit_within(second, [new_job("b")])
            second.commit()
        assert await stored(storage, "b") is JobState.QUEUED


async def test_who_waits_no_longer_than_the_lock_learns_what_it_waited_for(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path) as first, connect(tmp_path, timeout=1.0) as second:
            await storage.submit_within(first, [new_job("a")])
            with pytest.raises(Unavailable, match="is locked by another connection"):
                async with asyncio.timeout(1.0):
                    await storage.submit_within(second, [new_job("b")])


async def test_a_temporary_table_that_hides_one_is_refused(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path) as db:
            db.execute("CREATE TEMPORARY TABLE mine (x)")
            await storage.submit_within(db, [new_job("a")])
            db.commit()
            db.execute("CREATE TEMPORARY TABLE task (x)")
            said = await refusal(storage, db, new_job())
    assert "temporary table 'task' hides one of plugq's" in said


async def test_a_call_that_fails_leaves_the_transaction_as_it_was(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        with connect(tmp_path) as db:
            db.execute("CREATE TABLE mine (x)")
            db.execute("INSERT INTO mine VALUES (1)")
            await storage.submit_within(db, [new_job("a")])
            db.execute("PRAGMA max_page_count = 1").fetchall()
            with pytest.raises(Unavailable, match=r"is full; .*; (your transaction|SQLite has)"):
                await storage.submit_within(db, [new_job("b", body=bytes(2**20))])
            if db.in_transaction:
                db.execute("PRAGMA max_page_count = 1000000").fetchall()
                await storage.submit_within(db, [new_job("c")])
                db.commit()
                assert db.execute("SELECT x FROM mine").fetchall() == [(1,)]
                assert await stored(storage, "a") is JobState.QUEUED
                assert await stored(storage, "c") is JobState.QUEUED
        assert await stored(storage, "b") is None


async def test_a_connection_of_another_thread_is_refused(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    made: list[sqlite3.Connection] = []
    async with open_store() as storage:
        ending = threading.Event()

        def own() -> None:
            with connect(tmp_path) as db:
                made.append(db)
                ready.set()
                ending.wait()

        ready = threading.Event()
        thread = threading.Thread(target=own)
        thread.start()
        ready.wait()
        try:
            assert "thread" in await refusal(storage, made[0], new_job())
        finally:
            ending.set()
            thread.join()


async def test_a_storage_that_is_not_started_says_so(tmp_path: Path, new_job: NewJobs) -> None:
    storage = SqliteStorage(SqliteOptions(path="jobs.db"), PluginContext(base_dir=tmp_path))
    with connect(tmp_path) as db, pytest.raises(Unavailable, match="is not started"):
        await storage.submit_within(db, [new_job()])


async def test_each_namespace_has_its_own_jobs(tmp_path: Path, new_job: NewJobs) -> None:
    storages = [
        SqliteStorage(
            SqliteOptions(path="jobs.db"), PluginContext(base_dir=tmp_path, namespace=name)
        )
        for name in ("one", "two")
    ]
    for storage in storages:
        await storage.start()
    with connect(tmp_path) as db:
        for storage in storages:
            (reply,) = await storage.submit_within(db, [new_job("a")])
            assert reply.status is SubmitStatus.ACCEPTED
        db.commit()
    for storage in storages:
        assert await stored(storage, "a") is JobState.QUEUED
        await storage.stop()


async def test_sessions_of_a_scope_serve(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    path = tmp_path / "jobs.db"
    async with open_store() as storage:
        engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=NullPool)
        session = scoped_session(sessionmaker(engine))
        session.execute(sqlalchemy.text("SELECT 1"))
        await storage.submit_within(session, [new_job("a")])
        assert await stored(storage, "a") is None
        session.commit()
        session.remove()
        there = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
        scoped = async_scoped_session(async_sessionmaker(there), asyncio.current_task)
        await storage.submit_within(scoped, [new_job("b")])
        assert await stored(storage, "b") is None
        await scoped.commit()
        await scoped.remove()
        assert await stored(storage, "a") is await stored(storage, "b") is JobState.QUEUED


async def test_an_error_of_sqlalchemy_is_one_of_plugq(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")
        said = await refusal(storage, AsyncConnection(engine), new_job())
        assert said.startswith("connection: AsyncConnection: ")
        await engine.dispose()


async def test_rows_of_the_user_share_the_fate_of_the_jobs(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    async with open_store() as storage:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'jobs.db'}")
        async with engine.begin() as db:
            await db.execute(sqlalchemy.text("CREATE TABLE mine (x INTEGER)"))
        for commits in (True, False):
            async with engine.connect() as db:
                await db.execute(
                    sqlalchemy.text("INSERT INTO mine VALUES (:x)"), {"x": int(commits)}
                )
                await storage.submit_within(db, [new_job(f"job-{commits}")])
                await (db.commit() if commits else db.rollback())
        async with engine.connect() as db:
            rows = (await db.execute(sqlalchemy.text("SELECT x FROM mine"))).all()
        await engine.dispose()
        assert [row[0] for row in rows] == [1]
        assert await stored(storage, "job-True") is JobState.QUEUED
        assert await stored(storage, "job-False") is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")
async def test_who_is_idle_is_woken_at_the_commit_by_the_process_that_submitted(
    open_store: OpenStore, new_job: NewJobs, claim: Claims, tmp_path: Path
) -> None:
    async with open_store() as storage, open_store() as other:
        watch = other.watch("p")
        await anext(watch)
        assert (await other.claim(claim(1, peer="p"))).leases == ()
        with connect(tmp_path) as db:
            for number in range(3):
                await storage.submit_within(db, [new_job(f"a{number}")])
            db.commit()
        async with asyncio.timeout(60):
            assert isinstance(await anext(watch), Wake)
        assert len((await other.claim(claim(5))).leases) == 3
        await watch.aclose()


async def test_a_storage_stops_while_a_transaction_is_open(
    open_store: OpenStore, new_job: NewJobs, tmp_path: Path
) -> None:
    with connect(tmp_path) as db:
        async with open_store(busy_timeout="50ms") as storage:
            await storage.submit_within(db, [new_job("a")])
        db.commit()
    async with open_store() as storage:
        assert await stored(storage, "a") is JobState.QUEUED
