"""The limiter contract: how many jobs may start by when."""

from __future__ import annotations

from typing import ClassVar, Protocol

import msgspec

#: No state of a limiter is longer, in bytes, whatever its limit is and however long it has run.
MAX_STATE = 2048


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of a limiter: how many of those wanted may start, and the state after that.

    ``at`` is the moment as of which they are counted: the ``now`` of the step, or that of the
    latest grant before it should that be later.
    ``retry_at`` is ``None`` where everything wanted was granted, and otherwise the moment at
    which at least one more will be: not before it, and surely at it if nothing else is granted
    until then.
    """

    state: bytes | None
    granted: int
    at: float
    retry_at: float | None = None


class Limiter(Protocol):
    """Bounds how many jobs start in every window of time.

    A limiter is pure: what it answers depends on its options and its arguments alone. It keeps
    nothing, reads no clock, does no I/O and may be called from any thread. Its state is a small
    value, at most ``MAX_STATE`` bytes, which the storage keeps with a version and writes in the
    same step as the starts that it stands for, so that one bound holds for all processes of the
    storage. A step whose starts do not happen is not written: there is nothing to give back.

    What holds for every limiter:

    * **Bound.** The grants keep the bound in every window, wherever it
      begins, with any number of callers that take turns on one state.
    * **As much as there is.** A step for fewer grants is granted all of them or as many as one
      for more would be, and the more time has passed, the more is granted. What is refused takes
      nothing.
    * **Time.** ``now`` is in seconds and by the storage's clock. One before the latest grant
      counts as the moment of that grant: a clock that was set back gains nothing.
    * **No news, no write.** A step that grants nothing returns the state that it was given.
    * **Any state.** ``None`` is the state before the first grant. Bytes that the limiter can not
      read, of another limiter for one, count as ``None``; it never raises.

    The class also has ``Options`` and ``capabilities`` and is made as
    ``Class(options, context)``.
    """

    api_version: ClassVar[int]

    @property
    def window(self) -> float:
        """Seconds without a grant after which every state is worth no less than ``None``.

        A state may be thrown away that long after it was written.
        """
        ...

    def step(self, state: bytes | None, want: int, now: float) -> Step:
        """Grant up to ``want`` starts as of ``now``; below 1 nothing is wanted."""
        ...

    def widened(self, seconds: float) -> Limiter:
        """Return a limiter with this bound for starts up to ``seconds`` later than their grants.

        Starts that come late crowd together, so it grants less: by as much as it takes for the
        bound to hold in the windows of the starts. It can read the states of this one.
        """
        ...


__all__ = ["MAX_STATE", "Limiter", "Step"]
