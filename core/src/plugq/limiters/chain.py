"""Several limiters that must all agree."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, ClassVar

from plugq.limiters.moments import BEYOND
from plugq.protocols.limiter import Step
from plugq.protocols.plugin import API_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.limiter import Limiter

_TAG = b"C"
_HEAD = struct.Struct("<cd")
_LENGTH = struct.Struct("<I")
#: Stands for the length of a state that there is none of.
_NONE = 0xFFFFFFFF


class Chain:
    """Grants what every one of its limiters grants; their bounds hold at once.

    Each is asked for what those before it have granted. Where one grants less, the steps of the
    others are made again for that much from the states before, so that a refusal takes nothing
    from anybody. Its state holds theirs and thus is as long as they are together.
    """

    api_version: ClassVar[int] = API_VERSION

    def __init__(self, limiters: Sequence[Limiter]) -> None:
        self.limiters: tuple[Limiter, ...] = tuple(limiters)

    @property
    def window(self) -> float:
        """The longest window of them."""
        return max((limiter.window for limiter in self.limiters), default=0.0)

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        """Grant what all of them have; ``retry_at`` is the latest of those who held it back."""
        latest, states = self._read(state)
        # One moment for all of them.
        at = max(now, latest)
        granted, steps = self._agree(states, want, at)
        states = [step.state for step in steps]
        if granted:
            state = self._write(at, states)
        retry_at = None if granted >= want else self._frees(states, at)
        return Step(state=state, granted=granted, at=at, retry_at=retry_at)

    def widened(self, seconds: float) -> Chain:
        """Widen all of them."""
        return Chain([limiter.widened(seconds) for limiter in self.limiters])

    def _agree(
        self, states: Sequence[bytes | None], want: int, at: float
    ) -> tuple[int, list[Step]]:
        """Return the most that all of them grant, and the steps by which they do."""
        agreed = max(0, want)
        while True:
            asked, steps = agreed, list[Step]()
            for limiter, state in zip(self.limiters, states, strict=True):
                steps.append(limiter.step(state, agreed, at))
                agreed = min(agreed, steps[-1].granted)
            if agreed == asked:
                return agreed, steps

    def _frees(self, states: Sequence[bytes | None], at: float) -> float:
        """Return when the last of those that have nothing left has something again."""
        probes = [
            limiter.step(state, 1, at) for limiter, state in zip(self.limiters, states, strict=True)
        ]
        return max([at, *(probe.retry_at for probe in probes if probe.retry_at is not None)])

    def _read(self, state: bytes | None) -> tuple[float, list[bytes | None]]:
        """Return the moment of the latest grant and the state of each limiter."""
        fresh: tuple[float, list[bytes | None]] = (-math.inf, [None] * len(self.limiters))
        if not state or not state.startswith(_TAG) or len(state) < _HEAD.size:
            return fresh
        latest = _HEAD.unpack_from(state)[1]
        states: list[bytes | None] = []
        place = _HEAD.size
        while place + _LENGTH.size <= len(state):
            (length,) = _LENGTH.unpack_from(state, place)
            place += _LENGTH.size
            states.append(None if length == _NONE else state[place : place + length])
            place += 0 if length == _NONE else length
        whole = place == len(state) and len(states) == len(self.limiters)
        return (latest, states) if whole and abs(latest) < BEYOND else fresh

    def _write(self, latest: float, states: Sequence[bytes | None]) -> bytes:
        parts = [_HEAD.pack(_TAG, latest)]
        for state in states:
            parts += [_LENGTH.pack(_NONE if state is None else len(state)), state or b""]
        return b"".join(parts)


__all__ = ["Chain"]
