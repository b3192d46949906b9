"""Shortens a history that fails, within a time: whole steps are left out while it goes on failing.

Hypothesis shrinks further, but takes minutes where a storage writes to a disk.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from plugq.testing.model.player import Player

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Contract
    from plugq.testing.model.steps import Step


def shortened(contract: Contract, steps: list[Step], seconds: float) -> Exception | None:
    """Return what the shortest history that was found fails with; ``None`` if it does not fail."""
    until = time.monotonic() + seconds
    error = failure(contract, steps)
    if error is None:
        return None
    size = max(1, len(steps) // 2)
    while True:
        start = 0
        while start < len(steps):
            if time.monotonic() > until:
                return error
            fewer = steps[:start] + steps[start + size :]
            found = failure(contract, fewer)
            # Another defect may show up on the way; the one that was found is to be told.
            if found is not None and _kind(found) == _kind(error):
                steps, error = fewer, found
            else:
                start += size
        if size == 1:
            return error
        size = max(1, size // 2)


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


def _kind(error: Exception) -> tuple[type[Exception], str]:
    return type(error), getattr(error, "promise", "")


__all__ = ["failure", "shortened"]
