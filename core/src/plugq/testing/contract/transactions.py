"""Jobs that are submitted in a transaction of the user's own: they share its fate."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec

from plugq.errors import InvalidJob
from plugq.job import JobState
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import SubmitStatus, UniqueKey, UniqueMode
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
                    error.add_note(f"with {name_of(begin)}")
                    raise
            place += 1

    # pytest would take the arguments for fixtures.
    del run.__wrapped__
    return run


def name_of(begin: Begin) -> str:
    """Return what a kind of connection is called."""
    function = getattr(begin, "func", begin)
    return getattr(function, "__name__", str(function))


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
            for place, mode in enumerate(UniqueMode):
                key = UniqueKey(mode, mode, 60.0)
                await add(scene, within, f"key{place}", batch="b", unique=key, queue="other")
            await within.rollback()
        assert await snapshot(scene) == before, "a rollback left something"
        assert await scene.storage.batches(["b"]) == [None]
        assert await scene.look("a") is None
        assert await scene.claim(queues=("q", "other")) == ()
        await scene.submit("a", body=b"another")
        for mode in UniqueMode:
            await scene.submit(mode, queue="other", unique=UniqueKey(mode, mode, 60.0))
        assert (await scene.take("a")).body == b"another"
        assert await scene.claim(queues=("q",)) == ()
        await check_books(scene)

    @each_kind
    async def test_a_rollback_brings_back_what_was_replaced(
        self, scene: Scene, begin: Begin
    ) -> None:
        """The cancelled job whose id was used again, and one whose retention had passed."""
        await scene.submit("cancelled", batch="b", body=b"1")
        await scene.cancel("cancelled")
        await scene.submit("old", batch="b", result_ttl=1.0, id_ttl=1.0)
        await scene.end(await scene.take("old"))
        scene.clock.advance(20)
        before = await snapshot(scene)
        async with begin() as within:
            replies = await put(scene, within, scene.job("cancelled", body=b"2"), scene.job("old"))
            assert [reply.status for reply in replies] == [_ACCEPTED, _ACCEPTED]
            await within.rollback()
        assert await snapshot(scene) == before, "a rollback did not bring back what was there"
        assert (await scene.show("cancelled", body=True)).body == b"1"
        async with begin() as within:
            await put(scene, within, scene.job("cancelled", body=b"2"), scene.job("old"))
            await within.commit()
        assert {lease.id: lease.body for lease in await scene.claim(5)} == {
            "cancelled": b"2",
            "old": b"{}",
        }
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
        async with scene.another() as other, begin() as within:
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
            (reply,) = await put(scene, within, scene.job("late", not_after=0.0))
            assert reply.status is SubmitStatus.LATE
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
                # Some open themselves again; then it is a transaction of theirs.
                assert connection is within.connection, f"{connection!r} is no connection"
                await within.rollback()
                message = "connection: "
            assert message.startswith("connection: "), message
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


__all__ = ["Transactions", "add", "each_kind", "kinds", "name_of", "put"]
