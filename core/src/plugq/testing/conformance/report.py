"""What came of a run: the outcome of every test, and the verdict on every capability."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

import msgspec

from plugq.protocols.plugin import Capability
from plugq.testing.levels import Level

if TYPE_CHECKING:
    from collections.abc import Sequence


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One test. ``reason`` is one line, empty where it passed; ``needs`` are capabilities."""

    level: Level
    name: str
    promise: str
    outcome: str
    seconds: float
    reason: str = ""
    traceback: str = ""
    needs: tuple[str, ...] = ()


class Verdict(enum.StrEnum):
    """What a run says of a capability."""

    HELD = "declared and held"
    BROKEN = "declared and broken"
    UNTRIED = "declared and not tried"
    NOT_DECLARED = "not declared"


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """How many tests of a level came to what."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known once a run is over.

    ``declared`` is ``None`` where the plugin has no capabilities to declare or could not say,
    ``server`` is empty where it does not say what it stands on.
    ``left_out`` counts the tests that were not chosen, ``hung`` says that one had to be broken off.
    """

    results: tuple[Result, ...] = ()
    declared: tuple[str, ...] | None = None
    server: str = ""
    left_out: int = 0
    hung: bool = False

    @property
    def failed(self) -> int:
        """How many tests failed."""
        return sum(result.outcome == "failed" for result in self.results)

    @property
    def conforms(self) -> bool:
        """Whether something was tried and nothing failed."""
        return self.failed == 0 and any(r.outcome == "passed" for r in self.results)

    def of(self, level: Level) -> Sequence[Result]:
        """Return the results of one level."""
        return [result for result in self.results if result.level is level]

    def tally(self, level: Level) -> Tally:
        """Return the counts of one level."""
        outcomes = [result.outcome for result in self.of(level)]
        return Tally(**{name: outcomes.count(name) for name in Tally.__struct_fields__})

    def verdicts(self) -> dict[str, Verdict]:
        """Return what is to be said of each capability."""
        if self.declared is None:
            return {}
        return {name.value: self._verdict(name.value) for name in Capability}

    def _verdict(self, capability: str) -> Verdict:
        if capability not in (self.declared or ()):
            return Verdict.NOT_DECLARED
        outcomes = {result.outcome for result in self.results if capability in result.needs}
        if "failed" in outcomes:
            return Verdict.BROKEN
        return Verdict.HELD if "passed" in outcomes else Verdict.UNTRIED

    def summary(self) -> str:
        """Return the last line of the report."""
        if self.failed:
            tests = "test" if self.failed == 1 else "tests"
            return f"does not conform: {self.failed} {tests} failed"
        if not self.conforms:
            return "does not conform: no test was run"
        if self.left_out:
            tried = sum(result.outcome == "passed" for result in self.results)
            return f"conforms in what was tried: {tried} passed, {self.left_out} were left out"
        return "conforms"


__all__ = ["Result", "Run", "Tally", "Verdict"]
