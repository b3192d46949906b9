"""Jobs that are cancelled while whoever asks for it, or whoever runs them, dies."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from plugq.protocols.plugin import Capability
from plugq.testing.children import PATIENCE
from plugq.testing.contract.crash_story import PAUSE, Stories, Story, died, together
from plugq.testing.crashing import Spec
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Where a worker dies that was told to stop its only job; without a place it is killed at once.
#: Seconds: a lease that no pause of a busy machine ends while its worker lives.
_LONG = 4.0
_ENDS = ("worker.settle.before", "broker.settle.before", "broker.settle.after", "")


class CancelsDie(Stories):
    """A cancellation that was answered counts, and one that was not may be asked for again."""

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_whoever_cancels_dies(self) -> None:
        """Asked again, it is done, once, of jobs that wait and of jobs that run."""
        edits = ("broker.edit.before", "broker.edit.after")
        await together(
            *(self._canceller_dies_at(place) for place in edits),
            *(self._canceller_of_a_run_dies_at(place) for place in edits),
        )

    async def _canceller_dies_at(self, place: str) -> None:
        async with self.story() as story:
            specs = [spec for spec in story.plan() if spec.cancelled]
            story.specs = specs
            await story.send(specs)
            await self._cancels(story, specs, dies=place)
            await story.cancel(specs)
            await story.finish()
            await self._is_cancelled(story, starts=0)

    async def _canceller_of_a_run_dies_at(self, place: str) -> None:
        async with self.story() as story, story.worker(lease=_LONG) as worker:
            specs = await self._runs(story)
            await self._cancels(story, specs, dies=place)
            await story.cancel(specs)
            await story.finish()
            await worker.say("stop")
            await worker.ends()
            await self._is_cancelled(story, died=0)

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_the_worker_of_a_cancelled_job_dies(self) -> None:
        """Whether it had been told or not, the job ends as cancelled and is not run again."""
        await together(*(self._cancelled_worker_dies_at(place) for place in _ENDS))

    async def _cancelled_worker_dies_at(self, place: str) -> None:
        async with self.story() as story:
            async with story.worker(place, lease=_LONG) as worker:
                specs = await self._runs(story)
                await story.cancel(specs)
                if place:
                    await died(worker, place)
                else:
                    await worker.kill()
            # Another one would run it if it could.
            await story.drain()
            await self._is_cancelled(story)

    async def _runs(self, story: Story) -> list[Spec]:
        """Submit a job and wait until its handler has begun."""
        specs = [Spec(id="long", payload={"stuck": 600.0}, cancelled=True)]
        story.specs = specs
        await story.send(specs)
        until = asyncio.get_running_loop().time() + PATIENCE
        while not any(line.kind == "start" for line in story.ledger.read()):
            assert asyncio.get_running_loop().time() < until, "I3: the job was never started"
            await asyncio.sleep(PAUSE)
        return specs

    async def _cancels(self, story: Story, specs: Sequence[Spec], *, dies: str) -> None:
        async with story.child("cancel", dies=dies, ids=[spec.id for spec in specs]) as child:
            await died(child, dies)

    async def _is_cancelled(self, story: Story, *, starts: int = 1, died: int = 1) -> None:
        await story.holds(died=died)
        states = {str(record.state) for record in await story.jobs()}
        assert states == {"cancelled"}, f"I1: what was cancelled is {states}"
        ran = sum(line.kind == "start" for line in story.ledger.read())
        assert ran == starts, f"I6: what was cancelled started {ran} times"


__all__ = ["CancelsDie"]
