"""How jobs are run: claim, settle and renew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from plugq.job import Outcome
from plugq.protocols.budgets import LimitState, Want
from plugq.protocols.storage import (
    ClaimReply,
    RenewReply,
    SettleReply,
    Spent,
)
from plugq_redis._faults import refusal
from plugq_redis._records import STATES, encode, flat, lease_of, raw, unraw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import AttemptRecord, Progress
    from plugq.protocols.budgets import Grant
    from plugq.protocols.storage import ClaimRequest, Holder, LeaseRef, Settlement
    from plugq_redis._place import Place

_OUTCOMES = {outcome: number for number, outcome in enumerate(Outcome, 1)}
_RENEWALS = tuple(RenewReply)
_LOST = SettleReply(None, lost=True)
_SETTLED = (_LOST, *(SettleReply(state) for state in STATES))

_Blob = msgspec.Raw
_NUMBERS = msgspec.msgpack.Decoder(list[int]).decode
_TIMES = msgspec.msgpack.Decoder(tuple[float, float | None]).decode
_STATE = tuple[str | bool, int, _Blob]
_Want = tuple[str, int, list[str | bool], list[_STATE], _Blob, _Blob]
_Spent = tuple[str, int, str | bool, int, _Blob]
_WANTS = msgspec.msgpack.Decoder(list[_Want]).decode
_SPENT = msgspec.msgpack.Decoder(list[_Spent]).decode
#: How MessagePack writes false, which stands for what is absent.
_FALSE = b"\xc2"
#: The request begins behind as many arguments of the script.
_ARGUMENTS = 2


async def claim(server: Place, request: ClaimRequest) -> ClaimReply:
    """Grant leases, or show again those that this claim was granted."""
    try:
        asked = encode(_asked(request))
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    (granted,) = await server.change("claim", asked)
    return _granted(granted)


async def recall(server: Place, request: ClaimRequest) -> tuple[ClaimReply, bool]:
    """Return what this claim was granted before, and whether it was asked before."""
    try:
        asked = encode((*_asked(request), True))
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    (granted,) = await server.change("claim", asked)
    return _granted(granted), bool(granted[-1])


async def settle(
    server: Place,
    settlements: Sequence[Settlement],
    request: ClaimRequest | None,
    *,
    caller: str = "",
) -> tuple[list[SettleReply], ClaimReply | None]:
    """End attempts, then serve the claim, in one step; ``caller`` is not woken by it."""
    results: list[bytes] = []
    items: list[tuple[object, ...]] = []
    try:
        for settlement in settlements:
            place: int | bool = False
            if settlement.result is not None and settlement.outcome is Outcome.SUCCEED:
                results.append(settlement.result)
                place = _ARGUMENTS + len(results)
            items.append(_settlement(settlement, place))
        caller = caller if request is None else request.peer
        asked = flat(items, None if request is None else _asked(request), caller)
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    states, granted = await server.change("settle", asked, *results)
    replies = [_SETTLED[state] for state in _NUMBERS(states)]
    return replies, None if request is None else _granted(granted)


async def renew(
    server: Place,
    leases: Sequence[LeaseRef],
    lease: float,
    holder: Holder | None,
) -> list[RenewReply]:
    """Extend leases, then release those of the holder that it does not know of."""
    try:
        items = [(ref.queue, ref.id, ref.token, _progress(ref.progress)) for ref in leases]
        worker, number = (None, None) if holder is None else (holder.worker, holder.number)
        asked = flat(lease, items, worker, number, server.queue)
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    (replies,) = await server.change("renew", asked)
    return [_RENEWALS[reply - 1] for reply in _NUMBERS(replies)]


def _asked(request: ClaimRequest) -> tuple[object, ...]:
    return (
        request.worker,
        request.number,
        list(dict.fromkeys(request.queues)),
        request.limit,
        request.lease,
        request.peer,
        [_grant(grant) for grant in request.grants],
    )


def _grant(grant: Grant) -> tuple[object, ...]:
    budgets = [
        (
            False if budget.lane is None else budget.lane,
            budget.expect,
            [False if state is None else raw(state) for state in budget.states],
            budget.ttl,
            False if budget.retry_at is None else budget.retry_at,
        )
        for budget in grant.budgets
    ]
    return grant.queue, grant.revision, grant.at, budgets


def _settlement(settlement: Settlement, result: object) -> tuple[object, ...]:
    at = settlement.at
    return (
        settlement.queue,
        settlement.id,
        settlement.token,
        _OUTCOMES[settlement.outcome],
        settlement.delay,
        False if at is None else at,
        settlement.code,
        _problem(settlement.error),
        _progress(settlement.progress),
        result,
    )


def _problem(error: AttemptRecord | None) -> tuple[str, ...] | bool:
    if error is None:
        return False
    return error.code, error.type, error.message, error.traceback


def _progress(progress: Progress | None) -> msgspec.Raw | bool:
    return False if progress is None else raw(encode(progress))


def _granted(parts: Sequence[Any]) -> ClaimReply:
    """Return the reply that a script gave to a claim."""
    times, wants, spent, leases, _ = parts
    now, next_in = _TIMES(b"\x92" + times)
    return ClaimReply(
        leases=tuple([lease_of(fields, now) for fields in leases]),
        next_in=next_in,
        wants=tuple([_want(want) for want in _WANTS(wants)]) if len(wants) > 1 else (),
        spent=tuple([_spent(each) for each in _SPENT(spent)]) if len(spent) > 1 else (),
        now=now,
    )


def _want(want: _Want) -> Want:
    queue, revision, ready, states, limits, lane_limits = want
    return Want(
        queue=queue,
        revision=revision,
        limits=unraw(limits),
        lane_limits=unraw(lane_limits),
        ready=tuple([_lane(lane) for lane in ready]),
        states=tuple(
            [LimitState(_lane(lane), version, _bytes(state)) for lane, version, state in states]
        ),
    )


def _spent(spent: _Spent) -> Spent:
    queue, count, lane, version, state = spent
    return Spent(queue, count, _state(lane, version, state))


def _state(lane: object, version: int, state: _Blob) -> LimitState:
    return LimitState(_lane(lane), version, _bytes(state))


def _lane(lane: object) -> str | None:
    return lane if isinstance(lane, str) else None


def _bytes(data: _Blob) -> bytes | None:
    return None if bytes(data) == _FALSE else unraw(data)
