"""Leases: how they end, crashes, repeated claims, lost replies, renewals and unknown tasks."""

from __future__ import annotations

import asyncio

from plugq.job import Event, JobState, Outcome, Progress
from plugq.protocols.storage import Holder, LeaseRef, RenewReply
from plugq.testing.contract.scene import Contract
from plugq.testing.levels import Level, level


class Leases(Contract):
    """The right to run one attempt."""

    async def test_a_lapsed_lease_holds_until_a_sweep_ends_it(self) -> None:
        """Time alone takes nothing from the holder, and gives the job to nobody else."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            lease = await scene.take("a", lease=10.0)
            scene.clock.advance(3600)
            assert await scene.claimed_ids() == []
            assert await scene.state("a") is JobState.RUNNING
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_a_lapsed_lease_may_still_be_renewed(self) -> None:
        """After that it stands like a new one."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            lease = await scene.take("a", lease=10.0)
            scene.clock.advance(11)
            assert list(await scene.renew(lease, lease=10.0)) == [RenewReply.OK]
            assert (await scene.show("a")).lease_until == scene.clock.time() + 10
            scene.clock.advance(9.999)
            assert (await scene.sweep()).changes == ()
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_a_sweep_ends_leases_at_their_time_and_not_before(self) -> None:
        """To the millisecond."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            lease = await scene.take("a", lease=10.0)
            scene.clock.advance(9.999)
            assert (await scene.sweep()).changes == ()
            scene.clock.advance(0.001)
            (change,) = (await scene.sweep()).changes
            assert (change.queue, change.id, change.task) == ("q", "a", "t")
            assert (change.event, change.state) == (Event.LAPSE, JobState.QUEUED)
            assert (change.sequence, change.attempt) == (lease.sequence, 1)
            assert await scene.state("a") is JobState.QUEUED

    async def test_a_renewed_lease_counts_from_the_renewal(self) -> None:
        """It lasts for the time that the renewal names."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            lease = await scene.take("a", lease=10.0)
            for _ in range(5):
                scene.clock.advance(8)
                assert list(await scene.renew(lease, lease=10.0)) == [RenewReply.OK]
                assert (await scene.sweep()).changes == ()
            scene.clock.advance(10)
            assert [change.event for change in (await scene.sweep()).changes] == [Event.LAPSE]

    async def test_a_renewal_may_shorten_a_lease(self) -> None:
        """The last word counts."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            lease = await scene.take("a", lease=3600.0)
            await scene.renew(lease, lease=5.0)
            scene.clock.advance(5)
            assert [change.event for change in (await scene.sweep()).changes] == [Event.LAPSE]

    async def test_leases_of_one_claim_end_each_for_itself(self) -> None:
        """Renewing some does not keep the others."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", max_attempts=5)
            _, b, _ = await scene.claim(3, lease=10.0)
            scene.clock.advance(5)
            await scene.renew(b, lease=10.0)
            scene.clock.advance(5)
            changes = (await scene.sweep()).changes
            assert {change.id for change in changes} == {"a", "c"}
            scene.clock.advance(5)
            assert [change.id for change in (await scene.sweep()).changes] == ["b"]

    async def test_a_sweep_that_may_not_end_leases_ends_none(self) -> None:
        """Holders get the chance to renew first, after an outage of the sweeper."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5, deadline_in=60.0)
            lease = await scene.take("a", lease=10.0)
            scene.clock.advance(3600)
            reply = await scene.sweep(end_leases=False)
            assert reply.changes == ()
            assert await scene.state("a") is JobState.RUNNING
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_an_ended_lease_is_a_crash_that_spends_the_attempt(self) -> None:
        """The history says which worker held it and when."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            await scene.take("a", worker="w-9", lease=10.0)
            began = scene.clock.time()
            await scene.lapse(10)
            job = await scene.show("a")
            assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 1, 1)
            (crash,) = job.history
            assert (crash.attempt, crash.code, crash.worker) == (1, "crashed", "w-9")
            assert (crash.started_at, crash.ended_at) == (began, scene.clock.time())
            assert "w-9" in crash.message
            again = await scene.take("a")
            assert (again.attempt, again.crashes) == (2, 1)

    async def test_the_third_crash_fails_the_job(self) -> None:
        """However many attempts are left, a job that kills its worker ends (I7)."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=100)
            for _ in range(2):
                await scene.take("a")
                await scene.lapse(max_crashes=3)
                assert await scene.state("a") is JobState.QUEUED
            await scene.take("a")
            (change,) = (await scene.lapse(max_crashes=3)).changes
            assert (change.event, change.state, change.code) == (
                Event.LAPSE,
                JobState.FAILED,
                "crashed",
            )
            job = await scene.show("a")
            assert (job.state, job.code, job.crashes) == (JobState.FAILED, "crashed", 3)
            assert [kept.code for kept in job.history] == ["crashed"] * 3

    async def test_a_crash_in_the_last_attempt_fails_the_job(self) -> None:
        """A crash spends the attempt like any other end of it."""
        async with self.scene() as scene:
            await scene.submit("once", max_attempts=1)
            await scene.submit("twice", max_attempts=2)
            await scene.claim(2)
            await scene.lapse()
            once, twice = await scene.show("once"), await scene.show("twice")
            assert (once.state, once.code) == (JobState.FAILED, "crashed")
            assert twice.state is JobState.QUEUED
            await scene.take("twice")
            await scene.lapse()
            assert await scene.state("twice") is JobState.FAILED

    async def test_settled_attempts_do_not_count_as_crashes(self) -> None:
        """Retries and releases between crashes leave their count alone."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=100)
            for outcome in (Outcome.RETRY, Outcome.RELEASE, Outcome.SNOOZE):
                await scene.end(await scene.take("a"), outcome)
            await scene.take("a")
            await scene.lapse()
            assert (await scene.show("a")).crashes == 1

    async def test_what_ends_well_in_between_takes_no_crash_back(self) -> None:
        """I7: the third crash of a job ends it, whatever came between them."""
        async with self.scene() as scene:
            for outcome in (Outcome.RETRY, Outcome.SNOOZE, Outcome.RELEASE):
                await scene.submit(outcome, max_attempts=9)
                for crash in range(3):
                    lease = await scene.take(outcome)
                    assert lease.crashes == crash
                    await scene.end(lease, outcome)
                    await scene.take(outcome)
                    await scene.lapse()
                job = await scene.show(outcome)
                assert (job.state, job.code) == (JobState.FAILED, "crashed")

    async def test_a_crash_of_a_job_to_be_cancelled_cancels_it(self) -> None:
        """It is not run again."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            await scene.take("a")
            await scene.cancel("a")
            (change,) = (await scene.lapse()).changes
            assert change.state is JobState.CANCELLED
            assert await scene.state("a") is JobState.CANCELLED
            assert await scene.claimed_ids() == []

    async def test_a_sweep_ends_no_more_leases_than_its_limit(self) -> None:
        """What is left makes the next call due at once."""
        async with self.scene() as scene:
            await scene.submit(*"abcdefghij", max_attempts=5)
            await scene.claim(10)
            first = await scene.lapse(limit=4)
            assert (len(first.changes), first.next_in) == (4, 0)
            second, third = await scene.sweep(limit=4), await scene.sweep(limit=4)
            assert (len(second.changes), len(third.changes)) == (4, 2)
            ended = [change.id for reply in (first, second, third) for change in reply.changes]
            assert sorted(ended) == list("abcdefghij")

    async def test_a_sweep_notices_no_more_due_jobs_than_its_limit(self) -> None:
        """Of all queues together."""
        async with self.scene() as scene:
            for queue in "abc":
                await scene.submit("1", "2", queue=queue, delay=5.0)
            scene.clock.advance(5)
            replies = [await scene.sweep(limit=4) for _ in range(3)]
            assert [len(reply.changes) for reply in replies] == [4, 2, 0]
            assert replies[0].next_in == 0

    async def test_a_sweep_says_when_it_has_work_next(self) -> None:
        """The soonest of due times, leases and deadlines; nothing if there is none of them."""
        async with self.scene() as scene:
            assert (await scene.sweep()).next_in is None
            await scene.submit("delayed", delay=100.0)
            assert (await scene.sweep()).next_in == 100
            await scene.submit("mortal", deadline_in=50.0)
            assert (await scene.sweep()).next_in == 50
            await scene.submit("urgent", priority=5)
            await scene.take("urgent", lease=20.0)
            assert (await scene.sweep()).next_in == 20

    async def test_a_repeated_claim_gives_the_same_leases(self) -> None:
        """A reply that was lost is given again: the same tokens, no new ones, in order."""
        async with self.scene() as scene:
            await scene.submit(*"abcd")
            request = scene.request(3)
            first = (await scene.storage.claim(request)).leases
            again = (await scene.storage.claim(request)).leases
            assert again == first
            assert await scene.count(JobState.RUNNING) == 3
            assert await scene.total("started") == 3

    async def test_a_repeated_claim_keeps_the_order_of_its_queues(self) -> None:
        """Also where it names one of them twice."""
        async with self.scene() as scene:
            await scene.submit("a", queue="a")
            await scene.submit("b", queue="b")
            request = scene.request(5, queues=("b", "a", "b"))
            first = (await scene.storage.claim(request)).leases
            assert [lease.id for lease in first] == ["b", "a"]
            assert (await scene.storage.claim(request)).leases == first

    async def test_a_repeated_claim_omits_what_was_settled(self) -> None:
        """Only leases that still stand are given again, and nothing new in place of the others."""
        async with self.scene() as scene:
            await scene.submit(*"abcd")
            request = scene.request(3)
            a, b, c = (await scene.storage.claim(request)).leases
            await scene.end(b)
            assert (await scene.storage.claim(request)).leases == (a, c)
            await scene.end(a)
            await scene.end(c, Outcome.RELEASE)
            assert (await scene.storage.claim(request)).leases == ()
            assert await scene.claimed_ids() == ["c", "d"]

    async def test_a_claim_that_got_nothing_may_be_asked_again(self) -> None:
        """It is then a new one: that is how a long poll looks again."""
        async with self.scene() as scene:
            request = scene.request(3)
            assert (await scene.storage.claim(request)).leases == ()
            await scene.submit("a")
            first = (await scene.storage.claim(request)).leases
            assert [lease.id for lease in first] == ["a"]
            await scene.submit("b")
            assert (await scene.storage.claim(request)).leases == first
            assert await scene.claimed_ids() == ["b"]

    async def test_a_repeated_claim_does_not_renew(self) -> None:
        """Its leases end when they would have ended."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            request = scene.request(1, lease=10.0)
            await scene.storage.claim(request)
            scene.clock.advance(9)
            assert len((await scene.storage.claim(request)).leases) == 1
            scene.clock.advance(1)
            assert len((await scene.sweep()).changes) == 1
            assert (await scene.storage.claim(request)).leases == ()

    async def test_claim_numbers_belong_to_their_worker(self) -> None:
        """Two workers may use the same numbers."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            (a,) = await scene.claim(1, worker="w-1", number=1)
            (b,) = await scene.claim(1, worker="w-2", number=1)
            assert (a.id, b.id) == ("a", "b")

    async def test_claims_that_arrive_out_of_order_are_both_served(self) -> None:
        """A smaller number that was not seen before is a claim like any other."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            (a,) = await scene.claim(1, number=7)
            (b,) = await scene.claim(1, number=6)
            assert (a.id, b.id) == ("a", "b")

    @level(Level.CONCURRENCY)
    async def test_a_claim_sent_twice_at_once_is_granted_once(self) -> None:
        """Re-sending while the first is under way gives one set of leases."""
        async with self.scene() as scene, scene.another() as other:
            await scene.submit(*"abcdef")
            request = scene.request(3)
            replies = await asyncio.gather(
                *(side.storage.claim(request) for side in (scene, other, scene))
            )
            assert {reply.leases for reply in replies} == {replies[0].leases}
            assert await scene.count(JobState.RUNNING) == 3

    async def test_a_claim_carried_by_a_settlement_can_be_repeated(self) -> None:
        """In another settlement or by itself."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            lease = await scene.take("a")
            request = scene.request(1)
            _, first = await scene.storage.settle([scene.settlement(lease)], request)
            replies, again = await scene.storage.settle([scene.settlement(lease)], request)
            assert first is not None
            assert again is not None
            assert first.leases == again.leases == (await scene.storage.claim(request)).leases
            assert replies[0].lost

    async def test_a_holder_gives_back_what_it_never_received(self) -> None:
        """Leases of a lost reply go back to their place: no attempt, no crash."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", "d", max_attempts=1)
            (a,) = await scene.claim(1, worker="w", number=1)
            await scene.claim(2, worker="w", number=2)
            assert list(await scene.renew(a, holder=Holder("w", 2))) == [RenewReply.OK]
            b = await scene.show("b")
            assert (b.state, b.attempt, b.crashes, b.history) == (JobState.QUEUED, 0, 0, ())
            assert await scene.state("a") is JobState.RUNNING
            assert await scene.claimed_ids() == ["b", "c", "d"]
            assert await scene.total("released") == 2

    async def test_a_holder_that_lost_a_lease_gives_back_what_it_never_received(self) -> None:
        """What it lists in vain takes nothing from what it does not list."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c")
            (a,) = await scene.claim(1, worker="w", number=1)
            (b,) = await scene.claim(1, worker="w", number=2)
            await scene.claim(1, worker="w", number=3)
            assert await scene.end(b) is JobState.SUCCEEDED
            replies = list(await scene.renew(a, b, holder=Holder("w", 3)))
            assert replies == [RenewReply.OK, RenewReply.LOST]
            assert await scene.state("c") is JobState.QUEUED
            assert await scene.state("a") is JobState.RUNNING

    async def test_a_holder_says_nothing_about_later_claims(self) -> None:
        """Their replies may still be on the way."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            await scene.claim(1, worker="w", number=1)
            (b,) = await scene.claim(1, worker="w", number=2)
            await scene.storage.renew([], lease=30.0, holder=Holder("w", 1))
            assert await scene.state("a") is JobState.QUEUED
            assert await scene.state("b") is JobState.RUNNING
            assert await scene.end(b) is JobState.SUCCEEDED

    async def test_a_holder_says_nothing_about_other_workers(self) -> None:
        """Not even about those that use the same numbers."""
        async with self.scene() as scene:
            await scene.submit("a")
            (lease,) = await scene.claim(1, worker="other", number=1)
            await scene.storage.renew([], lease=30.0, holder=Holder("w", 9))
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_a_holder_gives_back_a_job_to_be_cancelled_as_cancelled(self) -> None:
        """Nobody will run it."""
        async with self.scene() as scene:
            await scene.submit("a")
            await scene.claim(1, worker="w", number=1)
            await scene.cancel("a")
            await scene.storage.renew([], lease=30.0, holder=Holder("w", 1))
            assert await scene.state("a") is JobState.CANCELLED

    async def test_a_token_that_a_holder_gave_back_is_refused(self) -> None:
        """Should the reply arrive after all, it is worth nothing."""
        async with self.scene() as scene:
            await scene.submit("a")
            (lease,) = await scene.claim(1, worker="w", number=1)
            await scene.storage.renew([], lease=30.0, holder=Holder("w", 1))
            assert (await scene.settle(lease)).lost
            assert (await scene.take("a")).token > lease.token

    async def test_a_renewal_tells_of_a_cancelling(self) -> None:
        """Again and again, and renews all the same."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            a, b = await scene.claim(2, lease=10.0)
            await scene.cancel("a")
            for _ in range(3):
                scene.clock.advance(8)
                assert list(await scene.renew(b, a, lease=10.0)) == [
                    RenewReply.OK,
                    RenewReply.CANCEL,
                ]
            assert (await scene.sweep()).changes == ()

    async def test_a_renewal_carries_progress(self) -> None:
        """It is shown while the job runs; a renewal without news leaves it."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            progress = Progress(current=1.5, total=3.0, message="half", details={"rows": 7})
            await scene.storage.renew(
                [LeaseRef(lease.queue, lease.id, lease.token, progress)], lease=30.0
            )
            assert (await scene.show("a")).progress == progress
            await scene.renew(lease)
            assert (await scene.show("a")).progress == progress

    async def test_progress_of_a_job_to_be_cancelled_is_kept(self) -> None:
        """The answer is ``CANCEL``, and the lease is extended as by any other renewal."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a", lease=10.0)
            await scene.cancel("a")
            scene.clock.advance(9)
            news = LeaseRef("q", "a", lease.token, Progress(current=2.0))
            assert list(await scene.storage.renew([news], lease=10.0)) == [RenewReply.CANCEL]
            assert (await scene.show("a")).progress == Progress(current=2.0)
            scene.clock.advance(9)
            assert (await scene.sweep()).changes == ()

    async def test_progress_of_a_stale_lease_is_refused(self) -> None:
        """It does not overwrite that of the current run."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            stale = await scene.take("a")
            await scene.lapse()
            await scene.take("a")
            before = await scene.show("a")
            late = LeaseRef(stale.queue, stale.id, stale.token, Progress(current=99.0))
            assert list(await scene.storage.renew([late], lease=30.0)) == [RenewReply.LOST]
            assert await scene.show("a") == before

    async def test_releases_of_an_unknown_task_are_counted(self) -> None:
        """Each lease says how often and for how long the task was not known."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=1)
            for count in range(4):
                lease = await scene.take("a")
                assert lease.unknown == count
                assert lease.unknown_for == (5.0 * count if count else 0.0)
                assert lease.attempt == 1
                await scene.end(lease, Outcome.RELEASE, delay=5.0, code="unknown_task")
                scene.clock.advance(5)

    async def test_other_releases_do_not_count_as_unknown(self) -> None:
        """A shutdown says nothing about the task."""
        async with self.scene() as scene:
            await scene.submit("a")
            await scene.end(await scene.take("a"), Outcome.RELEASE, code="shutdown")
            assert (await scene.take("a")).unknown == 0

    async def test_a_redrive_forgets_that_the_task_was_unknown(self) -> None:
        """The count begins anew."""
        async with self.scene() as scene:
            await scene.submit("a")
            await scene.end(await scene.take("a"), Outcome.RELEASE, code="unknown_task")
            await scene.end(await scene.take("a"), Outcome.FAIL, code="unknown_task")
            assert (await scene.show("a")).code == "unknown_task"
            await scene.redrive("a")
            lease = await scene.take("a")
            assert (lease.unknown, lease.unknown_for) == (0, 0.0)


__all__ = ["Leases"]
