"""Several processes on one store at once."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from plugq.protocols.plugin import Capability
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.levels import Level
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.testing.child import Side

_HERE = __name__


async def claim_all(side: Side, worker: str) -> None:
    """Open the store, wait for the word, claim and settle until nothing is left, tell of each."""
    async with side.contract.open(side.context) as storage:
        scene = Scene(side.contract, side.context, storage)
        side.say("ready")
        await side.hear()
        while leases := await scene.claim(20, worker=worker):
            side.say([(lease.id, lease.token) for lease in leases])
            for lease in leases:
                await scene.end(lease)


class Processes(Contract):
    """What processes may do to each other's work: nothing."""

    level = Level.CONCURRENCY

    @requires(Capability.SHARED_PROCESSES)
    async def test_processes_claim_each_job_once(self) -> None:
        """Four of them, 1,000 jobs, each granted to one under a token of its own (I4, I5)."""
        async with self.scene(real_time=True) as scene, AsyncExitStack() as stack:
            ids = {str(number) for number in range(1_000)}
            await scene.submit(*ids)
            children = [
                await stack.enter_async_context(
                    scene.child(f"{_HERE}:claim_all", worker=f"w-{number}")
                )
                for number in range(4)
            ]
            for each in children:
                assert await each.hear() == "ready"
            for each in children:
                await each.say("go")
            granted = [
                (id, token) for each in children for said in await each.rest() for id, token in said
            ]
            for each in children:
                await each.ends()
            assert sorted(id for id, _ in granted) == sorted(ids)
            assert len({token for _, token in granted}) == len(ids)


__all__ = ["Processes"]
