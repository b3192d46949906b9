"""Schedules from the configuration and from code, on every storage."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import plugq

Deployment = dict[str, Any]


async def until(client: plugq.Client, task: str, number: int) -> list[plugq.Job]:
    """Wait until a task has succeeded that often; bounded by the timeout of the test."""
    while True:
        jobs = [job for job in (await client.find(task=task)).jobs if job.state == "succeeded"]
        if len(jobs) >= number:
            return jobs
        await asyncio.sleep(0.02)


async def test_a_schedule_submits_its_job_again_and_again(deployment: Deployment) -> None:
    app = plugq.App()
    seen: list[tuple[int, str]] = []

    @app.task("report.build", queue="reports")
    async def build(number: int, *, kind: str = "short") -> None:
        seen.append((number, kind))

    deployment["schedules"] = {
        "often": {"task": "report.build", "args": [1], "kwargs": {"kind": "long"}, "every": 0.1}
    }
    async with app.running(deployment) as client:
        jobs = await until(client, "report.build", 3)
    assert {job.queue for job in jobs} == {"reports"}
    assert {job.id.partition("@")[0] for job in jobs} == {"often"}
    assert set(seen) == {(1, "long")}


async def test_a_schedule_of_the_code(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def tidy(what: str) -> str:
        return what

    app.schedule("tidy", tidy.job("logs").options(queue="night"), every="100ms", overlap="allow")
    deployment["worker"] = {"queues": ["night"]}
    async with app.running(deployment) as client:
        jobs = await until(client, "tidy", 2)
        assert {job.queue for job in jobs} == {"night"}


async def test_two_workers_submit_each_tick_once(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def note() -> None:
        pass

    app.schedule("note", note.job(), every=0.05, overlap="allow", catch_up="all")
    async with plugq.assembly.Assembly(deployment).client() as client:
        first, second = (plugq.Worker(app, client=client) for _ in range(2))
        async with first, second:
            jobs = await until(client, "note", 10)
        ids = [job.id for job in jobs]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"task": "t", "cron": "0 25 * * *"}, "schedules.x: cron"),
        ({"task": "t", "cron": "0 3 31 2 *"}, "schedules.x"),
        ({"task": "t"}, "schedules.x"),
        ({"task": "t", "every": 1, "cron": "* * * * *"}, "schedules.x"),
        ({"task": "t", "args": [1], "every": 1}, "schedules.x: .*t"),
    ],
)
async def test_a_schedule_that_can_not_be_is_named(table: dict[str, Any], message: str) -> None:
    app = plugq.App()

    @app.task("t")
    async def task() -> None:
        pass

    with pytest.raises(plugq.ConfigError, match=message):
        plugq.Worker(app, {"schedules": {"x": table}})


async def test_one_name_in_the_configuration_and_in_the_code_is_refused() -> None:
    app = plugq.App()

    @app.task("t")
    async def task() -> None:
        pass

    app.schedule("x", task.job(), every=5)
    with pytest.raises(plugq.ConfigError, match="both define it"):
        plugq.Worker(app, {"schedules": {"x": {"task": "t", "every": 1}}})
    with pytest.raises(plugq.ConfigError, match="defined twice"):
        app.schedule("x", task.job(), every=5)
    with pytest.raises(plugq.ConfigError, match="either `cron` or `every`"):
        app.schedule("y", task.job())
