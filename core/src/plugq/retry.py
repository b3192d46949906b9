"""Whether and when a failed attempt is followed by another: a pure decision."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Literal

import msgspec

from plugq.duration import Duration, seconds

if TYPE_CHECKING:
    from collections.abc import Callable

Backoff = Literal["exponential", "linear", "fixed"]

#: So many executions are a mistake, and more than some storages can count.
_TOO_MANY = 2**31


class RetryTerms(msgspec.Struct, frozen=True, array_like=True):
    """A retry policy as it travels with a job, and the decisions that its worker takes by it."""

    max_attempts: int = 4
    backoff: Backoff = "exponential"
    base: float = 5.0
    factor: float = 4.0
    max_delay: float = 3600.0
    jitter: float = 0.5
    retry_on: tuple[str, ...] = ()
    give_up_on: tuple[str, ...] = ()

    def retries(self, error: BaseException) -> bool:
        """Return whether an error of that class is worth another attempt."""
        names = {name for cls in type(error).__mro__ for name in (cls.__qualname__, _full(cls))}
        if names.intersection(self.give_up_on):
            return False
        return not self.retry_on or bool(names.intersection(self.retry_on))

    def delay(self, attempt: int, *, draw: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after that attempt, counted from 1.

        ``draw`` gives a random number of [0, 1).
        """
        if self.backoff == "fixed":
            delay = self.base
        elif self.backoff == "linear":
            delay = self.base * attempt
        else:
            try:
                delay = self.base * self.factor ** (attempt - 1)
            except OverflowError:
                delay = self.max_delay
        return min(delay, self.max_delay) * (1 - self.jitter * draw())


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How often a job is executed and how long it waits in between.

    ``max_attempts`` is the total of executions; 1 means no retry. The delay after attempt *n* is
    ``base * factor ** (n - 1)`` (exponential), ``base * n`` (linear) or ``base`` (fixed), at most
    ``max_delay``, times a random number out of [1 - ``jitter``, 1].

    ``retry_on`` and ``give_up_on`` take exception classes or names, with or without their module,
    and match over the whole inheritance of what was raised. An empty ``retry_on`` stands for
    every error; ``give_up_on`` wins over it.

    Raises:
        ValueError: a number is out of range, or a duration is none.
    """

    max_attempts: int = 4
    backoff: Backoff = "exponential"
    base: Duration = 5.0
    factor: float = 4.0
    max_delay: Duration = 3600.0
    jitter: float = 0.5
    retry_on: tuple[str | type[BaseException], ...] = ()
    give_up_on: tuple[str | type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Check the numbers and bring durations and classes into the form that travels."""
        check_max_attempts(self.max_attempts)
        if self.backoff not in {"exponential", "linear", "fixed"}:
            message = f"backoff: expected exponential, linear or fixed, got {self.backoff!r}"
            raise ValueError(message)
        if not 0 <= self.jitter <= 1:
            message = f"jitter: expected a number from 0 to 1, got {self.jitter!r}"
            raise ValueError(message)
        if self.factor < 1:
            message = f"factor: expected at least 1, got {self.factor!r}"
            raise ValueError(message)
        normal = msgspec.structs.force_setattr
        normal(self, "base", seconds(self.base, name="base"))
        normal(self, "max_delay", seconds(self.max_delay, name="max_delay"))
        normal(self, "retry_on", _names(self.retry_on, "retry_on"))
        normal(self, "give_up_on", _names(self.give_up_on, "give_up_on"))

    def with_max_attempts(self, max_attempts: int) -> RetryPolicy:
        """Return this policy with another number of executions."""
        check_max_attempts(max_attempts)
        return msgspec.structs.replace(self, max_attempts=max_attempts)

    def terms(self) -> RetryTerms:
        """Return the policy in the form in which it travels with a job."""
        return RetryTerms(
            max_attempts=self.max_attempts,
            backoff=self.backoff,
            base=seconds(self.base),
            factor=self.factor,
            max_delay=seconds(self.max_delay),
            jitter=self.jitter,
            retry_on=_names(self.retry_on, "retry_on"),
            give_up_on=_names(self.give_up_on, "give_up_on"),
        )


def check_max_attempts(value: object) -> None:
    """Refuse what is no number of executions.

    Raises:
        ValueError: it is not an integer of at least 1 and less than 2 to the 31st.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        message = (
            f"max_attempts: expected an integer of at least 1 (1 means no retry), got {value!r}"
        )
        raise ValueError(message)
    if value >= _TOO_MANY:
        message = f"max_attempts: expected less than {_TOO_MANY:,}, got {value}"
        raise ValueError(message)


def _full(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _names(errors: tuple[str | type[BaseException], ...], option: str) -> tuple[str, ...]:
    if isinstance(errors, str | type):
        errors = (errors,)
    names = []
    for error in errors:
        if isinstance(error, str):
            names.append(error)
        elif isinstance(error, type) and issubclass(error, BaseException):
            names.append(_full(error))
        else:
            message = f"{option}: expected exception classes or their names, got {error!r}"
            raise TypeError(message)
    return tuple(names)


__all__ = ["RetryPolicy", "RetryTerms", "check_max_attempts"]
