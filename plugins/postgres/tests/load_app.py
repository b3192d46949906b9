"""The processes of the loads: producers and workers, with a ledger outside plugq.

``load_app.py work CONFIG LEDGER`` works until it is terminated and then prints its counts.
``load_app.py submit CONFIG LEDGER NAME NUMBER`` submits until every job was acknowledged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plugq
from plugq.testing.ledger import Ledger

#: Jobs of one call, seconds between two calls, and seconds that a handler takes.
CALL, PAUSE, TAKES = 20, 0.004, 0.002
#: Of so many jobs one fails at first, and one has a lane.
FLAKY, LANED, LANES = 20, 5, 8

app = plugq.App()


class Shared:
    ledger: Ledger


def facts(number: int) -> dict[str, Any]:
    ctx = plugq.current()
    job = ctx.job
    return {
        "id": job.id,
        "queue": job.queue,
        "lane": job.lane,
        "token": ctx.token,
        "attempt": ctx.attempt,
        "payload": number,
    }


@app.task("steady")
async def steady(number: int) -> int:
    known = facts(number)
    Shared.ledger.note("start", **known)
    try:
        await asyncio.sleep(TAKES)
        Shared.ledger.note("effect", **known)
    finally:
        Shared.ledger.note("end", **known)
    return plugq.current().token


@app.task("flaky", retry=plugq.RetryPolicy(max_attempts=3, base=0.01))
async def flaky(number: int) -> int:
    if plugq.current().attempt > 1:
        return await steady(number)
    known = facts(number)
    Shared.ledger.note("start", **known)
    Shared.ledger.note("end", **known)
    raise ValueError


def is_flaky(number: int) -> bool:
    return number % FLAKY == 0


def request(name: str, number: int) -> plugq.JobRequest[Any]:
    task = flaky if is_flaky(number) else steady
    lane = f"{name}-{number % LANES}" if number % LANED == 1 else None
    return task.job(number).options(id=f"{name}-{number}", lane=lane)


async def submit(client: plugq.Client, requests: Sequence[plugq.JobRequest[Any]]) -> None:
    """Submit as often as it takes; the ids make that safe."""
    while True:
        try:
            await client.submit_many(requests)
        except (plugq.Unavailable, plugq.OutcomeUnknown):
            continue
        return


def tell(value: object) -> None:
    print(json.dumps(value, default=str), flush=True)  # noqa: T201 - what the test reads


async def produce(config: str, name: str, number: int) -> None:
    async with plugq.connect(config) as client:
        tell("ready")
        for start in range(0, number, CALL):
            numbers = range(start, min(start + CALL, number))
            for each in numbers:
                Shared.ledger.note("submit", id=f"{name}-{each}")
            await submit(client, [request(name, each) for each in numbers])
            await asyncio.sleep(PAUSE)


async def work(config: str) -> None:
    Shared.ledger.note("begin")
    worker = plugq.Worker(app, config)
    async with worker:
        tell("ready")
        await worker.run()
    tell(worker.state())


def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    kind, config, ledger, *more = sys.argv[1:]
    Shared.ledger = Ledger(Path(ledger))
    if kind == "work":
        asyncio.run(work(config))
    else:
        name, number = more
        asyncio.run(produce(config, name, int(number)))


if __name__ == "__main__":
    main()
