"""Workers that are killed, paused and replaced at random: the ledger must add up.

The crash part of the contract kills at random, too. What only this has: workers as users start
them, from the command line and a file, some of them paused past their leases and back, and a
submitter that waits for all of its jobs while that goes on.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from typing import Any

import pytest

import plugq

WORKERS = 3


@pytest.mark.timeout(120)
async def test_nothing_is_lost_while_workers_die(deployment: Any) -> None:
    await storm(deployment, kills=6, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("seed", range(int(os.environ.get("SOAK_SEEDS", "5"))))
async def test_nothing_is_lost_in_hundreds_of_deaths(deployment: Any, seed: int) -> None:
    await storm(deployment, kills=60, seed=seed)


async def storm(deployment: Any, *, kills: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a story that can be told again
    workers = [deployment.worker() for _ in range(WORKERS)]
    handles: list[plugq.JobHandle[object]] = []
    stop = asyncio.Event()

    async with deployment.client() as client:

        async def produce() -> None:
            while not stop.is_set():
                number = len(handles)
                jobs = [plugq.job("slow", number + n) for n in range(chance.randint(1, 20))]
                handles.extend(await client.submit_many(jobs, max_attempts=50))
                await asyncio.sleep(chance.uniform(0.0, 0.05))

        producing = asyncio.create_task(produce())
        for _ in range(kills):
            await asyncio.sleep(chance.uniform(0.05, 0.6))
            index = chance.randrange(WORKERS)
            if chance.random() < 0.3:
                # Past its lease and back: what it says then must be refused.
                deployment.pause(workers[index])
                paused = workers[index]
                workers[index] = deployment.worker()
                asyncio.get_running_loop().call_later(2.5, paused.send_signal, signal.SIGCONT)
            else:
                workers[index].kill()
                workers[index] = deployment.worker()
        stop.set()
        await producing
        begin = time.monotonic()
        jobs = [await handle.wait(100) for handle in handles]
        drained = time.monotonic() - begin
        stats = await client.stats()

    states = Counter(str(job.state) for job in jobs)
    assert set(states) <= {"succeeded", "failed"}, states
    # Only the crash budget may end a job that never fails by itself.
    assert {job.code for job in jobs if job.state == "failed"} <= {"crashed"}
    counts, totals = stats.queues[0].counts, stats.queues[0].totals
    assert totals["accepted"] == len(handles) == sum(counts.values()) + totals["removed"]
    starts = Counter(int(fact[1]) for fact in deployment.facts("slow"))
    assert set(starts) == set(range(len(handles)))
    for number, job in enumerate(jobs):
        # Between the claim and the ledger a worker may have died, never the other way round.
        assert starts[number] <= job.attempt, (job, starts[number])
        assert job.attempt == 1 + job.crashes - (job.state == "failed"), job
    assert totals["started"] == sum(job.attempt for job in jobs) + totals["released"]
    assert drained < 60
