"""A worker process of a limited queue: ``python limited_app.py CONFIG``.

It works until it is told to stop and then prints how often it called the storage to claim or
settle.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import plugq
from plugq.assembly import Assembly, Worker
from plugq.config import load_config
from plugq.protocols import ClaimReply, ClaimRequest, PluginContext, Settlement
from plugq_sqlite import SqliteOptions, SqliteStorage

app = plugq.App()
calls: Counter[str] = Counter()


@app.task("work", queue="q")
async def work() -> None:
    pass


class Counted(SqliteStorage):
    """Counts what a limited queue costs."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        calls["claim"] += 1
        return await super().claim(request)

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> Any:
        calls["settle"] += 1
        return await super().settle(settlements, claim)


async def main(config: str) -> None:
    read = load_config(config)
    storage = Counted(
        SqliteOptions(path=read.storage.options["path"]),
        PluginContext(namespace=read.namespace, base_dir=read.base_dir),
    )
    worker = Worker(app, assembly=Assembly(read, storage=storage))
    async with worker:
        await worker.run()
    sys.stdout.write(json.dumps(calls))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
