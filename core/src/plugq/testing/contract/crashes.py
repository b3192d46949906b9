"""Processes that die in the middle of it: no promise may depend on their living on."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, ClassVar

from plugq.protocols.plugin import Capability
from plugq.testing.contract.crash_cancels import CancelsDie
from plugq.testing.contract.crash_story import KILLED, PAUSE, died
from plugq.testing.contract.crash_submitters import SubmittersDie
from plugq.testing.contract.crash_ticks import SchedulersDie
from plugq.testing.contract.crash_workers import WorkersDie
from plugq.testing.crashing import Spec
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.testing.children import Child


class Crashes(WorkersDie, SubmittersDie, CancelsDie, SchedulersDie):
    """What the death of a process may cost: time, and one attempt of each job it ran."""

    #: How many processes are killed at random; more by ``PLUGQ_CRASH_KILLS``.
    crash_kills: ClassVar[int] = int(os.environ.get("PLUGQ_CRASH_KILLS", "5"))
    #: Seconds that a test may take where so many deaths need more than any other test.
    longest: ClassVar[float] = 5.0 * crash_kills
    #: What chooses their moments.
    crash_seed: ClassVar[int] = int(os.environ.get("PLUGQ_CRASH_SEED", "1"))

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_job_that_kills_its_workers_is_given_up(self) -> None:
        """It ends as ``failed``, code ``crashed``, and the others do not suffer (I7)."""
        async with self.story() as story:
            await story.submit([Spec(id="poison", task="poison", payload={})])
            for _ in range(3):
                async with story.worker(lease=0.5) as worker:
                    code = await worker.wait()
                    assert code == KILLED, worker.printed()
                while (await story.scene.show("poison", "default")).state == "running":
                    await story.scene.sweep()
                    await asyncio.sleep(PAUSE)
            state = (await story.scene.show("poison", "default")).state
            assert state == "failed", f"I7: it has killed three workers and is {state}"
            await story.submit([Spec(id=f"after-{n}", payload={}) for n in range(3)])
            await story.drain()
            await story.holds(died=3)

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_the_death_of_one_ends_no_lease_of_another(self) -> None:
        """A lease outlives the death of others and the next start of the storage (I4, I6)."""
        async with self.story() as story:
            await story.scene.submit("held", lane="one")
            await story.scene.submit("next", lane="one")
            async with story.child("hold", id="held") as holder:
                token = await holder.hear()
                await story.scene.submit("spare", queue="default")
                async with story.worker("broker.claim.before", lease=600.0) as one:
                    await died(one, "broker.claim.before")
                async with story.scene.another() as again:
                    await again.sweep()
                    assert await again.claimed_ids() == [], "I9: the lane of a holder was freed"
                    assert (await again.show("held")).token == token
                await holder.say("settle")
                assert await holder.hear() is False, "I4: a lease was forgotten"
                await holder.ends()

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_workers_die_at_random_moments(self) -> None:
        """Under load, again and again: the ledger adds up."""
        chance = random.Random(self.crash_seed)  # noqa: S311 - a story that can be told again
        async with self.story() as story, AsyncExitStack() as stack:

            async def start() -> Child:
                child: Child = await stack.enter_async_context(story.worker())
                await child.hear()
                return child

            workers = [asyncio.create_task(start()) for _ in range(3)]
            for _ in range(self.crash_kills):
                lane = f"lane-{chance.randrange(3)}"
                more = [
                    Spec(
                        id=uuid.UUID(int=chance.getrandbits(128)).hex,
                        payload={"n": n, "hold": 0.01},
                        options={"lane": lane if n % 3 else None, "max_attempts": 50},
                    )
                    for n in range(30)
                ]
                await story.submit(more)
                index = chance.randrange(len(workers))
                victim = await workers[index]
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                await victim.kill()
                # The others work while the next one comes up.
                workers[index] = asyncio.create_task(start())
                await story.scene.sweep()
            await story.finish()
            for coming in workers:
                worker = await coming
                await worker.say("stop")
                await worker.ends()
            await story.holds(died=self.crash_kills)


__all__ = ["Crashes"]
