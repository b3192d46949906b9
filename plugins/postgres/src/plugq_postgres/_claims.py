"""Claims of limited queues: the decisions are made here, between statements of one transaction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from plugq.allowance import examined
from plugq.protocols.storage import ClaimReply
from plugq_postgres._budgets import Budgeting, let_in
from plugq_postgres._settle import leases, settle_replies
from plugq_postgres._transaction import HEADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import ClaimRequest, SettleReply
    from plugq_postgres._transaction import Transaction

_SETTLE = (
    "SELECT places, states, effect::text AS effect, changed FROM settle_jobs_v1($1, $2, $3, $4, "
    "$5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
)
_QUEUES = "SELECT * FROM queue WHERE id = ANY ($1)"
_CLAIMED = "SELECT repeated_v1($1, $2, $3)"
_PROMOTE = (
    "SELECT due, ROW (ready, NULL)::effect_v1::text AS effect FROM promote_due_v1($1, $2, $3, $4)"
)
_TAKE = (
    "SELECT taken, whole, ROW (ready, NULL)::effect_v1::text AS effect "
    "FROM take_v1($1, $2, $3, $4, $5, $6, $7, $8, $9)"
)
_GRANT = "SELECT ROW (grant_v1($1, $2, $3, $4, $5, $6, $7, $8), NULL)::effect_v1::text"
_FIRST = (
    "SELECT f.whole, f.cut, s.seq, job.lane FROM first_v1($1, $2, $3, $3) AS f "
    "LEFT JOIN LATERAL unnest(f.seqs) WITH ORDINALITY AS s (seq, n) ON true "
    "LEFT JOIN job ON job.seq = s.seq ORDER BY s.n"
)


async def claim_limited(
    tx: Transaction,
    settlements: Sequence[list[Any]],
    count: int,
    request: ClaimRequest,
    limited: set[str],
) -> tuple[list[SettleReply], ClaimReply]:
    """End attempts, then serve a claim; ``limited`` learns which queues are."""
    replies: list[SettleReply] = []
    if count:
        answer = await tx.db.fetchrow(_SETTLE, tx.namespace, tx.now, *settlements)
        replies = settle_replies(count, answer)
        tx.changed.update(answer["changed"] or ())
        tx.note(answer["effect"])
    return replies, await _Claim(tx, request).serve(limited)


class _Claim:
    def __init__(self, tx: Transaction, request: ClaimRequest) -> None:
        self.tx = tx
        self.request = request
        self.worker = request.worker.encode()
        self.granted = 0
        self.due: list[float | None] = []
        self.budgeting = Budgeting(tx, request)

    async def serve(self, limited: set[str]) -> ClaimReply:
        tx, request = self.tx, self.request
        numbers, _ = await tx.names.number(request.queues, db=tx.db)
        names = list(dict.fromkeys(request.queues))
        ids = [numbers[name] for name in names]
        queues = {row["id"]: row for row in await tx.db.fetch(_QUEUES, ids)}
        for name in names:
            row = queues[numbers[name]]
            (limited.add if row["limits"] or row["lane_limits"] else limited.discard)(name)
        if request.limit > 0 and await tx.db.fetchval(
            _CLAIMED, tx.namespace, self.worker, request.number
        ):
            for number in ids:
                if not queues[number]["paused"]:
                    self.due.append(await self._due_in(number))
            return await self._reply(ids)
        for name in names:
            if not queues[numbers[name]]["paused"]:
                await self._serve(name, queues[numbers[name]])
        await tx.db.execute(
            "SELECT served_v1($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            tx.namespace,
            tx.now,
            ids,
            request.limit,
            self.granted,
            self.worker,
            request.peer.encode(),
            request.number,
            request.lease,
        )
        tx.claimed_by(request.peer, ids)
        return await self._reply(ids)

    async def _reply(self, ids: Sequence[int]) -> ClaimReply:
        tx, request = self.tx, self.request
        found = await tx.db.fetchrow(
            "SELECT * FROM leases_v1($1, $2, $3, $4, $5)",
            tx.namespace,
            tx.now,
            ids,
            self.worker,
            request.number if request.limit > 0 else -1,
        )
        await tx.names.learn(found["l_queue"] or (), found["l_task"] or (), db=tx.db)
        return ClaimReply(
            leases=leases(found, tx.names),
            next_in=min((due for due in self.due if due is not None), default=None),
            wants=tuple(self.budgeting.wants),
            spent=tuple(self.budgeting.spent),
            now=tx.now,
        )

    async def _due_in(self, queue: int) -> float | None:
        due: float | None = await self.tx.db.fetchval(
            "SELECT due_in_v1($1, $2)", queue, self.tx.now
        )
        return due

    async def _serve(self, name: str, queue: Any) -> None:
        tx, request = self.tx, self.request
        number = queue["id"]
        left = request.limit - self.granted
        bounded = queue["limits"] or queue["lane_limits"]
        parked = queue["parked_until"]
        if bounded:
            parked, _ = await let_in(tx, queue, examined(left))
        if left <= 0:
            self.due.append(await self._due_in(number))
            return
        step = await tx.db.fetchrow(_PROMOTE, tx.namespace, tx.now, number, left)
        self.due.append(step["due"])
        tx.note(step["effect"])
        if bounded:
            picked = None if parked is not None else await self._pick(name, queue, left)
            if picked is None:
                return
            tx.note(
                await tx.db.fetchval(
                    _GRANT,
                    tx.namespace,
                    tx.now,
                    number,
                    picked,
                    self.worker,
                    request.peer.encode(),
                    request.number,
                    request.lease,
                )
            )
            self._count(number, len(picked))
            if self.budgeting.more:
                tx.wake_one(number)
            return
        step = await tx.db.fetchrow(
            _TAKE,
            tx.namespace,
            tx.now,
            number,
            left,
            request.limit,
            self.worker,
            request.peer.encode(),
            request.number,
            request.lease,
        )
        tx.note(step["effect"])
        self._count(number, step["taken"])
        if not step["whole"]:
            self.due.append(0.0)

    def _count(self, queue: int, count: int) -> None:
        self.granted += count
        self.tx.taken(queue, count)
        if count:
            self.tx.changed.add(queue)

    async def _pick(self, name: str, queue: Any, left: int) -> list[int] | None:
        """Return the jobs of a limited queue that its budgets let start."""
        tx = self.tx
        self.budgeting.more = False
        room = await tx.db.fetchval("SELECT room_v1($1)", queue["id"])
        if room <= 0:
            return []
        crowded: list[tuple[int, bytes]] = []
        rows = await self._look(queue["id"], examined(left))
        if rows and len(rows) > HEADS and queue["lane_max_running"] > HEADS:
            # Jobs behind the heads of a lane may come before those of others.
            counts = Counter(lane for _, lane in rows if lane is not None)
            crowded = [(queue["id"], lane) for lane, n in counts.items() if n >= HEADS]
            if crowded:
                await tx.repair(crowded, examined(left))
                rows = await self._look(queue["id"], examined(left))
        if rows is None:
            self.due.append(0.0)
            return None
        picked = await self.budgeting.spend(name, queue, rows, left, room)
        await tx.repair(crowded)
        return picked

    async def _look(self, queue: int, most: int) -> list[tuple[int, bytes | None]] | None:
        """Return the first jobs in their order; ``None`` if overdue ones cut the search short."""
        rows = await self.tx.db.fetch(_FIRST, self.tx.now, queue, most)
        if not rows[0]["whole"]:
            return None
        if rows[0]["cut"]:
            self.due.append(0.0)
        return [(row["seq"], row["lane"]) for row in rows if row["seq"] is not None]
