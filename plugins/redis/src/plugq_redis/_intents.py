"""Submissions to several queues of a cluster: all of it or nothing, whoever dies in between.

Such a call is written down first, where no queue is. From then on it is decided: each queue stores
its part once, and what a process has left undone a sweep does.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import msgspec

from plugq.errors import OutcomeUnknown, Unavailable
from plugq.protocols.storage import NewJob
from plugq_redis._records import encode, flat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq_redis._place import Place

#: Seconds after which whoever has written a call down is taken to be gone.
AGE = 15.0
#: Seconds for which a queue still knows that it has done its part of a call that is done.
MARKED = 3_600.0


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """A call that is decided, with the sequences of its jobs."""

    jobs: list[NewJob]
    sequences: list[int]


#: Reads a call that was written down.
read_intent = msgspec.msgpack.Decoder(Intent).decode


class Intents:
    """The calls that are decided and not done."""

    def __init__(self, common: Place) -> None:
        self._common = common

    async def keep(self, jobs: Sequence[NewJob], sequences: Sequence[int]) -> str:
        """Decide on a call; returns the mark by which each queue knows that it has done its part.

        Raises:
            Unavailable: it was not decided.
            OutcomeUnknown: it may have been.
        """
        mark = secrets.token_hex(16)
        intent = encode(Intent(list(jobs), list(sequences)))
        await self._common.run("intend", flat("keep", mark), intent)
        return mark

    async def drop(self, mark: str) -> bool:
        """Forget a call that is done; should that fail, a sweep finds nothing left to do."""
        try:
            await self._common.run("intend", flat("drop", mark))
        except (Unavailable, OutcomeUnknown):
            return False
        return True

    async def postpone(self, mark: str) -> None:
        """Let others come first: this call can not be done now."""
        await self._common.run("intend", flat("postpone", mark))

    async def left(self) -> dict[str, bytes]:
        """Return calls that nobody seems to be doing any more, by their marks."""
        found = await self._common.run("intend", flat("left", AGE))
        pairs = zip(found[::2], found[1::2], strict=True)
        return {mark.decode(): intent for mark, intent in pairs}
