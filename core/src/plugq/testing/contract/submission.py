"""Submitting: duplicates, generations, re-sent submissions, refusals and the length of a queue."""

from __future__ import annotations

import asyncio
import math

import msgspec

from plugq.errors import InvalidJob
from plugq.job import WAITING, JobState, Outcome
from plugq.protocols.storage import SubmitStatus, UniqueKey, UniqueMode
from plugq.testing.contract.scene import STATES, Contract
from plugq.testing.levels import Level, level

_ACCEPTED = SubmitStatus.ACCEPTED
_DUPLICATE = SubmitStatus.DUPLICATE
_FULL = SubmitStatus.FULL
_REFUSED = SubmitStatus.REFUSED
_LATE = SubmitStatus.LATE


class Submission(Contract):
    """What becomes of a submission."""

    async def test_an_id_that_the_queue_has_is_a_duplicate_in_every_state_but_cancelled(
        self,
    ) -> None:
        """The answer shows the job that stands, which stays as it was (I8)."""
        async with self.scene() as scene:
            for state in STATES:
                if state is JobState.CANCELLED:
                    continue
                await scene.bring(state, state, body=b"first")
                before = await scene.show(state, body=True)
                (reply,) = await scene.send(scene.job(state, body=b"second", priority=5))
                assert (reply.status, reply.id, reply.state) == (_DUPLICATE, state, state)
                assert (reply.sequence, reply.generation) == (before.sequence, 0)
                assert await scene.show(state, body=True) == before

    async def test_a_cancelled_id_is_accepted_as_a_new_generation(self) -> None:
        """It is a new job in everything but its id."""
        async with self.scene() as scene:
            (first,) = await scene.submit("a", body=b"first")
            await scene.cancel("a")
            (second,) = await scene.submit("a", body=b"second", task="other")
            assert (first.generation, second.generation) == (0, 1)
            assert second.sequence > first.sequence
            job = await scene.show("a", body=True)
            assert (job.state, job.body, job.task) == (JobState.QUEUED, b"second", "other")
            lease = await scene.take("a")
            assert (lease.generation, lease.attempt, lease.body) == (1, 1, b"second")
            await scene.cancel("a")
            await scene.end(lease)
            assert (await scene.show("a")).generation == 1

    async def test_generations_go_on_counting(self) -> None:
        """Each re-submission of a cancelled id counts one more; only one job remains."""
        async with self.scene() as scene:
            for generation in range(4):
                (reply,) = await scene.submit("a")
                assert reply.generation == generation
                await scene.cancel("a")
            assert await scene.total("accepted") == 4
            assert await scene.total("removed") == 3
            await scene.settled_store()

    async def test_the_same_submission_again_is_accepted_again(self) -> None:
        """Re-sending after a lost reply is safe in every state, and stores nothing twice (I15)."""
        async with self.scene() as scene:
            for state in STATES:
                if state is JobState.CANCELLED:
                    continue
                job = scene.job(state, delay=3600.0 if state is JobState.DELAYED else 0.0)
                (first,) = await scene.send(job)
                assert first.status is _ACCEPTED
                if state not in WAITING:
                    await scene.advance_to(await scene.take(state), state)
                (again,) = await scene.send(job)
                assert again.status is _ACCEPTED
                assert (again.id, again.state, again.sequence, again.generation) == (
                    state,
                    state,
                    first.sequence,
                    first.generation,
                )
            assert await scene.total("accepted") == len(JobState) - 1

    async def test_the_same_submission_of_a_cancelled_job_opens_no_generation(self) -> None:
        """It is a duplicate, state cancelled: cancelling can not be undone by a late re-sending."""
        async with self.scene() as scene:
            job = scene.job("a")
            await scene.send(job)
            await scene.cancel("a")
            (again,) = await scene.send(job)
            assert (again.status, again.state) == (_DUPLICATE, JobState.CANCELLED)
            assert await scene.claimed_ids() == []

    async def test_one_id_in_two_queues_is_two_jobs(self) -> None:
        """A job's identity is (queue, id)."""
        async with self.scene() as scene:
            await scene.submit("a", body=b"1")
            await scene.submit("a", body=b"2", queue="other")
            await scene.cancel("a")
            assert await scene.state("a") is JobState.CANCELLED
            assert await scene.state("a", "other") is JobState.QUEUED
            assert (await scene.take("a", queues=("other",))).body == b"2"

    async def test_duplicates_within_one_call_are_judged_one_after_the_other(self) -> None:
        """The first wins."""
        async with self.scene() as scene:
            job = scene.job("a", body=b"first")
            replies = await scene.send(job, scene.job("a", body=b"second"), job, scene.job("b"))
            assert [reply.status for reply in replies] == [
                _ACCEPTED,
                _DUPLICATE,
                _ACCEPTED,
                _ACCEPTED,
            ]
            assert [reply.id for reply in replies] == ["a", "a", "a", "b"]
            assert (await scene.show("a", body=True)).body == b"first"
            assert await scene.claimed_ids() == ["a", "b"]

    async def test_sequences_rise_in_the_order_given(self) -> None:
        """Within a call, from call to call and across queues."""
        async with self.scene() as scene:
            sequences = []
            for ids in (("c", "a", "b"), ("z", "y")):
                sequences += [reply.sequence for reply in await scene.submit(*ids)]
            sequences += [reply.sequence for reply in await scene.submit("k", queue="other")]
            assert sequences == sorted(set(sequences))
            assert sequences[0] > 0

    async def test_an_empty_call_does_nothing(self) -> None:
        """No jobs, no answers."""
        async with self.scene() as scene:
            assert list(await scene.send()) == []

    @level(Level.CONCURRENCY)
    async def test_concurrent_submissions_of_one_id_accept_one(self) -> None:
        """All the others are duplicates of it (I8)."""
        async with self.scene() as scene, scene.another() as other:
            calls = [
                (scene if number % 2 else other).send(scene.job("a", body=b"%d" % number))
                for number in range(20)
            ]
            replies = [reply for (reply,) in await asyncio.gather(*calls)]
            accepted = [number for number, reply in enumerate(replies) if reply.status == _ACCEPTED]
            assert len(accepted) == 1
            assert {reply.status for reply in replies} == {_ACCEPTED, _DUPLICATE}
            assert len({reply.sequence for reply in replies}) == 1
            assert (await scene.show("a", body=True)).body == b"%d" % accepted[0]

    @level(Level.CONCURRENCY)
    async def test_concurrent_re_sendings_of_one_submission_store_one_job(self) -> None:
        """Each is told that it was accepted."""
        async with self.scene() as scene:
            job = scene.job("a")
            replies = await asyncio.gather(*(scene.send(job) for _ in range(10)))
            assert {reply.status for (reply,) in replies} == {_ACCEPTED}
            assert await scene.total("accepted") == 1
            assert await scene.claimed_ids() == ["a"]

    async def test_a_submission_is_late_once_its_not_after_has_passed(self) -> None:
        """Nothing is stored then; exactly at the time it is still accepted."""
        async with self.scene() as scene:
            limit = scene.clock.time() + 10
            scene.clock.advance(10)
            await scene.submit("on-time", not_after=limit)
            scene.clock.advance(0.001)
            (reply,) = await scene.send(scene.job("late", not_after=limit))
            assert (reply.status, reply.id) == (_LATE, "late")
            assert await scene.look("late") is None

    async def test_a_duplicate_is_a_duplicate_even_if_it_is_late(self) -> None:
        """The id is judged before the time, so that re-sending a tick stays safe."""
        async with self.scene() as scene:
            job = scene.job("a", not_after=scene.clock.time() + 1)
            await scene.send(job)
            scene.clock.advance(5)
            (again,) = await scene.send(job)
            assert again.status is _ACCEPTED
            (other,) = await scene.send(msgspec.structs.replace(job, submission=b"another"))
            assert other.status is _DUPLICATE

    async def test_a_full_queue_refuses_the_whole_call(self) -> None:
        """Nothing of it is stored, in no queue; only the jobs of that queue are answered full."""
        async with self.scene() as scene:
            await scene.configure(max_length=3)
            await scene.submit("a", "b")
            replies = await scene.send(
                scene.job("a"),
                scene.job("c"),
                scene.job("free", queue="other"),
                scene.job("d"),
            )
            assert [reply.status for reply in replies] == [_DUPLICATE, _FULL, _REFUSED, _FULL]
            assert await scene.look("c") is await scene.look("d") is None
            assert await scene.look("free", "other") is None
            await scene.submit("c")
            assert [reply.status for reply in await scene.send(scene.job("d"))] == [_FULL]
            assert await scene.total("accepted") == 3

    async def test_the_length_of_a_queue_counts_what_waits(self) -> None:
        """Delayed and queued jobs count, running and final ones do not."""
        async with self.scene() as scene:
            await scene.configure(max_length=2)
            await scene.submit("a")
            await scene.submit("b", delay=60.0)
            assert [reply.status for reply in await scene.send(scene.job("c"))] == [_FULL]
            lease = await scene.take("a")
            await scene.submit("c")
            await scene.end(lease)
            assert [reply.status for reply in await scene.send(scene.job("d"))] == [_FULL]
            await scene.cancel("b")
            await scene.submit("d")

    async def test_the_length_of_a_queue_does_not_refuse_duplicates(self) -> None:
        """They add nothing."""
        async with self.scene() as scene:
            await scene.configure(max_length=1)
            job = scene.job("a")
            await scene.send(job)
            replies = await scene.send(job, scene.job("a"))
            assert [reply.status for reply in replies] == [_ACCEPTED, _DUPLICATE]

    async def test_the_length_of_a_queue_is_that_queues_own(self) -> None:
        """Without a limit a queue takes whatever comes."""
        async with self.scene() as scene:
            await scene.configure(max_length=1)
            await scene.submit(*(str(number) for number in range(50)), queue="other")
            await scene.submit("a")
            await scene.configure(max_length=None)
            await scene.submit("b", "c")

    async def test_a_deadline_may_be_absolute_or_relative(self) -> None:
        """Both are shown as a time."""
        async with self.scene() as scene:
            now = scene.clock.time()
            await scene.submit("relative", deadline_in=30.0)
            await scene.submit("absolute", deadline_at=now + 40)
            assert (await scene.show("relative")).deadline_at == now + 30
            assert (await scene.show("absolute")).deadline_at == now + 40

    async def test_a_time_that_is_no_number_is_refused(self) -> None:
        """NaN is never on time; the call stores nothing, and a settlement ends nothing."""
        async with self.scene() as scene:
            nan = math.nan
            names = ("delay", "run_at", "deadline_in", "deadline_at", "not_after")
            wrong = [
                scene.job("wrong", **{name: nan})
                for name in (*names, "result_ttl", "failure_ttl", "id_ttl")
            ]
            key = UniqueKey(UniqueMode.THROTTLE, "k", nan)
            for job in (*wrong, scene.job("wrong", unique=key)):
                try:
                    await scene.send(scene.job("right"), job)
                except InvalidJob:
                    continue
                message = f"{job} was taken"
                raise AssertionError(message)
            assert await scene.look("right") is await scene.look("wrong") is None
            await scene.submit("a", max_attempts=2)
            lease = await scene.take("a")
            for name in ("delay", "at"):
                try:
                    await scene.end(lease, Outcome.RETRY, **{name: nan})
                except InvalidJob:
                    continue
                message = f"a settlement with {name}=NaN was taken"
                raise AssertionError(message)
            assert await scene.end(lease) is JobState.SUCCEEDED


__all__ = ["Submission"]
