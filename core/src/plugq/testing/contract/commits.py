"""Transactions of users beside others that are at work: open ones, lost ones, and contenders."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from plugq.errors import JobNotFound, Unavailable
from plugq.job import JobState
from plugq.protocols.edits import Pause
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import Finished, RegisterChange, SubmitStatus, UniqueKey, UniqueMode
from plugq.testing import crashing
from plugq.testing.children import PATIENCE
from plugq.testing.contract.crash_story import Stories
from plugq.testing.contract.crew import Crew, Side, at_work
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.contract.snapshot import check_books, every_job
from plugq.testing.contract.transactions import add, each_kind, kinds, name_of, put
from plugq.testing.crashing import Spec
from plugq.testing.levels import Level
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from plugq.protocols.storage import Lease
    from plugq.testing.contract.transactions import Begin

_HERE = __name__
#: For how long those who wait for a transaction are watched as they do, in seconds.
_MOMENT = 0.2
#: Ids, and as many unique keys, for which several contend.
_CONTENDED = 6

_several = requires(Capability.TRANSACTIONAL_SUBMIT, Capability.SHARED_PROCESSES)
_durable = requires(
    Capability.TRANSACTIONAL_SUBMIT, Capability.SHARED_PROCESSES, Capability.DURABLE
)


async def submit_and_hold(side: Side, place: int, *, commit: bool) -> None:
    """Submit in a transaction, commit it or not, tell of it and wait to be killed."""
    async with side.contract.open(side.context) as storage:
        scene = Scene(side.contract, side.context, storage)
        async with kinds(side.contract, scene)[place]() as within:
            await add(scene, within, "a", "b", lane="x", batch="b")
            if commit:
                await within.commit()
            side.say("submitted")
            await side.hear()


async def contend(side: Side, name: str) -> None:
    """Submit in transactions what others want, too, and tell what was accepted and committed."""
    async with at_work(side) as scene:
        found = kinds(side.contract, scene)
        begin = found[int(name[1:]) % len(found)]
        for number in range(_CONTENDED):
            key = UniqueKey(UniqueMode.UNTIL_FINISHED, f"key-{number}")
            jobs = (
                scene.job(f"same-{number}", body=name.encode()),
                scene.job(f"{name}-{number}", unique=key),
                scene.job(f"alone-{name}-{number}"),
            )
            commits = (number + int(name[1:])) % 3 > 0
            while True:
                async with begin() as within:
                    try:
                        replies = await put(scene, within, *jobs)
                    except Unavailable:
                        # Somebody else has the lock for longer than this connection waits.
                        await within.rollback()
                        continue
                    await (within.commit() if commits else within.rollback())
                    break
            accepted = [
                job.id
                for job, reply in zip(jobs, replies, strict=True)
                if commits and reply.status is SubmitStatus.ACCEPTED
            ]
            side.say(accepted)


class Commits(Stories):
    """What holds beside and after a user's transaction; needs the hook ``transactions``."""

    level = Level.CONCURRENCY

    def _writes(self, scene: Scene, lease: Lease) -> Mapping[str, Callable[[], Awaitable[Any]]]:
        """Return what others do meanwhile."""
        storage = scene.storage
        return {
            "submit": lambda: scene.submit("new"),
            "claim": lambda: scene.claim(100),
            "renew": lambda: scene.renew(lease),
            "settle": lambda: scene.settle(lease),
            "sweep": scene.sweep,
            "edit": lambda: storage.edit(Pause(("other",))),
            "swap": lambda: storage.swap([RegisterChange(key="k", expect=0, value=b"v")]),
        }

    @each_kind
    async def test_an_open_transaction_stops_no_other_where_it_need_not(
        self, scene: Scene, begin: Begin
    ) -> None:
        """Nobody who reads waits for it, and who writes does only where ``writers_wait`` says so.

        Where hosts share the storage that can not be.
        """
        await scene.submit("runs", "waits")
        lease = await scene.take("runs")
        async with begin() as within:
            await add(scene, within, "a")
            writes = self._writes(scene, lease)
            if self.writers_wait:
                assert Capability.SHARED_HOSTS not in scene.storage.capabilities, (
                    "hosts share the storage, and an open transaction of one stops all of them"
                )
                calls = [asyncio.ensure_future(write()) for write in writes.values()]
                ended, _ = await asyncio.wait(calls, timeout=_MOMENT)
                assert not ended, "writers_wait is declared, and they do not wait"
            else:
                for name, write in writes.items():
                    await self._goes_on(name, write())
            for name, read in (("get", scene.look()), ("stats", scene.storage.stats())):
                await self._goes_on(name, read)
            assert await scene.look() is None
            await within.commit()
        if self.writers_wait:
            await asyncio.gather(*calls)
        await scene.claim(100)
        assert await scene.state() is JobState.RUNNING
        await check_books(scene)

    async def _goes_on(self, name: str, call: Awaitable[Any]) -> None:
        try:
            async with asyncio.timeout(self.patience):
                await call
        except TimeoutError:
            message = f"{name} waits for an open transaction of the user"
            raise AssertionError(message) from None

    @each_kind
    async def test_an_id_in_two_open_transactions_is_one_job(
        self, scene: Scene, begin: Begin
    ) -> None:
        """If both commit, exactly one of them, and it runs once (I8)."""
        if self.writers_wait:
            return
        for first_commits in (True, False):
            id = f"a-{first_commits}"
            async with begin() as first, begin() as second:
                await add(scene, first, id, body=b"1")
                await add(scene, second, id, body=b"2")
                await (first.commit() if first_commits else first.rollback())
                await second.commit()
            bodies = [job.body for job in await every_job(scene) if job.id == id]
            assert bodies in ([[b"1"], [b"2"]] if first_commits else [[b"2"]])
            lease = await scene.take(id)
            assert [lease.body] == bodies
            await scene.end(lease)
            assert await scene.claim() == ()
        await check_books(scene)

    @each_kind
    async def test_a_unique_key_in_two_open_transactions_is_held_by_one(
        self, scene: Scene, begin: Begin
    ) -> None:
        """The other job is stored as skipped, says by whom, and its submitter is told (I8)."""
        if self.writers_wait:
            return
        key = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")
        async with scene.listen("p") as ear:
            async with begin() as first, begin() as second:
                await add(scene, first, "1", unique=key, origin="p", batch="b")
                await add(scene, second, "2", unique=key, origin="p", batch="b")
                await first.commit()
                await second.commit()
            lease = await scene.take()
            assert await scene.claim(10) == ()
            loser = await scene.show("2" if lease.id == "1" else "1")
            assert (loser.state, loser.code) == (JobState.SKIPPED, "duplicate")
            assert loser.error is not None
            assert repr(lease.id) in loser.error.message
            if Capability.PUSH_WAKEUPS in scene.storage.capabilities:
                await ear.hears(Finished, *scene.refs(loser.id))
            await scene.end(lease)
        assert await scene.batch("b") == {JobState.SUCCEEDED: 1, JobState.SKIPPED: 1}
        await check_books(scene)

    @each_kind
    async def test_what_was_accepted_finds_its_place_after_the_commit(
        self, scene: Scene, begin: Begin
    ) -> None:
        """Although its queue has filled up meanwhile, or is drained (I1)."""
        if self.writers_wait:
            return
        await scene.configure("small", max_length=1)
        async with begin() as within:
            await add(scene, within, "a", queue="small")
            await add(scene, within, "b", queue="drained")
            await scene.submit("other", queue="small")
            await scene.drain("drained")
            await within.commit()
        assert sorted(await scene.claimed_ids(queues=("small",))) == ["a", "other"]
        assert await scene.claimed_ids(queues=("drained",)) == ["b"]

    @_several
    async def test_of_several_who_submit_the_same_in_transactions_one_counts(self) -> None:
        """Each id and each key is taken once, whatever driver its submitter has (I8, I15)."""
        async with self.scene(real_time=True) as scene:
            count = max(3, len(kinds(self, scene)))
            said = await Crew(scene, processes=True).work(contend, count)
            accepted: dict[str, list[str]] = {}
            for number, told in enumerate(said):
                for id in (id for some in told for id in some):
                    accepted.setdefault(id, []).append(f"m{number}")
            leases = {lease.id: lease for lease in await scene.claim(1000)}
            stored = {job.id: job for job in await every_job(scene)}
            assert set(stored) == set(accepted), "stored is something else than was committed"
            for id, by in accepted.items():
                assert not self.writers_wait or len(by) == 1, f"{id} was accepted from {by}"
                if id.startswith("same"):
                    assert leases[id].body.decode() in by, f"{id} is of none that was accepted"
            for number in range(_CONTENDED):
                rivals = [f"m{place}-{number}" for place in range(count)]
                rivals = [id for id in rivals if id in stored]
                held = [id for id in rivals if id in leases]
                assert len(held) == min(1, len(rivals)), f"{held} hold one key"
                for id in set(rivals) - set(held):
                    assert stored[id].code == "duplicate"
            await check_books(scene)

    @_several
    async def test_a_worker_elsewhere_runs_what_is_committed(self) -> None:
        """It is idle, and starts the job after the commit; at the latest when it polls (I3)."""
        async with self.story() as story, story.worker() as worker:
            await worker.hear()
            async with crashing.client(self, story.scene.context) as client:
                for begin in kinds(self, story.scene):
                    gone, kept = f"gone-{name_of(begin)}", f"kept-{name_of(begin)}"
                    async with begin() as within:
                        request = Spec(id=gone, payload={}).request()
                        handle = await client.submit(request, connection=within.connection)
                        assert (handle.id, handle.outcome) == (gone, "accepted")
                        await within.rollback()
                    await self._is_not_there(handle.wait(PATIENCE))
                    async with begin() as within:
                        (handle,) = await client.submit_many(
                            [Spec(id=kept, payload={}).request()], connection=within.connection
                        )
                        await self._is_not_there(client.get(kept))
                        await within.commit()
                    assert (await handle.wait(PATIENCE)).state is JobState.SUCCEEDED
            await worker.say("stop")
            await worker.ends()
            ran = {line.id for line in story.ledger.read() if line.id}
            assert all(id.startswith("kept") for id in ran), f"{ran} were run"

    async def _is_not_there(self, look: Awaitable[object]) -> None:
        try:
            await look
        except JobNotFound:
            return
        raise AssertionError("a job is there without a commit")


class LostTransactions(Contract):
    """What a user's process that dies leaves of its transaction."""

    level = Level.CRASH

    @_durable
    async def test_a_process_that_dies_before_its_commit_leaves_nothing(self) -> None:
        """Its transaction goes with it, and what it held is free."""
        await self._dies(commit=False)

    @_durable
    async def test_a_process_that_dies_after_its_commit_leaves_its_jobs(self) -> None:
        """They are there as if it lived (I1)."""
        await self._dies(commit=True)

    async def _dies(self, *, commit: bool) -> None:
        place, count = 0, 1
        while place < count:
            async with self.scene(real_time=True) as scene:
                count = len(kinds(self, scene))
                part = f"{_HERE}:submit_and_hold"
                async with scene.child(part, place=place, commit=commit) as victim:
                    assert await victim.hear() == "submitted"
                    await victim.kill()
                if commit:
                    assert await scene.batch("b") == {JobState.QUEUED: 2}
                else:
                    assert await every_job(scene) == []
                    assert await scene.storage.batches(["b"]) == [None]
                    await scene.submit("a", "b", lane="x")
                for id in ("a", "b"):
                    await scene.end(await scene.take(id))
                assert await scene.claim() == ()
                await check_books(scene)
            place += 1


__all__ = ["Commits", "LostTransactions"]
