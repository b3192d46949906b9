"""When what is next, for many names: no step costs more than the logarithm of their number."""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class Agenda:
    """At most one moment for each name; a later :meth:`set` takes the place of the one before."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, name: str, at: float | None) -> None:
        """Have a name fall due then; ``None``: never."""
        if at is None:
            self._at.pop(name, None)
        elif self._at.get(name) != at:
            self._at[name] = at
            heappush(self._heap, (at, name))
            if len(self._heap) > 2 * len(self._at) + 64:
                self._heap = [(at, name) for name, at in self._at.items()]
                heapify(self._heap)

    def first(self) -> float | None:
        """Return the moment at which the first name falls due."""
        while self._heap:
            at, name = self._heap[0]
            if self._at.get(name) == at:
                return at
            heappop(self._heap)
        return None

    def due(self, now: float) -> list[str]:
        """Return the names that are due, soonest first; they stay due until they are set anew."""
        found: dict[str, float] = {}
        while (at := self.first()) is not None and at <= now:
            found[heappop(self._heap)[1]] = at
        for name, at in found.items():
            heappush(self._heap, (at, name))
        return list(found)

    def items(self) -> dict[str, float]:
        """Return the moments by name."""
        return dict(self._at)


__all__ = ["Agenda"]
