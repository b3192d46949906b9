"""The ways to a server: TLS, a socket of the machine, several hosts."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from plugq.errors import ConfigError, Unavailable
from plugq.protocols import NewJob
from plugq_postgres import PostgresStorage

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]
Run = Callable[..., AbstractContextManager[Any]]


async def works(open_store: Open, new_job: Callable[..., NewJob], url: str) -> None:
    async with open_store(url=url) as storage:
        watch = storage.watch("p")
        await anext(watch)
        await storage.submit([new_job()])
        await watch.aclose()


def certified(folder: Path) -> None:
    """Give the server a certificate of its own for 127.0.0.1."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=plugq", "-addext", "subjectAltName=IP:127.0.0.1"]
    key, certificate = folder / "server.key", folder / "server.crt"
    subprocess.run(
        [*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True
    )
    key.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(key, pwd.getpwnam("nobody").pw_uid, -1)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH")
async def test_a_server_is_reached_by_tls_alone(
    own_server: Run, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    with own_server("fsync=off") as server:
        with pytest.raises((ConfigError, Unavailable)):
            await works(open_store, new_job, f"{server.url}?sslmode=require")
        data = server.folder / "data"
        certified(data)
        db = await asyncpg.connect(server.url)
        try:
            if not await db.fetchval("SHOW ssl_library"):
                pytest.skip("the server was built without TLS")
            await db.execute("ALTER SYSTEM SET ssl = on")
        finally:
            await db.close()
        (data / "pg_hba.conf").write_text("hostssl all all all trust\n")
        await asyncio.to_thread(server.stop, "fast")
        await asyncio.to_thread(server.start)
        await works(open_store, new_job, f"{server.url}?sslmode=require")
        root = f"sslrootcert={data / 'server.crt'}"
        await works(open_store, new_job, f"{server.url}?sslmode=verify-full&{root}")
        with pytest.raises((ConfigError, Unavailable)):
            await works(open_store, new_job, f"{server.url}?sslmode=disable")
        other = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises((ConfigError, Unavailable)):
            await works(open_store, new_job, f"{other}?sslmode=verify-full&{root}")


async def test_a_server_is_reached_by_a_socket(
    own_server: Run, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    with own_server("fsync=off") as server:
        folder = server.folder
        server.add(f"unix_socket_directories={folder}")
        await asyncio.to_thread(server.stop, "fast")
        await asyncio.to_thread(server.start)
        url = f"postgresql://postgres@/postgres?host={folder}&port={server.port}"
        await works(open_store, new_job, url)


async def test_of_several_hosts_the_one_that_takes_writes_is_used(
    server_url: str, own_server: Run, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    with own_server("fsync=off", "default_transaction_read_only=on") as reader:
        server = server_url.rpartition("@")[2].partition("/")[0]
        hosts = f"127.0.0.1:1,127.0.0.1:{reader.port},{server}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        await works(open_store, new_job, url)
