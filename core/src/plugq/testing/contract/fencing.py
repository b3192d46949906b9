"""Tokens and fences: who may settle, renew and release, and that no token ever comes twice."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from plugq.job import AttemptRecord, JobState, Outcome, Progress
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import (
    LeaseRef,
    RenewReply,
    SubmitStatus,
    UniqueKey,
    UniqueMode,
)
from plugq.testing.contract.scene import Contract
from plugq.testing.contract.snapshot import snapshot
from plugq.testing.levels import Level, level
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.protocols.storage import Lease
    from plugq.testing.contract.scene import Scene


_STALE = AttemptRecord(attempt=0, code="stale", type="Stale", message="too late")


async def _refused(scene: Scene, stale: Lease) -> None:
    """Check that a token of the past can do nothing at all."""
    before = await snapshot(scene)
    progress = Progress(current=99.0, message="stale")
    for outcome in Outcome:
        for delay in (0.0, 1.0):
            reply = await scene.settle(
                stale, outcome, delay=delay, code="stale", error=_STALE, progress=progress
            )
            assert reply.lost, f"{outcome} was taken from a stale lease"
            assert reply.state is None
    for news in (None, progress):
        ref = LeaseRef(stale.queue, stale.id, stale.token, news)
        assert list(await scene.storage.renew([ref], lease=600.0)) == [RenewReply.LOST]
    after = await snapshot(scene)
    assert after == before, "a refused call changed something"


async def _run(scene: Scene, **fields: Any) -> Lease:
    """Submit a job that has everything which a stale settlement could free, and claim it."""
    unique = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")
    given = {"lane": "l", "batch": "b", "unique": unique, "max_attempts": 5, "body": b"payload"}
    await scene.submit("a", **{**given, **fields})
    return await scene.take("a")


async def _held(scene: Scene) -> None:
    """Check that the job still holds its lane and its unique key."""
    key = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")
    (reply,) = await scene.send(scene.job("rival", unique=key))
    assert (reply.status, reply.id) == (SubmitStatus.DUPLICATE, "a")
    if await scene.state("a") is JobState.RUNNING:
        await scene.submit("behind", lane="l")
        assert await scene.claimed_ids() == []


class Fencing(Contract):
    """Only the current lease can do anything (I4, I5)."""

    async def test_a_stale_token_is_refused_after_the_job_was_queued_again(self) -> None:
        """The sweep that ended the lease ended its rights."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            stale = await scene.take("a")
            await scene.lapse()
            assert await scene.state("a") is JobState.QUEUED
            await _refused(scene, stale)

    async def test_a_stale_token_is_refused_while_the_job_runs_elsewhere(self) -> None:
        """And the current one is not disturbed."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=5)
            stale = await scene.take("a", worker="w-1")
            await scene.lapse()
            current = await scene.take("a", worker="w-2")
            await _refused(scene, stale)
            assert list(await scene.renew(current)) == [RenewReply.OK]
            assert await scene.end(current) is JobState.SUCCEEDED

    async def test_a_token_is_refused_after_the_job_was_settled(self) -> None:
        """A second settlement of one lease is refused, whatever the first one was."""
        async with self.scene() as scene:
            for outcome in Outcome:
                await scene.submit(outcome, max_attempts=5)
                lease = await scene.take(outcome)
                await scene.end(lease, outcome, delay=60.0)
                await _refused(scene, lease)

    async def test_of_two_settlements_in_one_call_the_first_counts(self) -> None:
        """The second finds the lease ended."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            replies, _ = await scene.storage.settle(
                [scene.settlement(lease, result=b"1"), scene.settlement(lease, Outcome.FAIL)]
            )
            assert [reply.lost for reply in replies] == [False, True]
            assert (await scene.show("a")).result == b"1"

    async def test_a_token_is_refused_after_the_job_was_purged(self) -> None:
        """There is nothing left that it could change."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            await scene.end(lease)
            await scene.purge("a")
            await _refused(scene, lease)
            assert await scene.look("a") is None

    async def test_a_token_is_refused_after_purge_and_resubmission_of_the_id(self) -> None:
        """The new job of that id is another one."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            await scene.end(lease)
            await scene.purge("a")
            await scene.submit("a")
            await _refused(scene, lease)
            current = await scene.take("a")
            assert current.token > lease.token
            await _refused(scene, lease)
            assert await scene.end(current) is JobState.SUCCEEDED

    async def test_a_token_is_refused_by_a_new_generation(self) -> None:
        """Cancelling and submitting again does not revive the old run."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            await scene.cancel("a")
            await scene.end(lease, Outcome.FAIL)
            await scene.submit("a")
            current = await scene.take("a")
            await _refused(scene, lease)
            assert await scene.end(current) is JobState.SUCCEEDED

    async def test_a_token_is_refused_after_a_redrive(self) -> None:
        """The run that failed stays failed."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            await scene.end(lease, Outcome.FAIL)
            await scene.redrive("a")
            await _refused(scene, lease)
            current = await scene.take("a")
            assert current.token > lease.token
            await _refused(scene, lease)

    async def test_a_refused_settlement_changes_nothing_of_a_job_that_waits_again(self) -> None:
        """Neither after a retry, a snooze, a release nor a crash: key, lane and counts stay."""
        async with self.scene() as scene:
            for outcome in (Outcome.RETRY, Outcome.SNOOZE, Outcome.RELEASE, None):
                stale = await _run(scene)
                if outcome is None:
                    await scene.lapse()
                else:
                    await scene.end(stale, outcome)
                await _refused(scene, stale)
                await _held(scene)
                await scene.clear()

    async def test_a_refused_settlement_changes_nothing_of_a_job_that_runs_elsewhere(self) -> None:
        """However it came to run again: the other holder keeps lane, key and lease."""
        async with self.scene() as scene:
            for outcome in (Outcome.RETRY, Outcome.SNOOZE, Outcome.RELEASE, None):
                stale = await _run(scene)
                if outcome is None:
                    await scene.lapse()
                else:
                    await scene.end(stale, outcome)
                current = await scene.take("a", worker="w-2")
                await _refused(scene, stale)
                await _held(scene)
                assert await scene.end(current, result=b"1") is JobState.SUCCEEDED
                assert (await scene.show("a")).result == b"1"
                await scene.cancel("behind")
                await scene.clear()

    async def test_a_refused_settlement_changes_nothing_of_what_has_ended(self) -> None:
        """In each final state, as its holder, a sweep, a deadline or an operator brought it."""
        async with self.scene() as scene:
            for outcome in (Outcome.SUCCEED, Outcome.FAIL, Outcome.SKIP):
                stale = await _run(scene)
                await scene.end(stale, outcome, error=_STALE)
                await _refused(scene, stale)
                await scene.clear()
            stale = await _run(scene, max_attempts=1)
            await scene.lapse()
            assert await scene.state("a") is JobState.FAILED
            await _refused(scene, stale)
            await scene.clear()
            stale = await _run(scene, deadline_in=10.0)
            scene.clock.advance(10)
            await scene.sweep(deadline_grace=0.0)
            assert await scene.state("a") is JobState.FAILED
            await _refused(scene, stale)
            await scene.clear()
            stale = await _run(scene)
            await scene.cancel("a")
            await scene.lapse()
            assert await scene.state("a") is JobState.CANCELLED
            await _refused(scene, stale)
            await scene.clear()
            stale = await _run(scene)
            await scene.end(stale, Outcome.RELEASE)
            await scene.cancel("a")
            await _refused(scene, stale)

    async def test_a_refused_settlement_changes_nothing_of_another_life_of_the_id(self) -> None:
        """After a purge, a new generation and a redrive, while it waits and while it runs."""
        async with self.scene() as scene:
            for again in ("purge", "generation", "redrive"):
                stale = await _run(scene)
                if again == "generation":
                    await scene.cancel("a")
                await scene.end(stale, Outcome.FAIL)
                await _refused(scene, stale)
                if again == "redrive":
                    await scene.redrive("a")
                else:
                    if again == "purge":
                        await scene.purge("a")
                        await _refused(scene, stale)
                    await scene.send(
                        scene.job(
                            lane="l",
                            batch="b",
                            max_attempts=5,
                            unique=UniqueKey(UniqueMode.UNTIL_FINISHED, "k"),
                        )
                    )
                await _refused(scene, stale)
                await _held(scene)
                current = await scene.take("a", worker="w-2")
                await _refused(scene, stale)
                await _held(scene)
                assert await scene.end(current) is JobState.SUCCEEDED
                await scene.clear()

    async def test_a_token_that_was_never_granted_is_refused(self) -> None:
        """Guessing does not help, nor does another queue's or job's token."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            a, b = await scene.claim(2)
            mixed = scene.relabel(a, token=b.token)
            for forged in (
                scene.relabel(a, token=a.token + 1000),
                scene.relabel(a, token=a.token - 1),
                scene.relabel(a, token=0),
                scene.relabel(a, queue="other"),
                scene.relabel(a, id="unknown"),
                mixed,
            ):
                assert (await scene.settle(forged)).lost
                assert list(await scene.renew(forged)) == [RenewReply.LOST]
            assert await scene.end(a) is await scene.end(b) is JobState.SUCCEEDED

    async def test_tokens_rise_in_the_order_of_the_grants(self) -> None:
        """Within a claim and from claim to claim, without a repetition."""
        async with self.scene() as scene:
            tokens: list[int] = []
            for round_ in range(4):
                await scene.submit(*(f"{round_}-{number}" for number in range(5)))
                for lease in await scene.claim(5):
                    tokens.append(lease.token)
                    await scene.end(lease)
                scene.clock.advance(0.5 * (round_ % 2))
            assert tokens == sorted(set(tokens))

    async def test_tokens_rise_from_attempt_to_attempt(self) -> None:
        """Each attempt of a job has one of its own."""
        async with self.scene() as scene:
            await scene.submit("a", max_attempts=9)
            tokens: list[int] = []
            for outcome in (Outcome.RETRY, Outcome.SNOOZE, Outcome.RELEASE, Outcome.RETRY):
                lease = await scene.take("a")
                tokens.append(lease.token)
                await scene.end(lease, outcome)
            await scene.take("a")
            await scene.lapse()
            tokens.append((await scene.take("a")).token)
            assert tokens == sorted(set(tokens))

    async def test_tokens_go_on_rising_when_the_queue_has_become_empty(self) -> None:
        """Purging everything does not start the count anew."""
        async with self.scene() as scene:
            last = 0
            for _ in range(5):
                await scene.submit("a")
                lease = await scene.take("a")
                assert lease.token > last
                last = lease.token
                await scene.end(lease)
                await scene.purge("a")

    async def test_tokens_go_on_rising_when_the_clock_is_set_back(self) -> None:
        """Whatever they are made of."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            first = await scene.take("a")
            scene.clock.set_back(3600)
            assert (await scene.take("b")).token > first.token

    @requires(Capability.DURABLE)
    async def test_tokens_go_on_rising_after_a_restart(self) -> None:
        """Also when the clock was set back meanwhile and the old jobs are gone."""
        async with self.scene() as scene:
            await scene.submit("a")
            old = await scene.take("a")
            await scene.end(old)
            await scene.purge("a")
            await scene.storage.stop()
            scene.clock.set_back(3600)
            async with scene.another() as reopened:
                await reopened.submit("a")
                assert (await reopened.take("a")).token > old.token

    @level(Level.CONCURRENCY)
    async def test_concurrent_claims_give_each_job_to_one(self) -> None:
        """Twenty claimers, a thousand jobs, each granted exactly once (I4)."""
        async with self.scene() as scene, scene.another() as other:
            ids = {str(number) for number in range(1_000)}
            await scene.submit(*ids)

            async def claimer(number: int) -> list[Lease]:
                side = other if number % 2 else scene
                mine: list[Lease] = []
                while leases := await side.claim(7, worker=f"w-{number}"):
                    mine += leases
                return mine

            granted = [
                lease
                for leases in await asyncio.gather(*(claimer(number) for number in range(20)))
                for lease in leases
            ]
            assert len(granted) == len(ids)
            assert {lease.id for lease in granted} == ids
            assert len({lease.token for lease in granted}) == len(ids)

    @level(Level.CONCURRENCY)
    async def test_concurrent_settlements_of_one_lease_count_once(self) -> None:
        """One is taken, the others find the lease ended (I4)."""
        async with self.scene() as scene, scene.another() as other:
            await scene.submit("a")
            lease = await scene.take("a")
            replies = await asyncio.gather(
                *(
                    (scene if number % 2 else other).settle(lease, result=b"%d" % number)
                    for number in range(10)
                )
            )
            taken = [number for number, reply in enumerate(replies) if not reply.lost]
            assert len(taken) == 1
            assert (await scene.show("a")).result == b"%d" % taken[0]
            assert await scene.total("succeeded") == 1


__all__ = ["Fencing"]
