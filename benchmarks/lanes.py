"""Whether a lane with a long backlog costs the others anything: claim and settle beside it.

Both stores have one lane with waiting jobs, one of which runs all the time, few in the one store
and many in the other. What is measured are the jobs of a thousand other lanes. Both stores are open
at once and are measured in turn, and every claim and settlement is checked.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

from figures import Figures
from finished import CHUNK, CLAIM, QUEUE, compared, cycles, opened, submit, sweep
from settings import Settings

from plugq.protocols.storage import ClaimRequest, Storage

BUSY, OTHERS = "busy", 1_000
#: Seconds for which the one job of the busy lane holds it.
LONG = 86_400.0


async def occupy(storage: Storage, number: int) -> float:
    """Fill the busy lane, let its first job run, and return jobs a second."""
    began = time.perf_counter()
    for _ in range(0, number, CHUNK):
        await submit(storage, [BUSY] * CHUNK)
    took = time.perf_counter() - began
    request = ClaimRequest(worker="busy", number=1, queues=(QUEUE,), limit=CLAIM, lease=LONG)
    assert len((await storage.claim(request)).leases) == 1
    return number / took


async def compare(
    figures: Figures, name: str, stores: dict[int, dict[str, Any]], settings: Settings
) -> None:
    jobs = 2_000 if settings.quick else 10_000
    few, many = stores
    async with opened(stores[few]) as small, opened(stores[many]) as large:
        await occupy(small, few)
        figures.record(f"{name}: submitted into one lane", await occupy(large, many), "jobs/s")
        numbers = itertools.count(1)
        for _ in range(max(settings.repeat, 3)):
            for number, storage in ((few, small), (many, large)):
                case = f"{name}, {number:,} waiting in one lane"
                cost = await cycles(storage, jobs, numbers, lanes=OTHERS)
                figures.record(f"{case}: others, claim and settle", cost, "us/job")
                figures.record(f"{case}: sweep", await sweep(storage), "ms")
    for step in ("others, claim and settle", "sweep"):
        figures.ratio(
            f"{name}, {many:,} waiting in one lane: {step}",
            f"{name}, {few:,} waiting in one lane: {step}",
        )


def run(settings: Settings) -> Figures:
    figures = Figures("lanes")
    compared(compare, figures, settings)
    return figures
