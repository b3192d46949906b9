"""What does not end a lease: time, other people's claims, stops, closed watches, edits."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from plugq.job import JobState, Outcome
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    Pause,
    Purge,
    QueueSettings,
    Redrive,
    Reprioritise,
    Resume,
    Retain,
)
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import RenewReply
from plugq.testing.contract.scene import Contract
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.protocols.storage import Lease
    from plugq.testing.contract.scene import Scene


async def _stands(scene: Scene, lease: Lease) -> None:
    """Check that the lease is current and that its job runs in nobody else's hands."""
    job = await scene.show(lease.id, lease.queue)
    assert (job.state, job.token) == (JobState.RUNNING, lease.token), "the lease was ended"
    assert await scene.claimed_ids() == []


class Leasehold(Contract):
    """A lease ends by a settlement or by the sweep that ends it, and by nothing else."""

    async def test_time_alone_ends_no_lease(self) -> None:
        """Reads and claims a year later find the job running; its holder may settle it."""
        async with self.scene() as scene:
            await scene.submit("a", lane="l", max_attempts=5)
            await scene.submit("b", lane="l")
            lease = await scene.take("a", lease=0.5)
            for step in (0.5, 30.0, "365d"):
                scene.clock.advance(step)
                await scene.storage.stats()
                await _stands(scene, lease)
                await scene.sweep(end_leases=False)
                await _stands(scene, lease)
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_claims_and_settlements_of_others_end_no_lease(self) -> None:
        """Nor do those of the same worker, under later and earlier numbers."""
        async with self.scene() as scene:
            request = scene.request(1, worker="w", lease=5.0)
            await scene.submit("a", max_attempts=5)
            (lease,) = (await scene.storage.claim(request)).leases
            scene.clock.advance(10)
            for worker in ("w", "other"):
                await scene.submit(worker)
                other = await scene.take(worker, worker=worker)
                await _stands(scene, lease)
                await scene.renew(other)
                await scene.end(other)
                await _stands(scene, lease)
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_the_end_of_the_process_that_claimed_ends_no_lease(self) -> None:
        """A lost session ends a session: whoever has the token may still settle."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            async with scene.another() as other:
                stream = other.storage.watch("p")
                async with aclosing(stream):
                    await anext(stream)
                    lease = await other.take("a", peer="p")
                await _stands(scene, lease)
            await _stands(scene, lease)
            assert list(await scene.renew(lease)) == [RenewReply.OK]
            assert await scene.end(lease) is JobState.SUCCEEDED

    @requires(Capability.DURABLE)
    async def test_a_restart_ends_no_lease(self) -> None:
        """The store is closed by everybody and opened again, long after the lease has lapsed."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            lease = await scene.take("a", lease=5.0)
            await scene.storage.stop()
            scene.clock.advance(3600)
            async with scene.another() as reopened:
                await _stands(reopened, lease)
                assert list(await reopened.renew(lease)) == [RenewReply.OK]
                assert (await reopened.sweep()).changes == ()
                assert await reopened.end(lease) is JobState.SUCCEEDED

    async def test_edits_end_no_lease(self) -> None:
        """Cancelling asks for it; the others are for jobs that wait or have ended, or for later."""
        async with self.scene() as scene:
            await scene.submit("a", lane="l", max_attempts=5)
            lease = await scene.take("a", lease=5.0)
            scene.clock.advance(10)
            refs = scene.refs("a")
            for edit in (
                Redrive(refs),
                Purge(refs),
                Retain(refs, 0.0),
                Reprioritise(refs, 7),
                Pause(("q",)),
                Drain(("q",)),
                Resume(("q",)),
                Configure((QueueSettings(queue="q", max_running=0),)),
                Configure((QueueSettings(queue="q"),)),
                Cancel(refs),
                Cancel(refs),
            ):
                await scene.storage.edit(edit)
                await _stands(scene, lease)
            assert list(await scene.renew(lease)) == [RenewReply.CANCEL]
            assert await scene.end(lease, Outcome.FAIL) is JobState.CANCELLED

    async def test_submissions_of_the_same_id_end_no_lease(self) -> None:
        """They are duplicates of the job that runs."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            lease = await scene.take("a", lease=5.0)
            scene.clock.advance(10)
            await scene.send(scene.job("a"), scene.job("a"))
            await scene.storage.restore([await scene.show("a", body=True)])
            await _stands(scene, lease)
            assert await scene.end(lease) is JobState.SUCCEEDED


__all__ = ["Leasehold"]
