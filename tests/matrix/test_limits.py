"""Limits through a real client and a real worker, on every storage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

import plugq
from plugq.assembly import Assembly, Worker

Deployment = dict[str, Any]
LANES = 5


def crowded(moments: Sequence[float], limit: int, per: float) -> list[float]:
    """Return the starts that are one too many for their window, wherever it begins."""
    moments = sorted(moments)
    return [
        later
        for earlier, later in zip(moments, moments[limit:], strict=False)
        # Moments are told in whole microseconds.
        if later - earlier < per - 2e-6
    ]


async def test_lanes_keep_their_limits_and_their_order(deployment: Deployment) -> None:
    app = plugq.App()
    order: dict[str, list[int]] = {f"lane-{number}": [] for number in range(LANES)}

    @app.task(queue="mail")
    async def send(lane: str, number: int) -> None:
        order[lane].append(number)

    deployment["queues"] = {"mail": {"lane_limits": [{"use": "rate", "limit": 5, "per": "300ms"}]}}
    requests = [send.job(lane, n).options(lane=lane) for n in range(15) for lane in order]
    async with app.running(deployment) as client:
        handles = await client.submit_many(requests)
        for handle in handles:
            await handle.result(20)
        jobs = (await client.find(limit=1000)).jobs
    assert all(numbers == sorted(numbers) and len(numbers) == 15 for numbers in order.values())
    for lane in order:
        moments = [
            job.started_at.timestamp() for job in jobs if job.lane == lane and job.started_at
        ]
        assert len(moments) == 15
        assert not crowded(moments, 5, 0.3)


async def test_a_queue_and_its_lanes_hold_nobody_else_up(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def work() -> None:
        pass

    hourly = {"use": "rate", "limit": 1, "per": "1h"}
    deployment["queues"] = {"whole": {"limits": [hourly]}, "lanes": {"lane_limits": [hourly]}}
    deployment["worker"] = {"concurrency": 2, "queues": ["whole", "lanes", "default"]}
    async with app.running(deployment) as client:
        await client.submit_many([work.job().options(queue="whole")] * 20)
        await client.submit_many([work.job().options(queue="lanes", lane="full")] * 20)
        other = await client.submit(work.job().options(queue="lanes", lane="other"))
        none = await client.submit(work.job().options(queue="lanes"))
        free = await client.submit(work.job())
        for handle in (other, none, free):
            await handle.result(20)
        jobs = (await client.find(state="succeeded")).jobs
        assert len([job for job in jobs if job.queue == "whole"]) <= 1
        assert len([job for job in jobs if job.lane == "full"]) <= 1


async def test_the_limits_of_the_last_process_started_count(
    deployment: Deployment, caplog: pytest.LogCaptureFixture
) -> None:
    app = plugq.App()

    @app.task
    async def work() -> None:
        pass

    deployment["queues"] = {"default": {"limits": [{"use": "rate", "limit": 1, "per": "1h"}]}}
    first = Assembly(deployment)
    storage = first.storage() if first.private else None
    async with first.client() as client, Worker(app, assembly=first):
        handles = await client.submit_many([work.job()] * 5)
        await asyncio.wait_for(_any(handles), 20)
        assert not [line for line in caplog.messages if "other limits" in line]
        second = Assembly({**deployment, "queues": {"default": {}}}, storage=storage)
        async with Worker(app, assembly=second):
            for handle in handles:
                await handle.result(20)
    (line,) = [line for line in caplog.messages if "other limits" in line]
    assert line.startswith("queue 'default' had other limits")


async def _any(handles: Sequence[plugq.JobHandle[Any]]) -> None:
    tasks = [asyncio.create_task(handle.wait(20)) for handle in handles]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_a_wrong_option_is_one_line_with_its_place(deployment: Deployment) -> None:
    deployment["queues"] = {"email": {"limits": [{"use": "rate", "limit": 0, "per": "1s"}]}}
    with pytest.raises(plugq.ConfigError) as caught:
        Assembly(deployment)
    assert str(caught.value) == (
        "queues.email.limits[0].limit: expected a whole number from 1 to 1e+09, got 0"
    )


async def test_a_number_may_come_out_of_the_environment(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = plugq.App()

    @app.task
    async def work() -> int:
        return 1

    monkeypatch.setenv("MOST", "3")
    deployment["queues"] = {"default": {"limits": [{"use": "rate", "limit": "${MOST}", "per": 1}]}}
    async with app.running(deployment) as client:
        assert await client.call(work.job()) == 1
