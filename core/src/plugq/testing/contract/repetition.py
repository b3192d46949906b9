"""Claims that are asked again, between other claims of their worker and after them."""

from __future__ import annotations

from plugq.job import JobState, Outcome
from plugq.protocols.storage import Holder
from plugq.testing.contract.scene import Contract


class Repetition(Contract):
    """A lost reply leases jobs to nobody, however many claims its worker has under way."""

    async def test_an_earlier_claim_can_be_repeated_after_later_ones(self) -> None:
        """Replies are lost in any order, and each claim is given its own leases again."""
        async with self.scene() as scene:
            await scene.submit(*"abcdefgh")
            requests = [scene.request(2) for _ in range(3)]
            first = [(await scene.storage.claim(request)).leases for request in requests]
            assert [[lease.id for lease in leases] for leases in first] == [
                ["a", "b"],
                ["c", "d"],
                ["e", "f"],
            ]
            for at in (0, 2, 1, 0):
                assert (await scene.storage.claim(requests[at])).leases == first[at]
            assert await scene.count(JobState.RUNNING) == 6

    async def test_a_repeated_claim_gives_whole_leases(self) -> None:
        """With all that the first reply said of a job that has been through much."""
        async with self.scene() as scene:
            await scene.submit("a")
            await scene.cancel("a")
            await scene.submit(
                "a",
                task="other",
                body=b"body",
                priority=7,
                lane="l",
                batch="x",
                max_attempts=9,
                deadline_in=500.0,
            )
            await scene.take("a")
            await scene.lapse()
            await scene.end(await scene.take("a"), Outcome.RELEASE, code="unknown_task")
            scene.clock.advance(5)
            request = scene.request(1)
            (lease,) = (await scene.storage.claim(request)).leases
            assert (lease.task, lease.body, lease.priority) == ("other", b"body", 7)
            assert (lease.lane, lease.batch, lease.generation) == ("l", "x", 1)
            assert (lease.attempt, lease.max_attempts, lease.crashes) == (2, 9, 1)
            assert (lease.unknown, lease.unknown_for, lease.deadline_in) == (1, 5.0, 465.0)
            assert (await scene.storage.claim(request)).leases == (lease,)
            scene.clock.advance(3)
            (again,) = (await scene.storage.claim(request)).leases
            assert (again.token, again.started_at) == (lease.token, lease.started_at)
            assert (again.unknown_for, again.deadline_in) == (8.0, 462.0)

    async def test_a_claim_that_was_overtaken_can_be_repeated(self) -> None:
        """The later one of smaller number is remembered beside the first."""
        async with self.scene() as scene:
            await scene.submit(*"abcd")
            low, high = scene.request(1), scene.request(1)
            first = (await scene.storage.claim(high)).leases
            second = (await scene.storage.claim(low)).leases
            assert [lease.id for lease in first + second] == ["a", "b"]
            assert (await scene.storage.claim(low)).leases == second
            assert (await scene.storage.claim(high)).leases == first
            assert await scene.count(JobState.RUNNING) == 2

    async def test_a_claim_whose_leases_are_renewed_can_be_repeated_for_as_long(self) -> None:
        """However long ago it was made, and though sweeps and other claims came between."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", max_attempts=5)
            request = scene.request(1, lease=10.0)
            (lease,) = (await scene.storage.claim(request)).leases
            for _ in range(12):
                scene.clock.advance(9)
                await scene.renew(lease, lease=10.0)
                await scene.sweep()
                assert await scene.claimed_ids(1, queues=("empty",)) == []
            await scene.take("b", worker="other")
            again = (await scene.storage.claim(request)).leases
            assert [(held.id, held.token) for held in again] == [("a", lease.token)]
            assert await scene.count(JobState.QUEUED) == 1

    async def test_a_settled_claim_stays_one_while_an_earlier_is_forgotten(self) -> None:
        """Within its lease it is granted nothing new, whatever has become of those before it."""
        async with self.scene() as scene:
            await scene.submit(*"abcd")
            await scene.end(await scene.take("a", lease=10.0))
            scene.clock.advance(15)
            request = scene.request(1, lease=10.0)
            (lease,) = (await scene.storage.claim(request)).leases
            await scene.end(lease)
            scene.clock.advance(6)
            await scene.sweep()
            await scene.take("c", worker="other")
            assert (await scene.storage.claim(request)).leases == ()
            assert await scene.state("d") is JobState.QUEUED

    async def test_a_shorter_lease_shortens_no_memory_of_an_earlier_claim(self) -> None:
        """Each claim is remembered for as long as its own leases may last."""
        async with self.scene() as scene:
            await scene.submit(*"abc")
            request = scene.request(1, lease=100.0)
            (lease,) = (await scene.storage.claim(request)).leases
            await scene.end(lease)
            await scene.end(await scene.take("b", lease=1.0))
            scene.clock.advance(50)
            await scene.sweep()
            assert (await scene.storage.claim(request)).leases == ()
            assert await scene.state("c") is JobState.QUEUED

    async def test_a_holder_gives_back_what_any_earlier_claim_was_granted(self) -> None:
        """Whoever has acknowledged a claim has received those before it, or never will."""
        async with self.scene() as scene:
            await scene.submit(*"abc")
            await scene.take("a")
            await scene.take("b")
            request = scene.request(1)
            (held,) = (await scene.storage.claim(request)).leases
            await scene.renew(held, holder=Holder("w", request.number))
            assert await scene.state("c") is JobState.RUNNING
            leases = await scene.claim(5, worker="other")
            assert [(lease.id, lease.attempt) for lease in leases] == [("a", 1), ("b", 1)]

    async def test_what_a_holder_gives_back_keeps_its_place_and_its_crashes(self) -> None:
        """I7 and I10: it is as if the claim had never been made."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=9)
            scene.clock.advance(1)
            await scene.submit("b")
            await scene.take("a")
            await scene.lapse()
            before = await scene.show("a")
            request = scene.request(1)
            await scene.storage.claim(request)
            scene.clock.advance(1)
            await scene.renew(holder=Holder("w", request.number))
            given = await scene.show("a")
            assert (given.state, given.attempt, given.crashes) == (JobState.QUEUED, 1, 1)
            assert given.ready_at == before.ready_at
            assert await scene.claimed_ids() == ["a", "b"]

    async def test_an_attempt_is_given_back_to_a_job_that_ends_cancelled_too(self) -> None:
        """By a release, by a snooze and by a holder that never received it."""
        async with self.scene() as scene:
            for outcome in (Outcome.RELEASE, Outcome.SNOOZE, None):
                await scene.submit("a")
                request = scene.request(1)
                (lease,) = (await scene.storage.claim(request)).leases
                await scene.cancel("a")
                if outcome is None:
                    await scene.renew(holder=Holder("w", request.number))
                else:
                    await scene.end(lease, outcome)
                job = await scene.show("a")
                assert (job.state, job.attempt) == (JobState.CANCELLED, 0)
                await scene.purge("a")

    async def test_a_run_forgets_that_the_task_was_unknown(self) -> None:
        """Someone knew it, so that the time in which nobody does begins anew."""
        for outcome in (Outcome.RETRY, Outcome.SNOOZE):
            async with self.scene() as scene:
                await scene.submit("a", max_attempts=5)
                await scene.end(await scene.take("a"), Outcome.RELEASE, code="unknown_task")
                scene.clock.advance(60)
                lease = await scene.take("a")
                assert (lease.unknown, lease.unknown_for) == (1, 60.0)
                await scene.end(lease, outcome)
                scene.clock.advance(60)
                lease = await scene.take("a")
                assert (lease.unknown, lease.unknown_for) == (0, 0.0)
                await scene.end(lease, Outcome.RELEASE, code="unknown_task")
                scene.clock.advance(5)
                lease = await scene.take("a")
                assert (lease.unknown, lease.unknown_for) == (1, 5.0)


__all__ = ["Repetition"]
