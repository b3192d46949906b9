"""Jobs in transactions of users: they share its fate, and nobody waits for it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from plugq.errors import OutcomeUnknown, PlugqError, Unavailable
from plugq.job import JobRef, JobState, Outcome
from plugq.protocols import (
    ClaimRequest,
    FindQuery,
    NewJob,
    PluginContext,
    Resync,
    Settlement,
    SubmitStatus,
    SweepRequest,
    UniqueKey,
    UniqueMode,
    Wake,
)
from plugq.protocols.edits import Cancel, Configure, Drain, EditStatus, QueueSettings
from plugq.testing import ManualClock
from plugq_postgres import PostgresOptions, PostgresStorage

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]
Make = Callable[..., NewJob]
Claim = Callable[..., ClaimRequest]

KEY = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        # Whatever a failed test has left open is rolled back.
        await db.close()


async def state(storage: PostgresStorage, id: str, queue: str = "q") -> JobState | None:
    (job,) = await storage.get([JobRef(queue, id)])
    return None if job is None else job.state


async def test_an_open_transaction_makes_nobody_wait(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    """Neither who works on its queue, key, lane and batch, nor another transaction like it."""
    same: dict[str, Any] = {"unique": KEY, "lane": "x", "batch": "b"}
    async with (
        open_store(lock_timeout="200ms", statement_timeout="30s") as storage,
        connected(server_url) as one,
        connected(server_url) as two,
    ):
        await storage.submit([new_job("runs")])
        (lease,) = (await storage.claim(claim(1))).leases
        mine, theirs = one.transaction(), two.transaction()
        await mine.start()
        await storage.submit_within(one, [new_job("a", **same), new_job("fresh", queue="fresh")])
        await theirs.start()
        await storage.submit_within(two, [new_job("a", **same), new_job("fresh", queue="fresh")])
        await theirs.commit()
        await storage.submit([new_job("b", lane="x", batch="b"), new_job("fresh", queue="fresh")])
        assert [found.id for found in (await storage.claim(claim(10))).leases] == ["a"]
        done = Settlement(queue="q", id="runs", token=lease.token, outcome=Outcome.SUCCEED)
        _, more = await storage.settle([done], claim(10, queues=("q", "fresh")))
        assert more is not None
        assert [found.id for found in more.leases] == ["fresh"]
        await storage.edit(Cancel((JobRef("q", "b"),)))
        await storage.sweep(SweepRequest())
        assert await storage.batches(["b"]) != [None]
        await storage.stats()
        await storage.find(FindQuery())
        await mine.commit()
        assert await state(storage, "a") is JobState.RUNNING
        assert (await storage.claim(claim(10))).leases == ()


async def test_an_older_transaction_may_commit_later(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    """What was submitted before what has been moved in is moved in all the same (I1)."""
    async with (
        open_store() as storage,
        connected(server_url) as one,
        connected(server_url) as two,
    ):
        old = one.transaction()
        await old.start()
        await storage.submit_within(one, [new_job("old"), new_job("late", run_at=0.0)])
        for number in range(3):
            async with two.transaction():
                await storage.submit_within(two, [new_job(f"young-{number}")])
            assert await state(storage, f"young-{number}") is JobState.QUEUED
        await old.commit()
        # Its jobs have been ready for longer, and so come first.
        ids = [lease.id for lease in (await storage.claim(claim(10))).leases]
        assert ids == ["old", "late", "young-0", "young-1", "young-2"]


async def test_a_savepoint_takes_its_jobs_along(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    async with open_store() as storage, connected(server_url) as db:
        async with db.transaction():
            await storage.submit_within(db, [new_job("a")])
            savepoint = db.transaction()
            await savepoint.start()
            await storage.submit_within(db, [new_job("b"), new_job("c", unique=KEY)])
            await savepoint.rollback()
            (again, other) = await storage.submit_within(
                db, [new_job("b", body=b"2"), new_job("d", unique=KEY)]
            )
            assert again.status is other.status is SubmitStatus.ACCEPTED
        leases = (await storage.claim(claim(10))).leases
        assert [(lease.id, lease.body) for lease in leases] == [
            ("a", b"{}"),
            ("b", b"2"),
            ("d", b"{}"),
        ]


async def test_thousands_in_one_transaction_are_moved_in_by_one_claim(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    async with open_store(statement_timeout="30s") as storage, connected(server_url) as db:
        ids = [f"{number:04}" for number in range(5000)]
        async with db.transaction():
            await storage.submit_within(db, [new_job(id) for id in ids])
        leases = (await storage.claim(claim(5000))).leases
        assert [lease.id for lease in leases] == ids


async def test_more_than_a_call_may_move_in_is_moved_in_by_several(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    """A call moves in 250 of those that something stands against; who has to see all of it does."""
    async with open_store() as storage, connected(server_url) as db:

        async def commit(name: str) -> str:
            ids = [f"{name}-{number}" for number in range(600)]
            async with db.transaction():
                await storage.submit_within(db, [new_job(id) for id in ids])
                await storage.submit([new_job(id) for id in ids[:-1]])
            return ids[-1]

        assert await state(storage, await commit("get")) is JobState.QUEUED
        (reply,) = await storage.submit([new_job(await commit("submit"))])
        assert reply.status is SubmitStatus.DUPLICATE
        (edited,) = await storage.edit(Cancel((JobRef("q", await commit("edit")),)))
        assert edited.status is EditStatus.DONE
        last = await commit("claim")
        found: list[str] = []
        while last not in found:
            answer = await storage.claim(claim(3000))
            assert answer.leases or answer.next_in == 0
            found += [lease.id for lease in answer.leases]
        assert len(set(found)) == len(found) == 2399


async def test_the_loser_of_a_key_says_who_holds_it(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    async with open_store() as storage, connected(server_url) as db:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        async with db.transaction():
            await storage.submit_within(db, [new_job("loser", unique=KEY, origin="p", lane="x")])
            await storage.submit([new_job("holder ü", unique=KEY, lane="x")])
            # It has been accepted, and so needs no room.
            await storage.edit(Configure((QueueSettings(queue="q", max_length=1),)))
            await storage.edit(Drain(("q",)))
        assert [lease.id for lease in (await storage.claim(claim(10))).leases] == ["holder ü"]
        (job,) = await storage.get([JobRef("q", "loser")])
        assert job is not None
        assert (job.state, job.code) == (JobState.SKIPPED, "duplicate")
        assert job.error is not None
        assert job.error.message == "its unique key is held by job 'holder ü'"
        assert "loser" in str(await anext(watch))
        await watch.aclose()


@pytest.mark.parametrize("level", ["read_committed", "repeatable_read", "serializable"])
async def test_transactions_of_any_level_do_not_fail_for_each_other(
    server_url: str, open_store: Open, new_job: Make, claim: Claim, level: str
) -> None:
    async with (
        open_store() as storage,
        connected(server_url) as one,
        connected(server_url) as two,
    ):
        first, second = one.transaction(isolation=level), two.transaction(isolation=level)
        await first.start()
        await second.start()
        # What their snapshots do not have: a queue, and a job.
        await one.fetchval("SELECT count(*) FROM pg_class")
        await two.fetchval("SELECT count(*) FROM pg_class")
        await storage.submit([new_job("stored", queue="new")])
        for number in range(3):
            await storage.submit_within(one, [new_job(f"1-{number}", queue="new"), new_job("a")])
            await storage.submit_within(two, [new_job(f"2-{number}", queue="new"), new_job("a")])
        await storage.submit_within(one, [new_job("stored", queue="new", body=b"late")])
        await second.commit()
        await first.commit()
        leases = (await storage.claim(claim(100, queues=("new", "q")))).leases
        assert sorted(lease.id for lease in leases) == sorted(
            ["stored", "a", *(f"{side}-{number}" for side in (1, 2) for number in range(3))]
        )
        assert next(lease.body for lease in leases if lease.id == "stored") == b"{}"


async def test_after_the_commit_as_many_are_woken_as_there_are_jobs(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    """At once, without anybody's poll or sweep; a rollback wakes nobody."""
    async with open_store() as storage, connected(server_url) as db, connected(server_url) as ear:
        watches = [storage.watch(peer) for peer in ("a", "b", "c")]
        for watch in watches:
            assert isinstance(await anext(watch), Resync)
            await storage.claim(claim(1, worker=watch.peer, peer=watch.peer))
        heard: asyncio.Queue[str] = asyncio.Queue()
        channel = storage._hub._channel
        for each in (channel, "test_end"):
            await ear.add_listener(each, lambda *said: heard.put_nowait(said[3]))
        transaction = db.transaction()
        await transaction.start()
        await storage.submit_within(db, [new_job("gone")])
        await transaction.rollback()
        async with db.transaction():
            await storage.submit_within(db, [new_job("1"), new_job("2")])
            # The same two are chosen again, and what is sent twice is told once.
            await storage.submit_within(db, [new_job("3"), new_job("later", delay=60.0)])
            assert heard.empty()
        await db.execute("NOTIFY test_end, 'end'")
        said = [await heard.get() for _ in range(3)]
        assert said[2] == "end"
        # Those that have been idle for the shortest time.
        assert isinstance(await anext(watches[2]), Wake)
        assert isinstance(await anext(watches[1]), Wake)
        await asyncio.gather(*(watch.aclose() for watch in watches))


async def test_behind_a_pooler_nobody_is_woken_and_all_is_stored(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    async with open_store(pooler=True) as storage, connected(server_url) as db:
        async with db.transaction():
            await storage.submit_within(db, [new_job("a")])
        assert await state(storage, "a") is JobState.QUEUED


async def test_a_sweep_moves_in_what_nobody_else_touches(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    """Its queue is new, and its deadline counts from the submission."""
    async with open_store() as storage, connected(server_url) as db:
        async with db.transaction():
            await storage.submit_within(
                db, [new_job("a", queue="new"), new_job("b", queue="new", deadline_in=0.0)]
            )
        reply = await storage.sweep(SweepRequest())
        assert [(change.id, change.code) for change in reply.changes] == [("b", "deadline")]
        assert await db.fetchval("SELECT count(*) FROM plugq.inbox WHERE queue = 'new'") == 0
        assert await state(storage, "a", "new") is JobState.QUEUED


async def test_times_count_from_the_submission(
    server_url: str, new_job: Make, claim: Claim
) -> None:
    """However late the commit comes: the order, delays, deadlines and throttles."""
    clock = ManualClock(1_700_000_000.0)
    storage = PostgresStorage(
        PostgresOptions(url=server_url), PluginContext(namespace=uuid.uuid4().hex, clock=clock)
    )
    await storage.start()
    try:
        async with connected(server_url) as db:
            throttle = UniqueKey(UniqueMode.THROTTLE, "t", 5000.0)
            async with db.transaction():
                await storage.submit_within(
                    db,
                    [
                        new_job("now"),
                        new_job("due", delay=600.0),
                        new_job("later", delay=4000.0),
                        new_job("over", deadline_in=3000.0),
                        new_job("throttled", unique=throttle),
                    ],
                )
                clock.advance(3600)
                await storage.submit([new_job("young")])
            jobs = {job.id: job for job in (await storage.find(FindQuery())).jobs}
            assert {job.submitted_at for id, job in jobs.items() if id != "young"} == {
                1_700_000_000.0
            }
            assert jobs["over"].state is JobState.FAILED
            assert jobs["later"].ready_at == 1_700_004_000.0
            leases = (await storage.claim(claim(10))).leases
            assert [lease.id for lease in leases] == ["now", "throttled", "due", "young"]
            clock.advance(1000)
            (held,) = await storage.submit([new_job("x", unique=throttle)])
            assert held.status is SubmitStatus.DUPLICATE
            clock.advance(400)
            (free,) = await storage.submit([new_job("x", unique=throttle)])
            assert free.status is SubmitStatus.ACCEPTED
    finally:
        await storage.stop()


async def test_workers_that_are_killed_after_the_commit_lose_nothing(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    """A call that is cut off while it moves in has moved in nothing, or all of it."""
    async with open_store() as storage, connected(server_url) as db:
        acknowledged: list[str] = []
        found: list[str] = []
        for number in range(15):
            ids = [f"{number}-{n}" for n in range(40)]
            async with db.transaction():
                await storage.submit_within(db, [new_job(id) for id in ids])
            acknowledged += ids
            calls = [
                asyncio.ensure_future(storage.claim(claim(100, worker=f"w{n}"))) for n in range(3)
            ]
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'plugq'"
            )
            for answer in await asyncio.gather(*calls, return_exceptions=True):
                assert not isinstance(answer, BaseException) or isinstance(answer, PlugqError)
        jobs = await _eventually(lambda: storage.get([JobRef("q", id) for id in acknowledged]))
        assert None not in jobs
        found = [
            row["id"].decode()
            for row in await db.fetch(
                "SELECT id FROM plugq.job WHERE namespace = $1", storage._database.namespace
            )
        ]
        assert sorted(found) == sorted(acknowledged)


async def _eventually(call: Callable[[], Any]) -> Any:
    while True:
        try:
            return await call()
        except (Unavailable, OutcomeUnknown):
            continue


async def test_many_who_submit_and_claim_run_each_job_once(
    server_url: str, open_store: Open, new_job: Make, claim: Claim
) -> None:
    async with open_store(lock_timeout="20s", statement_timeout="20s") as storage:
        expected: set[str] = set()
        leased: list[str] = []
        submitted = asyncio.Event()

        async def submit(name: int) -> None:
            async with connected(server_url) as db:
                for number in range(12):
                    transaction = db.transaction()
                    await transaction.start()
                    jobs = [new_job(f"{name}-{number}-{n}", lane=f"l{n}") for n in range(3)]
                    await storage.submit_within(db, jobs[:2])
                    await storage.submit_within(db, jobs[2:])
                    if number % 4 == 3:
                        await transaction.rollback()
                    else:
                        expected.update(job.id for job in jobs)
                        await transaction.commit()

        async def work(name: int) -> None:
            while True:
                last = submitted.is_set()
                leases = (await storage.claim(claim(10, worker=f"w{name}"))).leases
                leased.extend(lease.id for lease in leases)
                await storage.settle(
                    [
                        Settlement(
                            queue="q", id=lease.id, token=lease.token, outcome=Outcome.SUCCEED
                        )
                        for lease in leases
                    ]
                )
                if last and not leases:
                    return

        workers = [asyncio.ensure_future(work(name)) for name in range(2)]
        await asyncio.gather(*(submit(name) for name in range(8)))
        submitted.set()
        await asyncio.gather(*workers)
        assert sorted(leased) == sorted(expected)


async def test_a_full_queue_refuses_what_it_can_see(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    """Counted is what the transaction itself has submitted; a call is refused as a whole."""
    async with open_store() as storage, connected(server_url) as db:
        await storage.edit(Configure((QueueSettings(queue="q", max_length=3),)))
        await storage.edit(Drain(("drained",)))
        async with db.transaction():
            await storage.submit_within(db, [new_job("a"), new_job("b")])
            same = [new_job("c"), new_job("c"), new_job("d"), new_job("a"), new_job(queue="free")]
            replies = await storage.submit_within(db, same)
            assert [reply.status for reply in replies] == [
                SubmitStatus.FULL,
                SubmitStatus.FULL,
                SubmitStatus.FULL,
                SubmitStatus.DUPLICATE,
                SubmitStatus.REFUSED,
            ]
            one, two = await storage.submit_within(
                db, [new_job("c"), new_job(queue="drained", not_after=0.0)]
            )
            assert (one.status, two.status) == (SubmitStatus.ACCEPTED, SubmitStatus.LATE)
        assert await state(storage, "c") is JobState.QUEUED
        (full,) = await storage.submit([new_job("d")])
        assert full.status is SubmitStatus.FULL
