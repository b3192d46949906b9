"""A whole store in one value, so that a test can say that nothing at all has changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from plugq.job import JobRecord, JobRef, JobState
from plugq.protocols.storage import BatchCounts, FindQuery, Register, Stats

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene


class Snapshot(msgspec.Struct, frozen=True):
    """Every job with its body and result, every counter, every register, and the time."""

    jobs: tuple[JobRecord, ...]
    stats: Stats
    batches: tuple[BatchCounts | None, ...]
    registers: tuple[Register, ...]


async def every_job(scene: Scene) -> list[JobRecord]:
    """Return all jobs that readers see, oldest first, with body and result."""
    jobs: list[JobRecord] = []
    cursor: str | None = None
    while True:
        page = await scene.storage.find(FindQuery(cursor=cursor))
        refs = [JobRef(job.queue, job.id) for job in page.jobs]
        jobs += [job for job in await scene.storage.get(refs, body=True) if job is not None]
        cursor = page.cursor
        if cursor is None:
            return jobs[::-1]


async def snapshot(scene: Scene) -> Snapshot:
    """Return the store as it stands."""
    jobs = await every_job(scene)
    named = sorted({job.batch for job in jobs if job.batch is not None})
    return Snapshot(
        tuple(jobs),
        await scene.storage.stats(),
        tuple(await scene.storage.batches(named)),
        tuple(await scene.storage.scan("")),
    )


async def check_books(scene: Scene) -> None:
    """Check that counters agree with the jobs, and that what runs is held (I13)."""
    jobs = await every_job(scene)
    counted: dict[tuple[str, str, str], int] = {}
    for job in jobs:
        key = (job.queue, job.task, job.state)
        counted[key] = counted.get(key, 0) + 1
        running = job.state is JobState.RUNNING
        assert (job.lease_until is not None) == running, f"{job.id!r} is {job.state}"
    told = {
        (stats.queue, stats.task, state): count
        for stats in (await scene.storage.stats()).tasks
        for state, count in stats.counts.items()
        if count
    }
    assert told == counted, f"counted {told}, and there are {counted}"
    await scene.settled_store()


__all__ = ["Snapshot", "check_books", "every_job", "snapshot"]
