"""Claims of limited queues: the decisions are made here, between statements of one transaction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from plugq.allowance import examined
from plugq.protocols.storage import ClaimReply
from plugq_postgres._budgets import Spending, let_in
from plugq_postgres._rows import columns
from plugq_postgres._settle import leases, settle_replies
from plugq_postgres._transaction import HEADS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.budgets import Want
    from plugq.protocols.storage import ClaimRequest, SettleReply, Spent
    from plugq_postgres._transaction import Transaction

_SETTLE = (
    "SELECT places, states, effect::text AS effect, changed FROM settle_jobs_v1($1, $2, $3, $4, "
    "$5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)"
)
_QUEUES = (
    "SELECT q.*, q.lane_limits <> '' AND EXISTS (SELECT 1 FROM lane WHERE lane.queue = q.id "
    "AND lane.parked_until <= $2) AS lets_in, $5 > 0 AND repeated_v1($3, $4, $6) AS repeated "
    "FROM queue q WHERE q.id = ANY ($1)"
)
_SURVEY = "SELECT * FROM survey_v1($1, $2, $3, $4, $5, $6)"
_SPEND = "SELECT * FROM spend_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
_PROMOTE = (
    "SELECT due, ROW (ready, NULL)::effect_v1::text AS effect FROM promote_due_v1($1, $2, $3, $4)"
)
_TAKE = (
    "SELECT taken, whole, ROW (ready, NULL)::effect_v1::text AS effect "
    "FROM take_v1($1, $2, $3, $4, $5, $6, $7, $8, $9)"
)
_LEASES = "SELECT l.* FROM leases_v1($1, $2, $3, $4, $5) AS l"
_SERVED = (
    "SELECT l.*, served_v1($1, $2, $3, $6, $7, $4, $8, $5, $9) "
    "FROM leases_v1($1, $2, $3, $4, $5) AS l"
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
        self.wants: list[Want] = []
        self.spent: list[Spent] = []

    async def serve(self, limited: set[str]) -> ClaimReply:
        tx, request = self.tx, self.request
        numbers, _ = await tx.names.number(request.queues, db=tx.db)
        names = list(dict.fromkeys(request.queues))
        ids = [numbers[name] for name in names]
        asked = (tx.namespace, self.worker, request.limit, request.number)
        queues = {row["id"]: row for row in await tx.db.fetch(_QUEUES, ids, tx.now, *asked)}
        for name in names:
            row = queues[numbers[name]]
            (limited.add if row["limits"] or row["lane_limits"] else limited.discard)(name)
        number = request.number if request.limit > 0 else -1
        about = (tx.namespace, tx.now, ids, self.worker, number)
        if any(row["repeated"] for row in queues.values()):
            for queue in ids:
                if not queues[queue]["paused"]:
                    self.due.append(await self._due_in(queue))
            return await self._reply(await tx.db.fetchrow(_LEASES, *about))
        for name in names:
            if not queues[numbers[name]]["paused"]:
                await self._serve(name, queues[numbers[name]])
        tx.claimed_by(request.peer, ids)
        served = (request.limit, self.granted, request.peer.encode(), request.lease)
        return await self._reply(await tx.db.fetchrow(_SERVED, *about, *served))

    async def _reply(self, found: Any) -> ClaimReply:
        tx = self.tx
        await tx.names.learn(found["l_queue"] or (), found["l_task"] or (), db=tx.db)
        return ClaimReply(
            leases=leases(found, tx.names),
            next_in=min((due for due in self.due if due is not None), default=None),
            wants=tuple(self.wants),
            spent=tuple(self.spent),
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
        if queue["lets_in"] or (parked is not None and parked <= tx.now):
            parked, _ = await let_in(tx, queue, examined(left))
        if left <= 0:
            self.due.append(await self._due_in(number))
            return
        if bounded:
            await self._serve_limited(name, queue, left, parked=parked is not None)
            return
        step = await tx.db.fetchrow(_PROMOTE, tx.namespace, tx.now, number, left)
        self.due.append(step["due"])
        tx.note(step["effect"])
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

    async def _serve_limited(self, name: str, queue: Any, left: int, *, parked: bool) -> None:
        """Start what the budgets of a limited queue let start."""
        tx, number = self.tx, queue["id"]
        spending = Spending(self.request, name, queue, tx.now, left=left)
        survey = await self._survey(spending, left, 0 if parked else examined(left))
        if parked or not survey["whole"]:
            if not survey["whole"]:
                self.due.append(0.0)
            return
        jobs = _jobs(survey)
        crowded: list[tuple[int, bytes]] = []
        if len(jobs) > HEADS and queue["lane_max_running"] > HEADS:
            # Jobs behind the heads of a lane may come before those of others.
            counts = Counter(lane for _, lane in jobs if lane is not None)
            crowded = [(number, lane) for lane, n in counts.items() if n >= HEADS]
            if crowded:
                await tx.repair(crowded, examined(left))
                survey = await self._survey(spending, left, examined(left))
                if not survey["whole"]:
                    self.due.append(0.0)
                    return
                jobs = _jobs(survey)
        if survey["cut"]:
            self.due.append(0.0)
        spending.choose(survey, jobs)
        await spending.park(tx)
        await self._spend(spending)
        await tx.repair(crowded)
        if (want := spending.want) is not None:
            self.wants.append(want)
        tx.taken(number, spending.left)
        self._count(number, len(spending.picked))
        if spending.more:
            tx.wake_one(number)

    async def _survey(self, spending: Spending, left: int, most: int) -> Any:
        tx = self.tx
        survey = await tx.db.fetchrow(
            _SURVEY, tx.namespace, tx.now, spending.queue["id"], left, most, spending.lanes
        )
        self.due.append(survey["due"])
        tx.note(survey["effect"])
        return survey

    async def _spend(self, spending: Spending) -> None:
        """Lease the jobs that were chosen, and keep what that leaves of the budgets."""
        tx, request, used = self.tx, self.request, spending.used
        if not used and not spending.picked:
            return
        answer = await tx.db.fetchrow(
            _SPEND,
            tx.namespace,
            tx.now,
            spending.queue["id"],
            spending.picked,
            self.worker,
            request.peer.encode(),
            request.number,
            request.lease,
            *columns(used, 4),
        )
        tx.note(answer["effect"])
        tx.changed.add(spending.queue["id"])
        self.spent += spending.stored(answer["versions"] or ())


def _jobs(survey: Any) -> list[tuple[int, bytes | None]]:
    return list(zip(survey["seqs"] or (), survey["lanes"] or (), strict=True))
