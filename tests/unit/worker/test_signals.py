"""Signals reach a worker whenever they come."""

from __future__ import annotations

import asyncio
import signal
import threading

import plugq


async def test_a_signal_that_interrupts_nothing_stops_the_worker_all_the_same() -> None:
    """One that comes between the loop's last look and its wait is like one in another thread."""
    before = signal.getsignal(signal.SIGTERM)
    worker = plugq.Worker(plugq.App(), {})
    running = asyncio.create_task(worker.run())
    await worker.start()
    # By now the handlers are in place, and this loop has nothing to wake up for.
    for _ in range(3):
        await asyncio.sleep(0)
    # Late enough for the loop to wait by then; if it does not yet, nothing is shown.
    timer = threading.Timer(0.5, signal.raise_signal, (signal.SIGTERM,))
    timer.start()
    async with asyncio.timeout(20):
        await running
    timer.join()
    assert signal.getsignal(signal.SIGTERM) is before
    fd = signal.set_wakeup_fd(-1)
    assert fd == -1
