"""A network that swallows what is sent over it: every call ends, and so does stopping."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from plugq.errors import OutcomeUnknown, Unavailable
from plugq.job import JobRecord, JobRef, JobState
from plugq.protocols import ClaimRequest, NewJob, SweepRequest
from plugq.protocols.edits import Cancel, Configure, QueueSettings
from plugq_postgres import PostgresStorage

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]

#: What stands in the last statement of each transaction that has several.
LAST = b"AS listened"


class Network:
    """What lies between a client and the server; from ``swallows`` on nothing comes through."""

    def __init__(self, host: str, port: int) -> None:
        self._server = (host, port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: list[asyncio.StreamWriter] = []
        #: Let everything be swallowed once this is sent.
        self.until: bytes | None = None
        #: Set once something was swallowed.
        self.swallowed = asyncio.Event()

    def heal(self) -> None:
        """Let what is sent from now on come through, by other connections."""
        self.until = None
        self.swallowed.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._held.append(writer)
        if self.swallowed.is_set():
            return
        there, back = await asyncio.open_connection(*self._server)
        self._held.append(back)
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._carry(source, target))
            self._tasks.add(task)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                if self.until is not None and self.until in data:
                    self.swallowed.set()
                if self.swallowed.is_set():
                    return
                target.write(data)
                await target.drain()
            target.close()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._held:
            writer.close()


@asynccontextmanager
async def _network(server_url: str) -> AsyncIterator[tuple[Network, str]]:
    """Return a network and the URL of the server behind it."""
    url = urlsplit(server_url)
    assert url.hostname is not None
    assert url.port is not None
    between = Network(url.hostname, url.port)
    server = await asyncio.start_server(between.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield between, server_url.replace(f"{url.hostname}:{url.port}", f"127.0.0.1:{port}")
    finally:
        server.close()
        await between.close()


@asynccontextmanager
async def through(open_store: Open, url: str) -> AsyncIterator[PostgresStorage]:
    """Open a storage behind a network, with one connection, which no call may keep."""
    async with open_store(
        url=url, pool_size=1, statement_timeout="1s", lock_timeout="1s", connect_timeout="2s"
    ) as storage:
        yield storage


async def _calls(
    storage: PostgresStorage,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> dict[str, Callable[[PostgresStorage], Awaitable[Any]]]:
    """Return calls of several statements, each with something to do."""
    ids = [f"j{n}" for n in range(10)]
    await storage.submit([new_job(id_) for id_ in ids])
    await storage.submit([new_job(queue="limited"), new_job(queue="late", deadline_in=0.001)])
    settings = QueueSettings(queue="limited", limits=b"x")
    await storage.edit(Configure((settings,)))
    record = JobRecord(
        queue="r", id="r", task="t", state=JobState.QUEUED, sequence=10, submission=b"", body=b"{}"
    )
    return {
        "edit": lambda to: to.edit(Cancel(tuple(JobRef("q", id_) for id_ in ids))),
        "restore": lambda to: to.restore([record]),
        "sweep": lambda to: to.sweep(SweepRequest()),
        "claim": lambda to: to.claim(claim(1, queues=("limited",))),
    }


@pytest.mark.parametrize("verb", ["edit", "restore", "sweep", "claim"])
async def test_a_call_whose_answer_is_swallowed_ends_and_keeps_no_connection(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
    verb: str,
) -> None:
    async with (
        _network(server_url) as (between, url),
        open_store() as near,
        through(open_store, url) as storage,
    ):
        call = (await _calls(near, new_job, claim))[verb]
        between.until = LAST
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await call(storage)
        assert between.swallowed.is_set()
        between.heal()
        await call(storage)


async def test_stopping_ends_while_everything_is_swallowed(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    async with (
        _network(server_url) as (between, url),
        open_store() as near,
        through(open_store, url) as storage,
    ):
        call = (await _calls(near, new_job, claim))["edit"]
        watch = storage.watch("p")
        await anext(watch)
        between.until = LAST
        calling = asyncio.ensure_future(call(storage))
        await between.swallowed.wait()
        await storage.stop()
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await calling
        await watch.aclose()


async def test_a_start_ends_while_everything_is_swallowed(
    server_url: str, open_store: Open
) -> None:
    async with open_store():
        pass
    for until in (b"server_version_num", b".namespace WHERE name"):
        async with _network(server_url) as (between, url):
            between.until = until
            with pytest.raises(Unavailable, match="did not answer in time"):
                async with through(open_store, url):
                    pass
            assert between.swallowed.is_set()


async def test_a_watch_is_told_that_nothing_can_be_heard(server_url: str, open_store: Open) -> None:
    async with _network(server_url) as (between, url), through(open_store, url) as storage:
        between.until = b"LISTEN"
        watch = storage.watch("p")
        with pytest.raises(Unavailable, match="did not answer in time"):
            await anext(watch)
        assert between.swallowed.is_set()
