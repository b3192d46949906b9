"""The storage contract on a Redis Cluster of three nodes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_redis import RedisOptions, RedisStorage


@pytest.mark.usefixtures("cluster")
class TestRedisCluster(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        url = os.environ["PLUGQ_TEST_REDIS_CLUSTER_URL"]
        storage = RedisStorage(RedisOptions(url=url), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
