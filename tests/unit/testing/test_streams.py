"""A contract test that listens to a stream which fails is told at once, by that error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.errors import Unavailable
from plugq.protocols import Heard, Notice, PluginContext, Storage
from plugq.testing import StorageContract


class Mute(MemoryStorage):
    """Can neither be watched nor listened to."""

    async def watch(self, peer: str) -> AsyncGenerator[Notice, None]:  # type: ignore[override]
        raise Unavailable("nobody is told")
        yield

    async def listen(self) -> AsyncGenerator[Heard, None]:  # type: ignore[override]
        raise Unavailable("nobody is told")
        yield


class Subject(StorageContract):
    #: Longer than the time limit of a test.
    patience: ClassVar[float] = 600.0

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = Mute(MemoryOptions(), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


@pytest.mark.parametrize(
    "name", ["test_the_first_thing_heard_is_resync", "test_the_first_notice_is_resync"]
)
def test_the_error_of_a_stream_ends_the_wait(name: str) -> None:
    with pytest.raises(Unavailable, match=r"^nobody is told$"), asyncio.Runner() as runner:
        runner.run(getattr(Subject(), name)())
