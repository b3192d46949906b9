"""A process that submits a job, tells one event of it and ends: ``teller.py FOLDER ID``."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from plugq.events import EventKind, JobEvent
from plugq.protocols import NewJob, PluginContext
from plugq_sqlite import SqliteOptions, SqliteStorage


async def main(folder: Path, id: str) -> None:
    storage = SqliteStorage(SqliteOptions(path="jobs.db"), PluginContext(base_dir=folder))
    await storage.start()
    await storage.submit(
        [NewJob(id=id, queue="q", task="t", body=b"{}", submission=os.urandom(16))]
    )
    assert storage.listened
    storage.tell([JobEvent(kind=EventKind.SUBMITTED, queue="q", id=id, task="t")])
    await storage.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
