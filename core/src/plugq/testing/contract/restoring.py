"""Whole jobs that were written elsewhere: as they are, and from then on as all others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import FINAL, AttemptRecord, JobRecord, JobState, Outcome, Progress
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import FindQuery, RenewReply, SubmitStatus
from plugq.testing.contract.scene import Contract
from plugq.testing.contract.snapshot import check_books, every_job, snapshot
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene


def _whole(scene: Scene, state: JobState, **fields: Any) -> JobRecord:
    """Return a job of that state with everything that one may have."""
    now = scene.clock.time()
    given: dict[str, Any] = {
        "queue": "q",
        "id": state,
        "task": "t",
        "state": state,
        "sequence": 1_000,
        "submission": b"s",
        "attempt": 2,
        "max_attempts": 9,
        "crashes": 1,
        "token": 77,
        "worker": "w-old",
        "submitted_at": now - 50,
        "ready_at": now + 60 if state is JobState.DELAYED else now - 40,
        "started_at": now - 30,
        "progress": Progress(current=1.0),
        "history": (AttemptRecord(attempt=1, code="crashed", worker="w-old"),),
        "body": b"payload",
    }
    if state in FINAL:
        given |= {"finished_at": now - 20, "expires_at": now + 500}
    else:
        given["deadline_at"] = now + 400
    if state is JobState.RUNNING:
        given |= {"lease_until": now + 30, "cancel_requested": True}
    if state is JobState.SUCCEEDED:
        given["result"] = b"42"
    return JobRecord(**{**given, **fields})


class Restoring(Contract):
    """``restore(records)``: nothing is added, nothing is left out, nothing is overwritten."""

    async def test_jobs_taken_from_one_store_are_the_same_in_another(self) -> None:
        """Of every state, with errors, progress and results, in their order."""
        async with self.scene() as old, self.scene() as new:
            for state in sorted(JobState):
                await old.bring(state, state, queue=state, lane=state, batch="b", body=b"x")
            await old.submit("again", queue="again", max_attempts=5, deadline_in=900.0)
            error = AttemptRecord(attempt=0, code="error", type="E", message="m")
            lease = await old.take("again", queues=("again",))
            await old.end(lease, Outcome.RETRY, error=error, progress=Progress(current=3.0))
            jobs = await every_job(old)
            assert len(jobs) == len(JobState) + 1
            await new.storage.restore(jobs)
            assert await every_job(new) == jobs
            assert await new.batch("b") == await old.batch("b")
            await check_books(new)

    async def test_an_id_that_exists_is_left_alone_in_every_state(self) -> None:
        """Whatever state the job has that is there, and whatever would be written over it."""
        async with self.scene() as scene:
            for state in sorted(JobState):
                await scene.bring(state, state, queue=state, body=b"mine")
            before = await snapshot(scene)
            for state in sorted(JobState):
                jobs = [_whole(scene, state, id=mine, queue=mine) for mine in sorted(JobState)]
                await scene.storage.restore(jobs)
                assert await snapshot(scene) == before, f"a {state} job overwrote another one"

    async def test_restoring_the_same_jobs_twice_is_restoring_them_once(self) -> None:
        """In one call or in two; the first of one id in a call counts."""
        async with self.scene() as scene:
            jobs = [
                _whole(scene, state, sequence=number, lane=state)
                for number, state in enumerate(sorted(JobState), 1_000)
            ]
            await scene.storage.restore(jobs)
            before = await snapshot(scene)
            await scene.storage.restore([*jobs, *jobs])
            assert await snapshot(scene) == before
            one, other = (
                _whole(scene, JobState.QUEUED, id="twice", sequence=number, body=b"%d" % number)
                for number in (1, 2)
            )
            await scene.storage.restore([one, other])
            assert (await scene.show("twice", body=True)).body == b"1"
            await check_books(scene)

    async def test_sequences_are_kept_where_they_are_free(self) -> None:
        """Else the job gets a new one; whatever is submitted later comes behind all of them."""
        async with self.scene() as scene:
            (taken,) = await scene.submit("taken")
            await scene.storage.restore(
                [
                    _whole(scene, JobState.QUEUED, id="free", sequence=500),
                    _whole(scene, JobState.QUEUED, id="clash", sequence=taken.sequence),
                ]
            )
            assert (await scene.show("free")).sequence == 500
            clash = (await scene.show("clash")).sequence
            assert clash not in {taken.sequence, 500}
            (later,) = await scene.submit("later")
            assert later.sequence > max(500, clash)
            found = (await scene.storage.find(FindQuery())).jobs
            sequences = [job.sequence for job in found]
            assert sequences == sorted(set(sequences), reverse=True)

    async def test_tokens_rise_above_those_restored(self) -> None:
        """However high these are (I5)."""
        async with self.scene() as scene:
            high = 2**60
            await scene.storage.restore(
                [
                    _whole(scene, JobState.SUCCEEDED, id="done", token=high),
                    _whole(scene, JobState.QUEUED, id="waits", token=high - 1),
                ]
            )
            first = await scene.take("waits")
            assert first.token > high
            await scene.submit("new")
            assert (await scene.take("new")).token > first.token

    async def test_a_restored_lease_is_a_lease(self) -> None:
        """It holds its lane, is renewed, settled by its token only, and ended by a sweep."""
        async with self.scene() as scene:
            job = _whole(scene, JobState.RUNNING, id="a", lane="l", cancel_requested=False)
            await scene.storage.restore([job])
            await scene.submit("behind", lane="l")
            assert await scene.claimed_ids() == []
            await scene.submit("model", queue="other")
            held = scene.relabel(
                await scene.take(queues=("other",)), queue="q", id="a", token=job.token
            )
            assert (await scene.settle(scene.relabel(held, token=job.token + 1))).lost
            assert list(await scene.renew(held, lease=50.0)) == [RenewReply.OK]
            scene.clock.advance(50)
            await scene.sweep()
            again = await scene.show("a")
            assert (again.state, again.crashes) == (JobState.QUEUED, 2)
            assert (await scene.settle(held)).lost
            current = await scene.take("a")
            assert current.attempt == 3
            assert await scene.end(current) is JobState.SUCCEEDED
            assert await scene.claimed_ids() == ["behind"]

    async def test_a_restored_job_whose_time_has_passed_is_treated_so(self) -> None:
        """A retention, a deadline and a due time hold at once, swept or not."""
        async with self.scene() as scene:
            now = scene.clock.time()
            await scene.storage.restore(
                [
                    _whole(scene, JobState.SUCCEEDED, id="expired", expires_at=now - 1),
                    _whole(scene, JobState.QUEUED, id="overdue", deadline_at=now - 1),
                    _whole(scene, JobState.DELAYED, id="due", ready_at=now - 1),
                ]
            )
            for _ in range(2):
                assert await scene.look("expired") is None
                assert await scene.state("overdue") is JobState.FAILED
                await scene.sweep()
            assert await scene.claimed_ids() == ["due"]
            await scene.settled_store()

    async def test_a_restored_submission_is_known_when_it_is_sent_again(self) -> None:
        """Accepted again, except for a cancelled job, which it does not revive."""
        async with self.scene() as scene:
            await scene.storage.restore(
                [
                    _whole(scene, state, sequence=number)
                    for number, state in enumerate(sorted(JobState), 1_000)
                ]
            )
            for state in sorted(JobState):
                (same,) = await scene.send(scene.job(state, submission=b"s"))
                cancelled = state is JobState.CANCELLED
                status = SubmitStatus.DUPLICATE if cancelled else SubmitStatus.ACCEPTED
                assert (same.status, same.state) == (status, state)
            (again,) = await scene.send(scene.job(JobState.CANCELLED))
            assert (again.status, again.generation) == (SubmitStatus.ACCEPTED, 1)
            await check_books(scene)

    @requires(Capability.PUSH_WAKEUPS)
    async def test_a_restored_job_wakes_an_idle_peer(self) -> None:
        """As any other that becomes ready."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.claim(1, peer="p")
            await scene.storage.restore([_whole(scene, JobState.QUEUED, id="a")])
            await ear.hears_wake()


__all__ = ["Restoring"]
