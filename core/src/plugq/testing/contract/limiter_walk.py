"""Who calls the limiter under test: a caller that acquires and waits at random."""

from __future__ import annotations

import itertools
import math
from random import Random
from typing import TYPE_CHECKING, ClassVar

from plugq.protocols.plugin import PluginContext

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from plugq.protocols.limiter import Limiter, Step

#: Of times like these every difference is exact.
START = 1_700_000_000.0
#: More than any limiter grants.
PLENTY = 10**12
SEEDS = range(12)


class LimiterSubject:
    """Makes the limiter under test."""

    #: By this the pytest plugin knows its contracts.
    plugq_contract: ClassVar[bool] = True

    def make(self, context: PluginContext) -> Limiter:
        """Return a limiter, one of the same options each time."""
        raise NotImplementedError

    def most(self, seconds: float) -> int:
        """Return how many grants may lie between two moments so far apart, both included.

        With 0 it is how many there may be at one moment.
        """
        raise NotImplementedError

    def most_late(self, seconds: float) -> int:
        """Return the same for the starts that a widened limiter lets happen, by default equal."""
        return self.most(seconds)

    def limiter(self) -> Limiter:
        """Return a new limiter."""
        return self.make(PluginContext())

    def callers(self) -> Iterator[Caller]:
        """Yield callers of one limiter, each of which is about to walk another way."""
        limiter = self.limiter()
        for seed in SEEDS:
            yield Caller(limiter, seed, self.most(0.0))


class Caller:
    """Calls a limiter and writes down what it was granted."""

    def __init__(self, limiter: Limiter, seed: int, burst: int) -> None:
        self.limiter = limiter
        self.random: Random = Random(seed)  # noqa: S311 - a walk that can be walked again
        self.burst = burst
        self.state: bytes | None = None
        self.now: float = START
        self.retry_at: float | None = None
        #: The grants: when, and how many.
        self.kept: list[tuple[float, int]] = []

    def budget(self, now: float | None = None, state: bytes | None = None) -> int:
        """Return how much there is to grant, without taking it."""
        asked = self.state if state is None else state
        return self.limiter.step(asked, PLENTY, self.now if now is None else now).granted

    def acquire(self, want: int) -> Step:
        """Take a step and keep what it grants."""
        step = self.limiter.step(self.state, want, self.now)
        self.state, self.retry_at = step.state, step.retry_at
        if step.granted:
            self.kept.append((step.at, step.granted))
        return step

    def wait(self) -> None:
        """Let time pass: none, a little, up to when it is worth trying again, or long."""
        share = self.random.choice((0.0, 0.001, 0.05, 0.3, 1.0, 2.5))
        if self.random.random() < 0.3 and self.retry_at is not None:
            self.now = max(self.now, self.retry_at)
        else:
            self.now += share * self.random.random() * self.limiter.window

    def want(self) -> int:
        """Return how many to ask for: few, the whole of it, or too many."""
        some = self.random.randint(1, self.burst)
        return self.random.choice((1, 1, 2, some, self.burst, self.burst + 1, PLENTY))

    def walk(self, steps: int) -> Iterator[Step]:
        """Acquire so many times, with waits in between, and yield each step."""
        for _ in range(steps):
            self.wait()
            yield self.acquire(self.want())


def crowded(kept: Iterable[tuple[float, int]], most: Callable[[float], int]) -> str | None:
    """Return which window holds more than it may, having looked at all of them."""
    order = sorted(kept)
    moments = [
        (at, sum(number for _, number in same))
        for at, same in itertools.groupby(order, key=lambda grant: grant[0])
    ]
    for index, (first, _) in enumerate(moments):
        total = 0
        for last, number in moments[index:]:
            total += number
            if total > most(last - first):
                return f"{total} within {last - first} s, where {most(last - first)} may be"
    return None


def just_before(moment: float) -> float:
    """Return the last time before it."""
    return math.nextafter(moment, -math.inf)


__all__ = ["PLENTY", "SEEDS", "START", "Caller", "LimiterSubject", "crowded", "just_before"]
