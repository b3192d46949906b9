"""The storage contract on PostgreSQL, and what the type checkers make of the class."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_postgres import PostgresOptions, PostgresStorage

STORAGE: type[Storage] = PostgresStorage


class TestPostgres(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = PostgresStorage(
            PostgresOptions(url=os.environ["PLUGQ_TEST_POSTGRES_URL"]), context
        )
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
