"""The limiter contract, proven: each limiter here breaks one promise and must be caught."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import msgspec
import pytest

from plugq.limiters import (
    Chain,
    DelayLimiter,
    DelayOptions,
    RateLimiter,
    RateOptions,
    TokenBucketLimiter,
    TokenBucketOptions,
)
from plugq.limiters.moments import Moment, pack, unpack
from plugq.protocols import Limiter, PluginContext, Step
from plugq.testing import LimiterContract

replace = msgspec.structs.replace


class OneTooMany(RateLimiter):
    """The limit is off by one."""

    def __init__(self, options: RateOptions, context: PluginContext) -> None:
        super().__init__(replace(options, limit=options.limit + 1), context)


class OneTooFew(RateLimiter):
    """The limit is off by one to the other side."""

    def __init__(self, options: RateOptions, context: PluginContext) -> None:
        super().__init__(replace(options, limit=options.limit - 1), context)


class Tumbles(RateLimiter):
    """Every window begins where the one before ended."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        latest, moments = unpack(b"R", state)
        floor = math.floor(max(now, latest) / self.window) * self.window
        moments = [moment for moment in moments if moment[0] >= floor]
        return super().step(pack(b"R", latest, moments) if moments else state, want, now)

    def _frees(self, moments: list[Moment], used: int) -> float:
        return (math.floor(moments[-1][0] / self.window) + 1) * self.window


class Forgets(RateLimiter):
    """Every step is the first."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        return super().step(None, want, now)


class GrantsWhatIsWanted(RateLimiter):
    """Who wants more than the limit is granted all of it when the budget is full."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        step = super().step(state, want, now)
        return replace(step, granted=want, retry_at=None) if step.granted == 5 else step


class AllOrNothing(RateLimiter):
    """Who wants more than there is gets nothing."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        step = super().step(state, want, now)
        partly = 0 < step.granted < want <= 5
        return replace(step, state=state, granted=0) if partly else step


class TrustsTheClock(RateLimiter):
    """What was granted in the time to come was never granted."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        return super().step(None if unpack(b"R", state)[0] > now else state, want, now)


class TriesAgainTooSoon(RateLimiter):
    """A hair."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        step = super().step(state, want, now)
        early = None if step.retry_at is None else math.nextafter(step.retry_at, 0.0)
        return replace(step, retry_at=early)


class TriesAgainTooLate(RateLimiter):
    """A hair."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        step = super().step(state, want, now)
        late = None if step.retry_at is None else math.nextafter(step.retry_at, math.inf)
        return replace(step, retry_at=late)


class AlwaysSaysWhen(RateLimiter):
    """There is something to try again for even when all was granted."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        step = super().step(state, want, now)
        return replace(step, retry_at=step.at if step.retry_at is None else step.retry_at)


class KeepsEveryMoment(RateLimiter):
    """The state is as long as the limit is high."""

    limit: ClassVar[int] = 1000

    def _bounded(self, moments: list[Moment]) -> list[Moment]:
        return moments


class MergesToTheEarlier(KeepsEveryMoment):
    """What was granted last leaves the window with what was granted first."""

    def _bounded(self, moments: list[Moment]) -> list[Moment]:
        half = len(moments) // 2
        if len(moments) < 100:
            return moments
        merged = (moments[0][0], sum(number for _, number in moments[:half]))
        return [merged, *moments[half:]]


class Remembers(RateLimiter):
    """The state is kept in the object."""

    _state: bytes | None = None

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        step = super().step(self._state, want, now)
        self._state = step.state
        return replace(step, state=b"R")


class RefusesToReadOthers(RateLimiter):
    """Bytes that it does not know end the process."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        if state is not None and unpack(b"R", state)[0] < 0:
            raise ValueError(state)
        return super().step(state, want, now)


class DoesNotWiden(RateLimiter):
    """A start counts when it is granted, however late it comes."""

    def widened(self, seconds: float) -> Self:
        return self


class ExpiresTooSoon(RateLimiter):
    """The window that it names is half of what it counts over."""

    @property
    def window(self) -> float:
        return self._window / 2


class PutsOffTheRefused(DelayLimiter):
    """Each refusal pushes the next start further away."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        step = super().step(state, want, now)
        if want > 0 and not step.granted:
            return replace(step, state=pack(b"G", step.at, [(step.at, 1)]))
        return step


class Overflows(TokenBucketLimiter):
    """Tokens that nobody takes are kept beyond the burst."""

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        idle = now - max(unpack(b"T", (state or b"")[24:])[0], 0.0)
        extra = 5 if state is not None and idle > 2 * self.window else 0
        step = super().step(state, want, now)
        return replace(step, granted=min(max(want, 0), step.granted + extra), retry_at=None)


class Leaks(Chain):
    """Those who are asked first are left without what those after them refuse."""

    def _agree(
        self, states: Sequence[bytes | None], want: int, at: float
    ) -> tuple[int, list[Step]]:
        agreed, steps = max(0, want), []
        for limiter, state in zip(self.limiters, states, strict=True):
            steps.append(limiter.step(state, agreed, at))
            agreed = min(agreed, steps[-1].granted)
        return agreed, steps


class AsksOnlyTheFirst(Chain):
    """The others are not asked."""

    def _agree(
        self, states: Sequence[bytes | None], want: int, at: float
    ) -> tuple[int, list[Step]]:
        granted, steps = super()._agree(states, want, at)
        first = self.limiters[0].step(states[0], want, at)
        return (first.granted, [first, *steps[1:]]) if granted else (granted, steps)


CAUGHT_BY: dict[type[Limiter], tuple[str, ...]] = {
    OneTooMany: (
        "every_window_keeps_the_bound",
        "a_greedy_caller_keeps_the_bound",
        "all_of_the_bound_is_granted_at_first",
    ),
    OneTooFew: ("all_of_the_bound_is_granted_at_first",),
    Tumbles: ("every_window_keeps_the_bound",),
    Forgets: ("every_window_keeps_the_bound", "before_retry_at_nothing_is_granted"),
    GrantsWhatIsWanted: (
        "every_window_keeps_the_bound",
        "all_of_the_bound_is_granted_at_first",
    ),
    AllOrNothing: ("no_more_is_granted_than_is_wanted",),
    TrustsTheClock: (
        "a_clock_that_was_set_back_gains_nothing",
        "a_caller_with_a_slow_clock_keeps_the_bound",
    ),
    TriesAgainTooSoon: ("at_retry_at_something_is_granted",),
    TriesAgainTooLate: ("before_retry_at_nothing_is_granted",),
    AlwaysSaysWhen: (
        "only_who_is_refused_is_told_when_to_try_again",
        "who_wants_nothing_is_granted_nothing",
    ),
    KeepsEveryMoment: ("the_state_is_small",),
    MergesToTheEarlier: ("many_moments_keep_the_bound",),
    Remembers: ("the_state_is_all_there_is",),
    RefusesToReadOthers: ("foreign_bytes_count_as_none", "damaged_bytes_raise_nothing"),
    DoesNotWiden: ("starts_that_come_late_keep_the_bound_of_the_widened",),
    ExpiresTooSoon: ("after_a_window_of_rest_all_is_as_new",),
    PutsOffTheRefused: ("a_refusal_changes_nothing", "at_retry_at_something_is_granted"),
    Overflows: ("every_window_keeps_the_bound",),
    Leaks: ("what_is_refused_takes_nothing",),
    AsksOnlyTheFirst: ("every_window_keeps_the_bound",),
}


class Subject(LimiterContract):
    """The contract for one class of limiter and what it is made of."""

    def __init__(self, limiter: type[Limiter]) -> None:
        self._make, self._most = _subject(limiter)

    def make(self, context: PluginContext) -> Limiter:
        return self._make(context)

    def most(self, seconds: float) -> int:
        return self._most(seconds)


def _windows(limit: int, per: float, seconds: float) -> int:
    return limit * (math.floor(seconds / per) + 1)


def _subject(
    limiter: type[Limiter],
) -> tuple[Callable[[PluginContext], Limiter], Callable[[float], int]]:
    if issubclass(limiter, RateLimiter):
        rate, limit = limiter, int(getattr(limiter, "limit", 5))
        return (
            lambda context: rate(RateOptions(limit=limit, per=2.0), context),
            lambda seconds: _windows(limit, 2.0, seconds),
        )
    if issubclass(limiter, DelayLimiter):
        delay = limiter
        return (
            lambda context: delay(DelayOptions(every=0.5), context),
            lambda seconds: _windows(1, 0.5, seconds),
        )
    if issubclass(limiter, TokenBucketLimiter):
        bucket = limiter
        return (
            lambda context: bucket(TokenBucketOptions(rate=3.0, burst=10), context),
            lambda seconds: math.floor(10 + 3.0 * seconds),
        )
    assert issubclass(limiter, Chain)
    chain = limiter
    return (
        lambda context: chain(
            [
                RateLimiter(RateOptions(limit=5, per=2.0), context),
                DelayLimiter(DelayOptions(every=0.1), context),
            ]
        ),
        lambda seconds: min(_windows(5, 2.0, seconds), _windows(1, 0.1, seconds)),
    )


def run(limiter: type[Limiter], name: str) -> Exception | None:
    """Run one contract test and return what it failed with."""
    test = getattr(Subject(limiter), f"test_{name}")
    try:
        test()
    except Exception as error:  # noqa: BLE001 - a broken limiter may fail a test in any way
        return error
    return None


class SoundRateOfMany(RateLimiter):
    """What the limiters with a high limit are made of."""

    limit: ClassVar[int] = 1000


def _sound(broken: type[Limiter]) -> type[Limiter]:
    if issubclass(broken, KeepsEveryMoment):
        return SoundRateOfMany
    sound = (RateLimiter, DelayLimiter, TokenBucketLimiter, Chain)
    return next(kind for kind in sound if issubclass(broken, kind))


CASES = [
    pytest.param(broken, name, id=f"{broken.__name__}-{name}")
    for broken, names in CAUGHT_BY.items()
    for name in names
]


@pytest.mark.parametrize(("broken", "name"), CASES)
def test_a_broken_limiter_is_caught(broken: type[Limiter], name: str) -> None:
    assert run(_sound(broken), name) is None
    assert run(broken, name) is not None


def test_every_subject_of_the_contract_has_caught_something() -> None:
    names = {f"test_{name}" for names in CAUGHT_BY.values() for name in names}
    untried = {
        subject.__name__
        for subject in LimiterContract.__bases__
        if not any(name in vars(subject) for name in names)
    }
    assert untried == set()
