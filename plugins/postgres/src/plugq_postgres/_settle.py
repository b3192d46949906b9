"""Settlements, claims and renewals, as the server takes and answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import GIVES_ATTEMPT_BACK, Outcome, state_after_settlement
from plugq.protocols.storage import ClaimReply, Lease, RenewReply, SettleReply
from plugq_postgres._rows import CODES, KINDS, STATES, columns, packed, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plugq.protocols.storage import ClaimRequest, LeaseRef, Settlement
    from plugq_postgres._names import Names

SETTLE = (
    "SELECT * FROM {schema}.settle_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, "
    "$14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25, $26)"
)
RENEW = "SELECT * FROM {schema}.renew_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"

_WIDTH = 16
#: The most that the results of one message have, in bytes.
_MOST_BYTES = 64 * 1024 * 1024
_TOTALS = {
    Outcome.RETRY: KINDS["retried"],
    Outcome.SNOOZE: KINDS["snoozed"],
    Outcome.RELEASE: KINDS["released"],
}
#: Outcomes of attempts whose time counts as the run time of their task.
_RAN = frozenset({Outcome.SUCCEED, Outcome.FAIL, Outcome.RETRY, Outcome.SKIP})
_LOST = SettleReply(None, lost=True)
_SETTLED = tuple(SettleReply(state) for state in STATES)
_RENEWED = (RenewReply.LOST, RenewReply.OK, RenewReply.CANCEL)


def settle_arguments(
    settlements: Sequence[Settlement], queues: Mapping[str, int]
) -> list[list[Any]]:
    """Return what the server takes of settlements.

    Where a job goes is decided here for each case in which the server may find it.
    """
    rows = []
    for settlement in settlements:
        outcome = settlement.outcome
        succeeded = outcome is Outcome.SUCCEED
        left, last, cancelled = (
            CODES[
                state_after_settlement(
                    outcome,
                    cancel_requested=cancelled,
                    attempts_left=left,
                    delay=settlement.delay,
                )
            ]
            for cancelled, left in ((False, True), (False, False), (True, True))
        )
        unknown = 0
        if outcome is Outcome.RELEASE:
            unknown = 2 if settlement.code == "unknown_task" else 1
        rows.append(
            (
                # Nobody holds a lease in a queue that nothing was ever said of.
                queues.get(settlement.queue),
                settlement.id.encode(),
                settlement.token,
                left,
                last,
                cancelled,
                settlement.delay,
                settlement.at if outcome is Outcome.RETRY else None,
                settlement.code.encode(),
                settlement.result if succeeded else None,
                None if succeeded else packed(settlement.error),
                packed(settlement.progress),
                int(outcome in GIVES_ATTEMPT_BACK),
                _TOTALS.get(outcome),
                outcome in _RAN,
                unknown,
            )
        )
    return columns(rows, _WIDTH)


def portions(settlements: Sequence[Settlement]) -> list[Sequence[Settlement]]:
    """Return settlements by as many as one message can carry; at least one portion, maybe empty."""
    found: list[Sequence[Settlement]] = []
    start = size = 0
    for place, settlement in enumerate(settlements):
        size += len(settlement.result or b"")
        if size > _MOST_BYTES and place > start:
            found.append(settlements[start:place])
            start, size = place, len(settlement.result or b"")
    return [*found, settlements[start:]]


def settle_replies(count: int, answer: Mapping[str, Any]) -> list[SettleReply]:
    """Return where the jobs went."""
    replies = [_LOST] * count
    for place, state in zip(answer["places"] or (), answer["states"] or (), strict=True):
        replies[place - 1] = _SETTLED[state]
    return replies


def claim_arguments(claim: ClaimRequest | None, queues: Mapping[str, int]) -> tuple[Any, ...]:
    """Return what the server takes of a claim."""
    if claim is None:
        return False, [], 0, b"", b"", 0, 0.0
    numbers = [queues[name] for name in dict.fromkeys(claim.queues)]
    return (
        True,
        numbers,
        claim.limit,
        claim.worker.encode(),
        claim.peer.encode(),
        claim.number,
        claim.lease,
    )


def leases(answer: Mapping[str, Any], names: Names) -> tuple[Lease, ...]:
    """Return the leases of an answer, whose queues and tasks have been learned."""
    if answer["l_id"] is None:
        return ()
    return tuple(
        Lease(
            queue=names.queue(queue),
            id=id_.decode(),
            task=names.task(task),
            token=token,
            attempt=attempt,
            max_attempts=max_attempts,
            body=body,
            sequence=seq,
            generation=generation,
            priority=priority,
            lane=text(lane),
            batch=text(batch),
            crashes=crashes,
            submitted_at=submitted_at,
            started_at=started_at,
            deadline_in=deadline_in,
            unknown=unknown,
            unknown_for=unknown_for,
        )
        for (
            queue,
            task,
            id_,
            body,
            lane,
            batch,
            token,
            attempt,
            max_attempts,
            seq,
            generation,
            priority,
            crashes,
            unknown,
            submitted_at,
            started_at,
            deadline_in,
            unknown_for,
        ) in zip(*(answer[column] for column in _LEASE), strict=True)
    )


_LEASE = (
    "l_queue",
    "l_task",
    "l_id",
    "l_body",
    "l_lane",
    "l_batch",
    "l_token",
    "l_attempt",
    "l_max_attempts",
    "l_seq",
    "l_generation",
    "l_priority",
    "l_crashes",
    "l_unknown",
    "l_submitted_at",
    "l_started_at",
    "l_deadline_in",
    "l_unknown_for",
)


async def claim_reply(answer: Mapping[str, Any], names: Names, now: float) -> ClaimReply:
    """Return the answer to a claim of queues that no limiter bounds."""
    await names.learn(answer["l_queue"] or (), answer["l_task"] or ())
    return ClaimReply(leases=leases(answer, names), next_in=answer["next_in"], now=now)


def renew_arguments(refs: Sequence[LeaseRef], queues: Mapping[str, int]) -> list[list[Any]]:
    """Return what the server takes of leases to be renewed."""
    return columns(
        [(queues.get(ref.queue), ref.id.encode(), ref.token, packed(ref.progress)) for ref in refs],
        4,
    )


def renew_replies(answer: Mapping[str, Any]) -> list[RenewReply]:
    """Return what became of leases."""
    return [_RENEWED[code] for code in answer["replies"] or ()]
