"""Signals that end a process, caught so that a loop misses none, be it blocked or waiting."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType


def catch_signals(caught: Callable[[int, FrameType | None], None]) -> Callable[[], None]:
    """Call ``caught`` for SIGTERM and SIGINT, and return what puts the former handlers back.

    A handler of the loop would wait for a coroutine that blocks it; this one is called as soon as
    the main thread runs Python code, and wakes the running loop for that. Only the main thread
    may catch signals; elsewhere nothing happens, and whoever owns the process has to stop it.
    """
    loop = asyncio.get_running_loop()
    former: dict[int, Any] = {}
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        with contextlib.suppress(ValueError):
            # For its wake-up alone: a signal that comes just before the loop begins to wait, or in
            # another thread, would else lie there until something else happens.
            with contextlib.suppress(NotImplementedError, RuntimeError):
                loop.add_signal_handler(number, _wake_up)
            signal.signal(number, caught)
            former[int(number)] = before

    def restore() -> None:
        for number, handler in former.items():
            with contextlib.suppress(NotImplementedError, RuntimeError):
                loop.remove_signal_handler(number)
            signal.signal(number, handler)

    return restore


def _wake_up() -> None:
    """Do nothing: the handler of the process has run by now."""


__all__ = ["catch_signals"]
