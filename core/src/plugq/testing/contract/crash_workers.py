"""Workers that die at each step of a job, and storages around their commits."""

from __future__ import annotations

from plugq.protocols.plugin import Capability
from plugq.testing.contract.crash_story import Stories, died, dies_or_finishes, together
from plugq.testing.crashing import Spec
from plugq.testing.requirements import requires


class WorkersDie(Stories):
    """Whatever a worker was about to do, another one goes on with it."""

    async def _worker_dies(self, *places: str) -> None:
        await together(*(self._worker_dies_at(place) for place in places))

    async def _worker_dies_at(self, place: str, *, optional: bool = False) -> None:
        async with self.story() as story:
            specs = story.plan()
            if "renew" in place:
                specs.append(Spec(id="slow", payload={"hold": 1.5}))
            await story.submit(specs)
            async with story.worker(place) as one:
                if optional:
                    await dies_or_finishes(story, one, place)
                else:
                    await died(one, place)
            await story.drain()
            await story.holds()

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_worker_dies_as_it_claims(self) -> None:
        """Before the storage grants, after it has, and before a handler has what was granted."""
        await self._worker_dies("broker.claim.before", "broker.claim.after", "worker.granted")

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_worker_dies_around_its_handlers(self) -> None:
        """Before one begins, and when its effect is done and nobody knows."""
        await self._worker_dies("worker.delivered", "worker.started@3", "worker.finished@3")

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_worker_dies_as_it_settles(self) -> None:
        """Before outcomes are stored, and after."""
        await self._worker_dies(
            "worker.settle.before", "broker.settle.before@2", "broker.settle.after@2"
        )

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_worker_dies_as_it_renews_or_sweeps(self) -> None:
        """Before and after, with its leases in the air."""
        await self._worker_dies(
            "broker.renew.before@2",
            "broker.renew.after@2",
            "sweeper.sweep.before@2",
            "sweeper.sweep.after@2",
        )

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_storage_dies_before_its_commit(self) -> None:
        """What was not answered may be missing, and nothing else."""
        await together(
            *(self._worker_dies_at(f"storage.commit.before@{n}", optional=True) for n in (1, 6, 9))
        )

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_storage_dies_after_its_commit(self) -> None:
        """What was not answered may be there, and is not done twice."""
        await together(
            *(self._worker_dies_at(f"storage.commit.after@{n}", optional=True) for n in (1, 6, 9))
        )


__all__ = ["WorkersDie"]
