"""The storage contract: what is red here is what is left to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_template import TemplateStorage, TemplateStorageOptions

STORAGE: type[Storage] = TemplateStorage


class TestTemplateStorage(StorageContract):
    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        # One context is one store, also while it is open; its namespace and its folder, both new,
        # keep the tests apart.
        storage = TemplateStorage(TemplateStorageOptions(url=str(context.base_dir)), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
