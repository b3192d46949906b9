"""Unique keys: who holds one, until when, and who is told of whom."""

from __future__ import annotations

import asyncio

from plugq.job import JobState, Outcome
from plugq.protocols.edits import EditStatus
from plugq.protocols.storage import SubmitStatus, UniqueKey, UniqueMode
from plugq.testing.contract.scene import Contract
from plugq.testing.levels import Level, level

_STARTED = UniqueKey(UniqueMode.UNTIL_STARTED, "k")
_FINISHED = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")
_THROTTLE = UniqueKey(UniqueMode.THROTTLE, "k", 60.0)


class Unique(Contract):
    """At most one job of a queue holds a key (I8)."""

    async def test_a_held_key_makes_a_duplicate_of_its_holder(self) -> None:
        """In every mode; the answer names the holder, and the other job is not stored."""
        async with self.scene() as scene:
            for number, unique in enumerate((_STARTED, _FINISHED, _THROTTLE)):
                queue = str(number)
                (holder,) = await scene.submit("holder", unique=unique, queue=queue)
                (reply,) = await scene.send(scene.job("other", unique=unique, queue=queue))
                assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "holder")
                assert (reply.state, reply.sequence, reply.generation) == (
                    JobState.QUEUED,
                    holder.sequence,
                    holder.generation,
                )
                assert await scene.look("other", queue) is None

    async def test_until_started_frees_the_key_at_the_first_claim(self) -> None:
        """And does not take it back for a later attempt."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_STARTED, max_attempts=5)
            lease = await scene.take("a")
            await scene.submit("b", unique=_STARTED)
            await scene.end(lease, Outcome.RETRY)
            (reply,) = await scene.send(scene.job("c", unique=_STARTED))
            assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "b")
            assert sorted(await scene.claimed_ids()) == ["a", "b"]

    async def test_until_started_frees_the_key_when_the_job_ends_unstarted(self) -> None:
        """Cancelled or past its deadline."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_STARTED)
            await scene.cancel("a")
            await scene.submit("b", unique=_STARTED, deadline_in=5.0)
            scene.clock.advance(5)
            await scene.sweep()
            await scene.submit("c", unique=_STARTED)

    async def test_until_finished_holds_the_key_through_every_attempt(self) -> None:
        """While it runs, waits for a retry, and runs again."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_FINISHED, max_attempts=5)
            other = scene.job("b", unique=_FINISHED)
            lease = await scene.take("a")
            assert (await scene.send(other))[0].state is JobState.RUNNING
            await scene.end(lease, Outcome.RETRY, delay=10.0)
            assert (await scene.send(other))[0].state is JobState.DELAYED
            scene.clock.advance(10)
            lease = await scene.take("a")
            assert (await scene.send(other))[0].id == "a"
            await scene.end(lease)
            assert (await scene.send(other))[0].status is SubmitStatus.ACCEPTED

    async def test_until_finished_frees_the_key_at_every_end(self) -> None:
        """Success, failure, skip, cancelling, crash and deadline."""
        async with self.scene() as scene:
            for number, outcome in enumerate((Outcome.SUCCEED, Outcome.FAIL, Outcome.SKIP)):
                await scene.submit(str(number), unique=_FINISHED)
                await scene.end(await scene.take(str(number)), outcome)
            await scene.submit("cancelled", unique=_FINISHED)
            await scene.cancel("cancelled")
            await scene.submit("crashed", unique=_FINISHED)
            await scene.take("crashed")
            await scene.lapse()
            await scene.submit("late", unique=_FINISHED, deadline_in=5.0)
            scene.clock.advance(5)
            await scene.sweep()
            await scene.submit("next", unique=_FINISHED)

    async def test_a_throttle_key_is_held_for_its_ttl_and_no_longer(self) -> None:
        """To the millisecond, whatever becomes of the job."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_THROTTLE)
            await scene.end(await scene.take("a"))
            other = scene.job("b", unique=_THROTTLE)
            scene.clock.advance(59.999)
            (reply,) = await scene.send(other)
            assert (reply.status, reply.id, reply.state) == (
                SubmitStatus.DUPLICATE,
                "a",
                JobState.SUCCEEDED,
            )
            scene.clock.advance(0.001)
            (reply,) = await scene.send(other)
            assert (reply.status, reply.id) == (SubmitStatus.ACCEPTED, "b")

    async def test_a_throttle_key_outlives_its_job(self) -> None:
        """The answer still names it, with the state in which it ended."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_THROTTLE)
            await scene.end(await scene.take("a"), Outcome.FAIL)
            await scene.purge("a")
            assert await scene.look("a") is None
            (reply,) = await scene.send(scene.job("b", unique=_THROTTLE))
            assert (reply.status, reply.id, reply.state) == (
                SubmitStatus.DUPLICATE,
                "a",
                JobState.FAILED,
            )

    async def test_a_throttle_key_survives_sweeps_until_its_time(self) -> None:
        """Housekeeping takes it only when it has passed."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_THROTTLE, result_ttl=0.0, id_ttl=1.0)
            await scene.end(await scene.take("a"))
            for _ in range(3):
                scene.clock.advance(15)
                await scene.sweep()
            assert await scene.look("a") is None
            (reply,) = await scene.send(scene.job("b", unique=_THROTTLE))
            assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "a")
            scene.clock.advance(15)
            await scene.sweep()
            await scene.submit("b", unique=_THROTTLE)

    async def test_keys_of_the_three_modes_are_one_key(self) -> None:
        """Whoever holds it holds it against all of them."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_FINISHED)
            for unique in (_STARTED, _THROTTLE):
                (reply,) = await scene.send(scene.job("b", unique=unique))
                assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "a")

    async def test_a_key_belongs_to_its_queue(self) -> None:
        """Another queue has keys of its own."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_FINISHED)
            await scene.submit("b", unique=_FINISHED, queue="other")

    async def test_another_key_is_another_key(self) -> None:
        """Jobs without one are not touched, nor are similar ones."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_FINISHED)
            for number, key in enumerate(("K", "k ", "", "k\x00", "kk")):
                await scene.submit(f"b{number}", unique=UniqueKey(UniqueMode.UNTIL_FINISHED, key))
            await scene.submit("c")

    async def test_the_id_is_judged_before_the_key(self) -> None:
        """A re-sent submission is accepted again although it holds the key itself."""
        async with self.scene() as scene:
            job = scene.job("a", unique=_FINISHED)
            await scene.send(job)
            assert (await scene.send(job))[0].status is SubmitStatus.ACCEPTED
            await scene.submit("b")
            (reply,) = await scene.send(scene.job("b", unique=_FINISHED))
            assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "b")

    async def test_keys_are_judged_within_a_call(self) -> None:
        """The first of a call takes the key, the second is its duplicate."""
        async with self.scene() as scene:
            replies = await scene.send(
                scene.job("a", unique=_FINISHED), scene.job("b", unique=_FINISHED)
            )
            assert [(reply.status, reply.id) for reply in replies] == [
                (SubmitStatus.ACCEPTED, "a"),
                (SubmitStatus.DUPLICATE, "a"),
            ]

    @level(Level.CONCURRENCY)
    async def test_concurrent_submissions_of_one_key_accept_one(self) -> None:
        """All the others name it."""
        async with self.scene() as scene, scene.another() as other:
            calls = [
                (scene if number % 2 else other).send(scene.job(str(number), unique=_FINISHED))
                for number in range(20)
            ]
            replies = [reply for (reply,) in await asyncio.gather(*calls)]
            accepted = [reply for reply in replies if reply.status is SubmitStatus.ACCEPTED]
            assert len(accepted) == 1
            assert {reply.id for reply in replies} == {accepted[0].id}
            assert await scene.total("accepted") == 1

    async def test_a_redrive_takes_the_key_again(self) -> None:
        """From then on others are duplicates of it."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_FINISHED)
            await scene.end(await scene.take("a"), Outcome.FAIL)
            await scene.redrive("a")
            (reply,) = await scene.send(scene.job("b", unique=_FINISHED))
            assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "a")

    async def test_a_redrive_conflicts_if_another_job_holds_the_key(self) -> None:
        """It stays as it was, until the other one has ended."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_FINISHED)
            await scene.end(await scene.take("a"), Outcome.FAIL)
            await scene.submit("b", unique=_FINISHED)
            reply = await scene.redrive("a")
            assert (reply.status, reply.state) == (EditStatus.CONFLICT, JobState.FAILED)
            await scene.end(await scene.take("b"))
            assert (await scene.redrive("a")).status is EditStatus.DONE

    async def test_a_redrive_holds_a_throttle_key_for_its_ttl_again(self) -> None:
        """To the moment, as when the job was new; and not while another job holds it."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_THROTTLE)
            await scene.end(await scene.take("a"), Outcome.FAIL)
            scene.clock.advance(60)
            await scene.submit("b", unique=_THROTTLE)
            scene.clock.advance(59)
            assert (await scene.redrive("a")).status is EditStatus.CONFLICT
            scene.clock.advance(1)
            assert (await scene.redrive("a")).status is EditStatus.DONE
            scene.clock.advance(59)
            (reply,) = await scene.send(scene.job("c", unique=_THROTTLE))
            assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "a")
            scene.clock.advance(1)
            await scene.submit("c", unique=_THROTTLE)

    async def test_a_redriven_key_is_freed_at_the_next_claim_if_that_is_its_mode(self) -> None:
        """A key that is held until its job starts is held until it starts again."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_STARTED)
            await scene.end(await scene.take("a"), Outcome.FAIL)
            await scene.redrive("a")
            (reply,) = await scene.send(scene.job("b", unique=_STARTED))
            assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "a")
            await scene.take("a")
            await scene.submit("b", unique=_STARTED)

    async def test_a_key_is_not_freed_by_the_end_of_a_job_that_lost_it(self) -> None:
        """What started before does not take the key from the one that holds it now."""
        async with self.scene() as scene:
            await scene.submit("a", unique=_STARTED)
            lease = await scene.take("a")
            await scene.submit("b", unique=_STARTED)
            await scene.end(lease)
            (reply,) = await scene.send(scene.job("c", unique=_STARTED))
            assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "b")


__all__ = ["Unique"]
