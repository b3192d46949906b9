"""What the functions on the server promise, proven on functions that lack one line of it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import asyncpg
import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract
from plugq_postgres import PostgresOptions, PostgresStorage, migration_sql


class Home(StorageContract):
    """The contract on a schema whose SQL has one fault."""

    patience: ClassVar[float] = 1.0
    schema: ClassVar[str] = "broken"

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        options = PostgresOptions(
            url=os.environ["PLUGQ_TEST_POSTGRES_URL"], schema=self.schema, migrate=False
        )
        storage = PostgresStorage(options, context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


#: What is replaced by what, and the test that catches it.
FAULTS = {
    "no lock on the queues": (
        "ORDER BY id FOR NO KEY UPDATE",
        "ORDER BY id",
        "test_lanes_hold_under_concurrent_claims",
    ),
    "no fence": (
        "WHERE job.token = a.token AND job.state = 2 ORDER BY",
        "WHERE job.state = 2 ORDER BY",
        "test_a_stale_token_is_refused_while_the_job_runs_elsewhere",
    ),
    "no memory of the time": (
        "SELECT queue.now FROM queue WHERE queue.namespace::bigint = p_namespace::bigint",
        "SELECT 0 AS now FROM queue WHERE queue.id = 0",
        "test_users_with_different_clocks_agree_on_the_time",
    ),
    "no order of priority": (
        "ORDER BY priority DESC, ready_at, place LIMIT p_most",
        "ORDER BY ready_at, place LIMIT p_most",
        "test_a_higher_priority_comes_first",
    ),
    "no look at who is dead": (
        "AND alive_v1(p.pid, p.started)",
        "",
        "test_a_killed_process_is_woken_in_place_of_no_other_for_long",
    ),
    "idle for what was claimed from last": (
        "SELECT unnest(peer.queues) WHERE peer.woken = 0 UNION",
        "",
        "test_a_peer_idles_for_all_that_it_claimed_from",
    ),
    "a lost lease that hides what was never received": (
        "array_agg(job.seq) FILTER (WHERE job.seq IS NOT NULL)",
        "array_agg(job.seq)",
        "test_a_holder_that_lost_a_lease_gives_back_what_it_never_received",
    ),
    "no memory of claims": (
        "IF p_limit > 0 AND repeated_v1(p_namespace, p_worker, p_number) THEN",
        "IF false THEN",
        "test_a_repeated_claim_omits_what_was_settled",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_on_the_server_is_caught(fault: str, server_url: str) -> None:
    right, wrong, name = FAULTS[fault]
    schema = f"broken_{uuid.uuid4().hex[:12]}"
    sql = migration_sql(schema)
    assert sql.count(right) == 1

    class Broken(Home):
        pass

    Broken.schema = schema

    async def catch() -> None:
        db = await asyncpg.connect(server_url)
        try:
            await db.execute(sql.replace(right, wrong))
            with pytest.raises(Exception) as caught:  # noqa: PT011 - it may fail in any way
                await getattr(Broken(), name)()
            assert "hangs" not in str(caught.value)
            assert not isinstance(caught.value, AttributeError)
        finally:
            await db.execute(f"DROP SCHEMA {schema} CASCADE")
            await db.close()

    asyncio.run(catch())
