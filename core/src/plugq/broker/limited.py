"""When a broker claims limited queues again: at the time until which it has parked something."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.lifecycle import Alarm

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugq.broker.budgets import Budgets
    from plugq.clock import Clock
    from plugq.protocols.storage import ClaimReply, ClaimRequest

#: Seconds after which a broker lets in for others what it has parked and does not claim itself.
LET_IN = 0.005


class LimitedQueues:
    """The budgets of one broker, with their timers.

    ``again`` is called with the queues in which something that this broker has parked may run
    again, ``let_in`` with those that it has left to others.
    """

    def __init__(
        self,
        budgets: Budgets,
        clock: Clock,
        *,
        again: Callable[[frozenset[str]], None],
        let_in: Callable[[tuple[str, ...]], None],
    ) -> None:
        self.budgets: Budgets = budgets
        self._clock = clock
        self._again = again
        self._let_in = let_in
        self._retry_at: float | None = None
        self._retry_alarm = Alarm(clock, self._retry)
        #: Queues that nobody here claims although something may run again, and since when.
        self._left: dict[str, float] = {}
        self._left_alarm = Alarm(clock, self._leave)

    async def stop(self) -> None:
        """Claim nothing again."""
        await self._retry_alarm.stop()
        await self._left_alarm.stop()

    def learn(self, request: ClaimRequest, reply: ClaimReply, sent: float) -> bool:
        """Take in an answer that has just come; whether another claim may get more."""
        more = self.budgets.learn(request, reply, sent, self._clock.monotonic())
        self._set_retry()
        return more

    def leave(self, queues: frozenset[str]) -> None:
        """Leave queues to others, unless a worker here claims them in a moment."""
        now = self._clock.monotonic()
        if not self._left:
            self._left_alarm.set(now + LET_IN)
        for queue in queues:
            self._left.setdefault(queue, now)

    def _set_retry(self) -> None:
        at = self.budgets.retry
        if at != self._retry_at:
            self._retry_at = at
            self._retry_alarm.set(at)

    def _retry(self) -> None:
        self._retry_at = None
        queues = self.budgets.due(self._clock.monotonic())
        if queues:
            self._again(queues)
        self._set_retry()

    def _leave(self) -> None:
        queues = self.budgets.unasked(self._left)
        self._left.clear()
        if queues:
            self._let_in(queues)


__all__ = ["LimitedQueues"]
