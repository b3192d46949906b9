"""Jobs that came by a transaction of the user's: once committed, they are jobs like any other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import JobState, Outcome
from plugq.protocols.edits import EditStatus
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import Finished, SubmitStatus
from plugq.testing.contract.scene import Contract
from plugq.testing.contract.snapshot import check_books, every_job
from plugq.testing.contract.transactions import add, each_kind, put
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene
    from plugq.testing.contract.transactions import Begin


class Transacted(Contract):
    """What holds of committed jobs; needs the hook ``transactions``."""

    @each_kind
    async def test_jobs_of_a_transaction_stand_in_their_order(
        self, scene: Scene, begin: Begin
    ) -> None:
        """By priority, then in the order in which they were submitted, over several calls (I10)."""
        await scene.submit("before")
        async with begin() as within:
            await add(scene, within, "a", "b", "c")
            await add(scene, within, "high", priority=5)
            await add(scene, within, "later", delay=10.0)
            await add(scene, within, "d", "e")
            await within.commit()
        await scene.submit("after")
        assert await scene.claimed_ids() == ["high", "before", "a", "b", "c", "d", "e", "after"]
        scene.clock.advance(10)
        assert await scene.claimed_ids() == ["later"]

    @each_kind
    async def test_jobs_of_a_transaction_keep_their_lanes(self, scene: Scene, begin: Begin) -> None:
        """One of a lane runs at a time, beside those that were there before (I9)."""
        await scene.submit("old", lane="x")
        async with begin() as within:
            await add(scene, within, "x1", "x2", lane="x")
            await add(scene, within, "y1", "y2", lane="y")
            await within.commit()
        granted: list[str] = []
        while leases := await scene.claim(10):
            granted += [lease.id for lease in leases]
            assert len({lease.lane for lease in leases}) == len(leases)
            for lease in leases:
                await scene.end(lease)
        assert sorted(granted) == ["old", "x1", "x2", "y1", "y2"]
        assert [id for id in granted if id != "old" and id[0] == "x"] == ["x1", "x2"]
        assert granted.index("old") < granted.index("x1")

    @each_kind
    async def test_a_deadline_holds_for_a_job_of_a_transaction(
        self, scene: Scene, begin: Begin
    ) -> None:
        """Shown at once and stored by the next sweep."""
        async with begin() as within:
            await add(scene, within, "a", deadline_in=5.0)
            await within.commit()
        scene.clock.advance(5)
        assert await scene.state() is JobState.FAILED
        await scene.sweep()
        assert (await scene.show()).code == "deadline"
        assert await scene.claim() == ()

    @each_kind
    async def test_a_job_of_a_transaction_waits_in_a_paused_queue(
        self, scene: Scene, begin: Begin
    ) -> None:
        """As any other."""
        await scene.pause()
        async with begin() as within:
            await add(scene, within, "a")
            await within.commit()
        assert await scene.claim() == ()
        assert await scene.state() is JobState.QUEUED
        await scene.resume()
        assert await scene.claimed_ids() == ["a"]

    @each_kind
    async def test_a_queue_that_takes_nothing_takes_nothing_in_a_transaction(
        self, scene: Scene, begin: Begin
    ) -> None:
        """Full or drained, it is told so at once; the transaction can go on without the call."""
        await scene.configure("small", max_length=2)
        await scene.submit("there", queue="small")
        await scene.drain("drained")
        async with begin() as within:
            await add(scene, within, "other")
            replies = await put(
                scene, within, *(scene.job(id, queue="small") for id in ("x", "y")), scene.job("z")
            )
            assert [reply.status for reply in replies] == [
                SubmitStatus.FULL,
                SubmitStatus.FULL,
                SubmitStatus.REFUSED,
            ]
            (reply,) = await put(scene, within, scene.job("x", queue="drained"))
            assert reply.status is SubmitStatus.DRAINING
            await add(scene, within, "fits", queue="small")
            (reply,) = await put(scene, within, scene.job("x", queue="small"))
            assert reply.status is SubmitStatus.FULL
            await within.commit()
        assert sorted(job.id for job in await every_job(scene)) == ["fits", "other", "there"]
        await check_books(scene)

    @each_kind
    async def test_a_job_of_a_transaction_lives_like_any_other(
        self, scene: Scene, begin: Begin
    ) -> None:
        """It is retried, cancelled, queued again, and goes when its retention has passed."""
        async with begin() as within:
            fields = {"max_attempts": 2, "failure_ttl": 20.0, "result_ttl": 10.0, "id_ttl": 0.0}
            await add(scene, within, "retried", "cancelled", "fails", batch="b", **fields)
            await within.commit()
        assert (await scene.cancel("cancelled")).status is EditStatus.DONE
        lease, other = await scene.claim(2)
        assert await scene.end(lease, Outcome.RETRY) is JobState.DELAYED
        assert await scene.end(other, Outcome.FAIL, code="x") is JobState.FAILED
        assert (await scene.redrive("fails")).status is EditStatus.DONE
        for lease in await scene.claim(2):
            assert lease.attempt == (2 if lease.id == "retried" else 1)
            await scene.end(lease, result=b"1")
        assert (await scene.show("retried")).result == b"1"
        (counts,) = await scene.storage.batches(["b"])
        assert counts is not None
        assert {state: count for state, count in counts.counts.items() if count} == {
            JobState.SUCCEEDED: 2,
            JobState.CANCELLED: 1,
        }
        scene.clock.advance(20)
        await scene.sweep()
        assert await every_job(scene) == []
        assert await scene.total("accepted") == await scene.total("removed") == 3

    @each_kind
    async def test_many_jobs_fit_into_one_transaction(self, scene: Scene, begin: Begin) -> None:
        """Thousands, in calls of a thousand."""
        ids = [f"{number:04}" for number in range(2500)]
        async with begin() as within:
            for start in range(0, len(ids), 1000):
                await add(scene, within, *ids[start : start + 1000], batch="b")
            await within.commit()
        assert await scene.claimed_ids(len(ids)) == ids
        assert await scene.claim() == ()
        async with begin() as within:
            assert await put(scene, within) == []
            await within.commit()
        await check_books(scene)

    @requires(Capability.PUSH_WAKEUPS)
    @each_kind
    async def test_who_is_idle_is_woken_by_the_next_sweep_after_the_commit(
        self, scene: Scene, begin: Begin
    ) -> None:
        """At the latest; a transaction that was rolled back costs nobody a wake-up."""
        async with scene.listen("p") as ear:
            assert await scene.claim(1, peer="p") == ()
            async with begin() as within:
                await add(scene, within, "gone")
                await within.rollback()
            async with begin() as within:
                await add(scene, within, "a")
                await within.commit()
            await scene.sweep()
            await ear.hears_wake()
            assert await scene.claimed_ids() == ["a"]

    @requires(Capability.PUSH_WAKEUPS)
    @each_kind
    async def test_who_submitted_in_a_transaction_is_told_of_the_end(
        self, scene: Scene, begin: Begin
    ) -> None:
        """As of the end of any job."""
        async with scene.listen("p") as ear:
            async with begin() as within:
                await add(scene, within, "a", origin="p")
                await within.commit()
            await scene.end(await scene.take("a"))
            await ear.hears(Finished, *scene.refs("a"))


__all__ = ["Transacted"]
