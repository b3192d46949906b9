"""The storage contract on Redis, and what the type checkers make of the class."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq.testing.contract.outage import Outages
from plugq.testing.requirements import MissingHook
from plugq_redis import RedisOptions, RedisStorage

STORAGE: type[Storage] = RedisStorage


@asynccontextmanager
async def opened(context: PluginContext, url: str, **options: Any) -> AsyncIterator[Storage]:
    storage = RedisStorage(RedisOptions(url=url, **options), context)
    await storage.start()
    try:
        yield storage
    finally:
        await storage.stop()


@pytest.mark.usefixtures("stoppable")
class TestRedis(StorageContract):
    server: ClassVar[Any]
    growth: ClassVar[float] = 1.02

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        url = os.environ["PLUGQ_TEST_REDIS_URL"]
        # A call of ten thousand jobs is to be answered on a busy machine, too; after 30 s the
        # kit takes one for hung.
        async with opened(context, url, timeout=20.0) as storage:
            yield storage

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        """Let the server end and start again, with its file."""
        del context
        if self.server is None:
            raise MissingHook("outage")
        await asyncio.to_thread(self.server.stop)
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)

    async def work(self, storage: Storage) -> int:
        """Return how many commands the server has run, those of scripts as well."""
        assert isinstance(storage, RedisStorage)
        info = await storage._server.command("INFO", "commandstats")
        return sum(
            int(line.split(b"calls=")[1].split(b",")[0])
            for line in info.splitlines()
            if b"calls=" in line and b"cmdstat_info" not in line
        )


@pytest.mark.usefixtures("own_server")
class OwnServer(Outages):
    """Outages of a server that serves nobody else."""

    server: ClassVar[Any]

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        async with opened(context, self.server.url) as storage:
            yield storage


class TestKill(OwnServer):
    """It dies without a word; the file is synced always."""

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        del context
        await asyncio.to_thread(self.server.kill)
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start)


class TestHang(OwnServer):
    """It stands still, and goes on as if nothing had been."""

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        url = self.server.url
        async with opened(context, url, timeout=0.5, connect_timeout=0.5) as storage:
            yield storage

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        del context
        os.kill(self.server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.server.pid, signal.SIGCONT)


class TestFull(OwnServer):
    """It has no memory left for anything new."""

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        del context
        self.server.command("CONFIG", "SET", "maxmemory", "1")
        try:
            yield
        finally:
            self.server.command("CONFIG", "SET", "maxmemory", "0")


class TestReplica(OwnServer):
    """It was made a replica of somebody who is not there."""

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        del context
        self.server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            self.server.command("REPLICAOF", "NO", "ONE")
