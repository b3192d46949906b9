"""A worker or a client whose storage calls are counted: ``station.py CONFIG worker|client``.

Answers each line on standard input with one line of JSON, and stops at its end. The first line is
written when the process is ready.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs

from plugq import Worker
from plugq.assembly import Assembly
from plugq.worker import loop_factory

VERBS = frozenset(
    {
        *("submit", "restore", "claim", "settle", "renew", "sweep", "get", "find", "stats"),
        *("edit", "watch", "load", "swap", "scan"),
    },
)


class Counted:
    """A storage that counts the calls of its verbs."""

    def __init__(self, storage: Any) -> None:
        self._storage = storage
        self.calls: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._storage, name)
        return self._counted(name, found) if name in VERBS else found

    def _counted(self, name: str, verb: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            return verb(*args, **kwargs)

        return call


def answer(counted: Counted) -> None:
    facts = {
        "calls": dict(counted.calls),
        "processor": time.process_time(),
        "at": time.monotonic(),
    }
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


async def serve(config: str, role: str) -> None:
    plain = Assembly(Path(config))
    counted = Counted(plain.storage())
    assembly = Assembly(Path(config), storage=counted)
    service = Worker(jobs.app, assembly=assembly) if role == "worker" else assembly.client()
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def listen() -> None:
        for _ in sys.stdin:
            answer(counted)
        loop.call_soon_threadsafe(over.set)

    async with service:
        answer(counted)
        threading.Thread(target=listen, daemon=True).start()
        await over.wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(serve(*sys.argv[1:]))
