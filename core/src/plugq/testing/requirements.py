"""How a contract test says which capability it needs."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from plugq.protocols.plugin import Capability


class Declares(Protocol):
    """A contract that can say what its plugin declares."""

    async def declared(self) -> frozenset[Capability]:
        """Return the capabilities of the plugin under test."""
        ...


C = TypeVar("C", bound=Declares)

_ATTRIBUTE = "plugq_requires"


class MissingCapability(Exception):
    """The plugin under test does not declare what the test needs; the pytest plugin skips it."""

    def __init__(self, missing: frozenset[Capability]) -> None:
        names = ", ".join(sorted(missing))
        super().__init__(f"the plugin does not declare {names}")
        self.missing = missing


class MissingHook(Exception):
    """The class under test has no such optional hook; the pytest plugin skips the test."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the hook {name}() is not written; override it to run these tests")
        self.name = name


def requires(
    *capabilities: Capability,
) -> Callable[
    [Callable[[C], Coroutine[None, None, None]]],
    Callable[[C], Coroutine[None, None, None]],
]:
    """Make a contract test raise :class:`MissingCapability` unless the plugin declares these."""

    def decorate(
        test: Callable[[C], Coroutine[None, None, None]],
    ) -> Callable[[C], Coroutine[None, None, None]]:
        @wraps(test)
        async def run(contract: C) -> None:
            missing = frozenset(capabilities) - await contract.declared()
            if missing:
                raise MissingCapability(missing)
            await test(contract)

        setattr(run, _ATTRIBUTE, frozenset(capabilities) | required_by(test))
        return run

    return decorate


def concerns(
    *capabilities: Capability,
) -> Callable[
    [Callable[[C], Coroutine[None, None, None]]],
    Callable[[C], Coroutine[None, None, None]],
]:
    """Say that a contract test, which runs without them too, is part of the proof of these."""

    def decorate(
        test: Callable[[C], Coroutine[None, None, None]],
    ) -> Callable[[C], Coroutine[None, None, None]]:
        setattr(test, _ATTRIBUTE, frozenset(capabilities) | required_by(test))
        return test

    return decorate


def required_by(test: object) -> frozenset[Capability]:
    """Return the capabilities of which a contract test is part of the proof."""
    found: frozenset[Capability] = getattr(test, _ATTRIBUTE, frozenset())
    return found


__all__ = ["MissingCapability", "MissingHook", "concerns", "required_by", "requires"]
