"""The counts of batches: they follow every move and outlast the jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import AttemptRecord, JobRecord, JobState, Outcome
from plugq.protocols.storage import BATCH_TTL, FindQuery
from plugq.testing.contract.scene import STATES, Contract

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene

_MS = 0.001


async def _by_state(scene: Scene, batch: str) -> dict[str, int]:
    """Return the states of the jobs of a batch that are stored."""
    states: dict[str, int] = {}
    cursor: str | None = None
    while True:
        page = await scene.storage.find(FindQuery(batch=batch, cursor=cursor))
        for job in page.jobs:
            states[job.state] = states.get(job.state, 0) + 1
        cursor = page.cursor
        if cursor is None:
            return states


class Batches(Contract):
    """What is known of the jobs that were submitted with one key."""

    async def test_a_batch_counts_its_jobs_by_state(self) -> None:
        """Over all queues and tasks, and only its own."""
        async with self.scene() as scene:
            for state in STATES:
                await scene.bring(state, state, batch="x")
            await scene.submit("a", queue="other", task="other", batch="x")
            await scene.submit("b", batch="y")
            await scene.submit("c")
            one_each: dict[str, int] = {str(state): 1 for state in STATES}
            assert await scene.batch() == {**one_each, "queued": 2}
            assert await scene.batch("y") == {"queued": 1}

    async def test_batches_are_answered_in_order(self) -> None:
        """``None`` for what nothing was ever in."""
        async with self.scene() as scene:
            await scene.submit("a", batch="x")
            await scene.submit("b", batch="y")
            found = await scene.storage.batches(["y", "unknown", "x", "y"])
            assert [counts and counts.batch for counts in found] == ["y", None, "x", "y"]
            assert list(await scene.storage.batches([])) == []

    async def test_counts_follow_a_job_through_its_life(self) -> None:
        """Every kind of move."""
        async with self.scene() as scene:
            await scene.submit("a", batch="x", max_attempts=9, delay=10.0)
            assert await scene.batch() == {"delayed": 1}
            scene.clock.advance(10)
            await scene.sweep()
            assert await scene.batch() == {"queued": 1}
            for outcome in (Outcome.RETRY, Outcome.SNOOZE, Outcome.RELEASE):
                lease = await scene.take("a")
                assert await scene.batch() == {"running": 1}
                await scene.end(lease, outcome, delay=10.0)
                assert await scene.batch() == {"delayed": 1}
                scene.clock.advance(10)
            await scene.end(await scene.take("a"), Outcome.RELEASE)
            assert await scene.batch() == {"queued": 1}
            await scene.take("a", lease=10.0)
            await scene.lapse(10)
            assert await scene.batch() == {"queued": 1}
            await scene.end(await scene.take("a"), Outcome.FAIL)
            assert await scene.batch() == {"failed": 1}
            await scene.redrive("a")
            assert await scene.batch() == {"queued": 1}
            await scene.cancel("a")
            assert await scene.batch() == {"cancelled": 1}

    async def test_deadlines_and_crashes_move_counts(self) -> None:
        """Of what waits and of what runs."""
        async with self.scene() as scene:
            await scene.submit("runs", batch="x", deadline_in=10.0)
            await scene.take("runs", lease=600.0)
            await scene.submit("waits", batch="x", deadline_in=10.0)
            await scene.submit("delayed", batch="x", deadline_in=10.0, delay=60.0)
            await scene.submit("crashes", batch="y", max_attempts=1, priority=1)
            await scene.take("crashes", lease=10.0)
            scene.clock.advance(10)
            await scene.sweep(deadline_grace=0.0)
            assert await scene.batch() == {"failed": 3}
            assert await scene.batch("y") == {"failed": 1}

    async def test_counts_outlast_the_jobs(self) -> None:
        """Retention and purge take nothing from them."""
        async with self.scene() as scene:
            for state in (JobState.SUCCEEDED, JobState.FAILED, JobState.SKIPPED):
                await scene.bring(state, state, batch="x", failure_ttl=700.0, result_ttl=700.0)
            await scene.purge(JobState.FAILED)
            scene.clock.advance(700)
            await scene.sweep()
            assert await _by_state(scene, "x") == {}
            assert await scene.batch() == {"succeeded": 1, "failed": 1, "skipped": 1}
            await scene.submit(JobState.FAILED, batch="x")
            assert await scene.batch() == {
                "succeeded": 1,
                "failed": 1,
                "skipped": 1,
                "queued": 1,
            }

    async def test_a_replaced_job_counts_on_as_cancelled(self) -> None:
        """Its new generation is one more job, in whatever batch it says."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.CANCELLED, batch="x")
            (reply,) = await scene.submit("a", batch="x")
            assert reply.generation == 1
            assert await scene.batch() == {"cancelled": 1, "queued": 1}
            await scene.cancel("a")
            await scene.submit("a", batch="y")
            assert await scene.batch() == {"cancelled": 2}
            assert await scene.batch("y") == {"queued": 1}

    async def test_what_is_not_stored_is_not_counted(self) -> None:
        """Duplicates, and calls that a full queue refuses."""
        async with self.scene() as scene:
            job = scene.job("a", batch="x")
            await scene.send(job, job)
            await scene.send(job)
            await scene.send(scene.job("a", batch="y"))
            await scene.configure(max_length=1)
            await scene.send(scene.job("b", batch="y"))
            assert await scene.batch() == {"queued": 1}
            assert await scene.batch("y") is None

    async def test_counts_agree_with_what_is_stored(self) -> None:
        """After every step of a long and mixed life."""
        async with self.scene() as scene:
            for step in range(30):
                fields: dict[str, Any] = {"batch": f"b{step % 3}", "max_attempts": 2}
                await scene.submit(f"a{step}", f"b{step}", delay=step % 4 * 3.0, **fields)
                leases = await scene.claim(3, lease=6.0)
                outcomes = list(Outcome)
                for number, lease in enumerate(leases[:2]):
                    await scene.end(lease, outcomes[(step + number) % len(outcomes)], delay=2.0)
                await scene.cancel(f"a{step // 2}")
                await scene.redrive(f"b{step // 2}")
                scene.clock.advance(2)
                await scene.sweep()
                for name in ("b0", "b1", "b2"):
                    assert (await scene.batch(name) or {}) == await _by_state(scene, name)

    async def test_restored_jobs_are_counted(self) -> None:
        """In the states that they have."""
        async with self.scene() as scene:
            now = scene.clock.time()
            jobs = [
                JobRecord(
                    queue="q",
                    id=state,
                    task="t",
                    state=state,
                    sequence=number,
                    batch="x",
                    worker="w",
                    submitted_at=now,
                    ready_at=now,
                    started_at=now,
                    finished_at=now if state.final else None,
                    lease_until=now + 30 if state is JobState.RUNNING else None,
                    history=(AttemptRecord(attempt=1, code="error"),),
                )
                for number, state in enumerate(JobState, 1)
            ]
            await scene.storage.restore(jobs)
            await scene.storage.restore(jobs)
            assert await scene.batch() == dict.fromkeys(JobState, 1)

    async def test_counts_are_forgotten_a_while_after_the_last_change(self) -> None:
        """Once none of the jobs is live; swept or not."""
        for swept in (False, True):
            async with self.scene() as scene:
                await scene.submit("a", "b", batch="x", result_ttl=0.0)
                await scene.submit("live", batch="y", priority=-1)
                for lease in await scene.claim(2):
                    scene.clock.advance(100)
                    await scene.end(lease)
                scene.clock.advance(BATCH_TTL - _MS)
                await scene.sweep()
                assert await scene.batch() == {"succeeded": 2}
                scene.clock.advance(_MS)
                if swept:
                    await scene.sweep()
                assert await scene.batch() is None
                assert await scene.batch("y") == {"queued": 1}
                await scene.submit("c", batch="x")
                assert await scene.batch() == {"queued": 1}

    async def test_a_batch_with_a_live_job_is_never_forgotten(self) -> None:
        """However long it lives; its end is a change."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.FAILED, batch="x")
            scene.clock.advance(BATCH_TTL - 1)
            await scene.submit("b", batch="x")
            scene.clock.advance(10 * BATCH_TTL)
            await scene.sweep()
            assert await scene.batch() == {"failed": 1, "queued": 1}
            await scene.end(await scene.take("b"))
            scene.clock.advance(BATCH_TTL - _MS)
            await scene.sweep()
            assert await scene.batch() == {"failed": 1, "succeeded": 1}

    async def test_a_job_that_outlived_its_batch_is_counted_when_it_is_redriven(self) -> None:
        """As the first of a batch that begins anew."""
        for swept in (False, True):
            async with self.scene() as scene:
                await scene.bring("a", JobState.FAILED, batch="x", failure_ttl=None)
                scene.clock.advance(BATCH_TTL)
                if swept:
                    await scene.sweep()
                await scene.redrive("a")
                assert await scene.batch() == {"queued": 1}
                await scene.end(await scene.take("a"))
                assert await scene.batch() == {"succeeded": 1}

    async def test_a_job_that_outlived_its_batch_joins_those_that_came_after_it(self) -> None:
        """It takes none of them from their counts, however often it is redriven."""
        async with self.scene() as scene:
            await scene.bring("old", JobState.FAILED, batch="x", failure_ttl=None)
            await scene.bring("older", JobState.FAILED, batch="x", failure_ttl=None)
            scene.clock.advance(BATCH_TTL)
            await scene.bring("new", JobState.FAILED, batch="x", failure_ttl=None)
            await scene.redrive("old")
            assert await scene.batch() == {"queued": 1, "failed": 1}
            await scene.end(await scene.take("old"), Outcome.FAIL)
            assert await scene.batch() == {"failed": 2}
            await scene.redrive("old")
            assert await scene.batch() == {"queued": 1, "failed": 1}
            await scene.end(await scene.take("old"))
            await scene.redrive("new")
            await scene.redrive("older")
            assert await scene.batch() == {"queued": 2, "succeeded": 1}

    async def test_a_restored_job_is_counted_once_when_it_is_redriven(self) -> None:
        """Whatever its sequence, in a batch that others are in."""
        async with self.scene() as scene:
            await scene.submit("other", delay=60.0)
            await scene.bring("a", JobState.FAILED, batch="x")
            now = scene.clock.time()
            job = JobRecord(
                queue="q",
                id="b",
                task="t",
                state=JobState.FAILED,
                sequence=1,
                batch="x",
                finished_at=now,
            )
            await scene.storage.restore([job])
            await scene.redrive("b")
            assert await scene.batch() == {"queued": 1, "failed": 1}

    async def test_find_by_batch_examines_only_that_batch(self) -> None:
        """One page finds its jobs, however many others there are."""
        async with self.scene() as scene:
            await scene.submit("first", batch="x")
            for start in range(0, 2_000, 500):
                await scene.submit(*(str(start + number) for number in range(500)))
            await scene.submit("last", batch="x")
            await scene.submit("y", batch="y")
            page = await scene.storage.find(FindQuery(batch="x"))
            assert ([job.id for job in page.jobs], page.cursor) == (["last", "first"], None)
            page = await scene.storage.find(FindQuery(batch="x", limit=1))
            assert [job.id for job in page.jobs] == ["last"]
            page = await scene.storage.find(FindQuery(batch="x", limit=1, cursor=page.cursor))
            assert [job.id for job in page.jobs] == ["first"]
            await scene.cancel("last")
            await scene.purge("last")
            assert [job.id for job in (await scene.storage.find(FindQuery(batch="x"))).jobs] == [
                "first",
            ]
            page = await scene.storage.find(FindQuery(batch="unknown"))
            assert (page.jobs, page.cursor) == ((), None)


__all__ = ["Batches"]
