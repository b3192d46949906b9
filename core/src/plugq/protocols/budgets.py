"""How limits reach a claim: what a limited queue wants, and what limiters have granted it.

A storage knows no limiter. It keeps a small state for each limited queue and for each lane of
one, with a version, and writes it in the same step as the starts that it stands for. So a bound
holds for all processes of a store, and what a claim does not take costs no budget.

1. A claim of a limited queue for which it carries no budget, or an outdated one, takes nothing
   there. Its reply has a :class:`Want`: the next jobs that could start, and the states.
2. The broker asks the limiters and claims again with a :class:`Grant`.
3. The storage takes jobs in order as far as the budgets go, writes for each budget the state
   after as many starts as it took, and parks the lanes, or the queue, whose budget is used up:
   they leave the ready order until their time.

The broker whose claim parked something claims again at that time. Where it has no free slot then,
it claims with a limit of 0, which only lets in what may run again and wakes idle peers for it. A
sweep does the same, should that broker have died.
"""

from __future__ import annotations

import msgspec

#: The oldest that a grant may be when it is used, in seconds. Limiters are widened by it.
GRANT_AGE = 0.1


class LimitState(msgspec.Struct, frozen=True, array_like=True):
    """The stored state of the limiters of a queue (``lane`` is ``None``) or of one lane.

    ``version`` is 0 where there is none. Versions of one state never repeat.
    """

    lane: str | None
    version: int
    state: bytes | None


class Want(msgspec.Struct, frozen=True, kw_only=True):
    """A limited queue has jobs that could start but for budgets.

    ``ready`` names their lanes in the order in which they would be taken, ``None`` for a job
    without a lane: at least as many as the claim had room for, if there are so many. ``states``
    are those of the queue and of all lanes in ``ready``, as far as they are limited. ``revision``
    changes with the limits, which are those of ``QueueSettings``.
    """

    queue: str
    revision: int
    limits: bytes
    lane_limits: bytes
    ready: tuple[str | None, ...]
    states: tuple[LimitState, ...]


class Budget(msgspec.Struct, frozen=True, array_like=True):
    """Starts that limiters have granted to a queue (``lane`` is ``None``) or to one of its lanes.

    ``expect`` is the version of the state that was decided on; with another one stored now the
    budget is outdated and not used. ``states`` are those after the first, second, … start, so
    there are as many of them as starts. When all are taken, or there are none, the lane or queue
    is parked until ``retry_at``, unless that is ``None``. A state is kept for ``ttl`` seconds.
    """

    lane: str | None
    expect: int
    states: tuple[bytes | None, ...]
    ttl: float
    retry_at: float | None = None


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """The budgets of one queue, as of ``at`` by the storage's clock.

    A grant of another revision, one from the future and one older than ``GRANT_AGE`` is not used.
    """

    queue: str
    revision: int
    at: float
    budgets: tuple[Budget, ...]


__all__ = ["GRANT_AGE", "Budget", "Grant", "LimitState", "Want"]
