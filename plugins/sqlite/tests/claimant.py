"""A process that claims from a file until nothing is left: ``claimant.py FOLDER NAME``.

It says ``ready``, waits for a line, and prints the ids and tokens that it was granted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from plugq.job import Outcome
from plugq.protocols import ClaimRequest, PluginContext, Settlement
from plugq_sqlite import SqliteOptions, SqliteStorage


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def main(folder: Path, name: str) -> None:
    storage = SqliteStorage(SqliteOptions(path="jobs.db"), PluginContext(base_dir=folder))
    await storage.start()
    say("ready")
    await asyncio.to_thread(sys.stdin.readline)
    granted: list[tuple[str, int]] = []
    settlements: list[Settlement] = []
    number = 0
    while True:
        number += 1
        request = ClaimRequest(worker=name, number=number, queues=("q",), limit=20)
        replies, claimed = await storage.settle(settlements, request)
        assert not any(reply.lost for reply in replies)
        assert claimed is not None
        if not claimed.leases:
            break
        granted += [(lease.id, lease.token) for lease in claimed.leases]
        settlements = [
            Settlement(
                queue=lease.queue,
                id=lease.id,
                token=lease.token,
                outcome=Outcome.SUCCEED,
                result=b"null",
            )
            for lease in claimed.leases
        ]
    await storage.stop()
    say(json.dumps(granted))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
