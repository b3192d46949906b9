"""What processes on one file do to each other beyond what the contract asks of every storage."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq.testing.children import Child
from plugq.testing.contract.crew import Crew, begin
from plugq.testing.contract.sharing import stand_idle
from plugq_sqlite import SqliteOptions, SqliteStorage

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")


class Home(StorageContract):
    """How the processes open the store."""

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = SqliteStorage(SqliteOptions(path="jobs.db"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


async def test_a_job_wakes_another_peer_at_once_when_the_first_was_killed() -> None:
    async with Home().scene(real_time=True) as scene:
        crew = Crew(scene, processes=True)
        async with (
            crew.members(stand_idle, 1, name="dead", count=10) as [dead],
            crew.members(stand_idle, 1, name="alive", count=1) as [alive],
        ):
            for mate in (dead, alive):
                await begin(mate)
                assert await mate.hear() == "idle"
            assert isinstance(dead, Child)
            await dead.kill()
            await scene.submit("a")
            assert await alive.hear() == ["woken", "alive-0"]
            await alive.say("stop")
            await alive.ends()
