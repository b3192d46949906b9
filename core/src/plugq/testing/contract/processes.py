"""Processes that open a new store at once, and processes that end without a farewell."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from plugq.job import JobState
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import FindQuery
from plugq.testing.children import Child, child
from plugq.testing.contract.crew import Crew, Side, at_work, begin
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.contract.sharing import stand_idle
from plugq.testing.levels import Level
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.protocols.plugin import PluginContext

#: The code of a process that ends itself without tidying up.
_GONE = 3
_HERE = __name__

_several = requires(Capability.SHARED_PROCESSES)
_several_pushed = requires(Capability.SHARED_PROCESSES, Capability.PUSH_WAKEUPS)
_durable = requires(Capability.SHARED_PROCESSES, Capability.DURABLE)


async def open_and_use(side: Side, name: str) -> None:
    """Wait for the word, open the store, submit a job and see it."""
    side.say("ready")
    await side.hear()
    async with side.contract.open(side.context) as storage:
        scene = Scene(side.contract, side.context, storage)
        await scene.submit(name)
        assert await scene.state(name) is JobState.QUEUED
        side.say("done")
        await side.hear()


async def work_on(side: Side, name: str, *, rounds: int, leave: bool) -> None:
    """Submit and run jobs; tell of each only when the storage has answered.

    After so many rounds it ends, or if it shall ``leave``, the process does, in the middle of a
    call.
    """
    async with at_work(side) as scene:
        for number in itertools.count():
            if number == rounds and not leave:
                return
            ids = [f"{name}-{number}-{place}" for place in range(3)]
            call = asyncio.ensure_future(scene.submit(*ids, body=name.encode(), max_attempts=100))
            if number == rounds:
                await asyncio.sleep(0)
                os._exit(_GONE)
            await call
            side.say(("accepted", ids))
            leases = await scene.claim(2, worker=name, lease=60.0)
            side.say(("started", [lease.id for lease in leases]))
            replies, _ = await scene.storage.settle([scene.settlement(one) for one in leases])
            assert not any(reply.lost for reply in replies)
            side.say(("succeeded", [lease.id for lease in leases]))


async def _stored(scene: Scene) -> dict[str, JobState]:
    """Return every job of the store with its state."""
    found: dict[str, JobState] = {}
    cursor: str | None = None
    while True:
        page = await scene.storage.find(FindQuery(limit=500, cursor=cursor))
        found.update((job.id, job.state) for job in page.jobs)
        cursor = page.cursor
        if cursor is None:
            return found


class Processes(Contract):
    """What the beginning and the end of a process do to the others: nothing."""

    level = Level.CONCURRENCY

    @_several
    async def test_a_new_store_may_be_opened_by_several_at_once(self) -> None:
        """Whoever comes first makes it, and everybody sees what the others store."""
        async with self.scene(real_time=True) as scene, AsyncExitStack() as stack:
            folder = scene.context.base_dir / "another"
            folder.mkdir()
            context = replace(
                scene.context, namespace=f"{scene.context.namespace}-2", base_dir=folder
            )
            mates = [
                await stack.enter_async_context(
                    child(self, context, f"{_HERE}:open_and_use", name=f"m{number}")
                )
                for number in range(4)
            ]
            for mate in mates:
                assert await mate.hear() == "ready"
            await begin(*mates)
            for mate in mates:
                assert await mate.hear() == "done"
            await self._finds(context, {f"m{number}" for number in range(4)})
            for mate in mates:
                await mate.say("end")
                await mate.ends()

    async def _finds(self, context: PluginContext, expected: set[str]) -> None:
        async with self.open(context) as storage:
            assert set(await _stored(Scene(self, context, storage))) == expected

    @_durable
    async def test_what_a_process_was_told_outlives_its_sudden_end(self) -> None:
        """It stops nothing, and is ended from within and from without while it writes (I1, I15)."""
        async with self.scene(real_time=True) as scene:
            crew = Crew(scene, processes=True)
            endless = sys.maxsize
            async with (
                crew.members(work_on, 1, name="killed", rounds=endless, leave=False) as [victim],
                crew.members(work_on, 1, name="left", rounds=20, leave=True) as [leaver],
                crew.members(work_on, 1, name="other", rounds=60, leave=False) as [other],
            ):
                assert isinstance(victim, Child)
                assert isinstance(leaver, Child)
                await begin(victim, leaver, other)
                said = [await victim.hear() for _ in range(50)]
                victim.process.kill()
                said += await victim.rest()
                said += await leaver.rest()
                assert await leaver.wait() == _GONE
                said += await other.rest()
                await other.ends()
            await self._is_kept(scene, said)

    @_several_pushed
    async def test_a_killed_process_is_woken_in_place_of_no_other_for_long(self) -> None:
        """What it swallowed costs a sweep for each of its peers at most."""
        async with self.scene(real_time=True) as scene:
            crew = Crew(scene, processes=True)
            async with (
                crew.members(stand_idle, 1, name="dead", count=5) as [dead],
                crew.members(stand_idle, 1, name="alive", count=1) as [alive],
            ):
                for mate in (dead, alive):
                    await begin(mate)
                    assert await mate.hear() == "idle"
                assert isinstance(dead, Child)
                await dead.kill()
                await scene.submit("a")
                for _ in range(5):
                    await scene.sweep()
                # Its peer gets its notices in order, so by then it has heard of the wake-up.
                await scene.submit("last", queue="other", origin="alive-0", delay=60.0)
                await scene.cancel("last", "other")
                assert await alive.hear() == ["woken", "alive-0"]
                await alive.say("stop")
                await alive.rest()
                await alive.ends()

    async def _is_kept(self, scene: Scene, said: list[Any]) -> None:
        """Check the store against what processes were told, and run what is left in it."""
        accepted = {id for kind, ids in said if kind == "accepted" for id in ids}
        ended = [id for kind, ids in said if kind == "succeeded" for id in ids]
        assert len(set(ended)) == len(ended)
        stored = await _stored(scene)
        assert accepted <= set(stored)
        assert {stored[id] for id in ended} == {JobState.SUCCEEDED}
        await scene.settled_store()
        # The one that was killed may have held two.
        assert await scene.count(JobState.RUNNING) <= 2
        rest = await scene.count(JobState.QUEUED)
        granted: list[str] = []
        while leases := await scene.claim(100, worker="rest"):
            for lease in leases:
                assert lease.body == lease.id.partition("-")[0].encode()
            granted += [lease.id for lease in leases]
            await scene.storage.settle([scene.settlement(lease) for lease in leases])
        assert len(granted) == len(set(granted)) == rest
        assert not set(granted) & set(ended)


__all__ = ["Processes"]
