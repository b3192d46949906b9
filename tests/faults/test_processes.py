"""Worker processes that are killed, paused and stopped, over one SQLite file."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import pytest

import plugq


async def test_a_worker_that_is_paused_past_its_lease_is_refused(deployment: Any) -> None:
    async with deployment.client() as client:
        first = deployment.worker()
        handle = await client.submit(plugq.job("gated", "x"))
        await deployment.until(lambda: len(deployment.facts("start")) == 1, "no start")
        deployment.pause(first)
        second = deployment.worker()
        await deployment.until(lambda: len(deployment.facts("start")) == 2, "no second start")
        deployment.let_go(first)
        deployment.let_go(second)
        assert await handle.result(deployment.patience) == str(second.pid)
        first.send_signal(signal.SIGCONT)
        await deployment.until(lambda: len(deployment.facts("end")) == 2, "the first did not go on")
        state = await deployment.stopped(first)
        assert state["lost"] == 1
        assert await handle.result(deployment.patience) == str(second.pid)
        job = await handle.status()
        assert (job.state, job.attempt, job.crashes) == ("succeeded", 2, 1)
        assert [one.code for one in job.attempts] == ["crashed"]
        tokens = [int(start[3]) for start in deployment.facts("start")]
        assert tokens[0] < tokens[1]


async def test_the_job_of_a_killed_worker_is_run_by_another(deployment: Any) -> None:
    async with deployment.client() as client:
        first = deployment.worker()
        handle = await client.submit(plugq.job("gated", "x"))
        await deployment.until(lambda: len(deployment.facts("start")) == 1, "no start")
        first.kill()
        second = deployment.worker()
        deployment.let_go(second)
        assert await handle.result(deployment.patience) == str(second.pid)
        job = await handle.status()
        assert (job.attempt, job.crashes) == (2, 1)
        assert job.attempts[0].code == "crashed"


async def test_a_job_that_kills_its_worker_ends_after_three_crashes(deployment: Any) -> None:
    async with deployment.client() as client:
        handle = await client.submit(plugq.job("poison"))
        ending = asyncio.create_task(handle.wait(deployment.patience * 2))
        while not ending.done():
            worker = deployment.worker()
            killed = asyncio.create_task(asyncio.to_thread(worker.wait))
            await asyncio.wait({ending, killed}, return_when=asyncio.FIRST_COMPLETED)
            if not killed.done():
                worker.kill()
                await killed
        job = ending.result()
        assert (job.state, job.code, job.crashes) == ("failed", "crashed", 3)
        assert len(deployment.facts("poison")) == 3


async def test_four_workers_run_five_thousand_jobs_once_each(deployment: Any) -> None:
    number = 5000
    async with deployment.client() as client:
        workers = [deployment.worker() for _ in range(4)]
        await deployment.until(lambda: len(deployment.facts("ready")) == 4, "not ready")
        handles = await client.submit_many([plugq.job("count", n) for n in range(number)])
        assert [await handle.result(deployment.patience) for handle in handles] == list(
            range(number)
        )
        states = [await deployment.stopped(worker) for worker in workers]
        totals = (await client.stats()).queues[0].totals
    runs = [int(fact[1]) for fact in deployment.facts("run")]
    assert sorted(runs) == list(range(number))
    assert totals["started"] == totals["succeeded"] == number
    assert totals["lease_ended"] == 0
    assert sum(int(str(state["started"])) for state in states) == number
    for state in states:
        loops = state["loops"]
        assert isinstance(loops, dict)
        assert not [name for name, loop in loops.items() if loop.get("failures")], state


@pytest.mark.parametrize("task", ["block_loop", "block_thread"])
async def test_a_blocked_handler_does_not_hold_up_the_stop(deployment: Any, task: str) -> None:
    async with deployment.client() as client:
        worker = deployment.worker()
        handle = await client.submit(plugq.job(task))
        await deployment.until(lambda: len(deployment.facts("blocked")) == 1, "no start")
        worker.terminate()
        await asyncio.to_thread(worker.wait, deployment.patience)
        job = await handle.status()
        assert (job.state, job.attempt, job.crashes) == ("queued", 0, 0)


async def test_a_second_signal_ends_the_process_at_once(deployment: Any) -> None:
    deployment.configure(grace="600")
    async with deployment.client() as client:
        worker = deployment.worker()
        await client.submit(plugq.job("gated", "x"))
        await deployment.until(lambda: len(deployment.facts("start")) == 1, "no start")
        worker.terminate()
        stderr = worker.stderr
        assert stderr is not None
        await asyncio.to_thread(_read_until, stderr, "a second signal")
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, deployment.patience) == 128 + signal.SIGTERM


def _read_until(stream: object, text: str) -> None:
    for line in stream:  # type: ignore[attr-defined]
        if text in line:
            return
