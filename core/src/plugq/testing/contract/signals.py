"""Notices between processes: who is woken, who is told of an end or a cancelling, who is not."""

from __future__ import annotations

from plugq.errors import PlugqError
from plugq.job import JobRef, Outcome
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import CancelAsked, Finished, Resync, Wake
from plugq.testing.contract.scene import Contract
from plugq.testing.requirements import requires

_push = requires(Capability.PUSH_WAKEUPS)


class Signals(Contract):
    """Hints that save polling."""

    async def test_the_first_notice_is_resync(self) -> None:
        """What happened before may have been missed."""
        async with self.scene() as scene, scene.listen("p") as ear:
            assert isinstance(ear.heard[0], Resync)

    async def test_a_watch_can_be_closed_and_opened_again(self) -> None:
        """Each begins with a resync."""
        async with self.scene() as scene:
            for _ in range(3):
                async with scene.listen("p") as ear:
                    assert isinstance(ear.heard[0], Resync)

    async def test_stopping_the_storage_ends_a_watch(self) -> None:
        """Nobody is left waiting."""
        async with self.scene() as scene:
            stream = scene.storage.watch("p")
            assert isinstance(await anext(stream), Resync)
            async with scene.expecting_an_end():
                await scene.storage.stop()
                try:
                    while True:
                        await anext(stream)
                except (StopAsyncIteration, PlugqError):
                    pass

    @_push
    async def test_a_submission_wakes_an_idle_peer(self) -> None:
        """One that claimed and came back short."""
        async with self.scene() as scene, scene.listen("p") as ear:
            assert await scene.claim(1, peer="p") == ()
            await scene.submit("a")
            await ear.hears_wake()
            assert await scene.claimed_ids() == ["a"]

    @_push
    async def test_another_process_is_woken(self) -> None:
        """Whoever opened the same store."""
        async with self.scene() as scene, scene.another() as other, other.listen("p") as ear:
            await other.claim(1, peer="p")
            await scene.submit("a")
            await ear.hears_wake()

    @_push
    async def test_a_claim_that_comes_back_partly_filled_counts_as_idle(self) -> None:
        """Short is short."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a")
            assert len(await scene.claim(2, peer="p")) == 1
            await scene.submit("b")
            await ear.hears_wake()

    @_push
    async def test_a_claim_that_was_filled_does_not_count_as_idle(self) -> None:
        """That peer has its hands full."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a")
            assert len(await scene.claim(1, peer="p")) == 1
            await scene.submit("b")
            await ear.catch_up()
            assert ear.wakes() == 0

    @_push
    async def test_an_idle_peer_is_woken_once(self) -> None:
        """Until it has claimed again."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.claim(1, peer="p")
            await scene.submit("a")
            await ear.hears_wake()
            await scene.submit("b")
            await scene.submit("c")
            await ear.catch_up()
            assert ear.wakes() == 1
            await scene.claim(3)
            await scene.claim(1, peer="p")
            await scene.submit("d")
            await ear.hears_wake(2)

    @_push
    async def test_n_jobs_wake_at_most_n_peers(self) -> None:
        """A hundred idle workers do not all come for one job."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
            scene.listen("p3") as three,
        ):
            ears = (one, two, three)
            for ear in ears:
                await scene.claim(5, peer=ear.peer, worker=ear.peer)
            await scene.submit("a")
            for ear in ears:
                await ear.catch_up()
            assert sum(ear.wakes() for ear in ears) == 1
            await scene.submit("b", "c", "d")
            for ear in ears:
                await ear.catch_up()
            assert [ear.wakes() for ear in ears] == [1, 1, 1]

    @_push
    async def test_only_peers_that_are_idle_for_the_queue_are_woken(self) -> None:
        """Others could do nothing."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
        ):
            await scene.claim(1, peer="p1", queues=("x", "y"))
            await scene.claim(1, peer="p2", queues=("z",))
            await scene.submit("a", queue="y")
            await one.hears_wake()
            await two.catch_up()
            assert two.wakes() == 0

    @_push
    async def test_a_peer_idles_for_all_that_it_claimed_from(self) -> None:
        """A broker claims for workers of different queues."""
        for queue in ("one", "two"):
            async with self.scene() as scene, scene.listen("p") as ear:
                await scene.claim(1, peer="p", queues=("one",))
                await scene.claim(1, peer="p", queues=("two",))
                await scene.submit("a", queue=queue)
                await ear.hears_wake()

    @_push
    async def test_a_peer_woken_for_one_queue_is_not_woken_for_the_others(self) -> None:
        """It is on its way to look at all of them."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.claim(1, peer="p", queues=("x", "y"))
            await scene.submit("a", queue="x")
            await scene.submit("b", queue="y")
            await ear.catch_up()
            assert ear.wakes() == 1

    @_push
    async def test_jobs_that_are_not_ready_wake_nobody(self) -> None:
        """Delayed ones, those of a paused queue, and the tail of a lane."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.pause("paused")
            await scene.submit("head", lane="l")
            await scene.take("head")
            await scene.claim(1, peer="p", queues=("q", "paused"))
            await scene.submit("delayed", delay=60.0)
            await scene.submit("tail", lane="l")
            await scene.submit("held", queue="paused")
            await ear.catch_up()
            assert ear.wakes() == 0

    @_push
    async def test_a_release_wakes(self) -> None:
        """The job can be claimed again."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a")
            lease = await scene.take("a")
            await scene.claim(1, peer="p")
            await scene.end(lease, Outcome.RELEASE)
            await ear.hears_wake()

    @_push
    async def test_a_freed_lane_wakes(self) -> None:
        """Its next job can be claimed."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a", "b", lane="l")
            lease = await scene.take("a")
            await scene.claim(1, peer="p")
            await scene.end(lease)
            await ear.hears_wake()

    @_push
    async def test_room_under_max_running_wakes(self) -> None:
        """One of those that wait can be claimed."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.configure(max_running=1)
            await scene.submit("a", "b")
            lease = await scene.take("a")
            await scene.claim(1, peer="p")
            await scene.end(lease)
            await ear.hears_wake()

    @_push
    async def test_a_resume_wakes(self) -> None:
        """What was held back can be claimed."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.pause()
            await scene.submit("a")
            await scene.claim(1, peer="p")
            await scene.resume()
            await ear.hears_wake()

    @_push
    async def test_a_redrive_wakes(self) -> None:
        """The job can be claimed again."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a")
            await scene.end(await scene.take("a"), Outcome.FAIL)
            await scene.claim(1, peer="p")
            await scene.redrive("a")
            await ear.hears_wake()

    @_push
    async def test_a_sweep_wakes_for_what_falls_due(self) -> None:
        """And for leases that it ends."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a", delay=10.0)
            await scene.claim(1, peer="p")
            scene.clock.advance(10)
            await scene.sweep()
            await ear.hears_wake()
            await scene.submit("b", max_attempts=5)
            await scene.claim(2)
            await scene.claim(1, peer="p")
            await scene.lapse()
            await ear.hears_wake(2)

    @_push
    async def test_a_sweep_wakes_idle_peers_where_jobs_are_ready(self) -> None:
        """Should a signal have been lost, that costs one sweep."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
        ):
            for ear in (one, two):
                await scene.claim(1, peer=ear.peer)
            await scene.submit("a")
            for ear in (one, two):
                await ear.catch_up()
            assert one.wakes() + two.wakes() == 1
            await scene.sweep()
            await one.hears_wake()
            await two.hears_wake()

    @_push
    async def test_the_peer_that_claims_in_a_settlement_does_not_wake_itself(self) -> None:
        """It gets what it freed in the same step."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a", "b", lane="l")
            lease = await scene.take("a")
            await scene.claim(1, peer="p")
            _, claimed = await scene.storage.settle(
                [scene.settlement(lease)], scene.request(1, peer="p")
            )
            assert claimed is not None
            assert [lease.id for lease in claimed.leases] == ["b"]
            await ear.catch_up()
            assert ear.wakes() == 0

    @_push
    async def test_a_peer_that_has_gone_is_not_woken_in_place_of_another(self) -> None:
        """Closing the watch takes it off the list."""
        async with self.scene() as scene, scene.listen("p2") as two:
            async with scene.listen("p1"):
                await scene.claim(1, peer="p1")
            await scene.claim(1, peer="p2")
            await scene.submit("a")
            await two.hears_wake()

    @_push
    async def test_the_origin_is_told_of_every_end(self) -> None:
        """By settlement, cancelling, crash, deadline and purge."""
        async with self.scene() as scene, scene.listen("p") as ear:
            fields = {"origin": "p"}
            await scene.submit("succeeded", "failed", "crashed", **fields)
            succeeded, failed, _ = await scene.claim(3, lease=10.0)
            await scene.end(succeeded)
            await scene.end(failed, Outcome.FAIL)
            await scene.submit("cancelled", **fields)
            await scene.cancel("cancelled")
            await scene.submit("late", deadline_in=5.0, **fields)
            await scene.lapse(10)
            ended = ("succeeded", "failed", "crashed", "cancelled", "late")
            await ear.hears(Finished, *(JobRef("q", id) for id in ended))
            ear.heard.clear()
            await scene.purge("failed")
            await ear.hears(Finished, JobRef("q", "failed"))

    @_push
    async def test_the_origin_is_not_told_of_what_goes_on(self) -> None:
        """A retry is no end."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a", origin="p", max_attempts=5)
            for outcome in (Outcome.RETRY, Outcome.SNOOZE, Outcome.RELEASE):
                await scene.end(await scene.take("a"), outcome)
            await scene.take("a")
            await scene.lapse()
            await ear.catch_up()
            assert JobRef("q", "a") not in ear.refs(Finished)

    @_push
    async def test_nobody_but_the_origin_is_told_of_an_end(self) -> None:
        """Other peers have nothing to do with it."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
        ):
            await scene.submit("a", origin="p1")
            await scene.submit("b")
            for lease in await scene.claim(2):
                await scene.end(lease)
            await one.hears(Finished, JobRef("q", "a"))
            await two.catch_up()
            assert JobRef("q", "a") not in two.refs(Finished)
            assert JobRef("q", "b") not in one.refs(Finished) | two.refs(Finished)

    @_push
    async def test_the_holders_peer_is_told_of_a_cancelling(self) -> None:
        """Only the one whose worker runs the job."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
        ):
            await scene.submit("a", "b")
            await scene.take("a", peer="p1", worker="w1")
            await scene.take("b", peer="p2", worker="w2")
            await scene.cancel("a")
            await one.hears(CancelAsked, JobRef("q", "a"))
            await two.catch_up()
            assert two.refs(CancelAsked) == set()

    @_push
    async def test_signals_reach_every_process_of_a_store(self) -> None:
        """Submitted here, run there, cancelled elsewhere."""
        async with (
            self.scene() as here,
            here.another() as there,
            here.listen("here") as origin,
            there.listen("there") as holder,
        ):
            await there.claim(1, peer="there")
            await here.submit("a", origin="here")
            await holder.hears_wake()
            lease = await there.take("a", peer="there")
            await here.cancel("a")
            await holder.hears(CancelAsked, JobRef("q", "a"))
            await there.end(lease, Outcome.FAIL)
            await origin.hears(Finished, JobRef("q", "a"))

    @_push
    async def test_a_refused_call_wakes_nobody(self) -> None:
        """Nothing became claimable."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a")
            lease = await scene.take("a")
            await scene.end(lease)
            await scene.claim(1, peer="p")
            assert (await scene.settle(lease, Outcome.RELEASE)).lost
            await scene.send(scene.job("a"))
            await ear.catch_up()
            assert not any(isinstance(notice, Wake) for notice in ear.heard)


__all__ = ["Signals"]
