"""Limited queues: the states of their limiters, what claims spend of them, and parks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.allowance import Allowance, Limited, usable
from plugq.protocols.budgets import LimitState, Want
from plugq.protocols.storage import Spent
from plugq_postgres._rows import columns, text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from plugq.protocols.storage import ClaimRequest
    from plugq_postgres._transaction import Transaction

_LOAD = (
    "SELECT b.kind, b.lane, b.version, b.state "
    "FROM unnest($2::smallint[], $3::bytea[]) AS s (kind, lane) "
    "JOIN budget b ON b.queue = $1 AND b.kind = s.kind AND b.lane = s.lane WHERE b.expires > $4"
)
_STORE = (
    "INSERT INTO budget AS b (namespace, queue, kind, lane, version, state, expires) "
    "SELECT $6, $1, s.kind, s.lane, nextval('version_sequence'), s.state, s.expires "
    "FROM unnest($2::smallint[], $3::bytea[], $4::bytea[], $5::float8[]) "
    "AS s (kind, lane, state, expires) "
    "ON CONFLICT (queue, kind, lane) DO UPDATE SET version = excluded.version, "
    "state = excluded.state, expires = excluded.expires RETURNING kind, lane, version"
)
_PARK_LANE = (
    "INSERT INTO lane (namespace, queue, name, running, parked_until) "
    "SELECT $4, $1, s.lane, 0, s.until "
    "FROM unnest($2::bytea[], $3::float8[]) AS s (lane, until) "
    "ON CONFLICT (queue, name) DO UPDATE SET parked_until = excluded.parked_until"
)
_PARKED = (
    "SELECT name FROM lane WHERE queue = $1 AND parked_until <= $2 "
    "ORDER BY parked_until, name LIMIT $3"
)
_UNPARK = "UPDATE lane SET parked_until = NULL WHERE queue = $1 AND name = ANY ($2)"
_FORGET = (
    "DELETE FROM lane WHERE queue = $1 AND name = ANY ($2) AND running <= 0 "
    "AND parked_until IS NULL"
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

    async def spend(
        self,
        name: str,
        queue: Any,
        rows: Sequence[tuple[int, bytes | None]],
        left: int,
        room: int,
    ) -> list[int]:
        """Return which of the first jobs of a queue its budgets let start, and spend these."""
        if not rows:
            return []
        tx = self._tx
        limited = Limited(bool(queue["limits"]), bool(queue["lane_limits"]))
        budgets = usable(self._request.grants, name, queue["revision"], tx.now, limited)
        states = await _states(tx, queue["id"], budgets)
        current = {
            lane: budget
            for lane, budget in budgets.items()
            if budget.expect == states[lane].version
        }
        allowance = Allowance(current, limited, tx.now, left=left, room=room)
        picked = []
        for seq, lane in rows:
            if allowance.done:
                break
            if allowance.take(text(lane)):
                picked.append(seq)
        await self._write(name, queue["id"], allowance)
        self.more = allowance.more
        if ready := allowance.wanted:
            wanted = await _states(tx, queue["id"], allowance.named)
            self.wants.append(
                Want(
                    queue=name,
                    revision=queue["revision"],
                    limits=queue["limits"],
                    lane_limits=queue["lane_limits"],
                    ready=ready,
                    states=tuple(wanted.values()),
                ),
            )
        tx.taken(queue["id"], allowance.left)
        return picked

    async def _write(self, name: str, queue: int, allowance: Allowance) -> None:
        tx = self._tx
        used = {_key(use.lane): use for use in allowance.used}
        if used:
            tx.changed.add(queue)
            rows = [(*key, use.state, tx.now + use.ttl) for key, use in used.items()]
            stored = await tx.db.fetch(_STORE, queue, *columns(rows, 4), tx.namespace)
            versions = {(row["kind"], row["lane"]): row["version"] for row in stored}
            for key, use in used.items():
                state = LimitState(use.lane, versions[key], use.state)
                self.spent.append(Spent(name, use.starts, state))
        parked = dict(allowance.parked)
        if None in parked:
            await park_queue(tx, queue, parked.pop(None))
        if parked:
            tx.changed.add(queue)
            lanes = [(lane.encode(), until) for lane, until in parked.items() if lane is not None]
            await tx.db.execute(_PARK_LANE, queue, *columns(lanes, 2), tx.namespace)
            await tx.repair((queue, lane) for lane, _ in lanes)


def _key(lane: str | None) -> tuple[int, bytes]:
    return (0, b"") if lane is None else (1, lane.encode())


async def _states(
    tx: Transaction, queue: int, lanes: Iterable[str | None]
) -> dict[str | None, LimitState]:
    """Return the states of a queue and of lanes; with version 0 where there is none."""
    states = {lane: LimitState(lane, 0, None) for lane in lanes}
    keys = [_key(lane) for lane in states]
    for kind, name, version, state in await tx.db.fetch(_LOAD, queue, *columns(keys, 2), tx.now):
        lane = name.decode() if kind else None
        states[lane] = LimitState(lane, version, state)
    return states


async def park_queue(tx: Transaction, queue: int, until: float | None) -> None:
    """Let a queue grant nothing until then; ``None`` lets it in again."""
    await tx.db.execute("UPDATE queue SET parked_until = $2 WHERE id = $1", queue, until)
    tx.changed.add(queue)
    if until is None:
        # One claimer at a time: they would only take turns on the one state.
        tx.opened(queue, 1)


async def let_in(tx: Transaction, queue: Any, most: int) -> tuple[float | None, int]:
    """Let in what of a queue is parked no longer, at most so many lanes.

    Returns until when the queue itself is parked, and how many lanes were let in.
    """
    until: float | None = queue["parked_until"]
    if until is not None and until <= tx.now:
        await park_queue(tx, queue["id"], None)
        until = None
    if not queue["lane_limits"]:
        return until, 0
    rows = await tx.db.fetch(_PARKED, queue["id"], tx.now, most)
    await unpark(tx, queue["id"], [row["name"] for row in rows])
    return until, len(rows)


async def unpark(tx: Transaction, queue: int, lanes: Sequence[bytes]) -> None:
    """Let lanes in again."""
    if lanes:
        tx.changed.add(queue)
        await tx.db.execute(_UNPARK, queue, lanes)
        await tx.repair((queue, lane) for lane in lanes)
        await tx.db.execute(_FORGET, queue, lanes)
