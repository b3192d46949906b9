"""Starting, stopping, reopening, cancelled callers, and the clock."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from plugq.errors import PlugqError
from plugq.job import Event, JobRef, JobState
from plugq.protocols.edits import Cancel
from plugq.protocols.plugin import API_VERSION, Capability
from plugq.protocols.storage import FindQuery, LeaseRef, RegisterChange, SweepRequest
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.levels import Level, level
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

_SHARED = frozenset({Capability.SHARED_PROCESSES, Capability.SHARED_HOSTS})


async def _hammer(side: Scene, worker: str, ran: list[str]) -> None:
    """Submit what the others submit too, and run whatever there is."""
    for start in range(0, 60, 6):
        await side.send(*(side.job(str(start + number)) for number in range(6)))
        for lease in await side.claim(4, worker=worker):
            ran.append(lease.id)
            await side.end(lease)
    while leases := await side.claim(4, worker=worker):
        for lease in leases:
            ran.append(lease.id)
            await side.end(lease)


class Lifecycle(Contract):
    """The storage as a service."""

    async def test_the_class_declares_what_plugins_declare(self) -> None:
        """The API version and the capabilities."""
        async with self.scene() as scene:
            assert scene.storage.api_version == API_VERSION
            assert scene.storage.capabilities <= set(Capability)

    async def test_start_and_stop_may_be_called_twice(self) -> None:
        """The second call does nothing."""
        async with self.scene() as scene:
            await scene.storage.start()
            await scene.submit("a")
            await scene.storage.stop()
            await scene.storage.stop()

    async def test_stop_before_start_is_legal(self) -> None:
        """And stopping twice does not stop a later start from working."""
        async with self.scene() as scene:
            for _ in range(3):
                await scene.storage.stop()
            await scene.storage.start()
            await scene.submit("a")
            assert await scene.claimed_ids() == ["a"]

    async def test_a_stopped_storage_refuses_every_verb(self) -> None:
        """With an error of plugq's, at once."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            storage = scene.storage
            await storage.stop()
            verbs: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "submit": lambda: storage.submit([scene.job("b")]),
                "claim": lambda: storage.claim(scene.request()),
                "settle": lambda: storage.settle([scene.settlement(lease)]),
                "renew": lambda: storage.renew([LeaseRef("q", "a", lease.token)], lease=30.0),
                "sweep": lambda: storage.sweep(SweepRequest()),
                "get": lambda: storage.get([JobRef("q", "a")]),
                "find": lambda: storage.find(FindQuery()),
                "stats": storage.stats,
                "edit": lambda: storage.edit(Cancel(scene.refs("a"))),
                "restore": lambda: storage.restore([]),
                "load": lambda: storage.load(["a"]),
                "swap": lambda: storage.swap([RegisterChange(key="a", expect=0, value=b"")]),
                "scan": lambda: storage.scan(""),
            }
            for name, verb in verbs.items():
                try:
                    async with asyncio.timeout(self.patience):
                        await verb()
                except PlugqError:
                    continue
                message = f"{name} worked after stop"
                raise AssertionError(message)

    async def test_two_users_share_a_store(self) -> None:
        """What one writes the other reads at once."""
        async with self.scene() as scene, scene.another() as other:
            await scene.submit("a")
            lease = await other.take("a")
            assert await scene.state("a") is JobState.RUNNING
            assert await scene.end(lease) is JobState.SUCCEEDED
            assert await other.state("a") is JobState.SUCCEEDED

    async def test_the_end_of_one_user_is_not_the_end_of_the_other(self) -> None:
        """Each stops for itself."""
        async with self.scene() as scene:
            async with scene.another() as other:
                await other.submit("a")
            assert await scene.claimed_ids() == ["a"]

    async def test_two_stores_do_not_see_each_other(self) -> None:
        """Another context is another deployment."""
        async with self.scene() as scene, self.scene() as other:
            await scene.submit("a", body=b"1")
            await other.submit("a", body=b"2")
            assert (await scene.take("a")).body == b"1"
            assert (await other.show("a", body=True)).state is JobState.QUEUED
            assert list(await other.storage.scan("")) == []

    @level(Level.CONCURRENCY)
    async def test_event_loops_in_several_threads_share_a_store(self) -> None:
        """Each with an instance of its own, or with one for all where only one process can open."""
        async with self.scene() as scene:
            shared = scene.storage.capabilities & _SHARED
            ran: list[str] = []

            def thread(worker: str) -> None:
                asyncio.run(live(worker))

            async def live(worker: str) -> None:
                if not shared:
                    await _hammer(scene, worker, ran)
                    return
                async with scene.another() as side:
                    await _hammer(side, worker, ran)

            await asyncio.gather(*(asyncio.to_thread(thread, f"w-{n}") for n in range(3)))
            assert sorted(ran) == sorted(str(number) for number in range(60))
            assert await scene.total("accepted") == await scene.total("succeeded") == 60

    @requires(Capability.DURABLE)
    async def test_what_was_acknowledged_survives_a_restart(self) -> None:
        """Jobs in every state, leases, counters and keys (I1)."""
        async with self.scene() as scene:
            states = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.DELAYED)
            for state in states:
                await scene.bring(state, state)
            lease = await scene.bring("running", JobState.RUNNING)
            assert lease is not None
            await scene.submit("queued", body=b"payload")
            await scene.pause("paused")
            before = [await scene.show(id, body=True) for id in (*states, "running", "queued")]
            stats = await scene.storage.stats()
            await scene.storage.stop()
            async with scene.another() as reopened:
                after = [
                    await reopened.show(id, body=True) for id in (*states, "running", "queued")
                ]
                assert after == before
                again = await reopened.storage.stats()
                assert (again.queues, again.tasks) == (stats.queues, stats.tasks)
                assert await reopened.end(lease) is JobState.SUCCEEDED
                assert (await reopened.take("queued")).body == b"payload"

    async def test_a_cancelled_caller_leaves_the_storage_whole(self) -> None:
        """Its call happened or did not; the next ones work."""
        async with self.scene() as scene:
            for number in range(20):
                call = asyncio.create_task(scene.storage.submit([scene.job(str(number))]))
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                call.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await call
            await scene.submit("last")
            stored = {job.id for job in (await scene.storage.find(FindQuery())).jobs}
            assert "last" in stored
            assert set(await scene.claimed_ids()) == stored
            await scene.settled_store()

    async def test_a_cancelled_claim_can_be_repeated(self) -> None:
        """Whatever it was granted is found again."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            request = scene.request(1)
            call = asyncio.create_task(scene.storage.claim(request))
            await asyncio.sleep(0)
            call.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await call
            (lease,) = (await scene.storage.claim(request)).leases
            assert lease.id == "a"
            assert await scene.claimed_ids() == ["b"]

    async def test_a_cancelled_caller_does_not_harm_its_neighbours(self) -> None:
        """Calls that were made at the same moment go through."""
        async with self.scene() as scene:
            calls = [
                asyncio.create_task(scene.storage.submit([scene.job(str(number))]))
                for number in range(30)
            ]
            await asyncio.sleep(0)
            for call in calls[::3]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results:
                if isinstance(result, Exception):
                    raise result
            kept = {
                str(number)
                for number, result in enumerate(results)
                if not isinstance(result, BaseException)
            }
            assert len(kept) >= 20
            assert kept <= set(await scene.claimed_ids())

    @level(Level.CONCURRENCY)
    async def test_many_calls_at_once_are_answered_each_with_its_own(self) -> None:
        """However they are put together."""
        async with self.scene() as scene:
            ids = [str(number) for number in range(200)]
            replies = await asyncio.gather(*(scene.submit(id) for id in ids))
            assert [reply.id for (reply,) in replies] == ids
            jobs = await asyncio.gather(*(scene.show(id) for id in ids))
            assert [job.id for job in jobs] == ids
            sequences = [reply.sequence for (reply,) in replies]
            assert len(set(sequences)) == len(ids)


class Time(Contract):
    """The storage's clock never runs backwards."""

    async def test_a_clock_that_is_set_back_ends_nothing_early(self) -> None:
        """Leases, delays, deadlines and retention hold at least as long as they should."""
        async with self.scene() as scene:
            await scene.bring("done", JobState.SUCCEEDED, result_ttl=700.0)
            await scene.submit("running", max_attempts=5)
            lease = await scene.take("running", lease=30.0)
            await scene.submit("delayed", delay=60.0)
            await scene.submit("mortal", deadline_in=90.0)
            scene.clock.set_back(3600)
            scene.clock.advance(29)
            assert (await scene.sweep()).changes == ()
            assert await scene.claimed_ids() == ["mortal"]
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_time_does_not_run_backwards(self) -> None:
        """What is stamped later never bears an earlier time."""
        async with self.scene() as scene:
            await scene.submit("a")
            before = (await scene.storage.stats()).now
            scene.clock.set_back(3600)
            assert (await scene.storage.stats()).now >= before
            assert (await scene.storage.load([])).now >= before
            await scene.submit("b")
            a, b = await scene.show("a"), await scene.show("b")
            assert b.submitted_at >= a.submitted_at
            assert b.ready_at >= a.ready_at
            lease = await scene.take("a")
            assert lease.started_at >= before
            await scene.end(lease)
            assert ((await scene.show("a")).finished_at or 0.0) >= before

    async def test_every_user_of_a_store_has_its_time(self) -> None:
        """One that was opened after the clock was set back does not live in the past."""
        async with self.scene() as scene:
            await scene.submit("a")
            before = (await scene.storage.stats()).now
            scene.clock.set_back(3600)
            async with scene.another() as other:
                await other.submit("b")
                assert (await other.show("b")).submitted_at >= before

    async def test_time_goes_on_once_the_clock_has_caught_up(self) -> None:
        """Then leases lapse as ever."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            await scene.take("a", lease=30.0)
            scene.clock.set_back(3600)
            scene.clock.advance(3629)
            assert (await scene.sweep()).changes == ()
            scene.clock.advance(1)
            assert [change.event for change in (await scene.sweep()).changes] == [Event.LAPSE]

    async def test_short_times_count(self) -> None:
        """Half-second leases and delays of milliseconds are kept to the millisecond."""
        async with self.scene() as scene:
            await scene.submit("a", delay=0.005, max_attempts=5)
            scene.clock.advance(0.004)
            assert await scene.claimed_ids() == []
            scene.clock.advance(0.001)
            await scene.take("a", lease=0.5)
            scene.clock.advance(0.499)
            assert (await scene.sweep()).changes == ()
            scene.clock.advance(0.001)
            assert len((await scene.sweep()).changes) == 1


__all__ = ["Lifecycle", "Time"]
