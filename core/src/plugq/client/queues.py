"""The operator's view of queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.protocols.edits import Drain, Pause, Resume
from plugq.request import check_queue

if TYPE_CHECKING:
    from plugq.client.client import Client
    from plugq.client.views import QueueInfo


class Queues:
    """Lists, pauses, drains and resumes queues, for everybody who shares the storage."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def list(self) -> tuple[QueueInfo, ...]:
        """Return every queue that was ever used, with its numbers."""
        return (await self._client.stats()).queues

    async def pause(self, *queues: str) -> None:
        """Let no more jobs of these queues start; submissions and running jobs go on."""
        await self._client._edit(Pause(tuple(map(check_queue, queues))))  # noqa: SLF001

    async def stats(self) -> dict[str, QueueInfo]:
        """Return the numbers of every queue that was ever used, by its name."""
        return {queue.name: queue for queue in await self.list()}

    async def drain(self, *queues: str) -> None:
        """Take no more jobs into these queues; what waits in them runs.

        A submission raises ``QueueFull`` until they are resumed.
        """
        await self._client._edit(Drain(tuple(map(check_queue, queues))))  # noqa: SLF001

    async def resume(self, *queues: str) -> None:
        """Let the jobs of these queues start again, and take jobs again: ends pause and drain."""
        await self._client._edit(Resume(tuple(map(check_queue, queues))))  # noqa: SLF001


__all__ = ["Queues"]
