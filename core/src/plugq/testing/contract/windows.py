"""Limits in every window: a real limiter, many claimers, several openings of one store (I11)."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from plugq.limiters import RateLimiter, RateOptions
from plugq.protocols.budgets import GRANT_AGE, Budget, Grant, Want
from plugq.protocols.plugin import PluginContext
from plugq.testing.contract.budgets import limit_starts
from plugq.testing.contract.scene import Contract

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.limiter import Limiter
    from plugq.protocols.storage import Lease
    from plugq.testing.contract.scene import Scene

_PER = 1.0
_OF_QUEUE, _OF_LANE = 5, 2


def _limiter(limit: int) -> Limiter:
    return RateLimiter(RateOptions(limit=limit, per=_PER), PluginContext()).widened(GRANT_AGE)


def _budget(want: Want, lane: str | None, limiter: Limiter, now: float) -> Budget:
    """Return the starts that a limiter grants on the state which the want shows."""
    ((expect, state),) = [(one.version, one.state) for one in want.states if one.lane == lane]
    states: list[bytes | None] = []
    while True:
        step = limiter.step(state, 1, now)
        if not step.granted or len(states) == len(want.ready):
            retry_at = None if step.granted else step.retry_at
            return Budget(lane, expect, tuple(states), limiter.window, retry_at)
        state = step.state
        states.append(state)


def _grant(want: Want, now: float) -> Grant:
    """Decide as a broker does."""
    lanes = {lane for lane in want.ready if lane is not None} if want.lane_limits else set()
    budgets = [_budget(want, lane, _limiter(_OF_LANE), now) for lane in sorted(lanes)]
    if want.limits:
        budgets.append(_budget(want, None, _limiter(_OF_QUEUE), now))
    return Grant(queue=want.queue, revision=want.revision, at=now, budgets=tuple(budgets))


def check_windows(starts: Sequence[float], limit: int, whose: str) -> None:
    """Check that no window, wherever it begins, holds more starts than the limit."""
    ordered = sorted(starts)
    for begin in ordered:
        count = sum(begin <= start < begin + _PER for start in ordered)
        assert count <= limit, f"{count} jobs of {whose} started within {_PER:g} s from {begin}"


class Windows(Contract):
    """However many claim, and through however many openings, every window keeps the bound."""

    async def _claim_once(self, side: Scene, worker: str, pause: float) -> list[Lease]:
        reply = await side.ask(3, worker=worker)
        leases = list(reply.leases)
        if reply.wants:
            grants = tuple(_grant(want, reply.now) for want in reply.wants)
            # Time passes while a broker decides, and others decide on the same state.
            await asyncio.sleep(0)
            side.clock.advance(pause)
            leases += (await side.ask(3, worker=worker, grants=grants)).leases
        for lease in leases:
            await side.end(lease)
        return leases

    async def _drain(self, scene: Scene, jobs: int) -> list[Lease]:
        """Run all jobs through three openings and six workers, a fraction of a second a round."""
        started: list[Lease] = []
        async with AsyncExitStack() as stack:
            sides = [scene, *[await stack.enter_async_context(scene.another()) for _ in range(2)]]
            for round_ in range(40 * jobs):
                claims = (
                    self._claim_once(sides[number % 3], f"w-{number}", 0.001 * (round_ % 7))
                    for number in range(6)
                )
                for leases in await asyncio.gather(*claims):
                    started += leases
                if len(started) == jobs:
                    return started
                scene.clock.advance((0.03, 0.11, 0.4)[round_ % 3])
        message = f"only {len(started)} of {jobs} jobs were started"
        raise AssertionError(message)

    async def test_a_limit_of_a_queue_holds_in_every_window(self) -> None:
        """Under concurrent claims of several openings; and all jobs get their turn."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit(*(str(number) for number in range(40)))
            started = await self._drain(scene, 40)
            assert len({lease.id for lease in started}) == 40
            check_windows([lease.started_at for lease in started], _OF_QUEUE, "the queue")

    async def test_limits_of_lanes_hold_in_every_window(self) -> None:
        """Each lane for itself, beside the limit of the queue, with several of a lane running."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True, lane_max_running=5)
            lanes = ("a", "b", "c", "d")
            for number in range(40):
                await scene.submit(str(number), lane=lanes[number % 4])
            started = await self._drain(scene, 40)
            check_windows([lease.started_at for lease in started], _OF_QUEUE, "the queue")
            for lane in lanes:
                moments = [lease.started_at for lease in started if lease.lane == lane]
                assert len(moments) == 10
                check_windows(moments, _OF_LANE, f"lane {lane}")


__all__ = ["Windows"]
