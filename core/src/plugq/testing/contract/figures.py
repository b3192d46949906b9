"""What stats say beside counts: the oldest ready job, how long attempts run, how fast jobs end."""

from __future__ import annotations

from math import exp, isclose
from typing import TYPE_CHECKING

from plugq.job import Outcome
from plugq.protocols.storage import RATE_TIME
from plugq.testing.contract.scene import QUEUE, Contract

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene


async def _oldest(scene: Scene) -> float | None:
    (found,) = [each for each in (await scene.storage.stats()).queues if each.queue == QUEUE]
    return found.oldest


async def _rate(scene: Scene) -> float:
    return (await scene.task_stats()).rate


class Figures(Contract):
    """How a queue gets on."""

    async def test_the_oldest_ready_job_may_have_any_priority(self) -> None:
        """It is the one that has been ready for the longest, not the next to run."""
        async with self.scene() as scene:
            await scene.submit("low", priority=-5)
            scene.clock.advance(5)
            await scene.submit("middle")
            scene.clock.advance(5)
            await scene.submit("high", priority=5)
            scene.clock.advance(5)
            assert await _oldest(scene) == 15
            await scene.reprioritise(9, "middle")
            assert await _oldest(scene) == 15
            await scene.cancel("low")
            assert await _oldest(scene) == 10
            await scene.take("middle")
            assert await _oldest(scene) == 5
            await scene.take("high")
            assert await _oldest(scene) is None

    async def test_only_what_a_free_worker_could_run_is_ready(self) -> None:
        """Neither what waits for its time nor what stands behind its lane; age is readiness."""
        async with self.scene() as scene:
            await scene.submit("first", lane="l", priority=1)
            scene.clock.advance(2)
            await scene.submit("behind", lane="l")
            scene.clock.advance(3)
            assert await _oldest(scene) == 5
            lease = await scene.take("first")
            assert await _oldest(scene) is None
            await scene.end(lease)
            assert await _oldest(scene) == 3
            await scene.take("behind")
            await scene.submit("delayed", delay=10.0)
            scene.clock.advance(9)
            assert await _oldest(scene) is None
            scene.clock.advance(4)
            await scene.sweep()
            assert await _oldest(scene) == 3

    async def test_as_many_of_a_lane_are_ready_as_it_may_run(self) -> None:
        """Not only the next one, and none beyond."""
        async with self.scene() as scene:
            await scene.configure(lane_max_running=2)
            await scene.submit("third", lane="l", priority=-5)
            scene.clock.advance(1)
            await scene.submit("second", lane="l")
            scene.clock.advance(2)
            await scene.submit("first", lane="l", priority=5)
            scene.clock.advance(3)
            assert await _oldest(scene) == 5
            lease = await scene.take("first")
            assert await _oldest(scene) == 5
            await scene.end(lease)
            assert await _oldest(scene) == 6

    async def test_run_time_is_the_mean_of_what_holders_ended(self) -> None:
        """By success, failure, retry and skip; nothing else tells how long a task takes."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", "d", "e", "f", max_attempts=5)
            assert (await scene.task_stats()).run_time is None
            seconds = 0.0
            counted = (Outcome.SUCCEED, Outcome.FAIL, Outcome.RETRY, Outcome.SKIP)
            for number, outcome in enumerate(counted, 1):
                lease = await scene.take()
                scene.clock.advance(number)
                await scene.end(lease, outcome, delay=9000.0)
                seconds += number
                assert (await scene.task_stats()).run_time == seconds / number
            for outcome in (Outcome.SNOOZE, Outcome.RELEASE):
                lease = await scene.take()
                scene.clock.advance(100)
                await scene.end(lease, outcome, delay=9000.0)
            await scene.submit("lapses")
            await scene.take("lapses", lease=50.0)
            await scene.lapse(50)
            await scene.cancel("lapses")
            assert (await scene.task_stats()).run_time == 2.5

    async def test_the_rate_counts_every_end(self) -> None:
        """Of whatever kind, and each once."""
        async with self.scene() as scene:
            assert await _rate(scene) == 0
            await scene.submit("a", "b", "c", max_attempts=2)
            await scene.submit("late", deadline_in=10.0, priority=-1)
            await scene.submit("other", task="other")
            a, b, c = await scene.claim(3)
            await scene.settle(a)
            await scene.settle(b, Outcome.RETRY)
            await scene.settle(c, Outcome.SKIP)
            assert isclose(await _rate(scene), 2 / RATE_TIME)
            await scene.cancel("b")
            assert isclose(await _rate(scene), 3 / RATE_TIME)
            scene.clock.advance(10)
            await scene.sweep()
            assert isclose(await _rate(scene), (3 * exp(-10 / RATE_TIME) + 1) / RATE_TIME)
            assert (await scene.task_stats(task="other")).rate == 0

    async def test_the_rate_decays(self) -> None:
        """With every second, whether or not anything else ends, and over all users."""
        async with self.scene() as scene, scene.another() as other:
            await scene.submit(*"abcd")
            await scene.end(await scene.take("a"))
            await other.end(await other.take("b"))
            assert isclose(await _rate(scene), 2 / RATE_TIME)
            scene.clock.advance(RATE_TIME)
            assert isclose(await _rate(other), 2 * exp(-1) / RATE_TIME)
            await other.end(await other.take("c"))
            assert isclose(await _rate(scene), (2 * exp(-1) + 1) / RATE_TIME)
            scene.clock.advance(RATE_TIME)
            assert isclose(await _rate(scene), (2 * exp(-2) + exp(-1)) / RATE_TIME)
            scene.clock.advance(100 * RATE_TIME)
            assert await _rate(scene) < 1e-9

    async def test_a_steady_stream_has_its_own_rate(self) -> None:
        """After a few time constants the rate is what comes to an end a second."""
        async with self.scene() as scene:
            for second in range(300):
                await scene.submit(f"a{second}", f"b{second}")
                for lease in await scene.claim(2):
                    await scene.end(lease)
                scene.clock.advance(1)
            assert isclose(await _rate(scene), 2, rel_tol=0.05)


__all__ = ["Figures"]
