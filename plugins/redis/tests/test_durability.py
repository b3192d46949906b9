"""What is lost of the jobs that were acknowledged, by how the server is set up and how it ends.

``pytest -m "soak or not soak" -rP plugins/redis/tests/test_durability.py`` prints the figures that
the README states.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from plugq.errors import OutcomeUnknown, Unavailable
from plugq.job import JobRef, JobState
from plugq.protocols import ClaimRequest, Lease, NewJob
from plugq_redis import RedisStorage

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
NewJobs = Callable[..., NewJob]
StartServer = Callable[..., Any]
Claim = Callable[..., ClaimRequest]

#: Jobs of one call, and calls under way at a time.
CALL, TASKS = 10, 8
NAMESPACE = "durability"


async def submit_until(
    storage: RedisStorage, new_job: NewJobs, enough: int, end: Callable[[], None]
) -> list[str]:
    """Submit in many tasks, end the server once so many are acknowledged; return which were."""
    accepted: list[str] = []
    numbers = itertools.count()
    over = False

    async def submit() -> None:
        nonlocal over
        while not over:
            jobs = [new_job(f"job-{next(numbers)}") for _ in range(CALL)]
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await storage.submit(jobs)
                accepted.extend(job.id for job in jobs)
            if len(accepted) >= enough and not over:
                over = True
                end()

    await asyncio.gather(*(submit() for _ in range(TASKS)))
    return accepted


async def lost_of(storage: RedisStorage, ids: Sequence[str]) -> int:
    found = await storage.get([JobRef("q", id) for id in ids])
    return found.count(None)


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        (("--appendonly", "yes", "--appendfsync", "always"), 0.0),
        (("--appendonly", "yes", "--appendfsync", "everysec"), 0.0),
        (("--appendonly", "yes", "--appendfsync", "no"), 0.0),
        (("--appendonly", "no"), 1.0),
    ],
)
async def test_what_a_server_that_is_killed_has_lost(
    settings: tuple[str, ...],
    lost: float,
    start_server: StartServer,
    open_store: OpenStore,
    new_job: NewJobs,
) -> None:
    """Its process, not the machine: what the system has taken over is written."""
    server = start_server(*settings)
    enough = int(os.environ.get("SOAK_JOBS", "500"))
    async with open_store(server.url, namespace=NAMESPACE) as storage:
        accepted = await submit_until(storage, new_job, enough, server.kill)
    server.start()
    async with open_store(server.url, namespace=NAMESPACE) as storage:
        missing = await lost_of(storage, accepted)
    print(settings, f"lost {missing} of {len(accepted)}")  # noqa: T201 - what was measured
    assert missing == lost * len(accepted)


class Pair:
    """A master, and a replica that may be cut off."""

    def __init__(self, start_server: StartServer) -> None:
        self.master = start_server()
        self.replica = start_server()
        self.replica.command("REPLICAOF", "127.0.0.1", self.master.port)
        self.caught_up()

    def caught_up(self) -> None:
        self.master.command("SET", "mark", "1")
        assert self.master.command("WAIT", 1, 20_000) == 1

    def cut_off(self) -> None:
        """Let the replica follow nobody; it keeps what it has."""
        self.replica.command("REPLICAOF", "127.0.0.1", 1)

    def fail_over(self) -> None:
        self.master.kill()
        self.replica.command("REPLICAOF", "NO", "ONE")


async def test_a_replica_that_lags_has_lost_what_it_had_not_received(
    start_server: StartServer,
    open_store: OpenStore,
    new_job: NewJobs,
    claim: Claim,
    succeed: Callable[[Sequence[Lease]], Any],
) -> None:
    """That suffix and nothing else; tokens rise all the same, and old leases are refused."""
    pair = Pair(start_server)
    async with open_store(pair.master.url, namespace=NAMESPACE) as storage:
        kept = [new_job(f"kept-{number}") for number in range(300)]
        await storage.submit(kept)
        before = (await storage.claim(claim(50))).leases
        pair.caught_up()
        pair.cut_off()
        lost = [new_job(f"lost-{number}") for number in range(200)]
        await storage.submit(lost)
        after = (await storage.claim(claim(50))).leases
        await storage.settle(succeed(before))
    pair.fail_over()
    async with open_store(pair.replica.url, namespace=NAMESPACE) as storage:
        assert await lost_of(storage, [job.id for job in kept]) == 0
        missing = await lost_of(storage, [job.id for job in lost])
        print(f"lagging replica: lost {missing} of {len(lost)}")  # noqa: T201 - what was measured
        assert missing == len(lost)
        # What ended in the suffix runs, as far as the replica knows, and can be ended again.
        (found,) = await storage.get([JobRef("q", before[0].id)])
        assert found is not None
        assert found.state is JobState.RUNNING
        replies, _ = await storage.settle(succeed(before))
        assert not any(reply.lost for reply in replies)
        again = (await storage.claim(claim(50))).leases
        assert [lease.id for lease in again] == [lease.id for lease in after]
        assert min(lease.token for lease in again) > max(lease.token for lease in after)
        replies, _ = await storage.settle(succeed(after))
        assert all(reply.lost for reply in replies)


async def test_a_master_may_refuse_what_no_replica_receives(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    pair = Pair(start_server)
    pair.master.command("CONFIG", "SET", "min-replicas-to-write", 1)
    async with open_store(pair.master.url, namespace=NAMESPACE) as storage:
        await storage.submit([new_job()])
        pair.cut_off()
        async with asyncio.timeout(30):
            while pair.master.client().info("replication")["connected_slaves"]:
                await asyncio.sleep(0.01)
        with pytest.raises(Unavailable, match="too few replicas"):
            await storage.submit([new_job()])


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_what_a_failover_under_load_has_lost(
    start_server: StartServer, open_store: OpenStore, new_job: NewJobs
) -> None:
    """A replica that follows as fast as it can."""
    for _ in range(5):
        pair = Pair(start_server)
        async with open_store(pair.master.url, namespace=NAMESPACE) as storage:
            accepted = await submit_until(storage, new_job, 20_000, pair.fail_over)
        async with open_store(pair.replica.url, namespace=NAMESPACE) as storage:
            missing = await lost_of(storage, accepted)
        print(f"failover under load: lost {missing} of {len(accepted)}")  # noqa: T201 - measured
        assert missing < len(accepted) // 2
