"""What can not work is refused, in one line and without the secrets of the URL."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg
import pytest

from plugq.errors import ConfigError, PlugqError, Unavailable
from plugq.protocols import FindQuery, NewJob, PluginContext
from plugq_postgres import PostgresOptions, PostgresStorage, migration_sql
from plugq_postgres.__main__ import main
from plugq_postgres._options import shown

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "mysql://h/d"}, "storage.url"),
        ({"url": "postgresql://h/d", "schema": ""}, "storage.schema"),
        ({"url": "postgresql://h/d", "schema": "x" * 64}, "storage.schema"),
        ({"url": "postgresql://h/d", "schema": "$user"}, "storage.schema"),
        ({"url": "postgresql://h/d", "schema": "pg_jobs"}, "storage.schema"),
        ({"url": "postgresql://h/d", "pool_size": 0}, "storage.pool_size"),
        ({"url": "postgresql://h/d", "lock_timeout": "soon"}, "storage.lock_timeout"),
        ({"url": "postgresql://h/d", "statement_timeout": 0}, "storage.statement_timeout"),
    ],
)
def test_options_that_can_not_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PostgresStorage(PostgresOptions(**options), PluginContext())


@pytest.mark.parametrize("password", ["geheim/x", "geheim?x", "geheim#x", "gehe]im[/@x"])
def test_a_password_that_is_not_quoted_is_refused_and_not_shown(password: str) -> None:
    options = PostgresOptions(url=f"postgresql://user:{password}@host:5432/db")
    with pytest.raises(ConfigError, match="%2F") as caught:
        PostgresStorage(options, PluginContext())
    assert "gehe" not in str(caught.value)
    assert "gehe" not in shown(options.url)


async def test_a_pool_that_begins_otherwise_is_refused(server_url: str, open_store: Open) -> None:
    settings = {"default_transaction_isolation": "repeatable read"}
    async with asyncpg.create_pool(
        server_url, min_size=1, max_size=1, server_settings=settings
    ) as pool:
        with pytest.raises(ConfigError, match="read committed"):
            async with open_store(pool=pool):
                pass


async def test_a_user_who_begins_otherwise_is_served(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    role = f"strict_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(server_url)
    try:
        await db.execute(
            f"CREATE ROLE {role} LOGIN SUPERUSER; "
            f"ALTER ROLE {role} SET default_transaction_isolation = 'serializable'"
        )
        async with open_store(url=server_url.replace("postgres@", f"{role}@")) as storage:
            calls = (storage.submit([new_job()]) for _ in range(20))
            assert len(await asyncio.gather(*calls)) == 20
    finally:
        # It may have been the one that made the tables.
        await db.execute(f"REASSIGN OWNED BY {role} TO postgres; DROP ROLE {role}")
        await db.close()


async def test_the_rights_that_are_asked_for_are_enough(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    role = f"user_{uuid.uuid4().hex[:12]}"
    schema = f"rights_{uuid.uuid4().hex[:12]}"
    url = server_url.replace("postgres@", f"{role}@")
    db = await asyncpg.connect(server_url)
    try:
        await db.execute(migration_sql(schema))
        await db.execute(f"CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role}")
        await db.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}")
        with pytest.raises(ConfigError, match="sequences"):
            async with open_store(url=url, schema=schema):
                pass
        await db.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}")
        async with open_store(url=url, schema=schema) as storage:
            assert len(await storage.submit([new_job("a")])) == 1
    finally:
        await db.execute(f"DROP SCHEMA {schema} CASCADE; DROP ROLE {role}")
        await db.close()


async def test_no_page_is_an_empty_page(open_store: Open, new_job: Callable[..., NewJob]) -> None:
    async with open_store() as storage:
        await storage.submit([new_job()])
        assert (await storage.find(FindQuery(limit=0))).jobs == ()
        with pytest.raises(PlugqError, match="cursor"):
            await storage.find(FindQuery(cursor="9" * 5000))


async def test_an_unknown_database_is_refused_without_the_password(server_url: str) -> None:
    url = server_url.replace("postgres@", "postgres:geheim@").replace("/postgres", "/nowhere")
    storage = PostgresStorage(PostgresOptions(url=url), PluginContext())
    with pytest.raises(ConfigError, match="nowhere") as caught:
        await storage.start()
    assert "geheim" not in str(caught.value)


async def test_a_server_that_refuses_is_unavailable() -> None:
    options = PostgresOptions(url="postgresql://user:geheim@127.0.0.1:1/db")
    storage = PostgresStorage(options, PluginContext())
    with pytest.raises(Unavailable) as caught:
        await storage.start()
    assert "geheim" not in str(caught.value)


async def test_a_schema_of_something_else_is_left_alone(server_url: str, open_store: Open) -> None:
    db = await asyncpg.connect(server_url)
    try:
        await db.execute('CREATE SCHEMA "theirs"; CREATE TABLE "theirs".job (x integer)')
        with pytest.raises(ConfigError, match="something else"):
            async with open_store(schema="theirs"):
                pass
    finally:
        await db.execute('DROP SCHEMA "theirs" CASCADE')
        await db.close()


async def test_without_migrations_a_missing_schema_is_refused(open_store: Open) -> None:
    with pytest.raises(ConfigError, match="python -m plugq_postgres"):
        async with open_store(schema="missing", migrate=False):
            pass


async def test_several_starters_migrate_once(server_url: str, open_store: Open) -> None:
    async def start() -> None:
        async with open_store(schema='odd "name"') as storage:
            await storage.stats()

    db = await asyncpg.connect(server_url)
    try:
        await asyncio.gather(*(start() for _ in range(4)))
        assert await db.fetch('SELECT version FROM "odd ""name""".plugq_version') == [(1,)]
    finally:
        await db.execute('DROP SCHEMA IF EXISTS "odd ""name""" CASCADE')
        await db.close()


async def test_the_printed_migrations_are_those_that_are_applied(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        await db.execute(migration_sql("printed"))
        async with open_store(schema="printed", migrate=False) as storage:
            (reply,) = await storage.submit([new_job("a")])
            assert reply.status == "accepted"
    finally:
        await db.execute("DROP SCHEMA IF EXISTS printed CASCADE")
        await db.close()


@pytest.mark.parametrize("options", [{"pooler": True}, {"pool_size": 1}])
async def test_every_step_works(
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., Any],
    options: dict[str, Any],
) -> None:
    async with open_store(**options) as storage:
        await storage.submit([new_job(str(number)) for number in range(3)])
        reply = await storage.claim(claim(3))
        assert [lease.id for lease in reply.leases] == ["0", "1", "2"]


async def test_the_pool_of_the_user_is_used_and_left_open(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    async with asyncpg.create_pool(server_url, min_size=1, max_size=2) as pool:
        async with open_store(pool=pool) as storage:
            await storage.submit([new_job("a")])
        assert await pool.fetchval("SELECT 1") == 1
        with pytest.raises(PlugqError):
            await storage.stats()


async def test_a_user_without_rights_is_told_what_is_missing(
    server_url: str, open_store: Open
) -> None:
    role = f"nobody_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(server_url)
    try:
        await db.execute(f"CREATE ROLE {role} LOGIN")
        url = server_url.replace("postgres@", f"{role}@")
        with pytest.raises(ConfigError, match="grant"):
            async with open_store(url=url, schema="elsewhere"):
                pass
    finally:
        await db.execute(f"DROP ROLE {role}")
        await db.close()


def test_the_command_prints_and_applies(
    server_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = f"applied_{uuid.uuid4().hex[:12]}"
    monkeypatch.setattr(sys, "argv", ["plugq_postgres", "--schema", schema])
    assert main() == 0
    assert capsys.readouterr().out == migration_sql(schema)
    monkeypatch.setattr(sys, "argv", ["plugq_postgres", "--schema", schema, "--apply", server_url])
    assert main() == 0
    assert capsys.readouterr().out == f"schema {schema}: version 0 -> 1\n"
    assert main() == 0
    assert "already" in capsys.readouterr().out
    nowhere = "postgresql://user:geheim@127.0.0.1:1/db"
    monkeypatch.setattr(sys, "argv", ["plugq_postgres", "--apply", nowhere])
    assert main() == 1
    assert "geheim" not in capsys.readouterr().err
