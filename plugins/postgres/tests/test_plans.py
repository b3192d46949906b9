"""How the server finds what each verb asks for, whatever its statistics say.

The plans of every statement, those inside functions too, are told by ``auto_explain``.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg
import pytest

from plugq.job import JobRef, Outcome
from plugq.protocols import (
    ClaimRequest,
    Holder,
    Lease,
    LeaseRef,
    NewJob,
    Settlement,
    SweepRequest,
    UniqueKey,
    UniqueMode,
)
from plugq.protocols.edits import Cancel, Purge
from plugq_postgres import PostgresStorage

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]

#: How many jobs a call is about, and how many rows of a table a statement may look at for it.
BATCH = 20
MOST = 3 * BATCH
#: Tables that have a row for each job, queue, lane or key.
LARGE = frozenset(
    {"job", "done", "queue", "lane", "unique_key", "budget", "batch", "register", "inbox"}
)

TELL = """
LOAD 'auto_explain';
SET auto_explain.log_min_duration = 0;
SET auto_explain.log_nested_statements = on;
SET auto_explain.log_analyze = on;
SET auto_explain.log_timing = off;
SET auto_explain.log_format = json;
SET auto_explain.log_level = notice;
"""

#: The indexes by which each verb finds its jobs.
PINNED: dict[str, set[str]] = {
    "submit": {"job_id", "done_id", "queue_now"},
    "submit in lanes": {"job_id", "done_id", "job_lane", "job_head", "lane_pkey", "batch_pkey"},
    "submit for later": {"job_id", "done_id"},
    "submit with a key": {"job_id", "done_id", "unique_key_pkey"},
    "claim": {"job_ready", "job_due", "job_worker"},
    "renew": {"job_id", "job_worker"},
    "settle and claim": {"job_id", "job_ready", "job_due", "job_worker", "job_lane"},
    "settle": {"job_id"},
    "get": {"queue_namespace_name_key", "job_id", "done_id"},
    "sweep": {
        *("job_soon", "job_deadline", "job_overrun", "job_lease", "done_tidy", "unique_until"),
        *("budget_expires", "lane_soon", "queue_parked", "register_expires", "batch_expires"),
    },
    "cancel": {"job_id", "done_id"},
    "purge": {"done_pkey"},
    "submit within": {"job_id", "done_id", "inbox_id", "queue_namespace_name_key"},
    "submit within with a key": {"job_id", "done_id", "unique_key_pkey", "inbox_id", "inbox_key"},
    "look and move in": {"inbox_pkey", "job_id", "done_id"},
    "claim and move in": {"inbox_pkey", "job_id", "done_id", "job_ready"},
}

#: The table, the index, the rows and the statement of a scan.
Scan = tuple[str, str | None, float, str]


class Plans:
    """The plans of what ran since :meth:`clear`."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def hear(self, _: Any, message: Any) -> None:
        self._said.append(message.message)

    def clear(self) -> None:
        self._said.clear()

    def scans(self) -> Iterator[Scan]:
        """Return the table, the index and the rows of each scan, and the statement."""
        for said in self._said:
            if "plan:" not in said:
                continue
            told = json.loads(said[said.index("{") :])
            nodes = [told["Plan"]]
            while nodes:
                node = nodes.pop()
                nodes += node.get("Plans", ())
                # The rows of a bitmap are those of its index, told beside them.
                table = node.get("Relation Name")
                kind = node["Node Type"]
                if "Scan" in kind and table in LARGE:
                    rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
                    rows += node.get("Rows Removed by Index Recheck", 0)
                    yield (
                        table,
                        None if kind == "Seq Scan" else node.get("Index Name", ""),
                        rows * node["Actual Loops"],
                        " ".join(told["Query Text"].split()),
                    )


@asynccontextmanager
async def telling(url: str, plans: Plans) -> AsyncIterator[asyncpg.Pool]:
    """Make a pool whose one connection tells its plans."""

    async def begin(db: asyncpg.Connection) -> None:
        await db.execute(TELL)

    async def listen(db: asyncpg.Connection) -> None:
        db.add_log_listener(plans.hear)

    async with asyncpg.create_pool(
        url, min_size=1, max_size=1, init=begin, setup=listen, reset=_leave
    ) as pool:
        yield pool


async def _leave(_: asyncpg.Connection) -> None:
    """Let the settings stand."""


def succeeded(lease: Lease) -> Settlement:
    return Settlement(
        queue=lease.queue,
        id=lease.id,
        token=lease.token,
        outcome=Outcome.SUCCEED,
        result=b"null",
    )


async def live(
    storage: PostgresStorage,
    plans: Plans,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> dict[str, list[Scan]]:
    """Make each call once, and return what it has scanned."""
    told: dict[str, list[Scan]] = {}

    async def of(verb: str, call: Awaitable[Any]) -> Any:
        plans.clear()
        answer = await call
        told[verb] = list(plans.scans())
        return answer

    def jobs(**fields: Any) -> list[NewJob]:
        return [new_job(priority=1, **fields) for _ in range(BATCH)]

    await of("submit", storage.submit(jobs()))
    await of("submit in lanes", storage.submit(jobs(lane="l", batch="b")))
    await of("submit for later", storage.submit(jobs(delay=3600.0, deadline_in=7200.0)))
    unique = UniqueKey(UniqueMode.THROTTLE, uuid.uuid4().hex, ttl=3600.0)
    await of("submit with a key", storage.submit([new_job(unique=unique)]))
    leases = (await of("claim", storage.claim(claim(BATCH)))).leases
    refs = [LeaseRef(one.queue, one.id, one.token) for one in leases]
    holder = Holder(worker="w", number=0)
    await of("renew", storage.renew(refs, lease=30.0, holder=holder))
    ended = [succeeded(lease) for lease in leases]
    _, reply = await of("settle and claim", storage.settle(ended, claim(BATCH)))
    await of("settle", storage.settle([succeeded(lease) for lease in reply.leases]))
    found = [JobRef(lease.queue, lease.id) for lease in leases]
    await of("get", storage.get(found))
    await of("sweep", storage.sweep(SweepRequest()))
    job = new_job(delay=60.0)
    await storage.submit([job])
    await of("cancel", storage.edit(Cancel((JobRef(job.queue, job.id),))))
    await of("purge", storage.edit(Purge((JobRef(job.queue, job.id),))))
    async with storage._database._pool.acquire() as db:  # type: ignore[union-attr]
        others = db.transaction()
        await others.start()
        await storage.submit_within(db, [new_job(queue="other") for _ in range(1000)])
        await of("submit within", storage.submit_within(db, jobs(queue="within")))
        unique = UniqueKey(UniqueMode.UNTIL_FINISHED, uuid.uuid4().hex)
        await of("submit within with a key", storage.submit_within(db, [new_job(unique=unique)]))
        await others.rollback()
    await commit_within(storage, jobs(queue="within"))
    await of("look and move in", storage.get([JobRef("within", "none")]))
    await commit_within(storage, jobs(queue="within"))
    taken = claim(2 * BATCH, queues=("within",))
    reply = await of("claim and move in", storage.claim(taken))
    await storage.settle([succeeded(lease) for lease in reply.leases])
    return told


async def commit_within(storage: PostgresStorage, jobs: list[NewJob]) -> None:
    """Submit jobs in a transaction, on the connection of the pool."""
    async with storage._database._pool.acquire() as db, db.transaction():  # type: ignore[union-attr]
        await storage.submit_within(db, jobs)


async def fill(storage: PostgresStorage, new_job: Callable[..., NewJob]) -> None:
    """Store jobs and queues that no call of the test is about."""
    for _ in range(4):
        await storage.submit([new_job(priority=-1) for _ in range(500)])
        await storage.submit([new_job(delay=86_400.0) for _ in range(500)])
        await storage.submit([new_job(lane="busy", priority=-1) for _ in range(500)])
        await storage.submit([new_job(queue=uuid.uuid4().hex) for _ in range(500)])


@pytest.mark.filterwarnings("ignore:.*active log listener")
async def test_statements_find_their_rows_by_index_whatever_statistics_say(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    """Tables that were analysed while they were empty, filled since, and analysed again."""
    schema = f"plans_{uuid.uuid4().hex[:12]}"
    plans = Plans()
    db = await asyncpg.connect(server_url)
    try:
        try:
            await db.execute(TELL)
        except (asyncpg.UndefinedFileError, asyncpg.InsufficientPrivilegeError):
            pytest.skip("the server has no auto_explain")
        await db.execute("RESET ALL")
        async with (
            telling(server_url, plans) as pool,
            open_store(schema=schema, pool=pool) as storage,
        ):
            tables = await db.fetch(
                "SELECT quote_ident(relname) AS name FROM pg_stat_user_tables "
                "WHERE schemaname = $1",
                schema,
            )
            whole = ", ".join(f"{schema}.{table['name']}" for table in tables)
            for filled in (False, True):
                await db.execute(f"ANALYZE {whole}")
                if filled:
                    told = await live(storage, plans, new_job, claim)
                    check("analysed", told)
                else:
                    # Statements that have run keep their plans.
                    for _ in range(2):
                        check("empty", await live(storage, plans, new_job, claim))
                    await db.execute(f"ANALYZE {whole}")
                    await fill(storage, new_job)
                    check("stale", await live(storage, plans, new_job, claim))
    finally:
        await db.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        await db.close()


def check(when: str, told: dict[str, list[Scan]]) -> None:
    for verb, scans in told.items():
        large = [scan for scan in scans if scan[1] is None or scan[2] > MOST]
        assert not large, (when, verb, large)
        used = {index for _, index, _, _ in scans}
        assert used >= PINNED[verb], (when, verb, PINNED[verb] - used)
