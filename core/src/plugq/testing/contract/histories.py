"""Histories: what the storage does in any order of calls is what the reference model does."""

from __future__ import annotations

import os
import random
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from plugq.testing.contract.scene import Contract
from plugq.testing.model.kept import kept
from plugq.testing.model.player import Player

if TYPE_CHECKING:
    from types import ModuleType

#: Environment variables: how many steps to take, and the first seed to take them with.
STEPS, SEED = "PLUGQ_MODEL_STEPS", "PLUGQ_MODEL_SEED"
_BATCH = 2_000


def _machine() -> ModuleType:
    try:
        return import_module("plugq.testing.model.machine")
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        message = "the model test needs Hypothesis: pip install 'plugq[testing]'"
        raise AssertionError(message) from None


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        message = f"{name} is {text!r}; give a whole number"
        raise AssertionError(message)
    return int(text)


def _anywhere() -> int:
    return random.SystemRandom().randrange(1 << 32)


class Histories(Contract):
    """Random and remembered histories, compared with the model after every step."""

    #: How many steps the short form takes, in histories of about fifty.
    model_steps: ClassVar[int] = 1_000
    #: Where it begins, so that a failure belongs to the change under test; ``None``: anywhere.
    model_seed: ClassVar[int | None] = 1

    def test_every_history_agrees_with_the_model(self) -> None:
        """I1 to I10 and I13 after every step; several workers, openings and a clock that jumps.

        ``PLUGQ_MODEL_STEPS`` makes it a long run from random seeds, which are printed, and
        ``PLUGQ_MODEL_SEED`` repeats the batch of that seed. See ``plugq.testing.model``.
        """
        machine: Any = _machine()
        steps = _number(STEPS)
        first = _number(SEED)
        if steps is None:
            seed = self.model_seed if first is None else first
            self._batch(machine, self.model_steps, _anywhere() if seed is None else seed)
            return
        done = 0
        while done < steps:
            seed = _anywhere() if first is None else first
            first = None if first is None else first + 1
            began = time.perf_counter()
            batch = self._batch(machine, min(_BATCH, steps - done), seed)
            done += batch
            took = time.perf_counter() - began
            print(f"seed {seed}: {batch} steps in {took:.1f} s, {done} of {steps}")  # noqa: T201

    def _batch(self, machine: Any, steps: int, seed: int) -> int:
        try:
            return int(machine.run(self, steps, number=seed))
        except Exception as error:
            error.add_note(f"{SEED}={seed} repeats it")
            raise

    async def test_histories_that_once_went_wrong_agree_with_the_model(self) -> None:
        """Those that the kit keeps in ``plugq/testing/histories``."""
        for name, steps in kept():
            try:
                async with Player(self) as player:
                    for step in steps:
                        await player.play(step)
                    await player.end()
            except Exception as error:
                error.add_note(f"this is the history {name!r}")
                raise


__all__ = ["Histories"]
