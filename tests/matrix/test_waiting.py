"""Every way to wait ends, and says what became of the job, however it ends, on every storage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

import plugq
from plugq.testing import ManualClock

Deployment = dict[str, Any]
Waiting = Callable[[plugq.Client, plugq.JobHandle[Any]], Awaitable[Any]]


async def result(client: plugq.Client, handle: plugq.JobHandle[Any]) -> Any:
    return await handle.result(20)


async def wait(client: plugq.Client, handle: plugq.JobHandle[Any]) -> Any:
    return await handle.wait(20)


async def as_completed(client: plugq.Client, handle: plugq.JobHandle[Any]) -> Any:
    (done,) = [done async for done in client.as_completed([handle], timeout=20)]
    # At once: from what was seen, whatever has become of the job since.
    return await done.result(0)


async def batch_wait(client: plugq.Client, handle: plugq.JobHandle[Any]) -> Any:
    counts = await client.batch("b").wait(20)
    return {state for state, number in counts.items() if number}


WAITS: list[Waiting] = [result, wait, as_completed, batch_wait]

app = plugq.App()


@app.task(max_attempts=1)
async def end(how: str) -> str:
    if how == "failed":
        raise ValueError("no")
    if how == "skipped":
        raise plugq.Skip("sunday")
    if how == "cancelled while it runs":
        await asyncio.Event().wait()
    return "fine"


@asynccontextmanager
async def waited_for(
    client: plugq.Client, handle: plugq.JobHandle[Any], waiting: Waiting
) -> AsyncIterator[asyncio.Task[Any]]:
    """Start to wait, and let the block end the job once that is under way."""
    task = asyncio.ensure_future(waiting(client, handle))
    kind = "batches" if waiting is batch_wait else "waiters"
    while not client.state()[kind]["waiting"] and not task.done():
        await asyncio.sleep(0.001)
    yield task
    await asyncio.wait([task], timeout=30)
    assert task.done(), "the wait did not end"


def expect(task: asyncio.Task[Any], waiting: Waiting, state: str) -> None:
    """Check what the wait said of a job that ended in that state, or is not there."""
    errors = {
        "failed": plugq.JobFailed,
        "cancelled": plugq.JobCancelled,
        "skipped": plugq.JobSkipped,
        "gone": plugq.JobNotFound,
    }
    if waiting is batch_wait:
        assert task.result() == {"succeeded" if state == "gone" else state}
    elif state in errors and (waiting is not wait or state == "gone"):
        assert type(task.exception()) is errors[state]
    else:
        assert task.result() == "fine" if waiting is not wait else task.result().state == state


@pytest.mark.parametrize("waiting", WAITS)
@pytest.mark.parametrize("state", ["succeeded", "failed", "skipped"])
async def test_a_job_that_its_handler_ends(
    deployment: Deployment, waiting: Waiting, state: str
) -> None:
    async with app.running(deployment) as client:
        await client.queues.pause("default")
        handle = await client.submit(end.job(state), batch="b", result_ttl=0)
        async with waited_for(client, handle, waiting) as task:
            await client.queues.resume("default")
        expect(task, waiting, state)


@pytest.mark.parametrize("waiting", WAITS)
async def test_a_job_that_is_cancelled_before_it_starts(
    deployment: Deployment, waiting: Waiting
) -> None:
    async with app.running(deployment) as client:
        await client.queues.pause("default")
        handle = await client.submit(end.job("never"), batch="b")
        async with waited_for(client, handle, waiting) as task:
            assert await client.cancel(batch="b") == ["cancelled"]
        expect(task, waiting, "cancelled")


@pytest.mark.parametrize("waiting", WAITS)
async def test_a_job_that_is_cancelled_while_it_runs(
    deployment: Deployment, waiting: Waiting
) -> None:
    async with app.running(deployment) as client:
        handle = await client.submit(end.job("cancelled while it runs"), batch="b")
        async with waited_for(client, handle, waiting) as task:
            while (await handle.status()).state != "running":
                await asyncio.sleep(0.001)
            assert await client.batch("b").cancel() == ["requested"]
        expect(task, waiting, "cancelled")


@pytest.mark.parametrize("waiting", WAITS)
@pytest.mark.parametrize("how", ["purged", "removed by retention"])
async def test_a_job_that_is_not_there_any_longer(
    deployment: Deployment, waiting: Waiting, how: str
) -> None:
    """The wait begins when all that is left of the job is its count."""
    clock = ManualClock()
    async with app.running(deployment, clock=clock) as client:
        handle = await client.submit(end.job("succeeded"), batch="b")
        await handle.wait(20)
        if how == "purged":
            assert await client.purge(batch="b") == ["done"]
        else:
            clock.advance("2h")
        async with waited_for(client, handle, waiting) as task:
            pass
        expect(task, waiting, "gone")


@pytest.mark.parametrize("waiting", [result, wait, as_completed])
async def test_a_job_that_is_cancelled_and_purged_at_once(
    deployment: Deployment, waiting: Waiting
) -> None:
    async with app.running(deployment) as client:
        await client.queues.pause("default")
        handle = await client.submit(end.job("never"))
        async with waited_for(client, handle, waiting) as task:
            await client.cancel(handle)
            await client.purge(handle)
        if task.exception() is None:
            assert waiting is wait
            assert task.result().state == "cancelled"
        else:
            assert type(task.exception()) in {plugq.JobCancelled, plugq.JobNotFound}


@pytest.mark.parametrize("waiting", WAITS)
async def test_a_client_that_stops(deployment: Deployment, waiting: Waiting) -> None:
    async with app.running(deployment) as client:
        await client.queues.pause("default")
        handle = await client.submit(end.job("never"), batch="b")
        async with waited_for(client, handle, waiting) as task:
            await client.stop()
        assert type(task.exception()) is plugq.Unavailable


async def test_a_call(deployment: Deployment) -> None:
    async with app.running(deployment) as client:
        assert await client.call(end.job("succeeded")) == "fine"
        with pytest.raises(plugq.JobFailed):
            await client.call(end.job("failed"))
        with pytest.raises(plugq.JobSkipped):
            await client.call(end.job("skipped"))
        await client.queues.pause("default")
        for end_it, error in (
            (lambda: client.cancel(queue="default"), plugq.JobCancelled),
            (client.stop, plugq.Unavailable),
        ):
            calling = asyncio.ensure_future(client.call(end.job("never")))
            while not client.state()["waiters"]["waiting"]:
                await asyncio.sleep(0.001)
            await end_it()
            with pytest.raises(error):
                await calling


async def test_many_jobs_as_they_end(deployment: Deployment) -> None:
    async with app.running(deployment) as client:
        ways = ["succeeded", "failed", "skipped", "succeeded"]
        handles = await client.submit_many(
            [end.job(ways[number % 4]) for number in range(2_000)], batch="b"
        )
        seen = {}
        async for done in client.as_completed([*handles, handles[0]], timeout=50):
            try:
                seen[done] = await done.result(0)
            except plugq.JobError as error:
                seen[done] = type(error).__name__
        expected = ["fine", "JobFailed", "JobSkipped", "fine"]
        assert [seen[handle] for handle in handles] == expected * 500
        counts = await client.batch("b").wait(20)
        assert (counts["succeeded"], counts["failed"], counts["skipped"]) == (1000, 500, 500)
        assert client.state()["waiters"]["waiting"] == 0


async def test_a_batch_that_is_filled_by_its_own_jobs(deployment: Deployment) -> None:
    """A job that submits into its batch keeps it live; between the two there is no gap."""
    own = plugq.App()

    @own.task
    async def step(left: int) -> int:
        if left:
            await client.submit(step.job(left - 1), batch="b")
        return left

    async with own.running(deployment) as client:
        async with client.batch("b") as batch:
            await client.submit_many([step.job(3)] * 5, batch="b")
        counts = await batch.wait(30)
        assert counts["succeeded"] == sum(counts.values()) == 20


async def test_more_jobs_than_a_page_are_changed_by_what_they_have_in_common(
    deployment: Deployment,
) -> None:
    async with app.running(deployment) as client:
        await client.queues.pause("default")
        await client.submit_many([end.job("failed") for _ in range(1_200)], batch="b")
        await client.submit_many([end.job("succeeded") for _ in range(3)], batch="other")
        assert await client.reprioritise(batch="b", priority=7) == ["done"] * 1_200
        assert {job.priority for job in (await client.find(batch="b")).jobs} == {7}
        assert await client.cancel(batch="b", task="end") == ["cancelled"] * 1_200
        assert await client.retry(batch="b") == []
        assert await client.retry(batch="b", state="cancelled") == ["done"] * 1_200
        await client.queues.resume("default")
        counts = await client.batch("b").wait(50)
        assert counts["failed"] == 1_200
        assert await client.retain(batch="b", ttl="30d") == ["done"] * 1_200
        assert await client.purge(batch="b", state=["failed"]) == ["done"] * 1_200
        assert (await client.batch("b").counts())["failed"] == 1_200
        assert (await client.batch("other").wait(20))["succeeded"] == 3
        stats = await client.queues.stats()
        assert stats["default"].run_time is not None
        assert stats["default"].rate > 0


async def test_a_queue_is_drained(deployment: Deployment) -> None:
    async with app.running(deployment) as client:
        await client.queues.pause("default")
        handle = await client.submit(end.job("succeeded"))
        await client.queues.resume("default")
        await client.queues.drain("default")
        assert (await client.queues.stats())["default"].draining
        with pytest.raises(plugq.QueueFull, match="drained"):
            await client.submit(end.job("succeeded"))
        assert await handle.result(20) == "fine"
        await client.queues.resume("default")
        assert await client.call(end.job("succeeded")) == "fine"
