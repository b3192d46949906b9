"""The public API as a typed user writes it; checked by mypy and pyright, never run."""

from datetime import UTC, datetime, timedelta
from typing import Literal, assert_type

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
    assert_type(await client.submit(request, connection=object()), plugq.JobHandle[int])
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


async def many(client: plugq.Client, handles: list[plugq.JobHandle[int]]) -> None:
    async for done in client.as_completed(handles, timeout="1m"):
        assert_type(done, plugq.JobHandle[int])
        assert_type(await done.result(), int)
    assert_type([done.id async for done in client.as_completed(iter(handles))], list[str])
    await client.cancel(*handles)
    cancelled = await client.cancel(batch="news", state=["queued", plugq.JobState.DELAYED])
    assert_type(cancelled[0], Literal["cancelled", "requested", "finished", "not_found"])
    retried = await client.retry(queue="email", since=datetime.now(UTC) - timedelta(hours=1))
    assert_type(retried[0] == "done", bool)
    await client.purge(state="succeeded", until=datetime.now(UTC))
    await client.retain(*handles, ttl="7d")
    await client.retain(task="report", ttl="forever")
    await client.reprioritise(*handles, priority=plugq.Priority.HIGH)
    await handles[0].retain(timedelta(days=7))
    progress = await handles[0].progress()
    assert_type(None if progress is None else progress.current, float | None)


async def batches(client: plugq.Client) -> None:
    async with client.batch("news") as batch:
        assert_type(batch, plugq.Batch)
        await client.submit(bare.job("a"), batch=batch.key)
    assert_type(await batch.wait("1m"), dict[str, int])
    assert_type(await batch.counts(), dict[str, int])
    assert_type((await batch.progress()).fraction, float)
    assert_type(
        await batch.cancel(), list[Literal["cancelled", "requested", "finished", "not_found"]]
    )


async def queues(client: plugq.Client) -> None:
    await client.queues.drain("email", "reports")
    info = (await client.queues.stats())["email"]
    assert_type(info.draining, bool)
    assert_type(info.run_time, timedelta | None)
    assert_type(info.rate, float)


async def wrong(client: plugq.Client) -> None:
    bare.job(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    send_email.job("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.cancel(que="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await client.retain(queue="a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
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
