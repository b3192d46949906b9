"""The budgets of the memory storage's limited queues: their states, and claims that use them."""

from __future__ import annotations

import sys
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from plugq.allowance import Allowance, usable
from plugq.protocols.budgets import LimitState, Want
from plugq.protocols.storage import Spent

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugq.allowance import Use
    from plugq.builtin.memory_queue import Queue
    from plugq.builtin.memory_records import Record
    from plugq.protocols.storage import ClaimRequest

#: A queue and one of its lanes; without a lane the queue as a whole.
_Key = tuple[str, str | None]
_SMALLEST_HEAP = 256


class BudgetBook:
    """The states of limiters, each with a version that is never used again."""

    def __init__(self, next_version: Callable[[], int]) -> None:
        self._next_version = next_version
        self._states: dict[_Key, tuple[LimitState, float]] = {}
        self._expiry: list[tuple[float, int, _Key]] = []
        self._limit = _SMALLEST_HEAP

    def read(self, queue: Queue, lane: str | None, now: float) -> LimitState:
        """Return a state; with version 0 where there is none, or none any more."""
        state, expires = self._states.get((queue.name, lane), (None, 0.0))
        return LimitState(lane, 0, None) if state is None or expires <= now else state

    def write(self, queue: Queue, use: Use, now: float) -> LimitState:
        """Store the state after what was taken of a budget."""
        key = (queue.name, use.lane)
        state = LimitState(use.lane, self._next_version(), use.state)
        expires = now + use.ttl
        self._states[key] = (state, expires)
        if len(self._expiry) >= self._limit:
            self._expiry = [
                (until, kept.version, where) for where, (kept, until) in self._states.items()
            ]
            heapify(self._expiry)
            self._limit = max(_SMALLEST_HEAP, 2 * len(self._expiry))
        else:
            heappush(self._expiry, (expires, state.version, key))
        return state

    def expire(self, now: float, most: int) -> int:
        """Remove up to so many states whose time has passed, and return how many were."""
        removed = 0
        while removed < most and self._expiry and self._expiry[0][0] <= now:
            _, version, key = heappop(self._expiry)
            held = self._states.get(key)
            if held is not None and held[0].version == version:
                del self._states[key]
                removed += 1
        return removed


class Budgeting:
    """What one claim spends, and what it would take if it had budgets."""

    def __init__(self, book: BudgetBook, request: ClaimRequest, now: float) -> None:
        self._book = book
        self._request = request
        self.now = now
        self.wants: list[Want] = []
        self.spent: list[Spent] = []

    def pick(self, queue: Queue, most: int) -> list[Record]:
        """Take out of a limited queue what its budgets let start, write them, and park."""
        now, limited, settings = self.now, queue.limited, queue.settings
        room = queue.slots(sys.maxsize)
        if limited is None or settings is None or room <= 0:
            return []
        budgets = usable(self._request.grants, queue.name, queue.revision, now, limited)
        current = {
            lane: budget
            for lane, budget in budgets.items()
            if budget.expect == self._book.read(queue, lane, now).version
        }
        allowance = Allowance(current, limited, now, left=most, room=room)
        taken = queue.pick(allowance, now)
        for use in allowance.used:
            state = self._book.write(queue, use, now)
            self.spent.append(Spent(queue.name, use.starts, state))
        for lane, until in allowance.parked.items():
            if lane is None:
                queue.park(until)
            else:
                queue.park_lane(lane, until)
        if ready := allowance.wanted:
            named = allowance.named
            self.wants.append(
                Want(
                    queue=queue.name,
                    revision=queue.revision,
                    limits=settings.limits,
                    lane_limits=settings.lane_limits,
                    ready=ready,
                    states=tuple([self._book.read(queue, lane, now) for lane in named]),
                ),
            )
        return taken


__all__ = ["BudgetBook", "Budgeting"]
