"""Lanes: which jobs of a lane stand in the ready order.

What always holds after :meth:`Lanes.repair`: of the queued jobs of a lane exactly the first
``lane_max_running - running`` are eligible, at most :data:`HEADS` of them, and none while the lane
is parked. A claim may therefore take the first ``HEADS`` of the ready order as they are, and a
lane that is busy or parked costs no claim anything. Parking a lane and letting it in rewrites its
heads and nothing else, however many of its jobs may run.
"""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq_sqlite._statements import insert_rows, join_rows, numbers

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable

    from plugq_sqlite._transaction import Transaction

    #: Lanes by queue and name: how many of their jobs run, and how many are eligible.
    _Counts = dict[tuple[int, str], list[int]]
    #: How many more jobs of a lane are to be eligible; negative: fewer.
    _Wanted = dict[tuple[int, str], int]

#: How many jobs of a lane stand in the ready order at most.
HEADS = 128

_FIRST_BEHIND = (
    "SELECT seq FROM job INDEXED BY job_lane WHERE queue = {queue} AND lane = {lane} "
    "AND state = 1 AND eligible = 0 ORDER BY nprio, ready_at, seq LIMIT {limit}"
)
_LAST_HEAD = (
    "SELECT seq FROM job INDEXED BY job_lane WHERE queue = {queue} AND lane = {lane} "
    "AND state = 1 AND eligible = 1 ORDER BY nprio DESC, ready_at DESC, seq DESC LIMIT {limit}"
)
_OF_S = {"queue": "s.queue", "lane": "s.lane", "limit": "1"}
_ONE_EACH = (
    "WITH s (queue, lane) AS (VALUES ?) SELECT s.queue, s.lane, "
    f"({_FIRST_BEHIND.format(**_OF_S)}) FROM s WHERE s.queue IS NOT NULL"
)
_OUT_OF_ORDER = (
    "WITH s (queue, lane) AS (VALUES ?), pair (queue, lane, behind, head) AS MATERIALIZED ("
    f"SELECT s.queue, s.lane, ({_FIRST_BEHIND.format(**_OF_S)}), ({_LAST_HEAD.format(**_OF_S)}) "
    "FROM s WHERE s.queue IS NOT NULL) "
    "SELECT pair.queue, pair.lane, b.seq, h.seq FROM pair "
    "CROSS JOIN job AS b ON b.seq = pair.behind CROSS JOIN job AS h ON h.seq = pair.head "
    "WHERE (b.nprio, b.ready_at, b.seq) < (h.nprio, h.ready_at, h.seq)"
)
_LOAD = (
    "WITH s (queue, name) AS (VALUES ?) "
    "SELECT lane.queue, lane.name, lane.running, lane.heads, lane.parked_until FROM s "
    "CROSS JOIN lane ON lane.queue = s.queue AND lane.name = s.name"
)
_STORE = (
    "INSERT INTO lane (queue, name, running, heads) VALUES ? "
    "ON CONFLICT DO UPDATE SET running = excluded.running, heads = excluded.heads"
)
_PARK = "UPDATE lane SET parked_until = ? WHERE queue = ? AND name = ?"
_SET_ELIGIBLE = "UPDATE job SET eligible = ? FROM json_each(?) AS s WHERE job.seq = s.value"


class _Change:
    """What happened to one lane since its last repair."""

    __slots__ = ("added", "heads", "look", "most", "parked", "parked_until", "running")

    def __init__(self) -> None:
        self.running = 0
        self.heads = 0
        self.look = False
        self.added = False
        #: How many heads there may be until the repair after the next.
        self.most = HEADS
        #: Whether ``parked_until`` takes the place of what is stored.
        self.parked = False
        self.parked_until: float | None = None


class Lanes:
    """The lanes that a transaction touched, and the repair of all of them at once."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction
        self._changes: dict[tuple[int, str], _Change] = {}

    def _change(self, queue: int, lane: str) -> _Change:
        key = (queue, lane)
        change = self._changes.get(key)
        if change is None:
            change = self._changes[key] = _Change()
        return change

    def joined(self, queue: int, lane: str) -> None:
        """Note a job that was queued behind its lane."""
        change = self._change(queue, lane)
        change.look = change.added = True

    def reordered(self, queue: int, lane: str) -> None:
        """Note that a queued job of the lane has another place in it."""
        self._change(queue, lane).added = True

    def started(self, queue: int, lane: str) -> None:
        """Note that a head of the lane was claimed."""
        change = self._change(queue, lane)
        change.running += 1
        change.heads -= 1

    def ended(self, queue: int, lane: str) -> None:
        """Note that a running job of the lane runs no more."""
        change = self._change(queue, lane)
        change.running -= 1
        change.look = True

    def left(self, queue: int, lane: str) -> None:
        """Note that a head of the lane is no longer one, without having been claimed."""
        change = self._change(queue, lane)
        change.heads -= 1
        change.look = True

    def restored(self, queue: int, lane: str) -> None:
        """Note a job of the lane that was stored while running."""
        change = self._change(queue, lane)
        change.running += 1
        change.look = True

    def park(self, queue: int, lane: str, until: float | None) -> None:
        """Take the lane out of the ready order until it is let in again, which ``None`` does."""
        change = self._change(queue, lane)
        change.look = change.parked = True
        change.parked_until = until

    def widen(self, queue: int, lanes: Iterable[str], most: int) -> None:
        """Let up to ``most`` jobs of each lane be eligible, until the next repair."""
        lanes = list(lanes)
        for lane in lanes:
            change = self._change(queue, lane)
            change.look, change.most = True, most
        self.repair()
        for lane in lanes:
            self._change(queue, lane).look = True

    def recheck_queue(self, queue: int) -> None:
        """Look at every lane of a queue, since its limit has changed."""
        rows = self._tx.db.execute("SELECT name FROM lane WHERE queue = ?", (queue,)).fetchall()
        for (lane,) in rows:
            self._change(queue, lane).look = True

    def repair(self) -> None:
        """Make the first jobs of each touched lane eligible, and only those."""
        if not self._changes:
            return
        changes, self._changes = self._changes, {}
        db = self._tx.db
        stored = {(q, name): rest for q, name, *rest in join_rows(db, _LOAD, list(changes))}
        now: _Counts = {}
        wanted: _Wanted = {}
        parked: set[tuple[int, str]] = set()
        for key, change in changes.items():
            running, heads, until = stored.get(key, (0, 0, None))
            now[key] = [running + change.running, heads + change.heads]
            if (change.parked_until if change.parked else until) is not None:
                parked.add(key)
            # Where there were fewer heads, no job that may run stands behind them.
            if change.look or heads >= HEADS:
                limit = self._tx.queue_numbered(key[0]).lane_max_running
                free = 0 if key in parked else max(0, limit - now[key][0])
                wanted[key] = min(free, change.most) - now[key][1]
        self._promote(db, now, wanted)
        self._demote(db, now, wanted)
        self._swap(db, [key for key, change in changes.items() if change.added and now[key][1]])
        self._store(db, now, parked)
        parks = [(change.parked_until, *key) for key, change in changes.items() if change.parked]
        if parks:
            db.executemany(_PARK, parks)

    def _promote(self, db: sqlite3.Connection, now: _Counts, wanted: _Wanted) -> None:
        single = [key for key, want in wanted.items() if want == 1]
        found = [(q, lane, seq) for q, lane, seq in join_rows(db, _ONE_EACH, single) if seq]
        for (queue, lane), want in wanted.items():
            if want > 1:
                statement = _FIRST_BEHIND.format(queue="?", lane="?", limit="?")
                rows = db.execute(statement, (queue, lane, want)).fetchall()
                found += [(queue, lane, seq) for (seq,) in rows]
        if not found:
            return
        db.execute(_SET_ELIGIBLE, (1, numbers(seq for _, _, seq in found)))
        for queue, lane, _ in found:
            now[queue, lane][1] += 1
            if now[queue, lane][1] <= HEADS:
                self._tx.claimable(queue)

    def _demote(self, db: sqlite3.Connection, now: _Counts, wanted: _Wanted) -> None:
        for (queue, lane), want in wanted.items():
            if want < 0:
                statement = _LAST_HEAD.format(queue="?", lane="?", limit="?")
                rows = db.execute(statement, (queue, lane, -want)).fetchall()
                db.execute(_SET_ELIGIBLE, (0, numbers(seq for (seq,) in rows)))
                now[queue, lane][1] -= len(rows)

    def _swap(self, db: sqlite3.Connection, keys: list[tuple[int, str]]) -> None:
        while keys:
            pairs = join_rows(db, _OUT_OF_ORDER, keys)
            if not pairs:
                return
            db.execute(_SET_ELIGIBLE, (1, numbers(behind for _, _, behind, _ in pairs)))
            db.execute(_SET_ELIGIBLE, (0, numbers(head for _, _, _, head in pairs)))
            keys = [(queue, lane) for queue, lane, _, _ in pairs]

    def _store(self, db: sqlite3.Connection, now: _Counts, parked: set[tuple[int, str]]) -> None:
        kept = [(*key, *counts) for key, counts in now.items() if any(counts) or key in parked]
        insert_rows(db, _STORE, kept)
        gone = [key for key, counts in now.items() if not any(counts) and key not in parked]
        if gone:
            db.executemany("DELETE FROM lane WHERE queue = ? AND name = ?", gone)
