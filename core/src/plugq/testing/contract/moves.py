"""The life of a job: every move of the table, illegal moves, cancelling and redriving."""

from __future__ import annotations

from plugq.job import (
    FINAL,
    TRANSITIONS,
    WAITING,
    AttemptRecord,
    Event,
    JobState,
    Outcome,
    allowed,
)
from plugq.protocols.edits import EditStatus
from plugq.protocols.storage import SubmitStatus
from plugq.testing.contract.scene import Contract, Scene

_OUTCOMES = {
    Event.SUCCEED: Outcome.SUCCEED,
    Event.RETRY: Outcome.RETRY,
    Event.FAIL: Outcome.FAIL,
    Event.SNOOZE: Outcome.SNOOZE,
    Event.SKIP: Outcome.SKIP,
    Event.RELEASE: Outcome.RELEASE,
}

_ERROR = AttemptRecord(attempt=0, code="error", type="ValueError", message="no luck")


async def _move(scene: Scene, id: str, event: Event) -> JobState | None:
    """Make an event happen to a job that :meth:`Scene.bring` brought, and return its state."""
    if event is Event.SUBMIT:
        await scene.submit(id)
    elif event is Event.DUE:
        scene.clock.advance(3600)
        await scene.sweep(end_leases=False)
    elif event is Event.CLAIM:
        await scene.take(id)
    elif event is Event.LAPSE:
        await scene.lapse()
    elif event is Event.CANCEL:
        await scene.cancel(id)
    elif event is Event.DEADLINE:
        scene.clock.advance(3000)
        await scene.sweep(deadline_grace=0)
    elif event is Event.REDRIVE:
        await scene.redrive(id)
    elif event is Event.REMOVE:
        await scene.purge(id)
    else:
        await scene.end(scene.leases[id], _OUTCOMES[event], delay=5.0)
    job = await scene.look(id)
    return None if job is None else job.state


class Moves(Contract):
    """What happens to one job."""

    async def test_every_legal_move_leads_where_the_table_says(self) -> None:
        """Each row of ``TRANSITIONS`` happens and ends in one of its states."""
        async with self.scene() as scene:
            for number, ((state, event), after) in enumerate(TRANSITIONS.items()):
                id = f"job-{number}"
                if state is not None:
                    fields = {"deadline_in": 3000.0} if event is Event.DEADLINE else {}
                    scene.remember(id, await scene.bring(id, state, **fields))
                reached = await _move(scene, id, event)
                assert reached in after, f"{event} took a job from {state} to {reached}"
                await scene.clear()
            await scene.settled_store()

    async def test_a_settlement_is_refused_in_every_state_but_running(self) -> None:
        """A token settles only the job that runs under it (I4)."""
        async with self.scene() as scene:
            for state in sorted(FINAL | WAITING):
                await scene.submit(state)
                lease = await scene.take(state)
                if state is JobState.QUEUED:
                    await scene.end(lease, Outcome.RELEASE)
                elif state is JobState.DELAYED:
                    await scene.end(lease, Outcome.SNOOZE, delay=3600.0)
                elif state is JobState.CANCELLED:
                    await scene.cancel(state)
                    await scene.end(lease, Outcome.FAIL)
                else:
                    ends = {
                        JobState.SUCCEEDED: Outcome.SUCCEED,
                        JobState.FAILED: Outcome.FAIL,
                        JobState.SKIPPED: Outcome.SKIP,
                    }
                    await scene.end(lease, ends[state])
                for outcome in Outcome:
                    reply = await scene.settle(lease, outcome)
                    assert reply.lost, f"{outcome} was taken in state {state}"
                    assert reply.state is None
                assert await scene.state(state) is state
                await scene.clear()

    async def test_final_jobs_are_never_claimed(self) -> None:
        """What has ended does not run again by itself."""
        async with self.scene() as scene:
            for state in sorted(FINAL):
                await scene.bring(state, state)
            assert await scene.claimed_ids() == []

    async def test_cancelling_a_final_job_changes_nothing(self) -> None:
        """The answer is ``finished`` and the state it has."""
        async with self.scene() as scene:
            for state in sorted(FINAL):
                await scene.bring(state, state)
                reply = await scene.cancel(state)
                assert (reply.status, reply.state) == (EditStatus.FINISHED, state)
                assert await scene.state(state) is state

    async def test_redriving_is_refused_unless_failed_cancelled_or_skipped(self) -> None:
        """The answer is ``conflict`` and the job stays."""
        async with self.scene() as scene:
            for state in sorted(JobState):
                if allowed(state, Event.REDRIVE):
                    continue
                await scene.bring(state, state)
                reply = await scene.redrive(state)
                assert (reply.status, reply.state) == (EditStatus.CONFLICT, state)
                assert await scene.state(state) is state
                await scene.clear()

    async def test_purging_is_refused_unless_final(self) -> None:
        """The answer is ``conflict`` and the job stays."""
        async with self.scene() as scene:
            for state in sorted(set(JobState) - FINAL):
                await scene.bring(state, state)
                reply = await scene.purge(state)
                assert (reply.status, reply.state) == (EditStatus.CONFLICT, state)
                assert await scene.state(state) is state
                await scene.clear()

    async def test_a_job_submitted_without_a_delay_is_queued(self) -> None:
        """It is shown as it was submitted."""
        async with self.scene() as scene:
            job = scene.job("a", body=b"payload", priority=7, lane="l", batch="b", max_attempts=3)
            (reply,) = await scene.send(job)
            assert (reply.status, reply.id, reply.state) == (
                SubmitStatus.ACCEPTED,
                "a",
                JobState.QUEUED,
            )
            shown = await scene.show("a", body=True)
            assert (shown.queue, shown.id, shown.task, shown.state) == ("q", "a", "t", "queued")
            assert (shown.priority, shown.lane, shown.batch) == (7, "l", "b")
            assert (shown.attempt, shown.max_attempts, shown.crashes) == (0, 3, 0)
            assert (shown.sequence, shown.generation) == (reply.sequence, reply.generation)
            assert shown.submission == job.submission
            assert shown.body == b"payload"
            assert shown.submitted_at == shown.ready_at == scene.clock.time()
            assert shown.started_at is shown.finished_at is shown.expires_at is None
            assert shown.deadline_at is shown.lease_until is None
            assert shown.history == ()
            assert not shown.cancel_requested

    async def test_a_delayed_job_waits_for_its_time_to_the_millisecond(self) -> None:
        """It can be claimed from its ready time on, without a sweep."""
        async with self.scene() as scene:
            (reply,) = await scene.submit("a", delay=10.0)
            assert reply.state is JobState.DELAYED
            scene.clock.advance(9.999)
            assert await scene.claimed_ids() == []
            assert await scene.state("a") is JobState.DELAYED
            scene.clock.advance(0.001)
            assert await scene.claimed_ids() == ["a"]

    async def test_run_at_is_an_absolute_time(self) -> None:
        """A job is ready at ``run_at``; one that has passed counts as now."""
        async with self.scene() as scene:
            now = scene.clock.time()
            await scene.submit("later", run_at=now + 60)
            await scene.submit("past", run_at=now - 60)
            assert await scene.state("later") is JobState.DELAYED
            past = await scene.show("past")
            assert (past.state, past.ready_at) == (JobState.QUEUED, now)
            scene.clock.advance(60)
            assert await scene.claimed_ids() == ["past", "later"]

    async def test_a_sweep_queues_what_is_due(self) -> None:
        """The move is reported, and not twice."""
        async with self.scene() as scene:
            await scene.submit("a", delay=10.0)
            scene.clock.advance(10)
            changes = (await scene.sweep()).changes
            assert [(change.id, change.event, change.state) for change in changes] == [
                ("a", Event.DUE, JobState.QUEUED)
            ]
            assert await scene.state("a") is JobState.QUEUED
            assert (await scene.sweep()).changes == ()

    async def test_a_claim_starts_an_attempt(self) -> None:
        """The lease carries all that running the job takes; the job shows who runs it."""
        async with self.scene() as scene:
            (accepted,) = await scene.submit(
                "a", body=b"payload", priority=3, lane="l", batch="b", max_attempts=2
            )
            submitted_at = scene.clock.time()
            scene.clock.advance(5)
            lease = await scene.take("a", worker="w-7", lease=20.0)
            now = scene.clock.time()
            assert (lease.queue, lease.id, lease.task, lease.body) == ("q", "a", "t", b"payload")
            assert (lease.attempt, lease.max_attempts, lease.crashes) == (1, 2, 0)
            assert (lease.priority, lease.lane, lease.batch) == (3, "l", "b")
            assert (lease.sequence, lease.generation) == (accepted.sequence, accepted.generation)
            assert (lease.submitted_at, lease.started_at) == (submitted_at, now)
            assert (lease.deadline_in, lease.unknown, lease.unknown_for) == (None, 0, 0.0)
            job = await scene.show("a")
            assert (job.state, job.attempt, job.worker) == (JobState.RUNNING, 1, "w-7")
            assert (job.token, job.started_at, job.lease_until) == (lease.token, now, now + 20)

    async def test_cancelling_a_waiting_job_ends_it_at_once(self) -> None:
        """Queued and delayed jobs never run after it."""
        async with self.scene() as scene:
            await scene.submit("queued")
            await scene.submit("delayed", delay=5.0)
            for id in ("queued", "delayed"):
                reply = await scene.cancel(id)
                assert (reply.status, reply.state) == (EditStatus.DONE, JobState.CANCELLED)
                job = await scene.show(id)
                assert (job.state, job.finished_at) == ("cancelled", scene.clock.time())
            scene.clock.advance(10)
            assert await scene.claimed_ids() == []

    async def test_cancelling_a_running_job_asks_for_it(self) -> None:
        """It runs on until its holder settles it."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take()
            reply = await scene.cancel("a")
            assert (reply.status, reply.state) == (EditStatus.REQUESTED, JobState.RUNNING)
            job = await scene.show("a")
            assert (job.state, job.cancel_requested) == (JobState.RUNNING, True)
            assert await scene.end(lease, Outcome.FAIL) is JobState.CANCELLED

    async def test_a_redriven_job_starts_anew_and_keeps_its_history(self) -> None:
        """Attempts and crashes are given back; what was asked of the former run is forgotten."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=2, deadline_in=100.0)
            await scene.end(await scene.take(), Outcome.RETRY, error=_ERROR)
            lease = await scene.take()
            await scene.cancel("a")
            await scene.end(lease, Outcome.FAIL, error=_ERROR)
            scene.clock.advance(200)
            reply = await scene.redrive("a")
            assert (reply.status, reply.state) == (EditStatus.DONE, JobState.QUEUED)
            job = await scene.show("a")
            assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 0, 0)
            assert (job.cancel_requested, job.deadline_at) == (False, None)
            assert (job.finished_at, job.expires_at, job.code) == (None, None, "")
            assert job.ready_at == scene.clock.time()
            assert [kept.attempt for kept in job.history] == [1, 2]
            again = await scene.take("a")
            assert again.attempt == 1
            assert again.token > lease.token
            assert await scene.end(again) is JobState.SUCCEEDED

    async def test_a_redriven_job_may_crash_as_often_as_a_new_one(self) -> None:
        """I7: the crashes of its former life do not end it."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=10)
            for _ in range(2):
                for crash in range(3):
                    assert (await scene.take("a")).crashes == crash
                    await scene.lapse(max_crashes=3)
                job = await scene.show("a")
                assert (job.state, job.code, job.crashes) == (JobState.FAILED, "crashed", 3)
                await scene.redrive("a")
                job = await scene.show("a")
                assert (job.crashes, job.code) == (0, "")

    async def test_failed_cancelled_and_skipped_jobs_can_be_redriven(self) -> None:
        """Each runs again."""
        async with self.scene() as scene:
            states = sorted(state for state in JobState if allowed(state, Event.REDRIVE))
            for state in states:
                await scene.bring(state, state)
            for state in states:
                assert (await scene.redrive(state)).status is EditStatus.DONE
            assert sorted(await scene.claimed_ids()) == states


__all__ = ["Moves"]
