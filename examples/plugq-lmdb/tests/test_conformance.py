"""The storage contract on LMDB."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from plugq.protocols import Capability, PluginContext, Storage
from plugq.testing import StorageContract
from plugq.testing.contract.lost_signals import LostSignals
from plugq.testing.contract.parks import Parks
from plugq.testing.contract.signals import Signals
from plugq_lmdb import LmdbOptions, LmdbStorage


@asynccontextmanager
async def opened(context: PluginContext) -> AsyncIterator[Storage]:
    storage = LmdbStorage(LmdbOptions(path="jobs"), context)
    await storage.start()
    try:
        yield storage
    finally:
        await storage.stop()


class TestLmdb(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        async with opened(context) as storage:
            yield storage


class TestNotices(Signals, LostSignals, Parks):
    """Notices arrive by polling, so the class does not declare that it pushes; yet they arrive."""

    async def declared(self) -> frozenset[Capability]:
        return LmdbStorage.capabilities | {Capability.PUSH_WAKEUPS}

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        async with opened(context) as storage:
            yield storage
