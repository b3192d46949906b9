"""Changing many jobs: by handles or by what they have in common, over any number of pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.job import Outcome, Progress
from plugq.protocols import ClaimRequest, LeaseRef, PluginContext, Settlement
from plugq.testing import ManualClock


class Store(MemoryStorage):
    """Counts the changes and the jobs in each."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.edits: list[int] = []

    async def edit(self, edit: Any) -> Any:
        self.edits.append(len(getattr(edit, "refs", ())))
        return await super().edit(edit)


def client(clock: ManualClock | None = None) -> tuple[plugq.Client, Store]:
    store = Store(MemoryOptions(), PluginContext(clock=clock))
    return Assembly({}, storage=store, clock=clock).client(), store


async def fail(store: Store, number: int, queue: str = "default") -> None:
    request = ClaimRequest(worker="w", number=len(store.edits), queues=(queue,), limit=number)
    leases = (await store.claim(request)).leases
    assert len(leases) == number
    await store.settle(
        [
            Settlement(queue=one.queue, id=one.id, token=one.token, outcome=Outcome.FAIL)
            for one in leases
        ]
    )


async def states(one: plugq.Client) -> dict[str, int]:
    return {state: count for state, count in (await one.stats()).counts.items() if count}


async def test_a_filter_finds_more_than_any_page() -> None:
    one, store = client()
    async with one:
        await one.submit_many([plugq.job("t") for _ in range(2_500)], batch="b")
        await one.submit_many([plugq.job("t") for _ in range(1_500)], batch="other")
        assert await one.reprioritise(batch="b", priority=plugq.Priority.HIGH) == ["done"] * 2_500
        assert await one.cancel(batch="b") == ["cancelled"] * 2_500
        assert store.edits == [1000, 1000, 500] * 2
        assert await states(one) == {"queued": 1_500, "cancelled": 2_500}
        assert await one.purge(batch="b") == ["done"] * 2_500
        assert await states(one) == {"queued": 1_500}


async def test_handles_of_any_number_are_changed_a_thousand_in_a_step() -> None:
    one, store = client()
    async with one:
        handles = await one.submit_many([plugq.job("t") for _ in range(2_001)])
        assert await one.cancel(*handles) == ["cancelled"] * 2_001
        assert store.edits == [1000, 1000, 1]
        job = await handles[0].status()
        assert await one.cancel(job) == ["finished"]


async def test_each_verb_has_states_of_its_own() -> None:
    one, store = client()
    async with one:
        await one.submit_many([plugq.job("t") for _ in range(4)])
        await fail(store, 2)
        await one.submit(plugq.job("t"), delay="1h")
        await one.cancel((await one.find(state="queued")).jobs[0])
        assert await states(one) == {"delayed": 1, "queued": 1, "failed": 2, "cancelled": 1}
        assert await one.retry(queue="default") == ["done"] * 2
        assert await states(one) == {"delayed": 1, "queued": 3, "cancelled": 1}
        assert await one.retry(queue="default", state=["cancelled", "skipped"]) == ["done"]
        await fail(store, 1)
        assert await one.purge(task="t") == ["done"]
        assert await one.cancel(task="t", state="delayed") == ["cancelled"]
        assert await one.cancel(task="t") == ["cancelled"] * 3
        assert await one.retain(task="t", ttl="forever") == ["done"] * 4
        assert await one.reprioritise(task="t", priority=3) == []


async def test_a_handle_never_means_a_later_job_of_its_id() -> None:
    one, store = client()
    async with one:
        former = await one.submit(plugq.job("x"), id="a")
        assert await former.cancel() == "cancelled"
        seen = await former.status()
        job = await one.submit(plugq.job("y"), id="a")
        for stale in (former, seen):
            assert await one.cancel(stale) == ["not_found"]
            assert await one.retain(stale, ttl="1s") == ["not_found"]
            assert await one.reprioritise(stale, priority=5) == ["not_found"]
        with pytest.raises(plugq.JobCancelled):
            await former.status()
        with pytest.raises(plugq.JobCancelled):
            await former.progress()
        await fail(store, 1)
        for stale in (former, seen):
            assert await one.retry(stale) == await one.purge(stale) == ["not_found"]
        assert (await job.status()).state == "failed"
        assert (await one.handle("a", queue="default").status()).sequence == job.sequence
        assert await one.purge(job) == ["done"]
        await one.submit(plugq.job("z"), id="a")
        with pytest.raises(plugq.JobNotFound):
            await job.status()
        assert await one.cancel(one.handle("a", queue="default")) == ["cancelled"]


class StartsMeanwhile(Store):
    """A job starts between the search and the change."""

    async def edit(self, edit: Any) -> Any:
        await self.claim(ClaimRequest(worker="w", number=1, queues=("default",), limit=1))
        return await super().edit(edit)


async def test_a_state_that_is_given_holds_to_the_end() -> None:
    store = StartsMeanwhile(MemoryOptions(), PluginContext())
    async with Assembly({}, storage=store).client() as one:
        first, second = await one.submit_many([plugq.job("t") for _ in range(2)])
        found = await one.cancel(state="queued", queue="default")
        assert sorted(found) == ["cancelled", "not_found"]
        assert not (await first.status()).cancel_requested
        assert await one.cancel(first, second, state="queued") == ["not_found"] * 2
        assert await one.cancel(first) == ["requested"]


async def test_a_filter_by_time() -> None:
    clock = ManualClock()
    one, _ = client(clock)
    async with one:
        for id in "abc":
            await one.submit(plugq.job("t"), id=id)
            clock.advance(10)
        start = datetime.fromtimestamp(clock.time(), UTC) - timedelta(seconds=30)
        since, until = start + timedelta(seconds=5), start + timedelta(seconds=15)
        assert await one.cancel(since=since, until=until) == ["cancelled"]
        assert (await one.get("b")).state == "cancelled"


async def test_nothing_named_is_nothing_done() -> None:
    one, store = client()
    async with one:
        await one.submit(plugq.job("t"))
        for change in (one.cancel, one.retry, one.purge):
            assert await change() == []
            assert await change(queue=None, batch=None) == []
            assert await change(state=[]) == []
        assert await one.retain(ttl=1) == []
        assert await one.reprioritise(priority=1) == []
        assert store.edits == []
        assert await states(one) == {"queued": 1}


async def test_what_can_not_be_is_named_and_nothing_is_done() -> None:
    one, store = client()
    async with one:
        handle = await one.submit(plugq.job("t"))
        with pytest.raises(plugq.InvalidJob, match="handles or a filter, not both"):
            await one.cancel(handle, queue="default")
        with pytest.raises(plugq.InvalidJob, match="handles or a filter, not both"):
            await one.cancel(handle, state=[])
        with pytest.raises(plugq.InvalidJob, match="que: there is no such filter; use one of st"):
            await one.purge(que="default")  # type: ignore[call-arg]
        with pytest.raises(plugq.InvalidJob, match="state: 'done' is none"):
            await one.retry(state="done")
        with pytest.raises(plugq.InvalidJob, match=r"since: .* has no time zone"):
            await one.cancel(since=datetime(2030, 1, 1))  # noqa: DTZ001
        with pytest.raises(plugq.InvalidJob, match="batch: expected a name, got 3"):
            await one.cancel(batch=3)  # type: ignore[arg-type]
        with pytest.raises(plugq.InvalidJob, match="expected handles or jobs, got 'x'"):
            await one.cancel("x")  # type: ignore[arg-type]
        for priority in (1001, -1001, 1.5, True):
            with pytest.raises(plugq.InvalidJob, match=r"^priority: expected"):
                await one.reprioritise(handle, priority=priority)  # type: ignore[arg-type]
        wrong: tuple[Any, ...] = (-1, "soon", [])
        for ttl in wrong:
            with pytest.raises(plugq.InvalidJob, match=r"^ttl: "):
                await one.retain(handle, ttl=ttl)
        assert store.edits == []


async def test_jobs_that_are_submitted_during_the_walk_may_stay_but_no_other() -> None:
    one, store = client()
    async with one:
        before = await one.submit_many([plugq.job("t") for _ in range(2_500)])
        edit = store.edit

        async def meanwhile(change: Any) -> Any:
            await one.submit(plugq.job("t"))
            return await edit(change)

        store.edit = meanwhile  # type: ignore[assignment, method-assign]
        answers = await one.cancel(queue="default")
        assert len(answers) >= 2_500
        for start in range(0, 2_500, 1000):
            jobs = await one._broker.get([handle.ref for handle in before[start : start + 1000]])
            assert {job.state for job in jobs if job is not None} == {"cancelled"}


async def test_a_job_is_kept_for_another_time() -> None:
    clock = ManualClock()
    one, store = client(clock)
    async with one:
        short = await one.submit(plugq.job("t"), failure_ttl="1h")
        await fail(store, 1)
        assert await short.retain("2d") == "done"
        clock.advance("47h")
        assert (await short.status()).state == "failed"
        assert await short.retain("forever") == "done"
        clock.advance("30d")
        assert (await short.status()).expires_at is None
        assert await one.retain(short, ttl=0) == ["done"]
        with pytest.raises(plugq.JobNotFound):
            await short.status()
        assert await short.retain(5) == "not_found"


async def test_what_a_job_says_of_its_progress() -> None:
    one, store = client()
    async with one:
        handle = await one.submit(plugq.job("t"))
        assert await handle.progress() is None
        request = ClaimRequest(worker="w", number=0, queues=("default",), limit=1)
        (lease,) = (await store.claim(request)).leases
        said = Progress(current=3, total=7, message="rows")
        await store.renew([LeaseRef("default", lease.id, lease.token, said)], lease=30)
        assert await handle.progress() == said
        missing: plugq.JobHandle[Any] = one.handle("none", queue="default")
        with pytest.raises(plugq.JobNotFound):
            await missing.progress()


async def test_a_queue_is_drained_and_resumed() -> None:
    one, store = client()
    async with one:
        await one.submit(plugq.job("t"), queue="q")
        await one.submit(plugq.job("t"), queue="other")
        await one.queues.drain("q")
        queues = await one.queues.stats()
        assert {name: info.draining for name, info in queues.items()} == {"q": True, "other": False}
        assert queues["q"].counts["queued"] == 1
        with pytest.raises(plugq.QueueFull, match="being drained"):
            await one.submit(plugq.job("t"), queue="q")
        await fail(store, 1, "q")
        await one.queues.resume("q")
        assert (await one.submit(plugq.job("t"), queue="q")).outcome == "accepted"


async def test_how_long_attempts_take_and_how_many_jobs_end() -> None:
    clock = ManualClock()
    one, store = client(clock)
    async with one:
        for task, number, span in (("fast", 3, 1.0), ("slow", 1, 9.0)):
            await one.submit_many([plugq.job(task)] * number)
            request = ClaimRequest(worker=task, number=0, queues=("default",), limit=number)
            leases = (await store.claim(request)).leases
            clock.advance(span)
            await store.settle(
                [
                    Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.SUCCEED)
                    for x in leases
                ]
            )
        await one.submit(plugq.job("new"))
        stats = await one.stats()
        run_times = {task.task: task.run_time for task in stats.tasks}
        assert run_times == {
            "fast": timedelta(seconds=1),
            "slow": timedelta(seconds=9),
            "new": None,
        }
        (queue,) = stats.queues
        assert queue.run_time == timedelta(seconds=3)
        assert queue.rate == pytest.approx(sum(task.rate for task in stats.tasks))
        assert queue.rate > 0
