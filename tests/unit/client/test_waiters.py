"""Waiting for jobs: every wait ends, and with the right job."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.client.views import view
from plugq.errors import OutcomeUnknown
from plugq.protocols import PluginContext


class Store(MemoryStorage):
    """Loses the answers to look-ups when it is told to."""

    lossy = False

    async def get(self, refs: Any, **options: Any) -> Any:
        if self.lossy:
            raise OutcomeUnknown("the answer was lost")
        return await super().get(refs, **options)


def client(**config: Any) -> tuple[plugq.Client, Store]:
    store = Store(MemoryOptions(), PluginContext())
    return Assembly(config, storage=store).client(), store


async def test_a_wait_ends_when_another_generation_has_taken_the_id() -> None:
    one, _ = client()
    async with one:
        first = await one.submit(plugq.job("t"), id="a")
        waiting = asyncio.create_task(first.result(10))
        await asyncio.sleep(0)
        cancelling = asyncio.create_task(first.cancel())
        again = await one.submit(plugq.job("t"), id="a")
        assert await cancelling == "cancelled"
        assert again.outcome == "accepted"
        with pytest.raises(plugq.JobCancelled):
            await waiting
        # The new one has not ended, nor has anybody who waits for it.
        with pytest.raises(plugq.WaitTimeout):
            await again.result(0.05)
        with pytest.raises(plugq.JobCancelled):
            await first.result(10)
        assert one.state()["waiters"]["waiting"] == 0


async def test_stopping_the_client_ends_a_wait_with_an_error_that_says_so() -> None:
    one, _ = client()
    await one.start()
    handle = await one.submit(plugq.job("t"))
    waiting = asyncio.create_task(handle.result())
    while not one.state()["waiters"]["waiting"]:
        await asyncio.sleep(0)
    await one.stop()
    with pytest.raises(plugq.Unavailable, match="stopped"):
        await waiting


async def test_a_wait_times_out_as_such_although_the_state_can_not_be_learnt() -> None:
    one, store = client()
    async with one:
        handle = await one.submit(plugq.job("t"))
        store.lossy = True
        with pytest.raises(plugq.WaitTimeout, match="of unknown state"):
            await handle.result(0.05)


async def test_a_job_due_beyond_the_calendar_can_be_looked_at() -> None:
    one, _ = client()
    async with one:
        handle = await one.submit(plugq.job("t"))
        (record,) = await one._broker.get([handle.ref])
        assert record is not None
        job = view(msgspec.structs.replace(record, ready_at=1.7e12))
        assert job.ready_at.year == 9999
