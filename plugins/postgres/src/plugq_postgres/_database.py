"""The connections: every call has a deadline, and none of them outlives its storage.

A call runs in a task of its own. Its caller may go away at any moment; the call is carried to its
end, so that no connection is left in the middle of something.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg

from plugq import failpoints
from plugq.errors import ConfigError, Unavailable
from plugq_postgres._deadline import cut_off
from plugq_postgres._faults import AGAIN, SPOILED, fault, held_up, unusable
from plugq_postgres._migrations import LONGEST, NEEDED, migrate, schema_version
from plugq_postgres._options import duration, quoted, shown
from plugq_postgres._turns import Turns
from plugq_postgres._upkeep import Found, look

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from plugq.clock import Clock
    from plugq_postgres._options import PostgresOptions

T = TypeVar("T")

#: What each statement sees is what was committed before it, that of lock holders too.
ISOLATION = "read committed"

#: The oldest server that has what the statements need.
_OLDEST = 130_000
#: How often a call is made again that the server took back for another one's sake.
_TRIES = 5
#: How long the storage waits, when it stops, for connections to close in peace, in seconds.
_PARTING = 2.0
#: The state of an error that says that numbers are not those of the store.
_UNKNOWN_NUMBERS = "PQ002"
#: A table that was small a minute ago is not read as a whole and sorted.
_IN_ORDER = "SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
#: Whether the transaction has changed anything so far.
_WROTE = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"
#: The tables and sequences of the schema that the user may not use in every way that calls do.
_MISSING = """
    SELECT c.relname AS name FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND CASE c.relkind
        WHEN 'r' THEN NOT (
            has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')
            AND (c.relname = 'plugq_version' OR has_table_privilege(c.oid, 'INSERT')
                AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
        )
        WHEN 'S' THEN NOT (
            has_sequence_privilege(c.oid, 'USAGE') AND has_sequence_privilege(c.oid, 'SELECT')
            AND has_sequence_privilege(c.oid, 'UPDATE')
        )
        ELSE false
    END ORDER BY c.relname
"""
_NOT_STARTED = "the PostgreSQL storage is not started; call start() or use it through connect()"


class Connection(asyncpg.Connection):  # type: ignore[misc]
    """A connection that is not cleaned at the cost of a round trip after each use.

    Nothing that a call does outlasts its transaction.
    """

    def get_reset_query(self) -> str:
        """Return nothing to be done."""
        return ""


class Database:
    """Makes calls on the server, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        options: PostgresOptions,
        clock: Clock | None,
        logger: logging.Logger,
        pool: asyncpg.Pool | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._logger = logger
        self._theirs = pool
        self._pool: asyncpg.Pool | None = None
        self._open = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._latest = 0.0
        #: How the server was configured at the start.
        self.found: Found | None = None
        self.schema = quoted(options.schema)
        self.schema_name = options.schema
        self.namespace = 0
        self._namespace = ""
        #: Called when the store does not know numbers that it has given out.
        self.on_lost: Callable[[], None] = lambda: None
        self.server = shown(options.url)
        self._connecting = duration(options.connect_timeout, "connect_timeout")
        statement = duration(options.statement_timeout, "statement_timeout")
        lock = duration(options.lock_timeout, "lock_timeout")
        #: The lock timeout as a setting of the server.
        self.wait = f"{max(1, round(lock * 1000))}ms"
        #: For how long a transaction may wait for its client: others outlive it.
        self.idle = f"{max(1, round(lock * 500))}ms"
        self.statement = f"{max(1, round(statement * 1000))}ms"
        #: How long a call may take, in seconds.
        self.deadline = statement + lock + 1
        self._lock = lock
        self._turns = Turns(max(1, options.pool_size // 4))

    @property
    def clock(self) -> float | None:
        """The time to be passed to the server; ``None`` lets it look at its own clock."""
        return None if self._clock is None else self._clock.time()

    def now(self, seen: float) -> float:
        """Return the storage's time, given what the server said; it never runs backwards."""
        self._latest = max(self._latest, seen)
        return self._latest

    @property
    def at(self) -> float | None:
        """The time for the next call, not before that of any former one of this storage."""
        clock = self.clock
        return None if clock is None else max(clock, self._latest)

    def settings(self) -> dict[str, Any]:
        """Return how connections are made."""
        found: dict[str, Any] = {"dsn": self._options.url, "timeout": self._connecting}
        if self._options.pooler:
            found["statement_cache_size"] = 0
        else:
            found["server_settings"] = {
                "application_name": "plugq",
                "statement_timeout": self.statement,
                "lock_timeout": self.wait,
                "idle_in_transaction_session_timeout": self.idle,
                "default_transaction_isolation": ISOLATION,
            }
        return found

    async def start(self, namespace: str) -> None:
        """Connect, bring the schema up to date and find the number of the namespace.

        Raises:
            ConfigError: the server or its schema can not be used.
            Unavailable: it can not be reached now.
        """
        self._namespace = namespace
        try:
            self._pool = self._theirs or asyncpg.create_pool(
                min_size=0,
                max_size=self._options.pool_size,
                connection_class=Connection,
                max_inactive_connection_lifetime=60.0,
                **self.settings(),
            )
            if self._theirs is None:
                await self._pool
            db = await self._pool.acquire(timeout=self._connecting)
            try:
                with cut_off(db, self.deadline):
                    version = await self._look_at(db)
                if version < NEEDED:
                    # Another process may be at it for a while.
                    with cut_off(db, LONGEST):
                        await migrate(db, self._options.schema)
                with cut_off(db, self.deadline):
                    await self._prepare(db)
            finally:
                await self._pool.release(db, timeout=self._connecting)
        except (ConfigError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - start() raises what it means
            raise unusable(error, self.server, self._options.url, self._options.schema) from None
        self._open = True

    async def _look_at(self, db: Any) -> int:
        """Return the version of the schema, if the storage can work on this server."""
        version = int(await db.fetchval("SELECT current_setting('server_version_num')"))
        if version < _OLDEST:
            message = f"storage.url: {self.server} is older than PostgreSQL 13; upgrade it"
            raise ConfigError(message)
        isolation = await db.fetchval("SELECT current_setting('default_transaction_isolation')")
        if isolation != ISOLATION:
            message = (
                f"storage: {self.server} begins transactions as {isolation!r} for this user or "
                f"pool; set default_transaction_isolation = {ISOLATION!r} for it"
            )
            raise ConfigError(message)
        if await db.fetchval("SELECT pg_is_in_recovery()"):
            message = f"{self.server} is a standby and takes no writes; name the primary"
            raise Unavailable(message)
        self.found = await look(db)
        keeps = self.found.keeps()
        level = logging.WARNING if keeps.warning else logging.INFO
        self._logger.log(level, "%s: %s", self.server, keeps.text)
        schema = self._options.schema
        there = await schema_version(db, schema)
        if there < NEEDED and not self._options.migrate:
            message = (
                f"storage.schema: {schema!r} lacks tables; run plugq migrate, or leave "
                "storage.migrate on"
            )
            raise ConfigError(message)
        return there

    async def _prepare(self, db: Any) -> None:
        schema = self._options.schema
        missing = await db.fetch(_MISSING, schema)
        if missing:
            names = ", ".join(row["name"] for row in missing[:3])
            message = (
                f"storage.schema: this user may not use {names} of schema {schema!r}; "
                "grant it usage of the schema and all rights on its tables and its sequences"
            )
            raise ConfigError(message)
        self.namespace = await self._number(db)

    async def look_again(self, db: Any) -> None:
        """Learn every number anew, after a failover to a server that had not received all."""
        self._logger.warning("%s has lost what it knew: numbers are learned anew", self.server)
        try:
            with contextlib.suppress(Exception):
                self.namespace = await self._number(db)
        finally:
            self.on_lost()

    async def _number(self, db: Any) -> int:
        """Return the number of the namespace, given to it if it has none."""
        name = self._namespace.encode()
        select = f"SELECT id FROM {self.schema}.namespace WHERE name = $1"  # noqa: S608
        insert = f"INSERT INTO {self.schema}.namespace (name) VALUES ($1)"  # noqa: S608
        while True:
            found = await db.fetchval(select, name)
            if found is not None:
                return int(found)
            # Again where the number was taken already.
            await db.execute(f"{insert} ON CONFLICT DO NOTHING", name)

    async def stop(self) -> None:
        """Finish the calls under way and close the connections."""
        self._open = False
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        pool = self._pool
        if pool is not None and self._theirs is None:
            try:
                async with asyncio.timeout(_PARTING):
                    await pool.close()
            except (Exception, asyncio.CancelledError) as error:
                pool.terminate()
                if isinstance(error, asyncio.CancelledError):
                    raise
        self._pool = None

    def spawn(self, call: Awaitable[T]) -> asyncio.Task[T]:
        """Run something to its end whoever waits for it; stop() waits for it, too."""
        task: asyncio.Task[T] = asyncio.ensure_future(call)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Whoever waited for it may have gone; then its failure is nobody's.
            task.exception()

    def check_open(self) -> None:
        """Refuse a call before the start and after the stop.

        Raises:
            Unavailable: the storage is not started.
        """
        if not self._open:
            raise Unavailable(_NOT_STARTED)

    async def read(
        self, statement: str, *values: Any, in_order: bool = False
    ) -> list[asyncpg.Record]:
        """Return the rows of a statement that writes nothing.

        ``in_order`` lets the server read rows in the order of an index, whatever its statistics
        say of sorting them, at the cost of more round trips.

        Raises:
            Unavailable: the server can not be reached, or took too long.
        """

        async def run(db: Any) -> list[asyncpg.Record]:
            if not in_order:
                return list(await db.fetch(statement, *values))
            async with db.transaction():
                await db.execute(_IN_ORDER)
                return list(await db.fetch(statement, *values))

        return await self._call(run, writes=False)

    async def time(self) -> float:
        """Return the time in the namespace.

        Raises:
            Unavailable: the server can not be reached.
        """
        [row] = await self.read(
            f"SELECT {self.schema}.clock_v1($1, $2) AS now",
            self.namespace,
            self.at,
        )
        return self.now(row["now"])

    async def write(self, statement: str, *values: Any, queues: Collection[int] = ()) -> Any:
        """Run one statement, a transaction of its own, and return its first row.

        ``queues`` are those that it waits for.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """
        if failpoints.ARMED:
            rows = await self.transact(lambda db: db.fetch(statement, *values), queues)
            return next(iter(rows), None)

        async def run(db: Any) -> Any:
            # All of them are asked for: the server would stop after the one that is.
            return next(iter(await db.fetch(statement, *values)), None)

        return await self._call(run, writes=True, queues=queues)

    async def transact(self, run: Callable[[Any], Awaitable[T]], queues: Collection[int] = ()) -> T:
        """Run a function inside a transaction; it may be run again from the start.

        ``queues`` are those that it waits for.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """

        async def whole(db: Any) -> T:
            wrote = False
            async with db.transaction():
                result = await run(db)
                if failpoints.ARMED:
                    wrote = await db.fetchval(_WROTE)
                    # What changed nothing commits nothing.
                    if wrote:
                        failpoints.hit("storage.commit.before")
            if wrote:
                failpoints.hit("storage.commit.after")
            return result

        return await self._call(whole, writes=True, queues=queues)

    async def _call(
        self,
        run: Callable[[Any], Awaitable[T]],
        *,
        writes: bool,
        queues: Collection[int] = (),
    ) -> T:
        self.check_open()
        return await asyncio.shield(self.spawn(self._in_turn(run, queues, writes=writes)))

    async def _in_turn(
        self, run: Callable[[Any], Awaitable[T]], queues: Collection[int], *, writes: bool
    ) -> T:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._lock):
                    await stack.enter_async_context(self._turns.at(queues))
            except TimeoutError:
                raise held_up(self.server) from None
            return await self._with_tries(run, writes=writes)

    async def _with_tries(self, run: Callable[[Any], Awaitable[T]], *, writes: bool) -> T:
        for left in range(_TRIES - 1, -1, -1):
            try:
                return await self._once(run, writes=writes)
            except AGAIN as error:
                if not left:
                    raise fault(error, self.server) from None
            await asyncio.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - jitter
        raise AssertionError

    async def _once(self, run: Callable[[Any], Awaitable[T]], *, writes: bool) -> T:
        pool = self._pool
        if pool is None:
            raise Unavailable(_NOT_STARTED)
        try:
            db = await pool.acquire(timeout=self._connecting)
        except Exception as error:  # noqa: BLE001 - the caller gets what it means
            raise fault(error, self.server) from None
        try:
            with cut_off(db, self.deadline):
                return await run(db)
        except AGAIN:
            raise
        except Exception as error:  # noqa: BLE001 - the caller gets what it means
            if getattr(error, "sqlstate", None) == _UNKNOWN_NUMBERS:
                await self.look_again(db)
            if isinstance(error, SPOILED):
                # One that is closed already can not be cut off.
                with contextlib.suppress(asyncpg.InterfaceError):
                    db.terminate()
            raise fault(error, self.server, written=writes) from None
        finally:
            with contextlib.suppress(Exception):
                await pool.release(db, timeout=self._connecting)
