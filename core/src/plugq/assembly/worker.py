"""The worker as users hold it: an engine on a thread of its own, and handlers on their loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plugq.assembly.deployment import Assembly, assembly_of
from plugq.assembly.imports import import_module
from plugq.assembly.schedules import definitions_of
from plugq.events import EventKind, JobEvent
from plugq.submission import queues_of
from plugq.worker import Engine, EngineSettings, LoopThread, Runner, catch_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType
    from typing import Self

    from plugq.client import Client
    from plugq.clock import Clock
    from plugq.config import ConfigLike
    from plugq.task import Tasks

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds that the loop of the handlers gets to return after the engine has stopped.
LAST_MOMENT = 2.0


@dataclass(frozen=True)
class _Handler:
    name: str
    is_async: bool
    bind: Callable[[Any], tuple[Sequence[Any], Mapping[str, Any]]]
    call: Callable[..., Any] = field(repr=False)


class Worker:
    """Runs the jobs of an application.

    ``client`` joins the deployment of that client in place of the one that ``config`` describes.
    Coroutine tasks run on the loop that starts the worker, plain functions in threads; claims,
    renewals and settlements on a thread of their own, which no handler can block.

    Raises:
        ConfigError: the configuration can not be used.
        PluginError: a plugin that it names can not be used.
    """

    def __init__(
        self,
        app: Tasks,
        config: ConfigLike = None,
        *,
        client: Client | None = None,
        assembly: Assembly | None = None,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        if client is not None:
            assembly = assembly_of(client)
        self._assembly = assembly or Assembly(config, clock=clock)
        config = self._assembly.config
        settings = config.worker
        for module in app.include:
            import_module(module, config)
        hooks = self._assembly.hooks
        self._tasks = dict(app.tasks)
        self._handlers = {
            name: _Handler(name, task.is_async, task.bind, hooks.wrap_handler(name, task.call))
            for name, task in app.tasks.items()
        }
        self._schedules = definitions_of(self._assembly, app)
        if queues is None:
            known = queues_of(app.tasks, self._assembly.tables)
            queues = known if settings.queues is None else tuple(settings.queues)
        self._settings = EngineSettings(
            worker=settings.id or f"{socket.gethostname()}-{os.getpid()}",
            queues=tuple(queues),
            concurrency=settings.concurrency if concurrency is None else concurrency,
            prefetch=settings.prefetch,
            lease=config.broker.lease,
            renewal=config.broker.renewal,
            grace=settings.grace,
            abandon_after=settings.abandon_after,
            unknown_ttl=config.broker.unknown_ttl,
        )
        self._runner = Runner(
            self._assembly.serdes(),
            self._assembly.clock,
            threads=settings.threads,
            result_limit=config.broker.max_result,
            finished=self._finished,
        )
        self._thread: LoopThread | None = None
        self._engine: Engine | None = None
        self._signals = 0

    @property
    def id(self) -> str:
        """The name of this worker; each start adds what makes it unique among lease holders."""
        return self._settings.worker

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that it serves, in this order."""
        return self._settings.queues

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def start(self) -> None:
        """Start to work; a second call does nothing. Raises what opening the storage raises."""
        if self._thread is not None:
            return
        self._runner.start()
        self._thread = LoopThread(self._make_engine, name="plugq-engine")
        try:
            await self._thread.start()
        except BaseException:
            self._thread = None
            raise
        self._report(EventKind.WORKER_STARTED)

    async def stop(self) -> None:
        """Claim no more, let running handlers finish within the grace, then cancel and release.

        A second call does nothing.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            try:
                await thread.stop()
            finally:
                self._runner.stop()
            self._report(EventKind.WORKER_STOPPED)

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT, then stop; a second signal ends the process at once."""
        returned = threading.Event()
        # Before the start: it may take a while, and jobs are claimed before it returns.
        restore = self._catch_signals()
        try:
            await self.start()
            if (thread := self._thread) is not None:
                thread.ended.add_done_callback(lambda _: _exit_if_stuck(returned))
                if self._signals:
                    thread.request_stop()
                # Not cancelled with the caller: the stop below waits for it.
                await asyncio.shield(asyncio.wrap_future(thread.ended))
        finally:
            try:
                await self.stop()
            finally:
                returned.set()
                restore()

    def scale(self, concurrency: int) -> None:
        """Change how many handlers may run at once; those that run are left alone."""
        thread, engine = self._thread, self._engine
        if thread is not None and engine is not None:
            thread.call(lambda: engine.scale(concurrency))

    def state(self) -> dict[str, Any]:
        """Return what runs, what failed and what waits in this worker, without I/O."""
        engine = self._engine
        return {"worker": self.id} if engine is None else engine.state()

    def _report(self, kind: EventKind) -> None:
        hooks = self._assembly.hooks
        if hooks.listens(kind):
            at = self._assembly.clock.time()
            # As in the events of its jobs.
            worker = self.id if self._engine is None else self._engine.worker
            hooks.emit(kind, [JobEvent(kind=kind, at=at, worker=worker)])

    def _make_engine(self) -> Engine:
        self._engine = Engine(
            self._assembly.broker(maintain=True, schedules=self._schedules, listed=False),
            self._runner,
            self._handlers,
            self._settings,
            self._assembly.clock,
            tasks=self._tasks,
        )
        return self._engine

    def _finished(self, attempt: Any, settlement: Any) -> None:
        if self._engine is not None:
            self._engine.finished(attempt, settlement)

    def _catch_signals(self) -> Callable[[], None]:
        def caught(number: int, _: FrameType | None) -> None:
            self._signals += 1
            if self._signals > 1:
                os._exit(128 + number)
            logger.info("stopping; a second signal ends the process at once")
            if (thread := self._thread) is not None:
                thread.request_stop()

        self._signals = 0
        return catch_signals(caught)


def _exit_if_stuck(returned: threading.Event) -> None:
    """End the process when a handler blocks the loop although everything else has stopped."""

    def wait() -> None:
        if not returned.wait(LAST_MOMENT):
            logger.error("a handler blocks its loop and is left behind; its lease was given back")
            os._exit(1)

    threading.Thread(target=wait, name="plugq-exit", daemon=True).start()


__all__ = ["Worker"]
