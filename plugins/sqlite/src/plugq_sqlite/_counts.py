"""What a transaction counts and writes once at its end: by task, and by batch."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from collections import defaultdict
from math import exp
from typing import TYPE_CHECKING

from plugq.protocols.storage import BATCH_TTL, RATE_TIME
from plugq_sqlite._rows import (
    FINAL_TOTALS,
    RUNNING,
    STATES,
    TALLY_WIDTH,
    TOTALS,
)

if TYPE_CHECKING:
    import sqlite3

    from plugq_sqlite._rows import Row
    from plugq_sqlite._transaction import Transaction

_COUNTED = (
    *STATES,
    *(f"total_{name}" for name in TOTALS),
    "run_seconds",
    "run_count",
)
_TALLY = (
    f"INSERT INTO tally (queue, task, {', '.join(_COUNTED)}, rate, rate_at) "
    f"VALUES ({', '.join('?' * (len(_COUNTED) + 4))}) ON CONFLICT DO UPDATE SET "
    + ", ".join(f"{name} = {name} + excluded.{name}" for name in _COUNTED)
    + ", rate = excluded.rate, rate_at = excluded.rate_at"
)
_RATE = "SELECT rate, rate_at FROM tally WHERE queue = ? AND task = ?"
_ENDS = slice(min(FINAL_TOTALS.values()), max(FINAL_TOTALS.values()) + 1)

_BATCH = f"SELECT {', '.join(STATES)}, since, expires FROM batch WHERE namespace = ? AND name = ?"
_STORE_BATCH = (
    f"INSERT OR REPLACE INTO batch (namespace, name, {', '.join(STATES)}, since, expires) "
    f"VALUES ({', '.join('?' * (len(STATES) + 4))})"
)
_ENTERED = "SELECT coalesce(entered, seq) FROM job WHERE seq = ?"
_ENTER = "UPDATE job SET entered = ? WHERE seq = ?"


class Tallies:
    """The changes to the counters of tasks in queues."""

    def __init__(self) -> None:
        self.changes: defaultdict[tuple[int, int], list[int]] = defaultdict(_no_changes)
        self._runs: dict[tuple[int, int], list[float]] = {}

    def ran(self, queue: int, task: int, seconds: float) -> None:
        """Note how long an attempt ran that its holder has ended."""
        self._runs.setdefault((queue, task), []).append(seconds)

    def write(self, db: sqlite3.Connection, now: float) -> None:
        """Add the changes to what is stored."""
        for key, changes in self.changes.items():
            runs = self._runs.get(key, ())
            if any(changes) or runs:
                rate, rate_at = _rate(db, key, sum(changes[_ENDS]), now)
                db.execute(_TALLY, (*key, *changes, sum(runs), len(runs), rate, rate_at))


def _no_changes() -> list[int]:
    return [0] * TALLY_WIDTH


def _rate(
    db: sqlite3.Connection, key: tuple[int, int], ends: int, now: float
) -> tuple[float, float]:
    """Return the rate of ends and the time that it is of."""
    rate, rate_at = db.execute(_RATE, key).fetchone() or (0.0, now)
    if not ends:
        return rate, rate_at
    return decayed(rate, now - rate_at) + ends / RATE_TIME, now


def decayed(rate: float, seconds: float) -> float:
    """Return what is left of a rate after so many seconds."""
    return rate * exp(-max(0.0, seconds) / RATE_TIME)


class Batches:
    """The changes to the counts of batches, most of which a transaction does not touch."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        #: What a batch that begins in this transaction counts, and nothing from before it.
        self._since: int = tx.sequence + 1
        self._changes: dict[str, list[int]] = {}

    def moved(self, batch: str | None, former: int | None, state: int) -> None:
        """Count the move of a job, of a new one from ``None``; of one without a batch nothing."""
        if batch is None:
            return
        changes = self._changes.get(batch)
        if changes is None:
            changes = self._changes[batch] = [0] * len(STATES)
        if former is not None:
            changes[former] -= 1
        changes[state] += 1

    def entering(self) -> int:
        """Return a sequence that no job has, at which a job enters that is older than it."""
        self._tx.sequence += 1
        return int(self._tx.sequence)

    def revived(self, row: Row, state: int) -> None:
        """Count a final job that is live again; its batch may have been forgotten since."""
        if row.batch is None:
            return
        stored = self._stored(row.batch)
        since = self._since if stored is None else stored[-1]
        counted = self._tx.db.execute(_ENTERED, (row.seq,)).fetchone()[0] >= since
        self.moved(row.batch, row.state if counted else None, state)
        if not counted:
            self._tx.db.execute(_ENTER, (self.entering(), row.seq))

    def write(self) -> None:
        """Add the changes to what is stored."""
        for batch, changes in self._changes.items():
            *stored, since = self._stored(batch) or [*[0] * len(STATES), self._since]
            counts = [sum(pair) for pair in zip(stored, changes, strict=True)]
            expires = None if any(counts[: RUNNING + 1]) else self._tx.now + BATCH_TTL
            row = (self._tx.namespace, batch, *counts, since, expires)
            self._tx.db.execute(_STORE_BATCH, row)

    def _stored(self, batch: str) -> list[int] | None:
        row = self._tx.db.execute(_BATCH, (self._tx.namespace, batch)).fetchone()
        if row is None or (row[-1] is not None and row[-1] <= self._tx.now):
            return None
        return list(row[:-1])
