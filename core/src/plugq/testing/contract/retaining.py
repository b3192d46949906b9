"""Keeping jobs for another time than they came with."""

from __future__ import annotations

from plugq.job import FINAL, LINGER, JobState, Outcome
from plugq.protocols.edits import EditStatus
from plugq.protocols.storage import SubmitStatus
from plugq.testing.contract.scene import Contract

_MS = 0.001


class Retaining(Contract):
    """What the edit ``Retain`` changes, and what it leaves."""

    async def test_a_live_job_takes_the_new_time_for_every_end(self) -> None:
        """Delayed, queued or running, succeeded or failed; it counts from the end."""
        for outcome in (Outcome.SUCCEED, Outcome.FAIL, Outcome.SKIP):
            async with self.scene() as scene:
                fields = {"result_ttl": 50.0, "failure_ttl": 60.0, "id_ttl": 0.0}
                await scene.submit("delayed", delay=5.0, **fields)
                await scene.submit("queued", "running", priority=1, **fields)
                running = await scene.take("queued")
                for id in ("delayed", "queued", "running"):
                    reply = await scene.retain(900.0, id)
                    assert (reply.status, reply.state) == (EditStatus.DONE, await scene.state(id))
                scene.clock.advance(7)
                await scene.end(running, outcome)
                for lease in await scene.claim(2):
                    await scene.end(lease, outcome)
                for id in ("delayed", "queued", "running"):
                    assert (await scene.show(id)).expires_at == scene.clock.time() + 900
                scene.clock.advance(900 - _MS)
                assert (await scene.sweep()).changes == ()
                scene.clock.advance(_MS)
                assert len((await scene.sweep()).changes) == 3

    async def test_a_final_job_goes_that_long_from_now(self) -> None:
        """Later or sooner than before, in every final state."""
        for state in sorted(FINAL):
            for ttl in (2_000.0, 20.0):
                async with self.scene() as scene:
                    await scene.bring("a", state, result_ttl=700.0, failure_ttl=700.0, id_ttl=100.0)
                    scene.clock.advance(500)
                    reply = await scene.retain(ttl)
                    assert (reply.status, reply.state) == (EditStatus.DONE, state)
                    scene.clock.advance(ttl - _MS)
                    await scene.sweep()
                    assert await scene.state("a") is state
                    scene.clock.advance(_MS)
                    assert await scene.look("a") is None
                    assert [change.id for change in (await scene.sweep()).changes] == ["a"]
                    await scene.settled_store()

    async def test_a_result_goes_with_the_new_time(self) -> None:
        """Where it is still kept it is kept as long as was asked for."""
        async with self.scene() as scene:
            await scene.submit("a", result_ttl=100.0, id_ttl=600.0)
            await scene.end(await scene.take("a"), result=b"42")
            scene.clock.advance(60)
            await scene.retain(1_000.0)
            scene.clock.advance(1_000 - _MS)
            await scene.sweep()
            job = await scene.show("a")
            assert (job.result, job.result_expired) == (b"42", False)
            scene.clock.advance(_MS)
            assert await scene.look("a") is None

    async def test_a_result_that_has_gone_does_not_come_back(self) -> None:
        """Swept or not; only the job is kept."""
        for swept in (False, True):
            async with self.scene() as scene:
                await scene.submit("a", result_ttl=20.0, id_ttl=600.0)
                await scene.end(await scene.take("a"), result=b"42")
                scene.clock.advance(20)
                if swept:
                    await scene.sweep()
                await scene.retain(1_000.0)
                for step in (0.0, 1_000 - _MS):
                    scene.clock.advance(step)
                    await scene.sweep()
                    job = await scene.show("a")
                    assert (job.result, job.result_expired) == (None, True)
                scene.clock.advance(_MS)
                assert await scene.look("a") is None

    async def test_an_id_stays_safe_for_its_ttl(self) -> None:
        """A submission that is sent again finds it, however little its sender kept."""
        async with self.scene() as scene:
            job = scene.job("a", result_ttl=3_000.0, id_ttl=600.0)
            await scene.send(job)
            await scene.end(await scene.take("a"))
            scene.clock.advance(100)
            await scene.retain(0.0)
            scene.clock.advance(500 - _MS)
            await scene.sweep()
            (again,) = await scene.send(job)
            assert (again.status, again.state) == (SubmitStatus.ACCEPTED, JobState.SUCCEEDED)
            scene.clock.advance(_MS)
            assert await scene.look("a") is None

    async def test_what_has_just_ended_lingers_all_the_same(self) -> None:
        """Those who waited for the end see the result."""
        async with self.scene() as scene:
            await scene.submit("a", id_ttl=0.0)
            await scene.end(await scene.take("a"), result=b"42")
            await scene.retain(0.0)
            scene.clock.advance(LINGER - _MS)
            await scene.sweep()
            assert await scene.look("a") is None
            assert (await scene.show("a", waiting=True)).result == b"42"

    async def test_none_keeps_for_ever(self) -> None:
        """Live or final; another time takes that back."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.SUCCEEDED)
            await scene.submit("b")
            for id in "ab":
                await scene.retain(None, id)
            await scene.end(await scene.take("b"), Outcome.FAIL)
            scene.clock.advance("5200w")
            assert (await scene.sweep()).changes == ()
            a, b = await scene.show("a"), await scene.show("b")
            assert (a.result, a.expires_at, b.expires_at) == (b"null", None, None)
            for id in "ab":
                await scene.retain(30.0, id)
            assert (await scene.sweep()).next_in == 30
            scene.clock.advance(30)
            assert {change.id for change in (await scene.sweep()).changes} == {"a", "b"}

    async def test_what_is_gone_can_not_be_retained(self) -> None:
        """Unknown, or expired and not swept."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.FAILED, failure_ttl=700.0)
            scene.clock.advance(700)
            for id in ("a", "unknown"):
                assert (await scene.retain(900.0, id)).status is EditStatus.NOT_FOUND


__all__ = ["Retaining"]
