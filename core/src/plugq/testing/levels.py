"""What a contract test is about, so that a report can say where a plugin stands."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., Any]")

_ATTRIBUTE = "plugq_level"


class Level(enum.StrEnum):
    """The parts of a conformance report, in the order in which they are worth mending."""

    #: What each verb does.
    SEMANTICS = "semantics"
    #: What holds when several tasks, threads or processes do it at once.
    CONCURRENCY = "concurrency"
    #: What holds when a process dies in the middle of it.
    CRASH = "crash"
    #: What it costs.
    COST = "cost"


def level(level: Level) -> Callable[[F], F]:
    """Say which level a test belongs to, where that is another one than its class's."""

    def mark(test: F) -> F:
        setattr(test, _ATTRIBUTE, level)
        return test

    return mark


def level_of(contract: type, test: str) -> Level:
    """Return the level of a test of a contract class.

    It is that of the test itself, else that of the class in which it is defined.
    """
    function = getattr(contract, test)
    marked = getattr(function, _ATTRIBUTE, None)
    if marked is not None:
        return Level(marked)
    for part in contract.__mro__:
        if test in vars(part):
            return Level(getattr(part, "level", Level.SEMANTICS))
    return Level.SEMANTICS


__all__ = ["Level", "level", "level_of"]
