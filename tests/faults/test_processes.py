"""Worker processes that are killed, paused and stopped, over one SQLite file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import plugq

APP = Path(__file__).with_name("ledger_app.py")
LEASE = 1.0
#: Seconds that anything here may take on a machine that is busy with other things.
PATIENCE = 40.0

CONFIG = f"""
[storage]
use = "sqlite"
path = "jobs.db"
[broker]
lease = {LEASE}
renewal = 0.2
[client.reconnect]
first = 0.01
max = 0.2
[worker]
grace = 0.5
concurrency = 8
"""


class Deployment:
    """A folder with a configuration, a ledger and the processes that work there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "plugq.toml"
        self.config.write_text(CONFIG)
        self.processes: list[subprocess.Popen[str]] = []

    def worker(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(APP), str(self.config)],
            env={**os.environ, "LEDGER": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def facts(self, kind: str) -> list[list[str]]:
        try:
            lines = (self.folder / "ledger").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [parts for line in lines if (parts := line.split())[0] == kind]

    def let_go(self, process: subprocess.Popen[str]) -> None:
        (self.folder / f"go-{process.pid}").touch()

    async def until(self, what: Callable[[], bool], why: str) -> None:
        """Look at the ledger until it says so: the only thing that other processes can tell."""
        end = time.monotonic() + PATIENCE
        while not what():
            if time.monotonic() > end:
                pytest.fail(f"{why}: {(self.folder / 'ledger').read_text()}")
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    one = Deployment(tmp_path)
    yield one
    one.close()


@asynccontextmanager
async def client_of(deployment: Deployment) -> AsyncIterator[plugq.Client]:
    async with plugq.connect(deployment.config) as client:
        yield client


async def stopped(process: subprocess.Popen[str]) -> dict[str, object]:
    """Stop a worker as a process manager would and return its last state."""
    process.terminate()
    out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
    assert process.returncode == 0, err
    state: dict[str, object] = json.loads(out)
    return state


async def test_a_worker_that_is_paused_past_its_lease_is_refused(deployment: Deployment) -> None:
    async with client_of(deployment) as client:
        first = deployment.worker()
        handle = await client.submit(plugq.job("gated", "x"))
        await deployment.until(lambda: len(deployment.facts("start")) == 1, "no start")
        first.send_signal(signal.SIGSTOP)
        second = deployment.worker()
        await deployment.until(lambda: len(deployment.facts("start")) == 2, "no second start")
        deployment.let_go(first)
        deployment.let_go(second)
        assert await handle.result(PATIENCE) == str(second.pid)
        first.send_signal(signal.SIGCONT)
        await deployment.until(lambda: len(deployment.facts("end")) == 2, "the first did not go on")
        state = await stopped(first)
        assert state["lost"] == 1
        assert await handle.result(PATIENCE) == str(second.pid)
        job = await handle.status()
        assert (job.state, job.attempt, job.crashes) == ("succeeded", 2, 1)
        assert [one.code for one in job.attempts] == ["crashed"]
        tokens = [int(start[3]) for start in deployment.facts("start")]
        assert tokens[0] < tokens[1]


async def test_the_job_of_a_killed_worker_is_run_by_another(deployment: Deployment) -> None:
    async with client_of(deployment) as client:
        first = deployment.worker()
        handle = await client.submit(plugq.job("gated", "x"))
        await deployment.until(lambda: len(deployment.facts("start")) == 1, "no start")
        first.kill()
        second = deployment.worker()
        deployment.let_go(second)
        assert await handle.result(PATIENCE) == str(second.pid)
        job = await handle.status()
        assert (job.attempt, job.crashes) == (2, 1)
        assert job.attempts[0].code == "crashed"


async def test_a_job_that_kills_its_worker_ends_after_three_crashes(deployment: Deployment) -> None:
    async with client_of(deployment) as client:
        handle = await client.submit(plugq.job("poison"))
        ending = asyncio.create_task(handle.wait(PATIENCE * 2))
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


async def test_four_workers_run_five_thousand_jobs_once_each(deployment: Deployment) -> None:
    number = 5000
    async with client_of(deployment) as client:
        workers = [deployment.worker() for _ in range(4)]
        await deployment.until(lambda: len(deployment.facts("ready")) == 4, "not ready")
        handles = await client.submit_many([plugq.job("count", n) for n in range(number)])
        assert [await handle.result(PATIENCE) for handle in handles] == list(range(number))
        states = [await stopped(worker) for worker in workers]
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
async def test_a_blocked_handler_does_not_hold_up_the_stop(
    deployment: Deployment, task: str
) -> None:
    async with client_of(deployment) as client:
        worker = deployment.worker()
        handle = await client.submit(plugq.job(task))
        await deployment.until(lambda: len(deployment.facts("blocked")) == 1, "no start")
        worker.terminate()
        await asyncio.to_thread(worker.wait, PATIENCE)
        job = await handle.status()
        assert (job.state, job.attempt, job.crashes) == ("queued", 0, 0)


async def test_a_second_signal_ends_the_process_at_once(deployment: Deployment) -> None:
    deployment.config.write_text(CONFIG.replace("grace = 0.5", "grace = 600"))
    async with client_of(deployment) as client:
        worker = deployment.worker()
        await client.submit(plugq.job("gated", "x"))
        await deployment.until(lambda: len(deployment.facts("start")) == 1, "no start")
        worker.terminate()
        stderr = worker.stderr
        assert stderr is not None
        await asyncio.to_thread(_read_until, stderr, "a second signal")
        worker.terminate()
        assert await asyncio.to_thread(worker.wait, PATIENCE) == 128 + signal.SIGTERM


def _read_until(stream: object, text: str) -> None:
    for line in stream:  # type: ignore[attr-defined]
        if text in line:
            return
