"""What calls cost: round trips to the server, and what the server reads for them."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import asyncpg
import pytest

from plugq.broker.budgets import Budgets
from plugq.job import AttemptRecord, JobRecord, JobRef, JobState, Outcome
from plugq.limiters import RateLimiter, RateOptions, pack_limits
from plugq.protocols import (
    ClaimRequest,
    Lease,
    LeaseRef,
    NewJob,
    PluginContext,
    Settlement,
    SubmitStatus,
    SweepRequest,
    UniqueKey,
    UniqueMode,
)
from plugq.protocols.edits import Cancel, Configure, EditStatus, Purge, QueueSettings, Redrive
from plugq_postgres import PostgresStorage, migration_sql

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]


def succeeded(lease: Lease) -> Settlement:
    return Settlement(
        queue=lease.queue,
        id=lease.id,
        token=lease.token,
        outcome=Outcome.SUCCEED,
        result=b"null",
    )


def counted(storage: PostgresStorage) -> list[str]:
    """Return a list to which each statement is added that the storage sends from now on."""
    sent: list[str] = []
    once = storage._database._once

    async def counting(run: Any, *, writes: bool) -> Any:
        async def logged(db: Any) -> Any:
            logger = lambda record: sent.append(record.query)  # noqa: E731
            db.add_query_logger(logger)
            try:
                return await run(db)
            finally:
                db.remove_query_logger(logger)

        return await once(logged, writes=writes)

    storage._database._once = counting  # type: ignore[method-assign]
    return sent


async def test_a_batch_costs_a_round_trip_for_each_verb(
    open_store: Open, new_job: Callable[..., NewJob], claim: Callable[..., ClaimRequest]
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job("first")])
        await storage.settle([], claim(0))
        sent = counted(storage)
        await storage.submit([new_job() for _ in range(100)])
        leases = (await storage.claim(claim(100))).leases
        await storage.settle([succeeded(lease) for lease in leases])
        assert len(leases) == 100
        assert len(sent) == 3, sent


async def test_calls_that_gather_share_a_round_trip(
    open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job()])
        sent = counted(storage)
        await asyncio.gather(*(storage.submit([new_job()]) for _ in range(200)))
        assert len(sent) <= 3, sent


async def test_a_claim_of_a_limited_queue_holds_it_for_seven_round_trips(
    open_store: Open, new_job: Callable[..., NewJob], claim: Callable[..., ClaimRequest]
) -> None:
    """However many lanes its jobs have; the first two open the transaction."""
    options = RateOptions(limit=100_000, per=1.0)
    limits = pack_limits([("rate", {"limit": 100_000, "per": 1.0})])
    context = PluginContext(namespace="x")
    for settings in (
        QueueSettings(queue="q", limits=limits),
        QueueSettings(queue="q", limits=limits, lane_limits=limits),
    ):
        async with open_store(namespace=uuid.uuid4().hex) as storage:
            await storage.edit(Configure((settings,)))
            await storage.submit([new_job(lane=f"lane-{n}") for n in range(50)])
            budgets = Budgets(lambda _: RateLimiter(options, context))
            sent = counted(storage)
            taken, costs = 0, []
            # A grant is too old for a claim that is served late.
            while taken < 30:
                sent.clear()
                asked = time.monotonic()
                request = budgets.prepare(claim(10), asked)
                reply = await storage.claim(request)
                budgets.learn(request, reply, asked, time.monotonic())
                taken += len(reply.leases)
                costs.append(len(sent))
            # The first one found out that the queue is limited, by a call of its own.
            assert max(costs[1:]) <= 9, sent


@pytest.mark.parametrize("pinned", [True, False])
async def test_no_verb_reads_a_whole_table(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
    pinned: bool,
) -> None:
    """The functions pin their plans; without that small tables are read as a whole."""
    schema = f"plans_{uuid.uuid4().hex[:12]}"
    sql = migration_sql(schema)
    db = await asyncpg.connect(server_url)
    try:
        await db.execute(sql if pinned else sql.replace("SET enable_seqscan = off", ""))
        async with open_store(schema=schema):
            pass
        before = await _scans(db, schema)
        async with open_store(schema=schema) as storage:
            for _ in range(8):
                await _live(storage, new_job, claim)
        after = await _scans(db, schema, reads=True)
        whole = [
            table for table in ("job", "done") if after[table] > before.get(table, after[table])
        ]
        assert not whole if pinned else whole
    finally:
        await db.execute(f"DROP SCHEMA {schema} CASCADE")
        await db.close()


async def _live(
    storage: PostgresStorage,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    mark = uuid.uuid4().hex
    jobs = [new_job(f"{mark}-{n}", lane=f"lane-{n % 3}", batch="b") for n in range(10)]
    jobs += [new_job(delay=3600.0, deadline_in=7200.0) for _ in range(10)]
    key = UniqueKey(UniqueMode.UNTIL_FINISHED, mark)
    jobs += [new_job(f"{mark}-unique", unique=key), new_job(unique=key)]
    await storage.submit(jobs)
    await storage.submit([new_job() for _ in range(20)])
    leases = (await storage.claim(claim(20))).leases
    await storage.renew([LeaseRef(one.queue, one.id, one.token) for one in leases], lease=30.0)
    _, reply = await storage.settle([succeeded(lease) for lease in leases], claim(20))
    assert reply is not None
    await storage.settle([succeeded(lease) for lease in reply.leases])
    await storage.get([JobRef("q", f"{mark}-{n}") for n in range(10)], body=True)
    refs = (JobRef("q", jobs[10].id),)
    for edit in (Cancel(refs), Redrive(refs), Cancel(refs), Purge(refs)):
        await storage.edit(edit)
    await storage.sweep(SweepRequest())


async def _scans(db: asyncpg.Connection, schema: str, *, reads: bool = False) -> dict[str, int]:
    """Return how often each table was read as a whole, once the server has counted it."""
    while True:
        rows = await db.fetch(
            "SELECT relname, seq_scan, n_tup_ins FROM pg_stat_user_tables WHERE schemaname = $1",
            schema,
        )
        if not reads or any(row["n_tup_ins"] for row in rows if row["relname"] == "done"):
            return {row["relname"]: row["seq_scan"] for row in rows}
        await asyncio.sleep(0.05)


BLOCKS = """
    SELECT sum(heap_blks_hit + heap_blks_read + coalesce(idx_blks_hit, 0)
        + coalesce(idx_blks_read, 0))::bigint
    FROM pg_statio_user_tables WHERE schemaname = 'plugq'
"""


async def _blocks(storage: PostgresStorage) -> int:
    """Return how many blocks the server has looked at, those of what is dead as well."""
    pool = storage._database._pool
    assert pool is not None
    for holder in pool._holders:
        if holder.is_connected() and holder.is_idle():
            await holder._con.fetchval("SELECT pg_stat_force_next_flush()")
    counted: int = await pool.fetchval(BLOCKS)
    return counted


async def _costs(
    storage: PostgresStorage,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> dict[str, int]:
    """Return the least blocks that each verb has looked at."""
    least: dict[str, int] = {}

    async def of(verb: str, call: Awaitable[Any]) -> Any:
        before = await _blocks(storage)
        answer = await call
        cost = await _blocks(storage) - before
        least[verb] = min(cost, least.get(verb, cost))
        return answer

    for _ in range(6):
        jobs = [new_job() for _ in range(10)]
        await of("submit", storage.submit(jobs))
        leases = (await of("claim", storage.claim(claim(10)))).leases
        refs = [LeaseRef(one.queue, one.id, one.token) for one in leases]
        await of("renew", storage.renew(refs, lease=30.0))
        await of("settle", storage.settle([succeeded(lease) for lease in leases]))
        await of("get", storage.get([JobRef(job.queue, job.id) for job in jobs]))
        await of("load", storage.load(["k"]))
        await of("sweep", storage.sweep(SweepRequest()))
    return least


async def test_calls_cost_the_same_however_many_queues_there_are(
    own_server: Callable[..., AbstractContextManager[Any]],
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    number = int(os.environ.get("COST_QUEUES", "1000"))
    with own_server("fsync=off", "autovacuum=off") as server:
        async with open_store(url=server.url, statement_timeout="60s") as storage:
            db = await asyncpg.connect(server.url)
            major = db.get_server_version().major
            await db.close()
            if major < 15:
                pytest.skip("older servers count at their leisure")
            few = await _costs(storage, new_job, claim)
            for start in range(0, number, 500):
                await storage.submit([new_job(queue=f"q{start + n}") for n in range(500)])
            many = await _costs(storage, new_job, claim)
    print(few, many)  # noqa: T201 - shown where it fails
    grown = {verb: (few[verb], cost) for verb, cost in many.items() if cost > 2 * few[verb] + 20}
    assert not grown


#: Jobs that have ended, and jobs that are due later, as they lie in the tables.
ENDED = """
    INSERT INTO plugq.done (seq, place, namespace, queue, task, state, eligible, priority, ready_at,
        max_attempts, submitted_at, finished_at, expires_at, tidy_at, id_ttl, id, submission, body,
        result)
    SELECT n, n, q.namespace, q.id, t.id, 3, 0, 0, q.now, 4, q.now, q.now, q.now + 86400,
        q.now + 86400, 600, convert_to('done-' || n, 'UTF8'), '', '{}', 'null'
    FROM (SELECT nextval('plugq.job_sequence') AS n FROM generate_series(1, $1)) s,
        plugq.queue q, plugq.task t WHERE q.name = 'q' LIMIT $1
"""
DELAYED = """
    INSERT INTO plugq.job (seq, place, namespace, queue, task, state, eligible, priority, ready_at,
        max_attempts, submitted_at, id_ttl, id, submission, body)
    SELECT n, n, q.namespace, q.id, t.id, 0, 0, 0, q.now + 86400, 4, q.now, 600,
        convert_to('delayed-' || n, 'UTF8'), '', '{}'
    FROM (SELECT nextval('plugq.job_sequence') AS n FROM generate_series(1, $1)) s,
        plugq.queue q, plugq.task t WHERE q.name = 'q' LIMIT $1
"""


async def _drain(
    storage: PostgresStorage,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
    number: int,
) -> tuple[list[float], float]:
    """Submit, claim and settle by the hundred.

    Return how many seconds each claim took, and how many blocks one of the last was about.
    """
    took: list[float] = []
    blocks: list[int] = []
    for start in range(0, number, 2_000):
        for _ in range(min(20, (number - start) // 100)):
            await storage.submit([new_job() for _ in range(100)])
        counting = start + 2_000 >= number
        while True:
            before = await _blocks(storage) if counting else 0
            began = time.perf_counter()
            leases = (await storage.claim(claim(100))).leases
            took.append(time.perf_counter() - began)
            if not leases:
                took.pop()
                break
            if counting:
                blocks.append(await _blocks(storage) - before)
            await storage.settle([succeeded(lease) for lease in leases])
    return took[-200:], statistics.median(blocks)


@pytest.mark.soak
@pytest.mark.timeout(0)
async def test_what_is_stored_and_what_has_gone_through_costs_a_claim_nothing(
    own_server: Callable[..., AbstractContextManager[Any]],
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    """With 1,000,000 ended and 100,000 delayed jobs, and once 300,000 more were vacuumed.

    Told by the blocks that the server looks at; how long it took, and what dead rows cost until
    they are vacuumed, is printed.
    """
    churn = int(os.environ.get("SOAK_JOBS", "300000"))
    settings = ("fsync=off", "autovacuum=off", "max_wal_size=4GB", "shared_buffers=512MB")
    with own_server(*settings) as server:
        async with open_store(url=server.url, statement_timeout="60s") as storage:
            db = await asyncpg.connect(server.url)
            if db.get_server_version().major < 15:
                pytest.skip("older servers count at their leisure")
            await _drain(storage, new_job, claim, 2_000)
            empty = await _drain(storage, new_job, claim, 10_000)
            await db.execute(ENDED, 1_000_000, timeout=600)
            await db.execute(DELAYED, 100_000, timeout=600)
            full = await _drain(storage, new_job, claim, 10_000)
            began = time.perf_counter()
            after = await _drain(storage, new_job, claim, churn)
            rate = churn / (time.perf_counter() - began)
            await db.execute("VACUUM plugq.job, plugq.queue, plugq.tally, plugq.pace")
            clean = await _drain(storage, new_job, claim, 10_000)
            await db.close()
    times = [f"{statistics.median(each) * 1e3:.1f} ms" for each, _ in (empty, full, after, clean)]
    blocks = [count for _, count in (empty, full, after, clean)]
    print(f"a claim: {times}, {blocks} blocks; {rate:.0f} jobs/s")  # noqa: T201
    assert blocks[1] < 1.5 * blocks[0]
    assert blocks[3] < 1.5 * blocks[0]


async def test_what_an_operator_does_to_many_jobs_costs_as_many_round_trips_as_for_one(
    open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    """Restoring with histories, tokens and many queues, and retrying with keys and batches."""
    failure = AttemptRecord(attempt=1, code="error", type="E", message="m")

    def records(mark: str, count: int) -> list[JobRecord]:
        return [
            JobRecord(
                queue=f"q{n % 20}",
                id=f"{mark}{n}",
                task="t",
                state=JobState.FAILED if n % 2 else JobState.QUEUED,
                sequence=0,
                token=n,
                history=(failure, failure),
                body=b"{}",
            )
            for n in range(count)
        ]

    async with open_store() as storage:
        # Once before, so that all queues have their numbers.
        await storage.restore(records("first", 200))
        sent = counted(storage)
        await storage.restore(records("few", 2))
        few = len(sent)
        sent.clear()
        await storage.restore(records("many", 200))
        assert len(sent) <= few, sent
        (job,) = await storage.get([JobRef("q3", "many3")])
        assert job is not None
        assert [(one.code, one.message) for one in job.history] == [("error", "m")] * 2

        async def failed(mark: str, count: int) -> tuple[JobRef, ...]:
            ids = [f"{mark}{n}" for n in range(count)]
            jobs = [
                new_job(
                    id_,
                    batch=f"b{n % 3}",
                    unique=UniqueKey(UniqueMode.UNTIL_FINISHED, id_),
                    lane="x",
                )
                for n, id_ in enumerate(ids)
            ]
            await storage.submit(jobs)
            refs = tuple(JobRef("q", id_) for id_ in ids)
            await storage.edit(Cancel(refs))
            return refs

        one, many = await failed("one", 1), await failed("hundred", 100)
        sent.clear()
        await storage.edit(Redrive(one))
        few = len(sent)
        sent.clear()
        assert {reply.status for reply in await storage.edit(Redrive(many))} == {EditStatus.DONE}
        assert len(sent) <= few, sent
        (counts,) = await storage.batches(["b1"])
        assert counts is not None
        assert (counts.counts["queued"], counts.counts["cancelled"]) == (33, 0)
        (other,) = await storage.submit(
            [new_job(unique=UniqueKey(UniqueMode.UNTIL_FINISHED, "one0"))]
        )
        assert other.status is SubmitStatus.DUPLICATE
