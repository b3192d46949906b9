"""Connections of users: each kind serves, and one that can not is told why."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from plugq.errors import InvalidJob, OutcomeUnknown, Unavailable
from plugq.job import JobRef, JobState
from plugq.protocols import NewJob, SubmitStatus, UniqueKey, UniqueMode
from plugq_postgres import PostgresStorage

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]
Make = Callable[..., NewJob]
#: A connection with its transaction begun, and what ends that.
Began = tuple[Any, Callable[[], Any], Callable[[], Any]]

KEY = UniqueKey(UniqueMode.UNTIL_FINISHED, "k")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    db = await asyncpg.connect(url)
    try:
        yield db
    finally:
        # Whatever a failed test has left open is rolled back.
        await db.close()


async def state(storage: PostgresStorage, id: str) -> JobState | None:
    (job,) = await storage.get([JobRef("q", id)])
    return None if job is None else job.state


@asynccontextmanager
async def _asyncpg(url: str) -> AsyncIterator[Began]:
    async with connected(url) as db:
        transaction = db.transaction()
        await transaction.start()
        yield db, transaction.commit, transaction.rollback


@asynccontextmanager
async def _asyncpg_pool(url: str) -> AsyncIterator[Began]:
    async with asyncpg.create_pool(url, min_size=0) as pool, pool.acquire() as db:
        transaction = db.transaction()
        await transaction.start()
        yield db, transaction.commit, transaction.rollback


@asynccontextmanager
async def _psycopg_async(url: str) -> AsyncIterator[Began]:
    # A cursor that takes numbered arguments, and rows that are no tuples.
    db = await psycopg.AsyncConnection.connect(
        url, row_factory=dict_row, cursor_factory=psycopg.AsyncRawCursor
    )
    async with db:
        yield db, db.commit, db.rollback


@asynccontextmanager
async def _psycopg_sync(url: str) -> AsyncIterator[Began]:
    with psycopg.connect(url, row_factory=dict_row, autocommit=True) as db:
        db.execute("BEGIN")
        yield db, _awaited(db.commit), _awaited(db.rollback)


@asynccontextmanager
async def _psycopg2(url: str) -> AsyncIterator[Began]:
    # It has no types of its own.
    rows = import_module("psycopg2.extras").RealDictCursor
    db = import_module("psycopg2").connect(url, cursor_factory=rows)
    try:
        yield db, _awaited(db.commit), _awaited(db.rollback)
    finally:
        db.close()


def _alchemy_async(driver: str, *, session: bool) -> Callable[[str], Any]:
    @asynccontextmanager
    async def begin(url: str) -> AsyncIterator[Began]:
        engine = create_async_engine(_url(url, driver), poolclass=NullPool)
        async with AsyncSession(engine) if session else engine.connect() as db:
            yield db, db.commit, db.rollback
        await engine.dispose()

    return begin


def _alchemy(driver: str, *, session: bool) -> Callable[[str], Any]:
    @asynccontextmanager
    async def begin(url: str) -> AsyncIterator[Began]:
        engine = create_engine(_url(url, driver), poolclass=NullPool)
        with Session(engine) if session else engine.connect() as db:
            yield db, _awaited(db.commit), _awaited(db.rollback)
        engine.dispose()

    return begin


def _awaited(call: Callable[[], Any]) -> Callable[[], Any]:
    async def run() -> None:
        call()

    return run


def _url(url: str, driver: str) -> str:
    return url.replace("postgresql://", f"postgresql+{driver}://", 1)


KINDS: dict[str, Callable[[str], Any]] = {
    "asyncpg": _asyncpg,
    "asyncpg pool": _asyncpg_pool,
    "psycopg async": _psycopg_async,
    "psycopg sync": _psycopg_sync,
    "psycopg2": _psycopg2,
    **{
        f"sqlalchemy async {driver} {session}": _alchemy_async(driver, session=session)
        for driver, session in itertools.product(("asyncpg", "psycopg"), (False, True))
    },
    **{
        f"sqlalchemy {driver} {session}": _alchemy(driver, session=session)
        for driver, session in itertools.product(("psycopg", "psycopg2"), (False, True))
    },
}


@pytest.mark.parametrize("schema", ["plugq", 'a "b" %s %(c)s $1 :d'])
async def test_every_kind_of_connection_serves(
    server_url: str, open_store: Open, new_job: Make, schema: str
) -> None:
    """Whatever its settings are, and whatever the schema is called."""
    key = UniqueKey(UniqueMode.UNTIL_FINISHED, "held")
    async with open_store(schema=schema) as storage:
        for name, kind in KINDS.items():
            async with kind(server_url) as (connection, commit, rollback):
                await storage.submit_within(connection, [new_job(f"gone {name}")])
                await rollback()
            async with kind(server_url) as (connection, commit, rollback):
                jobs = [new_job(name, lane="x", body=bytes(range(256))), new_job(f"2 {name}")]
                assert {
                    reply.status for reply in await storage.submit_within(connection, jobs)
                } == {SubmitStatus.ACCEPTED}
                await storage.submit_within(connection, [new_job(f"u {name}", unique=key)])
                (lost,) = await storage.submit_within(connection, [new_job("no", unique=key)])
                assert lost.status is SubmitStatus.DUPLICATE
                assert lost.id == f"u {next(iter(KINDS))}"
                await commit()
            gone, there = await storage.get(
                [JobRef("q", f"gone {name}"), JobRef("q", name)], body=True
            )
            assert gone is None, name
            assert there is not None, name
            assert there.body == bytes(range(256)), name
    if schema != "plugq":
        async with connected(server_url) as db:
            quoted = schema.replace('"', '""')
            await db.execute(f'DROP SCHEMA "{quoted}" CASCADE')


async def test_a_connection_that_can_not_be_used_is_told_why(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    async with open_store() as storage, connected(server_url) as db:

        async def refused(connection: object, match: str) -> None:
            with pytest.raises(InvalidJob, match=match) as caught:
                await storage.submit_within(connection, [new_job("a")])
            assert str(caught.value).startswith("connection: ")

        await refused(db, "no transaction has begun")
        async with asyncpg.create_pool(server_url, min_size=0) as pool:
            async with pool.acquire() as proxy:
                await refused(proxy, "no transaction has begun")
            await refused(proxy, "closed")
        for autocommit in (True, False):
            async with await psycopg.AsyncConnection.connect(server_url) as other:
                await other.set_autocommit(autocommit)
                if autocommit:
                    await refused(other, "no transaction has begun")
                with pytest.raises(psycopg.Error):
                    async with other.transaction():
                        await other.execute("SELECT 1 / 0")
                await other.rollback()
            await refused(other, "closed")
        engine = create_async_engine(_url(server_url, "psycopg"), poolclass=NullPool)
        async with engine.connect() as alchemy:
            await alchemy.execution_options(isolation_level="AUTOCOMMIT")
            await refused(alchemy, "no transaction has begun")
        await refused(alchemy, "closed")
        async with AsyncSession(engine) as session:
            await refused(session.sync_session, "asyncio")
        await engine.dispose()
        lite = create_engine("sqlite://")
        with lite.connect() as here:
            await refused(here, "sqlite")
        lite.dispose()
        with Session() as unbound:
            await refused(unbound, "bind")
        assert await state(storage, "a") is None


async def test_a_transaction_that_can_not_go_on_is_told_so(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    async with open_store() as storage:
        for name, kind in KINDS.items():
            async with kind(server_url) as (connection, _, rollback):
                await storage.submit_within(connection, [new_job(f"gone {name}")])
                await _broken(connection)
                with pytest.raises(InvalidJob, match="has failed before; roll it back"):
                    await storage.submit_within(connection, [new_job("a")])
                await rollback()
            assert await state(storage, f"gone {name}") is None


async def _broken(connection: Any) -> None:
    """Run a statement that fails."""
    alchemy = type(connection).__module__.startswith("sqlalchemy")
    wrong = "SELECT 1 / 0"

    async def run() -> None:
        if not hasattr(connection, "execute"):
            connection.cursor().execute(wrong)
            return
        found = connection.execute(text(wrong) if alchemy else wrong)
        if asyncio.iscoroutine(found):
            await found

    with pytest.raises(Exception, match="division by zero"):
        await run()


async def test_what_the_server_says_is_told_in_our_words(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    async with open_store() as storage, connected(server_url) as db:
        async with db.transaction(readonly=True):
            with pytest.raises(InvalidJob, match="read only"):
                await storage.submit_within(db, [new_job("a")])
        transaction = db.transaction()
        await transaction.start()
        await storage.submit_within(db, [new_job("b")])
        await db.execute("SET LOCAL statement_timeout = '1ms'")
        many = [new_job(body=b"x" * 100_000) for _ in range(200)]
        with pytest.raises(Unavailable, match=r"statement_timeout .*; roll the transaction back"):
            await storage.submit_within(db, many)
        await transaction.rollback()
        await transaction_is_over(storage, db, new_job)
        assert await storage.get([JobRef("q", "a"), JobRef("q", "b")]) == [None, None]


async def transaction_is_over(
    storage: PostgresStorage, db: asyncpg.Connection, new_job: Make
) -> None:
    """A server that ends the connection takes the transaction along."""
    transaction = db.transaction()
    await transaction.start()
    await storage.submit_within(db, [new_job("b")])
    async with asyncio.TaskGroup() as group:
        group.create_task(storage.stats())
        pid = db.get_server_pid()
        group.create_task(_ended(storage, pid))
    with pytest.raises((InvalidJob, Unavailable)):
        await storage.submit_within(db, [new_job("a")])


async def _ended(storage: PostgresStorage, pid: int) -> None:
    await storage._database.read("SELECT pg_terminate_backend($1)", pid)


async def test_a_role_needs_two_grants(server_url: str, open_store: Open, new_job: Make) -> None:
    role, name = f"role_{uuid.uuid4().hex[:8]}", f"grants_{uuid.uuid4().hex[:8]}"
    async with connected(server_url) as admin:
        await admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            async with open_store(schema=name) as storage:
                url = server_url.replace("postgres@", f"{role}@")
                for grant in ("SELECT 1", f"GRANT USAGE ON SCHEMA {name} TO {role}"):
                    await admin.execute(grant)
                    async with connected(url) as db, db.transaction():
                        with pytest.raises(InvalidJob, match="may not submit"):
                            await storage.submit_within(db, [new_job("no")])
                        # The transaction can go on without it.
                        await db.fetchval("SELECT 1")
                await admin.execute(f"GRANT EXECUTE ON FUNCTION {name}.submit_within_v1 TO {role}")
                async with connected(url) as db:
                    await db.execute("SET search_path = pg_temp")
                    async with db.transaction():
                        await storage.submit_within(db, [new_job("a"), new_job("b", unique=KEY)])
                        with pytest.raises(asyncpg.InsufficientPrivilegeError):
                            async with db.transaction():
                                await db.fetch(f"SELECT * FROM {name}.inbox")
                assert await state(storage, "a") is JobState.QUEUED
                assert await state(storage, "no") is None
        finally:
            await admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE; DROP ROLE {role}")


async def test_a_connection_to_another_database_is_refused(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    """Also where that has a schema of the same name, and its transaction can go on."""
    other = f"other_{uuid.uuid4().hex[:8]}"
    async with connected(server_url) as admin:
        await admin.execute(f"CREATE DATABASE {other}")
        try:
            url = server_url.rpartition("/")[0] + f"/{other}"
            async with open_store() as storage, connected(url) as db:
                for _ in range(2):
                    async with db.transaction():
                        with pytest.raises(InvalidJob, match="does not lead to this storage"):
                            await storage.submit_within(db, [new_job("a")])
                        await db.fetchval("SELECT 1")
                    async with open_store(url=url):
                        pass
        finally:
            await admin.execute(f"DROP DATABASE {other} WITH (FORCE)")


async def test_a_statement_that_is_given_up_may_have_come_to_its_end(
    server_url: str, open_store: Open, new_job: Make
) -> None:
    """The driver waits for it, and the transaction is whole then."""
    async with open_store(lock_timeout="10ms", statement_timeout="10ms") as storage:
        holder = await asyncpg.connect(server_url)
        with psycopg.connect(server_url) as db:
            held = holder.transaction()
            await held.start()
            await holder.execute("LOCK TABLE plugq.inbox IN ACCESS EXCLUSIVE MODE")
            giving_up = asyncio.create_task(storage.submit_within(db, [new_job("a")]))
            watcher = await asyncpg.connect(server_url)
            # Longer than the deadline of the call.
            while (
                await watcher.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND query LIKE '%submit_within_v1%' AND pid <> pg_backend_pid() "
                    "AND now() - query_start > interval '2 s'"
                )
                == 0
            ):
                assert not giving_up.done()
                await asyncio.sleep(0.01)
            await held.rollback()
            with pytest.raises(OutcomeUnknown, match="roll the transaction back"):
                await giving_up
            db.rollback()
        await watcher.close()
        await holder.close()
