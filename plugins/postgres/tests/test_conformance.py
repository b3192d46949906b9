"""The storage contract on PostgreSQL, and what the type checkers make of the class."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from plugq.protocols import PluginContext, Storage
from plugq.protocols.transactions import TransactionalStorage
from plugq.testing import StorageContract, UserTransaction
from plugq_postgres import PostgresOptions, PostgresStorage

#: Some try each kind of connection, each with processes of its own.
pytestmark = pytest.mark.timeout(300)

Begin = Callable[[str], AbstractAsyncContextManager[UserTransaction]]

STORAGE: type[TransactionalStorage] = PostgresStorage


WORK = """
    SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0) + n_tup_ins + n_tup_upd
            + n_tup_del) FROM pg_stat_user_tables WHERE schemaname = 'plugq')::bigint
        + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes
            WHERE schemaname = 'plugq')::bigint
"""


# One of its tests stores 100,000 jobs, which takes its time on a busy machine.
@pytest.mark.timeout(600)
class TestPostgres(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = PostgresStorage(
            PostgresOptions(
                url=os.environ["PLUGQ_TEST_POSTGRES_URL"],
                # A machine that is busy with other tests is no fault of the storage.
                statement_timeout="20s",
                lock_timeout="20s",
                connect_timeout="10s",
            ),
            context,
        )
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        del context
        return [_begin(kind) for kind in KINDS]

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        """Let the server end every connection as soon as there is one."""
        del context
        db = await asyncpg.connect(os.environ["PLUGQ_TEST_POSTGRES_URL"])
        ending = asyncio.create_task(_end_connections(db))
        try:
            await asyncio.sleep(0)
            yield
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)
            await db.close()

    async def work(self, storage: Storage) -> int | None:
        """Return how many rows and index entries the server has read and written."""
        assert isinstance(storage, PostgresStorage)
        pool = storage._database._pool
        assert pool is not None
        if (await pool.fetchval("SHOW server_version_num")) < "150000":
            # It counts at its leisure.
            return None
        for holder in pool._holders:
            if holder.is_connected() and holder.is_idle():
                await holder._con.fetchval("SELECT pg_stat_force_next_flush()")
        counted: int = await pool.fetchval(WORK)
        return counted


def _begin(
    kind: Begin,
) -> Callable[[], AbstractAsyncContextManager[UserTransaction]]:
    def begin() -> AbstractAsyncContextManager[UserTransaction]:
        return kind(os.environ["PLUGQ_TEST_POSTGRES_URL"])

    begin.__name__ = getattr(kind, "__name__", "")
    return begin


async def _end_connections(db: asyncpg.Connection) -> None:
    while True:
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND application_name = 'plugq'"
        )


@asynccontextmanager
async def asyncpg_connection(url: str) -> AsyncIterator[UserTransaction]:
    db = await asyncpg.connect(url)
    transaction = db.transaction()
    try:
        await transaction.start()
        yield UserTransaction(db, transaction.commit, transaction.rollback)
    finally:
        await db.close()


@asynccontextmanager
async def psycopg_async(url: str) -> AsyncIterator[UserTransaction]:
    db = await psycopg.AsyncConnection.connect(url)
    try:
        yield UserTransaction(db, db.commit, db.rollback)
    finally:
        await db.close()


@asynccontextmanager
async def psycopg_sync(url: str) -> AsyncIterator[UserTransaction]:
    db: psycopg.Connection = await asyncio.to_thread(lambda: psycopg.connect(url))
    try:
        yield UserTransaction(db, _awaited(db.commit), _awaited(db.rollback))
    finally:
        db.close()


@asynccontextmanager
async def alchemy_async(url: str) -> AsyncIterator[UserTransaction]:
    engine = create_async_engine(_url(url, "asyncpg"), poolclass=NullPool)
    async with engine.connect() as db:
        yield UserTransaction(db, db.commit, db.rollback)
    await engine.dispose()


@asynccontextmanager
async def alchemy_session(url: str) -> AsyncIterator[UserTransaction]:
    engine = create_engine(_url(url, "psycopg"), poolclass=NullPool)
    with Session(engine) as session:
        yield UserTransaction(session, _awaited(session.commit), _awaited(session.rollback))
    engine.dispose()


def _awaited(call: Callable[[], Any]) -> Callable[[], Any]:
    async def run() -> None:
        await asyncio.to_thread(call)

    return run


def _url(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)


#: Every driver, by itself and below SQLAlchemy; test_transactions.py has what else they offer.
KINDS: tuple[Begin, ...] = (
    asyncpg_connection,
    psycopg_async,
    psycopg_sync,
    alchemy_async,
    alchemy_session,
)
