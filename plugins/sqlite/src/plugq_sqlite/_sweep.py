"""Housekeeping: everything that time alone makes due, each kind found through its own index."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import AttemptRecord, Event, state_after_lapse
from plugq.protocols.storage import Change, SweepReply
from plugq_sqlite import _budgets
from plugq_sqlite._moves import Finish, Requeue, finish, promote, remove, requeue
from plugq_sqlite._rows import (
    CANCELLED,
    CODES,
    COLUMNS,
    FAILED,
    LEASE_ENDED,
    QUEUED,
    RUNNING,
    STATES,
    Row,
)
from plugq_sqlite._signals import Delivery, reachable
from plugq_sqlite._statements import numbers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plugq.protocols.storage import SweepRequest
    from plugq_sqlite._transaction import Transaction

#: How often each peer is looked for, in seconds, and how many in one sweep.
PROBE_EVERY = 30.0
_PROBED = 20

_LAPSED = f"""
    SELECT {COLUMNS} FROM worker CROSS JOIN job INDEXED BY job_lease
    ON job.namespace = worker.namespace AND job.worker = worker.name
    WHERE worker.namespace = ? AND job.state = 2 AND job.lease_until <= ? LIMIT ?
"""
_PAST_DEADLINE = f"""
    SELECT {COLUMNS} FROM job INDEXED BY job_deadline
    WHERE namespace = ? AND state = ? AND state < 3 AND deadline_at <= ?
    ORDER BY deadline_at LIMIT ?
"""
_DUE = """
    SELECT job.seq, job.queue, job.task, job.lane, job.id, job.attempt
    FROM queue CROSS JOIN job INDEXED BY job_due ON job.queue = queue.id
    WHERE queue.namespace = ? AND job.state = 0 AND job.ready_at <= ? LIMIT ?
"""
_TIDY = f"""
    SELECT {COLUMNS} FROM job INDEXED BY job_tidy
    WHERE namespace = ? AND state > 2 AND tidy_at <= ? ORDER BY tidy_at LIMIT ?
"""
_NEXT_DUE = """
    SELECT min((SELECT ready_at FROM job INDEXED BY job_due
        WHERE job.queue = queue.id AND state = 0 ORDER BY ready_at LIMIT 1))
    FROM queue WHERE namespace = ?
"""
_NEXT_LAPSE = """
    SELECT min((SELECT lease_until FROM job INDEXED BY job_lease
        WHERE job.namespace = worker.namespace AND job.worker = worker.name AND state = 2
        ORDER BY lease_until LIMIT 1))
    FROM worker WHERE namespace = ?
"""
_NEXT_DEADLINE = (
    "SELECT min(deadline_at) FROM job INDEXED BY job_deadline "
    "WHERE namespace = ? AND state = ? AND state < 3 AND deadline_at IS NOT NULL"
)
_NEXT_TIDY = (
    "SELECT min(tidy_at) FROM job INDEXED BY job_tidy "
    "WHERE namespace = ? AND state > 2 AND tidy_at IS NOT NULL"
)


class _Sweep:
    def __init__(self, tx: Transaction, request: SweepRequest) -> None:
        self.tx = tx
        self.request = request
        self.limit = request.limit
        self.changes: list[Change] = []
        #: Whether a kind filled its limit, so that more may be left.
        self.more = False

    def rows(self, statement: str, *parameters: Any) -> list[Row]:
        found = [Row._make(row) for row in self.tx.db.execute(statement, (*parameters, self.limit))]
        self.more = self.more or len(found) >= self.limit
        return found

    def note(self, row: Row, event: Event, state: int | None, code: str = "") -> None:
        self.changes.append(
            Change(
                queue=self.tx.queue_numbered(row.queue).name,
                id=row.id,
                task=self.tx.task_name(row.task),
                event=event,
                state=None if state is None else STATES[state],
                sequence=row.seq,
                attempt=row.attempt,
                code=code,
            ),
        )

    def run(self) -> SweepReply:
        tx = self.tx
        if self.request.end_leases:
            self._lapsed()
            self._running_past_deadline()
        self._waiting_past_deadline()
        self._due()
        self._tidy()
        self._small_things()
        self.more = _budgets.sweep(tx, self.limit) or self.more
        self._probe_peers()
        self._wake_idle()
        tx.end_call()
        return SweepReply(changes=tuple(self.changes), next_in=self._next_in())

    def _lapsed(self) -> None:
        tx = self.tx
        ended, back = [], []
        for row in self.rows(_LAPSED, tx.namespace, tx.now):
            crashes = row.crashes + 1
            state = state_after_lapse(
                cancel_requested=bool(row.cancel),
                attempts_left=row.attempt < row.max_attempts,
                crashes=crashes,
                max_crashes=self.request.max_crashes,
            )
            error = AttemptRecord(
                attempt=row.attempt,
                code="crashed",
                type="Crashed",
                message=f"the lease of worker {row.worker!r} ended without a settlement",
            )
            tx.tally(row.queue, row.task)[LEASE_ENDED] += 1
            code = CODES[state]
            if state.final:
                reason = "crashed" if code == FAILED else ""
                counted = row._replace(crashes=crashes)
                ended.append(Finish(row=counted, state=code, code=reason, error=error))
            else:
                back.append(
                    Requeue(
                        row=row,
                        state=QUEUED,
                        ready_at=row.ready_at,
                        attempt=row.attempt,
                        crashes=crashes,
                        unknown=row.unknown,
                        unknown_since=row.unknown_since,
                        error=error,
                    ),
                )
            self.note(row, Event.LAPSE, code, "crashed")
        finish(tx, ended)
        requeue(tx, back)

    def _running_past_deadline(self) -> None:
        tx = self.tx
        ended = []
        before = tx.now - self.request.deadline_grace
        for row in self.rows(_PAST_DEADLINE, tx.namespace, RUNNING, before):
            error = AttemptRecord(
                attempt=row.attempt,
                code="deadline",
                type="DeadlineExceeded",
                message=f"worker {row.worker!r} still ran it when the deadline had passed",
            )
            state = CANCELLED if row.cancel else FAILED
            code = "deadline" if state == FAILED else ""
            ended.append(Finish(row=row, state=state, code=code, error=error))
            self.note(row, Event.DEADLINE, state, code)
        finish(tx, ended)

    def _waiting_past_deadline(self) -> None:
        tx = self.tx
        for waiting in range(RUNNING):
            rows = self.rows(_PAST_DEADLINE, tx.namespace, waiting, tx.now)
            for row in rows:
                self.note(row, Event.DEADLINE, FAILED, "deadline")
            finish(
                tx,
                [
                    Finish(row=row, state=FAILED, code="deadline", finished_at=row.deadline_at)
                    for row in rows
                ],
            )

    def _due(self) -> None:
        tx = self.tx
        rows = tx.db.execute(_DUE, (tx.namespace, tx.now, self.limit)).fetchall()
        self.more = self.more or len(rows) >= self.limit
        if not rows:
            return
        promote(tx, [row[:4] for row in rows])
        for seq, queue, task, _, id_, attempt in rows:
            self.changes.append(
                Change(
                    queue=tx.queue_numbered(queue).name,
                    id=id_,
                    task=tx.task_name(task),
                    event=Event.DUE,
                    state=STATES[QUEUED],
                    sequence=seq,
                    attempt=attempt,
                ),
            )

    def _tidy(self) -> None:
        """Clear the results and remove the records whose retention has passed."""
        tx = self.tx
        gone, cleared = [], []
        for row in self.rows(_TIDY, tx.namespace, tx.now):
            if row.expires_at is not None and row.expires_at <= tx.now:
                gone.append(row)
                self.note(row, Event.REMOVE, None)
            else:
                cleared.append(row.seq)
        remove(tx, gone)
        if cleared:
            tx.db.execute(
                "UPDATE job SET result = NULL, tidy_at = expires_at FROM json_each(?) AS s "
                "WHERE job.seq = s.value",
                (numbers(cleared),),
            )

    def _small_things(self) -> None:
        tx, db, limit = self.tx, self.tx.db, self.limit
        removed = [
            db.execute(
                "DELETE FROM register WHERE (namespace, key) IN (SELECT namespace, key "
                "FROM register INDEXED BY register_expires "
                "WHERE namespace = ? AND expires <= ? LIMIT ?)",
                (tx.namespace, tx.now, limit),
            ).rowcount,
            db.execute(
                "DELETE FROM unique_key WHERE (queue, key) IN (SELECT queue, key FROM unique_key "
                "INDEXED BY unique_until WHERE until <= ? LIMIT ?)",
                (tx.now, limit),
            ).rowcount,
        ]
        self.more = self.more or max(removed) >= limit
        db.execute(
            "DELETE FROM worker WHERE namespace = ? AND until <= ? AND NOT EXISTS "
            "(SELECT 1 FROM job INDEXED BY job_lease WHERE job.namespace = worker.namespace "
            "AND job.worker = worker.name AND job.state = 2)",
            (tx.namespace, tx.now),
        )
        db.execute(
            "DELETE FROM idle WHERE namespace = ? AND since <= ? AND NOT EXISTS "
            "(SELECT 1 FROM peer WHERE peer.namespace = idle.namespace AND peer.name = idle.peer)",
            (tx.namespace, tx.now - PROBE_EVERY),
        )

    def _probe_peers(self) -> None:
        """Forget peers whose processes have ended without saying so."""
        tx = self.tx
        peers = tx.db.execute(
            "SELECT name, address FROM peer WHERE namespace = ? AND probed <= ? "
            "ORDER BY probed LIMIT ?",
            (tx.namespace, tx.now - PROBE_EVERY, _PROBED),
        ).fetchall()
        for name, address in peers:
            if reachable(address) is Delivery.DEAD:
                tx.forget_peer(name, address)
            else:
                tx.know_peer(name, address)

    def _wake_idle(self) -> None:
        """Wake idle peers where jobs are ready, as if all of these had just been submitted."""
        tx = self.tx
        waiting = tx.db.execute(
            "SELECT queue.id, count(*) FROM idle JOIN queue ON queue.namespace = idle.namespace "
            "AND queue.name = idle.queue WHERE idle.namespace = ? GROUP BY queue.id",
            (tx.namespace,),
        ).fetchall()
        for queue, peers in waiting:
            tx.opened(queue, peers)

    def _next_in(self) -> float | None:
        if self.more:
            return 0.0
        tx = self.tx
        here = (tx.namespace,)
        times = [
            self._one(_NEXT_DUE, here),
            self._one(_NEXT_TIDY, here),
            self._one(
                "SELECT min(expires) FROM register INDEXED BY register_expires "
                "WHERE namespace = ? AND expires IS NOT NULL",
                here,
            ),
            self._one(
                "SELECT min(until) FROM unique_key INDEXED BY unique_until WHERE until IS NOT NULL",
                (),
            ),
            *(self._one(_NEXT_DEADLINE, (tx.namespace, state)) for state in range(RUNNING)),
        ]
        if self.request.end_leases:
            times.append(self._one(_NEXT_LAPSE, here))
            deadline = self._one(_NEXT_DEADLINE, (tx.namespace, RUNNING))
            if deadline is not None:
                times.append(deadline + self.request.deadline_grace)
        soonest = min((time for time in times if time is not None), default=None)
        return None if soonest is None else max(0.0, soonest - tx.now)

    def _one(self, statement: str, parameters: Iterable[Any]) -> float | None:
        value: float | None = self.tx.db.execute(statement, tuple(parameters)).fetchone()[0]
        return value


def sweep(tx: Transaction, request: SweepRequest) -> SweepReply:
    """Do what time makes due, at most ``limit`` of each kind."""
    return _Sweep(tx, request).run()
