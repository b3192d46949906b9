"""Who is alive, what they announce and why a wait times out, on every storage."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

import plugq
from plugq.announcement import key_of
from plugq.assembly import Assembly
from plugq.envelope import open_body
from plugq.presence import TTL
from plugq.testing import ManualClock

Deployment = dict[str, Any]
POLICY = plugq.RetryPolicy(max_attempts=7, base="2s")


async def until(what: Callable[[], Awaitable[bool]]) -> None:
    """Wait for other threads to get there; bounded by the timeout of the test."""
    while not await what():
        await asyncio.sleep(0.01)


@asynccontextmanager
async def stranger(assembly: Assembly) -> AsyncIterator[plugq.Client]:
    """Give a client that knows no task, as in a process without their code."""
    async with assembly.client() as client:
        yield client


def an_app(*, gate: asyncio.Event | None = None) -> plugq.App:
    app = plugq.App()

    @app.task("report.build", queue="reports", timeout=9, retry=POLICY)
    async def build(number: int) -> int:
        return number

    @app.task("wait", queue="reports")
    async def wait() -> None:
        if gate is not None:
            await gate.wait()

    @app.task("per.tenant", queue="reports", lane=lambda tenant: f"t{tenant}")
    async def per_tenant(tenant: int) -> int:
        return tenant

    return app


async def test_workers_are_seen_by_a_third(deployment: Deployment) -> None:
    assembly = Assembly(deployment)
    async with stranger(assembly) as client:
        first = plugq.Worker(an_app(), assembly=assembly, concurrency=3)
        second = plugq.Worker(an_app(), assembly=assembly, queues=["b", "a"])
        assert await client.workers() == ()
        async with first:
            async with second:
                await until(lambda: sees(client, 2))
                found = {one.id: one for one in await client.workers()}
                one, other = (found[worker.state()["worker"]] for worker in (first, second))
                assert (one.kind, one.host, one.pid) == (
                    "worker",
                    socket.gethostname(),
                    os.getpid(),
                )
                assert one.tasks == ("per.tenant", "report.build", "wait")
                assert (one.concurrency, one.running, one.draining) == (3, 0, False)
                assert other.queues == ("b", "a")
                now = (await client.stats()).at
                assert one.started_at <= one.last_seen <= now
                assert now - one.last_seen < timedelta(seconds=TTL)
                first.scale(5)
                await until(lambda: slots(client, one.id, 5))
            # One that has stopped is gone at once.
            assert {info.id for info in await client.workers()} == {one.id}
        assert await client.workers() == ()


async def sees(client: plugq.Client, number: int) -> bool:
    return len(await client.workers()) == number


async def slots(client: plugq.Client, id: str, number: int) -> bool:
    return any(one.id == id and one.concurrency == number for one in await client.workers())


async def test_a_worker_that_drains_says_so(deployment: Deployment) -> None:
    gate = asyncio.Event()
    assembly = Assembly(deployment)
    worker = plugq.Worker(an_app(gate=gate), assembly=assembly)
    async with stranger(assembly) as client:
        await worker.start()
        handle = await client.submit(plugq.job("wait"), queue="reports")
        await until(lambda: is_in(handle, "running"))
        stopping = asyncio.create_task(worker.stop())
        await until(lambda: drains(client))
        gate.set()
        await stopping
        assert await client.workers() == ()


async def drains(client: plugq.Client) -> bool:
    return any(one.draining for one in await client.workers())


async def is_in(handle: plugq.JobHandle[Any], state: str) -> bool:
    return (await handle.status()).state == state


async def test_a_broker_that_maintains_is_listed(deployment: Deployment) -> None:
    assembly = Assembly(deployment)
    async with stranger(assembly) as client:
        broker = assembly.broker(maintain=True)
        await broker.start()
        await until(lambda: sees(client, 1))
        (one,) = await client.workers()
        assert (one.kind, one.id, one.queues) == ("broker", broker.peer, ())
        await broker.stop()
        assert await client.workers() == ()


async def test_one_that_dies_is_gone_after_its_ttl(deployment: Deployment) -> None:
    clock = ManualClock()
    assembly = Assembly(deployment, clock=clock)
    async with stranger(assembly) as client:
        brokers = [assembly.broker(maintain=True) for _ in range(2)]
        for broker in brokers:
            await broker.start()
        await until(lambda: sees(client, 2))
        # As a killed process: it neither renews nor says goodbye.
        dead, alive = brokers
        await dead._supervisor.stop()
        for _ in range(30):
            clock.advance(1)
            await until(lambda: renewed(client, alive.peer, clock))
        assert [one.id for one in await client.workers()] == [alive.peer]
        for broker in brokers:
            await broker.stop()


async def renewed(client: plugq.Client, id: str, clock: ManualClock) -> bool:
    """Whether it was seen lately: time must not run ahead of the loop that renews."""
    now = clock.time()
    found = [one for one in await client.workers() if one.id == id]
    return bool(found) and now - found[0].last_seen.timestamp() < TTL / 2


async def announced(client: plugq.Client, *tasks: str) -> bool:
    loaded = await client._broker.load([key_of(task) for task in tasks])
    return None not in loaded.registers


async def test_a_submission_by_name_takes_what_the_worker_announces(deployment: Deployment) -> None:
    assembly = Assembly(deployment)
    async with stranger(assembly) as client, plugq.Worker(an_app(), assembly=assembly):
        await until(lambda: announced(client, "report.build", "per.tenant"))
        handle = await client.submit(plugq.job("report.build", 4))
        assert handle.queue == "reports"
        assert await handle.result(20) == 4
        delayed = await client.submit(plugq.job("report.build", 4), delay="1h")
        (record,) = await client._broker.get([delayed.ref], body=True)
        assert record is not None
        envelope = open_body(record.body or b"")
        assert (record.max_attempts, envelope.timeout) == (7, 9.0)
        assert envelope.retry == POLICY.terms()
        with pytest.raises(plugq.InvalidJob, match=r"lane: task 'per\.tenant'"):
            await client.submit(plugq.job("per.tenant", 4))
        handle = await client.submit(plugq.job("per.tenant", 4), lane="t4")
        assert await handle.result(20) == 4


async def test_a_wait_that_times_out_says_why(
    deployment: Deployment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine the look may take longer than users want to wait for it.
    monkeypatch.setattr("plugq.client.reason.LOOK", 30.0)
    gate = asyncio.Event()
    assembly = Assembly(deployment)
    worker = plugq.Worker(an_app(gate=gate), assembly=assembly, concurrency=1, queues=["reports"])
    async with stranger(assembly) as client, worker:
        await until(lambda: sees(client, 1))

        async def said(handle: plugq.JobHandle[Any]) -> str:
            with pytest.raises(plugq.WaitTimeout) as caught:
                await handle.result(0.01)
            assert (caught.value.id, caught.value.queue) == (handle.id, handle.queue)
            return str(caught.value)

        mistyped = await client.submit(plugq.job("wait"), queue="report", id="x")
        assert await said(mistyped) == (
            "job 'x' is still queued after 0.01 s: no worker serves queue 'report'"
        )
        running = await client.submit(plugq.job("wait"), queue="reports", lane="l", id="r")
        await until(lambda: is_in(running, "running"))
        worker_id = worker.state()["worker"]
        assert f"attempt 1 is running on worker {worker_id!r} since 2" in await said(running)
        behind = await client.submit(plugq.job("wait"), queue="reports", lane="l")
        assert (await said(behind)).endswith(": job 'r' of its lane 'l' is running")
        unknown = await client.submit(plugq.job("other"), queue="reports")
        assert (await said(unknown)).endswith(
            "no worker that serves queue 'reports' knows task 'other'"
        )
        await until(lambda: busy(client))
        queued = await client.submit(plugq.job("wait"), queue="reports")
        assert (await said(queued)).endswith(
            "slot of the worker that serves queue 'reports' is busy"
        )
        await client.queues.pause("reports")
        assert (await said(queued)).endswith(
            "is still queued after 0.01 s: queue 'reports' is paused"
        )
        await client.queues.resume("reports")
        gate.set()
        await queued.result(20)


async def busy(client: plugq.Client) -> bool:
    return all(one.running for one in await client.workers())
