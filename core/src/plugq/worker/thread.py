"""A thread with an event loop of its own, for one service that handlers must not hold up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Service(Protocol):
    """What the thread runs."""

    async def start(self) -> None:
        """Start; raises when it can not."""
        ...

    async def stop(self) -> None:
        """Stop and wait until it has stopped."""
        ...


class LoopThread:
    """Makes, starts and stops a service in a loop of its own.

    ``make`` is called in the thread, inside the loop. ``ended`` is done when the service has
    stopped, with its error if it failed to.
    """

    def __init__(self, make: Callable[[], Service], *, name: str) -> None:
        self._make = make
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._halt: asyncio.Event | None = None
        self._stop_asked = False
        self._ready: Future[None] = Future()
        self.ended: Future[None] = Future()

    async def start(self) -> None:
        """Return once the service has started; raises what its start raises.

        When the caller is cancelled the service is stopped, and it is waited for.
        """
        # Not joined at exit: a program that never stops its worker must still be able to end.
        threading.Thread(target=self._run, name=self._name, daemon=True).start()
        try:
            await asyncio.shield(asyncio.wrap_future(self._ready))
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await self.stop()
            raise

    def request_stop(self) -> None:
        """Ask the service to stop; may be called from any thread and from a signal handler."""
        # Before the look at the event: the thread makes that first and then looks here.
        self._stop_asked = True
        loop, halt = self._loop, self._halt
        if loop is not None and halt is not None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(halt.set)

    async def stop(self) -> None:
        """Stop the service and wait for it; raises what its stop raises."""
        self.request_stop()
        await asyncio.shield(asyncio.wrap_future(self.ended))

    def call(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the loop of the thread, soon."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(work)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the thread
            if not self._ready.done():
                self._ready.set_exception(error)
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._halt = asyncio.Event()
        if self._stop_asked:
            self._halt.set()
        service = self._make()
        await service.start()
        self._ready.set_result(None)
        try:
            await self._halt.wait()
        finally:
            await service.stop()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory where uvloop is installed, else ``None`` for the standard loop."""
    try:
        import uvloop  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


__all__ = ["LoopThread", "Service", "loop_factory"]
