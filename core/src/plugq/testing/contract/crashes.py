"""Processes that die in the middle of it: no promise may depend on their living on."""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import uuid
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from plugq.envelope import open_result
from plugq.failpoints import VARIABLE
from plugq.job import JobRef
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import FindQuery
from plugq.testing import crashing
from plugq.testing.children import PATIENCE
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.crashing import EVERY, Spec
from plugq.testing.ledger import Ledger, check, missing_ticks
from plugq.testing.levels import Level
from plugq.testing.requirements import MissingCapability, requires

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from plugq.job import JobRecord
    from plugq.testing.children import Child

_PARTS = crashing.__name__
#: How a process ends that was killed.
_KILLED = -9
#: Stories that are told at once.
_TOGETHER = 3
_PAUSE = 0.05


class NeverPassed(MissingCapability):
    """The storage under test has not placed a failpoint, which no storage has to."""

    def __init__(self, place: str) -> None:
        super().__init__(frozenset())
        self.place = place

    def __str__(self) -> str:
        """Say which place that is."""
        return f"the storage never passes the failpoint {self.place}"


class Story:
    """One store, its ledger and what was submitted to it."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene = scene
        self.ledger: Ledger = Ledger(folder / "ledger")
        self.specs: list[Spec] = []

    def plan(self) -> list[Spec]:
        """Return jobs of every kind."""
        specs = [Spec(id=f"plain-{n}", payload={"n": n}) for n in range(8)]
        specs += [Spec(id=f"thread-{n}", task="thread", payload={"n": n}) for n in range(4)]
        specs += [
            Spec(id=f"lane-{n}", payload={"n": n, "hold": 0.01}, options={"lane": f"lane-{n % 2}"})
            for n in range(6)
        ]
        specs += [Spec(id=f"unique-{n}", payload={"n": n}, unique=f"key-{n}") for n in range(2)]
        specs += [
            Spec(id=f"batch-{n}", payload={"n": n}, options={"batch": "b", "max_attempts": 2})
            for n in range(2)
        ]
        specs.append(Spec(id="later", payload={}, options={"delay": 0.3}))
        specs.append(Spec(id="never", payload={}, options={"delay": 3600.0}, cancelled=True))
        return specs

    async def submit(self, specs: Sequence[Spec]) -> None:
        """Submit from this process, also what was submitted before, and cancel what is to be."""
        known = {spec.id for spec in self.specs}
        self.specs += [spec for spec in specs if spec.id not in known]
        async with crashing.client(self.scene.contract, self.scene.context) as client:
            await client.submit_many([spec.request() for spec in specs])
        await self.cancel(specs)

    async def cancel(self, specs: Sequence[Spec]) -> None:
        """Cancel what is to be cancelled."""
        async with crashing.client(self.scene.contract, self.scene.context) as client:
            await client.cancel(
                *(client.handle(s.id, queue="default") for s in specs if s.cancelled)
            )

    @asynccontextmanager
    async def child(self, part: str, *, dies: str = "", **arguments: Any) -> AsyncIterator[Child]:
        """Run a part in a process that dies at a place."""
        async with self.scene.child(
            f"{_PARTS}:{part}", environment={VARIABLE: dies}, **arguments
        ) as child:
            yield child

    def worker(self, dies: str = "", **arguments: Any) -> Any:
        """Run a worker in a process."""
        return self.child("work", dies=dies, ledger=str(self.ledger.path), **arguments)

    async def records(self) -> list[JobRecord]:
        """Return every job of the store, with its result."""
        refs: list[JobRef] = []
        cursor: str | None = None
        while True:
            page = await self.scene.storage.find(FindQuery(limit=1000, cursor=cursor))
            refs += [JobRef(job.queue, job.id) for job in page.jobs]
            if (cursor := page.cursor) is None:
                break
        found = await self.scene.storage.get(refs) if refs else []
        return [record for record in found if record is not None]

    async def finish(self) -> None:
        """Sweep until every job has ended, as others work on."""
        ids = {spec.id for spec in self.specs}
        left: list[str] = []
        until = asyncio.get_running_loop().time() + PATIENCE
        while asyncio.get_running_loop().time() < until:
            await self.scene.sweep()
            live = [record.id for record in await self.records() if not record.state.final]
            left = [id for id in live if id in ids]
            if not left:
                return
            await asyncio.sleep(_PAUSE)
        raise AssertionError(f"I14: {left} did not end in {PATIENCE:g} s")

    async def holds(self, *, died: int = 1) -> None:
        """Hold the ledger against the store."""
        records = await self.records()
        expected = [spec.expected() for spec in self.specs]
        results = {
            r.id: msgspec.json.decode(open_result(r.result).value)
            for r in records
            if r.result is not None
        }
        stats = await self.scene.storage.stats()
        broken = check(self.ledger.read(), expected, records, stats, results=results, died=died)
        assert not broken, "\n".join(broken)


async def died(child: Child, place: str) -> None:
    """Check that a process was killed at that place."""
    code = await child.wait()
    name = place.partition("@")[0]
    assert code == _KILLED, f"{place}: the process ended with {code}: {child.printed()}"
    assert f"failpoint {name}" in child.printed(), f"{place}: {child.printed()}"


async def together(*stories: Coroutine[Any, Any, None]) -> None:
    """Tell independent stories, a few at a time."""
    turns = asyncio.Semaphore(_TOGETHER)

    async def turn(story: Coroutine[Any, Any, None]) -> None:
        async with turns:
            await story

    skip: BaseException
    try:
        async with asyncio.TaskGroup() as group:
            for story in stories:
                group.create_task(turn(story))
    except* NeverPassed as never:
        skip = never
    else:
        return
    while isinstance(skip, BaseExceptionGroup):
        skip = skip.exceptions[0]
    raise skip


class Crashes(Contract):
    """What the death of a process may cost: time, and one attempt of each job it ran."""

    level = Level.CRASH
    #: How many processes are killed at random; more by ``PLUGQ_CRASH_KILLS``.
    crash_kills: ClassVar[int] = int(os.environ.get("PLUGQ_CRASH_KILLS", "5"))
    #: What chooses their moments.
    crash_seed: ClassVar[int] = int(os.environ.get("PLUGQ_CRASH_SEED", "1"))

    @asynccontextmanager
    async def story(self) -> AsyncIterator[Story]:
        """Open an empty store in real time, with a ledger beside it."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            async with self.scene(real_time=True) as scene:
                yield Story(scene, Path(folder))

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
                    await self._dies_or_finishes(story, one, place)
                else:
                    await died(one, place)
            async with story.worker() as other:
                await other.hear()
                await story.finish()
                await other.say("stop")
                await other.ends()
            await story.holds()

    async def _dies_or_finishes(self, story: Story, child: Child, place: str) -> None:
        dying = asyncio.create_task(died(child, place))
        finishing = asyncio.create_task(story.finish())
        await asyncio.wait({dying, finishing}, return_when=asyncio.FIRST_COMPLETED)
        finishing.cancel()
        await asyncio.gather(finishing, return_exceptions=True)
        if dying.done():
            dying.result()
            return
        dying.cancel()
        await asyncio.gather(dying, return_exceptions=True)
        raise NeverPassed(place.partition("@")[0])

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

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_submitter_dies(self) -> None:
        """What it knows to be stored is there; all that it sends again is there once (I1, I8)."""
        places = ("client.submit.before", "client.submit.after", "broker.submit.before")
        await together(
            *(self._submitter_dies_at(f"{p}@2") for p in (*places, "broker.submit.after"))
        )

    async def _submitter_dies_at(self, place: str) -> None:
        async with self.story() as story:
            specs = story.plan()
            plain = [msgspec.to_builtins(spec) for spec in specs]
            async with story.child("submit", dies=place, specs=plain) as child:
                assert await child.hear() == "ready"
                await child.say("go")
                told = {id for some in await child.rest() for id in some}
                await died(child, place)
            stored = {record.id for record in await story.records()}
            assert told <= stored, f"I1: {told - stored} were acknowledged and are gone"
            # As the submitter would, who knows only that it was not answered.
            await story.submit(specs)
            async with story.worker() as worker:
                await worker.hear()
                await story.finish()
                await worker.say("stop")
                await worker.ends()
            await story.holds()

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_whoever_cancels_dies(self) -> None:
        """Asked again, it is done, once."""
        await together(*(self._canceller_dies_at(f"broker.edit.{w}") for w in ("before", "after")))

    async def _canceller_dies_at(self, place: str) -> None:
        async with self.story() as story:
            specs = [spec for spec in story.plan() if spec.cancelled]
            story.specs = specs
            async with crashing.client(self, story.scene.context) as client:
                await client.submit_many([spec.request() for spec in specs])
            async with story.child("cancel", dies=place, ids=[spec.id for spec in specs]) as child:
                await died(child, place)
            await story.cancel(specs)
            await story.finish()
            await story.holds()
            states = {str(record.state) for record in await story.records()}
            assert states == {"cancelled"}, states

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_scheduler_dies(self) -> None:
        """Each tick is submitted once, whichever step of it was the last (I12)."""
        await together(
            *(self._scheduler_dies_at(f"scheduler.{w}@2") for w in ("noted", "submitted"))
        )

    async def _scheduler_dies_at(self, place: str) -> None:
        async with self.story() as story:
            async with story.worker(place, ticking=True) as one:
                await died(one, place)
            before = len(await self._ticks(story))
            async with story.worker(ticking=True) as other:
                await other.hear()
                until = asyncio.get_running_loop().time() + PATIENCE
                while len(await self._ticks(story)) < before + 3:
                    assert asyncio.get_running_loop().time() < until, "I12: no more ticks"
                    await asyncio.sleep(_PAUSE)
                await other.say("stop")
                await other.ends()
            async with story.worker() as rest:
                await rest.hear()
                story.specs = [Spec(id=record.id, payload={}) for record in await story.records()]
                await story.finish()
                await rest.say("stop")
                await rest.ends()
            await story.holds()
            broken = missing_ticks(await self._ticks(story), EVERY)
            assert not broken, "\n".join(broken)

    async def _ticks(self, story: Story) -> list[float]:
        return [
            datetime.fromisoformat(record.id.partition("@")[2]).timestamp()
            for record in await story.records()
        ]

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_job_that_kills_its_workers_is_given_up(self) -> None:
        """It ends as ``failed``, code ``crashed``, and the others do not suffer (I7)."""
        async with self.story() as story:
            await story.submit([Spec(id="poison", task="poison", payload={})])
            for _ in range(3):
                async with story.worker() as worker:
                    code = await worker.wait()
                    assert code == _KILLED, worker.printed()
                while (await story.scene.show("poison", "default")).state == "running":
                    await story.scene.sweep()
                    await asyncio.sleep(_PAUSE)
            state = (await story.scene.show("poison", "default")).state
            assert state == "failed", f"I7: it has killed three workers and is {state}"
            await story.submit([Spec(id=f"after-{n}", payload={}) for n in range(3)])
            async with story.worker() as worker:
                await worker.hear()
                await story.finish()
                await worker.say("stop")
                await worker.ends()
            await story.holds(died=3)

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_the_death_of_one_ends_no_lease_of_another(self) -> None:
        """A lease outlives the death of others and the next start of the storage (I4, I6)."""
        async with self.story() as story:
            await story.scene.submit("held", lane="one")
            await story.scene.submit("next", lane="one")
            lease = await story.scene.take("held", lease=600.0)
            await story.scene.submit("spare", queue="default")
            async with story.worker("broker.claim.before", lease=600.0) as one:
                await died(one, "broker.claim.before")
            async with story.scene.another() as again:
                await again.sweep()
                assert await again.claimed_ids() == [], "I9: the lane of a holder was freed"
                assert (await again.show("held")).token == lease.token
                assert not (await again.settle(lease)).lost, "I4: a lease was forgotten"

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_workers_die_at_random_moments(self) -> None:
        """Under load, again and again: the ledger adds up."""
        chance = random.Random(self.crash_seed)  # noqa: S311 - a story that can be told again
        async with self.story() as story, AsyncExitStack() as stack:
            specs: list[Spec] = []

            async def start() -> Child:
                child: Child = await stack.enter_async_context(story.worker())
                await child.hear()
                return child

            workers = [await start() for _ in range(2)]
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
                specs += more
                await story.submit(more)
                await asyncio.sleep(chance.uniform(0.0, 0.3))
                index = chance.randrange(len(workers))
                await workers[index].kill()
                workers[index] = await start()
                await story.scene.sweep()
            await story.finish()
            for worker in workers:
                await worker.say("stop")
                await worker.ends()
            await story.holds(died=self.crash_kills)


__all__ = ["Crashes", "NeverPassed", "Story"]
