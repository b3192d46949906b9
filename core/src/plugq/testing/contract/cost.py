"""Work in proportion to what is asked for, however much is stored."""

from __future__ import annotations

import gc
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, TypeVar

from plugq.job import JobRecord, JobRef, JobState, Outcome
from plugq.protocols.edits import Cancel, Purge, Redrive, Reprioritise, Retain
from plugq.protocols.storage import FindQuery
from plugq.testing.contract.scene import QUEUE, TASK, Contract, Scene
from plugq.testing.levels import Level

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from plugq.protocols.storage import Storage

T = TypeVar("T")

#: How many jobs the smaller store of a comparison holds.
_FEW = 1_000
#: How many jobs a measured call is about.
_BATCH = 50
#: How often each call is made before it is judged: where work is counted, and where it is timed.
_COUNTED, _TIMED = 2, 12
#: How often growth of CPU time is doubted. The least of many tries shows what a call costs; more
#: of them bring it down where something else was in the way, and never where it does the work.
_DOUBTS = 5

#: What stands beside the jobs that a call is about, by how many of twenty stored jobs it is.
_MIXTURE = {
    "finished": 10,
    "delayed": 2,
    "blocked": 2,
    "lane": 2,
    "other": 2,
    "running": 1,
    "low": 1,
}
_KINDS = [kind for kind, count in _MIXTURE.items() for _ in range(count)]


class _Side:
    """One of the two stores that are compared, and the least that each verb has cost there."""

    def __init__(self, contract: Cost, scene: Scene, size: int) -> None:
        self.least: dict[str, int] = {}
        self.counted = False
        self._contract = contract
        self._scene = scene
        self._size = size
        self._rounds = 0

    async def fill(self) -> None:
        """Store a mixture of jobs, none of which a claim of this test should come to."""
        made = dict.fromkeys(_MIXTURE, 0)
        now = self._scene.clock.time()
        jobs: list[JobRecord] = []
        for number in range(self._size):
            kind = _KINDS[number % len(_KINDS)]
            jobs.append(_stored(kind, made[kind], number + 1, now))
            made[kind] += 1
        await self._scene.submit("busy", lane="busy", priority=1000)
        await self._scene.take("busy", worker="holder", lease=86_400.0)
        for start in range(0, len(jobs), 1_000):
            await self._scene.storage.restore(jobs[start : start + 1_000])
        self.counted = await self._contract.work(self._scene.storage) is not None

    async def live(self) -> None:
        """Make every call once and leave the store as large as it was, but for finished jobs."""
        scene, storage, number = self._scene, self._scene.storage, self._rounds
        self._rounds += 1
        jobs = [
            scene.job(f"new-{number}-{n}", priority=100, lane=f"new-{n}" if n % 2 else None)
            for n in range(2 * _BATCH)
        ]
        await self._of("submit", lambda: scene.send(*jobs[:_BATCH]))
        first = await self._of("claim", lambda: scene.claim(_BATCH))
        assert len(first) == _BATCH
        await self._of("renew", lambda: scene.renew(*first))
        ended = [scene.settlement(lease) for lease in first]
        await scene.send(*jobs[_BATCH:])
        request = scene.request(_BATCH)
        _, second = await self._of("settle and claim", lambda: storage.settle(ended, request))
        assert second is not None
        assert len(second.leases) == _BATCH
        ended = [scene.settlement(lease) for lease in second.leases]
        await self._of("settle", lambda: storage.settle(ended))
        swept = await self._of("sweep", scene.sweep)
        assert swept.changes == ()
        await self._look(number)
        await self._steer(number)

    async def _look(self, number: int) -> None:
        storage = self._scene.storage
        refs = [JobRef(QUEUE, f"new-{number}-{n}") for n in range(_BATCH)]
        refs += [self._ref(kind, number) for kind in _MIXTURE]
        assert None not in await self._of("get", lambda: storage.get(refs))
        page = await self._of("find", lambda: storage.find(FindQuery(limit=_BATCH)))
        assert len(page.jobs) == _BATCH
        await self._of("stats", storage.stats)

    async def _steer(self, number: int) -> None:
        """Edit jobs from the midst of many, by one or two at a time."""
        edit = self._scene.storage.edit
        lane, finished = (self._ref("lane", number),), (self._ref("finished", number),)
        waiting = tuple(self._ref(kind, number) for kind in ("blocked", "delayed", "other"))
        await self._of("reprioritise", lambda: edit(Reprioritise(lane, -number - 1)))
        await self._of("cancel", lambda: edit(Cancel(waiting)))
        await self._of("redrive", lambda: edit(Redrive(waiting[:1])))
        await edit(Cancel(waiting[:1]))
        await self._of("retain", lambda: edit(Retain(finished, 86_400.0)))
        await self._of("purge", lambda: edit(Purge(finished)))

    def _ref(self, kind: str, number: int) -> JobRef:
        stored = self._size * _MIXTURE[kind] // len(_KINDS)
        queue = "other" if kind == "other" else QUEUE
        return JobRef(queue, f"{kind}-{(stored // 2 + number) % stored}")

    async def _of(self, verb: str, call: Callable[[], Awaitable[T]]) -> T:
        before = await self._spent()
        result = await call()
        cost = await self._spent() - before
        self.least[verb] = min(cost, self.least.get(verb, cost))
        return result

    async def _spent(self) -> int:
        work = await self._contract.work(self._scene.storage)
        return time.process_time_ns() if work is None else work


def _stored(kind: str, number: int, sequence: int, now: float) -> JobRecord:
    """Return a job that stands beside those that are claimed."""
    state = {
        "finished": JobState.SUCCEEDED,
        "delayed": JobState.DELAYED,
        "running": JobState.RUNNING,
    }.get(kind, JobState.QUEUED)
    running, finished = state is JobState.RUNNING, state is JobState.SUCCEEDED
    # Delays and retention differ, so that they have an order to be kept in.
    later = now + 86_400.0 + number % 977
    return JobRecord(
        queue="other" if kind == "other" else QUEUE,
        id=f"{kind}-{number}",
        task=TASK,
        state=state,
        sequence=sequence + 1,
        submission=b"%d" % sequence,
        priority=-1 if kind == "low" else 0,
        lane={"blocked": "busy", "lane": f"lane-{number // 3}"}.get(kind),
        attempt=1 if running or finished else 0,
        token=sequence + 1 if running or finished else 0,
        worker="holder" if running or finished else "",
        submitted_at=now,
        ready_at=later if kind == "delayed" else now,
        started_at=now if running or finished else None,
        finished_at=now if finished else None,
        expires_at=later if finished else None,
        lease_until=later if running else None,
        body=b"{}",
        result=b"null" if finished else None,
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Let the collector run now, and not while something is timed."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class Cost(Contract):
    """Work in proportion to what is asked for, told by the plugin's work and not by the wall."""

    level = Level.COST
    #: How many jobs the larger store holds that is compared with one of 1,000. An author whose
    #: engine takes minutes to store so many may lower it; below 20,000 it proves little.
    stored: ClassVar[int] = 100_000

    #: How many times as much a call may cost there. Who counts exactly may lower it.
    growth: ClassVar[float] = 2.0

    async def work(self, storage: Storage) -> int | None:
        """Return how much the plugin has done so far for this storage, in whatever it counts.

        Statements, commands, steps or pages: a figure that grows with each call by what that call
        costs and does not depend on what else the machine does. By default there is none, and the
        CPU time of the process is taken, of which an engine in a process of its own spends none:
        its author should count.
        """
        del storage
        return None

    async def test_what_a_verb_costs_does_not_grow_with_what_is_stored(self) -> None:
        """From 1,000 jobs to 100,000 it grows by ``growth`` at most, for each of the verbs."""
        async with self.scene() as few, self.scene() as many:
            small, large = _Side(self, few, _FEW), _Side(self, many, self.stored)
            for side in (small, large):
                await side.fill()
                # The first call of each verb makes what the later ones find.
                await side.live()
                side.least.clear()
            grown: dict[str, tuple[int, int]] = {}
            with _no_collection():
                for _ in range(1 if small.counted else _DOUBTS):
                    for _ in range(_COUNTED if small.counted else _TIMED):
                        await small.live()
                        await large.live()
                    grown = {
                        verb: (small.least[verb], cost)
                        for verb, cost in large.least.items()
                        if cost > self.growth * max(small.least[verb], 1)
                    }
                    if not grown:
                        break
            unit = "of its own work" if small.counted else "ns of CPU time"
            assert not grown, f"beside {_FEW} and {self.stored} jobs, {unit}: {grown}"

    async def test_a_claim_is_filled_however_much_has_ended_or_is_yet_to_come(self) -> None:
        """Finished, delayed and blocked jobs stand in nobody's way."""
        async with self.scene() as scene:
            for start in range(0, 3_000, 500):
                await scene.submit(*(f"done-{start + n}" for n in range(500)))
            while leases := await scene.claim(500):
                settlements = [scene.settlement(lease) for lease in leases]
                await scene.storage.settle(settlements)
            await scene.submit(*(f"delayed-{n}" for n in range(1_000)), delay=3600.0)
            await scene.submit(*(f"blocked-{n}" for n in range(1_000)), lane="busy")
            await scene.take("blocked-0")
            await scene.submit(*(f"ready-{n:03}" for n in range(100)))
            assert await scene.claimed_ids(100) == [f"ready-{n:03}" for n in range(100)]

    async def test_the_number_of_calls_to_drain_does_not_grow_with_the_backlog(self) -> None:
        """Each claim is filled as long as there is enough, with lanes and without."""
        async with self.scene() as scene:
            for lanes in (0, 400):
                count = 2_000
                for start in range(0, count, 500):
                    await scene.send(
                        *(
                            scene.job(
                                f"{lanes}-{number}", lane=str(number % lanes) if lanes else None
                            )
                            for number in range(start, start + 500)
                        )
                    )
                calls = 0
                while leases := await scene.claim(100):
                    calls += 1
                    await scene.storage.settle([scene.settlement(lease) for lease in leases])
                assert calls == count // 100

    async def test_a_burst_of_cancelled_jobs_is_passed_over(self) -> None:
        """The first claim after it is filled."""
        async with self.scene() as scene:
            ids = [str(number) for number in range(2_000)]
            await scene.submit(*ids)
            await scene.submit("last")
            for start in range(0, len(ids), 500):
                await scene.storage.edit(Cancel(scene.refs(*ids[start : start + 500])))
            assert await scene.claimed_ids(1) == ["last"]

    async def test_a_retry_storm_keeps_every_job_once(self) -> None:
        """Going round many times leaves nothing behind."""
        async with self.scene() as scene:
            await scene.submit(*(str(number) for number in range(50)), max_attempts=100)
            for _ in range(20):
                leases = await scene.claim(100)
                assert len({lease.id for lease in leases}) == len(leases) == 50
                await scene.storage.settle(
                    [scene.settlement(lease, Outcome.RETRY, delay=1.0) for lease in leases]
                )
                scene.clock.advance(1)
            assert await scene.count(JobState.DELAYED) + await scene.count(JobState.QUEUED) == 50
            assert await scene.total("started") == 1_000


__all__ = ["Cost"]
