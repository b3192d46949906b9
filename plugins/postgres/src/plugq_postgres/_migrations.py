"""The versions of the schema, as SQL that can be printed, reviewed and applied by hand.

What lies in a schema, and by which rules:

* ``job`` has the jobs that live, ``done`` those that have ended, with the same columns; a job moves
  as one row. The indexes of ``job`` on its ways are partial: a claim reads the ready order, and no
  blocked, future or running job. ``eligible`` keeps a lane's jobs behind its limit out of it, so
  that a busy lane costs no claim anything.
* ``queue`` has a row for each queue, and whoever writes jobs of a queue locks that row first, those
  of several queues in the order of their numbers. So everything that is decided about a queue is
  decided by one call at a time: lanes, limits, unique keys, tokens, order. What spans queues comes
  after these locks and in a fixed order: batches behind one lock, then the peers that are woken,
  of whom one that somebody else is waking is passed over.
* A verb is one statement, which calls one function: the whole transaction is on the server, the
  lock is held for no round trip. Rare verbs, and claims of limited queues, whose decisions are
  made in Python, are several statements of one transaction.
* ``inbox`` takes what users submit in transactions of their own, which hold no lock that anybody
  waits for. Whoever next locks a queue moves in what has been committed for it, and judges it as
  of then. Whoever only looks has that done first, by a call that locks the queue.
* Reads take no lock, and see each job in exactly one of the two tables.
* The time is the server's, but not before what any call on the namespace has seen, which the rows
  of queues keep; a clock that the storage was given stands in the server's place.

A version adds what the next plugq-postgres needs and leaves what the former one uses: functions
and types carry a number, so that old and new workers work side by side while a fleet is upgraded.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from plugq.errors import ConfigError
from plugq_postgres._options import quoted

if TYPE_CHECKING:
    import asyncpg

#: By version, from 1 on: the files that bring the schema there.
_VERSIONS = (("1_tables.sql", "2_moves.sql", "3_verbs.sql", "4_reads.sql", "5_inbox.sql"),)
#: What serialises those who migrate, whatever the schema; "plgq".
_LOCK = 0x706C6771
#: How long migrating waits for others, and how long one step of it may take.
_PATIENCE, _STEP = "60s", "600s"
#: How long all of it may take, in seconds.
LONGEST = 900.0
#: The oldest and the newest version of the schema that this code works with.
NEEDED = len(_VERSIONS)

_FOUND = (
    "SELECT count(*) AS there, coalesce(bool_or(c.relname = 'plugq_version'), false) AS ours "
    "FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace "
    "WHERE n.nspname = $1"
)


@lru_cache(maxsize=64)
def migration_sql(schema: str = "plugq", since: int = 0) -> str:
    """Return the SQL that brings a schema from version ``since`` to the newest."""
    name = quoted(schema)
    parts = [f"SELECT pg_advisory_xact_lock({_LOCK});"]
    if since == 0:
        parts += [
            f"CREATE SCHEMA IF NOT EXISTS {name};",
            (
                f"CREATE TABLE {name}.plugq_version (version integer PRIMARY KEY, "
                "applied_at timestamptz NOT NULL DEFAULT now());"
            ),
        ]
    parts.append(f"SET LOCAL search_path = {name}, pg_temp;")
    folder = files("plugq_postgres") / "migrations"
    for version, names in enumerate(_VERSIONS, 1):
        if version > since:
            parts += [(folder / one).read_text(encoding="utf-8") for one in names]
            note = f"INSERT INTO plugq_version (version) VALUES ({version});"  # noqa: S608 - a number
            parts.append(note)
    return "\n".join(["BEGIN;", *parts, "COMMIT;"]) + "\n"


async def schema_version(db: asyncpg.Connection, schema: str) -> int:
    """Return the version of a schema, 0 where it has nothing yet.

    Raises:
        ConfigError: it belongs to something else.
    """
    found = await db.fetchrow(_FOUND, schema)
    if found is None or not found["there"]:
        return 0
    if not found["ours"]:
        message = f"storage.schema: {schema!r} has the tables of something else; name another one"
        raise ConfigError(message)
    version = await db.fetchval(
        f"SELECT max(version) FROM {quoted(schema)}.plugq_version"  # noqa: S608 - a quoted name
    )
    return int(version or 0)


async def migrate(db: asyncpg.Connection, schema: str) -> int:
    """Bring a schema to the newest version; safe where several processes start at once.

    Returns the version that it had before.

    Raises:
        ConfigError: it belongs to something else.
    """
    version = await schema_version(db, schema)
    if version >= NEEDED:
        return version
    async with db.transaction():
        # The session's own are for calls; here another process may be at it for a while.
        await db.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
        await db.execute(f"SET LOCAL statement_timeout = '{_STEP}'")
        await db.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
        # Another process may have done it between the look and the lock.
        version = await schema_version(db, schema)
        if version < NEEDED:
            script = migration_sql(schema, version)
            await db.execute(script.removeprefix("BEGIN;\n").removesuffix("COMMIT;\n"))
    return version
