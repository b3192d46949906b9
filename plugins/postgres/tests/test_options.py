"""What can not work is refused, in one line and without the secrets of the URL."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg
import pytest

from plugq.errors import ConfigError, PlugqError, Unavailable
from plugq.protocols import NewJob, PluginContext
from plugq_postgres import PostgresOptions, PostgresStorage, migration_sql

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "mysql://h/d"}, "storage.url"),
        ({"url": "postgresql://h/d", "schema": ""}, "storage.schema"),
        ({"url": "postgresql://h/d", "schema": "x" * 64}, "storage.schema"),
        ({"url": "postgresql://h/d", "pool_size": 0}, "storage.pool_size"),
        ({"url": "postgresql://h/d", "lock_timeout": "soon"}, "storage.lock_timeout"),
        ({"url": "postgresql://h/d", "statement_timeout": 0}, "storage.statement_timeout"),
    ],
)
def test_options_that_can_not_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        PostgresStorage(PostgresOptions(**options), PluginContext())


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
    with pytest.raises(ConfigError, match="run plugq migrate"):
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
        with pytest.raises(ConfigError, match="GRANT"):
            async with open_store(url=url, schema="elsewhere"):
                pass
    finally:
        await db.execute(f"DROP ROLE {role}")
        await db.close()
