"""The storage contract on SQLite, and what the type checkers make of the class."""

from __future__ import annotations

import sqlite3
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import ClassVar

import aiosqlite
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from plugq.protocols import PluginContext, Storage
from plugq.protocols.transactions import TransactionalStorage
from plugq.testing import StorageContract, UserTransaction
from plugq.testing.contract.outage import Outages
from plugq_sqlite import SqliteOptions, SqliteStorage

STORAGE: type[TransactionalStorage] = SqliteStorage


@asynccontextmanager
async def plain(path: Path) -> AsyncIterator[UserTransaction]:
    with closing(sqlite3.connect(path)) as db:
        yield UserTransaction(db, _later(db.commit), _later(db.rollback))


@asynccontextmanager
async def explicit(path: Path) -> AsyncIterator[UserTransaction]:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN")
        db.row_factory = sqlite3.Row
        db.text_factory = bytes
        yield UserTransaction(db, _later(db.commit), _later(db.rollback))


@asynccontextmanager
async def asynchronous(path: Path) -> AsyncIterator[UserTransaction]:
    async with aiosqlite.connect(path, isolation_level=None) as db:
        await db.execute("BEGIN IMMEDIATE")
        yield UserTransaction(db, db.commit, db.rollback)


@asynccontextmanager
async def core(path: Path) -> AsyncIterator[UserTransaction]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=NullPool)
    with engine.connect() as db:
        yield UserTransaction(db, _later(db.commit), _later(db.rollback))


@asynccontextmanager
async def orm(path: Path) -> AsyncIterator[UserTransaction]:
    engine = sqlalchemy.create_engine(f"sqlite:///{path}", poolclass=NullPool)
    with Session(engine) as session:
        yield UserTransaction(session, _later(session.commit), _later(session.rollback))


@asynccontextmanager
async def async_core(path: Path) -> AsyncIterator[UserTransaction]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
    async with engine.connect() as db:
        yield UserTransaction(db, db.commit, db.rollback)


@asynccontextmanager
async def async_orm(path: Path) -> AsyncIterator[UserTransaction]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}", poolclass=NullPool)
    async with AsyncSession(engine) as session:
        yield UserTransaction(session, session.commit, session.rollback)


KINDS = (plain, explicit, asynchronous, core, orm, async_core, async_orm)


def _later(end: Callable[[], None]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        end()

    return run


class Steps:
    """Counts the virtual machine steps of the connections of a storage."""

    def __init__(self) -> None:
        self.count = 0

    def _step(self) -> int:
        self.count += 1
        return 0

    async def attach(self, storage: SqliteStorage) -> None:
        assert storage._reader is not None
        await storage._writer.call(lambda tx: tx.db.set_progress_handler(self._step, 1))
        await storage._reader.set_progress_handler(self._step, 1)


class TestSqlite(StorageContract):
    steps: ClassVar[weakref.WeakKeyDictionary[Storage, Steps]] = weakref.WeakKeyDictionary()
    growth: ClassVar[float] = 1.02
    writers_wait: ClassVar[bool] = True

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        # A machine that is busy while a transaction is open is no fault of the storage.
        storage = SqliteStorage(SqliteOptions(path="jobs.db", busy_timeout="60s"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        """Let the folder of the file be away, as a disk that was unmounted."""
        folder = context.base_dir
        away = folder.rename(folder.with_name(f"{folder.name}-away"))
        try:
            yield
        finally:
            away.rename(folder)

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        return [partial(kind, context.base_dir / "jobs.db") for kind in KINDS]

    async def work(self, storage: Storage) -> int:
        steps = self.steps.get(storage)
        if steps is None:
            assert isinstance(storage, SqliteStorage)
            steps = self.steps[storage] = Steps()
            await steps.attach(storage)
        return steps.count


class TestLockedFile(Outages):
    """Another program holds the file for longer than a write waits."""

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = SqliteStorage(SqliteOptions(path="jobs.db", busy_timeout="250ms"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        with closing(sqlite3.connect(context.base_dir / "jobs.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")


class TestFullDisk(Outages):
    """The file can not grow any more."""

    opened: ClassVar[list[SqliteStorage]] = []

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = SqliteStorage(SqliteOptions(path="jobs.db"), context)
        await storage.start()
        self.opened.append(storage)
        try:
            yield storage
        finally:
            self.opened.remove(storage)
            await storage.stop()

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        del context
        await self._let_grow_to(1)
        yield
        await self._let_grow_to(2**30)

    async def _let_grow_to(self, pages: int) -> None:
        for storage in self.opened:
            if storage.started:
                # Less than there is already means: no more than that.
                await storage._writer.call(
                    lambda tx: tx.db.execute(f"PRAGMA max_page_count = {pages}").fetchall()
                )
