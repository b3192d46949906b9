"""The storage contract on a Redis Cluster of three nodes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq.testing.requirements import MissingHook
from plugq_redis import RedisOptions, RedisStorage


@pytest.mark.usefixtures("stoppable_cluster")
class TestRedisCluster(StorageContract):
    server: ClassVar[Any]

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        url = os.environ["PLUGQ_TEST_REDIS_CLUSTER_URL"]
        storage = RedisStorage(RedisOptions(url=url, timeout=20.0), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        """Let all nodes end and start again, with their files."""
        del context
        if self.server is None:
            raise MissingHook("outage")
        await asyncio.to_thread(self.server.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)
