"""What whoever runs a server is told: what is kept, what a role needs, what is to be migrated."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from plugq.errors import ConfigError
from plugq.job import JobRef, Outcome
from plugq.protocols import (
    ClaimRequest,
    Explaining,
    FindQuery,
    Layout,
    Migrating,
    NewJob,
    Pause,
    PluginContext,
    RegisterChange,
    Settlement,
    SweepRequest,
)
from plugq_postgres import PostgresOptions, PostgresStorage, grants, migration_sql
from plugq_postgres._upkeep import Found

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]
#: Seconds that a command may take on a machine that is busy with other things.
PATIENCE = 50.0


def storage_of(url: str, **options: Any) -> PostgresStorage:
    return PostgresStorage(PostgresOptions(url=url, **options), PluginContext())


def plugq(
    folder: Path, url: str, *arguments: str, **options: str
) -> subprocess.CompletedProcess[str]:
    lines = [f'{key} = "{value}"' for key, value in {"url": url, **options}.items()]
    text = "\n".join(["[storage]", 'use = "postgres"', *lines, ""])
    (folder / "plugq.toml").write_text(text, "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "plugq", *arguments],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={key: value for key, value in os.environ.items() if not key.startswith("PLUGQ_")},
    )


@asynccontextmanager
async def role_of(url: str) -> AsyncIterator[tuple[str, str]]:
    """Make a role that owns nothing, and give its name and its URL."""
    role = f"role_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(url)
    try:
        await db.execute(f"CREATE ROLE {role} LOGIN")
        yield role, url.replace("postgres@", f"{role}@")
    finally:
        await db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await db.close()


def found(**changes: Any) -> Found:
    settings = {"release": "15.1", "fsync": True, "commit": "on", "named": False, "standbys": 0}
    return Found(**{**settings, **changes})


@pytest.mark.parametrize(
    ("changes", "said", "warning"),
    [
        ({}, "survives a loss of power (synchronous_commit = on)", False),
        ({"standbys": 1}, "a failover loses what the standby had not received yet", False),
        ({"commit": "local", "named": True, "standbys": 1}, "a failover loses", False),
        ({"named": True, "standbys": 1}, "and a failover to a synchronous standby", False),
        ({"commit": "off"}, "all but about the last second (synchronous_commit = off)", True),
        ({"fsync": False}, "may be lost or damaged with its machine (fsync = off)", True),
    ],
)
def test_what_is_kept_follows_from_the_settings(
    changes: dict[str, Any], said: str, warning: bool
) -> None:
    fact = found(**changes).keeps()
    assert said in fact.text
    assert fact.warning is warning


async def test_the_log_and_the_facts_have_the_same_words(
    server_url: str, open_store: Open, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "plugq.plugin")
    async with open_store() as storage:
        assert isinstance(storage, Explaining)
        facts = {fact.name: fact for fact in await storage.facts()}
    assert set(facts) == {"server", "keeps", "access"}
    assert facts["server"].text.startswith("PostgreSQL ")
    assert any(facts["keeps"].text in message for message in caplog.messages)


async def test_the_grants_are_what_a_role_needs(
    server_url: str, open_store: Open, claim: Callable[..., ClaimRequest], new_job: Any
) -> None:
    """Every verb works with them, and without them the start says so in one line."""
    schema = f"granted_{uuid.uuid4().hex[:12]}"
    await storage_of(server_url, schema=schema).migrate()
    async with role_of(server_url) as (role, url):
        with pytest.raises(ConfigError, match="GRANT USAGE ON SCHEMA"):
            async with open_store(url=url, schema=schema, migrate=False):
                pass
        db = await asyncpg.connect(server_url)
        await db.execute(grants(schema, role))
        await db.close()
        async with open_store(url=url, schema=schema, migrate=False) as storage:
            await every_verb(storage, new_job, claim)


async def every_verb(
    storage: PostgresStorage, new_job: Callable[..., NewJob], claim: Callable[..., ClaimRequest]
) -> None:
    await storage.submit([new_job("a", batch="b", lane="l"), new_job("c", delay=60.0)])
    (lease,) = (await storage.claim(claim(5, peer="p"))).leases
    settled = Settlement(queue="q", id="a", token=lease.token, outcome=Outcome.SUCCEED)
    assert (await storage.settle([settled]))[0]
    await storage.sweep(SweepRequest())
    assert len((await storage.find(FindQuery())).jobs) == 2
    assert await storage.batches(["b"]) != [None]
    await storage.stats()
    await storage.edit(Pause(("q",)))
    await storage.swap([RegisterChange(key="k", value=b"v", expect=0)])
    assert await storage.scan("k")
    (record,) = await storage.get([JobRef("q", "a")])
    assert record is not None
    await storage.restore([record])


async def test_two_who_migrate_at_once_do_it_once(server_url: str) -> None:
    schema = f"raced_{uuid.uuid4().hex[:12]}"
    storages = [storage_of(server_url, schema=schema) for _ in range(4)]
    assert isinstance(storages[0], Migrating)
    newest = (await storages[0].layout()).newest
    assert await storages[0].layout() == Layout(version=0, newest=newest)
    before = await asyncio.gather(*(storage.migrate() for storage in storages))
    assert {layout.version for layout in before} <= {0, newest}
    assert not (await storages[0].layout()).pending
    db = await asyncpg.connect(server_url)
    rows = await db.fetch(f'SELECT version FROM "{schema}".plugq_version')
    await db.close()
    assert sorted(row[0] for row in rows) == list(range(1, newest + 1))


async def test_migrating_waits_for_another_one(server_url: str) -> None:
    """Longer than calls wait for locks, and not for ever."""
    schema = f"waited_{uuid.uuid4().hex[:12]}"
    db = await asyncpg.connect(server_url)
    try:
        async with db.transaction():
            await db.execute("SELECT pg_advisory_xact_lock(x'706C6771'::int)")
            storage = storage_of(server_url, schema=schema, lock_timeout="50ms")
            migrating = asyncio.create_task(storage.migrate())
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            while not await db.fetchval(waiting):
                assert not migrating.done()
                await asyncio.sleep(0.01)
            for _ in range(3):
                await db.execute("SELECT pg_sleep(0.05)")
            assert not migrating.done()
        assert (await migrating).version == 0
    finally:
        await db.close()


def test_the_command_prints_checks_and_applies(server_url: str, tmp_path: Path) -> None:
    schema = f"applied_{uuid.uuid4().hex[:12]}"
    nowhere = "postgresql://user:geheim@127.0.0.1:1/db"
    printed = plugq(tmp_path, nowhere, "migrate", "--sql", schema=schema)
    assert printed.stdout == migration_sql(schema)
    checked = plugq(tmp_path, server_url, "migrate", "--check", schema=schema)
    assert checked.returncode == 1
    assert "is pending; run plugq migrate" in checked.stdout
    applied = plugq(tmp_path, server_url, "migrate", "--json", schema=schema)
    document = json.loads(applied.stdout)
    assert (document["before"], document["pending"]) == (0, False)
    assert document["version"] == document["newest"]
    checked = plugq(tmp_path, server_url, "migrate", "--check", schema=schema)
    assert checked.returncode == 0
    for arguments in (["migrate"], ["migrate", "--check"], ["check"]):
        run = plugq(tmp_path, nowhere, *arguments)
        said = run.stderr if arguments[0] == "migrate" else run.stdout
        assert run.returncode == 1 or arguments == ["check"]
        assert said.count("\n") == 1
        assert "geheim" not in said


async def test_a_user_who_may_not_migrate_is_told_in_one_line(
    server_url: str, tmp_path: Path, open_store: Open
) -> None:
    async with open_store(), role_of(server_url) as (_, url):
        for arguments in (["migrate"], ["migrate", "--check"]):
            schema = "elsewhere" if arguments == ["migrate"] else "plugq"
            run = await asyncio.to_thread(plugq, tmp_path, url, *arguments, schema=schema)
            assert run.returncode == 2, run.stdout
            assert run.stderr.count("\n") == 1
            assert "permission denied" in run.stderr


def test_check_on_a_server_that_is_silent_ends_in_its_time(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/db"
        begun = time.monotonic()
        run = plugq(tmp_path, url, "check", connect_timeout="300ms")
        assert time.monotonic() - begun < PATIENCE / 2
    assert run.returncode == 2
    assert run.stdout.count("\n") == 1
    assert "did not answer in time" in run.stdout


def test_check_prints_the_facts(server_url: str, tmp_path: Path) -> None:
    run = plugq(tmp_path, server_url, "check")
    assert run.returncode == 0, run.stdout
    assert "\nserver  PostgreSQL " in run.stdout
    assert "\nkeeps   what was acknowledged survives" in run.stdout
    assert 'GRANT USAGE ON SCHEMA "plugq"' in run.stdout
    document = json.loads(plugq(tmp_path, server_url, "check", "--json").stdout)
    assert [fact["name"] for fact in document["storage"]["facts"]] == ["server", "keeps", "access"]
