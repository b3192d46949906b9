"""Notices between processes: a letter box in the store for each peer that watches.

Its reader looks whether any process has committed anything, which costs no transaction, and only
then into the box. Events are not carried: a listener is told every few seconds to look again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, TypeVar

from plugq.protocols.storage import CancelAsked, Finished, Notice, Resync, Wake
from plugq_lmdb import _keys
from plugq_lmdb._keys import digest
from plugq_lmdb._records import Mail

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from types import TracebackType

    from plugq_lmdb._transaction import Transaction
    from plugq_lmdb._view import View

T = TypeVar("T")

#: Seconds between two looks into the letter box, and between two resyncs of a listener.
LOOK, RESYNC = 0.05, 5.0


class Stream(AsyncGenerator[T, None]):
    """What one task fetches; the first is a resync, and so is what stands for anything lost.

    ``enter`` makes it known, ``look`` returns what has arrived, ``leave`` takes it back.
    """

    def __init__(
        self,
        enter: Callable[[Stream[T]], Awaitable[T]],
        look: Callable[[], Awaitable[Iterable[T]]],
        leave: Callable[[Stream[T]], Awaitable[None]],
        pause: float,
    ) -> None:
        self._enter, self._look, self._leave = enter, look, leave
        self._pause = pause
        self._arrived: deque[T] = deque()
        self._resync: T | None = None
        self._closed = asyncio.Event()

    async def asend(self, value: None, /) -> T:
        """Return the next notice, once there is one.

        Raises:
            StopAsyncIteration: it was closed or the storage was stopped.
            Unavailable: the storage is not started.
        """
        del value
        if self._closed.is_set():
            raise StopAsyncIteration
        if self._resync is None:
            self._resync = await self._enter(self)
            return self._resync
        while not self._arrived:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause):
                    await self._closed.wait()
            if self._closed.is_set():
                raise StopAsyncIteration
            try:
                self._arrived.extend(await self._look())
            except asyncio.CancelledError:
                # The box may have been emptied all the same.
                self._arrived.append(self._resync)
                raise
        return self._arrived.popleft()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> T:
        """End the iteration and raise the error."""
        await self.aclose()
        if isinstance(typ, BaseException):
            raise typ.with_traceback(tb)
        raise (val if isinstance(val, BaseException) else typ()).with_traceback(tb)

    async def aclose(self) -> None:
        """End the iteration; what was not fetched is dropped."""
        if not self._closed.is_set():
            self._closed.set()
            if self._resync is not None:
                await self._leave(self)


def has_mail(view: View, peer: str) -> bool:
    """Return whether there is something for a peer, or its box is gone."""
    mail = view.held(_keys.PEER + digest(peer), Mail)
    return mail is None or not mail.empty


def open_box(tx: Transaction, peer: str) -> None:
    """Make a peer known."""
    tx.keep(_keys.PEER + digest(peer), Mail(peer))


def close_box(tx: Transaction, peer: str) -> None:
    """Forget a peer."""
    mail = tx.mail(peer)
    if mail is not None:
        tx.busy(mail)
        tx.keep(_keys.PEER + digest(peer), None)


def fetch(tx: Transaction, peer: str) -> list[Notice]:
    """Take what there is for a peer; a box that is gone is set up again."""
    mail = tx.mail(peer)
    if mail is None:
        open_box(tx, peer)
        return [Resync()]
    notices: list[Notice] = [Resync()] if mail.resync else []
    notices += [Wake()] if mail.wake else []
    notices += [Finished(tuple(mail.finished))] if mail.finished else []
    notices += [CancelAsked(tuple(mail.cancels))] if mail.cancels else []
    tx.keep(_keys.PEER + digest(peer), Mail(peer, idle=mail.idle))
    return notices
