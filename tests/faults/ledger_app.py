"""An application whose handlers write into a ledger outside plugq, for worker processes.

``python ledger_app.py CONFIG`` works until it is told to stop and then prints its state as JSON.
The ledger is an append-only file; each line is one fact. Folder and names come by environment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path

import plugq

FOLDER = Path(os.environ["LEDGER"])
app = plugq.App()


def note(*facts: object) -> None:
    line = " ".join(map(str, (*facts, os.getpid()))) + "\n"
    file = os.open(FOLDER / "ledger", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@app.task("count")
async def count(number: int) -> int:
    note("run", number)
    return number


@app.task("slow")
async def slow(number: int) -> int:
    note("slow", number)
    await asyncio.sleep(0.02)
    return number


@app.task("gated", retry=plugq.RetryPolicy(max_attempts=10, base=0.01))
async def gated(name: str) -> str:
    """Answer with the pid once the test has made the file that lets this process go on."""
    ctx = plugq.current()
    note("start", name, ctx.attempt, ctx.token)
    try:
        while not (FOLDER / f"go-{os.getpid()}").exists():
            await asyncio.sleep(0.01)
    finally:
        # Also where the loss of the lease was noticed first, and the handler cancelled for it.
        note("end", name, ctx.attempt, ctx.cancel_reason)
    return str(os.getpid())


@app.task("endless", retry=plugq.RetryPolicy(max_attempts=2, base=0.01))
async def endless() -> None:
    """Run until it is stopped, and note why it was."""
    ctx = plugq.current()
    note("start", ctx.job.id, ctx.attempt)
    try:
        await asyncio.Event().wait()
    finally:
        note("stopped", ctx.job.id, ctx.cancel_reason)


@app.task("poison", retry=plugq.RetryPolicy(max_attempts=10, base=0.01))
async def poison() -> None:
    note("poison", plugq.current().attempt)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task("block_loop")
async def block_loop() -> None:
    note("blocked")
    time.sleep(60)  # noqa: ASYNC251 - the fault under test


@app.task("block_thread")
def block_thread() -> None:
    note("blocked")
    time.sleep(60)


async def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    worker = plugq.Worker(app, sys.argv[1])
    async with worker:
        note("ready")
        await worker.run()
    sys.stdout.write(json.dumps(worker.state(), default=str))


if __name__ == "__main__":
    asyncio.run(main())
