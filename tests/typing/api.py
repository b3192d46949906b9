"""The public API as a typed user writes it; checked by mypy and pyright, never run."""

from datetime import datetime
from typing import assert_type

import plugq

app = plugq.App(include=["shop.reports"])


@app.task
async def bare(name: str) -> str:
    return name


@app.task
def bare_function(number: int) -> bytes:
    return bytes(number)


@app.task("email.send", queue="email", retry=plugq.RetryPolicy(max_attempts=5), timeout="30s")
async def send_email(to: str, *, subject: str) -> int:
    return len(to + subject)


def lane_of(account: str, **_: object) -> str:
    return account


@app.task(lane=lane_of, max_attempts=2)
def charge(account: str, cents: int = 0) -> float:
    return cents / 100


async def calls() -> None:
    assert_type(await bare("x"), str)
    assert_type(bare_function(3), bytes)
    assert_type(await send_email("a", subject="b"), int)
    assert_type(charge("a"), float)


async def requests(client: plugq.Client) -> None:
    request = send_email.job("a@b.c", subject="hi")
    assert_type(request, plugq.JobRequest[int])
    assert_type(request.options(priority=5), plugq.JobRequest[int])
    handle = await client.submit(request, delay="1m", priority=plugq.Priority.HIGH)
    assert_type(handle, plugq.JobHandle[int])
    assert_type(await handle.result(timeout="10s"), int)
    assert_type(await client.call(charge.job("a", cents=3), timeout=5), float)
    handles = await client.submit_many([bare.job("a"), bare.job("b")], batch="news")
    assert_type(handles, list[plugq.JobHandle[str]])
    assert_type(await client.get("id"), plugq.Job)
    assert_type((await client.workers())[0].last_seen, datetime)
    assert_type(plugq.job("by.name", 1, q=2).task_name, str)


def note(event: plugq.JobEvent) -> None:
    assert_type(event.kind, plugq.EventKind)


async def events(client: plugq.Client) -> None:
    async with client.events(["started", plugq.EventKind.FAILED], queue="email") as stream:
        async for event in stream:
            assert_type(event, plugq.JobEvent | plugq.Resync)
    remove = client.on("succeeded", note)
    assert_type(remove(), None)


async def wrong(client: plugq.Client) -> None:
    bare.job(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    send_email.job("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.submit(bare.job("a"), colour=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def lifecycle() -> None:
    async with plugq.connect({"storage": {"use": "sqlite", "path": "x.db"}}) as client:
        assert_type(client, plugq.Client)
    async with app.running({}) as running:
        assert_type(running, plugq.Client)
    async with plugq.Worker(app, "plugq.toml", queues=["a"], concurrency=3) as worker:
        assert_type(worker, plugq.Worker)
        await worker.run()
    assert_type(plugq.current().token, int)
