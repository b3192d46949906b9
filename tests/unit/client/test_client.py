"""The client: its loop, its life, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

import plugq
from plugq.assembly import Assembly
from plugq.protocols import Configure, Drain, QueueSettings


def test_a_client_belongs_to_the_loop_that_started_it() -> None:
    client = Assembly({}).client()
    with asyncio.Runner() as first, asyncio.Runner() as second:
        first.run(client.start())
        for call in (client.start, client.stop, client.stats):
            with pytest.raises(plugq.Unavailable, match="another event loop"):
                second.run(call())
        first.run(client.stop())
        second.run(client.start())
        second.run(client.stop())


def test_a_client_that_was_stopped_waits_on_another_loop() -> None:
    client = Assembly({}).client()

    async def wait() -> None:
        async with client:
            handle = await client.submit(plugq.job("t"), batch="b")
            for waiting in (handle.result, handle.wait, client.batch("b").wait):
                # Each gets as far as to sleep until something happens.
                with pytest.raises(plugq.WaitTimeout):
                    await waiting(0.05)
            for part in ("waiters", "batches"):
                loops = client.state()[part]["loops"]
                assert loops["look"] == loops["poll"] == {"running": True}

    for _ in range(2):
        asyncio.run(wait())


async def test_a_state_that_is_none_is_named() -> None:
    async with Assembly({}).client() as client:
        with pytest.raises(plugq.InvalidJob, match="state: 'done' is none; use one of delayed, "):
            await client.find(state="done")


def test_a_generator_is_no_task() -> None:
    app = plugq.App()

    def numbers() -> Iterator[int]:
        yield 1

    with pytest.raises(plugq.ConfigError, match="'numbers' is a generator"):
        app.task(numbers)


@pytest.mark.parametrize("option", ["delay", "deadline", "timeout", "result_ttl"])
async def test_a_duration_that_must_be_a_slip_is_refused(option: str) -> None:
    app = plugq.App()

    @app.task
    async def nothing() -> None:
        pass

    async with Assembly({}).client() as client:
        with pytest.raises(plugq.InvalidJob, match=f"{option}: a duration is at most 100 years"):
            await client.submit(nothing.job(), **{option: 1_790_000_000_000})  # type: ignore[arg-type]


async def test_of_a_call_that_is_refused_the_full_queue_is_named() -> None:
    async with Assembly({}).client() as client:
        settings = QueueSettings(queue="small", max_length=1)
        await client._broker.edit(Configure((settings,)))
        await client.submit(plugq.job("t"), queue="small")
        requests = [plugq.job("t").options(queue=queue) for queue in ("roomy", "small")]
        with pytest.raises(plugq.QueueFull, match="queue 'small' is full") as caught:
            await client.submit_many(requests)
        assert caught.value.queue == "small"
        assert (await client.stats()).counts["queued"] == 1


async def test_a_queue_that_is_drained_says_so_and_how_to_end_it() -> None:
    app = plugq.App()

    @app.task
    async def nothing() -> None:
        pass

    async with Assembly({}).client() as client:
        await client._broker.edit(Drain(("news",)))
        message = "queue 'news' is being drained and takes no jobs; `plugq queues resume news`"
        with pytest.raises(plugq.QueueFull, match=message) as caught:
            await client.submit(nothing.job(), queue="news")
        assert caught.value.queue == "news"
        requests = [nothing.job(), nothing.job().options(queue="news")]
        with pytest.raises(plugq.QueueFull, match=message):
            await client.submit_many(requests)
        await client.queues.resume("news")
        await client.submit_many(requests)
