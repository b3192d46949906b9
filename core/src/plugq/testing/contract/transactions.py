"""Jobs that are submitted in a transaction of the user's own: they share its fate."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from plugq.errors import InvalidJob
from plugq.job import JobState, Outcome
from plugq.protocols.edits import EditStatus
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import Finished, SubmitStatus, UniqueKey, UniqueMode
from plugq.testing.contract.scene import Contract, Scene, UserTransaction
from plugq.testing.contract.snapshot import check_books, every_job, snapshot
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

    from plugq.job import JobRecord
    from plugq.protocols.storage import NewJob, SubmitReply
    from plugq.protocols.transactions import TransactionalStorage

    Begin = Callable[[], AbstractAsyncContextManager[UserTransaction]]

C = TypeVar("C", bound=Contract)

_ACCEPTED, _DUPLICATE = SubmitStatus.ACCEPTED, SubmitStatus.DUPLICATE
_KEY = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")


async def put(scene: Scene, within: UserTransaction, *jobs: NewJob) -> Sequence[SubmitReply]:
    """Submit jobs in a transaction, in one call."""
    storage = cast("TransactionalStorage", scene.storage)
    replies = await storage.submit_within(within.connection, jobs)
    assert len(replies) == len(jobs)
    return replies


async def add(scene: Scene, within: UserTransaction, *ids: str, **fields: Any) -> None:
    """Submit new jobs in a transaction, in one call; all of them must be accepted."""
    replies = await put(scene, within, *(scene.job(id, **fields) for id in ids))
    assert [(reply.status, reply.id) for reply in replies] == [(_ACCEPTED, id) for id in ids]


def kinds(contract: Contract, scene: Scene) -> list[Begin]:
    """Return what begins a transaction on the scene's store, for each kind of connection."""
    found = list(contract.transactions(scene.context))
    assert found, (
        "transactional_submit is declared, and the hook transactions() is not written; it has to "
        "begin a transaction on a connection of each kind that the storage supports"
    )
    return found


def each_kind(
    test: Callable[[C, Scene, Begin], Coroutine[Any, Any, None]],
) -> Callable[[C], Coroutine[Any, Any, None]]:
    """Run a test with every kind of connection, each time on a new store."""
    return requires(Capability.TRANSACTIONAL_SUBMIT)(_with_each(test, real_time=False))


def _with_each(
    test: Callable[[C, Scene, Begin], Coroutine[Any, Any, None]], *, real_time: bool
) -> Callable[[C], Coroutine[Any, Any, None]]:
    @wraps(test)
    async def run(contract: C) -> None:
        place, count = 0, 1
        while place < count:
            async with contract.scene(real_time=real_time) as scene:
                found = kinds(contract, scene)
                count = len(found)
                begin = found[place]
                try:
                    await test(contract, scene, begin)
                except BaseException as error:
                    error.add_note(f"with {getattr(begin, '__name__', begin)}")
                    raise
            place += 1

    # pytest would take the arguments for fixtures.
    del run.__wrapped__
    return run


def _told(job: JobRecord) -> JobRecord:
    """Return a job without what tells it from another one that was submitted likewise."""
    return msgspec.structs.replace(job, id="", sequence=0, submission=b"")


class Transactions(Contract):
    """What holds of jobs that a user submits in a transaction; needs the hook ``transactions``."""

    @each_kind
    async def test_a_job_is_submitted_in_a_transaction_of_the_user(
        self, scene: Scene, begin: Begin
    ) -> None:
        """After the commit it is there once, with exactly what was submitted (I2)."""
        fields: dict[str, Any] = {
            "body": bytes(range(256)) * 40,
            "priority": 7,
            "max_attempts": 3,
            "lane": "l'ane",
            "batch": "b",
            "deadline_in": 500.0,
            "result_ttl": None,
            "failure_ttl": 5.5,
            "id_ttl": 6.5,
            "unique": UniqueKey(UniqueMode.THROTTLE, "k", 60.0),
        }
        await scene.submit("plain", queue="plain", **fields)
        async with begin() as within:
            await add(scene, within, "a", queue="mine", **fields)
            await within.commit()
        plain = await scene.show("plain", "plain", body=True)
        job = await scene.show("a", "mine", body=True)
        expected = msgspec.structs.replace(_told(plain), queue="mine")
        assert _told(job) == expected, f"stored is {job}, and submit stores {plain}"
        assert job.sequence > plain.sequence
        assert [one.id for one in await every_job(scene)] == ["plain", "a"]
        lease = await scene.take("a", queues=("mine",))
        assert lease.body == fields["body"], "another payload is run than was submitted"
        assert await scene.end(lease) is JobState.SUCCEEDED
        assert await scene.claim(queues=("mine",)) == ()
        await check_books(scene)

    @each_kind
    async def test_a_transaction_that_is_rolled_back_leaves_nothing(
        self, scene: Scene, begin: Begin
    ) -> None:
        """No job, no count, no batch, no held key; its ids are new ones afterwards."""
        await scene.submit("old", queue="old", batch="old")
        before = await snapshot(scene)
        async with begin() as within:
            await add(scene, within, "a", "b", batch="b")
            await add(scene, within, "key", batch="b", unique=_KEY, queue="other")
            await within.rollback()
        assert await snapshot(scene) == before, "a rollback left something"
        assert await scene.storage.batches(["b"]) == [None]
        assert await scene.look("a") is None
        assert await scene.claim(queues=("q", "other")) == ()
        await scene.submit("a", body=b"another")
        await scene.submit("other", queue="other", unique=_KEY)
        assert (await scene.take("a")).body == b"another"
        assert await scene.claim(queues=("q",)) == ()
        await check_books(scene)

    @each_kind
    async def test_a_connection_that_is_closed_leaves_nothing(
        self, scene: Scene, begin: Begin
    ) -> None:
        """A transaction that nobody ended is rolled back with its connection."""
        before = await snapshot(scene)
        async with begin() as within:
            await add(scene, within, "a", batch="b")
        assert await snapshot(scene) == before
        await scene.submit("a")

    @each_kind
    async def test_nobody_sees_a_job_before_the_commit(self, scene: Scene, begin: Begin) -> None:
        """Neither who looks for it nor who counts, waits for its batch or lists the queues."""
        before = await snapshot(scene)
        async with begin() as within, scene.another() as other:
            await add(scene, within, "a", batch="b")
            for looker in (scene, other):
                assert await looker.look("a") is None, "a job is seen before the commit"
                assert await looker.storage.batches(["b"]) == [None]
                assert await snapshot(looker) == before, "the store shows a job before the commit"
            await within.commit()
            for looker in (scene, other):
                assert await looker.state("a") is JobState.QUEUED
                (counts,) = await looker.storage.batches(["b"])
                assert counts is not None
                assert counts.counts[JobState.QUEUED] == 1
                assert await looker.count(JobState.QUEUED) == 1

    @each_kind
    async def test_the_answer_is_there_before_the_commit(self, scene: Scene, begin: Begin) -> None:
        """With the id and the state in which the job will be."""
        async with begin() as within:
            now, later = await put(
                scene, within, scene.job("now"), scene.job("later", delay=60.0, priority=-3)
            )
            await within.commit()
        assert (now.status, now.id, now.state) == (_ACCEPTED, "now", JobState.QUEUED)
        assert (later.status, later.id, later.state) == (_ACCEPTED, "later", JobState.DELAYED)
        for reply in (now, later):
            job = await scene.show(reply.id)
            assert job.state is reply.state
            assert reply.sequence in {0, job.sequence}
            assert reply.generation == job.generation == 0

    @each_kind
    async def test_an_id_is_judged_in_the_transaction(self, scene: Scene, begin: Begin) -> None:
        """Against what is stored and what the transaction itself has submitted (I8)."""
        await scene.submit("waits")
        await scene.submit("runs", queue="r")
        await scene.take("runs", queues=("r",))
        await scene.submit("cancelled")
        await scene.cancel("cancelled")
        mine = scene.job("mine", body=b"first")
        async with begin() as within:
            for id, queue, state in (
                ("waits", "q", JobState.QUEUED),
                ("runs", "r", JobState.RUNNING),
            ):
                (reply,) = await put(scene, within, scene.job(id, queue=queue, body=b"second"))
                assert (reply.status, reply.id, reply.state) == (_DUPLICATE, id, state)
            (reply,) = await put(scene, within, scene.job("cancelled", body=b"again"))
            assert (reply.status, reply.generation) == (_ACCEPTED, 1)
            first, second = await put(scene, within, mine, scene.job("mine", body=b"second"))
            assert (first.status, second.status) == (_ACCEPTED, _DUPLICATE)
            (reply,) = await put(scene, within, scene.job("mine", body=b"third"))
            assert (reply.status, reply.id) == (_DUPLICATE, "mine")
            (reply,) = await put(scene, within, mine)
            assert reply.status is _ACCEPTED, "the same submission sent again is accepted again"
            await within.commit()
        (reply,) = await scene.send(mine)
        assert reply.status is _ACCEPTED, "the same submission sent again is accepted again"
        bodies = {lease.id: lease.body for lease in await scene.claim(10)}
        assert bodies == {"waits": b"{}", "cancelled": b"again", "mine": b"first"}
        assert (await scene.show("cancelled")).generation == 1
        await check_books(scene)

    @each_kind
    async def test_a_unique_key_is_judged_in_the_transaction(
        self, scene: Scene, begin: Begin
    ) -> None:
        """Against what is stored and what the transaction itself has submitted (I8)."""
        await scene.submit("holder", unique=_KEY)
        async with begin() as within:
            (reply,) = await put(scene, within, scene.job("a", unique=_KEY))
            assert (reply.status, reply.id) == (_DUPLICATE, "holder")
            for mode in UniqueMode:
                key = UniqueKey(mode, f"mine-{mode}", 60.0)
                await add(scene, within, f"first-{mode}", unique=key)
                (reply,) = await put(scene, within, scene.job(f"second-{mode}", unique=key))
                assert (reply.status, reply.id) == (_DUPLICATE, f"first-{mode}")
            await within.commit()
        for mode in UniqueMode:
            key = UniqueKey(mode, f"mine-{mode}", 60.0)
            (reply,) = await scene.send(scene.job(f"third-{mode}", unique=key))
            assert (reply.status, reply.id) == (_DUPLICATE, f"first-{mode}")
        assert sorted(await scene.claimed_ids()) == sorted(
            ["holder", *(f"first-{mode}" for mode in UniqueMode)]
        )

    @each_kind
    async def test_of_two_transactions_the_first_counts(self, scene: Scene, begin: Begin) -> None:
        """The second one, begun after it, is told of a duplicate if the first has committed."""
        for committed in (False, True):
            first, second = f"first-{committed}", f"second-{committed}"
            key = UniqueKey(UniqueMode.UNTIL_FINISHED, f"key-{committed}")
            async with begin() as within:
                await add(scene, within, first, body=b"1")
                await add(scene, within, f"{first}-key", unique=key)
                await (within.commit() if committed else within.rollback())
            expected = _DUPLICATE if committed else _ACCEPTED
            async with begin() as within:
                (same,) = await put(scene, within, scene.job(first, body=b"2"))
                (held,) = await put(scene, within, scene.job(second, unique=key))
                assert (same.status, held.status) == (expected, expected)
                assert (same.id, held.id) == (first, f"{first}-key" if committed else second)
                await within.commit()
            bodies = {lease.id: lease.body for lease in await scene.claim(10)}
            assert bodies.pop(first) == (b"1" if committed else b"2")
            assert list(bodies) == [f"{first}-key" if committed else second]

    @each_kind
    async def test_jobs_of_a_transaction_stand_in_their_order(
        self, scene: Scene, begin: Begin
    ) -> None:
        """By priority, then in the order in which they were submitted, over several calls (I10)."""
        await scene.submit("before")
        async with begin() as within:
            await add(scene, within, "a", "b", "c")
            await add(scene, within, "high", priority=5)
            await add(scene, within, "later", delay=10.0)
            await add(scene, within, "d", "e")
            await within.commit()
        await scene.submit("after")
        assert await scene.claimed_ids() == ["high", "before", "a", "b", "c", "d", "e", "after"]
        scene.clock.advance(10)
        assert await scene.claimed_ids() == ["later"]

    @each_kind
    async def test_jobs_of_a_transaction_keep_their_lanes(self, scene: Scene, begin: Begin) -> None:
        """One of a lane runs at a time, beside those that were there before (I9)."""
        await scene.submit("old", lane="x")
        async with begin() as within:
            await add(scene, within, "x1", "x2", lane="x")
            await add(scene, within, "y1", "y2", lane="y")
            await within.commit()
        granted: list[str] = []
        while leases := await scene.claim(10):
            granted += [lease.id for lease in leases]
            assert len({lease.lane for lease in leases}) == len(leases)
            for lease in leases:
                await scene.end(lease)
        assert sorted(granted) == ["old", "x1", "x2", "y1", "y2"]
        assert [id for id in granted if id != "old" and id[0] == "x"] == ["x1", "x2"]
        assert granted.index("old") < granted.index("x1")

    @each_kind
    async def test_a_deadline_holds_for_a_job_of_a_transaction(
        self, scene: Scene, begin: Begin
    ) -> None:
        """Shown at once and stored by the next sweep."""
        async with begin() as within:
            await add(scene, within, "a", deadline_in=5.0)
            await within.commit()
        scene.clock.advance(5)
        assert await scene.state() is JobState.FAILED
        await scene.sweep()
        assert (await scene.show()).code == "deadline"
        assert await scene.claim() == ()

    @each_kind
    async def test_a_job_of_a_transaction_waits_in_a_paused_queue(
        self, scene: Scene, begin: Begin
    ) -> None:
        """As any other."""
        await scene.pause()
        async with begin() as within:
            await add(scene, within, "a")
            await within.commit()
        assert await scene.claim() == ()
        assert await scene.state() is JobState.QUEUED
        await scene.resume()
        assert await scene.claimed_ids() == ["a"]

    @each_kind
    async def test_a_queue_that_takes_nothing_takes_nothing_in_a_transaction(
        self, scene: Scene, begin: Begin
    ) -> None:
        """Full or drained, it is told so at once; the transaction can go on without the call."""
        await scene.configure("small", max_length=2)
        await scene.submit("there", queue="small")
        await scene.drain("drained")
        async with begin() as within:
            await add(scene, within, "other")
            replies = await put(
                scene, within, *(scene.job(id, queue="small") for id in ("x", "y")), scene.job("z")
            )
            assert [reply.status for reply in replies] == [
                SubmitStatus.FULL,
                SubmitStatus.FULL,
                SubmitStatus.REFUSED,
            ]
            (reply,) = await put(scene, within, scene.job("x", queue="drained"))
            assert reply.status is SubmitStatus.DRAINING
            await add(scene, within, "fits", queue="small")
            (reply,) = await put(scene, within, scene.job("x", queue="small"))
            assert reply.status is SubmitStatus.FULL
            await within.commit()
        assert sorted(job.id for job in await every_job(scene)) == ["fits", "other", "there"]
        await check_books(scene)

    @each_kind
    async def test_a_job_of_a_transaction_lives_like_any_other(
        self, scene: Scene, begin: Begin
    ) -> None:
        """It is retried, cancelled, queued again, and goes when its retention has passed."""
        async with begin() as within:
            fields = {"max_attempts": 2, "failure_ttl": 20.0, "result_ttl": 10.0, "id_ttl": 0.0}
            await add(scene, within, "retried", "cancelled", "fails", batch="b", **fields)
            await within.commit()
        assert (await scene.cancel("cancelled")).status is EditStatus.DONE
        lease, other = await scene.claim(2)
        assert await scene.end(lease, Outcome.RETRY) is JobState.DELAYED
        assert await scene.end(other, Outcome.FAIL, code="x") is JobState.FAILED
        assert (await scene.redrive("fails")).status is EditStatus.DONE
        for lease in await scene.claim(2):
            assert lease.attempt == (2 if lease.id == "retried" else 1)
            await scene.end(lease, result=b"1")
        assert (await scene.show("retried")).result == b"1"
        (counts,) = await scene.storage.batches(["b"])
        assert counts is not None
        assert {state: count for state, count in counts.counts.items() if count} == {
            JobState.SUCCEEDED: 2,
            JobState.CANCELLED: 1,
        }
        scene.clock.advance(20)
        await scene.sweep()
        assert await every_job(scene) == []
        assert await scene.total("accepted") == await scene.total("removed") == 3

    @each_kind
    async def test_many_jobs_fit_into_one_transaction(self, scene: Scene, begin: Begin) -> None:
        """Thousands, in calls of a thousand."""
        ids = [f"{number:04}" for number in range(2500)]
        async with begin() as within:
            for start in range(0, len(ids), 1000):
                await add(scene, within, *ids[start : start + 1000], batch="b")
            await within.commit()
        assert await scene.claimed_ids(len(ids)) == ids
        assert await scene.claim() == ()
        assert await put_nothing(scene, begin) == []
        await check_books(scene)

    @each_kind
    async def test_a_job_that_can_not_be_is_refused_in_a_transaction(
        self, scene: Scene, begin: Begin
    ) -> None:
        """The whole call is, and the transaction goes on without it."""
        async with begin() as within:
            await add(scene, within, "a")
            for bad in (
                scene.job("b", delay=float("nan")),
                scene.job("\ud800"),
                scene.job("b", max_attempts=2**63),
            ):
                try:
                    await put(scene, within, scene.job("c"), bad)
                except InvalidJob:
                    pass
                else:
                    raise AssertionError(f"{bad} is accepted")
            await add(scene, within, "d")
            await within.commit()
        assert await scene.claimed_ids() == ["a", "d"]

    @each_kind
    async def test_a_connection_that_can_not_serve_is_refused(
        self, scene: Scene, begin: Begin
    ) -> None:
        """One of another kind, or closed; nothing is stored and the message says why."""
        before = await snapshot(scene)
        async with begin() as within:
            await within.rollback()
        for connection in (object(), "jobs.db", scene.storage, within.connection):
            wrong = UserTransaction(connection, within.commit, within.rollback)
            try:
                await put(scene, wrong, scene.job("a"))
            except InvalidJob as error:
                message = str(error)
            else:
                raise AssertionError(f"{connection!r} is taken for a connection")
            assert message.startswith("connection: ")
            assert "\n" not in message
        assert await snapshot(scene) == before

    @each_kind
    async def test_without_a_transaction_nothing_is_stored(
        self, scene: Scene, begin: Begin
    ) -> None:
        """After its end the connection is refused, or begins another one, which has to commit."""
        for commit in (True, False):
            async with begin() as within:
                await (within.commit() if commit else within.rollback())
                try:
                    await put(scene, within, scene.job("a"))
                except InvalidJob:
                    pass
                else:
                    assert await scene.look("a") is None, "a job was stored without a commit"
                    await within.rollback()
            assert await scene.look("a") is None
            assert await scene.claim() == ()

    @each_kind
    async def test_a_job_goes_only_to_the_store_that_is_asked(
        self, scene: Scene, begin: Begin
    ) -> None:
        """A connection to another store is refused, unless this one is reached through it."""
        del begin
        async with self.scene() as far:
            for place, begin_there in enumerate(kinds(self, far)):
                id = f"a{place}"
                async with begin_there() as within:
                    try:
                        await add(scene, within, id)
                    except InvalidJob:
                        await within.rollback()
                        assert await scene.look(id) is None
                    else:
                        await within.commit()
                        assert await scene.state(id) is JobState.QUEUED
            assert await every_job(far) == []

    @requires(Capability.PUSH_WAKEUPS)
    @each_kind
    async def test_who_is_idle_is_woken_by_the_next_sweep_after_the_commit(
        self, scene: Scene, begin: Begin
    ) -> None:
        """At the latest; a transaction that was rolled back costs nobody a wake-up."""
        async with scene.listen("p") as ear:
            assert await scene.claim(1, peer="p") == ()
            async with begin() as within:
                await add(scene, within, "gone")
                await within.rollback()
            async with begin() as within:
                await add(scene, within, "a")
                await within.commit()
            await scene.sweep()
            await ear.hears_wake()
            assert await scene.claimed_ids() == ["a"]

    @requires(Capability.PUSH_WAKEUPS)
    @each_kind
    async def test_who_submitted_in_a_transaction_is_told_of_the_end(
        self, scene: Scene, begin: Begin
    ) -> None:
        """As of the end of any job."""
        async with scene.listen("p") as ear:
            async with begin() as within:
                await add(scene, within, "a", origin="p")
                await within.commit()
            await scene.end(await scene.take("a"))
            await ear.hears(Finished, *scene.refs("a"))


async def put_nothing(scene: Scene, begin: Begin) -> list[SubmitReply]:
    """Make a call without a job in a transaction that commits."""
    async with begin() as within:
        replies = await put(scene, within)
        await within.commit()
        return list(replies)


__all__ = ["Transactions", "add", "each_kind", "kinds", "put"]
