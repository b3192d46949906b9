"""The storage contract on PostgreSQL, and what the type checkers make of the class."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_postgres import PostgresOptions, PostgresStorage

STORAGE: type[Storage] = PostgresStorage


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


async def _end_connections(db: asyncpg.Connection) -> None:
    while True:
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND application_name = 'plugq'"
        )
