"""The budgets of limited queues: learned from the replies of a storage, without I/O or clock.

A storage says in a want which lanes could start jobs and which state their limiters have. Here
the limiters are asked for as much as a claim could use, and the next claim carries that as a
grant. What a claim does not take costs nothing, so lanes that may have come up meanwhile are
offered as well: those that this broker has parked and whose time has come, and those in which it
has lately started jobs. States are kept from reply to reply; one that another broker has changed
meanwhile is refused by its version and comes back in a want.

All moments given are monotonic seconds. The storage's time is estimated from its last replies and
the monotonic time since, and never meant to be ahead of it: a grant from the future is refused.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.protocols.budgets import GRANT_AGE, Budget, Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from plugq.protocols.budgets import LimitState, Want
    from plugq.protocols.limiter import Limiter
    from plugq.protocols.storage import ClaimReply, ClaimRequest, Settlement

    #: Makes the limiter that a stored specification describes; raises where it can not.
    MakeLimiter = Callable[[bytes], Limiter]

logger: logging.Logger = logging.getLogger(__name__)

#: Lanes that are offered beyond those of the last want and as many as a claim has room for, and
#: lanes that are remembered for that.
OFFERED, REMEMBERED = 64, 256
#: Seconds for which a state is kept beyond the window of its limiter, and a queue beyond its last
#: sign of life.
KEPT = 60.0
#: Seconds after which a queue is claimed again whose limiters were not usable.
LOOK_AGAIN = 10.0
#: Seconds by which rounding must not make a grant come from the future or a retry too soon.
_HAIR = 1e-6


@dataclass(slots=True)
class _Known:
    """The state of a lane or, without a lane, of a whole queue, as far as it was told here."""

    version: int
    state: bytes | None
    #: How many starts the last want named, or the last claim took.
    wanted: int
    #: The monotonic time of that.
    used: float
    #: Until when this broker has parked it, by the storage's time.
    parked: float | None = None


class Budgets:
    """Makes the grants of one broker's claims.

    ``make`` turns a specification of limiters into one. A queue whose specification it can not
    read gets no budgets from here; other brokers may serve it.
    """

    def __init__(self, make: MakeLimiter) -> None:
        self._make = make
        self._queues: dict[str, _Queue] = {}
        #: Queues without usable limiters: revision, why, and when to look at them again.
        self._broken: dict[str, tuple[int, str, float]] = {}
        #: The storage's time less the monotonic time.
        self._ahead: float | None = None
        #: When what this broker has parked may run again, by the storage's time.
        self._retries: list[tuple[float, int, str, str | None]] = []
        self._order = itertools.count()
        #: Queues that ``due`` has to tell.
        self._due: set[str] = set()

    def prepare(self, request: ClaimRequest, now: float) -> ClaimRequest:
        """Return the request with grants for its limited queues, to be sent at once."""
        if self._broken:
            request = self._without_broken(request, now)
        if self._ahead is None or not self._queues or request.limit <= 0:
            return request
        at = now + self._ahead
        # This claim lets in what has come due in its queues.
        self._reopen(now)
        self._due.difference_update(request.queues)
        grants = []
        for name in dict.fromkeys(request.queues):
            queue = self._queues.get(name)
            if queue is None:
                continue
            queue.asked = now
            if queue.closed(at):
                continue
            try:
                budgets = queue.offer(request.limit, at)
            except Exception as error:
                logger.exception("a limiter of queue %r failed", name)
                self._refuse(name, queue.revision, error, now)
                continue
            grants.append(Grant(queue=name, revision=queue.revision, at=at, budgets=budgets))
        return msgspec.structs.replace(request, grants=tuple(grants)) if grants else request

    def learn(self, request: ClaimRequest, reply: ClaimReply, sent: float, now: float) -> bool:
        """Take in the answer to a request, sent and received at those moments.

        Returns whether another claim, with the budgets that can be granted now, may get more.
        """
        if not request.grants and not reply.wants:
            return False
        self._set_clock(reply.now, sent, now)
        wants = {want.queue: want for want in reply.wants}
        for want in reply.wants:
            self._enter(want, now)
        for grant in request.grants:
            queue = self._queues.get(grant.queue)
            if queue is not None and queue.revision == grant.revision:
                self._settle(queue, grant, reply, wants.get(grant.queue), now)
        for want in reply.wants:
            if (queue := self._queues.get(want.queue)) is not None:
                queue.wanted(want, now)
        self._forget(request.queues, now)
        able = any(want.queue in self._queues for want in reply.wants)
        return able and len(reply.leases) < request.limit

    def due(self, now: float) -> frozenset[str]:
        """Return the queues of which something that this broker parked may run again by now.

        Each such moment is told once, and not at all if a claim of that queue was prepared since.
        """
        self._reopen(now)
        names = frozenset(self._due)
        self._due.clear()
        return names

    def closed_until(self, names: Sequence[str], now: float) -> float | None:
        """Return when the first of these queues may run again if this broker has parked all."""
        if self._ahead is None or not self._queues:
            return None
        moments = []
        for name in names:
            queue = self._queues.get(name)
            if queue is None or not queue.closed(now + self._ahead):
                return None
            moments.append((queue.parked_until(None) or 0.0) - self._ahead + _HAIR)
        return min(moments, default=None)

    def frees(self, settlements: Sequence[Settlement]) -> frozenset[str]:
        """Return the limited queues in which these ends may let another job start."""
        names = set()
        for settlement in settlements if self._queues else ():
            queue = self._queues.get(settlement.queue)
            if queue is not None and queue.parked_until(settlement.lane) is None:
                names.add(settlement.queue)
        return frozenset(names)

    def unasked(self, since: Mapping[str, float]) -> tuple[str, ...]:
        """Return those of the queues for which no claim was prepared since the time given."""
        return tuple(
            name
            for name, moment in since.items()
            if (queue := self._queues.get(name)) is not None and queue.asked < moment
        )

    @property
    def retry(self) -> float | None:
        """When ``due`` has something to tell, if ever."""
        if self._due:
            return 0.0
        while self._retries:
            at, _, name, lane = self._retries[0]
            queue = self._queues.get(name)
            if queue is not None and queue.parked_until(lane) == at:
                break
            heappop(self._retries)
        return self._next()

    def state(self) -> dict[str, Any]:
        """Return which queues are known as limited, and why some get no budgets from here."""
        return {
            "limited": sorted(self._queues),
            "unusable": {name: why for name, (_, why, _) in self._broken.items()},
        }

    def _reopen(self, now: float) -> None:
        """Offer again what may run again by now."""
        while (at := self._next()) is not None and at <= now:
            until, _, name, lane = heappop(self._retries)
            queue = self._queues.get(name)
            if queue is not None and queue.reopen(lane, until):
                self._due.add(name)

    def _next(self) -> float | None:
        if not self._retries or self._ahead is None:
            return None
        return self._retries[0][0] - self._ahead + _HAIR

    def _set_clock(self, stamp: float, sent: float, received: float) -> None:
        """Estimate the storage's time: the stamp was made between the two moments."""
        least, most = stamp - received - _HAIR, stamp - sent
        if self._ahead is None or not least <= self._ahead <= most:
            self._ahead = least

    def _enter(self, want: Want, now: float) -> None:
        """Make the limiters of a queue that is new here or has others now."""
        known = self._queues.get(want.queue)
        if known is not None and known.revision == want.revision:
            return
        broken = self._broken.get(want.queue)
        if broken is not None and broken[0] == want.revision:
            self._broken[want.queue] = (*broken[:2], now + LOOK_AGAIN)
            return
        try:
            self._queues[want.queue] = _Queue(
                want.revision,
                self._make(want.limits).widened(GRANT_AGE) if want.limits else None,
                self._make(want.lane_limits).widened(GRANT_AGE) if want.lane_limits else None,
            )
            self._broken.pop(want.queue, None)
        except Exception as error:  # noqa: BLE001 - whatever a plugin raises
            logger.error(  # noqa: TRY400 - the line says what to do
                "queue %r gets no jobs from here, its limits can not be used: %s", want.queue, error
            )
            self._refuse(want.queue, want.revision, error, now)

    def _refuse(self, name: str, revision: int, error: Exception, now: float) -> None:
        self._queues.pop(name, None)
        self._broken[name] = (revision, f"{type(error).__name__}: {error}", now + LOOK_AGAIN)

    def _without_broken(self, request: ClaimRequest, now: float) -> ClaimRequest:
        """Leave out queues that only others can serve, so that wake-ups for them go there."""
        left = [
            name
            for name in request.queues
            if name not in self._broken or self._broken[name][2] <= now
        ]
        return msgspec.structs.replace(request, queues=tuple(left))

    def _settle(
        self,
        queue: _Queue,
        grant: Grant,
        reply: ClaimReply,
        want: Want | None,
        now: float,
    ) -> None:
        """Take in what became of a grant."""
        spent = {s.state.lane: s for s in reply.spent if s.queue == grant.queue}
        ready = () if want is None else want.ready
        for budget in grant.budgets:
            use = spent.get(budget.lane)
            if use is not None:
                queue.spend(use.state, use.count, now)
                used_up = use.count == len(budget.states)
            else:
                # A storage does not tell what it parked without taking: it wants it no more.
                wanted = bool(ready) if budget.lane is None else budget.lane in ready
                used_up = not budget.states and not wanted
            if used_up and budget.retry_at is not None:
                queue.park(budget.lane, budget.retry_at)
                entry = (budget.retry_at, next(self._order), grant.queue, budget.lane)
                heappush(self._retries, entry)

    def _forget(self, names: Sequence[str], now: float) -> None:
        for name in names:
            queue = self._queues.get(name)
            if queue is not None and queue.forget(now):
                del self._queues[name]


class _Queue:
    """What is known of one limited queue."""

    def __init__(self, revision: int, limits: Limiter | None, lane_limits: Limiter | None) -> None:
        self.revision = revision
        #: When a claim of it was last prepared.
        self.asked = 0.0
        self._limits = limits
        self._lane_limits = lane_limits
        limiters = [each for each in (limits, lane_limits) if each is not None]
        self._kept = max((each.window for each in limiters), default=0.0) + KEPT
        self._whole: _Known | None = None
        #: The lanes by when they were last used.
        self._lanes: dict[str, _Known] = {}
        #: Lanes that may have a job that can start, the likeliest last.
        self._open: dict[str, None] = {}
        self._named = 0
        self._used = 0.0

    def closed(self, at: float) -> bool:
        """Return whether this broker has parked the whole queue beyond that time."""
        until = self.parked_until(None)
        return until is not None and until > at

    def parked_until(self, lane: str | None) -> float | None:
        """Return until when this broker has parked a lane or the queue."""
        known = self._whole if lane is None else self._lanes.get(lane)
        return None if known is None else known.parked

    def offer(self, limit: int, at: float) -> tuple[Budget, ...]:
        """Return what the limiters grant as of that time by the storage's clock."""
        budgets: list[Budget] = []
        if self._limits is not None and self._whole is not None:
            budgets.append(_budget(self._limits, None, self._whole, limit, at))
            if not budgets[0].states:
                return tuple(budgets)
        if self._lane_limits is not None:
            most = limit + OFFERED + self._named
            for lane, _ in zip(reversed(self._open), range(most), strict=False):
                known = self._lanes[lane]
                count = min(limit, known.wanted)
                budgets.append(_budget(self._lane_limits, lane, known, count, at))
        return tuple(budgets)

    def wanted(self, want: Want, now: float) -> None:
        """Take in the states of a want and which lanes could start jobs, in that order."""
        self._used = now
        times: dict[str | None, int] = {}
        for lane in want.ready:
            times[lane] = times.get(lane, 0) + 1
        for state in want.states:
            self._put(state, times.get(state.lane, 1), now)
        self._named = len(times)
        for lane in reversed(times):
            if lane is not None and lane in self._lanes:
                self._show(lane)
        while len(self._open) > REMEMBERED + self._named:
            del self._open[next(iter(self._open))]

    def spend(self, state: LimitState, count: int, now: float) -> None:
        """Take in the state that a claim has written."""
        self._used = now
        self._put(state, count, now)
        if state.lane is not None:
            self._show(state.lane)

    def park(self, lane: str | None, until: float) -> None:
        """Note that a claim of this broker has parked a lane or the queue."""
        known = self._whole if lane is None else self._lanes.get(lane)
        if known is not None:
            known.parked = until
        if lane is not None:
            self._open.pop(lane, None)

    def reopen(self, lane: str | None, at: float) -> bool:
        """Offer again what was parked until that time; False if it has changed since."""
        known = self._whole if lane is None else self._lanes.get(lane)
        if known is None or known.parked != at:
            return False
        known.parked = None
        if lane is not None:
            self._show(lane)
        return True

    def forget(self, now: float) -> bool:
        """Drop some of the lanes that were not used for a while; True if the queue was not."""
        for lane in [lane for lane, _ in zip(self._lanes, range(4), strict=False)]:
            if self._lanes[lane].used < now - self._kept:
                del self._lanes[lane]
                self._open.pop(lane, None)
        return self._used < now - self._kept

    def _show(self, lane: str) -> None:
        self._open.pop(lane, None)
        self._open[lane] = None

    def _put(self, state: LimitState, wanted: int, now: float) -> None:
        known = _Known(state.version, state.state, wanted, now)
        if state.lane is None:
            self._whole = known
        else:
            self._lanes.pop(state.lane, None)
            self._lanes[state.lane] = known


def _budget(limiter: Limiter, lane: str | None, known: _Known, count: int, at: float) -> Budget:
    """Return up to so many starts, one by one, and when there are more if that is all."""
    states: list[bytes | None] = []
    step = limiter.step(known.state, 1, at)
    while step.granted and len(states) < count:
        states.append(step.state)
        step = limiter.step(step.state, 1, at)
    return Budget(
        lane=lane,
        expect=known.version,
        states=tuple(states),
        ttl=limiter.window + KEPT,
        retry_at=None if step.granted else step.retry_at,
    )


__all__ = ["OFFERED", "Budgets"]
