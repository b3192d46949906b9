"""What whoever runs a server is told by ``plugq check``: what is kept, and what a user needs."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from plugq.protocols import Explaining, Fact, Migrating, NewJob
from plugq_redis import RedisStorage, access_rules

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
StartServer = Callable[..., Any]
#: Seconds that a command may take on a machine that is busy with other things.
PATIENCE = 50.0


def plugq(
    folder: Path, url: str, *arguments: str, **options: str
) -> subprocess.CompletedProcess[str]:
    lines = [f'{key} = "{value}"' for key, value in {"url": url, **options}.items()]
    text = "\n".join(['namespace = "shop"', "[storage]", 'use = "redis"', *lines, ""])
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


async def facts_of(storage: RedisStorage) -> dict[str, Fact]:
    assert isinstance(storage, Explaining)
    assert not isinstance(storage, Migrating)
    return {fact.name: fact for fact in await storage.facts()}


@pytest.mark.parametrize(
    ("settings", "said", "warning"),
    [
        (("--appendonly", "yes", "--appendfsync", "always"), "through a loss of power", False),
        (("--appendonly", "yes"), "all but about the last second", False),
        (("--appendonly", "no"), "set appendonly yes", True),
    ],
)
async def test_what_is_kept_is_what_the_start_logs(
    settings: tuple[str, ...],
    said: str,
    warning: bool,
    start_server: StartServer,
    open_store: OpenStore,
) -> None:
    async with open_store(start_server(*settings).url) as storage:
        facts = await facts_of(storage)
        assert facts["keeps"].text == storage.promise
        assert said in facts["keeps"].text
        assert facts["keeps"].warning is warning
        assert facts["server"].text.split()[0] in {"Redis", "Valkey"}


async def test_what_becomes_of_jobs_when_memory_is_full(
    start_server: StartServer, open_store: OpenStore
) -> None:
    server = start_server("--appendonly", "yes")
    async with open_store(server.url) as storage:
        assert "no limit" in (await facts_of(storage))["memory"].text
    server.command("CONFIG", "SET", "maxmemory", "100mb")
    async with open_store(server.url) as storage:
        assert "refused when it is full" in (await facts_of(storage))["memory"].text
    server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with open_store(server.url, allow_eviction=True) as storage:
        fact = (await facts_of(storage))["memory"]
        assert "thrown away" in fact.text
        assert fact.warning


async def test_the_rules_that_are_told_are_those_that_a_user_needs(
    start_server: StartServer, open_store: OpenStore, new_job: Callable[..., NewJob]
) -> None:
    server = start_server("--appendonly", "yes")
    async with open_store(server.url, namespace="shop") as storage:
        told = (await facts_of(storage))["access"].text.partition("ACL SETUSER ")[2].split()
    assert " ".join(told[3:]) == access_rules("shop")
    server.command("ACL", "SETUSER", "jobs", "on", ">secret", *told[3:])
    async with open_store(server.url.replace("//", "//jobs:secret@"), namespace="shop") as storage:
        assert await storage.submit([new_job()])


async def test_a_replica_is_told_of(start_server: StartServer, open_store: OpenStore) -> None:
    server, replica = start_server("--appendonly", "yes"), start_server()
    replica.command("REPLICAOF", "127.0.0.1", server.port)
    end = time.monotonic() + PATIENCE
    while server.client().info("replication")["connected_slaves"] != 1:
        assert time.monotonic() < end
        await asyncio.sleep(0.05)
    async with open_store(server.url) as storage:
        assert "had not received yet" in (await facts_of(storage))["failover"].text


def test_check_prints_the_facts(server: str, tmp_path: Path) -> None:
    run = plugq(tmp_path, server, "check")
    assert run.returncode == 0, run.stdout
    assert "\nserver  " in run.stdout
    assert f"ACL SETUSER <user> on ><password> {access_rules('shop')}\n" in run.stdout
    document = json.loads(plugq(tmp_path, server, "check", "--json").stdout)
    names = [fact["name"] for fact in document["storage"]["facts"]]
    assert names[:2] == ["server", "keeps"]
    migrated = plugq(tmp_path, server, "migrate")
    assert (migrated.returncode, migrated.stdout) == (0, "storage 'redis' needs no migrations\n")


def test_check_on_a_server_that_is_not_there_or_silent_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port in (1, silent.getsockname()[1]):
            begun = time.monotonic()
            url = f"redis://user:geheim@127.0.0.1:{port}/0"
            run = plugq(tmp_path, url, "check", connect_timeout="300ms", timeout="300ms")
            assert time.monotonic() - begun < PATIENCE / 2
            assert run.returncode == 2
            assert run.stdout.count("\n") == 1
            assert "geheim" not in run.stdout + run.stderr


def test_check_names_the_cluster(session_cluster: Any, tmp_path: Path) -> None:
    run = plugq(tmp_path, os.environ["PLUGQ_TEST_REDIS_CLUSTER_URL"], "check")
    assert run.returncode == 0, run.stdout
    assert ", as a cluster\n" in run.stdout
    assert "alike on every node: ACL SETUSER" in run.stdout
