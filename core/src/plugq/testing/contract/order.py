"""The order of claims: priority, ready time, sequence; and what keeps or changes a job's place."""

from __future__ import annotations

from plugq.job import JobState, Outcome
from plugq.protocols.edits import EditStatus
from plugq.testing.contract.scene import Contract


class Order(Contract):
    """Who comes first (I10)."""

    async def test_a_higher_priority_comes_first(self) -> None:
        """From 1000 down to -1000, whenever they were submitted."""
        async with self.scene() as scene:
            for priority in (0, -1000, 5, 1000, -1, 100):
                await scene.submit(str(priority), priority=priority)
            assert await scene.claimed_ids() == ["1000", "100", "5", "0", "-1", "-1000"]

    async def test_jobs_of_one_priority_run_in_the_order_of_submission(self) -> None:
        """Within a call the order given counts, then that of the calls."""
        async with self.scene() as scene:
            await scene.submit("c", "a", "d")
            await scene.submit("b", "0")
            assert await scene.claimed_ids() == ["c", "a", "d", "b", "0"]

    async def test_the_order_holds_from_claim_to_claim(self) -> None:
        """A hundred jobs claimed in small portions come in one sequence."""
        async with self.scene() as scene:
            ids = [f"{number:03}" for number in range(100)]
            await scene.submit(*ids)
            claimed: list[str] = []
            while portion := await scene.claimed_ids(7):
                claimed += portion
            assert claimed == ids

    async def test_an_earlier_ready_time_comes_first(self) -> None:
        """A due job stands where its time puts it, not where it was noticed."""
        async with self.scene() as scene:
            await scene.submit("third", delay=3.0)
            await scene.submit("first", delay=1.0)
            scene.clock.advance(2)
            await scene.submit("second")
            scene.clock.advance(2)
            await scene.submit("fourth")
            assert await scene.claimed_ids() == ["first", "second", "third", "fourth"]

    async def test_priority_counts_before_the_ready_time(self) -> None:
        """An urgent job that falls due later still comes first."""
        async with self.scene() as scene:
            await scene.submit("old")
            await scene.submit("urgent", priority=1, delay=5.0)
            assert await scene.claimed_ids(0) == []
            scene.clock.advance(5)
            assert await scene.claimed_ids() == ["urgent", "old"]

    async def test_a_released_job_keeps_its_place(self) -> None:
        """It is the next one again, before what was submitted after it."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c")
            a, b = await scene.claim(2)
            scene.clock.advance(10)
            await scene.end(b, Outcome.RELEASE)
            await scene.end(a, Outcome.RELEASE)
            assert await scene.claimed_ids() == ["a", "b", "c"]

    async def test_a_job_whose_lease_ended_keeps_its_place(self) -> None:
        """It does not queue up behind what came later."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=3)
            await scene.take("a", lease=10.0)
            await scene.submit("b")
            await scene.lapse(10)
            assert await scene.claimed_ids() == ["a", "b"]

    async def test_a_retried_job_takes_its_place_by_its_new_ready_time(self) -> None:
        """Jobs that were ready before it go first."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=3)
            lease = await scene.take("a")
            scene.clock.advance(1)
            await scene.submit("b")
            await scene.end(lease, Outcome.RETRY, delay=1.0)
            scene.clock.advance(2)
            await scene.submit("c")
            assert await scene.claimed_ids() == ["b", "a", "c"]

    async def test_a_redriven_job_takes_its_place_by_the_time_of_the_redrive(self) -> None:
        """It does not overtake what waits."""
        async with self.scene() as scene:
            await scene.submit("a")
            await scene.end(await scene.take("a"), Outcome.FAIL)
            scene.clock.advance(1)
            await scene.submit("b")
            scene.clock.advance(1)
            await scene.redrive("a")
            assert await scene.claimed_ids() == ["b", "a"]

    async def test_queues_are_tried_in_the_order_of_the_request(self) -> None:
        """The limit is for all of them together."""
        async with self.scene() as scene:
            await scene.submit("a1", "a2", queue="a", priority=-5)
            await scene.submit("b1", "b2", queue="b", priority=5)
            leases = await scene.claim(3, queues=("a", "b"))
            assert [(lease.queue, lease.id) for lease in leases] == [
                ("a", "a1"),
                ("a", "a2"),
                ("b", "b1"),
            ]

    async def test_a_claim_touches_no_queue_that_it_does_not_name(self) -> None:
        """Nor one that has never been used."""
        async with self.scene() as scene:
            await scene.submit("a", queue="elsewhere")
            assert await scene.claim(5, queues=("q", "unknown")) == ()
            assert await scene.state("a", "elsewhere") is JobState.QUEUED

    async def test_a_claim_grants_no_more_than_its_limit(self) -> None:
        """What is left stays queued."""
        async with self.scene() as scene:
            await scene.submit(*"abcde")
            assert await scene.claimed_ids(2) == ["a", "b"]
            assert await scene.count(JobState.QUEUED) == 3

    async def test_a_claim_says_when_the_next_job_falls_due(self) -> None:
        """Nothing is said when nothing is delayed."""
        async with self.scene() as scene:
            assert (await scene.ask()).next_in is None
            await scene.submit("a", delay=60.0)
            await scene.submit("b", delay=20.0)
            scene.clock.advance(5)
            reply = await scene.ask()
            assert reply.leases == ()
            assert reply.next_in == 15.0

    async def test_many_jobs_that_fall_due_at_once_all_come_in_order(self) -> None:
        """However many are promoted in one claim."""
        async with self.scene() as scene:
            ids = [f"{number:04}" for number in range(1_500)]
            await scene.submit(*ids, delay=1.0)
            scene.clock.advance(1)
            claimed: list[str] = []
            while portion := await scene.claimed_ids(50):
                claimed += portion
            assert claimed == ids

    async def test_a_job_with_another_priority_moves_to_its_new_place(self) -> None:
        """Up and down, in the order that its ready time and sequence then give it."""
        async with self.scene() as scene:
            for id in "abcde":
                await scene.submit(id)
                scene.clock.advance(1)
            replies = await scene.reprioritise(5, "d", "b")
            assert [(reply.status, reply.state) for reply in replies] == [
                (EditStatus.DONE, JobState.QUEUED),
                (EditStatus.DONE, JobState.QUEUED),
            ]
            await scene.reprioritise(-5, "a")
            assert [(await scene.show(id)).priority for id in "abcd"] == [-5, 5, 0, 5]
            await scene.submit("f", priority=5)
            assert await scene.claimed_ids(2) == ["b", "d"]
            await scene.reprioritise(0, "a", "f")
            leases = await scene.claim()
            assert [(lease.id, lease.priority) for lease in leases] == [("a", 0)]
            assert await scene.claimed_ids() == ["c", "e", "f"]

    async def test_another_priority_leaves_ready_time_and_sequence(self) -> None:
        """Twice changed and back, a job stands where it stood."""
        async with self.scene() as scene:
            await scene.submit("a")
            scene.clock.advance(1)
            await scene.submit("b")
            before = await scene.show("a")
            scene.clock.advance(1)
            await scene.reprioritise(9, "a")
            await scene.reprioritise(0, "a")
            assert await scene.show("a") == before
            assert await scene.claimed_ids() == ["a", "b"]

    async def test_another_priority_changes_the_head_of_a_lane(self) -> None:
        """The first of the lane by the new order is the one that may run."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", lane="l")
            await scene.submit("other", priority=1)
            await scene.reprioritise(2, "c")
            assert await scene.claimed_ids() == ["c", "other"]
            await scene.clear()
            await scene.submit("a", "b", "c", lane="l")
            await scene.reprioritise(-2, "a")
            await scene.submit("other", priority=-1)
            lease = await scene.take("b")
            assert await scene.claimed_ids() == ["other"]
            await scene.end(lease)
            await scene.end(await scene.take("c"))
            await scene.take("a")

    async def test_another_priority_holds_among_several_heads_of_a_lane(self) -> None:
        """Where a lane may run more than one."""
        async with self.scene() as scene:
            await scene.configure(lane_max_running=2)
            await scene.submit(*"abcde", lane="l")
            await scene.reprioritise(3, "d", "e")
            await scene.reprioritise(-3, "b")
            first = await scene.claim(10)
            assert [lease.id for lease in first] == ["d", "e"]
            for lease in first:
                await scene.end(lease)
            assert await scene.claimed_ids() == ["a", "c"]

    async def test_a_lane_keeps_its_order_when_its_limit_changes(self) -> None:
        """Whether its jobs differ by priority, by ready time or by sequence alone."""
        for step, rise, order in ((0.0, 0, "abcdef"), (1.0, 0, "abcdef"), (1.0, 1, "fedcba")):
            async with self.scene() as scene:
                await scene.configure(lane_max_running=4)
                for number, id in enumerate("abcdef"):
                    await scene.submit(id, lane="l", priority=number * rise)
                    scene.clock.advance(step)
                for limit in (2, 1, 3, 5, 2):
                    await scene.configure(lane_max_running=limit)
                    leases = await scene.claim(10)
                    assert [lease.id for lease in leases] == list(order[:limit])
                    for lease in reversed(leases):
                        await scene.end(lease, Outcome.RELEASE)
                await scene.configure(lane_max_running=3)
                first = await scene.take(order[0])
                await scene.configure(lane_max_running=2)
                await scene.end(first, Outcome.RELEASE)
                assert await scene.claimed_ids(1) == [order[0]]
                assert await scene.claimed_ids(10) == [order[1]]

    async def test_a_delayed_job_has_its_new_priority_when_it_is_due(self) -> None:
        """Until then it waits on; a deadline holds as before."""
        async with self.scene() as scene:
            await scene.submit("a", delay=10.0)
            await scene.submit("b", delay=10.0, deadline_in=15.0)
            await scene.submit("c", delay=5.0)
            replies = await scene.reprioritise(4, "a", "b")
            assert {reply.state for reply in replies} == {JobState.DELAYED}
            assert (await scene.ask()).next_in == 5
            scene.clock.advance(10)
            assert await scene.claimed_ids(1) == ["a"]
            scene.clock.advance(5)
            assert await scene.claimed_ids() == ["c"]
            assert [change.id for change in (await scene.sweep()).changes] == ["b"]

    async def test_a_running_job_has_its_new_priority_when_it_is_queued_again(self) -> None:
        """Its lease stands."""
        async with self.scene() as scene:
            await scene.submit("a", "b", max_attempts=3)
            lease = await scene.take("a")
            (reply,) = await scene.reprioritise(-1, "a")
            assert (reply.status, reply.state) == (EditStatus.DONE, JobState.RUNNING)
            assert await scene.end(lease, Outcome.RELEASE) is JobState.QUEUED
            assert await scene.claimed_ids() == ["b", "a"]

    async def test_a_final_job_takes_no_other_priority(self) -> None:
        """Nor does one whose deadline has passed unswept, and an unknown one is not found."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.SUCCEEDED)
            await scene.submit("b", deadline_in=10.0)
            scene.clock.advance(10)
            replies = await scene.reprioritise(5, "a", "b", "unknown")
            assert [(reply.status, reply.state) for reply in replies] == [
                (EditStatus.FINISHED, JobState.SUCCEEDED),
                (EditStatus.FINISHED, JobState.FAILED),
                (EditStatus.NOT_FOUND, None),
            ]
            assert (await scene.show("a")).priority == 0


__all__ = ["Order"]
