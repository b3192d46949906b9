"""Claims of queues one of which is held up: what the others have is claimed all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from plugq.errors import Unavailable
from plugq.protocols.storage import ClaimReply
from plugq_postgres._faults import HeldUp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plugq.protocols.storage import ClaimRequest, Settlement, SettleReply
    from plugq_postgres._held import Held

#: In how many seconds a claim is to be made again for queues that were held up.
_AGAIN = 1.0


class _Settle(Protocol):
    """Ends attempts and serves a claim in one transaction."""

    async def __call__(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None,
        queues: Mapping[str, int],
        /,
    ) -> tuple[list[SettleReply], ClaimReply | None]: ...


async def settle_around(
    held: Held,
    settle: _Settle,
    settlements: Sequence[Settlement],
    claim: ClaimRequest | None,
    queues: Mapping[str, int],
) -> tuple[list[SettleReply], ClaimReply | None]:
    """End attempts and serve the claim, together or around the queues that are held up.

    Raises:
        Unavailable: nothing happened.
        OutcomeUnknown: it may have happened.
    """
    if claim is None:
        return await settle(settlements, None, queues)
    claimed = {queues[name] for name in claim.queues}
    free = set(await held.among(claimed))
    if free == claimed:
        try:
            return await settle(settlements, claim, queues)
        except HeldUp:
            if not settlements and len(claimed) == 1:
                raise
        free = await held.free(claimed)
        held.note(claimed.difference(free))
    replies: list[SettleReply] = []
    if settlements:
        replies, _ = await settle(settlements, None, queues)
    names = tuple(name for name in claim.queues if queues[name] in free)
    try:
        reply = await _claim(held, settle, msgspec.structs.replace(claim, queues=names), queues)
    except Unavailable:
        # What was settled is settled, and its caller has to hear of it.
        if not settlements:
            raise
        reply = ClaimReply(now=held.database.now(0.0))
    again = _AGAIN if reply.next_in is None else min(_AGAIN, reply.next_in)
    return replies, msgspec.structs.replace(reply, next_in=again)


async def _claim(
    held: Held, settle: _Settle, claim: ClaimRequest, queues: Mapping[str, int]
) -> ClaimReply:
    if claim.queues:
        _, reply = await settle((), claim, queues)
        if reply is not None:
            return reply
    return ClaimReply(now=await held.database.time())
