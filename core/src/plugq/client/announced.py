"""What is announced of tasks whose code the client does not have, remembered for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.announcement import decode, key_of
from plugq.errors import OutcomeUnknown, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from plugq.announcement import Announced
    from plugq.clock import Clock
    from plugq.protocols.storage import Loaded

#: Seconds for which an announcement, or that there is none, is taken as known.
FRESH = 10.0
#: Names of which something is remembered, and registers that are read in one call.
MOST, CHUNK = 10_000, 500


class Announcements:
    """Looks announcements up by the names of tasks; ``load`` reads registers until a deadline."""

    def __init__(self, load: Callable[[Sequence[str]], Awaitable[Loaded]], clock: Clock) -> None:
        self._load = load
        self._clock = clock
        self._known: dict[str, tuple[float, Announced | None]] = {}

    async def of(self, tasks: Iterable[str]) -> Mapping[str, Announced | None]:
        """Return what is announced of tasks, at most ten seconds old; ``None``: nothing.

        Raises:
            Unavailable: the storage could not be reached in time.
        """
        now = self._clock.monotonic()
        found: dict[str, Announced | None] = {}
        missing: dict[str, None] = {}
        for task in tasks:
            known = self._known.get(task)
            if known is None or now - known[0] >= FRESH:
                missing[task] = None
            else:
                found[task] = known[1]
        names = list(missing)
        for start in range(0, len(names), CHUNK):
            found |= await self._look(names[start : start + CHUNK])
        return found

    async def _look(self, names: Sequence[str]) -> dict[str, Announced | None]:
        try:
            loaded = await self._load([key_of(name) for name in names])
        except OutcomeUnknown as error:
            # Reading changes nothing, and nothing was submitted yet.
            raise Unavailable(str(error)) from error
        now = self._clock.monotonic()
        if len(self._known) + len(names) > MOST:
            self._known.clear()
        found: dict[str, Announced | None] = {}
        for name, register in zip(names, loaded.registers, strict=True):
            announced = None if register is None else decode(register)
            before = self._known.get(name)
            if before is not None and before[1] == announced:
                # The same object again: what was resolved with it holds on.
                announced = before[1]
            self._known[name] = (now, announced)
            found[name] = announced
        return found


__all__ = ["Announcements"]
