"""Jobs steered from another process, while their worker is alive, hung or dead.

The client of each test submits, cancels and waits in a process in which no worker runs. Where a
worker is hung or dead a second one takes its place: somebody has to sweep.
"""

from __future__ import annotations

import asyncio
import signal
from datetime import timedelta
from typing import Any

import pytest

import plugq

FATES = ["alive", "hung", "dead"]


def _meet(deployment: Any, worker: Any, fate: str) -> None:
    if fate == "hung":
        deployment.pause(worker)
    elif fate == "dead":
        worker.kill()


async def running(deployment: Any, client: plugq.Client, fate: str, **options: Any) -> Any:
    """Return the handle of a job that runs, once its worker has met its fate."""
    worker = deployment.worker()
    handle = await client.submit(plugq.job("endless"), id="x", **options)
    await deployment.until(lambda: deployment.facts("start"), "no start")
    _meet(deployment, worker, fate)
    if fate != "alive":
        deployment.worker()
    return handle


async def ends(handle: Any, patience: float) -> tuple[plugq.Job, plugq.JobError]:
    """Return what both kinds of waiters, begun before the end, are given."""
    waits: list[Any] = [handle.result(patience), handle.wait(patience)]
    result, job = await asyncio.gather(*waits, return_exceptions=True)
    assert isinstance(result, plugq.JobError), result
    assert isinstance(job, plugq.Job), job
    # Whoever comes later is told the same.
    with pytest.raises(type(result)):
        await handle.result(patience)
    return job, result


@pytest.mark.parametrize("fate", FATES)
async def test_a_running_job_is_cancelled(deployment: Any, fate: str) -> None:
    async with deployment.client() as client:
        handle = await running(deployment, client, fate)
        waiting = asyncio.create_task(ends(handle, deployment.patience))
        assert await handle.cancel() == "requested"
        job, error = await waiting
        assert isinstance(error, plugq.JobCancelled)
        assert job.state == "cancelled"
        assert job.attempt == 1, "a job that is to be cancelled was run again"
        assert await handle.cancel() == "finished"
    if fate == "alive":
        assert deployment.facts("stopped")[0][2] == "cancel"


async def test_a_worker_is_told_to_cancel_long_before_it_renews(deployment: Any) -> None:
    deployment.configure(lease="600", renewal="200")
    async with deployment.client() as client:
        handle = await running(deployment, client, "alive")
        await handle.cancel()
        with pytest.raises(plugq.JobCancelled):
            await handle.result(deployment.patience)


@pytest.mark.parametrize("fate", FATES)
async def test_a_hung_worker_that_comes_back_can_not_undo_the_end(
    deployment: Any, fate: str
) -> None:
    async with deployment.client() as client:
        handle = await running(deployment, client, fate)
        await handle.cancel()
        with pytest.raises(plugq.JobCancelled):
            await handle.result(deployment.patience)
        first = deployment.processes[0]
        if fate == "hung":
            first.send_signal(signal.SIGCONT)
            await deployment.until(lambda: deployment.facts("stopped"), "not told to stop")
        assert (await handle.status()).state == "cancelled"


@pytest.mark.parametrize("fate", FATES)
async def test_a_running_job_ends_at_its_deadline(deployment: Any, fate: str) -> None:
    async with deployment.client() as client:
        handle = await running(deployment, client, fate, deadline="6s", max_attempts=10)
        job, error = await ends(handle, deployment.patience)
        assert isinstance(error, plugq.JobFailed)
        assert error.code == job.code == "deadline"
        assert job.state == "failed"
        assert job.finished_at is not None
        assert job.deadline_at is not None
        assert job.finished_at >= job.deadline_at


async def test_a_waiting_job_ends_at_its_deadline_with_no_worker_alive(deployment: Any) -> None:
    async with deployment.client() as client:
        waiting = await client.submit(plugq.job("endless"), deadline="0.2s")
        delayed = await client.submit(plugq.job("endless"), deadline="0.2s", delay="1h")
        for handle in (waiting, delayed):
            job, error = await ends(handle, deployment.patience)
            assert isinstance(error, plugq.JobFailed)
            assert (error.code, job.attempt) == ("deadline", 0)
            assert job.finished_at == job.deadline_at


@pytest.mark.parametrize("fate", FATES)
async def test_an_attempt_ends_at_its_timeout(deployment: Any, fate: str) -> None:
    async with deployment.client() as client:
        retry = plugq.RetryPolicy(max_attempts=2, base=0.01)
        handle = await running(deployment, client, fate, timeout="1s", retry=retry)
        job, error = await ends(handle, deployment.patience)
        assert isinstance(error, plugq.JobFailed)
        assert error.code == "timeout"
        assert job.attempt == 2
        crashed = [] if fate == "alive" else ["crashed"]
        timeouts = ["timeout"] * (2 - len(crashed))
        assert [one.code for one in job.attempts] == crashed + timeouts


async def _until_gone(handle: Any) -> None:
    while (job := await handle.status()).state == "succeeded":
        assert job.expires_at is not None


@pytest.mark.parametrize("fate", FATES)
async def test_what_is_not_retained_is_gone_for_everybody(deployment: Any, fate: str) -> None:
    deployment.config.write_text(deployment.config.read_text() + '[defaults]\nid_ttl = "3s"\n')
    async with deployment.client() as client:
        worker = deployment.worker()
        handle = await client.submit(plugq.job("count", 7), result_ttl="1s")
        assert await handle.result(deployment.patience) == 7
        _meet(deployment, worker, fate)
        job = await handle.status()
        assert job.finished_at is not None
        assert job.expires_at == job.finished_at + timedelta(seconds=3)
        # Each look is a round trip, so that this spins no faster than the storage answers.
        with pytest.raises(plugq.JobNotFound):
            await _until_gone(handle)
        with pytest.raises(plugq.JobNotFound):
            await client.get(handle.id)


async def test_a_purged_job_wakes_nobody_up_with_a_wrong_answer(deployment: Any) -> None:
    async with deployment.client() as client, deployment.client() as other:
        handle = await client.submit(plugq.job("endless"), delay="1h")
        waiting = asyncio.create_task(handle.result(deployment.patience))
        far = other.handle(handle.id, queue=handle.queue)
        assert await far.cancel() == "cancelled"
        with pytest.raises(plugq.JobCancelled):
            await waiting
        assert await other.purge(far) == ["done"]
        with pytest.raises(plugq.JobNotFound):
            await handle.result(deployment.patience)
