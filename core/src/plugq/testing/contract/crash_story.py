"""What a story of the crash tests is made of: a store, a ledger, processes and their deaths."""

from __future__ import annotations

import asyncio
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.envelope import open_result
from plugq.failpoints import VARIABLE
from plugq.job import JobRef, JobState
from plugq.protocols.storage import FindQuery
from plugq.testing import crashing
from plugq.testing.children import PATIENCE
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.crashing import Spec
from plugq.testing.ledger import Ledger, check
from plugq.testing.levels import Level
from plugq.testing.requirements import MissingCapability

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from plugq.job import JobRecord
    from plugq.testing.children import Child

_PARTS = crashing.__name__
#: How a process ends that was killed.
KILLED = -9
#: Stories that are told at once.
_TOGETHER = 4
PAUSE = 0.05
_LIVE = tuple(state for state in JobState if not state.final)


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
        new = [spec for spec in specs if spec.id not in known]
        self.specs += new
        for spec in new:
            self.ledger.note("submit", id=spec.id)
        await self.send(specs)
        await self.cancel(specs)

    async def send(self, specs: Sequence[Spec]) -> None:
        """Submit from this process, also what was submitted before."""
        async with crashing.client(self.scene.contract, self.scene.context) as client:
            await client.submit_many([spec.request() for spec in specs])

    async def cancel(self, specs: Sequence[Spec]) -> None:
        """Cancel what is to be cancelled."""
        if not any(spec.cancelled for spec in specs):
            return
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

    async def jobs(self, *states: JobState) -> list[JobRecord]:
        """Return the jobs in these states, in any without one; their results are left out."""
        found: list[JobRecord] = []
        cursor: str | None = None
        while True:
            query = FindQuery(states=states, limit=1000, cursor=cursor)
            page = await self.scene.storage.find(query)
            found += page.jobs
            if (cursor := page.cursor) is None:
                return found

    async def records(self) -> list[JobRecord]:
        """Return every job of the store, with its result."""
        refs = [JobRef(job.queue, job.id) for job in await self.jobs()]
        found = await self.scene.storage.get(refs) if refs else []
        return [record for record in found if record is not None]

    async def finish(self) -> None:
        """Sweep until every job has ended, as others work on."""
        ids = {spec.id for spec in self.specs}
        left: list[str] = []
        until = asyncio.get_running_loop().time() + PATIENCE
        while asyncio.get_running_loop().time() < until:
            await self.scene.sweep()
            left = [job.id for job in await self.jobs(*_LIVE) if job.id in ids]
            if not left:
                return
            await asyncio.sleep(PAUSE)
        raise AssertionError(f"I14: {left} did not end in {PATIENCE:g} s")

    async def drain(self) -> None:
        """Let a worker do what is left, and end it in peace."""
        async with self.worker() as worker:
            await worker.hear()
            await self.finish()
            await worker.say("stop")
            await worker.ends()

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
    assert code == KILLED, f"{place}: the process ended with {code}: {child.printed()}"
    assert f"failpoint {name}" in child.printed(), f"{place}: {child.printed()}"


async def together(*stories: Coroutine[Any, Any, None]) -> None:
    """Tell independent stories, a few at a time, and each to its end."""
    turns = asyncio.Semaphore(_TOGETHER)

    async def turn(story: Coroutine[Any, Any, None]) -> None:
        async with turns:
            await story

    ends = await asyncio.gather(*map(turn, stories), return_exceptions=True)
    failed = [end for end in ends if end is not None]
    if worse := [error for error in failed if not isinstance(error, NeverPassed)]:
        message = f"{len(worse)} of {len(ends)} stories went wrong"
        raise BaseExceptionGroup(message, worse)
    # A place that is passed some times was passed where less was asked for.
    if failed and len(failed) == len(ends):
        raise failed[0]


async def dies_or_finishes(story: Story, child: Child, place: str) -> None:
    """Wait for a death at a place that a storage need not have."""
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
    # What went wrong meanwhile is no missing place.
    finishing.result()
    raise NeverPassed(place.partition("@")[0])


class Stories(Contract):
    """Tells what happened to a store while processes died."""

    level = Level.CRASH

    @asynccontextmanager
    async def story(self) -> AsyncIterator[Story]:
        """Open an empty store in real time, with a ledger beside it."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            async with self.scene(real_time=True) as scene:
                yield Story(scene, Path(folder))


__all__ = [
    "KILLED",
    "PAUSE",
    "NeverPassed",
    "Stories",
    "Story",
    "died",
    "dies_or_finishes",
    "together",
]
