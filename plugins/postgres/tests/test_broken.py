"""What the functions on the server promise, proven on functions that lack one line of it."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar

import asyncpg
import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing import StorageContract, UserTransaction
from plugq_postgres import PostgresOptions, PostgresStorage, migration_sql


@asynccontextmanager
async def _begin() -> AsyncIterator[UserTransaction]:
    db = await asyncpg.connect(os.environ["PLUGQ_TEST_POSTGRES_URL"])
    # Where a fault lets it wait for another one, that is seen soon.
    await db.execute("SET lock_timeout = '1s'")
    transaction = db.transaction()
    try:
        await transaction.start()
        yield UserTransaction(db, transaction.commit, transaction.rollback)
    finally:
        await db.close()


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

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        del context
        return [_begin]


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
    "jobs are lost as they are moved in": (
        "FROM insert_v1(p_namespace, p_now, jobs[place:last], NULL)",
        "FROM insert_v1(p_namespace, p_now, jobs[place:place], NULL)",
        "test_jobs_of_a_transaction_stand_in_their_order",
    ),
    "jobs are moved in twice": (
        "DELETE FROM inbox WHERE ctid = ANY (tids[:total]);",
        "",
        "test_a_job_of_a_transaction_lives_like_any_other",
    ),
    "what is moved in takes a key that is held": (
        "s.of_id > 1 OR s.unique_key IS NOT NULL AND s.of_key > 1",
        "s.of_id > 1",
        "test_a_unique_key_in_two_open_transactions_is_held_by_one",
    ),
    "what is moved in forgets its key": (
        "FROM s WHERE unique_key IS NOT NULL AND holder IS NULL",
        "FROM s WHERE unique_key IS NOT NULL AND at IS NULL",
        "test_a_unique_key_is_judged_in_the_transaction",
    ),
    "only what was submitted last is moved in": (
        "ORDER BY inbox.n LIMIT 10001",
        "AND inbox.n >= (SELECT last_value FROM inbox_sequence) ORDER BY inbox.n LIMIT 10001",
        "test_jobs_of_a_transaction_keep_their_lanes",
    ),
    "who looks does not move in": (
        "            AND inbox.queue = ANY (p_queues)) THEN",
        "            AND inbox.queue = ANY (p_queues)) AND false THEN",
        "test_nobody_sees_a_job_before_the_commit",
    ),
    "a transaction does not see its own jobs": (
        "looks boolean := current_setting('transaction_isolation') <> 'serializable';",
        "looks boolean := false;",
        "test_an_id_is_judged_in_the_transaction",
    ),
    "an id in the inbox makes others wait": (
        "CREATE INDEX inbox_id ON inbox (namespace, queue, id, n);",
        "CREATE UNIQUE INDEX inbox_id ON inbox (namespace, queue, id);",
        "test_an_id_in_two_open_transactions_is_one_job",
    ),
    "a transaction locks its queues": (
        "    IF p_plain THEN\n        -- The limit",
        "    PERFORM FROM queue FOR UPDATE;\n    IF p_plain THEN\n        -- The limit",
        "test_an_open_transaction_stops_no_other_where_it_need_not",
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
