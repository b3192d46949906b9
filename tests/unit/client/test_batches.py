"""Batches: counted, waited for, cancelled, and held open while they are filled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any

import msgspec
import pytest

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.client.holds import HOLD_TTL, LONGEST_PAUSE, RENEWAL, register_of
from plugq.errors import OutcomeUnknown, Unavailable
from plugq.job import JobState, Outcome
from plugq.protocols import (
    ClaimRequest,
    Finished,
    PluginContext,
    RegisterChange,
    Settlement,
    SweepRequest,
)
from plugq.testing import ManualClock

_numbers = itertools.count()


class Store(MemoryStorage):
    """Counts the looks at batches, and loses answers or notices when it is told to."""

    looks = 0
    at_once = 0
    most_at_once = 0
    unreachable = False
    lossy = False
    silent = False

    async def batches(self, batches: Any) -> Any:
        self.looks += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            # A storage takes its time.
            await asyncio.sleep(0)
            return await super().batches(batches)
        finally:
            self.at_once -= 1

    async def load(self, keys: Any) -> Any:
        if self.unreachable:
            raise Unavailable("nobody there")
        return await super().load(keys)

    async def swap(self, changes: Any) -> Any:
        swapped = await super().swap(changes)
        if self.lossy:
            self.lossy = False
            raise OutcomeUnknown("the answer was lost")
        return swapped

    async def watch(self, peer: str) -> Any:
        async with contextlib.aclosing(super().watch(peer)) as notices:
            async for notice in notices:
                if not (self.silent and isinstance(notice, Finished)):
                    yield notice


def client(store: Store | None = None, clock: ManualClock | None = None) -> plugq.Client:
    store = store or Store(MemoryOptions(), PluginContext(clock=clock))
    return Assembly({}, storage=store, clock=clock).client()


def a_store(clock: ManualClock | None = None) -> Store:
    return Store(MemoryOptions(), PluginContext(clock=clock))


async def run(store: Store, outcome: Outcome = Outcome.SUCCEED, limit: int = 10_000) -> int:
    """End queued jobs and return how many were."""
    request = ClaimRequest(worker="w", number=next(_numbers), queues=("default",), limit=limit)
    leases = (await store.claim(request)).leases
    await store.settle(
        [Settlement(queue=one.queue, id=one.id, token=one.token, outcome=outcome) for one in leases]
    )
    return len(leases)


def only(**counts: int) -> dict[str, int]:
    return {str(state): counts.get(state, 0) for state in JobState}


async def started(store: Store, looks: int) -> None:
    while store.looks < looks:
        await asyncio.sleep(0)


async def test_counts_and_progress() -> None:
    store = a_store()
    async with client(store) as one:
        batch = one.batch("b")
        assert await batch.counts() == only()
        assert await batch.progress() == plugq.BatchProgress(done=0, total=0)
        assert (await batch.progress()).fraction == 0
        await one.submit_many([plugq.job("t")] * 4, batch="b")
        await one.submit(plugq.job("t"), batch="b", delay="1h")
        await one.submit(plugq.job("t"), batch="other")
        await run(store, Outcome.FAIL, 1)
        assert await batch.counts() == only(delayed=1, queued=3, failed=1)
        progress = await batch.progress()
        assert (progress.done, progress.total, progress.fraction) == (1, 5, 0.2)
        assert len(await batch.cancel()) == 4
        assert await batch.wait() == only(cancelled=4, failed=1)


async def test_a_batch_of_many_pages_is_waited_for_cancelled_and_outlives_its_jobs() -> None:
    clock = ManualClock()
    store = a_store(clock)
    async with client(store, clock) as one:
        jobs = [plugq.job("t").options(result_ttl=0) for _ in range(5_000)]
        await one.submit_many(jobs, batch="b")
        waiting = asyncio.create_task(one.batch("b").wait())
        assert await run(store, limit=2_000) == 2_000
        assert await one.batch("b").cancel() == ["cancelled"] * 3_000
        expected = only(succeeded=2_000, cancelled=3_000)
        assert await waiting == expected
        clock.advance("2h")
        for _ in range(12):
            await store.sweep(SweepRequest())
        assert (await one.find(batch="b")).jobs == ()
        assert await one.batch("b").counts() == expected
        assert await one.batch("b").wait() == expected
        assert (await one.batch("b").progress()).fraction == 1


async def test_a_batch_that_nobody_fills_is_not_found() -> None:
    store = a_store()
    async with client(store) as one:
        with pytest.raises(plugq.JobNotFound, match="no job was ever submitted to batch 'tpyo'"):
            await one.batch("tpyo").wait()
        with pytest.raises(plugq.InvalidJob, match="batch: expected 1 to 1,024 bytes"):
            one.batch("")
        with pytest.raises(plugq.InvalidJob, match="batch: expected text, got None"):
            one.batch(None)  # type: ignore[arg-type]


async def test_a_batch_that_was_opened_and_left_empty_is_over() -> None:
    store = a_store()
    async with client(store) as one:
        async with one.batch("b") as batch:
            pass
        assert await batch.wait() == only()
        with pytest.raises(plugq.JobNotFound):
            await one.batch("b").wait()


async def test_nobody_s_wait_ends_while_a_batch_is_filled() -> None:
    store = a_store()
    async with client(store) as one, client(store) as other:
        async with one.batch("b"):
            await one.submit(plugq.job("t"), batch="b")
            await run(store)
            waits = [asyncio.create_task(who.batch("b").wait()) for who in (one, other)]
            looks = store.looks
            await started(store, looks + 2)
            await one.submit(plugq.job("t"), batch="b")
            await run(store, Outcome.FAIL)
            # Each has looked when it was told of that end, and goes on waiting.
            await started(store, looks + 3)
            assert not any(wait.done() for wait in waits)
        assert [await wait for wait in waits] == [only(succeeded=1, failed=1)] * 2
        assert await store.scan("batch:") == []


async def test_who_fills_a_batch_can_not_wait_for_it_inside_of_the_block() -> None:
    store = a_store()
    async with client(store) as one:
        async with one.batch("b") as batch:
            with pytest.raises(plugq.Conflict, match="is held open here; wait for it after the"):
                await batch.wait()
            with pytest.raises(plugq.Conflict, match="is held open here; wait for it after the"):
                await one.batch("b").wait()
            # Another task may.
            waiting = asyncio.create_task(batch.wait())
            await started(store, 1)
        assert await waiting == only()


async def test_several_fill_one_batch() -> None:
    store = a_store()
    async with client(store) as one, client(store) as other:
        batch = one.batch("b")
        ready = [asyncio.Event() for _ in range(3)]
        go_on = [asyncio.Event() for _ in range(3)]

        async def fill(number: int, batch: plugq.Batch) -> None:
            async with batch:
                ready[number].set()
                await go_on[number].wait()
                await one.submit(plugq.job("t"), batch="b")

        fillers = [
            asyncio.create_task(fill(number, who))
            for number, who in enumerate((batch, batch, other.batch("b")))
        ]
        await asyncio.gather(*(event.wait() for event in ready))
        assert len(holders(store)) == 3
        waiting = asyncio.create_task(batch.wait())
        for number in (1, 0, 2):
            assert not waiting.done()
            go_on[number].set()
            await fillers[number]
            assert await run(store) == 1
            assert len(holders(store)) == (2, 1, 0)[(1, 0, 2).index(number)]
        assert await waiting == only(succeeded=3)


def holders(store: Store) -> dict[str, float]:
    register = store._registers.read(register_of("b"), 0)
    return {} if register is None else msgspec.json.decode(register.value)


async def test_a_batch_is_let_go_also_after_an_error() -> None:
    store = a_store()
    async with client(store) as one:
        with pytest.raises(ZeroDivisionError):
            async with one.batch("b"):
                1 / 0  # noqa: B018
        assert holders(store) == {}


async def test_a_hold_is_renewed_as_long_as_the_block_lasts() -> None:
    clock = ManualClock()
    store = a_store(clock)
    async with client(store, clock) as one:
        async with one.batch("b") as batch:
            for _ in range(10):
                until = max(holders(store).values())
                while clock.sleeping < 1:
                    await asyncio.sleep(0)
                clock.advance(RENEWAL)
                while max(holders(store).values()) == until:
                    await asyncio.sleep(0)
            assert clock.monotonic() > HOLD_TTL
        assert await batch.wait() == only()


async def test_a_filler_that_dies_frees_the_batch() -> None:
    clock = ManualClock()
    store = a_store(clock)
    async with client(store, clock) as one:
        dead = client(store, clock)
        await dead.start()
        holder = await dead._batches.holds.open("b")
        await dead.submit(plugq.job("t"), batch="b")
        await run(store)
        # What dies renews no more and takes nothing back.
        await dead.stop()
        assert holder in holders(store)
        waiting = asyncio.create_task(one.batch("b").wait())
        await started(store, 1)
        for _ in range(int(HOLD_TTL)):
            assert not waiting.done()
            looks = store.looks
            clock.advance(1)
            await started(store, looks + 1)
        assert await waiting == only(succeeded=1)


async def test_a_filler_that_dies_is_not_kept_alive_by_the_others() -> None:
    clock = ManualClock()
    store = a_store(clock)
    async with client(store, clock) as one, client(store, clock) as other:
        dead = client(store, clock)
        await dead.start()
        await dead._batches.holds.open("b")
        await dead.stop()
        async with other.batch("b"):
            await one.submit(plugq.job("t"), batch="b")
            await run(store)
            for _ in range(int(HOLD_TTL // RENEWAL) + 1):
                until = max(holders(store).values())
                while clock.sleeping < 1:
                    await asyncio.sleep(0)
                clock.advance(RENEWAL)
                while max(holders(store).values()) == until:
                    await asyncio.sleep(0)
        assert await one.batch("b").wait() == only(succeeded=1)


async def test_a_hold_outlives_an_outage_of_the_storage() -> None:
    clock = ManualClock()
    store = a_store(clock)
    load = store.load

    async def fail(keys: Any) -> Any:
        raise plugq.PlugqError("gone")

    async with client(store, clock) as one, one.batch("b"):
        until = max(holders(store).values())
        store.load = fail  # type: ignore[method-assign]
        while clock.sleeping < 1:
            await asyncio.sleep(0)
        clock.advance(RENEWAL)
        # What is left of its term is used up, but for what a few pauses need.
        for _ in range(5):
            while clock.sleeping < 1:
                await asyncio.sleep(0)
            clock.advance(LONGEST_PAUSE)
        clock.advance(HOLD_TTL - RENEWAL - 7 * LONGEST_PAUSE)
        while clock.sleeping < 1:
            await asyncio.sleep(0)
        store.load = load  # type: ignore[method-assign]
        clock.advance(LONGEST_PAUSE)
        while max(holders(store).values()) == until:
            await asyncio.sleep(0)
        assert clock.time() < until


async def test_a_hold_that_lapsed_is_said_and_taken_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    store = a_store(clock)
    async with client(store, clock) as one, client(store, clock) as other:
        async with one.batch("b"):
            while clock.sleeping < 1:
                await asyncio.sleep(0)
            # As after a loop that was blocked.
            clock.advance(HOLD_TTL + 5)
            while "batch 'b' was not held open for 5 s, and may have looked" not in caplog.text:
                await asyncio.sleep(0)
            while not any(until > clock.time() for until in holders(store).values()):
                await asyncio.sleep(0)
            waiting = asyncio.create_task(other.batch("b").wait())
            await started(store, 1)
            assert not waiting.done()
            caplog.clear()
            # Nobody looks until the block is over, and the loop of renewals comes too late.
            await one._batches.holds._supervisor.stop()
            clock.advance(HOLD_TTL + 7)
        assert "batch 'b' was not held open for 7 s, and may have looked" in caplog.text
        with pytest.raises(plugq.JobNotFound):
            await waiting
        caplog.clear()
        async with one.batch("b"):
            pass
        assert caplog.text == ""


async def test_what_was_submitted_before_a_batch_was_let_go_is_in_the_counts() -> None:
    store = a_store()
    async with client(store) as one, client(store) as other:
        filling = other.batch("b")
        await filling.__aenter__()
        await one.submit(plugq.job("t"), batch="b")
        await run(store)
        load, batches = store.load, store.batches

        async def the_last_job() -> None:
            store.load, store.batches = load, batches  # type: ignore[method-assign]
            await other.submit(plugq.job("t"), batch="b")
            await filling.__aexit__()

        async def after_load(keys: Any) -> Any:
            loaded = await load(keys)
            await the_last_job()
            return loaded

        async def after_batches(keys: Any) -> Any:
            counts = await batches(keys)
            await the_last_job()
            return counts

        # Between the two questions of a look, whichever comes first.
        store.load = after_load  # type: ignore[method-assign]
        store.batches = after_batches  # type: ignore[assignment, method-assign]
        waiting = asyncio.create_task(one.batch("b").wait())
        await started(store, 2)
        assert not waiting.done()
        assert await run(store) == 1
        assert await waiting == only(succeeded=2)


async def test_an_answer_that_is_lost_while_a_batch_is_opened_or_let_go_does_no_harm() -> None:
    store = a_store()
    async with client(store) as one:
        store.lossy = True
        async with one.batch("b") as batch:
            assert len(holders(store)) == 1
            store.lossy = True
        assert holders(store) == {}
        assert await batch.wait() == only()


async def test_a_batch_that_can_not_be_opened_runs_no_block() -> None:
    store = a_store()
    one = Assembly({"client": {"deadline": 0.05}}, storage=store).client()
    async with one:
        store.unreachable = True
        with pytest.raises(plugq.Unavailable):
            async with one.batch("b"):
                pytest.fail("it is not held open")
        assert one.state()["batches"]["holds"]["open"] == 0
        store.unreachable = False
        async with one.batch("b"):
            store.unreachable = True
        # The block is done: that it can not be let go now costs the others some seconds.
        assert len(holders(store)) == 1


async def test_a_lost_notice_costs_one_poll() -> None:
    clock = ManualClock()
    store = a_store(clock)
    store.silent = True
    async with client(store, clock) as one:
        await one.submit(plugq.job("t"), batch="b")
        waiting = asyncio.create_task(one.batch("b").wait())
        while clock.sleeping < 1 or not store.looks:
            await asyncio.sleep(0)
        await run(store)
        clock.advance(1)
        assert await waiting == only(succeeded=1)


async def test_jobs_of_another_client_are_seen_by_the_poll() -> None:
    clock = ManualClock()
    store = a_store(clock)
    async with client(store, clock) as one, client(store, clock) as other:
        await other.submit(plugq.job("t"), batch="b")
        waiting = asyncio.create_task(one.batch("b").wait())
        await started(store, 1)
        await run(store)
        while clock.sleeping < 1:
            await asyncio.sleep(0)
        clock.advance(1)
        assert await waiting == only(succeeded=1)


async def test_one_look_at_a_time_serves_all_who_wait() -> None:
    store = a_store()
    async with client(store) as one:
        for number in range(50):
            await one.submit_many([plugq.job("t")] * 10, batch=f"b{number}")
        waits = [asyncio.create_task(one.batch(f"b{number % 50}").wait()) for number in range(100)]
        await started(store, 1)
        while await run(store, limit=7):
            await asyncio.sleep(0)
        assert [await wait for wait in waits] == [only(succeeded=10)] * 100
        assert store.most_at_once == 1
        # Two for each notice at most, and not for each who waits.
        assert store.looks <= 160
        assert one.state()["batches"]["waiting"] == 0


async def test_a_look_that_fails_is_repeated() -> None:
    clock = ManualClock()
    store = a_store(clock)
    async with client(store, clock) as one:
        await one.submit(plugq.job("t"), batch="b")
        await run(store)
        store.unreachable = True
        waiting = asyncio.create_task(one.batch("b").wait())
        for _ in range(50):
            await asyncio.sleep(0)
            clock.advance(0.05)
        assert not waiting.done()
        store.unreachable = False
        while not waiting.done():
            await asyncio.sleep(0)
            clock.advance(0.1)
        assert waiting.result() == only(succeeded=1)


async def test_a_wait_that_takes_too_long_says_what_is_missing() -> None:
    store = a_store()
    async with client(store) as one, client(store) as other:
        await one.submit_many([plugq.job("t")] * 3, batch="b")
        await run(store, limit=1)
        with pytest.raises(plugq.WaitTimeout, match="2 of 3 jobs of batch 'b' have not ended"):
            await one.batch("b").wait(0.05)
        async with other.batch("b"):
            await run(store)
            with pytest.raises(plugq.WaitTimeout, match="'b' is still held open by somebody"):
                await one.batch("b").wait(0.05)
        assert one.state()["batches"]["waiting"] == 0


async def test_stopping_the_client_ends_a_wait_and_the_renewals() -> None:
    store = a_store()
    one = client(store)
    await one.start()
    holder = await one._batches.holds.open("b")
    waiting = asyncio.create_task(one.batch("b").wait())
    await started(store, 1)
    await one.stop()
    with pytest.raises(plugq.Unavailable, match="stopped"):
        await waiting
    assert one.state()["batches"]["holds"]["open"] == 0
    with pytest.raises(plugq.Unavailable, match="not started"):
        await one.batch("b").wait()
    await one._batches.holds.close("b", holder)


async def test_who_comes_during_a_look_is_not_answered_by_it() -> None:
    """What the look found may be older than the hold that the newcomer knows of."""
    store = a_store()
    async with client(store) as one:
        reached, go_on = asyncio.Event(), asyncio.Event()
        load = store.load

        async def slow(keys: Any) -> Any:
            loaded = await load(keys)
            reached.set()
            await go_on.wait()
            return loaded

        store.load = slow  # type: ignore[method-assign]
        early = asyncio.create_task(one.batch("b").wait())
        await reached.wait()
        store.load = load  # type: ignore[method-assign]
        async with client(store) as other, other.batch("b"):
            late = asyncio.create_task(one.batch("b").wait())
            await asyncio.sleep(0)
            go_on.set()
            with pytest.raises(plugq.JobNotFound):
                await early
            looks = store.looks
            await started(store, looks + 1)
            assert not late.done()
            await other.submit(plugq.job("t"), batch="b")
            await run(store)
        assert await late == only(succeeded=1)


@pytest.mark.parametrize("key", ["a:b", "a%", "*", "\x00", "🚀", "x" * 1024, "a'b"])
async def test_any_text_is_a_key(key: str) -> None:
    store = a_store()
    async with client(store) as one:
        async with one.batch(key) as batch:
            await one.submit(plugq.job("t"), batch=key)
            with pytest.raises(plugq.JobNotFound):
                await one.batch(f"{key[:-1]}?").wait()
        await run(store)
        assert await batch.wait() == only(succeeded=1)


async def test_what_is_no_list_of_holders_holds_nothing_open() -> None:
    store = a_store()
    async with client(store) as one:
        change = RegisterChange(key=register_of("b"), expect=0, value=b"?")
        assert (await store.swap([change])).done
        async with one.batch("b") as batch:
            assert len(holders(store)) == 1
        assert await batch.wait() == only()
