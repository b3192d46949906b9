"""Settlements: the end of an attempt, by the holder of its lease."""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import FINAL, GIVES_ATTEMPT_BACK, JobState, Outcome, state_after_settlement
from plugq.protocols.storage import SettleReply
from plugq_sqlite._claims import claim as serve_claim
from plugq_sqlite._moves import Finish, Requeue, finish, requeue
from plugq_sqlite._rows import (
    CODES,
    COLUMNS,
    RELEASED,
    RETRIED,
    SNOOZED,
    Row,
)
from plugq_sqlite._statements import join_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import ClaimReply, ClaimRequest, Settlement
    from plugq_sqlite._transaction import Transaction

_RUNNING = (
    "WITH s (k, queue, id, token) AS (VALUES ?) "
    f"SELECT s.k, {COLUMNS} FROM s CROSS JOIN job INDEXED BY job_id "
    "ON job.queue = s.queue AND job.id = s.id WHERE job.token = s.token AND job.state = 2"
)
_COUNTED = {Outcome.RETRY: RETRIED, Outcome.SNOOZE: SNOOZED, Outcome.RELEASE: RELEASED}
#: Outcomes of attempts whose time counts as the run time of their task.
_RAN = frozenset({Outcome.SUCCEED, Outcome.FAIL, Outcome.RETRY, Outcome.SKIP})
_LOST = SettleReply(None, lost=True)
_SETTLED = {state: SettleReply(state) for state in JobState}


def settle(
    tx: Transaction,
    settlements: Sequence[Settlement],
    claim: ClaimRequest | None,
) -> tuple[list[SettleReply], ClaimReply | None]:
    """End attempts, then serve the claim."""
    replies = _settle(tx, settlements)
    reply = None if claim is None else serve_claim(tx, claim)
    if claim is None:
        tx.end_call()
    else:
        tx.end_call(claim.peer, claim.queues)
    return replies, reply


def _settle(tx: Transaction, settlements: Sequence[Settlement]) -> list[SettleReply]:
    keys = []
    for place, settlement in enumerate(settlements):
        queue = tx.queue(settlement.queue)
        if queue is not None:
            keys.append((place, queue.id, settlement.id, settlement.token))
    replies = [_LOST] * len(settlements)
    ended: list[Finish] = []
    back: list[Requeue] = []
    settled: set[int] = set()
    for place, *columns in join_rows(tx.db, _RUNNING, keys):
        row = Row._make(columns)
        if row.seq in settled:
            continue
        settled.add(row.seq)
        settlement = settlements[place]
        state = state_after_settlement(
            settlement.outcome,
            cancel_requested=bool(row.cancel),
            attempts_left=row.attempt < row.max_attempts,
            delay=settlement.delay,
        )
        if settlement.outcome in _RAN and row.started_at is not None:
            tx.tallies.ran(row.queue, row.task, tx.now - row.started_at)
        replies[place] = _SETTLED[state]
        if state in FINAL:
            ended.append(_finish(row, settlement, state))
        else:
            tx.tally(row.queue, row.task)[_COUNTED[settlement.outcome]] += 1
            back.append(_requeue(tx, row, settlement, state))
    finish(tx, ended)
    requeue(tx, back)
    return replies


def _finish(row: Row, settlement: Settlement, state: JobState) -> Finish:
    succeeded = settlement.outcome is Outcome.SUCCEED
    return Finish(
        row=row,
        state=CODES[state],
        code=settlement.code or ("error" if state is JobState.FAILED else ""),
        result=settlement.result if succeeded else None,
        error=None if succeeded else settlement.error,
        progress=settlement.progress,
        gives_back=settlement.outcome in GIVES_ATTEMPT_BACK,
    )


def _requeue(tx: Transaction, row: Row, settlement: Settlement, state: JobState) -> Requeue:
    unknown, since = row.unknown, row.unknown_since
    if settlement.outcome is not Outcome.RELEASE:
        unknown, since = 0, None
    elif settlement.code == "unknown_task":
        unknown, since = unknown + 1, since if unknown else tx.now
    delayed = state is JobState.DELAYED
    return Requeue(
        row=row,
        state=CODES[state],
        ready_at=_ready_at(tx.now, settlement) if delayed else row.ready_at,
        attempt=row.attempt - (settlement.outcome in GIVES_ATTEMPT_BACK),
        crashes=row.crashes,
        unknown=unknown,
        unknown_since=since,
        error=settlement.error,
        progress=settlement.progress,
    )


def _ready_at(now: float, settlement: Settlement) -> float:
    if settlement.at is not None and settlement.outcome is Outcome.RETRY:
        return max(now, settlement.at)
    return max(now, now + settlement.delay)
