"""What each settlement does to a job and what it leaves behind."""

from __future__ import annotations

from plugq.job import AttemptRecord, JobState, Outcome, Progress
from plugq.protocols.storage import LeaseRef
from plugq.testing.contract.scene import Contract


def _error(code: str = "error", message: str = "no luck") -> AttemptRecord:
    return AttemptRecord(attempt=0, code=code, type="ValueError", message=message, traceback="tb")


class Settling(Contract):
    """How an attempt ends."""

    async def test_success_keeps_the_result(self) -> None:
        """The job shows its result and when it ended."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take()
            scene.clock.advance(2)
            assert await scene.end(lease, result=b'{"x":1}') is JobState.SUCCEEDED
            job = await scene.show("a")
            assert (job.state, job.result, job.result_expired) == ("succeeded", b'{"x":1}', False)
            assert job.finished_at == scene.clock.time()
            assert (job.code, job.history, job.lease_until) == ("", (), None)

    async def test_results_that_look_empty_are_results(self) -> None:
        """``null``, ``0``, ``false``, ``""`` and no bytes at all come back as they are."""
        async with self.scene() as scene:
            for number, result in enumerate((b"null", b"0", b"false", b'""', b"")):
                await scene.submit(str(number))
                await scene.end(await scene.take(), result=result)
                job = await scene.show(str(number))
                assert (job.result, job.result_expired) == (result, False)

    async def test_a_retry_waits_for_its_delay_and_spends_the_attempt(self) -> None:
        """The next attempt is the second."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=3)
            lease = await scene.take()
            assert await scene.end(lease, Outcome.RETRY, delay=8.0) is JobState.DELAYED
            job = await scene.show("a")
            assert (job.state, job.attempt) == (JobState.DELAYED, 1)
            assert job.ready_at == scene.clock.time() + 8
            scene.clock.advance(7.999)
            assert await scene.claimed_ids() == []
            scene.clock.advance(0.001)
            assert (await scene.take("a")).attempt == 2

    async def test_a_retry_may_name_its_moment(self) -> None:
        """``at`` stands in place of the delay; one that has passed counts as now."""
        async with self.scene() as scene:
            await scene.submit("a", "b", max_attempts=3)
            a, b = await scene.claim(2)
            now = scene.clock.time()
            assert await scene.end(a, Outcome.RETRY, at=now + 60, delay=5.0) is JobState.DELAYED
            assert await scene.end(b, Outcome.RETRY, at=now - 60, delay=5.0) is JobState.DELAYED
            assert (await scene.show("a")).ready_at == now + 60
            assert (await scene.show("b")).ready_at == now
            assert await scene.claimed_ids() == ["b"]
            scene.clock.advance(59.999)
            assert await scene.claimed_ids() == []
            scene.clock.advance(0.001)
            assert await scene.claimed_ids() == ["a"]

    async def test_a_moment_counts_for_a_retry_only(self) -> None:
        """A snooze and a release go by their delay."""
        for outcome in (Outcome.SNOOZE, Outcome.RELEASE):
            async with self.scene() as scene:
                await scene.submit("a")
                now = scene.clock.time()
                await scene.end(await scene.take(), outcome, delay=5.0, at=now + 60)
                assert (await scene.show("a")).ready_at == now + 5

    async def test_what_was_handed_over_is_the_storages(self) -> None:
        """A caller that goes on using its objects changes nothing that is stored."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            details: dict[str, str | int | float | bool | None] = {"rows": 1}
            news = LeaseRef("q", "a", lease.token, Progress(current=1.0, details=details))
            await scene.storage.renew([news], lease=30.0)
            details["rows"] = 2
            shown = (await scene.show("a")).progress
            assert shown is not None
            assert shown.details == {"rows": 1}
            await scene.end(lease, progress=Progress(current=2.0, details=details))
            details["rows"] = 3
            shown = (await scene.show("a")).progress
            assert shown is not None
            assert shown.details == {"rows": 2}

    async def test_a_retry_without_a_delay_is_due_at_once(self) -> None:
        """It is claimed again by the next claim."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=2)
            await scene.end(await scene.take(), Outcome.RETRY)
            assert (await scene.take("a")).attempt == 2

    async def test_a_retry_without_attempts_left_fails(self) -> None:
        """``max_attempts`` counts every execution."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=2)
            await scene.end(await scene.take(), Outcome.RETRY)
            assert await scene.end(await scene.take(), Outcome.RETRY) is JobState.FAILED
            job = await scene.show("a")
            assert (job.state, job.code, job.attempt) == (JobState.FAILED, "error", 2)

    async def test_one_attempt_means_no_retry(self) -> None:
        """With ``max_attempts=1`` the first retry fails the job."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=1)
            assert await scene.end(await scene.take(), Outcome.RETRY) is JobState.FAILED

    async def test_a_failure_is_final_whatever_attempts_are_left(self) -> None:
        """The code says why; without one it is ``error``."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=9)
            await scene.end(await scene.take(), Outcome.FAIL, code="no-such-user")
            await scene.submit("b", max_attempts=9)
            await scene.end(await scene.take(), Outcome.FAIL)
            a, b = await scene.show("a"), await scene.show("b")
            assert (a.state, a.code) == (JobState.FAILED, "no-such-user")
            assert (b.state, b.code) == (JobState.FAILED, "error")

    async def test_a_snooze_gives_the_attempt_back(self) -> None:
        """However often a job is snoozed, it keeps its attempts."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=1)
            for _ in range(5):
                lease = await scene.take("a")
                assert lease.attempt == 1
                assert await scene.end(lease, Outcome.SNOOZE, delay=3.0) is JobState.DELAYED
                assert (await scene.show("a")).attempt == 0
                assert await scene.claimed_ids() == []
                scene.clock.advance(3)
            assert await scene.end(await scene.take("a")) is JobState.SUCCEEDED

    async def test_a_skip_is_final(self) -> None:
        """It keeps the code that it was given."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            assert await scene.end(await scene.take(), Outcome.SKIP, code="holiday") == "skipped"
            assert (await scene.show("a")).code == "holiday"

    async def test_a_release_goes_back_to_its_place_without_an_attempt(self) -> None:
        """It may be claimed at once, as the first attempt again."""
        async with self.scene() as scene:
            await scene.submit("a", "b", max_attempts=1)
            lease = await scene.take("a")
            scene.clock.advance(1)
            assert await scene.end(lease, Outcome.RELEASE) is JobState.QUEUED
            job = await scene.show("a")
            assert (job.attempt, job.crashes, job.history) == (0, 0, ())
            assert [lease.attempt for lease in await scene.claim(2)] == [1, 1]

    async def test_a_release_with_a_delay_waits(self) -> None:
        """It is delayed and due after that time."""
        async with self.scene() as scene:
            await scene.submit("a")
            state = await scene.end(await scene.take(), Outcome.RELEASE, delay=4.0)
            assert state is JobState.DELAYED
            scene.clock.advance(3.999)
            assert await scene.claimed_ids() == []
            scene.clock.advance(0.001)
            assert (await scene.take("a")).attempt == 1

    async def test_the_history_keeps_every_attempt_that_did_not_succeed(self) -> None:
        """The storage fills in the attempt, the worker and the times."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=3)
            times = []
            for outcome in (Outcome.RETRY, Outcome.FAIL):
                lease = await scene.take(worker=f"w-{outcome}")
                began = scene.clock.time()
                scene.clock.advance(2)
                await scene.end(lease, outcome, error=_error(message=outcome))
                times.append((began, scene.clock.time()))
            first, second = (await scene.show("a")).history
            assert (first.attempt, second.attempt) == (1, 2)
            assert (first.worker, second.worker) == ("w-retry", "w-fail")
            assert [(kept.started_at, kept.ended_at) for kept in (first, second)] == times
            assert (first.message, second.message) == ("retry", "fail")
            assert (first.code, first.type, first.traceback) == ("error", "ValueError", "tb")

    async def test_success_after_failures_keeps_their_history(self) -> None:
        """Only the attempts that failed are in it."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=3)
            await scene.end(await scene.take(), Outcome.RETRY, error=_error())
            await scene.end(await scene.take(), Outcome.SUCCEED)
            job = await scene.show("a")
            assert [kept.attempt for kept in job.history] == [1]
            assert job.error == job.history[0]

    async def test_a_settlement_carries_the_last_progress(self) -> None:
        """It is shown with its details."""
        async with self.scene() as scene:
            await scene.submit("a")
            progress = Progress(current=3.0, total=9.0, message="m", details={"k": None})
            await scene.end(await scene.take(), progress=progress)
            assert (await scene.show("a")).progress == progress

    async def test_every_settlement_but_success_ends_a_cancelled_run_as_cancelled(self) -> None:
        """Success stays success: the work is done."""
        async with self.scene() as scene:
            for outcome in Outcome:
                await scene.submit(outcome, max_attempts=9)
                lease = await scene.take(outcome)
                await scene.cancel(outcome)
                state = await scene.end(lease, outcome, delay=5.0)
                succeeds = outcome is Outcome.SUCCEED
                assert state is (JobState.SUCCEEDED if succeeds else JobState.CANCELLED)
            scene.clock.advance(10)
            assert await scene.claimed_ids() == []

    async def test_settlements_are_answered_one_by_one_in_order(self) -> None:
        """A refused one does not touch the others of its call."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c")
            a, b, c = await scene.claim(3)
            await scene.end(b)
            replies, claimed = await scene.storage.settle(
                [
                    scene.settlement(a),
                    scene.settlement(b),
                    scene.settlement(c, Outcome.FAIL),
                ]
            )
            assert claimed is None
            assert [(reply.state, reply.lost) for reply in replies] == [
                (JobState.SUCCEEDED, False),
                (None, True),
                (JobState.FAILED, False),
            ]

    async def test_a_settlement_may_carry_the_next_claim(self) -> None:
        """The claim sees what the settlement freed."""
        async with self.scene() as scene:
            await scene.submit("a", "b", lane="l")
            lease = await scene.take("a")
            assert await scene.claimed_ids() == []
            replies, claimed = await scene.storage.settle(
                [scene.settlement(lease)], scene.request(5)
            )
            assert [reply.state for reply in replies] == [JobState.SUCCEEDED]
            assert claimed is not None
            assert [lease.id for lease in claimed.leases] == ["b"]


__all__ = ["Settling"]
