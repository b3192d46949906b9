"""Limits over several worker processes that share one SQLite file."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

import plugq
from plugq.protocols import FindQuery, PluginContext
from plugq_sqlite import SqliteOptions, SqliteStorage

APP = Path(__file__).with_name("limited_app.py")
#: Seconds that stopping may take on a machine that is busy with other things.
PATIENCE = 40.0
LIMIT, PER = 20, 1.0
#: Calls of a process that no start stands for: its first and last claims, wake-ups, slow polls.
CONSTANT = 40

CONFIG = """
[storage]
use = "sqlite"
path = "jobs.db"
synchronous = "normal"
[worker]
concurrency = 16
[queues.q]
lane_limits = [{ use = "rate", limit = 20, per = "1s" }]
"""


def crowded(moments: Sequence[float]) -> list[float]:
    """Return the starts that are one too many for their window, wherever it begins."""
    return [
        later
        for earlier, later in zip(moments, moments[LIMIT:], strict=False)
        if later - earlier < PER
    ]


async def starts(folder: Path) -> dict[str | None, list[float]]:
    """Return the moments of all starts by lane, as the store has them."""
    storage = SqliteStorage(SqliteOptions(path="jobs.db"), PluginContext(base_dir=folder))
    await storage.start()
    moments: dict[str | None, list[float]] = {}
    cursor = None
    while True:
        page = await storage.find(FindQuery(limit=1000, cursor=cursor))
        for job in page.jobs:
            if job.started_at is not None:
                moments.setdefault(job.lane, []).append(job.started_at)
        cursor = page.cursor
        if cursor is None:
            break
    await storage.stop()
    return {lane: sorted(times) for lane, times in moments.items()}


async def drain(folder: Path, *, processes: int, lanes: int, each: int) -> Counter[str]:
    """Let worker processes work off a backlog, check every window, and return their calls."""
    config = folder / "plugq.toml"
    config.write_text(CONFIG)
    calls: Counter[str] = Counter()
    async with plugq.connect(config) as client:
        jobs = [
            plugq.job("work").options(queue="q", lane=f"lane-{lane}")
            for _ in range(each)
            for lane in range(lanes)
        ]
        await client.submit_many(jobs)
        workers = [
            subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                [sys.executable, str(APP), str(config)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(processes)
        ]
        try:
            async with asyncio.timeout(PATIENCE * each / LIMIT):
                while (await client.stats()).counts["succeeded"] < len(jobs):
                    await asyncio.sleep(0.1)
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                out, err = await asyncio.to_thread(worker.communicate, timeout=PATIENCE)
                assert worker.returncode == 0, err
                calls += Counter(json.loads(out))
    found = await starts(folder)
    assert {lane: len(moments) for lane, moments in found.items()} == {
        f"lane-{lane}": each for lane in range(lanes)
    }
    for moments in found.values():
        assert not crowded(moments)
    return calls


async def test_processes_together_never_exceed_the_limit_of_a_lane(tmp_path: Path) -> None:
    calls = await drain(tmp_path, processes=4, lanes=5, each=50)
    assert calls.total() <= 3 * 5 * 50 + CONSTANT * 4


@pytest.mark.soak
async def test_a_limited_queue_costs_at_most_two_calls_a_start(tmp_path: Path) -> None:
    calls = await drain(tmp_path, processes=8, lanes=50, each=400)
    assert calls.total() <= 2 * 50 * 400 + CONSTANT * 8
