"""Turns at a queue, so that callers of one that is held up do not take every connection."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection


class _Gate:
    def __init__(self, most: int) -> None:
        self.free = asyncio.Semaphore(most)
        self.users = 0


class Turns:
    """Lets at most so many calls at a time be under way on each queue."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._gates: dict[int, _Gate] = {}

    @asynccontextmanager
    async def at(self, queues: Collection[int]) -> AsyncIterator[None]:
        """Wait for a turn at each of the queues, in the order in which all wait for them."""
        async with AsyncExitStack() as stack:
            for queue in sorted(set(queues)):
                await stack.enter_async_context(self._through(queue))
            yield

    @asynccontextmanager
    async def _through(self, queue: int) -> AsyncIterator[None]:
        gate = self._gates.setdefault(queue, _Gate(self._most))
        gate.users += 1
        try:
            async with gate.free:
                yield
        finally:
            gate.users -= 1
            if not gate.users:
                del self._gates[queue]
