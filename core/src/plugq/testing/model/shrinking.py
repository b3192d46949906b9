"""Shortens a history that fails, within a time: steps, jobs and options are left out.

What is kept goes on failing in the same promise. Hypothesis would shrink further, but it takes
minutes where a storage writes to a disk.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from plugq.testing.model.player import Player

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plugq.testing.contract.scene import Contract
    from plugq.testing.model.steps import Step


def shortened(contract: Contract, steps: list[Step], seconds: float) -> Exception | None:
    """Return what the shortest history that was found fails with; ``None`` if it does not fail."""
    error = failure(contract, steps)
    if error is None:
        return None
    search = _Search(contract, steps, error, time.monotonic() + seconds)
    search.leave_out_steps()
    search.leave_out_arguments()
    return search.error


def failure(contract: Contract, steps: list[Step]) -> Exception | None:
    """Play a history from the beginning and return what it fails with."""

    async def play() -> None:
        async with Player(contract) as player:
            for step in steps:
                await player.play(step)
            await player.end()

    try:
        with asyncio.Runner(debug=False) as runner:
            runner.run(play())
    except Exception as error:  # noqa: BLE001 - a storage may fail in any way
        return error
    return None


class _Search:
    """The shortest history so far and what it fails with."""

    def __init__(
        self, contract: Contract, steps: list[Step], error: Exception, until: float
    ) -> None:
        self.steps: list[Step] = steps
        self.error: Exception = error
        self._contract = contract
        self._until = until

    def leave_out_steps(self) -> None:
        """Leave out halves of the history, then smaller parts, then single steps."""
        size = max(1, len(self.steps) // 2)
        while True:
            start = 0
            while start < len(self.steps) and self._in_time():
                if not self._tried(self.steps[:start] + self.steps[start + size :]):
                    start += size
            if size == 1:
                return
            size = max(1, size // 2)

    def leave_out_arguments(self) -> None:
        """Leave out jobs, settlements and options, one at a time."""
        place = 0
        while place < len(self.steps):
            verb, arguments = self.steps[place]
            for fewer in _simpler(arguments):
                if not self._in_time():
                    return
                step = (verb, fewer)
                if self._tried([*self.steps[:place], step, *self.steps[place + 1 :]]):
                    break
            else:
                place += 1

    def _in_time(self) -> bool:
        return time.monotonic() < self._until

    def _tried(self, steps: list[Step]) -> bool:
        """Take a history in place of the former one if it fails alike."""
        error = failure(self._contract, steps)
        # Another defect may show up on the way; the one that was found is to be told.
        if error is None or _kind(error) != _kind(self.error):
            return False
        self.steps, self.error = steps, error
        return True


def _simpler(value: Any) -> Iterator[Any]:
    """Iterate over a value of JSON with one part of it left out."""
    if isinstance(value, dict):
        for key in value:
            yield {name: part for name, part in value.items() if name != key}
        for key, part in value.items():
            for fewer in _simpler(part):
                yield {**value, key: fewer}
    elif isinstance(value, list):
        for place in range(len(value)):
            yield [*value[:place], *value[place + 1 :]]
        for place, part in enumerate(value):
            for fewer in _simpler(part):
                yield [*value[:place], fewer, *value[place + 1 :]]


def _kind(error: Exception) -> tuple[type[Exception], str]:
    return type(error), getattr(error, "promise", "")


__all__ = ["failure", "shortened"]
