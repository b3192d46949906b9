"""Print or apply the migrations: ``python -m plugq_postgres [--schema NAME] [--apply URL]``."""

from __future__ import annotations

import argparse
import asyncio
import sys

import asyncpg

from plugq.errors import ConfigError, PlugqError
from plugq_postgres._faults import unusable
from plugq_postgres._migrations import NEEDED, migrate, migration_sql
from plugq_postgres._options import shown


def main() -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m plugq_postgres",
        description="Print the SQL that makes or upgrades the tables of plugq, or apply it.",
    )
    parser.add_argument("--schema", default="plugq", help="the schema of the tables (plugq)")
    parser.add_argument("--since", type=int, default=0, help="the version that is there (0: none)")
    parser.add_argument("--apply", metavar="URL", help="apply it to this database instead")
    arguments = parser.parse_args()
    if arguments.apply is None:
        sys.stdout.write(migration_sql(arguments.schema, arguments.since))
        return 0
    try:
        version = asyncio.run(_apply(arguments.apply, arguments.schema))
    except PlugqError as error:
        sys.stderr.write(f"{error}\n")
        return 2 if isinstance(error, ConfigError) else 1
    if version >= NEEDED:
        sys.stdout.write(f"schema {arguments.schema} has version {version} already\n")
    else:
        sys.stdout.write(f"schema {arguments.schema}: version {version} -> {NEEDED}\n")
    return 0


async def _apply(url: str, schema: str) -> int:
    try:
        db = await asyncpg.connect(url, timeout=10)
        try:
            return await migrate(db, schema)
        finally:
            await db.close(timeout=5)
    except PlugqError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told in one line
        raise unusable(error, shown(url), url) from None


if __name__ == "__main__":
    sys.exit(main())
