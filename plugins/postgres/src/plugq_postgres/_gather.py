"""What arrives while a call is under way goes into the next one, without any timer."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")
R = TypeVar("R")


class Gathering(Generic[T, R]):
    """Makes the calls that gathered while the last ones were under way together."""

    def __init__(
        self,
        flush: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        spawn: Callable[[Awaitable[None]], object],
        weigh: Callable[[T], int],
        most: int,
        done: Callable[[], object],
    ) -> None:
        self._flush = flush
        self._spawn = spawn
        self._weigh = weigh
        self._most = most
        #: Called when nothing is under way or waiting any more.
        self._done = done
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._busy = False

    async def call(self, item: T) -> R:
        """Return the answer to one call, made with others; a caller that goes away harms none."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if not self._busy:
            self._busy = True
            self._spawn(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while calls := self._next():
                await self._serve(calls)
        finally:
            self._busy = False
            self._done()

    def _next(self) -> list[tuple[T, asyncio.Future[R]]]:
        weight = count = 0
        for item, _ in self._waiting:
            weight += self._weigh(item)
            if count and weight > self._most:
                break
            count += 1
        calls, self._waiting = self._waiting[:count], self._waiting[count:]
        return calls

    async def _serve(self, calls: list[tuple[T, asyncio.Future[R]]]) -> None:
        answers: Sequence[Any]
        try:
            answers = await self._flush([item for item, _ in calls])
        except Exception as error:  # noqa: BLE001 - every caller has to see it
            answers = [error] * len(calls)
        for (_, future), answer in zip(calls, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                # Each caller raises one of its own, whose traceback is not that of others.
                future.set_exception(copy(answer))
            else:
                future.set_result(answer)
