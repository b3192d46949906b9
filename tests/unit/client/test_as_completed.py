"""Many jobs, one after the other as they end: each once, in order, at a bounded price."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import pytest

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.envelope import Result, pack
from plugq.errors import OutcomeUnknown
from plugq.job import Outcome
from plugq.protocols import ClaimRequest, Finished, PluginContext, Settlement
from plugq.testing import ManualClock

_numbers = itertools.count()


class Store(MemoryStorage):
    """Counts the look-ups, and loses them or the notices when it is told to."""

    looks = 0
    lossy = False
    silent = False

    async def get(self, refs: Any, **options: Any) -> Any:
        self.looks += 1
        if self.lossy:
            raise OutcomeUnknown("the answer was lost")
        return await super().get(refs, **options)

    async def watch(self, peer: str) -> Any:
        async with contextlib.aclosing(super().watch(peer)) as notices:
            async for notice in notices:
                if not (self.silent and isinstance(notice, Finished)):
                    yield notice


def client(clock: ManualClock | None = None) -> tuple[plugq.Client, Store]:
    store = Store(MemoryOptions(), PluginContext(clock=clock))
    return Assembly({}, storage=store, clock=clock).client(), store


async def end(store: Store, *ids: str, outcome: Outcome = Outcome.SUCCEED) -> None:
    """Run queued jobs, those with these ids to their end."""
    number = next(_numbers)
    reply = await store.claim(
        ClaimRequest(worker="w", number=number, queues=("default",), limit=10_000)
    )
    wanted = {lease.id: lease for lease in reply.leases}
    result = pack(Result("application/json", b'"done"'))
    await store.settle(
        [
            Settlement(
                queue="default",
                id=lease.id,
                token=lease.token,
                outcome=outcome if lease.id in ids else Outcome.RELEASE,
                result=result if outcome is Outcome.SUCCEED else None,
            )
            for lease in sorted(
                wanted.values(), key=lambda one: ids.index(one.id) if one.id in ids else 0
            )
        ]
    )


async def nobody_waits(one: plugq.Client) -> None:
    """Return once what a loop that was left had registered is gone."""
    while one.state()["waiters"]["waiting"]:
        await asyncio.sleep(0)


async def test_the_order_is_that_in_which_they_end() -> None:
    clock = ManualClock()
    one, store = client(clock)
    async with one:
        handles = [await one.submit(plugq.job("t"), id=id) for id in "abcd"]
        for id in "ca":
            await end(store, id)
            clock.advance(1)
        iterator = one.as_completed(handles)
        # Both had ended before, and are found in one look.
        assert [(await anext(iterator)).id for _ in range(2)] == ["c", "a"]
        await end(store, "d")
        assert (await anext(iterator)).id == "d"
        await end(store, "b")
        assert [done.id async for done in iterator] == ["b"]
        assert one.state()["waiters"]["waiting"] == 0


async def test_each_is_yielded_as_often_as_it_was_given() -> None:
    one, store = client()
    async with one:
        first = await one.submit(plugq.job("t"), id="a")
        other = await one.submit(plugq.job("t"), id="b")
        same: plugq.JobHandle[Any] = one.handle("a", queue="default")
        await end(store, "a", "b")
        given = [first, other, first, same, first]
        yielded = [done async for done in one.as_completed(given)]
        # The objects themselves, to be looked up in what the caller knows of them.
        assert sorted(map(id, yielded)) == sorted(map(id, given))
        nothing: list[plugq.JobHandle[Any]] = []
        assert [handle async for handle in one.as_completed(nothing)] == nothing


async def test_the_ends_of_a_hundred_thousand_jobs_cost_few_looks_and_no_task_each() -> None:
    number = 100_000
    one, store = client()
    async with one:
        handles = await one.submit_many(plugq.job("t") for _ in range(number))
        tasks = len(asyncio.all_tasks())
        seen: set[str] = set()
        iterator = one.as_completed(handles)
        await one.cancel(handles[0])
        seen.add((await anext(iterator)).id)
        # The first look at all of them is under way or done; the rest ends at once.
        assert len(asyncio.all_tasks()) <= tasks + 4
        for start in range(1, number, 1000):
            await one.cancel(*handles[start : start + 1000])
        async for done in iterator:
            seen.add(done.id)
        assert len(seen) == number
        # Every thousand once at the beginning, once after its notice, and after a resync.
        assert store.looks <= 4 * number // 1000
        assert one.state()["waiters"]["waiting"] == 0


async def test_a_result_that_is_not_kept_is_still_the_first_answer() -> None:
    clock = ManualClock()
    one, store = client(clock)
    async with one:
        handle = await one.submit(plugq.job("t"), id="a", result_ttl=0)
        iterator = one.as_completed([handle])
        waiting = asyncio.ensure_future(anext(iterator))
        while not store.looks:
            await asyncio.sleep(0)
        await end(store, "a")
        done = await waiting
        assert done is handle
        clock.advance("1h")
        looks = store.looks
        assert await done.result() == "done"
        assert store.looks == looks
        # That was kept for one question; what comes later asks the storage.
        with pytest.raises((plugq.ResultExpired, plugq.JobNotFound)):
            await done.result()
        await iterator.aclose()


async def test_a_retry_makes_a_handle_that_was_yielded_look_again() -> None:
    one, store = client()
    async with one:
        handle = await one.submit(plugq.job("t"), id="a")
        await end(store, "a", outcome=Outcome.FAIL)
        async for done in one.as_completed([handle]):
            assert await one.retry(done) == ["done"]
            with pytest.raises(plugq.WaitTimeout):
                await done.result(0.01)


@pytest.mark.parametrize("by_filter", [False, True])
async def test_a_retry_that_names_no_handle_makes_those_that_failed_look_again(
    *, by_filter: bool
) -> None:
    one, store = client()
    async with one:
        failed, done = [await one.submit(plugq.job("t"), id=id, batch="b") for id in "ab"]
        await end(store, "a", outcome=Outcome.FAIL)
        await end(store, "b")
        assert len([handle async for handle in one.as_completed([failed, done])]) == 2
        if by_filter:
            assert await one.retry(batch="b") == ["done"]
        else:
            assert await one.retry(await failed.status()) == ["done"]
        looks = store.looks
        assert await done.result() == "done"
        assert store.looks == looks
        await end(store, "a")
        assert await failed.result() == "done"


async def test_an_end_that_was_seen_during_a_retry_is_not_kept() -> None:
    one, store = client()
    async with one:
        handle = await one.submit(plugq.job("t"), id="a")
        await end(store, "a", outcome=Outcome.FAIL)
        edit = store.edit
        seen: list[plugq.JobHandle[Any]] = []

        async def slow(change: Any) -> Any:
            seen.extend([done async for done in one.as_completed([handle])])
            return await edit(change)

        store.edit = slow  # type: ignore[assignment, method-assign]
        assert await one.retry(queue="default") == ["done"]
        await end(store, "a")
        assert await seen[0].result() == "done"


async def test_a_timeout_says_how_many_are_left_and_lets_them_go_on() -> None:
    one, store = client()
    async with one:
        handles = [await one.submit(plugq.job("t"), id=id) for id in "abc"]
        await end(store, "b")
        iterator = one.as_completed(handles, timeout=0.05)
        assert (await anext(iterator)).id == "b"
        with pytest.raises(plugq.WaitTimeout, match=r"2 of 3 jobs have not ended after 0\.05 s"):
            await anext(iterator)
        assert one.state()["waiters"]["waiting"] == 0
        assert (await handles[0].status()).state == "queued"


async def test_what_has_ended_is_yielded_although_the_time_is_up() -> None:
    one, store = client()
    async with one:
        handles = [await one.submit(plugq.job("t"), id=id) for id in "abc"]
        await end(store, *"abc")
        iterator = one.as_completed(handles, timeout=0.05)
        first = await anext(iterator)
        while one.state()["waiters"]["waiting"]:
            await asyncio.sleep(0)
        later = asyncio.get_running_loop().time() + 0.06
        while asyncio.get_running_loop().time() < later:
            await asyncio.sleep(0)
        assert [first.id, *[done.id async for done in iterator]] == ["a", "b", "c"]


async def test_leaving_the_loop_leaves_no_waiter_behind() -> None:
    one, store = client()
    async with one:
        handles = [await one.submit(plugq.job("t"), id=id) for id in "abc"]
        await end(store, "a")
        async for done in one.as_completed(handles):
            assert done.id == "a"
            break
        await nobody_waits(one)


async def test_cancelling_the_caller_leaves_no_waiter_behind() -> None:
    one, _ = client()
    async with one:
        handles = [await one.submit(plugq.job("t"), id=id) for id in "abc"]

        async def follow() -> None:
            async for _ in one.as_completed(handles):
                pass

        task = asyncio.create_task(follow())
        while one.state()["waiters"]["waiting"] < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert one.state()["waiters"]["waiting"] == 0


async def test_a_lost_notice_costs_one_poll() -> None:
    clock = ManualClock()
    one, store = client(clock)
    store.silent = True
    async with one:
        handles = [await one.submit(plugq.job("t"), id=id) for id in "ab"]
        iterator = one.as_completed(handles)
        waiting = asyncio.ensure_future(anext(iterator))
        while clock.sleeping < 1 or not store.looks:
            await asyncio.sleep(0)
        await end(store, "b")
        clock.advance(1)
        assert (await waiting).id == "b"
        await iterator.aclose()


async def test_a_look_that_fails_is_repeated() -> None:
    clock = ManualClock()
    one, store = client(clock)
    async with one:
        handle = await one.submit(plugq.job("t"), id="a")
        await end(store, "a")
        store.lossy = True
        iterator = one.as_completed([handle])
        waiting = asyncio.ensure_future(anext(iterator))
        while store.looks < 2:
            await asyncio.sleep(0)
            clock.advance(0.05)
        store.lossy = False
        while not waiting.done():
            await asyncio.sleep(0)
            clock.advance(0.1)
        assert await waiting.result().result() == "done"
        await iterator.aclose()


async def test_what_was_yielded_answers_after_the_client_has_stopped() -> None:
    one, store = client()
    await one.start()
    handles = [await one.submit(plugq.job("t"), id=id) for id in "abc"]
    await end(store, "a", "b")
    iterator = one.as_completed(handles)
    first = await anext(iterator)
    while one.state()["waiters"]["waiting"] > 1:
        await asyncio.sleep(0)
    await one.stop()
    second = await anext(iterator)
    assert [await first.result(), await second.result()] == ["done", "done"]
    with pytest.raises(plugq.Unavailable, match="stopped"):
        await anext(iterator)


async def test_a_loop_that_begins_after_the_client_has_stopped_is_refused() -> None:
    one, store = client()
    await one.start()
    handle = await one.submit(plugq.job("t"), id="a")
    iterator = one.as_completed([handle])
    await one.stop()
    tasks = asyncio.all_tasks()
    with pytest.raises(plugq.Unavailable, match="was stopped before the wait began"):
        await anext(iterator)
    assert asyncio.all_tasks() == tasks
    assert one.state()["waiters"]["waiting"] == 0
    # Started anew it can be waited for again.
    async with one:
        await end(store, "a")
        assert [done.id async for done in one.as_completed([handle])] == ["a"]


async def test_who_comes_while_the_client_stops_is_refused() -> None:
    one, _ = client()
    await one.start()
    handle = await one.submit(plugq.job("t"), id="a")
    iterator = one.as_completed([handle])
    stopping = asyncio.create_task(one.stop())
    while one.started:
        await asyncio.sleep(0)
    with pytest.raises(plugq.Unavailable):
        await anext(iterator)
    await stopping


async def test_only_handles_can_be_waited_for() -> None:
    one, _ = client()
    with pytest.raises(plugq.Unavailable, match="not started"):
        one.as_completed([])
    async with one:
        with pytest.raises(plugq.InvalidJob, match="handles of submitted jobs, got 'a'"):
            one.as_completed(["a"])  # type: ignore[arg-type]


async def test_who_comes_during_a_look_is_not_answered_by_it() -> None:
    """What the look found may be older than the job that the newcomer waits for."""
    one, store = client()
    async with one:
        reached, go_on = asyncio.Event(), asyncio.Event()
        get = store.get

        async def slow(refs: Any, **options: Any) -> Any:
            found = await get(refs, **options)
            reached.set()
            await go_on.wait()
            return found

        store.get = slow  # type: ignore[method-assign]
        missing: plugq.JobHandle[Any] = one.handle("a", queue="default")
        early = asyncio.create_task(missing.result())
        await reached.wait()
        handle = await one.submit(plugq.job("t"), id="a")
        late = asyncio.create_task(handle.result(10))
        await asyncio.sleep(0)
        store.get = get  # type: ignore[method-assign]
        go_on.set()
        with pytest.raises(plugq.JobNotFound):
            await early
        await end(store, "a")
        assert await late == "done"
