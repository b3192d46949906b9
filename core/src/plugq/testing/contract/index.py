"""Looking and steering: get, find, stats, purge, and the restoring of whole jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import PlugqError
from plugq.job import FINAL, LINGER, AttemptRecord, JobRecord, JobRef, JobState, Outcome, Progress
from plugq.protocols.edits import Cancel, Configure, EditStatus, QueueSettings
from plugq.protocols.storage import FindQuery, SubmitStatus
from plugq.testing.contract.scene import STATES, Contract

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene


async def _walk(scene: Scene, **query: Any) -> list[JobRecord]:
    """Return what every page of a walk holds."""
    found: list[JobRecord] = []
    cursor: str | None = None
    while True:
        page = await scene.storage.find(FindQuery(**query, cursor=cursor))
        found += page.jobs
        cursor = page.cursor
        if cursor is None:
            return found


class Index(Contract):
    """What operators see and do."""

    async def test_get_answers_in_order(self) -> None:
        """One answer a name, ``None`` where there is no such job."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            await scene.submit("a", queue="other")
            refs = [
                JobRef("q", "b"),
                JobRef("q", "unknown"),
                JobRef("other", "a"),
                JobRef("unknown", "a"),
                JobRef("q", "b"),
            ]
            jobs = await scene.storage.get(refs)
            assert [job and (job.queue, job.id) for job in jobs] == [
                ("q", "b"),
                None,
                ("other", "a"),
                None,
                ("q", "b"),
            ]
            assert list(await scene.storage.get([])) == []

    async def test_get_returns_the_body_only_if_asked(self) -> None:
        """It may be large."""
        async with self.scene() as scene:
            await scene.submit("a", body=b"payload")
            assert (await scene.show("a")).body is None
            assert (await scene.show("a", body=True)).body == b"payload"

    async def test_find_returns_newest_first(self) -> None:
        """In the order of submission, whatever happened since, without body and result."""
        async with self.scene() as scene:
            await scene.submit("a", "b", priority=0)
            await scene.submit("c", priority=9, delay=60.0)
            await scene.end(await scene.take("a"), result=b"42")
            page = await scene.storage.find(FindQuery())
            assert [job.id for job in page.jobs] == ["c", "b", "a"]
            assert page.cursor is None
            assert {job.body for job in page.jobs} == {job.result for job in page.jobs} == {None}
            assert not page.jobs[2].result_expired

    async def test_find_filters(self) -> None:
        """By state, queue, task, batch and time of submission, and by several at once."""
        async with self.scene() as scene:
            began = scene.clock.time()
            await scene.submit("a", task="t1", batch="x")
            scene.clock.advance(10)
            await scene.submit("b", task="t2", batch="x")
            await scene.submit("c", task="t1", queue="other")
            scene.clock.advance(10)
            await scene.submit("d", task="t1", delay=60.0)
            await scene.cancel("a")

            async def ids(**query: Any) -> list[str]:
                return [job.id for job in await _walk(scene, **query)]

            assert await ids(states=(JobState.QUEUED,)) == ["c", "b"]
            assert await ids(states=(JobState.CANCELLED, JobState.DELAYED)) == ["d", "a"]
            assert await ids(queue="other") == ["c"]
            assert await ids(task="t1") == ["d", "c", "a"]
            assert await ids(batch="x") == ["b", "a"]
            assert await ids(since=began + 10) == ["d", "c", "b"]
            assert await ids(until=began + 10) == ["a"]
            assert await ids(since=began + 10, until=began + 20) == ["c", "b"]
            assert await ids(task="t1", states=(JobState.QUEUED,), queue="other") == ["c"]
            assert await ids(task="unknown") == []

    async def test_find_pages_hold_each_job_once(self) -> None:
        """Pages of any size put together are the whole."""
        async with self.scene() as scene:
            ids = [f"{number:03}" for number in range(50)]
            await scene.submit(*ids)
            for limit in (1, 7, 50, 100):
                found = [job.id for job in await _walk(scene, limit=limit)]
                assert found == ids[::-1]

    async def test_a_walk_is_stable_under_insertion_removal_and_moves(self) -> None:
        """A job that matches throughout appears exactly once."""
        async with self.scene() as scene:
            stays = {f"stays-{number}" for number in range(30)}
            for number in range(30):
                await scene.submit(f"stays-{number}", f"goes-{number}")
            seen: list[str] = []
            cursor: str | None = None
            for step in range(1_000):
                page = await scene.storage.find(FindQuery(limit=4, cursor=cursor))
                seen += [job.id for job in page.jobs]
                cursor = page.cursor
                if cursor is None:
                    break
                await scene.submit(f"new-{step}")
                for number in (step, 29 - step):
                    if 0 <= number < 30:
                        await scene.cancel(f"goes-{number}")
                        await scene.purge(f"goes-{number}")
                await scene.claim(1)
            assert cursor is None
            assert len(seen) == len(set(seen))
            assert stays <= set(seen)

    async def test_a_walk_over_few_matches_among_many_ends(self) -> None:
        """Pages may be short, or empty, and yet not the last."""
        async with self.scene() as scene:
            await scene.submit("first", task="rare")
            for start in range(0, 2_500, 500):
                await scene.submit(*(str(start + number) for number in range(500)))
            await scene.submit("last", task="rare")
            assert [job.id for job in await _walk(scene, task="rare")] == ["last", "first"]

    async def test_find_omits_what_has_expired(self) -> None:
        """Like get, whether or not it was swept."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.SUCCEEDED, result_ttl=700.0)
            await scene.submit("b")
            scene.clock.advance(700)
            assert [job.id for job in await _walk(scene)] == ["b"]

    async def test_a_cursor_that_was_never_given_out_is_refused(self) -> None:
        """With an error of plugq's."""
        async with self.scene() as scene:
            await scene.submit("a")
            for cursor in ("nonsense", "-1", "1; drop", "\x00", "٣"):
                try:
                    await scene.storage.find(FindQuery(cursor=cursor))
                except PlugqError:
                    continue
                message = f"the cursor {cursor!r} was taken"
                raise AssertionError(message)

    async def test_purge_removes_final_jobs(self) -> None:
        """Their id is new afterwards."""
        async with self.scene() as scene:
            for state in sorted(FINAL):
                await scene.bring(state, state)
                assert (await scene.purge(state)).status is EditStatus.DONE
                assert await scene.look(state) is None
                assert (await scene.purge(state)).status is EditStatus.NOT_FOUND
                (reply,) = await scene.submit(state)
                assert reply.generation == 0
                await scene.cancel(state)
            await scene.settled_store()

    async def test_edits_of_unknown_jobs_are_not_found(self) -> None:
        """For every kind of edit."""
        async with self.scene() as scene:
            assert (await scene.cancel("a")).status is EditStatus.NOT_FOUND
            assert (await scene.redrive("a")).status is EditStatus.NOT_FOUND
            assert (await scene.purge("a")).status is EditStatus.NOT_FOUND

    async def test_an_edit_answers_for_each_job_in_order(self) -> None:
        """Whatever became of the others."""
        async with self.scene() as scene:
            await scene.submit("running", "queued")
            await scene.take("running")
            await scene.bring("failed", JobState.CANCELLED)
            replies = await scene.storage.edit(
                Cancel(scene.refs("queued", "unknown", "failed", "running", "queued"))
            )
            assert [reply.status for reply in replies] == [
                EditStatus.DONE,
                EditStatus.NOT_FOUND,
                EditStatus.FINISHED,
                EditStatus.REQUESTED,
                EditStatus.FINISHED,
            ]

    async def test_stats_count_by_state(self) -> None:
        """By queue and task, as the jobs stand now (I13)."""
        async with self.scene() as scene:
            for state in STATES:
                await scene.bring(state, state)
            await scene.submit("x", task="other")
            await scene.submit("x", queue="elsewhere")
            for state in STATES:
                assert await scene.count(state) == 1
            assert await scene.count(JobState.QUEUED, task="other") == 1
            assert await scene.count(JobState.QUEUED, queue="elsewhere") == 1
            assert (await scene.storage.stats()).now == scene.clock.time()
            await scene.settled_store()

    async def test_stats_count_what_happened(self) -> None:
        """Each total rises with its event and never falls."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", "d", max_attempts=5)
            a, b, c, d = await scene.claim(4, lease=10.0)
            await scene.end(a, Outcome.RETRY, delay=100.0)
            await scene.end(b, Outcome.SNOOZE, delay=100.0)
            await scene.end(c, Outcome.RELEASE, delay=100.0)
            await scene.renew(d, lease=5.0)
            await scene.lapse(5)
            d = await scene.take("d")
            await scene.end(d)
            scene.clock.advance(100)
            a, b, c = sorted(await scene.claim(3), key=lambda lease: lease.id)
            await scene.end(a, Outcome.FAIL)
            await scene.end(b, Outcome.SKIP)
            await scene.cancel("c")
            await scene.end(c, Outcome.RELEASE)
            await scene.redrive("a")
            await scene.purge("b")
            stats = await scene.task_stats()
            assert {name: total for name, total in stats.totals.items() if total} == {
                "accepted": 4,
                "started": 8,
                "succeeded": 1,
                "failed": 1,
                "cancelled": 1,
                "skipped": 1,
                "retried": 1,
                "snoozed": 1,
                "released": 1,
                "lease_ended": 1,
                "redriven": 1,
                "removed": 1,
            }
            assert {state: count for state, count in stats.counts.items() if count} == {
                "queued": 1,
                "succeeded": 1,
                "cancelled": 1,
            }

    async def test_stats_agree_with_what_is_stored(self) -> None:
        """Accepted = live + final + removed, after every step of a long and mixed life (I13)."""
        async with self.scene() as scene:
            for step in range(40):
                await scene.submit(
                    f"a{step}",
                    f"b{step}",
                    max_attempts=2,
                    lane=f"l{step % 3}" if step % 2 else None,
                    result_ttl=step % 5 * 10.0,
                    failure_ttl=step % 3 * 10.0,
                    id_ttl=12.0,
                    delay=step % 4 * 3.0,
                    deadline_in=30.0 if step % 7 == 0 else None,
                )
                leases = await scene.claim(3, lease=6.0)
                outcomes = list(Outcome)
                for number, lease in enumerate(leases[:2]):
                    await scene.end(lease, outcomes[(step + number) % len(outcomes)], delay=2.0)
                await scene.cancel(f"a{step // 2}")
                await scene.purge(f"a{step // 3}")
                await scene.redrive(f"b{step // 2}")
                await scene.send(scene.job(f"a{step // 2}"))
                scene.clock.advance(2)
                await scene.sweep(deadline_grace=1.0)
                await scene.settled_store()
            stats = await scene.task_stats()
            by_state: dict[str, int] = {}
            for job in await _walk(scene):
                by_state[job.state] = by_state.get(job.state, 0) + 1
            assert {state: count for state, count in stats.counts.items() if count} == by_state

    async def test_stats_show_pause_settings_and_the_oldest_ready_job(self) -> None:
        """By queue."""
        async with self.scene() as scene:
            settings = QueueSettings(queue="q", max_running=5, lane_max_running=2, max_length=1_000)
            await scene.storage.edit(Configure((settings,)))
            await scene.submit("a")
            await scene.submit("b", queue="other", delay=60.0)
            scene.clock.advance(7)
            await scene.pause("other")
            queues = {stats.queue: stats for stats in (await scene.storage.stats()).queues}
            assert (queues["q"].paused, queues["q"].oldest) == (False, 7)
            assert queues["q"].settings == settings
            assert (queues["other"].paused, queues["other"].oldest) == (True, None)

    async def test_a_restored_job_is_the_same_job(self) -> None:
        """Whole, in every state, and alive: it goes on where it stood."""
        async with self.scene() as scene:
            now = scene.clock.time()
            jobs = [
                JobRecord(
                    queue="q",
                    id=f"{state}-1",
                    task="t",
                    state=state,
                    sequence=1_000 + number,
                    generation=2,
                    submission=b"s",
                    priority=3,
                    lane=state,
                    batch="b",
                    attempt=1,
                    max_attempts=4,
                    crashes=1,
                    token=7_000 + number,
                    worker="w-old",
                    submitted_at=now - 50,
                    ready_at=now + 60 if state is JobState.DELAYED else now - 40,
                    started_at=now - 30,
                    finished_at=now - 20 if state.final else None,
                    expires_at=now + 500 if state.final else None,
                    lease_until=now + 30 if state is JobState.RUNNING else None,
                    progress=Progress(current=1.0, details={"k": 1}),
                    code="error" if state is JobState.FAILED else "",
                    history=(AttemptRecord(attempt=1, code="crashed", worker="w-old"),),
                    body=b"payload",
                    result=b"42" if state is JobState.SUCCEEDED else None,
                )
                for number, state in enumerate(STATES)
            ]
            await scene.storage.restore(jobs)
            for job in jobs:
                assert await scene.show(job.id, body=True) == job
            await scene.settled_store()
            queued = await scene.take("queued-1")
            assert (queued.attempt, queued.body, queued.generation) == (2, b"payload", 2)
            assert queued.token > max(job.token for job in jobs)
            running = scene.relabel(queued, id="running-1", token=jobs[0].token)
            assert await scene.end(running) is JobState.SUCCEEDED
            scene.clock.advance(60)
            assert (await scene.take("delayed-1")).attempt == 2
            assert (await scene.redrive("failed-1")).status is EditStatus.DONE
            (reply,) = await scene.submit("new")
            assert reply.sequence > max(job.sequence for job in jobs)
            scene.clock.advance(500)
            await scene.sweep()
            assert await scene.look("succeeded-1") is None
            await scene.settled_store()

    async def test_restoring_leaves_an_existing_id_alone(self) -> None:
        """Restoring twice is like restoring once."""
        async with self.scene() as scene:
            await scene.submit("a", body=b"mine")
            job = JobRecord(queue="q", id="a", task="x", state=JobState.FAILED, sequence=5)
            await scene.storage.restore([job, msgspec.structs.replace(job, id="b")])
            await scene.storage.restore([msgspec.structs.replace(job, id="b", task="y")])
            a, b = await scene.show("a", body=True), await scene.show("b")
            assert (a.state, a.body) == (JobState.QUEUED, b"mine")
            assert (b.state, b.task) == (JobState.FAILED, "x")
            await scene.settled_store()

    async def test_a_restored_job_is_found_and_deduplicated(self) -> None:
        """It takes part in everything."""
        async with self.scene() as scene:
            job = JobRecord(
                queue="q", id="a", task="t", state=JobState.QUEUED, sequence=9, submission=b"s"
            )
            await scene.storage.restore([job])
            assert [found.id for found in await _walk(scene)] == ["a"]
            (other,) = await scene.send(scene.job("a"))
            assert (other.status, other.sequence) == (SubmitStatus.DUPLICATE, 9)
            (same,) = await scene.send(scene.job("a", submission=b"s"))
            assert same.status is SubmitStatus.ACCEPTED

    async def test_a_restored_failure_that_is_redriven_keeps_its_result_as_any_other(self) -> None:
        """For the usual time, whatever was left of its retention as a failure."""
        async with self.scene() as scene:
            now = scene.clock.time()
            job = JobRecord(
                queue="q",
                id="a",
                task="t",
                state=JobState.FAILED,
                sequence=1,
                max_attempts=1,
                finished_at=now - 10,
                expires_at=now + 20,
            )
            await scene.storage.restore([job])
            await scene.redrive("a")
            await scene.end(await scene.take("a"))
            scene.clock.advance(3_599)
            assert (await scene.show("a")).result == b"null"
            scene.clock.advance(1)
            await scene.sweep()
            assert await scene.look("a") is None

    async def test_a_restored_job_lingers_for_those_who_wait(self) -> None:
        """As long after its end as any other, though it has expired."""
        async with self.scene() as scene:
            now = scene.clock.time()
            job = JobRecord(
                queue="q",
                id="a",
                task="t",
                state=JobState.SUCCEEDED,
                sequence=1,
                finished_at=now,
                expires_at=now + LINGER / 2,
                result=b"1",
            )
            await scene.storage.restore([job])
            scene.clock.advance(LINGER - 1)
            await scene.sweep()
            assert await scene.look("a") is None
            assert (await scene.show("a", waiting=True)).result == b"1"
            scene.clock.advance(1)
            await scene.sweep()
            assert await scene.look("a", waiting=True) is None


__all__ = ["Index"]
