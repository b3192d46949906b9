"""The tables, and how a file comes to have them.

What is hot is small: a job is one row of about 250 bytes, its body lies in a table of its own and
is never rewritten. All indexes on the ways of a job are partial, so that finished, future and
blocked jobs are in none of the indexes that a claim or a settlement reads.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from plugq.errors import ConfigError
from plugq.protocols.storage import BATCH_TTL

if TYPE_CHECKING:
    import sqlite3
    from pathlib import Path

#: "plgq", in the header of every file of ours.
APPLICATION_ID = 0x706C6771

_FIRST = (
    """
    CREATE TABLE meta (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        now REAL NOT NULL,
        sequence INTEGER NOT NULL,
        version INTEGER NOT NULL
    )
    """,
    "INSERT INTO meta VALUES (1, 0.0, 0, 0)",
    "CREATE TABLE namespace (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE task (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    """
    CREATE TABLE queue (
        id INTEGER PRIMARY KEY,
        namespace INTEGER NOT NULL,
        name TEXT NOT NULL,
        token INTEGER NOT NULL DEFAULT 0,
        paused INTEGER NOT NULL DEFAULT 0,
        configured INTEGER NOT NULL DEFAULT 0,
        max_running INTEGER,
        lane_max_running INTEGER NOT NULL DEFAULT 1,
        max_length INTEGER,
        UNIQUE (namespace, name)
    )
    """,
    """
    CREATE TABLE tally (
        queue INTEGER NOT NULL,
        task INTEGER NOT NULL,
        delayed INTEGER NOT NULL,
        queued INTEGER NOT NULL,
        running INTEGER NOT NULL,
        succeeded INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        cancelled INTEGER NOT NULL,
        skipped INTEGER NOT NULL,
        total_accepted INTEGER NOT NULL,
        total_started INTEGER NOT NULL,
        total_succeeded INTEGER NOT NULL,
        total_failed INTEGER NOT NULL,
        total_cancelled INTEGER NOT NULL,
        total_skipped INTEGER NOT NULL,
        total_retried INTEGER NOT NULL,
        total_snoozed INTEGER NOT NULL,
        total_released INTEGER NOT NULL,
        total_lease_ended INTEGER NOT NULL,
        total_redriven INTEGER NOT NULL,
        total_removed INTEGER NOT NULL,
        PRIMARY KEY (queue, task)
    ) WITHOUT ROWID
    """,
    # state: 0 delayed, 1 queued, 2 running, 3 succeeded, 4 failed, 5 cancelled, 6 skipped.
    # eligible: 1 in the ready order, 0 behind its lane, 2 past its deadline until a sweep ends it.
    """
    CREATE TABLE job (
        seq INTEGER PRIMARY KEY,
        namespace INTEGER NOT NULL,
        queue INTEGER NOT NULL,
        id TEXT NOT NULL,
        task INTEGER NOT NULL,
        state INTEGER NOT NULL,
        eligible INTEGER NOT NULL,
        nprio INTEGER NOT NULL,
        ready_at REAL NOT NULL,
        token INTEGER NOT NULL DEFAULT 0,
        attempt INTEGER NOT NULL DEFAULT 0,
        max_attempts INTEGER NOT NULL,
        crashes INTEGER NOT NULL DEFAULT 0,
        generation INTEGER NOT NULL DEFAULT 0,
        cancel INTEGER NOT NULL DEFAULT 0,
        failures INTEGER NOT NULL DEFAULT 0,
        unknown INTEGER NOT NULL DEFAULT 0,
        unknown_since REAL,
        number INTEGER,
        lease_until REAL,
        deadline_at REAL,
        submitted_at REAL NOT NULL,
        started_at REAL,
        finished_at REAL,
        expires_at REAL,
        tidy_at REAL,
        result_ttl REAL,
        failure_ttl REAL,
        id_ttl REAL NOT NULL,
        unique_mode INTEGER,
        unique_ttl REAL,
        unique_key TEXT,
        lane TEXT,
        batch TEXT,
        origin TEXT NOT NULL,
        worker TEXT NOT NULL DEFAULT '',
        code TEXT NOT NULL DEFAULT '',
        submission BLOB NOT NULL,
        progress BLOB,
        result BLOB
    )
    """,
    "CREATE UNIQUE INDEX job_id ON job (queue, id)",
    """
    CREATE INDEX job_ready ON job (queue, nprio, ready_at)
        WHERE state = 1 AND eligible = 1
    """,
    "CREATE INDEX job_due ON job (queue, ready_at) WHERE state = 0",
    """
    CREATE INDEX job_lane ON job (queue, lane, eligible, nprio, ready_at)
        WHERE state = 1 AND lane IS NOT NULL
    """,
    "CREATE INDEX job_lease ON job (namespace, worker, lease_until) WHERE state = 2",
    """
    CREATE INDEX job_deadline ON job (namespace, state, deadline_at)
        WHERE state < 3 AND deadline_at IS NOT NULL
    """,
    """
    CREATE INDEX job_tidy ON job (namespace, tidy_at)
        WHERE state > 2 AND tidy_at IS NOT NULL
    """,
    "CREATE INDEX job_batch ON job (namespace, batch) WHERE batch IS NOT NULL",
    "CREATE TABLE body (seq INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    """
    CREATE TABLE failure (
        seq INTEGER NOT NULL,
        n INTEGER NOT NULL,
        record BLOB NOT NULL,
        PRIMARY KEY (seq, n)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE lane (
        queue INTEGER NOT NULL,
        name TEXT NOT NULL,
        running INTEGER NOT NULL,
        heads INTEGER NOT NULL,
        PRIMARY KEY (queue, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE unique_key (
        queue INTEGER NOT NULL,
        key TEXT NOT NULL,
        seq INTEGER NOT NULL,
        id TEXT NOT NULL,
        generation INTEGER NOT NULL,
        state INTEGER NOT NULL,
        until REAL,
        PRIMARY KEY (queue, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX unique_until ON unique_key (until) WHERE until IS NOT NULL",
    """
    CREATE TABLE worker (
        namespace INTEGER NOT NULL,
        name TEXT NOT NULL,
        peer TEXT NOT NULL,
        number INTEGER NOT NULL,
        granted BLOB NOT NULL,
        until REAL NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE peer (
        namespace INTEGER NOT NULL,
        name TEXT NOT NULL,
        address TEXT NOT NULL,
        probed REAL NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID
    """,
    """
    CREATE TABLE idle (
        namespace INTEGER NOT NULL,
        peer TEXT NOT NULL,
        queue TEXT NOT NULL,
        since REAL NOT NULL,
        PRIMARY KEY (namespace, peer, queue)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX idle_queue ON idle (namespace, queue, since)",
    """
    CREATE TABLE register (
        namespace INTEGER NOT NULL,
        key BLOB NOT NULL,
        version INTEGER NOT NULL,
        value BLOB NOT NULL,
        expires REAL,
        PRIMARY KEY (namespace, key)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX register_expires ON register (namespace, expires) WHERE expires IS NOT NULL",
)

_SECOND = (
    "ALTER TABLE queue ADD COLUMN draining INTEGER NOT NULL DEFAULT 0",
    # What limiters decide, a number that changes with it, and until when the queue is parked.
    "ALTER TABLE queue ADD COLUMN limits BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE queue ADD COLUMN lane_limits BLOB NOT NULL DEFAULT x''",
    "ALTER TABLE queue ADD COLUMN revision INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE queue ADD COLUMN parked_until REAL",
    "ALTER TABLE lane ADD COLUMN parked_until REAL",
    "CREATE INDEX lane_parked ON lane (queue, parked_until) WHERE parked_until IS NOT NULL",
    # The state of the limiters of a queue (kind 0, lane '') or of one of its lanes (kind 1).
    """
    CREATE TABLE budget (
        queue INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        lane TEXT NOT NULL,
        version INTEGER NOT NULL,
        state BLOB,
        expires REAL NOT NULL,
        PRIMARY KEY (queue, kind, lane)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX budget_expires ON budget (expires)",
    # Seconds that ended attempts ran, how many these were, and the decaying rate of ends.
    "ALTER TABLE tally ADD COLUMN run_seconds REAL NOT NULL DEFAULT 0",
    "ALTER TABLE tally ADD COLUMN run_count INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tally ADD COLUMN rate REAL NOT NULL DEFAULT 0",
    "ALTER TABLE tally ADD COLUMN rate_at REAL NOT NULL DEFAULT 0",
    # Jobs by state, also of those that are gone; ``expires`` while none of them is live. Counted
    # are those that entered at the sequence ``since`` or after it.
    """
    CREATE TABLE batch (
        namespace INTEGER NOT NULL,
        name TEXT NOT NULL,
        delayed INTEGER NOT NULL,
        queued INTEGER NOT NULL,
        running INTEGER NOT NULL,
        succeeded INTEGER NOT NULL,
        failed INTEGER NOT NULL,
        cancelled INTEGER NOT NULL,
        skipped INTEGER NOT NULL,
        expires REAL,
        since INTEGER NOT NULL,
        PRIMARY KEY (namespace, name)
    ) WITHOUT ROWID
    """,
    # When a job entered its batch, as a sequence, where that is not its own.
    "ALTER TABLE job ADD COLUMN entered INTEGER",
    "CREATE INDEX batch_expires ON batch (namespace, expires) WHERE expires IS NOT NULL",
    f"""
    INSERT INTO batch SELECT namespace, batch, total(state = 0), total(state = 1),
        total(state = 2), total(state = 3), total(state = 4), total(state = 5), total(state = 6),
        CASE WHEN min(state) > 2 THEN (SELECT now FROM meta) + {BATCH_TTL} END,
        0
    FROM job WHERE batch IS NOT NULL GROUP BY namespace, batch
    """,  # noqa: S608 - a constant
    # Sockets of those who listen to events; ``missed`` where some did not reach one.
    """
    CREATE TABLE listener (
        namespace INTEGER NOT NULL,
        address TEXT NOT NULL,
        probed REAL NOT NULL,
        missed INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (namespace, address)
    ) WITHOUT ROWID
    """,
)

#: Every table of ours.
TABLES = (
    *("meta", "namespace", "task", "queue", "tally", "job", "body", "failure", "lane"),
    *("unique_key", "worker", "peer", "idle", "register", "budget", "batch", "listener"),
)

#: One entry a version; ``PRAGMA user_version`` counts those that a file has had.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_FIRST, _SECOND)


def _marks() -> tuple[str, str]:
    """Return what says so; both lie in the file's header and are part of the transaction."""
    return (
        f"PRAGMA application_id = {APPLICATION_ID}",
        f"PRAGMA user_version = {len(MIGRATIONS)}",
    )


def migration_sql(since: int = 0) -> str:
    """Return the script that brings a file from version ``since`` to the newest."""
    statements = [inspect.cleandoc(one) for step in MIGRATIONS[since:] for one in step]
    return (
        "\n".join(f"{one};" for one in ["BEGIN IMMEDIATE", *statements, *_marks(), "COMMIT"]) + "\n"
    )


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a file to the newest version; safe where several processes start at once.

    Raises:
        ConfigError: the file belongs to something else or to a newer version.
    """
    if check_owner(db, path) == len(MIGRATIONS):
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        # Another process may have migrated it between the look and the lock.
        for statements in MIGRATIONS[check_owner(db, path) :]:
            for statement in statements:
                db.execute(statement)
        for mark in _marks():
            db.execute(mark)
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def check_owner(db: sqlite3.Connection, path: Path) -> int:
    """Return the schema version of the file, 0 for an empty one.

    Raises:
        ConfigError: the file belongs to something else or to a newer version.
    """
    # One statement, for another process may be creating the tables at this moment.
    application, version, taken = db.execute(
        "SELECT application_id, user_version, EXISTS (SELECT 1 FROM sqlite_schema) "
        "FROM pragma_application_id, pragma_user_version",
    ).fetchone()
    if application != APPLICATION_ID:
        if application or version or taken:
            message = (
                f"storage.path: {path} is the database of another application; name another file"
            )
            raise ConfigError(message)
        return 0
    if version > len(MIGRATIONS):
        message = (
            f"storage.path: {path} was written by a newer plugq-sqlite (schema {version}, this "
            f"one knows {len(MIGRATIONS)}); upgrade plugq-sqlite or name another file"
        )
        raise ConfigError(message)
    return int(version)


def namespace_number(db: sqlite3.Connection, name: str) -> int:
    """Return the number of a namespace of the file, after giving it one if it is new."""
    found = db.execute("SELECT id FROM namespace WHERE name = ?", (name,)).fetchone()
    if found is None:
        db.execute("BEGIN IMMEDIATE")
        try:
            db.execute("INSERT OR IGNORE INTO namespace (name) VALUES (?)", (name,))
            found = db.execute("SELECT id FROM namespace WHERE name = ?", (name,)).fetchone()
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
    return int(found[0])
