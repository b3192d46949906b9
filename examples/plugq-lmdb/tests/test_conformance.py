"""The storage contract on LMDB."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_lmdb import LmdbOptions, LmdbStorage


class TestLmdb(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = LmdbStorage(LmdbOptions(path="jobs"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
