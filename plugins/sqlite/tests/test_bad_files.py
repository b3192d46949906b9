"""Files that can not be used, locks that are not let go of, and disks that fail."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest

from plugq.errors import ConfigError, InvalidJob, PlugqError, Unavailable
from plugq.job import JobRef
from plugq.protocols import NewJob, PluginContext, RegisterChange
from plugq_sqlite import SqliteOptions, SqliteStorage
from plugq_sqlite._schema import MIGRATIONS

OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]


def descriptors() -> set[str]:
    """Return the numbers of the files that this process has open, where the platform tells."""
    folder = Path("/proc/self/fd")
    return {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()


async def refusal(path: str, folder: Path) -> str:
    """Return the one line with which a storage refuses to start, after seeing that it let go."""
    before = descriptors()
    storage = SqliteStorage(SqliteOptions(path=path), PluginContext(base_dir=folder))
    with pytest.raises(PlugqError) as caught:
        await storage.start()
    assert descriptors() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", [":memory:", "", "  ", "file:jobs.db?mode=ro", "jobs\0.db"])
def test_what_names_no_file_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^storage\.path: "):
        SqliteStorage(SqliteOptions(path=path), PluginContext(base_dir=tmp_path))


@pytest.mark.parametrize("option", ["busy_timeout", "read_timeout"])
def test_a_bad_duration_names_its_option(option: str, tmp_path: Path) -> None:
    options = SqliteOptions(path="jobs.db", **{option: "soon"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"^storage\.{option}: "):
        SqliteStorage(options, PluginContext(base_dir=tmp_path))


async def test_a_missing_folder(tmp_path: Path) -> None:
    assert "there is no folder" in await refusal("nowhere/jobs.db", tmp_path)


async def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    assert "is a folder" in await refusal(".", tmp_path)


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_text("dear diary\n" * 1_000)
    before = path.read_bytes()
    assert "is not a database" in await refusal("jobs.db", tmp_path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE theirs (x)", "PRAGMA application_id = 7", "PRAGMA user_version = 3"],
)
async def test_the_database_of_another_application_is_left_alone(
    statement: str, tmp_path: Path
) -> None:
    path = tmp_path / "jobs.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(statement)
        db.commit()
    before = path.read_bytes()
    assert "another application" in await refusal("jobs.db", tmp_path)
    assert path.read_bytes() == before


async def test_a_newer_schema(tmp_path: Path, open_store: OpenStore) -> None:
    async with open_store():
        pass
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    assert "upgrade plugq-sqlite" in await refusal("jobs.db", tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for a folder closed to root, too")
async def test_a_path_that_can_not_be_written(tmp_path: Path) -> None:
    assert "can not be written" in await refusal("/proc/jobs.db", tmp_path)


async def test_a_damaged_file_is_said_to_be_damaged(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job(body=b"x" * 5_000) for _ in range(50)])
    path = tmp_path / "jobs.db"
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(data)
    assert "damaged" in await refusal("jobs.db", tmp_path)


async def test_many_may_start_on_a_new_file_at_once(tmp_path: Path) -> None:
    storages = [
        SqliteStorage(
            SqliteOptions(path="jobs.db"),
            PluginContext(base_dir=tmp_path, namespace=f"n-{number % 2}"),
        )
        for number in range(8)
    ]
    await asyncio.gather(*(storage.start() for storage in storages))
    await asyncio.gather(*(storage.stop() for storage in storages))


async def test_a_lock_shorter_than_the_timeout_is_waited_for(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store(busy_timeout="30s") as storage:
        with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            waiting = asyncio.create_task(storage.submit([new_job("a")]))
            # A read goes on meanwhile, and sees only what was committed.
            assert await storage.get([JobRef("q", "a")]) == [None]
            assert not waiting.done()
            other.execute("ROLLBACK")
            [reply] = await waiting
        assert reply.id == "a"


async def test_a_lock_longer_than_the_timeout_is_unavailable(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store(busy_timeout=0.05) as storage:
        with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable, match=r"was locked by other processes for 0\.05 s"):
                await storage.submit([new_job("a")])
            other.execute("ROLLBACK")
        assert await storage.get([JobRef("q", "a")]) == [None]
        await storage.submit([new_job("a")])


async def test_a_full_disk_is_unavailable_until_there_is_room(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        pages = await storage._writer.call(
            lambda tx: tx.db.execute("PRAGMA page_count").fetchone()[0]
        )
        await storage._writer.call(
            lambda tx: tx.db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchall()
        )
        big = new_job("a", body=b"x" * 1_000_000)
        with pytest.raises(Unavailable, match="is full"):
            await storage.submit([big])
        assert await storage.get([JobRef("q", "a")]) == [None]
        await storage._writer.call(
            lambda tx: tx.db.execute("PRAGMA max_page_count = 1000000").fetchall()
        )
        await storage.submit([big])
        assert (await storage.stats()).tasks[0].totals["accepted"] == 1


async def test_a_file_that_was_removed_is_not_written_any_more(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        (tmp_path / "jobs.db").unlink()
        with pytest.raises(Unavailable, match="removed or replaced"):
            await storage.submit([new_job()])


async def test_a_connection_that_breaks_is_opened_again(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        with pytest.raises(Unavailable):
            await storage._writer.call(lambda tx: tx.db.close())
        [reply] = await storage.submit([new_job("a")])
        assert reply.id == "a"


async def test_a_slow_read_ends_at_its_deadline(open_store: OpenStore) -> None:
    endless = (
        "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
    )
    async with open_store(read_timeout=0.05) as storage:
        with pytest.raises(Unavailable, match="took longer than"):
            await storage._fetch(endless, ())
        # The connection serves the next read at once.
        assert await storage.get([JobRef("q", "a")]) == [None]


async def test_a_number_that_sqlite_can_not_store_is_the_fault_of_its_job(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        bad = storage.submit([new_job("bad", delay=math.nan)])
        good = storage.submit([new_job("good")])
        refused, accepted = await asyncio.gather(bad, good, return_exceptions=True)
        assert isinstance(refused, InvalidJob)
        assert "delay: nan" in str(refused)
        assert not isinstance(accepted, BaseException)
        assert [reply.id for reply in accepted] == ["good"]


async def test_a_key_that_is_no_text_is_refused_by_every_verb_of_registers(
    open_store: OpenStore,
) -> None:
    async with open_store() as storage:
        for verb in (
            storage.load(["\ud800"]),
            storage.scan("\ud800"),
            storage.swap([RegisterChange(key="\ud800", expect=0, value=b"")]),
        ):
            with pytest.raises(InvalidJob, match=r"can not be (stored in SQLite|written as UTF-8)"):
                await verb
