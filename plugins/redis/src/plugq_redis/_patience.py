"""How long one queue of several is waited for: one that does not answer holds up no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from plugq.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Seconds within which a queue answers as a rule, and those for one that did not the last time.
USUAL, BRIEF = 1.0, 0.05
T = TypeVar("T")


class Patience:
    """What is asked of many queues at once, of which any may lie on a node that is down or hangs.

    Only calls that may be repeated, or given up, are asked in this way.
    """

    def __init__(self) -> None:
        #: By queue the last call that was not answered in time.
        self._late: dict[str, asyncio.Future[Any]] = {}
        self._asking: set[asyncio.Future[Any]] = set()

    async def ask(self, queue: str, call: Callable[[], Awaitable[T]]) -> T:
        """Return what a queue answers, if it does so soon.

        Of one that did not the last time nothing is asked before that call has ended, and it is
        waited for as long as it takes if it was only slow.

        Raises:
            Unavailable: it gave no answer in time; what was asked may be done later.
        """
        last = self._late.get(queue)
        if last is not None and not last.done():
            raise _silence(queue)
        seconds: float | None = USUAL
        if last is not None:
            seconds = BRIEF if _failed(last) else None
        asking = asyncio.ensure_future(call())
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        try:
            await asyncio.wait((asking,), timeout=seconds)
        except asyncio.CancelledError:
            asking.cancel()
            raise
        if asking.done() and not _failed(asking):
            self._late.pop(queue, None)
            return asking.result()
        self._late[queue] = asking
        if asking.done() and not asking.cancelled():
            return asking.result()
        asking.add_done_callback(_failed)
        raise _silence(queue)

    async def close(self) -> None:
        """Give up what is still asked, of lines that are closed."""
        asking = tuple(self._asking)
        for one in asking:
            one.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        self._late.clear()


def _failed(call: asyncio.Future[Any]) -> bool:
    return call.cancelled() or call.exception() is not None


def _silence(queue: str) -> Unavailable:
    return Unavailable(f"the node of queue {queue!r} does not answer; check that it runs")
