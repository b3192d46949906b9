"""The contract classes of a plugin that is named, for the session and for its child processes.

What is tested stands in the environment, so that every process of a run makes the same classes.
"""

from __future__ import annotations

import math
import os
import weakref
from contextlib import asynccontextmanager
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

import plugq.testing
from plugq.errors import ConfigError
from plugq.fields import Reader
from plugq.protocols.plugin import Capability
from plugq.registry import Registry
from plugq.testing.conformance.target import LIMITERS, VARIABLE, Target
from plugq.testing.limiter import LimiterContract
from plugq.testing.requirements import MissingHook
from plugq.testing.storage import StorageContract

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager

    from plugq.protocols.limiter import Limiter
    from plugq.protocols.plugin import PluginContext
    from plugq.protocols.storage import Storage
    from plugq.testing.contract.scene import UserTransaction


def target() -> Target:
    """Return what this run tests."""
    return _read(os.environ[VARIABLE])


@cache
def _read(text: str) -> Target:
    return msgspec.json.decode(text, type=Target)


def _make(context: PluginContext) -> Any:
    what = target()
    return Registry().build(what.kind, what.use, what.options, context)


class TestStorage(StorageContract):
    """The contract for a storage that is named.

    Of one that declares ``shared_processes`` every opening is an instance of its own; of another
    one it is the same instance, which is all that can share it.
    """

    _stores: ClassVar[weakref.WeakKeyDictionary[PluginContext, Storage]] = (
        weakref.WeakKeyDictionary()
    )

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        """Open the store of that context."""
        storage: Storage | None = self._stores.get(context)
        if storage is None:
            storage = _make(context)
            if Capability.SHARED_PROCESSES not in storage.capabilities:
                self._stores[context] = storage
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        """Leave these tests to the author's contract: only that knows how to open a connection."""
        what = target()
        if hasattr(Registry().load(what.kind, what.use), "submit_within"):
            raise MissingHook("transactions")
        return super().transactions(context)


class TestLimiter(LimiterContract):
    """The contract for a limiter of plugq, whose bound follows from its options."""

    def make(self, context: PluginContext) -> Limiter:
        """Return the limiter."""
        limiter: Limiter = _make(context)
        return limiter

    def most(self, seconds: float) -> int:
        """Return the bound of its kind."""
        kind, options = _limits(os.environ[VARIABLE])
        if kind == "token_bucket":
            gained = Fraction(repr(options.rate)) * Fraction(seconds)
            return int(options.burst) + math.floor(gained)
        if kind == "delay":
            return _windows(1, options.every, seconds)
        if kind == "spaced":
            return _windows(1, options.per / options.limit, seconds)
        return _windows(options.limit, options.per, seconds)

    def most_late(self, seconds: float) -> int:
        """Return the same for starts that come late: they may be nearer than the spacing."""
        kind, options = _limits(os.environ[VARIABLE])
        if kind == "spaced":
            return _windows(options.limit, options.per, seconds)
        return self.most(seconds)


@cache
def _limits(text: str) -> tuple[str, Any]:
    """Return the kind of limiter and its options."""
    what, registry, reader = _read(text), Registry(), Reader()
    plugin = registry.load(what.kind, what.use)
    kind = next(name for name in LIMITERS if registry.load(what.kind, name) is plugin)
    made = reader.struct(plugin.Options, what.options, what.kind)
    reader.finish()
    return kind, made


def _windows(limit: int, per: float, seconds: float) -> int:
    return limit * (math.floor(seconds / per) + 1)


def _serde() -> type:
    contract: Any = getattr(plugq.testing, "SerdeContract", None)
    if contract is None:
        raise ConfigError("this version of plugq has no contract for serdes")

    def make(_self: Any, context: PluginContext) -> Any:
        return _make(context)

    return type("TestSerde", (contract,), {"make": make, "__module__": __name__})


if target().kind == "serde":
    TestSerde: type = _serde()

__all__ = ["TestLimiter", "TestStorage", "target"]
