"""One job and a hundred idle processes: how many wake, what that costs, and how soon it runs.

The processes watch one store and are registered as idle. Each claims when it is told that
there may be work, and settles what it gets. Their own count of claims, the processor time of all of
them and the moment of the claim lie in shared memory, so that asking for them wakes nobody.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from crowd import Board
from figures import Figures
from processes import HERE, environment, processor_time
from settings import Settings
from stores import sqlite

from plugq.assembly import Assembly
from plugq.protocols.storage import NewJob, Storage
from plugq.submission import uuid7

#: Seconds after which everything that a job set off is over, and after which it counts as lost.
CALM, PATIENCE = 0.3, 10.0


async def one_job(storage: Storage, board: Board, figures: Figures) -> None:
    pids = board.pids()
    claims = board.claims()
    spent = [processor_time(pid) for pid in pids]
    ran = sum(board.ran())
    began = time.time_ns()
    job = NewJob(queue="default", id=uuid7(), task="t", submission=os.urandom(16), body=b"body")
    await storage.submit([job])
    given_up = time.monotonic() + PATIENCE
    while sum(board.ran()) == ran:
        assert time.monotonic() < given_up, "nobody ran the job"
        await asyncio.sleep(0.001)
    await asyncio.sleep(CALM)
    assert sum(board.ran()) == ran + 1, "the job ran more than once"
    woken = [now - before for now, before in zip(board.claims(), claims, strict=True)]
    figures.record("woken by one job", sum(1 for count in woken if count), "processes")
    figures.record("claims for one job", sum(woken), "claims")
    figures.record("submit to claim", (max(board.claimed_at()) - began) / 1e6, "ms")
    if None not in spent:
        after = [processor_time(pid) for pid in pids]
        cost = sum((a or 0) - (b or 0) for a, b in zip(after, spent, strict=True))
        figures.record("processor time of all processes", cost * 1e3, "ms")


async def measure(figures: Figures, config: Path, board: Board, rounds: int) -> None:
    storage = Assembly(config).storage()
    await storage.start()
    try:
        for _ in range(rounds):
            await one_job(storage, board, figures)
    finally:
        await storage.stop()


def run(settings: Settings) -> Figures:
    figures = Figures("wake")
    number = settings.processes or (10 if settings.quick else 100)
    with settings.folder_for("wake") as folder:
        config = (settings.store or sqlite()).write(folder)
        shared = folder / "board"
        board = Board(shared, number)
        began = time.perf_counter()
        crowd = subprocess.Popen(
            [sys.executable, HERE / "crowd.py", config, shared, str(number)],
            stdin=subprocess.PIPE,
            env=environment(),
        )
        try:
            while not all(board.claims()):
                assert crowd.poll() is None, "the processes did not start"
                time.sleep(0.05)
            figures.record(f"{number} processes ready", time.perf_counter() - began, "s")
            time.sleep(CALM)
            asyncio.run(measure(figures, config, board, 3 if settings.quick else 20))
        finally:
            assert crowd.stdin is not None
            crowd.stdin.close()
            code = crowd.wait(60)
    assert not code, "a process did not stop as it should"
    median = statistics.median(figures.runs["woken by one job"])
    figures.record("share of the processes that wake", median / number, "x")
    return figures
