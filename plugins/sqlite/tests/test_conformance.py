"""The storage contract on SQLite, and what the type checkers make of the class."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_sqlite import SqliteOptions, SqliteStorage

STORAGE: type[Storage] = SqliteStorage


class TestSqlite(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = SqliteStorage(SqliteOptions(path="jobs.db"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
