"""What whoever runs a server may ask of the storage: what is kept, who may what, which version."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import asyncpg
import msgspec

from plugq.errors import PlugqError
from plugq.protocols.upkeep import Fact, Layout
from plugq_postgres._access import grants
from plugq_postgres._deadline import cut_off
from plugq_postgres._faults import unusable
from plugq_postgres._migrations import LONGEST, NEEDED, migrate, schema_version
from plugq_postgres._options import duration, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from plugq_postgres._options import PostgresOptions

T = TypeVar("T")

#: Levels of ``synchronous_commit`` that wait for the standbys that ``synchronous_standby_names``
#: names.
_WITH_STANDBY = frozenset({"on", "remote_apply", "remote_write"})
#: How long closing a connection may take, in seconds.
_PARTING = 5.0
_ASK = (
    "SELECT current_setting('server_version') AS release, "
    "current_setting('fsync') = 'on' AS fsync, "
    "current_setting('synchronous_commit') AS commit, "
    "current_setting('synchronous_standby_names') <> '' AS named, "
    "(SELECT count(*) FROM pg_catalog.pg_stat_replication) AS standbys"
)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """How a server is configured, as a session of the storage sees it."""

    release: str
    fsync: bool
    commit: str
    named: bool
    standbys: int

    def keeps(self) -> Fact:
        """Return what it keeps of what it has acknowledged."""
        if not self.fsync:
            text = (
                "what was acknowledged survives a crash of the server, and may be lost or damaged "
                "with its machine (fsync = off)"
            )
        elif self.commit == "off":
            text = (
                "what was acknowledged survives a crash of plugq, and a crash of the server all "
                "but about the last second (synchronous_commit = off)"
            )
        elif self.named and self.commit in _WITH_STANDBY:
            text = (
                "what was acknowledged survives a loss of power, and a failover to a synchronous "
                f"standby (synchronous_commit = {self.commit})"
            )
        else:
            level = f"(synchronous_commit = {self.commit})"
            text = f"what was acknowledged survives a loss of power {level}"
            if self.standbys:
                text += "; a failover loses what the standby had not received yet"
        return Fact(name="keeps", text=text, warning=not self.fsync or self.commit == "off")


async def look(db: asyncpg.Connection) -> Found:
    """Ask a server how it is configured."""
    row = await db.fetchrow(_ASK)
    assert row is not None  # noqa: S101 - it is one row always
    return Found(**{**row, "release": row["release"].partition(" ")[0]})


def facts_of(found: Found, schema: str) -> Sequence[Fact]:
    """Return what a server promises and needs; what it keeps is the line that the start logs."""
    access = (
        f"clients and workers alike, with migrate = false: {grants(schema)} "
        "plugq migrate, or migrate = true: CREATE on the database, or the schema as its own"
    )
    return [
        Fact(name="server", text=f"PostgreSQL {found.release}"),
        found.keeps(),
        Fact(name="access", text=access),
    ]


async def layout_of(options: PostgresOptions) -> Layout:
    """Return the version of the schema that the options name, over a connection of its own.

    Raises:
        ConfigError: the server or its schema can not be used.
        Unavailable: it can not be reached now.
    """
    within = duration(options.statement_timeout, "statement_timeout")
    version = await _connected(options, lambda db: schema_version(db, options.schema), within)
    return Layout(version=version, newest=NEEDED)


async def migrated(options: PostgresOptions) -> Layout:
    """Bring the schema to the newest version and return what it had before.

    Raises:
        ConfigError: the server or its schema can not be used, or not by this user.
        Unavailable: it can not be reached now, or others held the schema for too long.
    """
    version = await _connected(options, lambda db: migrate(db, options.schema), LONGEST)
    return Layout(version=version, newest=NEEDED)


async def _connected(
    options: PostgresOptions,
    call: Callable[[asyncpg.Connection], Awaitable[T]],
    within: float,
) -> T:
    """Make one transaction on a connection of its own, within so many seconds."""
    try:
        db = await asyncpg.connect(
            options.url,
            timeout=duration(options.connect_timeout, "connect_timeout"),
            # A pooler in between may give each transaction another session.
            statement_cache_size=0,
        )
        try:
            with cut_off(db, within):
                async with db.transaction():
                    return await call(db)
        finally:
            await db.close(timeout=_PARTING)
    except PlugqError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told in one line
        raise unusable(error, shown(options.url), options.url, options.schema) from None


__all__ = ["Found", "facts_of", "layout_of", "look", "migrated"]
