"""Group commit without timers: what arrives while a call is under way shares the next one."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from plugq.errors import OutcomeUnknown, PlugqError, Unavailable
from plugq.lifecycle import cancel_and_wait

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Coalescer(Generic[Item, Answer]):
    """Merges concurrent calls of one batch verb into few calls of it.

    ``call`` returns the answers to its own items, in order. A call is never split, so whatever
    is atomic for a batch stays so for it. At most ``most`` items or ``most_bytes`` as measured by
    ``size`` go into one merged call; the rest waits for the next. A caller that is cancelled
    leaves before its items are taken, or not at all.

    ``refused`` knows the answers that say that nothing of a call was done. A caller who gets one
    from a merged call is asked for alone, since somebody else's items may be the reason. For the
    same reason callers of other queues are asked for apart, where ``queue`` tells whose an item is,
    when a merged call fails; what may have happened stays unknown if they are then refused.
    """

    def __init__(
        self,
        verb: Callable[[Sequence[Item]], Awaitable[Sequence[Answer]]],
        *,
        most: int = 1000,
        most_bytes: int = 8 * 1024 * 1024,
        size: Callable[[Item], int] | None = None,
        refused: Callable[[Answer], bool] | None = None,
        queue: Callable[[Item], str] | None = None,
    ) -> None:
        self._verb = verb
        self._most = most
        self._most_bytes = most_bytes
        self._size = size
        self._refused = refused
        self._queue = queue
        self._waiting: deque[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]] = deque()
        self._flusher: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        """Whether no call is under way."""
        return self._flusher is None and not self._waiting

    async def call(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Return the answers for ``items`` from a call shared with others."""
        future: asyncio.Future[Sequence[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush())
        return await future

    async def stop(self) -> None:
        """Wait for what is under way and answer what waits with a cancellation."""
        if self._flusher is not None:
            await cancel_and_wait([self._flusher])
        while self._waiting:
            self._waiting.popleft()[1].cancel()

    async def _flush(self) -> None:
        try:
            while group := self._take():
                await self._answer(group)
        finally:
            self._flusher = None

    def _take(self) -> list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]]:
        group: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]] = []
        count = weight = 0
        while self._waiting:
            items, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            count += len(items)
            weight += sum(map(self._size, items)) if self._size else 0
            if group and (count > self._most or weight > self._most_bytes):
                break
            group.append(self._waiting.popleft())
        return group

    async def _answer(
        self,
        group: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]],
        *,
        unknown: bool = False,
    ) -> None:
        try:
            if len(group) == 1:
                answers = await self._verb(group[0][0])
            else:
                answers = await self._verb([item for items, _ in group for item in items])
        except BaseException as error:
            if isinstance(error, PlugqError) and len(parts := self._parts(group)) > 1:
                maybe = isinstance(error, OutcomeUnknown)
                await asyncio.gather(*(self._answer(part, unknown=maybe) for part in parts))
                return
            if unknown and isinstance(error, Unavailable):
                error = OutcomeUnknown(str(error))
            _fail([future for _, future in group], error)
            if not isinstance(error, Exception):
                raise
            return
        start = 0
        again: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]] = []
        for items, future in group:
            own = answers[start : start + len(items)]
            start += len(items)
            if future.done():
                continue
            if len(group) > 1 and self._refused is not None and any(map(self._refused, own)):
                again.append((items, future))
            else:
                future.set_result(own)
        # All at once: a storage that shares its writes among calls needs one for them.
        await asyncio.gather(*(self._answer([single]) for single in again))

    def _parts(
        self,
        group: list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]],
    ) -> list[list[tuple[Sequence[Item], asyncio.Future[Sequence[Answer]]]]]:
        """Return the callers of a call apart by their queues."""
        if self._queue is None:
            return [group]
        parts: dict[frozenset[str], list[tuple[Sequence[Item], Any]]] = {}
        for items, future in group:
            if not future.done():
                parts.setdefault(frozenset(map(self._queue, items)), []).append((items, future))
        return list(parts.values())


class Coalescers(Generic[Item, Answer]):
    """Merges the calls of all callers, or only of those that name the same queues.

    ``make`` makes what merges, ``queue`` tells whose an item is, and ``apart`` whether one queue
    may be out of reach while others are not. Then nobody waits for a queue that it did not name.
    """

    def __init__(
        self,
        make: Callable[[], Coalescer[Item, Answer]],
        *,
        queue: Callable[[Item], str],
        apart: Callable[[], bool],
    ) -> None:
        self._make = make
        self._queue = queue
        self._apart = apart
        self._parts: dict[frozenset[str], Coalescer[Item, Answer]] = {}

    async def call(self, items: Sequence[Item]) -> Sequence[Answer]:
        """Return the answers for ``items`` from a call shared with others."""
        key = frozenset(map(self._queue, items)) if self._apart() else frozenset[str]()
        part = self._parts.get(key)
        if part is None:
            # Those whose last caller was cancelled are still here.
            self._parts = {name: one for name, one in self._parts.items() if not one.idle}
            part = self._parts[key] = self._make()
        try:
            return await part.call(items)
        finally:
            if part.idle and self._parts.get(key) is part:
                del self._parts[key]

    async def stop(self) -> None:
        """Wait for what is under way and answer what waits with a cancellation."""
        for part in tuple(self._parts.values()):
            await part.stop()


def _fail(futures: Sequence[asyncio.Future[Any]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            if isinstance(error, Exception):
                future.set_exception(error)
            else:
                future.cancel()


__all__ = ["Coalescer", "Coalescers"]
