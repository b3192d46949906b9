"""Lanes, limits on what runs at once, and pauses."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from plugq.job import JobRecord, JobState, Outcome
from plugq.protocols.storage import Lease
from plugq.testing.contract.scene import Contract
from plugq.testing.levels import Level, level

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene


async def _drain(scene: Scene, worker: str, running: dict[str, int], order: list[str]) -> int:
    """Run jobs one by one until none is left, and return how many; watches the lanes."""
    done = 0
    while True:
        leases = await scene.claim(3, worker=worker)
        if not leases:
            return done
        for lease in leases:
            assert lease.lane is not None
            running[lease.lane] = running.get(lease.lane, 0) + 1
            assert running[lease.lane] == 1, f"two jobs of lane {lease.lane} ran at once"
        await asyncio.sleep(0)
        for lease in leases:
            assert lease.lane is not None
            running[lease.lane] -= 1
            order.append(lease.id)
            await scene.end(lease)
            done += 1


class Limits(Contract):
    """How many run at once (I9)."""

    async def test_jobs_of_a_lane_run_one_at_a_time(self) -> None:
        """The next one can be claimed when the one before has been settled."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", lane="l")
            for id in ("a", "b", "c"):
                lease = await scene.take(id)
                assert await scene.claimed_ids() == []
                await scene.end(lease)

    async def test_a_lane_of_which_many_may_run_keeps_its_order_in_a_claim_of_many(self) -> None:
        """All that may run come before what is behind them, whatever lane that is of."""
        async with self.scene() as scene:
            await scene.configure(lane_max_running=500)
            first = [f"a{number}" for number in range(600)]
            await scene.submit(*first, lane="a", priority=1)
            await scene.submit("b", lane="b")
            await scene.submit("plain")
            assert await scene.claimed_ids(400) == first[:400]
            await scene.submit("urgent", lane="a", priority=2)
            assert await scene.claimed_ids(1) == ["urgent"]
            assert await scene.claimed_ids(300) == [*first[400:499], "b", "plain"]
            await scene.configure(lane_max_running=800)
            more = [f"more{number}" for number in range(99)]
            await scene.submit(*more, lane="a", priority=1)
            await scene.submit("last")
            assert await scene.claimed_ids(300) == [*first[499:], *more, "last"]

    async def test_every_start_lets_the_next_job_of_a_lane_in(self) -> None:
        """One by one, and as many as may run."""
        async with self.scene() as scene:
            await scene.configure(lane_max_running=250)
            first = [f"a{number}" for number in range(300)]
            await scene.submit(*first, lane="a", priority=1)
            await scene.submit("b", lane="b")
            assert [(await scene.take()).id for _ in range(200)] == first[:200]
            assert await scene.claimed_ids(100) == [*first[200:250], "b"]

    async def test_two_jobs_of_a_lane_are_never_in_one_claim(self) -> None:
        """Not even when nothing else is there."""
        async with self.scene() as scene:
            await scene.submit("a", "b", lane="l")
            assert await scene.claimed_ids(10) == ["a"]

    async def test_other_lanes_and_jobs_without_one_flow(self) -> None:
        """A busy lane holds nobody up."""
        async with self.scene() as scene:
            await scene.submit("a1", "a2", lane="a")
            await scene.submit("b1", "b2", lane="b")
            await scene.submit("free-1", "free-2")
            assert await scene.claimed_ids() == ["a1", "b1", "free-1", "free-2"]
            assert await scene.claimed_ids() == []

    async def test_a_lane_keeps_the_order_of_the_queue(self) -> None:
        """Priority, ready time and sequence decide inside a lane as well."""
        async with self.scene() as scene:
            await scene.submit("third", "fourth", lane="l")
            await scene.submit("first", lane="l", priority=5)
            await scene.submit("second", lane="l", priority=1)
            for id in ("first", "second", "third", "fourth"):
                await scene.end(await scene.take(id))

    async def test_lanes_take_part_in_the_order_by_their_next_job(self) -> None:
        """A lane stands where its best job stands."""
        async with self.scene() as scene:
            await scene.submit("low", lane="l")
            await scene.submit("middle", priority=1)
            await scene.submit("high", lane="l", priority=2)
            lease = await scene.take("high")
            assert await scene.claimed_ids() == ["middle"]
            await scene.end(lease)
            assert await scene.claimed_ids() == ["low"]

    async def test_an_urgent_job_overtakes_the_head_of_its_lane(self) -> None:
        """Also one that falls due."""
        async with self.scene() as scene:
            await scene.submit("head", "tail", lane="l")
            await scene.submit("urgent", lane="l", priority=9, delay=5.0)
            await scene.submit("other", priority=1)
            scene.clock.advance(5)
            assert await scene.claimed_ids() == ["urgent", "other"]

    async def test_cancelling_the_head_of_a_lane_lets_the_next_one_run(self) -> None:
        """The lane is not held up by a job that is gone."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", lane="l")
            await scene.cancel("a")
            await scene.cancel("b")
            assert await scene.claimed_ids() == ["c"]

    async def test_a_retry_does_not_hold_its_lane(self) -> None:
        """While it waits, the next job of the lane runs."""
        async with self.scene() as scene:
            await scene.submit("a", "b", lane="l", max_attempts=5)
            await scene.end(await scene.take("a"), Outcome.RETRY, delay=60.0)
            lease = await scene.take("b")
            scene.clock.advance(60)
            assert await scene.claimed_ids() == []
            await scene.end(lease)
            assert await scene.claimed_ids() == ["a"]

    async def test_a_released_job_is_first_in_its_lane_again(self) -> None:
        """It kept its place."""
        async with self.scene() as scene:
            await scene.submit("a", "b", lane="l")
            await scene.end(await scene.take("a"), Outcome.RELEASE)
            await scene.end(await scene.take("a"))
            await scene.take("b")

    async def test_a_lane_is_freed_by_the_sweep_not_by_time(self) -> None:
        """Until the lease is ended the holder may be at work."""
        async with self.scene() as scene:
            await scene.submit("a", "b", lane="l", max_attempts=1)
            await scene.take("a", lease=10.0)
            scene.clock.advance(3600)
            assert await scene.claimed_ids() == []
            await scene.sweep()
            assert await scene.claimed_ids() == ["b"]

    async def test_a_late_holder_can_not_free_the_next_ones_lane(self) -> None:
        """Its settlement is refused and changes no count."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", lane="l", max_attempts=1)
            late = await scene.take("a", lease=10.0)
            await scene.lapse(10)
            holder = await scene.take("b")
            for outcome in Outcome:
                assert (await scene.settle(late, outcome)).lost
            assert await scene.claimed_ids() == []
            await scene.end(holder)
            assert await scene.claimed_ids() == ["c"]

    async def test_a_lane_may_run_more_than_one(self) -> None:
        """``lane_max_running`` says how many."""
        async with self.scene() as scene:
            await scene.configure(lane_max_running=2)
            await scene.submit("a", "b", "c", "d", lane="l")
            a, b = await scene.claim(10)
            assert (a.id, b.id) == ("a", "b")
            await scene.end(b)
            assert await scene.claimed_ids() == ["c"]
            await scene.end(a)
            assert await scene.claimed_ids() == ["d"]

    async def test_a_change_of_the_lane_limit_holds_from_the_next_claim(self) -> None:
        """Up and down; what runs goes on."""
        async with self.scene() as scene:
            await scene.submit(*"abcdef", lane="l")
            (a,) = await scene.claim(10)
            await scene.configure(lane_max_running=3)
            b, c = await scene.claim(10)
            await scene.configure(lane_max_running=1)
            await scene.end(a)
            await scene.end(b)
            assert await scene.claimed_ids() == []
            await scene.end(c)
            assert await scene.claimed_ids() == ["d"]

    async def test_lanes_of_one_name_in_two_queues_are_two_lanes(self) -> None:
        """A lane is a key inside a queue."""
        async with self.scene() as scene:
            await scene.submit("a", lane="l")
            await scene.submit("b", lane="l", queue="other")
            assert len(await scene.claim(5, queues=("q", "other"))) == 2

    async def test_a_busy_lane_costs_the_others_nothing(self) -> None:
        """Thousands of its jobs do not stand between a claim and the next free job."""
        async with self.scene() as scene:
            await scene.submit(*(f"busy-{number}" for number in range(3_000)), lane="busy")
            await scene.submit(*(f"free-{number:03}" for number in range(100)))
            assert (await scene.claimed_ids(1)) == ["busy-0"]
            assert await scene.claimed_ids(100) == [f"free-{number:03}" for number in range(100)]

    @level(Level.CONCURRENCY)
    async def test_lanes_hold_under_concurrent_claims(self) -> None:
        """Many workers, few lanes: never two of a lane at once, each lane in order."""
        async with self.scene() as scene, scene.another() as other:
            ids = [f"{number:03}" for number in range(120)]
            for number, id in enumerate(ids):
                await scene.submit(id, lane=str(number % 4))
            running: dict[str, int] = {}
            order: list[str] = []
            done = 0
            while done < len(ids):
                done += sum(
                    await asyncio.gather(
                        *(
                            _drain(other if number % 2 else scene, f"w-{number}", running, order)
                            for number in range(8)
                        )
                    )
                )
            for lane in range(4):
                mine = [id for id in order if int(id) % 4 == lane]
                assert mine == sorted(mine)

    async def test_max_running_limits_a_queue(self) -> None:
        """A settlement makes room for one."""
        async with self.scene() as scene:
            await scene.configure(max_running=2)
            await scene.submit(*"abcd")
            await scene.submit("elsewhere", queue="other")
            a, b = await scene.claim(10)
            assert await scene.claimed_ids() == []
            assert await scene.claimed_ids(queues=("q", "other")) == ["elsewhere"]
            await scene.end(a)
            assert await scene.claimed_ids() == ["c"]
            await scene.end(b, Outcome.RELEASE)
            assert await scene.claimed_ids() == ["b"]

    async def test_max_running_is_freed_by_the_sweep_not_by_time(self) -> None:
        """A dead holder keeps its place until its lease is ended."""
        async with self.scene() as scene:
            await scene.configure(max_running=1)
            await scene.submit("a", "b", max_attempts=1)
            late = await scene.take("a", lease=10.0)
            scene.clock.advance(60)
            assert await scene.claimed_ids() == []
            await scene.sweep()
            holder = await scene.take("b")
            assert (await scene.settle(late)).lost
            await scene.submit("c")
            assert await scene.claimed_ids() == []
            await scene.end(holder)
            assert await scene.claimed_ids() == ["c"]

    async def test_a_change_of_max_running_holds_from_the_next_claim(self) -> None:
        """Below what runs, nothing more starts; without it, everything does."""
        async with self.scene() as scene:
            await scene.submit(*"abcdef")
            await scene.configure(max_running=3)
            leases = await scene.claim(10)
            assert len(leases) == 3
            await scene.configure(max_running=1)
            await scene.end(leases[0])
            assert await scene.claimed_ids() == []
            await scene.configure(max_running=None)
            assert len(await scene.claim(10)) == 3

    @level(Level.CONCURRENCY)
    async def test_max_running_holds_under_concurrent_claims(self) -> None:
        """The limit and the grant are one step."""
        async with self.scene() as scene, scene.another() as other:
            await scene.configure(max_running=5)
            await scene.submit(*(str(number) for number in range(100)))
            granted = await asyncio.gather(
                *(
                    (other if number % 2 else scene).claim(3, worker=f"w-{number}")
                    for number in range(10)
                )
            )
            assert sum(len(leases) for leases in granted) == 5

    async def test_a_paused_queue_grants_nothing(self) -> None:
        """Submissions and running jobs go on; a resumed one continues in order."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            lease = await scene.take("a")
            await scene.pause()
            await scene.submit("c")
            await scene.submit("elsewhere", queue="other")
            assert await scene.claimed_ids(queues=("q", "other")) == ["elsewhere"]
            assert await scene.end(lease) is JobState.SUCCEEDED
            await scene.resume()
            assert await scene.claimed_ids() == ["b", "c"]

    async def test_a_queue_can_be_paused_before_its_first_job(self) -> None:
        """It exists then, paused."""
        async with self.scene() as scene:
            await scene.pause("new")
            await scene.submit("a", queue="new")
            assert await scene.claim(1, queues=("new",)) == ()
            (stats,) = [q for q in (await scene.storage.stats()).queues if q.queue == "new"]
            assert stats.paused
            await scene.resume("new")
            assert await scene.claimed_ids(queues=("new",)) == ["a"]

    async def test_a_pause_and_a_resume_may_be_repeated(self) -> None:
        """Each says what is to hold, not what is to change."""
        async with self.scene() as scene:
            await scene.submit("a")
            await scene.pause()
            await scene.pause()
            await scene.resume()
            assert await scene.claimed_ids() == ["a"]
            await scene.resume()

    async def test_a_restored_job_that_runs_fills_its_lane(self) -> None:
        """Also where the next of the lane was ready already."""
        async with self.scene() as scene:
            await scene.submit("a", lane="l")
            now = scene.clock.time()
            running = JobRecord(
                queue="q",
                id="b",
                task="t",
                state=JobState.RUNNING,
                sequence=1_000,
                lane="l",
                worker="w",
                token=1,
                submitted_at=now,
                ready_at=now,
                started_at=now,
                lease_until=now + 30,
            )
            await scene.storage.restore([running])
            assert await scene.claimed_ids() == []
            (stats,) = (await scene.storage.stats()).queues
            assert stats.oldest is None
            held = Lease(queue="q", id="b", task="t", token=1, attempt=1, max_attempts=1, body=b"")
            await scene.end(held)
            assert await scene.claimed_ids() == ["a"]


__all__ = ["Limits"]
