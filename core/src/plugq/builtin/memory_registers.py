"""The registers of the memory storage: small versioned values with a time to live."""

from __future__ import annotations

from bisect import bisect_left, insort
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from plugq.protocols.storage import Register, Swapped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import RegisterChange


class RegisterFile:
    """Values by key. Versions come from one counter, so none repeats even after a removal."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[Register, float | None]] = {}
        self._keys: list[str] = []
        self._expiry: list[tuple[float, int, str]] = []
        self._version = 0

    def next_version(self) -> int:
        """Return a version that nothing ever had."""
        self._version += 1
        return self._version

    def read(self, key: str, now: float) -> Register | None:
        """Return a register unless its time has passed."""
        held = self._values.get(key)
        if held is None or (held[1] is not None and held[1] <= now):
            return None
        return held[0]

    def swap(self, changes: Sequence[RegisterChange], now: float) -> Swapped:
        """Make all changes or none."""
        present = [self.read(change.key, now) for change in changes]
        done = all(
            change.expect == (register.version if register is not None else 0)
            for change, register in zip(changes, present, strict=True)
        )
        if done:
            for change in changes:
                self._write(change, now)
        registers = tuple(self.read(change.key, now) for change in changes)
        return Swapped(done=done, registers=registers, now=now)

    def scan(self, prefix: str, now: float) -> list[Register]:
        """Return the registers whose key starts with the prefix, by key."""
        found: list[Register] = []
        for index in range(bisect_left(self._keys, prefix), len(self._keys)):
            key = self._keys[index]
            if not key.startswith(prefix):
                break
            register = self.read(key, now)
            if register is not None:
                found.append(register)
        return found

    def expire(self, now: float, limit: int) -> int:
        """Remove up to ``limit`` registers whose time has passed and return how many were."""
        removed = 0
        while removed < limit and (at := self.next_expiry()) is not None and at <= now:
            self._remove(heappop(self._expiry)[2])
            removed += 1
        return removed

    def next_expiry(self) -> float | None:
        """Return when the next register expires."""
        while self._expiry:
            at, version, key = self._expiry[0]
            held = self._values.get(key)
            if held is not None and held[0].version == version:
                return at
            heappop(self._expiry)
        return None

    def _write(self, change: RegisterChange, now: float) -> None:
        if change.value is None:
            self._remove(change.key)
            return
        version = self.next_version()
        until = None if change.ttl is None else now + change.ttl
        if change.key not in self._values:
            insort(self._keys, change.key)
        register = Register(key=change.key, version=version, value=change.value)
        self._values[change.key] = (register, until)
        if until is not None:
            if len(self._expiry) > 2 * len(self._values) + 64:
                self._expiry = sorted(
                    (end, held.version, key)
                    for key, (held, end) in self._values.items()
                    if end is not None
                )
            else:
                heappush(self._expiry, (until, version, change.key))

    def _remove(self, key: str) -> None:
        if self._values.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]


__all__ = ["RegisterFile"]
