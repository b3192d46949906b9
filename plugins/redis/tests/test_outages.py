"""Servers that restart, hang, refuse, lose their scripts or have no memory left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import TYPE_CHECKING, Any

import pytest

from plugq.errors import OutcomeUnknown, PlugqError, Unavailable
from plugq.events import EventKind, JobEvent
from plugq.job import JobRef, JobState
from plugq.protocols import (
    ClaimRequest,
    Happened,
    NewJob,
    PluginContext,
    RegisterChange,
    Resync,
    SubmitStatus,
    SweepRequest,
    Wake,
)
from plugq.testing import ManualClock
from plugq_redis import RedisOptions, RedisStorage

if TYPE_CHECKING:
    from plugq.protocols import Notice

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
NewJobs = Callable[..., NewJob]
StartServer = Callable[..., Any]
Claim = Callable[..., ClaimRequest]

#: Seconds that anything may take on a machine that is busy.
PATIENCE = 30.0


async def until(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return what a call returns once the server is there again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                return await call()
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def hearing(stream: Any) -> AsyncIterator[asyncio.Queue[Any]]:
    """Fetch from a stream in the background."""
    heard: asyncio.Queue[Any] = asyncio.Queue()

    async def fetch() -> None:
        async with aclosing(stream):
            async for one in stream:
                heard.put_nowait(one)

    task = asyncio.create_task(fetch())
    try:
        yield heard
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def hear(heard: asyncio.Queue[Any], wanted: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while await heard.get() != wanted:
            pass


async def test_scripts_are_loaded_again(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    server = start_server()
    async with open_store(server.url) as storage:
        server.command("SCRIPT", "FLUSH")
        replies = await asyncio.gather(*(storage.submit([new_job()]) for _ in range(20)))
        assert {reply.status for (reply,) in replies} == {SubmitStatus.ACCEPTED}
        server.command("SCRIPT", "FLUSH")
        assert len((await storage.claim(claim(30))).leases) == 20
        server.command("SCRIPT", "FLUSH")
        server.command("CONFIG", "RESETSTAT")
        await asyncio.gather(*(storage.submit([new_job()]) for _ in range(200)))
        stats = server.client().info("commandstats")
        names = [name for name in stats if name.startswith("cmdstat_script")]
        # The load, and not one for each that missed it.
        assert sum(stats[name]["calls"] for name in names) <= 3


async def test_a_server_that_is_gone_is_unavailable_and_found_again(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    server = start_server("--appendonly", "yes")
    async with open_store(server.url) as storage:
        await storage.submit([new_job("before")])
        server.stop()
        # The first call may be on its way when the end of the connection is noticed.
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await storage.submit([new_job()])
        began = time.monotonic()
        with pytest.raises(Unavailable, match="can not be reached"):
            await storage.submit([new_job("never")])
        assert time.monotonic() - began < 5
        server.start()
        await until(lambda: storage.submit([new_job("after")]))
        refs = [JobRef("q", id) for id in ("before", "after", "never")]
        assert [job and job.id for job in await storage.get(refs)] == ["before", "after", None]


async def test_what_was_acknowledged_survives_kill_9(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    """With the file synced always; nothing that was not acknowledged is more than unknown."""
    server = start_server("--appendonly", "yes", "--appendfsync", "always")
    accepted: set[str] = set()
    tried: set[str] = set()
    killed = asyncio.Event()

    async def submit(storage: RedisStorage, number: int) -> None:
        count = 0
        while not killed.is_set():
            count += 1
            jobs = [new_job(f"{number}-{count}-{index}") for index in range(5)]
            tried.update(job.id for job in jobs)
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await storage.submit(jobs)
                accepted.update(job.id for job in jobs)
            if len(accepted) > 300 and not killed.is_set():
                killed.set()
                server.kill()

    async with open_store(server.url) as storage:
        await asyncio.gather(*(submit(storage, number) for number in range(8)))
        server.start()
        refs = [JobRef("q", id) for id in sorted(tried)]
        found = await until(lambda: storage.get(refs))
        assert {job.id for job in found if job is not None} >= accepted
        stats = await storage.stats()
        assert sum(stats.tasks[0].counts.values()) == stats.tasks[0].totals["accepted"]


async def test_a_server_that_hangs_costs_the_timeout_and_no_more(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    server = start_server()
    async with open_store(server.url, timeout=0.3, connect_timeout=0.3) as storage:
        await storage.submit([new_job("a")])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(OutcomeUnknown, match="did not answer"):
                    await storage.submit([new_job("b")])
                # It was given up: what is called now is not even sent.
                with pytest.raises(Unavailable):
                    await storage.submit([new_job("c")])
                with pytest.raises(Unavailable):
                    await storage.get([JobRef("q", "a")])
        finally:
            os.kill(server.pid, signal.SIGCONT)
        found = await until(lambda: storage.get([JobRef("q", "a"), JobRef("q", "c")]))
        assert [job and job.id for job in found] == ["a", None]


async def test_a_read_that_gets_no_reply_is_unavailable(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    """It changed nothing, whatever became of it."""
    server = start_server()
    async with open_store(server.url, timeout=0.3, connect_timeout=0.3) as storage:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable, match="did not answer"):
                await storage.get([JobRef("q", "a")])
        finally:
            os.kill(server.pid, signal.SIGCONT)


async def test_a_slow_call_does_not_cost_the_others_their_connection(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    """Connections that are cut are opened again, each call is answered or fails in time."""
    server = start_server("--appendonly", "yes")
    async with open_store(server.url) as storage:
        for _ in range(5):
            calls = [asyncio.create_task(storage.submit([new_job()])) for _ in range(20)]
            await asyncio.sleep(0)
            server.command("CLIENT", "KILL", "TYPE", "normal")
            async with asyncio.timeout(PATIENCE):
                results = await asyncio.gather(*calls, return_exceptions=True)
            for result in results:
                assert not isinstance(result, BaseException) or isinstance(result, PlugqError)
        await until(lambda: storage.submit([new_job("last")]))


async def test_a_full_server_takes_nothing_new_and_lets_jobs_end(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    server = start_server()
    async with open_store(server.url) as storage:
        await storage.submit([new_job("a"), new_job("b")])
        leases = (await storage.claim(claim(1))).leases
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="no memory left"):
            await storage.submit([new_job("c")])
        (reply,), _ = await storage.settle(succeed(leases))
        assert reply.state is JobState.SUCCEEDED
        await storage.sweep(SweepRequest())
        assert [lease.id for lease in (await storage.claim(claim(5))).leases] == ["b"]
        server.command("CONFIG", "SET", "maxmemory", "0")
        assert await storage.get([JobRef("q", "c")]) == [None]


async def test_a_replica_takes_no_writes(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    server = start_server()
    async with open_store(server.url) as storage:
        server.command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(Unavailable, match="replica"):
            await storage.submit([new_job("a")])
        server.command("REPLICAOF", "NO", "ONE")
        await storage.submit([new_job("a")])


async def test_a_user_who_loses_a_right_is_told(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    server = start_server()
    server.command("ACL", "SETUSER", "jobs", "on", ">secret", "~*", "&*", "+@all")
    url = f"redis://jobs:secret@127.0.0.1:{server.port}/0"
    async with open_store(url) as storage:
        await storage.submit([new_job("a")])
        server.command("ACL", "SETUSER", "jobs", "-evalsha")
        with pytest.raises(Unavailable, match="does not let this user") as caught:
            await storage.submit([new_job("b")])
        assert "secret" not in str(caught.value)
        server.command("ACL", "SETUSER", "jobs", "+evalsha", "-hset")
        # A script has no way back from where it was stopped.
        with pytest.raises(OutcomeUnknown, match="does not let this user"):
            await storage.submit([new_job("b")])


async def test_a_server_that_loads_its_data_is_unavailable(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    server = start_server("--appendonly", "yes")
    async with open_store(server.url) as storage:
        body = os.urandom(100_000)
        await storage.submit([new_job(str(number), body=body) for number in range(200)])
        server.command("CONFIG", "SET", "aof-use-rdb-preamble", "yes")
        server.command("BGREWRITEAOF")
        async with asyncio.timeout(PATIENCE):
            while server.client().info("persistence")["aof_rewrite_in_progress"]:
                await asyncio.sleep(0.01)
        server.stop()
        # It looks at its connections after every two mebibytes.
        server.start("--key-load-delay", "5000", wait=False)
        seen: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    found = await storage.get([JobRef("q", "0")])
                    break
                except Unavailable as error:
                    seen.add(str(error))
                    await asyncio.sleep(0.005)
        assert found[0] is not None
        assert any("still loading" in text for text in seen), seen


@pytest.mark.parametrize("how", ["killed", "restarted"])
async def test_a_watch_that_lost_its_connection_resyncs(
    how: str, start_server: StartServer, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    server = start_server()
    async with open_store(server.url) as storage, hearing(storage.watch("p")) as heard:
        await hear(heard, Resync())
        if how == "killed":
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
        else:
            server.stop()
            server.start()
        await hear(heard, Resync())
        await until(lambda: storage.claim(claim(1, peer="p")))
        await storage.submit([new_job("a")])
        await hear(heard, Wake())


async def test_a_full_server_is_swept_free_again(
    start_server: StartServer,
    open_store: OpenStore,
    new_job: NewJobs,
    claim: Claim,
    succeed: Any,
) -> None:
    """By a sweeper that is elected, and workers may start there."""
    server = start_server()
    fields = {"result_ttl": 0.0, "id_ttl": 0.0, "failure_ttl": 0.0}
    clock = ManualClock()
    context = PluginContext(namespace="full", clock=clock)
    storage = RedisStorage(RedisOptions(url=server.url), context)
    await storage.start()
    try:
        await storage.submit([new_job(str(number), **fields) for number in range(20)])
        await storage.settle(succeed((await storage.claim(claim(20))).leases))
        server.command("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises(Unavailable, match="no memory left"):
            await storage.submit([new_job()])
        clock.advance(60)
        assert (await storage.stats()).queues
        loaded = await storage.load(["sweeper"])
        change = RegisterChange(key="sweeper", expect=0, value=b"me", ttl=4.0)
        assert (await storage.swap([change])).done
        assert loaded.registers == (None,)
        assert len((await storage.sweep(SweepRequest())).changes) == 20
    finally:
        await storage.stop()


async def test_a_master_that_has_become_a_replica_is_left(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    """Its address may lead to another server by then."""
    server = start_server()
    async with open_store(server.url) as storage:
        await storage.submit([new_job()])
        before = await storage._server.command("CLIENT", "ID")
        server.command("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(Unavailable, match="is a replica"):
            await storage.submit([new_job()])
        server.command("REPLICAOF", "NO", "ONE")
        await until(lambda: storage.submit([new_job()]))
        assert await storage._server.command("CLIENT", "ID") != before


async def test_who_gave_a_watch_up_before_it_began_is_not_subscribed(
    start_server: StartServer, open_store: OpenStore, claim: Claim
) -> None:
    server = start_server()
    async with open_store(server.url) as storage:
        listening = storage.listen()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            begun = asyncio.create_task(anext(listening))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            begun.cancel()
            await asyncio.gather(begun, return_exceptions=True)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await listening.aclose()
        async with asyncio.timeout(PATIENCE):
            while True:
                await storage.claim(claim(0))
                if not storage.listened:
                    break


async def test_events_that_could_not_be_told_are_stood_for(
    start_server: StartServer, open_store: OpenStore, claim: Claim
) -> None:
    """The teller's connection is cut while the listener's stays."""
    server = start_server()
    event = JobEvent(kind=EventKind.STARTED, id="a")
    async with (
        open_store(server.url, timeout=0.5) as teller,
        open_store(server.url) as other,
        hearing(other.listen()) as heard,
    ):
        await hear(heard, Resync())
        await teller.claim(claim(0))
        assert teller.listened
        os.kill(server.pid, signal.SIGSTOP)
        teller.tell([event])
        # What was sent and not answered when the connection is given up may be lost.
        with pytest.raises(OutcomeUnknown):
            await teller.claim(claim(0))
        os.kill(server.pid, signal.SIGCONT)
        await hear(heard, Resync())
        await until(lambda: teller.claim(claim(0)))
        teller.tell([event])
        await hear(heard, Happened((event,)))


async def test_stopping_ends_in_time_with_the_server_out_of_reach(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    server = start_server()
    async with open_store(server.url, timeout=0.5, connect_timeout=0.5) as storage:
        notices: list[Notice] = []
        stream = storage.watch("p")
        notices.append(await anext(stream))
        os.kill(server.pid, signal.SIGSTOP)
        try:
            call = asyncio.create_task(storage.submit([new_job()]))
            await asyncio.sleep(0)
            async with asyncio.timeout(PATIENCE):
                await storage.stop()
            with pytest.raises(PlugqError):
                await call
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
        finally:
            os.kill(server.pid, signal.SIGCONT)
