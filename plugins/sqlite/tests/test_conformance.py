"""The storage contract on SQLite, and what the type checkers make of the class."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_sqlite import SqliteOptions, SqliteStorage

STORAGE: type[Storage] = SqliteStorage


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

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = SqliteStorage(SqliteOptions(path="jobs.db"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    async def work(self, storage: Storage) -> int:
        steps = self.steps.get(storage)
        if steps is None:
            assert isinstance(storage, SqliteStorage)
            steps = self.steps[storage] = Steps()
            await steps.attach(storage)
        return steps.count
