"""Places at which a process can be made to die, for those who test that nothing is lost by it.

Nothing happens unless the environment arms a place: ``PLUGQ_FAILPOINTS=broker.claim.after@3``
kills the process, with no chance to tidy up, when it passes there the third time. Without a number
it is the first, and several are separated by commas. The process writes ``failpoint NAME`` to its
standard error before it dies.

A place costs the look at :data:`ARMED`, and stands where a batch passes and not a job wherever that
is possible::

    if failpoints.ARMED:
        failpoints.hit("storage.commit.before")

A plugin may place those whose names begin with ``storage``; none has to.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

from plugq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The variable of the environment that arms places.
VARIABLE = "PLUGQ_FAILPOINTS"

#: Every place, and what has and what has not happened there.
PLACES: Mapping[str, str] = {
    "client.submit.before": "The jobs are made; nobody was asked to store them.",
    "client.submit.after": "The jobs are stored and the client knows; its caller does not.",
    "broker.submit.before": "The jobs have reached the broker, not the storage.",
    "broker.submit.after": "The storage has answered; the client has no reply.",
    "broker.claim.before": "A worker has asked for jobs; the storage was not asked.",
    "broker.claim.after": "Leases are granted; the worker does not know them.",
    "worker.granted": "The worker knows its leases; no handler was given one.",
    "worker.delivered": "Attempts have reached the loop of the handlers; none has begun.",
    "worker.started": "An attempt has its slot; its handler was not called.",
    "worker.finished": "A handler has returned, its effect is done; nothing is about to say so.",
    "worker.settle.before": "Outcomes are known to the worker, not to the broker.",
    "broker.settle.before": "Outcomes have reached the broker, not the storage.",
    "broker.settle.after": "Outcomes are stored; the worker has no reply.",
    "broker.renew.before": "Leases are about to be renewed; the storage was not asked.",
    "broker.renew.after": "Leases are renewed; the worker does not know.",
    "broker.edit.before": "An operator's change has reached the broker, not the storage.",
    "broker.edit.after": "An operator's change is stored; the client has no reply.",
    "sweeper.sweep.before": "The elected sweeper is about to sweep.",
    "sweeper.sweep.after": "A sweep is stored; nobody was told what it changed.",
    "scheduler.noted": "A tick is noted in its register; its job was not submitted.",
    "scheduler.submitted": "The job of a tick is stored; its register was not advanced.",
    "storage.commit.before": "Calls are written, and not durable.",
    "storage.commit.after": "Calls are durable; none of them was answered.",
}


class Armed:
    """Counts passes and knows at which one to die; may be asked from any thread."""

    def __init__(self, text: str) -> None:
        """Read ``name@pass,…``. Raises ``ConfigError`` for what is not that."""
        self._left = dict(_read(part) for part in text.split(",") if part.strip())
        self._lock = threading.Lock()

    def __bool__(self) -> bool:
        """Whether there is anything to die at."""
        return bool(self._left)

    def passes(self, name: str) -> bool:
        """Count one pass; true when it is the fatal one."""
        with self._lock:
            left = self._left.get(name, 0)
            if left:
                self._left[name] = left - 1
            return left == 1


def _read(part: str) -> tuple[str, int]:
    name, _, number = part.strip().partition("@")
    if name not in PLACES:
        message = f"{VARIABLE}: no failpoint {name!r}; there are {', '.join(PLACES)}"
        raise ConfigError(message)
    if not number:
        return name, 1
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        message = f"{VARIABLE}: {part.strip()!r} has to end with the number of a pass, from 1"
        raise ConfigError(message)
    return name, int(number)


def _of_environment() -> Armed:
    try:
        return Armed(os.environ.get(VARIABLE, ""))
    except ConfigError as error:
        # While plugq is being imported nobody is there yet to catch anything else.
        raise SystemExit(f"plugq: {error}") from None


_armed = _of_environment()
#: Whether any place is armed in this process.
ARMED: bool = bool(_armed)


def hit(name: str) -> None:
    """Pass a place, and die there if it is armed and this is the pass."""
    if _armed.passes(name):
        os.write(2, f"failpoint {name}\n".encode())
        # Where there is no SIGKILL, this ends a process just as abruptly.
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        threading.Event().wait()


__all__ = ["ARMED", "PLACES", "VARIABLE", "Armed", "hit"]
