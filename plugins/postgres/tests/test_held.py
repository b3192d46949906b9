"""A queue that somebody holds: sweeps, claims and renewals of the others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncpg
import pytest

from plugq.errors import Unavailable
from plugq.job import JobRef, JobState, Outcome
from plugq.protocols import ClaimRequest, NewJob, Settlement, SweepRequest
from plugq.protocols.storage import LeaseRef
from plugq_postgres import PostgresStorage
from plugq_postgres._held import _PASSED, Held

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]


@asynccontextmanager
async def held(url: str, storage: PostgresStorage, name: str) -> AsyncIterator[None]:
    """Hold a queue, as somebody who has locked its row."""
    db = await asyncpg.connect(url)
    try:
        async with db.transaction():
            await db.execute(
                "SELECT 1 FROM plugq.queue WHERE namespace = $1 AND name = $2 FOR UPDATE",
                storage._database.namespace,
                name.encode(),
            )
            yield
    finally:
        await db.close()


async def _state(storage: PostgresStorage, queue: str, id_: str) -> JobState:
    (job,) = await storage.get([JobRef(queue, id_)])
    assert job is not None
    return job.state


async def test_a_queue_that_is_held_up_keeps_no_other_from_being_swept(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    async with open_store(lock_timeout="100ms") as storage:
        for queue in ("held", "free", "other"):
            await storage.submit([new_job("a", queue=queue, max_attempts=9)])
            await storage.claim(claim(1, queues=(queue,), lease=0.001))
        async with held(server_url, storage, "held"):
            swept = await storage.sweep(SweepRequest())
            assert {change.queue for change in swept.changes} <= {"free", "other"}
            assert swept.next_in is not None
            assert await _state(storage, "free", "a") is JobState.QUEUED
            assert await _state(storage, "other", "a") is JobState.QUEUED
            # One that is known to be held up is not even waited for.
            swept = await storage.sweep(SweepRequest(limit=1))
            assert swept.next_in == pytest.approx(1.0)
        await storage.sweep(SweepRequest())
        assert await _state(storage, "held", "a") is JobState.QUEUED


async def test_what_a_held_queue_has_due_hides_nothing_of_the_others(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    """More than a sweep looks at."""
    async with open_store(lock_timeout="100ms") as storage:
        await storage.submit([new_job(queue="held") for _ in range(9)])
        await storage.claim(claim(9, queues=("held",), lease=0.001))
        await storage.submit([new_job("a", queue="free", max_attempts=9)])
        await storage.claim(claim(1, queues=("free",), lease=0.001))
        async with held(server_url, storage, "held"):
            for _ in range(2):
                await storage.sweep(SweepRequest(limit=3))
            assert await _state(storage, "free", "a") is JobState.QUEUED


async def test_a_claim_and_a_settlement_go_around_a_queue_that_is_held_up(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    both = {"queues": ("held", "free")}
    async with open_store(lock_timeout="100ms") as storage:
        await storage.submit([new_job("a", queue="held")])
        await storage.submit([new_job(id_, queue="free") for id_ in ("a", "b", "c")])
        async with held(server_url, storage, "held"):
            reply = await storage.claim(claim(1, **both))
            assert [(lease.queue, lease.id) for lease in reply.leases] == [("free", "a")]
            assert reply.next_in is not None
            assert reply.next_in <= 1.0
            ended = [
                Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.SUCCEED)
                for x in reply.leases
            ]
            (settled,), next_reply = await storage.settle(ended, claim(1, **both))
            assert settled.state is JobState.SUCCEEDED
            assert next_reply is not None
            assert [lease.id for lease in next_reply.leases] == ["b"]
            (lease,) = next_reply.leases
            alone = claim(1, queues=("held",))
            ended = [Settlement(queue="free", id="b", token=lease.token, outcome=Outcome.SUCCEED)]
            (settled,), next_reply = await storage.settle(ended, alone)
            assert settled.state is JobState.SUCCEEDED
            assert next_reply is not None
            assert next_reply.leases == ()
        leases = (await storage.claim(claim(2, **both))).leases
        assert [(lease.queue, lease.id) for lease in leases] == [("held", "a"), ("free", "c")]


async def test_leases_of_other_queues_are_renewed(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    async with open_store(lock_timeout="100ms") as storage:
        await storage.submit(
            [new_job("a", queue=queue, max_attempts=9) for queue in ("held", "free")]
        )
        leases = (await storage.claim(claim(2, queues=("held", "free"), lease=0.001))).leases
        refs = [LeaseRef(lease.queue, lease.id, lease.token) for lease in leases]
        async with held(server_url, storage, "held"):
            with pytest.raises(Unavailable, match="lock_timeout"):
                await storage.renew(refs, lease=1_000.0)
        await storage.sweep(SweepRequest())
        assert await _state(storage, "free", "a") is JobState.RUNNING
        assert await _state(storage, "held", "a") is JobState.QUEUED


async def test_a_queue_that_may_only_be_busy_is_waited_for_again(
    server_url: str, open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job(queue="held"), new_job(queue="free")])
        numbers = await storage._names.find(["held", "free"])
        queues = [numbers["held"], numbers["free"]]
        passed = Held(storage._database)
        async with held(server_url, storage, "held"):
            passed.note([numbers["held"]])
            for _ in range(_PASSED):
                assert await passed.among(queues) == [numbers["free"]]
            assert await passed.among(queues) == queues
            passed.note([numbers["held"]])
            assert await passed.among(queues) == [numbers["free"]]
        assert await passed.among(queues) == queues
        assert passed.known == []


async def test_sweeps_and_callers_of_all_queues_get_along(
    open_store: Open, new_job: Callable[..., NewJob], claim: Callable[..., ClaimRequest]
) -> None:
    """Queues that are busy all the time are swept for all that."""
    names = [f"q{number}" for number in range(6)]
    async with open_store() as storage, open_store() as sweeper:
        await storage.submit([new_job("lapses", queue=name) for name in names])
        await storage.claim(claim(6, queues=tuple(names), lease=0.001))

        async def work(name: str) -> None:
            while await _state(storage, name, "lapses") is JobState.RUNNING:
                await storage.submit([new_job(queue=name)])

        working = asyncio.gather(*(work(name) for name in names for _ in range(2)))
        while not working.done():
            await sweeper.sweep(SweepRequest())
        await working
