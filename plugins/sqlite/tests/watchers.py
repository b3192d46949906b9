"""A process full of idle peers: ``watchers.py FOLDER PREFIX COUNT``.

It says ``ready`` once every peer is registered as idle. Then it prints ``woken PEER`` and
``finished PEER`` as notices arrive, and ends when its input does.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from plugq.protocols import ClaimRequest, Finished, PluginContext, Resync, Wake
from plugq_sqlite import SqliteOptions, SqliteStorage


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def watch(storage: SqliteStorage, peer: str, idle: asyncio.Event) -> None:
    notices = storage.watch(peer)
    assert await anext(notices) == Resync()
    request = ClaimRequest(worker=peer, number=1, queues=("q",), limit=1, peer=peer)
    assert not (await storage.claim(request)).leases
    idle.set()
    async for notice in notices:
        if isinstance(notice, Wake):
            say(f"woken {peer}")
        elif isinstance(notice, Finished):
            say(f"finished {peer}")


async def main(folder: Path, prefix: str, count: int) -> None:
    storage = SqliteStorage(SqliteOptions(path="jobs.db"), PluginContext(base_dir=folder))
    await storage.start()
    idle = [asyncio.Event() for _ in range(count)]
    tasks = [
        asyncio.create_task(watch(storage, f"{prefix}-{number}", event))
        for number, event in enumerate(idle)
    ]
    await asyncio.gather(*(event.wait() for event in idle))
    say("ready")
    await asyncio.to_thread(sys.stdin.read)
    await storage.stop()
    await asyncio.gather(*tasks)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
