"""Many jobs, one after the other as they end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from plugq.client.handle import JobHandle
from plugq.errors import InvalidJob, WaitTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from plugq.client.waiters import Waiters

R = TypeVar("R")


async def completed(
    waiters: Waiters, handles: Sequence[JobHandle[R]], limit: float | None
) -> AsyncGenerator[JobHandle[R], None]:
    """Yield handles as their jobs end, each with the record that was seen of it.

    ``limit`` is in seconds from the first step on.

    Raises:
        WaitTimeout: some had not ended by then.
    """
    # One wait serves all handles of a job: a job may stand there a hundred thousand times.
    same: dict[tuple[Any, int], list[JobHandle[R]]] = {}
    for handle in handles:
        same.setdefault((handle.ref, handle.sequence), []).append(handle)
    until = None if limit is None else asyncio.get_running_loop().time() + limit
    left = len(handles)
    with waiters.together(same) as endings:
        while same:
            # No timer for what is at hand: of a hundred thousand it may be all.
            ended = endings.take()
            if ended is None:
                try:
                    async with asyncio.timeout_at(until):
                        ended = await endings.next()
                except TimeoutError:
                    first = next(iter(same.values()))[0]
                    raise _timed_out(first, left, len(handles), limit) from None
            for handle in same.pop((ended.wait.ref, ended.wait.sequence)):
                handle._ended = ended  # noqa: SLF001
                left -= 1
                yield handle


def check_handles(handles: Sequence[object]) -> None:
    """Refuse what can not be waited for.

    Raises:
        InvalidJob: one is no handle.
    """
    for handle in handles:
        if not isinstance(handle, JobHandle):
            raise InvalidJob(f"expected the handles of submitted jobs, got {handle!r}")


def _timed_out(first: JobHandle[Any], left: int, number: int, limit: float | None) -> WaitTimeout:
    return WaitTimeout(
        f"{left:,} of {number:,} jobs have not ended after {limit or 0.0:g} s, {first.id!r} in "
        f"queue {first.queue!r} among them",
        queue=first.queue,
        id=first.id,
    )


__all__ = ["check_handles", "completed"]
