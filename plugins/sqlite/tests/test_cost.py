"""What a claim and a settlement cost does not depend on what else is stored."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import pytest

from plugq.job import JobRef, Outcome, Progress
from plugq.protocols import (
    Budget,
    Cancel,
    ClaimReply,
    ClaimRequest,
    Configure,
    Drain,
    Grant,
    Holder,
    Lease,
    LeaseRef,
    NewJob,
    Purge,
    QueueSettings,
    Redrive,
    RegisterChange,
    Reprioritise,
    Resume,
    Retain,
    Settlement,
    SweepRequest,
    UniqueKey,
    UniqueMode,
)
from plugq_sqlite import SqliteStorage
from plugq_sqlite._reads import _STATS
from plugq_sqlite._transaction import Transaction

OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]
Claims = Callable[..., ClaimRequest]
Succeed = Callable[[Sequence[Lease]], list[Settlement]]


class Steps:
    """Counts the virtual machine steps of the writing connection."""

    def __init__(self, storage: SqliteStorage) -> None:
        self.storage = storage
        self.count = 0

    def _step(self) -> int:
        self.count += 1
        return 0

    async def of(self, *calls: Callable[[], Any]) -> list[int]:
        await self.storage._writer.call(lambda tx: tx.db.set_progress_handler(self._step, 1))
        counts = []
        for call in calls:
            before = self.count
            await call()
            counts.append(self.count - before)
        await self.storage._writer.call(lambda tx: tx.db.set_progress_handler(None, 1))
        return counts


def fill(tx: Transaction, prefix: str, count: int, **columns: object) -> None:
    """Store many jobs at once, quicker than by submitting them."""
    queue = tx.make_queue("q").id
    task = tx.task("t")
    columns = {"nprio": 0, **columns}
    names = "".join(f", {name}" for name in columns)
    statement = (
        "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < ?) "
        "INSERT INTO job (seq, namespace, queue, id, task, ready_at, max_attempts, "
        f"submitted_at, id_ttl, origin, submission{names}) "
        f"SELECT ? + x, ?, ?, ? || x, ?, ?, 1, ?, 600, '', x'00'{', ?' * len(columns)} FROM n"
    )
    tx.db.execute(
        statement,
        (
            count,
            tx.sequence,
            tx.namespace,
            queue,
            prefix,
            task,
            tx.now,
            tx.now,
            *columns.values(),
        ),
    )
    tx.sequence += count


async def cycle(
    storage: SqliteStorage, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> list[int]:
    """Return the steps of claiming 50 of 100 jobs and of settling them."""
    await storage.submit([new_job() for _ in range(100)])
    # The first cycle makes the counters' and the worker's rows.
    first = await storage.claim(claim(50))
    await storage.settle(succeed(first.leases))
    leases: list[Lease] = []

    async def take() -> None:
        leases.extend((await storage.claim(claim(50))).leases)

    async def end() -> None:
        await storage.settle(succeed(leases))

    counts = await Steps(storage).of(take, end)
    assert len(leases) == 50
    return counts


async def test_a_claim_and_a_settlement_take_few_steps_a_job(
    open_store: OpenStore, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> None:
    async with open_store() as storage:
        assert max(await cycle(storage, new_job, claim, succeed)) / 50 < 700


def park(tx: Transaction, prefix: str, lanes: int) -> None:
    """Park lanes with a job each, of a time that does not come."""
    queue = tx.make_queue("q").id
    fill(tx, prefix, lanes, state=1, eligible=0)
    tx.db.execute("UPDATE job SET lane = id WHERE queue = ? AND id LIKE ?", (queue, f"{prefix}%"))
    tx.db.execute(
        "INSERT INTO lane (queue, name, running, heads, parked_until) "
        "SELECT queue, lane, 0, 0, 9e9 + seq FROM job WHERE queue = ? AND id LIKE ?",
        (queue, f"{prefix}%"),
    )


async def bargain(storage: SqliteStorage, claim: Claims, *, park: bool = False) -> ClaimReply:
    """Claim 50 jobs of a limited queue, as a broker does: what is wanted, then with budgets."""
    now = (reply := await storage.claim(claim(50))).now
    (want,) = reply.wants
    retry_at = now + 3600.0 if park else None
    budgets = tuple(
        Budget(state.lane, state.version, (b"s",) * (50 if state.lane is None else 1), 60, retry_at)
        for state in want.states
    )
    grant = Grant(queue="q", revision=want.revision, at=now, budgets=budgets)
    return await storage.claim(claim(50, grants=(grant,)))


async def limited_cycle(
    storage: SqliteStorage, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> list[int]:
    """Return the steps of claiming jobs of 50 lanes with budgets, and of settling them."""
    leases: list[Lease] = []

    async def take() -> None:
        leases[:] = (await bargain(storage, claim)).leases

    async def end() -> None:
        await storage.settle(succeed(leases))

    for _ in range(2):
        await storage.submit([new_job(lane=f"lane-{number}") for number in range(50)])
        counts = await Steps(storage).of(take, end)
        assert len(leases) == 50
    return counts


@pytest.mark.parametrize("many", ["lanes", "jobs"])
async def test_a_limited_claim_costs_the_same_beside_much_that_is_parked(
    many: str,
    open_store: OpenStore,
    new_job: NewJobs,
    claim: Claims,
    succeed: Succeed,
) -> None:
    async with open_store() as storage:
        settings = QueueSettings(queue="q", limits=b"l", lane_limits=b"l")
        await storage.edit(Configure(settings=(settings,)))

        def more(prefix: str, lanes: int, jobs: int) -> Callable[[Transaction], None]:
            def run(tx: Transaction) -> None:
                park(tx, prefix, lanes)
                fill(tx, f"in-{prefix}", jobs, state=1, eligible=0, lane=f"{prefix}1")

            return run

        await storage._writer.call(more("few", 100, 100))
        few = await limited_cycle(storage, new_job, claim, succeed)
        added = (10_000, 100) if many == "lanes" else (100, 100_000)
        await storage._writer.call(more("many", *added))
        assert await limited_cycle(storage, new_job, claim, succeed) == pytest.approx(few, rel=0.03)


async def test_a_lane_that_is_refused_is_walked_over_once(
    open_store: OpenStore, new_job: NewJobs, claim: Claims
) -> None:
    async with open_store() as storage:
        settings = QueueSettings(queue="q", lane_limits=b"l")
        await storage.edit(Configure(settings=(settings,)))
        await storage.submit([new_job(lane=f"lane-{number}") for number in range(50)])
        await storage.submit([new_job(lane=f"lane-{number}") for number in range(50)])
        wanted = await Steps(storage).of(lambda: storage.claim(claim(50)))
        assert len((await bargain(storage, claim, park=True)).leases) == 50
        parked = await Steps(storage).of(lambda: storage.claim(claim(50)))
        assert parked[0] < wanted[0] / 5


async def test_parking_a_lane_of_which_any_number_may_run_costs_the_same_beside_many_of_its_jobs(
    open_store: OpenStore, new_job: NewJobs, claim: Claims
) -> None:
    async with open_store() as storage:
        settings = QueueSettings(queue="q", lane_max_running=100_000, lane_limits=b"l")
        await storage.edit(Configure(settings=(settings,)))

        async def cycle(prefix: str, behind: int) -> list[int]:
            await storage.submit([new_job(lane="a") for _ in range(500)])
            await storage._writer.call(
                lambda tx: fill(tx, prefix, behind, state=1, eligible=0, lane="a")
            )

            async def let_in() -> None:
                await storage._writer.call(
                    lambda tx: tx.db.execute("UPDATE lane SET parked_until = 0")
                )
                await storage.claim(claim(0))

            async def take() -> None:
                assert len((await bargain(storage, claim, park=True)).leases) == 1

            return await Steps(storage).of(take, let_in)

        await cycle("first", 100)
        few = await cycle("few", 100)
        assert await cycle("many", 50_000) == pytest.approx(few, rel=0.05)


async def test_nothing_is_left_of_lanes_that_were_parked(
    open_store: OpenStore, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> None:
    def left(tx: Transaction) -> list[Any]:
        return tx.db.execute("SELECT name FROM lane UNION ALL SELECT lane FROM budget").fetchall()

    def later(tx: Transaction) -> None:
        tx.db.execute("UPDATE lane SET parked_until = 1")
        tx.db.execute("UPDATE budget SET expires = 1")

    async with open_store() as storage:
        settings = QueueSettings(queue="q", lane_limits=b"l")
        await storage.edit(Configure(settings=(settings,)))
        await storage.submit([new_job(lane=f"lane-{number}") for number in range(50)])
        await storage.settle(succeed((await bargain(storage, claim, park=True)).leases))
        assert len(await storage._writer.call(left)) == 100
        await storage._writer.call(later)
        assert (await storage.sweep(SweepRequest(limit=20))).next_in == 0
        while (await storage.sweep(SweepRequest(limit=20))).next_in == 0:
            pass
        assert await storage._writer.call(left) == []


async def test_an_unlimited_claim_runs_no_statement_about_budgets(
    open_store: OpenStore, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> None:
    statements: set[str] = set()
    async with open_store() as storage:
        await storage.submit([new_job(lane="a"), new_job(), new_job(lane="a")])
        await storage._writer.call(lambda tx: tx.db.set_trace_callback(statements.add))
        leases = (await storage.claim(claim(5))).leases
        await storage.settle(succeed(leases), claim(5))
        await storage._writer.call(lambda tx: tx.db.set_trace_callback(None))
    assert statements
    assert not [text for text in statements if "budget" in text or "parked_until <=" in text]


async def test_no_statement_of_the_writer_scans_jobs(
    open_store: OpenStore, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> None:
    statements: set[str] = set()
    async with open_store() as storage:
        await storage._writer.call(lambda tx: tx.db.set_trace_callback(statements.add))
        await everything(storage, new_job, claim, succeed)
        await storage._writer.call(lambda tx: tx.db.set_trace_callback(None))

        def plans(tx: Transaction) -> dict[str, list[str]]:
            return {text: _plan(tx.db, text) for text in statements if _has_plan(text)}

        found = await storage._writer.call(plans)
    assert len(found) > 60
    for text, plan in found.items():
        for step in plan:
            scan = r"SCAN (job|body|failure|lane|unique_key|batch|tally|budget)\b"
            assert not re.match(scan, step), (text, plan)


async def test_a_batch_costs_the_same_whatever_else_is_counted(
    open_store: OpenStore, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> None:
    async with open_store() as storage:

        async def life(batch: str) -> None:
            await storage.submit([new_job(batch=batch) for _ in range(20)])
            await storage.settle(succeed((await storage.claim(claim(20))).leases))

        async def others(number: int) -> None:
            await storage.submit([new_job(batch=f"{n}", delay=60.0) for n in range(number)])

        await life("first")
        steps = Steps(storage)
        few = await steps.of(lambda: life("a"), lambda: storage.sweep(SweepRequest()))
        await others(3_000)
        many = await steps.of(lambda: life("b"), lambda: storage.sweep(SweepRequest()))
        assert many == pytest.approx(few, rel=0.05)


def stats_steps(tx: Transaction) -> int:
    """Return the steps of the statement that answers ``stats``."""
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    tx.db.set_progress_handler(step, 1)
    tx.db.execute(_STATS, (tx.namespace,)).fetchall()
    tx.db.set_progress_handler(None, 1)
    return steps


async def test_stats_cost_no_more_for_many_ready_jobs_of_several_priorities(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        priorities = (9, 0, -3)
        await storage.submit([new_job(priority=priority) for priority in priorities])

        few = await storage._writer.call(stats_steps)
        for priority in priorities:
            await storage._writer.call(
                partial(
                    fill,
                    prefix=f"{priority}-",
                    count=10_000,
                    state=1,
                    eligible=1,
                    nprio=-priority,
                )
            )
        many = await storage._writer.call(stats_steps)
        assert many == pytest.approx(few, rel=0.02)


async def test_stats_cost_what_tasks_and_priorities_cost_and_not_their_product(
    open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:

        async def added(jobs: list[NewJob]) -> int:
            before = await storage._writer.call(stats_steps)
            await storage.submit(jobs)
            return await storage._writer.call(stats_steps) - before

        few = await added([new_job(task=f"few-{number}") for number in range(100)])
        await storage.submit([new_job(priority=number) for number in range(500)])
        many = await added([new_job(task=f"many-{number}") for number in range(100)])
        assert many < 2 * few


def _has_plan(text: str) -> bool:
    return text.lstrip().split()[0] in {"SELECT", "INSERT", "UPDATE", "DELETE", "WITH"}


def _plan(db: sqlite3.Connection, text: str) -> list[str]:
    return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {text}")]


async def everything(
    storage: SqliteStorage, new_job: NewJobs, claim: Claims, succeed: Succeed
) -> None:
    """Make the writer run (nearly) every statement that it has."""
    settings = QueueSettings(queue="q", max_running=50, lane_max_running=2, max_length=1_000)
    await storage.edit(Configure(settings=(settings,)))
    watch = storage.watch("p")
    await anext(watch)
    await storage.claim(claim(1, peer="p"))
    throttle = UniqueKey(UniqueMode.THROTTLE, "th", 60.0)
    held = UniqueKey(UniqueMode.UNTIL_FINISHED, "fin")
    first = UniqueKey(UniqueMode.UNTIL_STARTED, "start")
    await storage.submit(
        [
            *(new_job(f"plain-{number}", origin="p") for number in range(5)),
            *(new_job(f"lane-{number}", lane="a", max_attempts=3) for number in range(5)),
            new_job("urgent", lane="a", priority=5),
            new_job("later", delay=60.0, batch="b"),
            new_job("due", delay=0.000001),
            new_job("gone", deadline_in=0.000001),
            new_job("throttled", unique=throttle),
            new_job("held", unique=held),
            new_job("first", unique=first),
        ],
    )
    await storage.submit([new_job("again", unique=held), new_job("held", unique=held)])
    leases = list((await storage.claim(claim(30, peer="p"))).leases)
    await storage.renew(
        [LeaseRef(lease.queue, lease.id, lease.token, Progress(current=1.0)) for lease in leases],
        lease=30.0,
        holder=Holder("w", 1),
    )
    running = leases.pop()
    await storage.edit(Cancel(refs=(JobRef("q", running.id), JobRef("q", "later"))))
    outcomes = [Outcome.RETRY, Outcome.FAIL, Outcome.SNOOZE, Outcome.SKIP, Outcome.RELEASE]
    ended = [
        Settlement(queue=lease.queue, id=lease.id, token=lease.token, outcome=outcome, delay=0.0)
        for lease, outcome in zip(leases, outcomes, strict=False)
    ]
    await storage.settle(
        [*ended, *succeed(leases[len(ended) :])],
        claim(10, peer="p", lease=0.0),
    )
    await storage.edit(Redrive(refs=tuple(JobRef("q", lease.id) for lease in leases)))
    named = tuple(JobRef("q", id) for id in ("lane-3", "lane-4", "throttled", "held", "plain-0"))
    await storage.edit(Reprioritise(refs=named, priority=3))
    await storage.edit(Retain(refs=named, ttl=60.0))
    await storage.edit(Drain(queues=("q",)))
    await storage.edit(Resume(queues=("q",)))
    await storage.edit(Purge(refs=tuple(JobRef("q", lease.id) for lease in leases)))
    await storage.swap([RegisterChange(key="k", expect=0, value=b"v", ttl=0.0)])
    await storage.sweep(SweepRequest())
    limited = QueueSettings(queue="q", limits=b"l", lane_limits=b"l")
    await storage.edit(Configure(settings=(limited,)))
    await storage.submit([new_job(), *(new_job(lane=lane) for lane in "xxyy")])
    assert (await bargain(storage, claim, park=True)).spent
    await storage._writer.call(lambda tx: tx.db.execute("UPDATE queue SET parked_until = 0"))
    await storage.claim(claim(0))
    await storage.edit(Configure(settings=(settings,)))
    await storage.sweep(SweepRequest())
    await watch.aclose()
