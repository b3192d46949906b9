"""Housekeeping: everything that time alone makes due, each kind found through its own index."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import AttemptRecord, Event, state_after_lapse
from plugq.protocols.storage import Change, SweepReply
from plugq_postgres._budgets import let_in, park_queue
from plugq_postgres._rows import (
    CANCELLED,
    CODES,
    COLUMNS,
    FAILED,
    KINDS,
    QUEUED,
    STATES,
    Row,
    packed,
    text,
)
from plugq_postgres._transaction import Finish, Requeue

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from plugq.protocols.storage import SweepRequest
    from plugq_postgres._database import Database
    from plugq_postgres._transaction import Transaction


def _first(table: str, condition: str, order: str) -> str:
    """Return a statement for the first rows that time has made due, in the queues of the sweep."""
    # The queues are written so that no plan looks for the rows by them.
    return (
        f"SELECT {COLUMNS} FROM (SELECT * FROM {table} WHERE namespace = $1 AND {condition} "
        f"AND queue::bigint = ANY ($4::bigint[]) ORDER BY {order} LIMIT $3) j"
    )


_LAPSED = _first("job", "state = 2 AND lease_until <= $2", "lease_until")
_OVERRUN = _first("job", "state = 2 AND deadline_at <= $2", "deadline_at")
_OVERDUE = _first("job", "state < 2 AND deadline_at <= $2", "deadline_at")
_DUE = _first("job", "state = 0 AND ready_at <= $2", "ready_at, place")
_TIDY = _first("done", "tidy_at <= $2", "tidy_at")
_CLEAR = "UPDATE done SET result = NULL, tidy_at = expires_at WHERE seq = ANY ($1)"


def _forgotten(table: str, keys: str, time: str, *, of_queues: bool = False) -> str:
    """Return a statement that forgets rows whose time has passed, and still has when they go."""
    mine = " AND queue = ANY ($4)" * of_queues
    return (
        f"DELETE FROM {table} WHERE ({keys}) IN (SELECT {keys} FROM {table} "
        f"WHERE namespace = $1 AND {time} <= $2{mine} ORDER BY {time} LIMIT $3) AND {time} <= $2"
    )


_FORGET = (
    f"WITH r AS ({_forgotten('register', 'namespace, key', 'expires')} RETURNING 1), "
    f"u AS ({_forgotten('unique_key', 'queue, key', 'until', of_queues=True)} RETURNING 1), "
    f"b AS ({_forgotten('budget', 'queue, kind, lane', 'expires', of_queues=True)} RETURNING 1), "
    f"c AS ({_forgotten('claimed', 'namespace, worker, number', 'until')} RETURNING 1), "
    f"t AS ({_forgotten('batch', 'namespace, name', 'expires')} RETURNING 1) "
    "SELECT greatest((SELECT count(*) FROM r), (SELECT count(*) FROM u), (SELECT count(*) FROM b), "
    "(SELECT count(*) FROM c), (SELECT count(*) FROM t))"
)
_IDLE = (
    "SELECT s.id, count(*) FROM (SELECT unnest(p.queues) AS id FROM peer p "
    "WHERE p.namespace = $1) s WHERE s.id = ANY ($2) GROUP BY s.id"
)
_DEAD = "SELECT forget_dead_v1($1)"
_PARKED = (
    "SELECT * FROM queue WHERE id = ANY ($1) "
    "AND (parked_until <= $2 OR lane_limits <> '') ORDER BY id"
)
_NEXT = "SELECT next_v1($1, $2, $3)"
_LOOK = "SELECT * FROM {schema}.look_v1($1, $2, $3, $4, $5, $6, $7)"


class _Sweep:
    def __init__(self, tx: Transaction, request: SweepRequest, queues: Sequence[int]) -> None:
        self.tx = tx
        self.request = request
        self.queues = queues
        self.limit = max(0, request.limit)
        self.changes: list[tuple[Row, Event, int | None, str]] = []
        #: Whether a kind filled its limit, so that more may be left.
        self.more = False

    async def rows(self, statement: str, before: float) -> list[Row]:
        tx = self.tx
        found = await tx.db.fetch(statement, tx.namespace, before, self.limit, self.queues)
        self.more = self.more or len(found) >= self.limit
        return [Row._make(row) for row in found]

    async def run(self) -> SweepReply:
        tx = self.tx
        if self.request.end_leases:
            await self._lapsed()
            await self._running_past_deadline()
        await self._waiting_past_deadline()
        await self._due()
        await self._tidy()
        await self._let_in()
        forgotten = await tx.db.fetchval(_FORGET, tx.namespace, tx.now, self.limit, self.queues)
        self.more = self.more or forgotten >= self.limit
        await tx.db.execute(_DEAD, tx.namespace)
        for queue, peers in await tx.db.fetch(_IDLE, tx.namespace, self.queues):
            tx.opened(queue, peers)
            tx.changed.discard(queue)
        next_in = await self._next_in()
        return SweepReply(changes=await self._told(), next_in=next_in)

    async def _told(self) -> tuple[Change, ...]:
        names = self.tx.names
        await names.learn(
            [row.queue for row, *_ in self.changes],
            [row.task for row, *_ in self.changes],
            db=self.tx.db,
        )
        return tuple(
            Change(
                queue=names.queue(row.queue),
                id=row.id.decode(),
                task=names.task(row.task),
                event=event,
                state=None if state is None else STATES[state],
                sequence=row.place,
                attempt=row.attempt,
                code=code,
                lane=text(row.lane),
                batch=text(row.batch),
            )
            for row, event, state, code in self.changes
        )

    async def _lapsed(self) -> None:
        tx = self.tx
        ended: list[Finish] = []
        back: list[Requeue] = []
        for row in await self.rows(_LAPSED, tx.now):
            crashes = row.crashes + 1
            state = state_after_lapse(
                cancel_requested=row.cancel,
                attempts_left=row.attempt < row.max_attempts,
                crashes=crashes,
                max_crashes=self.request.max_crashes,
            )
            error = _error(
                row,
                "crashed",
                "Crashed",
                f"the lease of worker {row.worker.decode()!r} ended without a settlement",
            )
            code, total = CODES[state], KINDS["lease_ended"]
            if state.final:
                reason = "crashed" if code == FAILED else ""
                ended.append(
                    Finish(
                        row=row, state=code, code=reason, error=error, crashes=crashes, total=total
                    )
                )
            else:
                back.append(Requeue(row=row, state=code, error=error, crashes=crashes, total=total))
            self.changes.append((row, Event.LAPSE, code, "crashed"))
        await tx.finish(ended)
        await tx.requeue(back)

    async def _running_past_deadline(self) -> None:
        ended = []
        for row in await self.rows(_OVERRUN, self.tx.now - self.request.deadline_grace):
            error = _error(
                row,
                "deadline",
                "DeadlineExceeded",
                f"worker {row.worker.decode()!r} still ran it when the deadline had passed",
            )
            state = CANCELLED if row.cancel else FAILED
            code = "deadline" if state == FAILED else ""
            ended.append(Finish(row=row, state=state, code=code, error=error, crashes=row.crashes))
            self.changes.append((row, Event.DEADLINE, state, code))
        await self.tx.finish(ended)

    async def _waiting_past_deadline(self) -> None:
        rows = await self.rows(_OVERDUE, self.tx.now)
        self.changes += [(row, Event.DEADLINE, FAILED, "deadline") for row in rows]
        await self.tx.finish(
            [
                Finish(
                    row=row,
                    state=FAILED,
                    code="deadline",
                    ended=row.deadline_at,
                    crashes=row.crashes,
                )
                for row in rows
            ]
        )

    async def _due(self) -> None:
        rows = await self.rows(_DUE, self.tx.now)
        self.tx.changed.update(row.queue for row in rows)
        await self.tx.promote([row.seq for row in rows])
        self.changes += [(row, Event.DUE, QUEUED, "") for row in rows]

    async def _tidy(self) -> None:
        """Clear the results and remove the records whose retention has passed."""
        tx = self.tx
        rows = await self.rows(_TIDY, tx.now)
        gone = [row for row in rows if row.expired <= tx.now]
        cleared = [row.seq for row in rows if row.expired > tx.now]
        self.changes += [(row, Event.REMOVE, None, "") for row in gone]
        tx.changed.update(row.queue for row in gone)
        await tx.remove([row.seq for row in gone])
        if cleared:
            await tx.db.execute(_CLEAR, cleared)

    async def _let_in(self) -> None:
        tx = self.tx
        count = 0
        for queue in await tx.db.fetch(_PARKED, self.queues, tx.now):
            if queue["lane_limits"]:
                _, lanes = await let_in(tx, queue, self.limit - count)
                count += lanes
            else:
                await park_queue(tx, queue["id"], None)
        self.more = self.more or (count > 0 and count >= self.limit)

    async def _next_in(self) -> float | None:
        if self.more:
            return 0.0
        tx, request = self.tx, self.request
        soonest: float | None = await tx.db.fetchval(
            _NEXT, tx.namespace, request.end_leases, request.deadline_grace
        )
        return None if soonest is None else max(0.0, soonest - tx.now)


def _error(row: Row, code: str, type_: str, message: str) -> bytes | None:
    return packed(AttemptRecord(attempt=row.attempt, code=code, type=type_, message=message))


async def sweep(tx: Transaction, request: SweepRequest, queues: Sequence[int]) -> SweepReply:
    """Do what time makes due in these queues, which are locked, at most ``limit`` of each kind."""
    return await _Sweep(tx, request, queues).run()


async def look(
    database: Database,
    request: SweepRequest,
    held: Sequence[int],
    admit: Callable[[], Awaitable[None]],
) -> tuple[SweepReply | Sequence[int], bool]:
    """Return the answer to a sweep that has nothing to do, or the queues in which it has.

    It costs one round trip and takes no lock, unless there is something to ``admit``, and looks at
    no queue that is ``held``. With it comes whether anybody listens.
    """

    async def ask(*, first: bool) -> Any:
        [found] = await database.read(
            _LOOK.format(schema=database.schema),
            database.namespace,
            database.at,
            request.end_leases,
            request.deadline_grace,
            max(1, request.limit),
            held,
            first,
        )
        return found

    found = await ask(first=True)
    if found["waits"]:
        await admit()
        found = await ask(first=False)
    if found["work"]:
        return found["queues"], found["listened"]
    now, soonest = database.now(found["now"]), found["next"]
    next_in = None if soonest is None else max(0.0, soonest - now)
    return SweepReply(next_in=next_in), found["listened"]
