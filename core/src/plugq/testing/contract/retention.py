"""Deadlines and retention: what ends with time, when exactly, and how reads show it before."""

from __future__ import annotations

from typing import Any

from plugq.job import LINGER, Event, JobState, Outcome
from plugq.protocols.edits import EditStatus
from plugq.protocols.storage import SubmitStatus, UniqueKey, UniqueMode
from plugq.testing.contract.scene import Contract

_MS = 0.001


class Deadlines(Contract):
    """What happens when the deadline of a job passes."""

    async def test_a_job_past_its_deadline_is_never_claimed(self) -> None:
        """To the millisecond, without a sweep."""
        async with self.scene() as scene:
            await scene.submit("a", "b", deadline_in=10.0)
            scene.clock.advance(10 - _MS)
            await scene.take("a")
            scene.clock.advance(_MS)
            assert await scene.claimed_ids() == []

    async def test_a_delayed_job_past_its_deadline_is_never_claimed(self) -> None:
        """Falling due does not help it."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0, delay=20.0)
            scene.clock.advance(30)
            assert await scene.claimed_ids() == []
            await scene.sweep()
            assert await scene.claimed_ids() == []
            assert await scene.state("a") is JobState.FAILED

    async def test_the_earlier_of_two_deadlines_counts(self) -> None:
        """One is absolute, the other counts from the submission."""
        async with self.scene() as scene:
            now = scene.clock.time()
            await scene.submit("a", deadline_in=10.0, deadline_at=now + 20)
            await scene.submit("b", deadline_in=20.0, deadline_at=now + 10)
            assert [(await scene.show(id)).deadline_at for id in "ab"] == [now + 10] * 2
            scene.clock.advance(10)
            assert await scene.claimed_ids() == []

    async def test_a_job_behind_many_past_their_deadline_is_reached(self) -> None:
        """At once, or by claims that say that there is more to look at."""
        async with self.scene() as scene:
            await scene.submit(*(f"{number}" for number in range(1_000)), deadline_in=10.0)
            await scene.submit("a")
            scene.clock.advance(10)
            for _ in range(1_000):
                reply = await scene.ask(1)
                if reply.leases:
                    break
                assert reply.next_in == 0.0, "nothing was granted, and nothing said of the rest"
            assert [lease.id for lease in reply.leases] == ["a"]

    async def test_reads_show_a_passed_deadline_before_a_sweep_stores_it(self) -> None:
        """As failed, with the deadline as its end: also with no worker alive."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0)
            await scene.submit("b", deadline_in=10.0, delay=60.0)
            deadline = scene.clock.time() + 10
            scene.clock.advance(15)
            for id in ("a", "b"):
                job = await scene.show(id)
                assert (job.state, job.code) == (JobState.FAILED, "deadline")
                assert job.finished_at == deadline
            (reply,) = await scene.send(scene.job("a"))
            assert (reply.status, reply.state) == (SubmitStatus.DUPLICATE, JobState.FAILED)

    async def test_a_sweep_stores_a_passed_deadline(self) -> None:
        """The job has failed for good then."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0)
            scene.clock.advance(10 - _MS)
            assert (await scene.sweep()).changes == ()
            scene.clock.advance(_MS)
            (change,) = (await scene.sweep()).changes
            assert (change.id, change.event, change.state, change.code) == (
                "a",
                Event.DEADLINE,
                JobState.FAILED,
                "deadline",
            )
            job = await scene.show("a")
            assert (job.state, job.code) == (JobState.FAILED, "deadline")
            assert await scene.total("failed") == 1

    async def test_a_passed_deadline_can_not_be_cancelled_any_more(self) -> None:
        """Whether or not a sweep has stored it."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0)
            scene.clock.advance(10)
            for _ in range(2):
                reply = await scene.cancel("a")
                assert (reply.status, reply.state) == (EditStatus.FINISHED, JobState.FAILED)
                await scene.sweep()

    async def test_a_lease_says_how_much_time_is_left(self) -> None:
        """In seconds from the claim."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=60.0)
            scene.clock.advance(20)
            assert (await scene.take("a")).deadline_in == 40

    async def test_a_running_job_may_be_settled_after_its_deadline(self) -> None:
        """Until a sweep has ended it."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0)
            lease = await scene.take("a", lease=600.0)
            scene.clock.advance(300)
            assert await scene.state("a") is JobState.RUNNING
            assert await scene.end(lease) is JobState.SUCCEEDED

    async def test_a_sweep_ends_a_running_job_after_the_grace(self) -> None:
        """The holder gets that long to do it itself."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0, max_attempts=5)
            lease = await scene.take("a", lease=600.0)
            scene.clock.advance(15 - _MS)
            assert (await scene.sweep(deadline_grace=5.0)).changes == ()
            scene.clock.advance(_MS)
            (change,) = (await scene.sweep(deadline_grace=5.0)).changes
            assert (change.event, change.state, change.code) == (
                Event.DEADLINE,
                JobState.FAILED,
                "deadline",
            )
            job = await scene.show("a")
            assert (job.state, job.code) == (JobState.FAILED, "deadline")
            assert (await scene.settle(lease)).lost

    async def test_a_running_job_to_be_cancelled_ends_cancelled_at_its_deadline(self) -> None:
        """The operator's wish counts first."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0)
            await scene.take("a", lease=600.0)
            await scene.cancel("a")
            scene.clock.advance(10)
            await scene.sweep(deadline_grace=0)
            assert await scene.state("a") is JobState.CANCELLED

    async def test_a_retry_past_the_deadline_is_not_run_again(self) -> None:
        """It waits for its end."""
        async with self.scene() as scene:
            await scene.submit("a", deadline_in=10.0, max_attempts=5)
            lease = await scene.take("a", lease=600.0)
            scene.clock.advance(11)
            assert await scene.end(lease, Outcome.RETRY) is JobState.DELAYED
            assert await scene.claimed_ids() == []
            await scene.sweep()
            job = await scene.show("a")
            assert (job.state, job.code) == (JobState.FAILED, "deadline")

    async def test_a_deadline_frees_the_place_in_the_lane(self) -> None:
        """What has passed its deadline holds up nobody."""
        async with self.scene() as scene:
            await scene.submit("a", lane="l", deadline_in=10.0)
            await scene.submit("b", lane="l")
            scene.clock.advance(10)
            assert await scene.claimed_ids() == ["b"]


class Retention(Contract):
    """How long what has ended is kept."""

    async def test_a_result_is_kept_for_its_ttl(self) -> None:
        """After that the job says that it succeeded and that the result has expired."""
        async with self.scene() as scene:
            await scene.submit("a", result_ttl=100.0, id_ttl=600.0)
            await scene.end(await scene.take("a"), result=b"42")
            scene.clock.advance(100 - _MS)
            job = await scene.show("a")
            assert (job.result, job.result_expired) == (b"42", False)
            scene.clock.advance(_MS)
            job = await scene.show("a")
            assert (job.state, job.result, job.result_expired) == ("succeeded", None, True)

    async def test_an_id_is_kept_at_least_for_its_ttl(self) -> None:
        """A submission that is sent again finds it, however short the result was kept."""
        async with self.scene() as scene:
            job = scene.job("a", result_ttl=0.0, id_ttl=600.0)
            await scene.send(job)
            await scene.end(await scene.take("a"))
            scene.clock.advance(600 - _MS)
            await scene.sweep()
            (again,) = await scene.send(job)
            assert (again.status, again.state) == (SubmitStatus.ACCEPTED, JobState.SUCCEEDED)
            assert await scene.claimed_ids() == []

    async def test_each_final_state_is_kept_as_long_as_its_ttl_says(self) -> None:
        """``result_ttl`` for succeeded and cancelled, ``failure_ttl`` for failed and skipped."""
        kept = {
            JobState.SUCCEEDED: 700.0,
            JobState.CANCELLED: 700.0,
            JobState.FAILED: 900.0,
            JobState.SKIPPED: 900.0,
        }
        for state, ttl in kept.items():
            async with self.scene() as scene:
                fields = {"result_ttl": 700.0, "failure_ttl": 900.0, "id_ttl": 600.0}
                await scene.bring("a", state, **fields)
                assert (await scene.show("a")).expires_at == scene.clock.time() + ttl
                scene.clock.advance(ttl - _MS)
                await scene.sweep()
                assert await scene.state("a") is state
                scene.clock.advance(_MS)
                assert await scene.look("a") is None

    async def test_the_longer_of_ttl_and_id_ttl_counts(self) -> None:
        """For every final state."""
        for state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED, JobState.SKIPPED):
            async with self.scene() as scene:
                await scene.bring("a", state, result_ttl=50.0, failure_ttl=50.0, id_ttl=300.0)
                scene.clock.advance(300 - _MS)
                assert await scene.state("a") is state
                scene.clock.advance(_MS)
                assert await scene.look("a") is None

    async def test_a_sweep_removes_what_has_expired(self) -> None:
        """It says so, once, and counts it."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.SUCCEEDED, result_ttl=700.0)
            await scene.bring("b", JobState.FAILED, failure_ttl=700.0)
            scene.clock.advance(700)
            changes = (await scene.sweep()).changes
            assert {(change.id, change.event, change.state) for change in changes} == {
                ("a", Event.REMOVE, None),
                ("b", Event.REMOVE, None),
            }
            assert (await scene.sweep()).changes == ()
            assert await scene.total("removed") == 2
            assert await scene.count(JobState.SUCCEEDED) == 0
            await scene.settled_store()

    async def test_a_sweep_removes_no_more_than_its_limit(self) -> None:
        """It says that there is more."""
        async with self.scene() as scene:
            ids = [str(number) for number in range(10)]
            await scene.submit(*ids, result_ttl=700.0)
            for lease in await scene.claim(10):
                await scene.end(lease)
            scene.clock.advance(700)
            reply = await scene.sweep(limit=4)
            assert (len(reply.changes), reply.next_in) == (4, 0)

    async def test_an_expired_id_is_new(self) -> None:
        """Swept or not: it starts again as generation 0 of nothing."""
        async with self.scene() as scene:
            for swept in (False, True):
                (first,) = await scene.submit("a", body=b"1")
                await scene.end(await scene.take("a"))
                scene.clock.advance(3600)
                if swept:
                    await scene.sweep()
                (second,) = await scene.submit("a", body=b"2")
                assert second.sequence > first.sequence
                assert second.generation == 0
                job = await scene.show("a", body=True)
                assert (job.state, job.attempt, job.body) == (JobState.QUEUED, 0, b"2")
                await scene.cancel("a")
                scene.clock.advance(3600)
            await scene.settled_store()

    async def test_for_ever_is_for_ever(self) -> None:
        """A ttl of ``None`` never ends."""
        async with self.scene() as scene:
            await scene.submit("a", result_ttl=None, id_ttl=1.0)
            await scene.end(await scene.take("a"), result=b"42")
            await scene.submit("b", failure_ttl=None, id_ttl=1.0)
            await scene.end(await scene.take("b"), Outcome.FAIL)
            scene.clock.advance("5200w")
            assert (await scene.sweep()).changes == ()
            a, b = await scene.show("a"), await scene.show("b")
            assert (a.result, a.expires_at, b.state, b.expires_at) == (b"42", None, "failed", None)

    async def test_a_result_that_is_not_kept_reaches_those_who_waited(self) -> None:
        """With ``result_ttl=0`` only a waiting reader sees it, for as long as a job lingers."""
        async with self.scene() as scene:
            await scene.submit("a", result_ttl=0.0)
            await scene.end(await scene.take("a"), result=b"42")
            for step in (0.0, LINGER - _MS):
                scene.clock.advance(step)
                await scene.sweep()
                waiting = await scene.show("a", waiting=True)
                assert (waiting.result, waiting.result_expired) == (b"42", False)
                later = await scene.show("a")
                assert (later.state, later.result, later.result_expired) == (
                    "succeeded",
                    None,
                    True,
                )

    async def test_a_result_lingers_no_longer_than_the_rule_says(self) -> None:
        """After that it has expired for everybody, swept or not; the id stays for its own time."""
        async with self.scene() as scene:
            await scene.submit("a", result_ttl=0.0, id_ttl=600.0)
            await scene.submit("b", result_ttl=5.0, id_ttl=600.0)
            for lease in await scene.claim(2):
                await scene.end(lease, result=b"42")
            scene.clock.advance(LINGER)
            for id in ("a", "b", "a", "b"):
                job = await scene.show(id, waiting=True)
                assert (job.state, job.result, job.result_expired) == ("succeeded", None, True)
                await scene.sweep()

    async def test_a_job_that_is_not_kept_at_all_reaches_those_who_waited(self) -> None:
        """With every ttl at 0 it is gone at once, except for them."""
        for state in (JobState.SUCCEEDED, JobState.CANCELLED, JobState.FAILED, JobState.SKIPPED):
            async with self.scene() as scene:
                await scene.bring("a", state, result_ttl=0.0, failure_ttl=0.0, id_ttl=0.0)
                scene.clock.advance(LINGER - _MS)
                await scene.sweep()
                assert (await scene.show("a", waiting=True)).state is state
                assert await scene.look("a") is None
                scene.clock.advance(_MS)
                assert await scene.look("a", waiting=True) is None
                await scene.sweep()
                assert await scene.total("removed") == 1
                await scene.settled_store()

    async def test_an_id_that_is_not_kept_can_be_used_again_at_once(self) -> None:
        """Lingering does not make it a duplicate."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.SUCCEEDED, result_ttl=0.0, id_ttl=0.0)
            await scene.submit("a")
            assert (await scene.show("a", waiting=True)).state is JobState.QUEUED
            await scene.settled_store()

    async def test_nothing_that_has_not_ended_expires(self) -> None:
        """However long it waits or runs."""
        async with self.scene() as scene:
            fields: dict[str, Any] = {"result_ttl": 1.0, "failure_ttl": 1.0, "id_ttl": 1.0}
            await scene.submit("running", **fields)
            await scene.take("running")
            await scene.submit("queued", **fields)
            scene.clock.advance("520w")
            assert (await scene.sweep(end_leases=False)).changes == ()
            assert await scene.state("running") is JobState.RUNNING
            assert await scene.state("queued") is JobState.QUEUED

    async def test_a_redriven_job_no_longer_expires(self) -> None:
        """Its retention begins anew when it ends again."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.FAILED, failure_ttl=700.0)
            scene.clock.advance(600)
            await scene.redrive("a")
            scene.clock.advance(600)
            assert (await scene.sweep()).changes == ()
            await scene.end(await scene.take("a"), Outcome.FAIL)
            scene.clock.advance(700 - _MS)
            assert (await scene.sweep()).changes == ()
            assert await scene.state("a") is JobState.FAILED

    async def test_what_has_expired_can_not_be_edited(self) -> None:
        """It is not found, swept or not."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.FAILED, failure_ttl=700.0)
            scene.clock.advance(700)
            for _ in range(2):
                assert (await scene.cancel("a")).status is EditStatus.NOT_FOUND
                assert (await scene.redrive("a")).status is EditStatus.NOT_FOUND
                assert (await scene.purge("a")).status is EditStatus.NOT_FOUND
                await scene.sweep()

    async def test_a_submission_that_is_not_stored_removes_nothing(self) -> None:
        """Those who waited for the former job of that id still see it, whatever its retention."""
        async with self.scene() as scene:
            key = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")
            await scene.submit("holder", queue="keys", unique=key)
            ends: dict[str, Any] = {"priority": 5, "result_ttl": 0.0, "id_ttl": 0.0}
            for queue in ("late", "keys", "full"):
                await scene.submit("a", queue=queue, **ends)
                await scene.end(await scene.take("a", queues=(queue,)), result=b"42")
            await scene.configure(queue="full", max_length=0)
            late = scene.job("a", queue="late", not_after=scene.clock.time() - 1)
            replies = [
                *await scene.send(late),
                *await scene.send(scene.job("a", queue="keys", unique=key)),
                *await scene.send(scene.job("a", queue="full")),
            ]
            assert [reply.status for reply in replies] == [
                SubmitStatus.LATE,
                SubmitStatus.DUPLICATE,
                SubmitStatus.FULL,
            ]
            for queue in ("late", "keys", "full"):
                assert (await scene.show("a", queue, waiting=True)).result == b"42"


__all__ = ["Deadlines", "Retention"]
