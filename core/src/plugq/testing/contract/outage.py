"""A store that can not be reached for a while: honest errors, nothing lost, and it works again."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from plugq.errors import OutcomeUnknown, PlugqError, Unavailable
from plugq.job import JobState
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import Finished, Happened, Resync, SubmitStatus
from plugq.testing.contract.ending import every_verb
from plugq.testing.contract.events import Hearing, numbered, refresh
from plugq.testing.contract.scene import Contract
from plugq.testing.contract.snapshot import check_books
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from plugq.protocols.storage import NewJob
    from plugq.testing.contract.scene import Scene


class Outages(Contract):
    """What holds while the store is away, and after it; needs the hook ``outage``."""

    async def _ask(self, *calls: Awaitable[Any]) -> list[Any]:
        """Make calls at once; each must end in time, with an answer or an error of plugq's."""
        try:
            async with asyncio.timeout(6 * self.patience):
                answers = await asyncio.gather(*calls, return_exceptions=True)
        except TimeoutError:
            message = f"a call hung for {6 * self.patience:g} s while the store was away"
            raise AssertionError(message) from None
        for answer in answers:
            if isinstance(answer, BaseException):
                assert isinstance(answer, PlugqError), f"{type(answer).__name__}: {answer}"
                assert "\n" not in str(answer)
                assert str(answer)
        return answers

    async def _works(self, scene: Scene) -> None:
        """Check that every verb works."""
        for name, verb in every_verb(scene).items():
            async with asyncio.timeout(self.patience):
                try:
                    await verb()
                except PlugqError as error:
                    message = f"{name} does not work although the store is there again: {error}"
                    raise AssertionError(message) from error
        id = os.urandom(8).hex()
        await scene.submit(id, queue="works")
        await scene.end(await scene.take(id, queues=("works",)))

    async def _sent_again(self, scene: Scene, jobs: Sequence[NewJob], answers: list[Any]) -> None:
        """Check what was said of each submission, and that it may be sent again (I15)."""
        for job, answer in zip(jobs, answers, strict=True):
            there = await scene.look(job.id) is not None
            if isinstance(answer, Unavailable):
                assert not there, f"{job.id} is stored, and its submitter was told otherwise"
            elif not isinstance(answer, OutcomeUnknown):
                assert answer[0].status is SubmitStatus.ACCEPTED
                assert there, f"{job.id} was acknowledged and is lost"
            (again,) = await scene.storage.submit([job])
            assert again.status is SubmitStatus.ACCEPTED
        assert sorted(await scene.claimed_ids()) == sorted(job.id for job in jobs)

    async def test_every_verb_ends_in_time_while_the_store_is_away(self) -> None:
        """With an answer or an error of plugq's; afterwards each works again."""
        async with self.scene() as scene:
            await scene.submit("a", batch="x")
            async with self.outage(scene.context):
                answers: list[Any] = []
                for _ in range(2):
                    large = scene.job(os.urandom(8).hex(), queue="large", body=bytes(2**20))
                    verbs = every_verb(scene).values()
                    answers += await self._ask(
                        scene.storage.submit([large]), *(verb() for verb in verbs)
                    )
            assert any(isinstance(answer, PlugqError) for answer in answers), (
                "the hook outage() lets every call through"
            )
            await self._works(scene)
            await check_books(scene)

    async def test_nothing_acknowledged_is_lost_in_an_outage(self) -> None:
        """Neither what was stored before nor what was answered meanwhile."""
        async with self.scene() as scene:
            await scene.bring("done", JobState.SUCCEEDED, queue="old")
            await scene.submit("before", queue="old", body=b"payload")
            jobs = [scene.job(str(number), body=bytes(20_000)) for number in range(20)]
            async with self.outage(scene.context):
                answers = await self._ask(*(scene.storage.submit([job]) for job in jobs))
            assert (await scene.show("done", "old")).result == b"null"
            assert (await scene.show("before", "old", body=True)).body == b"payload"
            await self._sent_again(scene, jobs, answers)
            await check_books(scene)

    async def test_leases_outlive_an_outage(self) -> None:
        """Settlements, renewals and claims that failed are made again (I4)."""
        async with self.scene() as scene:
            await scene.submit("a", "b", "c", max_attempts=5)
            leases = await scene.claim(2)
            request = scene.request(1)
            settlement = scene.settlement(leases[0], result=b"42")
            async with self.outage(scene.context):
                settled, _, claimed = await self._ask(
                    scene.storage.settle([settlement]),
                    scene.renew(*leases),
                    scene.storage.claim(request),
                )
            (reply,), _ = await scene.storage.settle([settlement])
            if isinstance(settled, Unavailable):
                assert not reply.lost, "a settlement that was said not to have happened did"
            elif not isinstance(settled, OutcomeUnknown):
                assert reply.lost, "a settlement that was acknowledged is lost"
            assert (await scene.show("a")).result == b"42"
            assert await scene.end(leases[1]) is JobState.SUCCEEDED
            (lease,) = (await scene.storage.claim(request)).leases
            assert lease.id == "c"
            if not isinstance(claimed, BaseException):
                assert claimed.leases == (lease,)
            assert await scene.end(lease) is JobState.SUCCEEDED
            assert await scene.total("started") == 3
            await check_books(scene)

    @requires(Capability.PUSH_WAKEUPS)
    async def test_a_watch_survives_an_outage(self) -> None:
        """It goes on, or says resync; nobody has to open it again."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.submit("a", origin="p")
            async with self.outage(scene.context):
                await self._ask(scene.cancel("a"), scene.storage.stats())
            known = len(ear.heard)
            await scene.submit("b", origin="p")
            await scene.cancel("b")
            (ref,) = scene.refs("b")
            await ear.until(
                lambda: (
                    ref in ear.refs(Finished)
                    or any(isinstance(one, Resync) for one in ear.heard[known:])
                ),
                "what happened after the outage",
            )

    @requires(Capability.PUSH_WAKEUPS)
    async def test_listening_survives_an_outage(self) -> None:
        """Events told after it are heard, or a resync stands for them; telling never raises."""
        async with self.scene() as scene, Hearing(scene) as hearing:
            await refresh(scene)
            async with self.outage(scene.context):
                scene.storage.tell(numbered(0, 3))
                await self._ask(scene.claim(0))
            known = len(hearing.heard)
            await refresh(scene)
            scene.storage.tell(numbered(3, 3))
            await hearing.until(
                lambda: any(isinstance(one, Happened | Resync) for one in hearing.heard[known:]),
                "events after the outage, or a resync",
            )

    async def test_a_start_in_an_outage_fails_in_time_or_works(self) -> None:
        """With an error of plugq's; the next one after it works."""
        async with self.scene() as scene:
            await scene.submit("a")

            async def open_it() -> None:
                async with AsyncExitStack() as stack:
                    await stack.enter_async_context(self.open(scene.context))

            async with self.outage(scene.context):
                await self._ask(open_it())
            async with scene.another() as other:
                assert await other.claimed_ids() == ["a"]

    async def test_a_stop_in_an_outage_ends(self) -> None:
        """In time; a start after the outage finds everything."""
        async with self.scene() as scene:
            await scene.submit("a")
            async with self.outage(scene.context):
                calls = [asyncio.ensure_future(verb()) for verb in every_verb(scene).values()]
                for call in calls:
                    # Whatever they end with: a watch may just have ended.
                    call.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
                await asyncio.sleep(0)
                await self._ask(scene.storage.stop())
                await asyncio.wait(calls, timeout=6 * self.patience)
                assert all(call.done() for call in calls), "a call hangs after stop"
            await scene.storage.start()
            assert await scene.look("a") is not None
            await self._works(scene)


__all__ = ["Outages"]
