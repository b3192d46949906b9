"""Sweeps: of the queues that are free together, of each that is not by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from plugq.protocols.storage import SweepReply
from plugq_postgres._faults import HeldUp
from plugq_postgres._sweep import look, sweep

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Sequence

    from plugq.protocols.storage import SweepRequest
    from plugq_postgres._database import Database
    from plugq_postgres._held import Held
    from plugq_postgres._transaction import Transaction

T = TypeVar("T")

#: In how many seconds a queue that was held up is tried again.
_AGAIN = 1.0


class _Holding(Protocol):
    """Runs a function in a transaction that holds these queues."""

    def __call__(
        self,
        run: Callable[[Transaction], Awaitable[T]],
        numbers: Sequence[int],
        /,
        *,
        complete: bool,
    ) -> Awaitable[T]: ...


class Sweeper:
    """Does what time makes due; a queue that somebody holds keeps no other from it."""

    def __init__(
        self,
        database: Database,
        held: Held,
        holding: _Holding,
        admit: Callable[[], Awaitable[None]],
        logger: logging.Logger,
    ) -> None:
        self._database = database
        self._held = held
        self._holding = holding
        self._admit = admit
        self._logger = logger

    async def sweep(self, request: SweepRequest) -> tuple[SweepReply, bool]:
        """Sweep once; with the reply comes whether anybody listens."""
        known = self._held.known
        found, listened = await look(self._database, request, known, self._admit)
        alone = await self._held.among(known)
        replies: list[SweepReply] = []
        if isinstance(found, SweepReply):
            replies.append(found)
        elif len(found) == 1:
            alone = [*found, *alone]
        else:
            reply, busy = await self._holding(
                lambda tx: _sweep_free(tx, request, found), [], complete=False
            )
            replies.append(reply)
            alone = [*busy, *alone]
        for queue in alone:
            try:
                replies.append(await self._sweep_one(request, queue))
            except HeldUp as error:
                # What is left is for the next sweep, lest this one waits for each of them.
                self._logger.warning("one queue is not swept for now: %s", error)
                self._held.note([queue])
                break
        return _together(replies, held=bool(self._held.known)), listened

    async def _sweep_one(self, request: SweepRequest, queue: int) -> SweepReply:
        return await self._holding(lambda tx: sweep(tx, request, [queue]), [queue], complete=False)


async def _sweep_free(
    tx: Transaction, request: SweepRequest, queues: Sequence[int]
) -> tuple[SweepReply, list[int]]:
    """Sweep those of the queues that nobody holds, and return the others."""
    free = await tx.lock_free(queues)
    reply = await sweep(tx, request, free)
    return reply, [queue for queue in queues if queue not in free]


def _together(replies: Sequence[SweepReply], *, held: bool) -> SweepReply:
    changes = tuple(change for reply in replies for change in reply.changes)
    times = [reply.next_in for reply in replies if reply.next_in is not None]
    if held:
        # What a queue that is held up has to do is due all the time.
        times = [min(_AGAIN, *times)] if changes and times else [_AGAIN]
    return SweepReply(changes=changes, next_in=min(times, default=None))
