"""Servers that fail: honest errors in time, nothing acknowledged is lost, and work goes on."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import asyncpg
import pytest

from plugq.errors import ConfigError, InvalidJob, OutcomeUnknown, PlugqError, Unavailable
from plugq.job import JobRecord, JobRef, JobState, Outcome
from plugq.protocols import (
    ClaimRequest,
    LeaseRef,
    NewJob,
    PluginContext,
    RegisterChange,
    RenewReply,
    Resync,
    Settlement,
    SweepRequest,
    Wake,
)
from plugq.protocols.edits import Cancel, EditStatus
from plugq_postgres import PostgresOptions, PostgresStorage, _settle, migration_sql
from plugq_postgres._transaction import Transaction

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]
Run = Callable[..., AbstractContextManager[Any]]


async def test_a_lock_of_somebody_else_holds_up_its_queue_alone(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store(lock_timeout="200ms") as storage:
            await storage.submit([new_job(queue="held"), new_job(queue="free")])
            async with db.transaction():
                await db.execute("SELECT 1 FROM plugq.queue WHERE name = 'held' FOR UPDATE")
                held, free = await asyncio.gather(
                    storage.submit([new_job(queue="held")]),
                    storage.submit([new_job(queue="free")]),
                    return_exceptions=True,
                )
            assert isinstance(held, Unavailable)
            assert "lock_timeout" in str(held)
            assert not isinstance(free, BaseException)
            await storage.submit([new_job(queue="held")])
    finally:
        await db.close()


async def test_a_name_too_long_for_an_index_is_refused_and_harms_no_other(
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    long = "".join(chr(0x4E00 + int.from_bytes(os.urandom(2)) % 20_000) for _ in range(4_000))
    async with open_store() as storage:
        await storage.submit([new_job()])
        calls = [[new_job("a")], [new_job(lane=long)], [new_job("b")]]
        found = await asyncio.gather(*map(storage.submit, calls), return_exceptions=True)
        assert [isinstance(one, BaseException) for one in found] == [False, True, False]
        assert isinstance(found[1], InvalidJob)
        assert "too long" in str(found[1])
        with pytest.raises(InvalidJob, match="too long"):
            await storage.claim(claim(1, worker=long))
        with pytest.raises(InvalidJob, match="too long"):
            await storage.swap([RegisterChange(key=long, expect=0, value=b"")])
        await storage.submit([new_job("c")])
    with pytest.raises(ConfigError, match="namespace: it is too long"):
        async with open_store(namespace=long):
            pass


async def test_a_start_waits_for_another_one_that_migrates(
    server_url: str, open_store: Open
) -> None:
    """For longer than calls wait for each other."""
    schema = f"slow_{uuid.uuid4().hex[:12]}"
    db, holder = await asyncpg.connect(server_url), await asyncpg.connect(server_url)
    await holder.execute("SELECT pg_advisory_lock(x'706c6771'::bigint)")

    async def start() -> None:
        async with open_store(schema=schema, statement_timeout="50ms", lock_timeout="50ms"):
            pass

    starting = asyncio.ensure_future(start())
    try:
        while not starting.done() and not await db.fetchval(WAITS):
            await asyncio.sleep(0.02)
        await holder.execute("SELECT pg_advisory_unlock_all()")
        await starting
    finally:
        await holder.close()
        await db.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        await db.close()


#: Whether a session has waited for the lock of those who migrate for long enough.
WAITS = """
    SELECT EXISTS (SELECT 1 FROM pg_stat_activity
        WHERE wait_event = 'advisory' AND clock_timestamp() - query_start > '300ms')
"""


async def test_what_sweeps_forget_counts_as_more_to_do(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    """Otherwise claims that were granted would be remembered for longer than they are needed."""
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage:
            await storage.submit([new_job()])
            namespace = storage._database.namespace
            await db.execute(
                "INSERT INTO plugq.claimed SELECT $1, 'w', n, 1 FROM generate_series(1, 25) AS n",
                namespace,
            )
            assert [
                (await storage.sweep(SweepRequest(limit=10))).next_in == 0.0 for _ in range(3)
            ] == [True, True, False]
            left = "SELECT count(*) FROM plugq.claimed WHERE namespace = $1"
            assert await db.fetchval(left, namespace) == 0
    finally:
        await db.close()


@pytest.mark.parametrize("table", ["queue", "task", "namespace"])
async def test_what_a_failover_has_lost_is_made_anew(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob], table: str
) -> None:
    schema = f"lost_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(server_url)
    try:
        async with open_store(schema=schema) as storage:
            await storage.submit([new_job("before")])
            await db.execute(f"DELETE FROM {schema}.{table}")
            with pytest.raises(Unavailable, match="try again"):
                await storage.submit([new_job("a")])
            await storage.submit([new_job("a")])
            assert await storage.get([JobRef("q", "a")]) != [None]
    finally:
        await db.execute(f"DROP SCHEMA {schema} CASCADE")
        await db.close()


async def test_callers_of_a_queue_that_is_held_up_leave_connections_to_others(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store(lock_timeout="3s", connect_timeout="1s", pool_size=4) as storage:
            await storage.submit([new_job("a", queue="held"), new_job(queue="free")])
            async with db.transaction():
                await db.execute("SELECT 1 FROM plugq.queue WHERE name = 'held' FOR UPDATE")
                lease = LeaseRef("held", "a", 1)
                held = [asyncio.create_task(storage.renew([lease], lease=1.0)) for _ in range(20)]
                await asyncio.sleep(0)
                assert await storage.get([JobRef("held", "a")]) != [None]
                await storage.submit([new_job(queue="free")])
            assert await asyncio.gather(*held) == [[RenewReply.LOST]] * 20
    finally:
        await db.close()


@pytest.mark.parametrize("own", [False, True])
async def test_a_process_that_stops_inside_a_transaction_lets_go_of_its_queues(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob], own: bool
) -> None:
    """It is stopped between two statements; with a pool of the user's own, too."""
    async with (
        asyncpg.create_pool(server_url, min_size=0, max_size=2) as pool,
        open_store(lock_timeout="400ms", pool=pool if own else None) as stopped,
        open_store(lock_timeout="5s") as storage,
    ):
        await storage.submit([new_job()])
        inside, go_on = asyncio.Event(), asyncio.Event()

        async def stop(tx: Transaction) -> None:
            inside.set()
            await go_on.wait()

        holding = asyncio.create_task(stopped._transact(stop, ["q"]))
        await inside.wait()
        await storage.submit([new_job()])
        go_on.set()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await holding


async def test_numbers_are_never_given_out_twice_beside_a_restore(
    open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    async with open_store() as storage:
        (first,) = await storage.submit([new_job()])
        seen = {first.sequence}
        for ahead in (3, 40, 2_000_000):
            wanted = max(seen) + ahead
            await storage.restore([_ended(f"restored-{ahead}", wanted)])
            replies = await asyncio.gather(*(storage.submit([new_job()]) for _ in range(20)))
            numbers = {reply.sequence for (reply,) in replies}
            assert len(numbers) == 20
            assert min(numbers) > wanted
            seen |= numbers


def _ended(id_: str, sequence: int) -> JobRecord:
    return JobRecord(
        queue="q",
        id=id_,
        task="t",
        state=JobState.SUCCEEDED,
        sequence=sequence,
        submission=b"s",
        submitted_at=1.0,
        ready_at=1.0,
    )


async def test_what_is_looked_for_in_vain_leaves_no_queue_behind(
    server_url: str, open_store: Open
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage:
            name = uuid.uuid4().hex
            (reply,) = await storage.edit(Cancel((JobRef(name, "a"),)))
            assert reply.status is EditStatus.NOT_FOUND
            lease = LeaseRef(name, "a", 1)
            assert await storage.renew([lease], lease=1.0) == [RenewReply.LOST]
            settlement = Settlement(queue=name, id="a", token=1, outcome=Outcome.SUCCEED)
            (settled,), _ = await storage.settle([settlement])
            assert settled.lost
            found = await db.fetchval(
                "SELECT count(*) FROM plugq.queue WHERE name = $1", name.encode()
            )
            assert found == 0
    finally:
        await db.close()


async def test_a_claim_carries_no_more_than_an_answer_can(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob], claim: Callable[..., Any]
) -> None:
    """The bound is made small; the first job comes whatever it has."""
    schema = f"cut_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(server_url)
    try:
        await db.execute(migration_sql(schema).replace("67108864", "100"))
        async with open_store(schema=schema) as storage:
            sizes = {"a": 200, "b": 60, "c": 30, "d": 30, "e": 10}
            await storage.submit([new_job(id_, body=b"x" * n) for id_, n in sizes.items()])
            found = []
            while True:
                reply = await storage.claim(claim(4))
                found.append([lease.id for lease in reply.leases])
                if reply.next_in is None:
                    break
            assert found == [["a"], ["b", "c"], ["d", "e"]]
    finally:
        await db.execute(f"DROP SCHEMA {schema} CASCADE")
        await db.close()


async def test_results_travel_in_portions(
    monkeypatch: pytest.MonkeyPatch,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., Any],
) -> None:
    monkeypatch.setattr(_settle, "_MOST_BYTES", 100)
    async with open_store() as storage:
        await storage.submit([new_job(str(n)) for n in range(6)])
        leases = (await storage.claim(claim(5))).leases
        ended = [
            Settlement(queue="q", id=x.id, token=x.token, outcome=Outcome.SUCCEED, result=b"x" * 60)
            for x in leases
        ]
        replies, reply = await storage.settle(ended, claim(5))
        assert [each.state for each in replies] == [JobState.SUCCEEDED] * 5
        assert reply is not None
        assert [lease.id for lease in reply.leases] == ["5"]


async def test_a_claim_in_vain_waits_for_nobody(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob], claim: Callable[..., Any]
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store(lock_timeout="200ms") as storage:
            await storage.submit([new_job(delay=60.0)])
            async with db.transaction():
                await db.execute("SELECT 1 FROM plugq.queue FOR UPDATE")
                reply = await storage.claim(claim(1))
            assert reply.leases == ()
            assert reply.next_in is not None
            assert 0 < reply.next_in <= 60
    finally:
        await db.close()


async def test_an_open_transaction_that_reads_stalls_nobody(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob], claim: Callable[..., Any]
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store(lock_timeout="200ms") as storage, db.transaction():
            await db.fetch("SELECT * FROM plugq.queue")
            await storage.submit([new_job("a")])
            assert [lease.id for lease in (await storage.claim(claim(1))).leases] == ["a"]
    finally:
        await db.close()


async def test_a_standby_is_told_of_at_the_first_write(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job("a")])
        db = await asyncpg.connect(server_url)
        try:
            await db.execute("ALTER DATABASE postgres SET default_transaction_read_only = on")
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'plugq'"
            )
            error = await _error(storage, new_job)
            while not isinstance(error, Unavailable) or "standby" not in str(error):
                error = await _error(storage, new_job)
        finally:
            await db.execute("SET default_transaction_read_only = off")
            await db.execute("ALTER DATABASE postgres RESET default_transaction_read_only")
            await db.close()
        while await _error(storage, new_job) is not None:
            pass


async def _error(storage: PostgresStorage, new_job: Callable[..., NewJob]) -> PlugqError | None:
    try:
        await storage.submit([new_job()])
    except PlugqError as error:
        return error
    return None


async def test_backends_that_are_ended_lose_nothing(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage:
            acknowledged: list[str] = []
            refused: list[str] = []
            for _ in range(20):
                jobs = [new_job() for _ in range(10)]
                calls = [asyncio.create_task(storage.submit([job])) for job in jobs]
                await db.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE application_name = 'plugq' AND pid <> pg_backend_pid()"
                )
                answers = await asyncio.gather(*calls, return_exceptions=True)
                for job, answer in zip(jobs, answers, strict=True):
                    if isinstance(answer, Unavailable):
                        refused.append(job.id)
                    elif isinstance(answer, BaseException):
                        assert isinstance(answer, OutcomeUnknown), answer
                    else:
                        acknowledged.append(job.id)
            stored = await _stored(storage, acknowledged)
            assert stored == len(acknowledged)
            assert await _stored(storage, refused) == 0
    finally:
        await db.close()


async def _stored(storage: PostgresStorage, ids: list[str]) -> int:
    while True:
        try:
            found = await storage.get([JobRef("q", id) for id in ids])
        except Unavailable:
            continue
        return sum(job is not None for job in found)


async def test_a_server_that_crashes_keeps_what_it_acknowledged(
    own_server: Run, new_job: Callable[..., NewJob]
) -> None:
    with own_server() as server:
        storage = PostgresStorage(PostgresOptions(url=server.url), PluginContext())
        await storage.start()
        try:
            watch = storage.watch("p")
            assert isinstance(await anext(watch), Resync)
            jobs = [new_job(str(number)) for number in range(50)]
            await storage.submit(jobs)
            await asyncio.to_thread(server.stop, "immediate")
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await storage.submit([new_job("lost")])
            await asyncio.to_thread(server.start)
            assert await _stored(storage, [job.id for job in jobs]) == 50
            assert isinstance(await anext(watch), Resync | Wake)
            await watch.aclose()
        finally:
            await storage.stop()


async def test_a_server_without_a_connection_left_is_unavailable(
    own_server: Run, new_job: Callable[..., NewJob]
) -> None:
    with own_server("max_connections=4", "superuser_reserved_connections=0", "fsync=off") as server:
        taken = [await asyncpg.connect(server.url) for _ in range(3)]
        storage = PostgresStorage(PostgresOptions(url=server.url), PluginContext())
        await storage.start()
        try:
            await storage.submit([new_job("a")])
            calls = (storage.submit([new_job(queue=str(n))]) for n in range(5))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert any(isinstance(answer, Unavailable) for answer in answers)
            for db in taken:
                await db.close()
            await storage.submit([new_job("b")])
        finally:
            await storage.stop()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("53100", "disk is full"),
        ("53200", "out of memory"),
        ("53300", "no connection left"),
        ("55P03", "lock_timeout"),
        ("57014", "statement_timeout"),
        ("25006", "standby"),
        ("42501", "rights"),
        ("42P01", "migrations"),
        ("42883", "migrations"),
        ("3F000", "migrations"),
        ("57P03", "starting up"),
        ("XX000", "InternalServerError"),
    ],
)
async def test_what_the_server_says_is_one_line_of_what_to_do(
    open_store: Open, new_job: Callable[..., NewJob], state: str, said: str
) -> None:
    async with open_store() as storage:
        with pytest.raises(Unavailable, match=said) as caught:
            await storage._database.write(
                f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END $$"
            )
        assert "\n" not in str(caught.value)
        await storage.submit([new_job()])


async def test_calls_end_in_time_however_long_the_server_works(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    """By the timeout of the server, by somebody who cancels, and by the clock of the caller."""
    async with open_store(statement_timeout="200ms", lock_timeout="100ms") as storage:
        with pytest.raises(Unavailable, match="statement_timeout"):
            await storage._database.write("SELECT pg_sleep(60)")
        # A pool of the user's own, whose sessions have no timeout.
        async with (
            asyncpg.create_pool(server_url, min_size=1, max_size=1) as pool,
            open_store(statement_timeout="200ms", lock_timeout="100ms", pool=pool) as other,
        ):
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await other._database.write("SELECT pg_sleep(60)")
            await other.submit([new_job()])


async def test_a_server_that_hangs_costs_the_deadline_and_no_more(
    own_server: Run, new_job: Callable[..., NewJob]
) -> None:
    with own_server("fsync=off") as server:
        options = PostgresOptions(
            url=server.url,
            statement_timeout="300ms",
            lock_timeout="200ms",
            connect_timeout="300ms",
        )
        storage = PostgresStorage(options, PluginContext())
        # What starting takes on a busy machine is not the subject.
        await _until_it_serves(storage)
        try:
            await storage.submit([new_job("a")])
            with server.paused():
                answers = await asyncio.gather(
                    *(storage.submit([new_job(queue=str(n))]) for n in range(3)),
                    storage.get([JobRef("q", "a")]),
                    storage.stats(),
                    return_exceptions=True,
                )
                assert all(isinstance(x, Unavailable | OutcomeUnknown) for x in answers), answers
            while await _error(storage, new_job) is not None:
                pass
            assert await _stored(storage, ["a"]) == 1
        finally:
            await storage.stop()


async def _until_it_serves(storage: PostgresStorage) -> None:
    while True:
        try:
            await storage.start()
        except Unavailable:
            continue
        return


async def test_a_newer_schema_is_worked_with_and_an_older_one_named(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    """What a newer version adds harms nobody; what an older one lacks is a matter of migrating."""
    schema = f"version_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(server_url)
    try:
        await db.execute(migration_sql(schema))
        await db.execute(f"INSERT INTO {schema}.plugq_version (version) VALUES (99)")
        async with open_store(schema=schema) as storage:
            await storage.submit([new_job("a")])
        await db.execute(f"UPDATE {schema}.plugq_version SET version = 0 WHERE version = 1")
        await db.execute(f"DELETE FROM {schema}.plugq_version WHERE version = 99")
        with pytest.raises(ConfigError, match="plugq migrate"):
            async with open_store(schema=schema, migrate=False):
                pass
    finally:
        await db.execute(f"DROP SCHEMA {schema} CASCADE")
        await db.close()


async def test_a_wrong_password_is_a_configuration_error(own_server: Run) -> None:
    with own_server("fsync=off") as server:
        db = await asyncpg.connect(server.url)
        await db.execute("CREATE ROLE someone LOGIN PASSWORD 'richtig'")
        await db.close()
        hba = server.folder / "data" / "pg_hba.conf"
        rules = hba.read_text()
        hba.write_text(f"host all someone all scram-sha-256\n{rules}")
        await asyncio.to_thread(server.stop, "fast")
        await asyncio.to_thread(server.start)
        url = server.url.replace("postgres@", "someone:geheim@")
        storage = PostgresStorage(PostgresOptions(url=url), PluginContext())
        with pytest.raises(ConfigError, match=r"storage\.url") as caught:
            await storage.start()
        assert "geheim" not in str(caught.value)


async def test_a_password_may_come_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, open_store: Open
) -> None:
    monkeypatch.setitem(os.environ, "PGPASSWORD", "geheim")
    async with open_store() as storage:
        assert await storage.stats() is not None
