"""Limited queues: the states of their limiters, what claims spend of them, and parks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.allowance import Allowance, Limited, usable
from plugq.protocols.budgets import LimitState, Want
from plugq.protocols.storage import Spent
from plugq_postgres._rows import columns, text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import ClaimRequest
    from plugq_postgres._transaction import Transaction

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


class Spending:
    """What one claim may start in one limited queue, and what that costs its budgets."""

    def __init__(
        self, request: ClaimRequest, name: str, queue: Any, now: float, *, left: int
    ) -> None:
        self.name = name
        self.queue = queue
        self.limited = Limited(bool(queue["limits"]), bool(queue["lane_limits"]))
        self.budgets = usable(request.grants, name, queue["revision"], now, self.limited)
        self.picked: list[int] = []
        self._now = now
        self._left = left
        self._states: dict[str | None, LimitState] = {}
        self._allowance: Allowance | None = None

    @property
    def lanes(self) -> list[bytes] | None:
        """The lanes whose states are asked for beside those of the jobs."""
        if not self.limited.lanes:
            return None
        return [lane.encode() for lane in self.budgets if lane is not None]

    def choose(self, survey: Any, jobs: Sequence[tuple[int, bytes | None]]) -> None:
        """Judge the first jobs of the queue in their order."""
        if not jobs:
            return
        stored = (survey[column] or () for column in ("b_lanes", "b_versions", "b_states"))
        for name, version, state in zip(*stored, strict=True):
            self._states[text(name)] = LimitState(text(name), version, state)
        current = {
            lane: budget
            for lane, budget in self.budgets.items()
            if budget.expect == self._state(lane).version
        }
        allowance = self._allowance = Allowance(
            current, self.limited, self._now, left=self._left, room=survey["room"]
        )
        for seq, name in jobs:
            if allowance.done:
                break
            if allowance.take(text(name)):
                self.picked.append(seq)

    def _state(self, lane: str | None) -> LimitState:
        """Return a state, with version 0 where there is none."""
        return self._states.get(lane) or LimitState(lane, 0, None)

    @property
    def used(self) -> list[tuple[int, bytes, bytes | None, float]]:
        """What is stored of the budgets of which something was taken."""
        if self._allowance is None:
            return []
        return [(*_key(use.lane), use.state, self._now + use.ttl) for use in self._allowance.used]

    @property
    def left(self) -> int:
        """How many of the ready jobs are left to this claimer."""
        return 0 if self._allowance is None else self._allowance.left

    @property
    def more(self) -> bool:
        """Whether another claimer should be woken for the queue."""
        return self._allowance is not None and self._allowance.more

    async def park(self, tx: Transaction) -> None:
        """Park what has used up its budgets."""
        if self._allowance is None:
            return
        number = self.queue["id"]
        parked = dict(self._allowance.parked)
        if None in parked:
            await park_queue(tx, number, parked.pop(None))
        if parked:
            tx.changed.add(number)
            lanes = [(lane.encode(), until) for lane, until in parked.items() if lane is not None]
            await tx.db.execute(_PARK_LANE, number, *columns(lanes, 2), tx.namespace)
            await tx.repair((number, lane) for lane, _ in lanes)

    def stored(self, versions: Sequence[int]) -> list[Spent]:
        """Learn the versions of what was stored; return what was spent."""
        if self._allowance is None:
            return []
        spent = []
        for use, version in zip(self._allowance.used, versions, strict=True):
            state = LimitState(use.lane, version, use.state)
            if self._now + use.ttl > self._now:
                self._states[use.lane] = state
            else:
                self._states.pop(use.lane, None)
            spent.append(Spent(self.name, use.starts, state))
        return spent

    @property
    def want(self) -> Want | None:
        """What the claim would take if it had budgets."""
        if self._allowance is None or not (ready := self._allowance.wanted):
            return None
        return Want(
            queue=self.name,
            revision=self.queue["revision"],
            limits=self.queue["limits"],
            lane_limits=self.queue["lane_limits"],
            ready=ready,
            states=tuple(self._state(lane) for lane in self._allowance.named),
        )


def _key(lane: str | None) -> tuple[int, bytes]:
    return (0, b"") if lane is None else (1, lane.encode())


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
