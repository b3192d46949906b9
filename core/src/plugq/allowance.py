"""What one claim may start of a limited queue: the decisions of a storage, without its data.

A storage shows the jobs of its ready order one by one and does what the allowance says.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

from plugq.protocols.budgets import GRANT_AGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.budgets import Budget, Grant

#: How many jobs a want names at least, however few the claim has room for.
_NAMED = 100

#: Budgets by lane; that of the queue itself by ``None``.
Budgets = dict[str | None, "Budget"]


class Limited(NamedTuple):
    """What of a queue is limited: its own starts, those of each of its lanes, or both."""

    queue: bool
    lanes: bool


class Use(NamedTuple):
    """What was taken of one budget: how many starts, and the state to store for how long."""

    lane: str | None
    starts: int
    state: bytes | None
    ttl: float


def examined(limit: int) -> int:
    """Return how many jobs, or lanes, a claim of that limit looks at in one queue."""
    return 2 * limit + 100


def usable(
    grants: Sequence[Grant],
    queue: str,
    revision: int,
    now: float,
    limited: Limited,
) -> Budgets:
    """Return the budgets that a claim brings for a queue, those of an unusable grant left out.

    The versions that they expect are for the storage to compare.
    """
    budgets: Budgets = {}
    for grant in grants:
        fresh = now - GRANT_AGE <= grant.at <= now
        if grant.queue == queue and grant.revision == revision and fresh:
            for budget in grant.budgets:
                if limited.queue if budget.lane is None else limited.lanes:
                    budgets[budget.lane] = budget
    return budgets


class Allowance:
    """Judges the jobs of one queue in their order, for one claim.

    ``budgets`` are those whose states are current. ``left`` is how many jobs the claim still
    takes, ``room`` how many of the queue may start.
    """

    def __init__(
        self,
        budgets: Budgets,
        limited: Limited,
        now: float,
        *,
        left: int,
        room: int,
    ) -> None:
        self._budgets = budgets
        self._now = now
        self._limited = limited
        self._room = room
        self._left = left
        self._most = min(left, room)
        self._names = max(left, _NAMED)
        self._examined = examined(left)
        self._taken = 0
        self._short = False
        self._used: dict[str | None, int] = {}
        self._ready: list[str | None] = []
        #: The lanes, and for ``None`` the queue, that are to be parked, and until when.
        self.parked: dict[str | None, float] = {}

    @property
    def done(self) -> bool:
        """Whether no further job is to be judged."""
        if self._taken >= self._most or self._examined <= 0 or None in self.parked:
            return True
        named = len(self._ready) >= min(self._names, self._room - self._taken)
        return named and self._short

    def take(self, lane: str | None) -> bool:
        """Judge the next job of the ready order; return whether it is to start."""
        self._examined -= 1
        lane_limited = self._limited.lanes and lane is not None
        self._short = self._limited.queue and self._lacks(None)
        short = self._short or (lane_limited and self._lacks(lane))
        if short:
            parked = None in self.parked or lane in self.parked
            if not parked and len(self._ready) < self._names:
                self._ready.append(lane)
            return False
        self._taken += 1
        if self._limited.queue:
            self._spend(None)
        if lane_limited:
            self._spend(lane)
        return True

    def _lacks(self, lane: str | None) -> bool:
        """Return whether a budget is missing or used up; one that is used up may park."""
        budget = self._budgets.get(lane)
        if budget is None:
            return True
        if self._used.get(lane, 0) < len(budget.states):
            return False
        self._park(budget)
        return True

    def _spend(self, lane: str | None) -> None:
        budget = self._budgets[lane]
        count = self._used[lane] = self._used.get(lane, 0) + 1
        if count == len(budget.states):
            # Without a look at the next job: it would have to be found first.
            self._park(budget)

    def _park(self, budget: Budget) -> None:
        if budget.retry_at is not None and budget.retry_at > self._now:
            self.parked[budget.lane] = budget.retry_at

    @property
    def used(self) -> list[Use]:
        """The budgets of which something was taken."""
        return [
            Use(lane, count, self._budgets[lane].states[count - 1], self._budgets[lane].ttl)
            for lane, count in self._used.items()
        ]

    @property
    def wanted(self) -> tuple[str | None, ...]:
        """The lanes of jobs that could start if there were budgets, in order."""
        if None in self.parked:
            return ()
        return tuple(self._ready[: self._room - self._taken])

    @property
    def left(self) -> int:
        """How many of the ready jobs are left to this claimer, who comes again at once.

        All of them where it is the queue that lacks a budget: two claimers would take turns.
        """
        if self._taken >= self._left or not self.wanted:
            return 0
        return sys.maxsize if self._short else min(len(self.wanted), self._left - self._taken)

    @property
    def more(self) -> bool:
        """Whether another claimer should be woken, since this one is full and budget is left."""
        full = self._taken >= self._left and self._room > self._taken
        return self._limited.queue and full and None not in self.parked

    @property
    def named(self) -> list[str | None]:
        """Whose states go with what is wanted: the queue and each lane, as far as limited."""
        queue: list[str | None] = [None] if self._limited.queue else []
        if not self._limited.lanes:
            return queue
        return queue + [lane for lane in dict.fromkeys(self.wanted) if lane is not None]


__all__ = ["Allowance", "Budgets", "Limited", "Use", "examined", "usable"]
