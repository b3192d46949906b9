"""Requests to the broker, each repeated until its deadline."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, TypeVar

from plugq.errors import OutcomeUnknown, QueueFull, Unavailable
from plugq.protocols.storage import SubmitStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from plugq.protocols.broker import Broker
    from plugq.protocols.storage import NewJob, SubmitReply

R = TypeVar("R")


class Requests:
    """Repeats what may be repeated; ``reconnect`` is the first and the longest pause between.

    ``deadline`` and the pauses are in seconds of the event loop that ``running`` returns, which
    raises once the client was stopped.
    """

    def __init__(
        self,
        broker: Broker,
        running: Callable[[], asyncio.AbstractEventLoop],
        *,
        deadline: float,
        reconnect: tuple[float, float],
    ) -> None:
        self._broker = broker
        self._running = running
        self._deadline = deadline
        self._reconnect = reconnect

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Submit until the deadline, always as the same submissions.

        Raises:
            QueueFull: a queue takes no more, or is being drained; nothing was stored.
            Unavailable: the storage could not be reached in time; nothing was stored.
            OutcomeUnknown: the answer was lost; submitting again with the same ids is safe.
        """
        until = self._running().time() + self._deadline
        pause, longest = self._reconnect
        maybe = False
        while True:
            try:
                async with asyncio.timeout_at(until):
                    replies = await self._broker.submit(jobs)
                break
            except TimeoutError as error:
                message = f"no answer within {self._deadline:g} s; submitting again is safe"
                raise OutcomeUnknown(message, ids=[job.id for job in jobs]) from error
            except (Unavailable, OutcomeUnknown) as error:
                maybe = maybe or isinstance(error, OutcomeUnknown)
                pause *= random.uniform(0.5, 1)  # noqa: S311 - jitter
                if self._running().time() + pause >= until:
                    if maybe:
                        raise OutcomeUnknown(str(error), ids=[job.id for job in jobs]) from error
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)
        _check_stored(jobs, replies)
        return replies

    async def submit_within(
        self, jobs: Sequence[NewJob], connection: object
    ) -> Sequence[SubmitReply]:
        """Submit inside the transaction that has begun on a connection; it is tried once.

        Raises:
            QueueFull: a queue takes no more, or is being drained; nothing is in the transaction.
            Unavailable: the jobs are not in the transaction.
            OutcomeUnknown: they may be in it.
        """
        self._running()
        try:
            async with asyncio.timeout(self._deadline):
                replies = await self._broker.submit(jobs, within=connection)
        except TimeoutError as error:
            message = f"no answer within {self._deadline:g} s; roll your transaction back"
            raise OutcomeUnknown(message, ids=[job.id for job in jobs]) from error
        _check_stored(jobs, replies)
        return replies

    async def ask(self, verb: Callable[[], Awaitable[R]]) -> R:
        """Ask until the deadline; for verbs that may be repeated.

        Raises:
            Unavailable: there was no answer in time.
            OutcomeUnknown: the answer was lost.
        """
        until = self._running().time() + self._deadline
        pause, longest = self._reconnect
        while True:
            try:
                async with asyncio.timeout_at(until):
                    return await verb()
            except TimeoutError as error:
                message = f"no answer from the storage within {self._deadline:g} s"
                raise Unavailable(message) from error
            except (Unavailable, OutcomeUnknown):
                pause *= random.uniform(0.5, 1)  # noqa: S311 - jitter
                if self._running().time() + pause >= until:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, longest)


def _check_stored(jobs: Sequence[NewJob], replies: Sequence[SubmitReply]) -> None:
    """Raise for a call that was refused as a whole.

    A queue that is drained is named first, since that is an operator's wish.
    """
    for status, reason in (
        (
            SubmitStatus.DRAINING,
            "is being drained and takes no jobs; `plugq queues resume {}` ends that",
        ),
        (SubmitStatus.FULL, "is full; nothing was stored"),
    ):
        for job, reply in zip(jobs, replies, strict=True):
            if reply.status is status:
                message = f"queue {job.queue!r} {reason.format(job.queue)}"
                raise QueueFull(message, queue=job.queue)


__all__ = ["Requests"]
