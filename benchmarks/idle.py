"""What processes cost that have nothing to do, and how soon they begin when there is something.

Two workers and a client over one store are left alone while their storage calls and their
processor time are counted; the worker that sweeps is the elected one. Then jobs are submitted one
at a time, with random gaps, by another process than the one that runs them: the start is stamped
with the clock that both processes share.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import jobs
from figures import Figures
from processes import Station, worker
from settings import Settings
from stores import Store, sqlite

from plugq import connect

#: Seconds until what starting cost is over, and between two jobs.
SETTLE = 3.0
SHORTEST, LONGEST = 0.005, 0.05


def at_rest(figures: Figures, folder: Path, store: Store, seconds: float) -> None:
    config = store.write(folder, "idle")
    stations = [Station(config, role) for role in ("worker", "worker", "client")]
    try:
        time.sleep(SETTLE)
        before = [station.ask() for station in stations]
        time.sleep(seconds)
        after = [station.ask() for station in stations]
    finally:
        for station in stations:
            station.stop()
    for station, first, last in zip(stations, before, after, strict=True):
        _tell(figures, station.role, first, last)


def _tell(figures: Figures, role: str, first: dict[str, Any], last: dict[str, Any]) -> None:
    took = last["at"] - first["at"]
    calls = {
        verb: (count - first["calls"].get(verb, 0)) / took for verb, count in last["calls"].items()
    }
    who = "elected sweeper" if calls.get("sweep") else f"idle {role}"
    for verb, rate in sorted(calls.items()):
        if rate:
            figures.record(f"{who}: {verb}", rate, "calls/s")
    figures.record(f"{who}: all storage calls", sum(calls.values()), "calls/s")
    share = (last["processor"] - first["processor"]) / took * 100
    figures.record(f"{who}: processor", share, "% of a core")


async def latencies(figures: Figures, config: Path, number: int) -> None:
    starts, answers = [], []
    async with connect(config) as client:
        for _ in range(number):
            await asyncio.sleep(random.uniform(SHORTEST, LONGEST))
            submitted = time.time_ns()
            handle = await client.submit(jobs.stamp.job())
            starts.append((handle, submitted))
        begun = [(await handle.result(30) - submitted) / 1e6 for handle, submitted in starts]
        for at in range(number):
            await asyncio.sleep(random.uniform(SHORTEST, LONGEST))
            asked = time.perf_counter()
            assert await client.call(jobs.echo.job(str(at)), timeout=30) == str(at)
            answers.append((time.perf_counter() - asked) * 1e3)
    figures.percentiles("submit to start", begun, "ms")
    figures.percentiles("request to response", answers, "ms")


def run(settings: Settings) -> Figures:
    figures = Figures("idle")
    store = settings.store or sqlite()
    for _ in range(settings.repeat):
        with settings.folder_for("latency") as folder:
            config = store.write(folder)
            with worker(config):
                number = 50 if settings.quick else 300
                asyncio.run(latencies(figures, config, number))
    with settings.folder_for("idle") as folder:
        at_rest(figures, folder, store, 5 if settings.quick else 60)
    return figures
