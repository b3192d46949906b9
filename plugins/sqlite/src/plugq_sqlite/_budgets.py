"""Limited queues: the states of their limiters, claims that use budgets, and parks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.allowance import Allowance, usable
from plugq.protocols.budgets import LimitState, Want
from plugq.protocols.storage import Spent
from plugq_sqlite._statements import insert_rows, join_rows

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plugq.allowance import Limited
    from plugq.protocols.storage import ClaimRequest
    from plugq_sqlite._transaction import Queue, Transaction

_LOAD = (
    "WITH s (queue, kind, lane) AS (VALUES ?) SELECT b.kind, b.lane, b.version, b.state FROM s "
    "CROSS JOIN budget AS b ON b.queue = s.queue AND b.kind = s.kind AND b.lane = s.lane "
    "WHERE b.expires > ?"
)
_STORE = "INSERT OR REPLACE INTO budget (queue, kind, lane, version, state, expires) VALUES ?"
_PARKED = (
    "SELECT name FROM lane INDEXED BY lane_parked WHERE queue = ? AND parked_until <= ? "
    "ORDER BY parked_until, name LIMIT ?"
)
_ALL_PARKED = (
    "SELECT name FROM lane INDEXED BY lane_parked WHERE queue = ? AND parked_until IS NOT NULL"
)
_PARKED_QUEUES = "SELECT id FROM queue WHERE namespace = ? AND parked_until <= ?"
_LANE_PARKED_QUEUES = "SELECT id FROM queue WHERE namespace = ? AND lane_limits <> x''"
_EXPIRE = (
    "DELETE FROM budget WHERE (queue, kind, lane) IN (SELECT queue, kind, lane "
    "FROM budget INDEXED BY budget_expires WHERE expires <= ? LIMIT ?)"
)


class Budgeting:
    """What one claim spends, and what it would take if it had budgets."""

    def __init__(self, tx: Transaction, request: ClaimRequest) -> None:
        self._tx = tx
        self._request = request
        self.wants: list[Want] = []
        self.spent: list[Spent] = []
        #: Whether another claimer should be woken for the queue that was served last.
        self.more = False

    def allowance(self, queue: Queue, limited: Limited, left: int, room: int) -> Allowance:
        """Return what the claim may start of a limited queue, by the budgets that it brings."""
        tx = self._tx
        budgets = usable(self._request.grants, queue.name, queue.revision, tx.now, limited)
        states = _states(tx, queue, budgets)
        current = {
            lane: budget
            for lane, budget in budgets.items()
            if budget.expect == states[lane].version
        }
        return Allowance(current, limited, tx.now, left=left, room=room)

    def finish(self, queue: Queue, allowance: Allowance) -> None:
        """Write the states of what was taken, park what is used up, and note what is wanted."""
        tx = self._tx
        rows = []
        for use in allowance.used:
            state = LimitState(use.lane, tx.next_version(), use.state)
            key = _key(queue, use.lane)
            rows.append((*key, state.version, state.state, tx.now + use.ttl))
            self.spent.append(Spent(queue.name, use.starts, state))
        insert_rows(tx.db, _STORE, rows)
        for lane, until in allowance.parked.items():
            if lane is None:
                _park_queue(tx, queue, until)
            else:
                tx.lanes.park(queue.id, lane, until)
        self.more = allowance.more
        if ready := allowance.wanted:
            self.wants.append(
                Want(
                    queue=queue.name,
                    revision=queue.revision,
                    limits=queue.limits,
                    lane_limits=queue.lane_limits,
                    ready=ready,
                    states=tuple(_states(tx, queue, allowance.named).values()),
                ),
            )


def _key(queue: Queue, lane: str | None) -> tuple[int, int, str]:
    return (queue.id, 0, "") if lane is None else (queue.id, 1, lane)


def _states(
    tx: Transaction, queue: Queue, lanes: Iterable[str | None]
) -> dict[str | None, LimitState]:
    """Return the states of a queue and of lanes; with version 0 where there is none."""
    states = {lane: LimitState(lane, 0, None) for lane in lanes}
    keys = [_key(queue, lane) for lane in states]
    for kind, name, version, state in join_rows(tx.db, _LOAD, keys, (tx.now,)):
        lane = name if kind else None
        states[lane] = LimitState(lane, version, state)
    return states


def _park_queue(tx: Transaction, queue: Queue, until: float | None) -> None:
    tx.db.execute("UPDATE queue SET parked_until = ? WHERE id = ?", (until, queue.id))
    queue.parked_until = until
    if until is None:
        # One claimer at a time: they would only take turns on the one state.
        tx.opened(queue.id, 1)


def let_in(tx: Transaction, queue: Queue, most: int) -> int:
    """Let in what of a queue is parked no longer, at most so many lanes; return how many."""
    if queue.parked_until is not None and queue.parked_until <= tx.now:
        _park_queue(tx, queue, None)
    if not queue.lane_limits:
        return 0
    rows = tx.db.execute(_PARKED, (queue.id, tx.now, most)).fetchall()
    _unpark(tx, queue, rows)
    return len(rows)


def let_all_in(tx: Transaction, queue: Queue) -> None:
    """Let in a queue and all its lanes, whatever their time."""
    if queue.parked_until is not None:
        _park_queue(tx, queue, None)
    _unpark(tx, queue, tx.db.execute(_ALL_PARKED, (queue.id,)).fetchall())


def _unpark(tx: Transaction, queue: Queue, rows: list[Any]) -> None:
    for (lane,) in rows:
        tx.lanes.park(queue.id, lane, None)
    tx.lanes.repair()


def sweep(tx: Transaction, most: int) -> bool:
    """Let in what is parked no longer and forget old states; return whether more may be left."""
    for (number,) in tx.db.execute(_PARKED_QUEUES, (tx.namespace, tx.now)).fetchall():
        _park_queue(tx, tx.queue_numbered(number), None)
    count = 0
    for (number,) in tx.db.execute(_LANE_PARKED_QUEUES, (tx.namespace,)).fetchall():
        count += let_in(tx, tx.queue_numbered(number), most - count)
    expired = tx.db.execute(_EXPIRE, (tx.now, most)).rowcount
    return max(count, expired) >= most
