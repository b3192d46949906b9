"""The storage contract on Redis, and what the type checkers make of the class."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_redis import RedisOptions, RedisStorage

STORAGE: type[Storage] = RedisStorage


class TestRedis(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        url = os.environ["PLUGQ_TEST_REDIS_URL"]
        storage = RedisStorage(RedisOptions(url=url), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
