"""Numbers that Lua can not keep, long histories, and what a new store must not repeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest

from plugq.errors import InvalidJob
from plugq.job import AttemptRecord, JobRecord, JobRef, JobState, Outcome
from plugq.protocols import (
    FindQuery,
    NewJob,
    PluginContext,
    RegisterChange,
    Reprioritise,
    Settlement,
)
from plugq.testing import ManualClock
from plugq_redis import RedisOptions, RedisStorage

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
NewJobs = Callable[..., NewJob]
StartServer = Callable[..., Any]

RUNNING = JobRecord(
    queue="q",
    id="a",
    task="t",
    state=JobState.RUNNING,
    sequence=1,
    submission=b"0123456789abcdef",
    attempt=1,
    token=1,
    worker="w",
    submitted_at=1.0,
    ready_at=1.0,
    started_at=1.0,
    lease_until=1.0,
    body=b"",
)
ENTRY = AttemptRecord(
    attempt=1,
    code="error",
    type="E",
    message="m",
    traceback="",
    worker="w",
    started_at=1.0,
    ended_at=2.0,
)
#: Numbers that a 64-bit integer holds and Lua does not.
WRONG = (2**63 - 1, -(2**63), 2**53 + 1)


async def test_numbers_that_lua_can_not_keep_are_refused(
    open_store: OpenStore, new_job: NewJobs, claim: Any
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job("good")])
        for number in WRONG:
            with pytest.raises(InvalidJob, match="priority"):
                await storage.submit([new_job("bad", priority=number)])
            with pytest.raises(InvalidJob, match="priority"):
                await storage.edit(Reprioritise((JobRef("q", "good"),), priority=number))
            for name in ("token", "attempt", "crashes", "priority", "generation"):
                wrong = msgspec.structs.replace(RUNNING, **{name: number})
                if name != "token" or abs(number) > 2**62:
                    with pytest.raises(InvalidJob, match=name):
                        await storage.restore([wrong])
        assert [lease.id for lease in (await storage.claim(claim(5))).leases] == ["good"]
        assert len((await storage.find(FindQuery())).jobs) == 1


async def test_a_history_has_no_longest_length(open_store: OpenStore, claim: Any) -> None:
    """And goes on from there."""
    entries = (ENTRY,) * 65_536
    job = msgspec.structs.replace(
        RUNNING, state=JobState.QUEUED, history=entries, max_attempts=100_000, token=0
    )
    async with open_store() as storage:
        await storage.restore([job])
        for number in range(2):
            (lease,) = (await storage.claim(claim(1))).leases
            problem = msgspec.structs.replace(ENTRY, message=str(number))
            retry = Settlement(
                queue="q", id="a", token=lease.token, outcome=Outcome.RETRY, error=problem
            )
            await storage.settle([retry])
        (found,) = await storage.get([JobRef("q", "a")])
        (page,) = (await storage.find(FindQuery())).jobs
        assert found is not None
        for each in (found, page):
            assert len(each.history) == len(entries) + 2
            assert [entry.message for entry in each.history[-3:]] == ["m", "0", "1"]


async def test_a_failure_costs_the_same_however_many_were_before(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs, claim: Any
) -> None:
    server = start_server()

    async def written(storage: RedisStorage) -> int:
        """Return how many bytes one more failure sends to the replicas and the file."""
        (lease,) = (await storage.claim(claim(1))).leases
        before: int = server.client().info("replication")["master_repl_offset"]
        problem = msgspec.structs.replace(ENTRY, traceback="x" * 4_000)
        retry = Settlement(
            queue="q", id="a", token=lease.token, outcome=Outcome.RETRY, error=problem
        )
        await storage.settle([retry])
        offset: int = server.client().info("replication")["master_repl_offset"]
        return offset - before

    replica = start_server()
    replica.command("REPLICAOF", "127.0.0.1", server.port)
    server.command("WAIT", 1, 20_000)
    async with open_store(server.url) as storage:
        await storage.submit([new_job("a", max_attempts=1_000)])
        costs = [await written(storage) for _ in range(50)]
    assert 4_000 < max(costs[2:]) < min(costs[2:]) + 500


async def test_versions_do_not_repeat_where_a_store_is_begun_anew(
    start_server: StartServer, open_store: OpenStore
) -> None:
    server = start_server()
    async with open_store(server.url) as storage:
        change = RegisterChange(key="k", expect=0, value=b"v")
        (first,) = (await storage.swap([change])).registers
        server.command("FLUSHALL")
        (second,) = (await storage.swap([change])).registers
        assert first is not None
        assert second is not None
        assert second.version > first.version
        assert not (
            await storage.swap([msgspec.structs.replace(change, expect=first.version)])
        ).done


async def test_restoring_costs_the_same_however_many_queues_there_are(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    """As long as the sequences are new, which those of a whole store are."""
    server = start_server()

    async def cost(storage: RedisStorage, first: int) -> int:
        server.command("CONFIG", "RESETSTAT")
        await storage.restore(
            [
                msgspec.structs.replace(
                    RUNNING, id=str(number), sequence=number, worker=str(number)
                )
                for number in range(first, first + 50)
            ]
        )
        stats = server.client().info("commandstats")
        calls: int = stats["cmdstat_zcount"]["calls"] if "cmdstat_zcount" in stats else 0
        return calls

    async with open_store(server.url) as storage:
        await cost(storage, 1_000)
        assert await cost(storage, 2_000) == 0
        await storage.submit([new_job(queue=f"q{number}") for number in range(100)])
        assert await cost(storage, 3_000) == 0
        # Below the last one: each queue is asked once, and those that are near for each job.
        assert await cost(storage, 2_500) <= 102
        found = await storage.get([JobRef("q", str(number)) for number in range(2_500, 2_550)])
        assert [job and job.sequence for job in found] == list(range(2_500, 2_550))


async def test_what_was_shown_as_over_does_not_come_back(
    server: str, new_job: NewJobs, claim: Any
) -> None:
    """By a clock that was set back, as after a failover to a server that is behind."""
    now = time.time()
    stores = [
        RedisStorage(
            RedisOptions(url=server),
            PluginContext(namespace="clocks", clock=ManualClock(start)),
        )
        for start in (now, now + 5, now + 4)
    ]
    for storage in stores:
        await storage.start()
    try:
        first, ahead, behind = stores
        await first.submit([new_job("a", deadline_in=4.5), new_job("b", deadline_in=4.5)])
        for look in (
            ahead.get([JobRef("q", "a")]),
            behind.get([JobRef("q", "a")]),
        ):
            (found,) = await look
            assert found is not None
            assert (found.state, found.code) == (JobState.FAILED, "deadline")
        assert (await behind.claim(claim(2))).leases == ()
    finally:
        for storage in stores:
            await storage.stop()
