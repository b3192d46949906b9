"""Schedulers that die between the note of a tick and its end."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import plugq
from plugq.protocols.plugin import Capability
from plugq.testing import crashing
from plugq.testing.children import PATIENCE
from plugq.testing.contract.crash_story import PAUSE, Stories, Story, died, together
from plugq.testing.crashing import SCHEDULES, Spec
from plugq.testing.ledger import check_ticks
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.client import Client

#: Seconds of ticks that the second scheduler has to run by itself.
_MORE = 1.2


def ticks(every: float, after: float, until: float) -> list[str]:
    """Return every multiple of ``every`` in (``after``, ``until``], as text."""
    numbers = range(int(after // every) + 1, int(until // every) + 1)
    return [datetime.fromtimestamp(n * every, UTC).isoformat() for n in numbers]


class SchedulersDie(Stories):
    """Each tick is submitted once, whichever step of it was the last of a process."""

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_scheduler_dies(self) -> None:
        """No tick of a cron rule or an interval is missing or doubled (I12)."""
        await together(
            *(self._scheduler_dies_at(f"scheduler.{w}@2") for w in ("noted", "submitted"))
        )

    async def _scheduler_dies_at(self, place: str) -> None:
        async with self.story() as story, crashing.client(self, story.scene.context) as client:
            async with story.worker(place) as one:
                await one.hear()
                began = await self._now(story)
                await self._put(client)
                there = await self._now(story)
                await died(one, place)
            async with story.worker() as other:
                await other.hear()
                until = await self._now(story) + _MORE
                await self._reach(story, until)
                for name in SCHEDULES:
                    await client.schedules.pause(name)
                end = await self._now(story)
                # What was noted before the pause may be stored after it.
                known: set[str] | None = None
                while (ids := {job.id for job in await story.jobs()}) != known:
                    known = ids
                    story.specs = [Spec(id=id, payload={}) for id in sorted(ids)]
                    await story.finish()
                    await asyncio.sleep(PAUSE)
                await other.say("stop")
                await other.ends()
            await story.holds()
            self._is_complete(story, began, there, until, end)

    async def _put(self, client: Client) -> None:
        for name, (_, rule) in SCHEDULES.items():
            job = plugq.job("note", {})
            await client.schedules.put(name, job, **rule, catch_up="all", overlap="allow")

    async def _now(self, story: Story) -> float:
        return (await story.scene.storage.load(["now"])).now

    async def _reach(self, story: Story, until: float) -> None:
        """Wait until ticks have run that fell due after that moment."""
        late = datetime.fromtimestamp(until, UTC).isoformat()
        patience = asyncio.get_running_loop().time() + PATIENCE
        while True:
            ticked = [line for line in story.ledger.read() if line.tick and line.tick > late]
            ran = {line.id.partition("@")[0] for line in ticked}
            if ran >= set(SCHEDULES):
                return
            assert asyncio.get_running_loop().time() < patience, "I12: no more ticks"
            await asyncio.sleep(PAUSE)

    def _is_complete(
        self, story: Story, began: float, there: float, until: float, end: float
    ) -> None:
        """Hold what has run against the ticks that fell due from the one moment to the other."""
        broken: list[str] = []
        for name, (every, _) in SCHEDULES.items():
            lines = [line for line in story.ledger.read() if line.id.startswith(f"{name}@")]
            perhaps = {*ticks(every, began, there), *ticks(every, until, end)}
            broken += check_ticks(lines, ticks(every, there, until), perhaps)
        assert not broken, "\n".join(broken)


__all__ = ["SchedulersDie", "ticks"]
