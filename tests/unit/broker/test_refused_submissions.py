"""What a full or drained queue refuses concerns only the call that names it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from plugq.broker.local import LocalBroker
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.protocols import Configure, Drain, NewJob, PluginContext, QueueSettings, SubmitStatus
from plugq.protocols.edits import Edit
from plugq.testing import ManualClock


def job(queue: str, id: str) -> NewJob:
    return NewJob(queue=queue, id=id, task="t", submission=os.urandom(16), body=b"")


@asynccontextmanager
async def broker() -> AsyncIterator[LocalBroker]:
    clock = ManualClock()
    broker = LocalBroker(MemoryStorage(MemoryOptions(), PluginContext(clock=clock)), clock)
    await broker.start()
    try:
        yield broker
    finally:
        await broker.stop()


FULL = Configure((QueueSettings(queue="closed", max_length=0),))
DRAINED = Drain(("closed",))


@pytest.mark.parametrize(
    ("edit", "status"), [(FULL, SubmitStatus.FULL), (DRAINED, SubmitStatus.DRAINING)]
)
async def test_a_queue_that_refuses_refuses_only_its_own_callers(
    edit: Edit, status: SubmitStatus
) -> None:
    async with broker() as local:
        await local.edit(edit)
        calls = [
            [job("open", "a"), job("open", "b")],
            [job("closed", "c")],
            [job("other", "d")],
            [job("open", "e"), job("closed", "f")],
        ]
        replies = await asyncio.gather(*(local.submit(jobs) for jobs in calls))
        assert [reply.status for reply in replies[0]] == [SubmitStatus.ACCEPTED] * 2
        assert [reply.status for reply in replies[1]] == [status]
        assert [reply.status for reply in replies[2]] == [SubmitStatus.ACCEPTED]
        # Of one caller's call nothing is stored, as ever.
        assert replies[3][1].status is status
        assert replies[3][0].status is SubmitStatus.REFUSED
        stats = await local.stats()
        stored = {(task.queue, sum(task.counts.values())) for task in stats.tasks}
        assert stored == {("open", 2), ("other", 1)}


async def test_room_goes_to_the_callers_in_their_order() -> None:
    async with broker() as local:
        await local.edit(Configure((QueueSettings(queue="q", max_length=2),)))
        calls = [[job("q", "a")], [job("q", "b"), job("q", "c")], [job("q", "d")]]
        replies = await asyncio.gather(*(local.submit(jobs) for jobs in calls))
        assert [[reply.status for reply in each] for each in replies] == [
            [SubmitStatus.ACCEPTED],
            [SubmitStatus.FULL, SubmitStatus.FULL],
            [SubmitStatus.ACCEPTED],
        ]
