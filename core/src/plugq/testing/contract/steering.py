"""Draining a queue, and what edits and sweeps say of the jobs that they changed."""

from __future__ import annotations

from plugq.job import JobRef, JobState, Outcome
from plugq.protocols.edits import (
    Cancel,
    EditReply,
    EditStatus,
    JobEdit,
    Purge,
    Redrive,
    Reprioritise,
    Retain,
)
from plugq.protocols.storage import SubmitStatus
from plugq.testing.contract.scene import Contract


class Steering(Contract):
    """What an operator does to whole queues, and is told of single jobs."""

    async def test_an_edit_means_one_job_of_an_id(self) -> None:
        """Not the one that came after it: neither a new generation nor one after a purge."""
        async with self.scene() as scene:
            await scene.bring("b", JobState.SUCCEEDED)
            purged = (await scene.show("b")).sequence
            await scene.purge("b")
            await scene.bring("b", JobState.FAILED)
            (former,) = await scene.submit("a")
            await scene.cancel("a")
            (again,) = await scene.submit("a")
            refs = (*scene.refs("a"), *scene.refs("b"))
            before = [await scene.show(id) for id in "ab"]
            stale = (former.sequence, purged)
            for edit in (
                Cancel(refs, sequences=stale),
                Redrive(refs, sequences=stale),
                Purge(refs, sequences=stale),
                Retain(refs, 5.0, sequences=stale),
                Reprioritise(refs, 9, sequences=stale),
            ):
                replies = await scene.storage.edit(edit)
                assert list(replies) == [EditReply(EditStatus.NOT_FOUND)] * 2
            assert [await scene.show(id) for id in "ab"] == before
            replies = await scene.storage.edit(Cancel(refs, sequences=(again.sequence, 0)))
            assert [reply.status for reply in replies] == [EditStatus.DONE, EditStatus.FINISHED]

    async def test_an_edit_means_jobs_in_some_states(self) -> None:
        """Those that have left them by then stay as they are."""
        async with self.scene() as scene:
            states = (JobState.FAILED, JobState.RUNNING, JobState.DELAYED, JobState.QUEUED)
            ids = tuple(map(str, states))
            for state in states:
                await scene.bring(str(state), state)
            refs = tuple(scene.refs(*ids))
            before = {id: await scene.show(id) for id in ids}
            other = (JobState.SUCCEEDED, JobState.CANCELLED)
            for edit in (
                Cancel(refs, states=other),
                Redrive(refs, states=other),
                Purge(refs, states=other),
                Retain(refs, 5.0, states=other),
                Reprioritise(refs, 9, states=other),
            ):
                replies = await scene.storage.edit(edit)
                assert list(replies) == [EditReply(EditStatus.NOT_FOUND)] * 4
            assert {id: await scene.show(id) for id in ids} == before
            waiting = (JobState.QUEUED, JobState.DELAYED)
            replies = await scene.storage.edit(Cancel(refs, states=waiting))
            assert [reply.status for reply in replies] == [
                EditStatus.NOT_FOUND,
                EditStatus.NOT_FOUND,
                EditStatus.DONE,
                EditStatus.DONE,
            ]
            assert not (await scene.show("running")).cancel_requested

    async def test_a_drained_queue_takes_nothing_new(self) -> None:
        """Nothing of the call is stored, also of its jobs for other queues."""
        async with self.scene() as scene:
            await scene.drain()
            replies = await scene.send(
                scene.job("a"), scene.job("b", delay=60.0), scene.job("c", queue="other")
            )
            assert replies[0].status is replies[1].status is SubmitStatus.DRAINING
            assert replies[2].status is SubmitStatus.REFUSED
            assert [await scene.look(id) for id in "ab"] == [None, None]
            assert await scene.look("c", "other") is None
            assert (await scene.send(scene.job("c", queue="other")))[0].status == "accepted"

    async def test_a_drained_queue_runs_what_it_has(self) -> None:
        """What waits, what falls due, what is retried, released or queued again."""
        async with self.scene() as scene:
            await scene.submit("waits", "released", "retried", max_attempts=3)
            await scene.submit("due", delay=10.0)
            await scene.bring("again", JobState.CANCELLED)
            await scene.drain()
            waits, released, retried = await scene.claim(10)
            await scene.end(waits)
            await scene.end(released, Outcome.RELEASE)
            await scene.end(retried, Outcome.RETRY, delay=10.0)
            assert (await scene.redrive("again")).status is EditStatus.DONE
            scene.clock.advance(10)
            leases = await scene.claim(10)
            assert {lease.id for lease in leases} == {"released", "retried", "due", "again"}
            for lease in leases:
                assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_a_drained_queue_answers_duplicates(self) -> None:
        """What it holds was stored, and whoever sends it again learns that."""
        async with self.scene() as scene:
            job = scene.job("a")
            await scene.send(job)
            await scene.bring("cancelled", JobState.CANCELLED)
            await scene.drain()
            same, other = await scene.send(job, scene.job("a"))
            assert (same.status, same.state) == (SubmitStatus.ACCEPTED, JobState.QUEUED)
            assert (other.status, other.state) == (SubmitStatus.DUPLICATE, JobState.QUEUED)
            (reply,) = await scene.send(scene.job("cancelled"))
            assert reply.status is SubmitStatus.DRAINING
            assert (await scene.show("cancelled")).generation == 0
            late = scene.job("late", not_after=scene.clock.time() - 1)
            assert (await scene.send(late))[0].status is SubmitStatus.LATE

    async def test_resuming_ends_a_drain_and_a_pause(self) -> None:
        """Either of them alone, or both; the one does not touch the other."""
        async with self.scene() as scene:
            await scene.submit("a")
            await scene.pause()
            await scene.drain()
            assert await scene.claimed_ids() == []
            (queue,) = (await scene.storage.stats()).queues
            assert (queue.paused, queue.draining) == (True, True)
            await scene.resume()
            (queue,) = (await scene.storage.stats()).queues
            assert (queue.paused, queue.draining) == (False, False)
            await scene.submit("b")
            assert await scene.claimed_ids() == ["a", "b"]
            await scene.drain()
            await scene.pause()
            assert (await scene.send(scene.job("c")))[0].status is SubmitStatus.DRAINING

    async def test_a_queue_is_drained_for_every_user_of_the_store(self) -> None:
        """Also one that nothing was said of before; other queues go on."""
        async with self.scene() as scene, scene.another() as other:
            await scene.drain("new")
            (reply,) = await other.send(other.job("a", queue="new"))
            assert reply.status is SubmitStatus.DRAINING
            await other.submit("a")

    async def test_an_edit_says_what_it_found(self) -> None:
        """Task, lane and batch of every job that is there, whatever became of the edit."""
        fields = {"task": "mine", "lane": "l", "batch": "x"}
        async with self.scene() as scene:
            for number, state in enumerate(JobState):
                ref = (JobRef("q", state),)
                await scene.bring(state, state, **{**fields, "lane": f"l{number}"})
                edits: tuple[JobEdit, ...] = (
                    Retain(ref, 900.0),
                    Reprioritise(ref, 1),
                    Redrive(ref),
                    Cancel(ref),
                    Purge(ref),
                )
                for edit in edits:
                    (reply,) = await scene.storage.edit(edit)
                    assert (reply.task, reply.lane, reply.batch) == ("mine", f"l{number}", "x")
            (reply,) = await scene.storage.edit(Cancel(scene.refs("unknown")))
            assert reply == EditReply(EditStatus.NOT_FOUND)

    async def test_a_sweep_says_what_it_moved(self) -> None:
        """Lane and batch of every job."""
        async with self.scene() as scene:
            await scene.bring("old", JobState.FAILED, lane="l4", failure_ttl=10.0, id_ttl=0.0)
            await scene.submit("lapsed", lane="l1", batch="x")
            await scene.take("lapsed", lease=10.0)
            await scene.submit("over", lane="l2", batch="y", deadline_in=10.0)
            await scene.submit("due", lane="l3", batch="z", delay=10.0)
            scene.clock.advance(10)
            changes = (await scene.sweep()).changes
            assert {change.id: (change.lane, change.batch) for change in changes} == {
                "lapsed": ("l1", "x"),
                "over": ("l2", "y"),
                "due": ("l3", "z"),
                "old": ("l4", None),
            }


__all__ = ["Steering"]
