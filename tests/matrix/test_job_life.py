"""The life of a job through a real client and a real worker, on every storage."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import plugq
from plugq import RetryPolicy
from plugq.testing import ManualClock

Deployment = dict[str, Any]
FAST = RetryPolicy(max_attempts=3, backoff="fixed", base=0.01)


async def test_a_coroutine_and_a_function_return_their_values(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def hello(name: str) -> str:
        return f"hello {name}"

    @app.task("math.add")
    def add(a: int, b: int = 2) -> int:
        return a + b

    async with app.running(deployment) as client:
        assert await client.call(hello.job("world")) == "hello world"
        assert await client.call(add.job(1)) == 3
        assert await client.call(add.job(1, b=5)) == 6
        assert await client.call(plugq.job("math.add", 40)) == 42


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}])
async def test_a_falsy_value_is_a_result(deployment: Deployment, value: object) -> None:
    app = plugq.App()

    @app.task
    async def give() -> object:
        return value

    async with app.running(deployment) as client:
        assert await client.call(give.job()) == value


async def test_many_jobs_keep_their_order_and_their_results(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def square(number: int) -> int:
        return number * number

    async with app.running(deployment) as client:
        handles = await client.submit_many([square.job(n) for n in range(2500)])
        assert [await handle.result(20) for handle in handles] == [n * n for n in range(2500)]
        stats = await client.stats()
        assert stats.counts["succeeded"] == 2500
        assert stats.queues[0].totals["accepted"] == 2500
        assert stats.queues[0].totals["started"] == 2500


async def test_one_bad_request_stores_nothing(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def nothing(value: Any) -> None:
        pass

    async with app.running(deployment) as client:
        with pytest.raises(plugq.PayloadError, match="nothing"):
            await client.submit_many([nothing.job(1), nothing.job(object())])
        with pytest.raises(plugq.InvalidJob):
            await client.submit_many([nothing.job(1)], priority=9999)
        assert (await client.find()).jobs == ()


async def test_an_error_is_retried_and_every_attempt_is_kept(deployment: Deployment) -> None:
    app = plugq.App()
    seen: list[int] = []

    @app.task(retry=FAST)
    async def flaky() -> str:
        attempt = plugq.current().attempt
        seen.append(attempt)
        if attempt < 3:
            raise ValueError(f"no {attempt}")
        return "done"

    async with app.running(deployment) as client:
        handle = await client.submit(flaky.job())
        assert await handle.result(10) == "done"
        job = await handle.status()
    assert seen == [1, 2, 3]
    assert [(one.attempt, one.type, one.message) for one in job.attempts] == [
        (1, "ValueError", "no 1"),
        (2, "ValueError", "no 2"),
    ]
    assert "flaky" in job.attempts[0].traceback
    assert job.attempts[0].worker
    assert job.attempts[0].started_at is not None
    assert job.attempts[0].ended_at is not None
    assert job.attempts[0].started_at <= job.attempts[0].ended_at


async def test_a_job_without_attempts_left_has_failed(deployment: Deployment) -> None:
    app = plugq.App()
    runs = 0

    @app.task(retry=FAST)
    def broken() -> None:
        nonlocal runs
        runs += 1
        raise LookupError("nobody")

    async with app.running(deployment) as client:
        handle = await client.submit(broken.job())
        with pytest.raises(plugq.JobFailed, match="LookupError: nobody") as caught:
            await handle.result(10)
        assert caught.value.code == "error"
        assert len(caught.value.attempts) == 3
        assert caught.value.error.message == "nobody"
        assert runs == 3
        assert (await handle.wait(1)).state == "failed"


async def test_signals_of_the_handler(deployment: Deployment) -> None:
    app = plugq.App()
    snoozed: list[int] = []

    @app.task
    async def end(how: str) -> None:
        if how == "fail":
            raise plugq.Fail("gone", code="no_user")
        raise plugq.Skip("sunday")

    @app.task(max_attempts=2)
    async def nap() -> int:
        ctx = plugq.current()
        snoozed.append(ctx.attempt)
        if len(snoozed) < 4:
            raise plugq.Snooze(0.01)
        if ctx.attempt == 1:
            raise plugq.Retry(after=0.01)
        return ctx.attempt

    async with app.running(deployment) as client:
        with pytest.raises(plugq.JobFailed, match="gone") as failed:
            await client.call(end.job("fail"))
        assert failed.value.code == "no_user"
        with pytest.raises(plugq.JobSkipped, match="sunday"):
            await client.call(end.job("skip"))
        assert await client.call(nap.job()) == 2
    assert snoozed == [1, 1, 1, 1, 2]


async def test_arguments_that_do_not_fit_are_permanent(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def greet(name: str) -> str:
        return name

    async with app.running(deployment) as client:
        with pytest.raises(plugq.InvalidJob, match="name"):
            greet.job(3)  # type: ignore[arg-type]
        with pytest.raises(plugq.JobFailed) as caught:
            await client.call(plugq.job("greet", 3))
        assert caught.value.code == "arguments"
        assert len(caught.value.attempts) == 1
        with pytest.raises(plugq.JobFailed) as caught:
            await client.call(plugq.job("greet", "a", "b"))
        assert caught.value.code == "arguments"


async def test_a_result_that_can_not_travel_fails_without_a_retry(deployment: Deployment) -> None:
    app = plugq.App()
    runs: list[str] = []

    @app.task
    async def odd() -> object:
        runs.append("odd")
        return object()

    @app.task
    async def huge() -> str:
        runs.append("huge")
        return "x" * 2_000_000

    async with app.running(deployment) as client:
        for task in (odd, huge):
            with pytest.raises(plugq.JobFailed) as caught:
                await client.call(task.job())
            assert caught.value.code == "result"
    assert runs == ["odd", "huge"]


async def test_a_payload_that_is_too_large_is_refused_before_it_is_sent(
    deployment: Deployment,
) -> None:
    app = plugq.App()

    @app.task
    async def keep(text: str) -> int:
        return len(text)

    async with app.running(deployment) as client:
        with pytest.raises(plugq.PayloadTooLarge, match="1,048,576") as caught:
            await client.submit(keep.job("x" * 1_100_000))
        assert caught.value.limit == 1024 * 1024
        assert await client.call(keep.job("x" * 1_000_000)) == 1_000_000


@pytest.mark.parametrize(
    "id", ["a:b", "../x", "x:exp", "a\nb", "\x00", "🚀", "x" * 1024, "'; DROP TABLE job; --", "%s"]
)
async def test_any_text_is_an_id(deployment: Deployment, id: str) -> None:
    app = plugq.App()

    @app.task
    async def me() -> str:
        return plugq.current().job.id

    async with app.running(deployment) as client:
        assert await client.call(me.job(), id=id) == id
        assert (await client.get(id)).id == id


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"id": ""}, "id"),
        ({"id": "x" * 1025}, "id"),
        ({"id": "\ud800"}, "id"),
        ({"priority": 1001}, "priority"),
        ({"priority": -1001}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"delay": -1}, "delay"),
        ({"delay": "soon"}, "delay"),
        ({"run_at": datetime(2030, 1, 1)}, "run_at"),  # noqa: DTZ001
        ({"delay": 1, "run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "delay, run_at"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"max_attempts": None}, "max_attempts"),
        ({"max_attempts": 2, "retry": FAST}, "max_attempts"),
        ({"queue": ""}, "queue"),
        ({"headers": {"a": 1}}, "headers"),
        ({"headers": {"a": "x" * 9000}}, "headers"),
        ({"timeout": 0}, "timeout"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_an_option_that_can_not_be_is_named(
    deployment: Deployment, options: dict[str, Any], named: str
) -> None:
    app = plugq.App()

    @app.task
    async def nothing() -> None:
        pass

    async with app.running(deployment) as client:
        with pytest.raises(plugq.InvalidJob, match=f"^{named}"):
            await client.submit(nothing.job(), **options)
        assert (await client.find()).jobs == ()


async def test_a_duplicate_id_gives_the_first_job(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def echo(value: int) -> int:
        return value

    async with app.running(deployment) as client:
        first = await client.submit(echo.job(1), id="a")
        assert first.outcome == "accepted"
        assert await first.result(5) == 1
        second = await client.submit(echo.job(2), id="a")
        assert second.outcome == "duplicate"
        assert await second.result(5) == 1
        other = await client.submit(echo.job(3), id="a", queue="other")
        assert other.outcome == "accepted"
        with pytest.raises(plugq.AmbiguousId, match="default, other"):
            await client.get("a")


async def test_a_cancelled_id_can_be_used_again_and_old_handles_notice(
    deployment: Deployment,
) -> None:
    app = plugq.App()

    @app.task
    async def echo(value: int) -> int:
        return value

    async with app.running(deployment) as client:
        await client.queues.pause("default")
        old = await client.submit(echo.job(1), id="a")
        waiting = asyncio.create_task(old.result(10))
        assert await old.cancel() == "cancelled"
        with pytest.raises(plugq.JobCancelled):
            await waiting
        assert await old.cancel() == "finished"
        new = await client.submit(echo.job(2), id="a")
        assert new.outcome == "accepted"
        await client.queues.resume("default")
        assert await new.result(5) == 2
        with pytest.raises(plugq.JobCancelled):
            await old.result(5)


async def test_priority_then_time_then_order(deployment: Deployment) -> None:
    app = plugq.App()
    seen: list[str] = []

    @app.task
    async def note(name: str) -> None:
        seen.append(name)

    async with app.running(deployment, concurrency=1) as client:
        await client.queues.pause("default")
        handles = []
        for name, priority in [("a", 0), ("b", 5), ("c", -5), ("d", 5), ("e", 0)]:
            handles.append(await client.submit(note.job(name), priority=priority))
        await client.queues.resume("default")
        for handle in handles:
            await handle.wait(10)
    assert seen == ["b", "d", "a", "e", "c"]


async def test_a_delayed_job_runs_when_its_time_comes(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def now() -> int:
        return 1

    clock = ManualClock()
    async with app.running(deployment, clock=clock) as client:
        handle = await client.submit(now.job(), delay="1h")
        later = await client.submit(
            now.job(), run_at=datetime.fromtimestamp(clock.time(), UTC) + timedelta(hours=2)
        )
        assert (await handle.status()).state == "delayed"
        clock.advance(3599)
        assert (await handle.status()).state == "delayed"
        clock.advance(1.5)
        await _advance_until(clock, handle)
        assert await handle.result(10) == 1
        assert (await later.status()).state == "delayed"


async def _advance_until(clock: ManualClock, handle: plugq.JobHandle[Any]) -> None:
    """Let the clock go on in small steps until the job is final."""
    for _ in range(2000):
        if (await handle.status()).final:
            return
        clock.advance(0.05)
        await asyncio.sleep(0)
    pytest.fail("the job did not end")


async def test_a_queue_that_is_paused_starts_nothing(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    async with app.running(deployment) as client:
        await client.queues.pause("default")
        handle = await client.submit(one.job())
        with pytest.raises(plugq.WaitTimeout, match="still queued"):
            await handle.result(0.3)
        assert [queue.paused for queue in await client.queues.list()] == [True]
        await client.queues.resume("default")
        assert await handle.result(10) == 1


async def test_an_operator_retries_and_purges(deployment: Deployment) -> None:
    app = plugq.App()
    fail = True

    @app.task(max_attempts=1)
    async def moody() -> str:
        if fail:
            raise ValueError("not now")
        return "fine"

    async with app.running(deployment) as client:
        handle = await client.submit(moody.job())
        with pytest.raises(plugq.JobFailed):
            await handle.result(10)
        fail = False
        assert await client.retry(handle) == ["done"]
        assert await handle.result(10) == "fine"
        assert await client.retry(handle) == ["conflict"]
        assert await client.purge(handle) == ["done"]
        with pytest.raises(plugq.JobNotFound):
            await handle.result(10)
        assert await client.purge(handle) == ["not_found"]


async def test_a_running_coroutine_is_cancelled(deployment: Deployment) -> None:
    app = plugq.App()
    started, ended = asyncio.Event(), asyncio.Event()
    reasons: list[str | None] = []

    @app.task
    async def forever() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            reasons.append(plugq.current().cancel_reason)
            ended.set()

    async with app.running(deployment) as client:
        handle = await client.submit(forever.job())
        await started.wait()
        assert await handle.cancel() == "requested"
        with pytest.raises(plugq.JobCancelled):
            await handle.result(10)
        await ended.wait()
    assert reasons == ["cancel"]


async def test_a_running_thread_sees_that_it_is_cancelled(deployment: Deployment) -> None:
    app = plugq.App()
    started = threading.Event()

    @app.task
    def forever() -> None:
        started.set()
        ctx = plugq.current()
        while True:
            ctx.raise_if_cancelled()
            time.sleep(0.001)

    async with app.running(deployment) as client:
        handle = await client.submit(forever.job())
        await asyncio.to_thread(started.wait)
        await handle.cancel()
        with pytest.raises(plugq.JobCancelled):
            await handle.result(10)


async def test_a_timeout_is_an_error_that_retries(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task(timeout=0.05, retry=FAST)
    async def slow() -> str:
        if plugq.current().attempt < 3:
            await asyncio.Event().wait()
        return "third time lucky"

    async with app.running(deployment) as client:
        handle = await client.submit(slow.job())
        assert await handle.result(10) == "third time lucky"
        assert [one.code for one in (await handle.status()).attempts] == ["timeout", "timeout"]


async def test_a_worker_that_stops_gives_its_jobs_back(deployment: Deployment) -> None:
    if not deployment:
        pytest.skip("the memory store ends with its process, so nobody can look at it afterwards")
    app = plugq.App()
    started = asyncio.Event()

    @app.task
    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    deployment["worker"] = {"grace": 0.05}
    async with plugq.connect(deployment) as client:
        async with plugq.Worker(app, deployment):
            handle = await client.submit(forever.job())
            await started.wait()
        job = await handle.status()
        assert (job.state, job.attempt, job.attempts) == ("queued", 0, ())


async def test_an_unknown_task_goes_back_without_an_attempt(deployment: Deployment) -> None:
    app = plugq.App()
    async with app.running(deployment) as client:
        handle = await client.submit(plugq.job("nobody.knows"))
        for _ in range(500):
            job = await handle.status()
            if job.state == "delayed":
                break
            await asyncio.sleep(0.01)
        assert (job.state, job.attempt) == ("delayed", 0)


async def test_a_result_expires_and_its_job_stays_known(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    clock = ManualClock()
    async with app.running(deployment, clock=clock) as client:
        handle = await client.submit(one.job(), result_ttl="5m")
        assert await handle.result(10) == 1
        clock.advance("4m")
        assert await handle.result(10) == 1
        clock.advance("61s")
        with pytest.raises(plugq.ResultExpired):
            await handle.result(10)
        assert (await client.submit(one.job(), id=handle.id)).outcome == "duplicate"
        clock.advance("5m")
        with pytest.raises(plugq.JobNotFound):
            await handle.status()


async def test_find_walks_every_job_once(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    async with app.running(deployment) as client:
        await client.queues.pause("default")
        handles = await client.submit_many([one.job() for _ in range(250)])
        found: list[str] = []
        cursor = None
        while True:
            page = await client.find(state="queued", limit=40, cursor=cursor)
            found += [job.id for job in page.jobs]
            if (cursor := page.cursor) is None:
                break
            await client.submit(one.job())
        assert found == [handle.id for handle in reversed(handles)]


async def test_calls_on_a_client_that_is_not_started_say_so(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task
    async def one() -> int:
        return 1

    async with app.running(deployment) as client:
        pass
    with pytest.raises(plugq.Unavailable, match="not started"):
        await client.submit(one.job())


async def test_current_outside_a_handler_says_so() -> None:
    with pytest.raises(RuntimeError, match="inside a handler"):
        plugq.current()


async def test_the_context_of_a_handler(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task("shop.look", queue="shop")
    async def look() -> list[Any]:
        ctx = plugq.current()
        job = ctx.job
        inner = await asyncio.to_thread(lambda: plugq.current().job.id)
        ctx.progress(3, 10, "on the way")
        return [
            job.id == inner,
            job.queue,
            job.task,
            job.priority,
            job.headers,
            job.max_attempts,
            ctx.attempt,
            ctx.token > 0,
            ctx.cancelled,
        ]

    async with app.running(deployment) as client:
        assert await client.call(look.job(), priority=3, headers={"trace": "1"}) == [
            True,
            "shop",
            "shop.look",
            3,
            {"trace": "1"},
            4,
            1,
            True,
            False,
        ]
