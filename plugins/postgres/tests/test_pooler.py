"""Behind a pooler in transaction mode, where two statements may meet two sessions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from plugq.job import JobState, Outcome
from plugq.protocols import NewJob, PluginContext, Settlement, Storage, SweepRequest, Wake
from plugq.testing import StorageContract
from plugq_postgres import PostgresOptions, PostgresStorage

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]

#: Fewer sessions than callers, so that they are handed from one to the other all the time.
SETTINGS = """
[databases]
* = host={host} port={port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 3
"""
VARIABLE = "PLUGQ_TEST_POOLER_URL"


@pytest.fixture(scope="session")
def pooler_url(server_url: str) -> Iterator[str]:
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("no pgbouncer on PATH")
    server = urlsplit(server_url)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
    with tempfile.TemporaryDirectory(prefix="plugq-pooler-") as folder:
        file = Path(folder) / "pgbouncer.ini"
        file.write_text(SETTINGS.format(host=server.hostname, port=server.port, listen=port))
        user = None
        if os.geteuid() == 0:
            # It refuses to be run by root.
            user = "nobody"
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        with (
            (Path(folder) / "log").open("wb") as log,
            subprocess.Popen([program, str(file)], user=user, stdout=log, stderr=log) as process,
        ):
            try:
                asyncio.run(_serving(url))
                os.environ[VARIABLE] = url
                yield url
            finally:
                os.environ.pop(VARIABLE, None)
                process.terminate()


async def _serving(url: str) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(OSError, asyncpg.PostgresError):
                db = await asyncpg.connect(url, statement_cache_size=0)
                await db.close()
                return
            await asyncio.sleep(0.05)


async def test_calls_that_share_few_sessions_do_not_meet(
    pooler_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., Any],
) -> None:
    """Each verb, of many callers at once, over fewer sessions of the server."""
    async with open_store(url=pooler_url, pooler=True) as storage:

        async def live(number: int) -> int:
            queue, done = f"q{number}", 0
            for _ in range(5):
                await storage.submit([new_job(queue=queue) for _ in range(3)])
                leases = (await storage.claim(claim(3, queues=(queue,)))).leases
                ended = [
                    Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.SUCCEED)
                    for x in leases
                ]
                replies, _ = await storage.settle(ended)
                done += sum(reply.state is JobState.SUCCEEDED for reply in replies)
                await storage.sweep(SweepRequest())
                await storage.stats()
            return done

        assert await asyncio.gather(*(live(number) for number in range(12))) == [15] * 12


async def test_past_the_pooler_a_process_is_woken(
    pooler_url: str,
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., Any],
) -> None:
    async with open_store(url=pooler_url, pooler=True, listen_url=server_url) as storage:
        watch = storage.watch("p")
        await anext(watch)
        await storage.claim(claim(1, peer="p"))
        await storage.submit([new_job()])
        assert isinstance(await anext(watch), Wake)
        await watch.aclose()


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("pooler_url")
class TestPooler(StorageContract):
    """The whole contract, with what is said on its way past the pooler."""

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        options = PostgresOptions(
            url=os.environ[VARIABLE],
            listen_url=os.environ["PLUGQ_TEST_POSTGRES_URL"],
            pooler=True,
            statement_timeout="20s",
            lock_timeout="20s",
            connect_timeout="10s",
        )
        storage = PostgresStorage(options, context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
