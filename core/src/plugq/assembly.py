"""The composition root: configuration, registry, hooks and services become a running deployment."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plugq.broker import LocalBroker
from plugq.client import Client, ClientSettings, Deployment
from plugq.clock import Clock, SystemClock
from plugq.config import Config, ConfigLike, load_config
from plugq.errors import ConfigError
from plugq.hooks import Hooks
from plugq.protocols.plugin import Capability, PluginContext
from plugq.registry import Registry
from plugq.submission import OptionTables, SizeLimits, Submitter, queues_of
from plugq.task import Tasks
from plugq.worker import Engine, EngineSettings, LoopThread, Runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence
    from types import FrameType, ModuleType
    from typing import Self

    from plugq.protocols.serde import Serde
    from plugq.protocols.storage import Storage
    from plugq.task import Task

logger = logging.getLogger(__name__)

#: Seconds that the loop of the handlers gets to return after the engine has stopped.
LAST_MOMENT = 2.0


class Assembly:
    """The parts of one deployment, made from its configuration on demand and without I/O.

    Raises:
        ConfigError: the configuration can not be used.
        PluginError: a plugin that it names can not.
    """

    def __init__(
        self,
        config: ConfigLike = None,
        *,
        storage: Storage | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = load_config(config)
        self.config.refuse_unsupported()
        self.clock: Clock = clock or SystemClock()
        self._manual = clock
        plugins = self.config.plugins
        self.registry = Registry(disabled=plugins.disabled, allow=plugins.allow)
        self.hooks = Hooks(self.registry, disabled=plugins.disabled, allow=plugins.allow)
        self._storage = storage
        self._serde: Serde = self._build("serde")
        self._check_required()

    @property
    def private(self) -> bool:
        """Whether nobody outside this process can see the storage."""
        shared = {Capability.SHARED_PROCESSES, Capability.SHARED_HOSTS}
        return not shared & self._capabilities()

    def storage(self) -> Storage:
        """Return a storage for one event loop; the same for all where it lives in this process."""
        if self._storage is not None:
            return self._storage
        storage: Storage = self._build("storage")
        if self.private:
            self._storage = storage
        return storage

    def broker(self, *, maintain: bool) -> LocalBroker:
        """Return a broker for one event loop, on a storage of its own."""
        config = self.config
        return LocalBroker(
            self.storage(),
            self.clock,
            maintain=maintain,
            max_crashes=config.broker.max_crashes,
            patience=config.broker.renewal + config.client.reconnect.max,
            deadline_grace=config.broker.lease,
            settings=[queue.settings(name) for name, queue in config.queues.items()]
            if maintain
            else (),
            observer=self.hooks,
        )

    def client(self, tasks: Mapping[str, Task[Any, Any]] | None = None) -> Client:
        """Return an unstarted client."""
        config = self.config
        limits = SizeLimits(payload=config.broker.max_payload, headers=config.broker.max_headers)
        return Client(
            self.broker(maintain=False),
            Deployment(
                submitter=Submitter(self.tables, self._serde, limits),
                serdes=self.serdes(),
                tasks=tasks or {},
            ),
            self.clock,
            settings=ClientSettings(
                deadline=config.client.deadline,
                fallback_poll=config.client.fallback_poll,
                reconnect=(config.client.reconnect.first, config.client.reconnect.max),
            ),
        )

    @property
    def tables(self) -> OptionTables:
        """The layers of options that the configuration adds."""
        return OptionTables(
            tasks=dict(self.config.tasks),
            queues=dict(self.config.queues),
            defaults=self.config.defaults,
        )

    def serdes(self) -> dict[str, Serde]:
        """Return the serdes that can decode here, by content type: the configured one and JSON."""
        json: Serde = self.registry.build("serde", "json", {}, self._context())
        return {json.content_type: json, self._serde.content_type: self._serde}

    def app(self) -> App:
        """Import the application that the configuration names.

        Raises:
            ConfigError: none is named, it can not be imported, or the module has no single App.
        """
        if self.config.app is None:
            where = self.config.path or "the configuration"
            message = (
                f'{where}: no application is named; add app = "jobs" for jobs.py, or pass --app'
            )
            raise ConfigError(message)
        return load_app(self.config.app, self.config)

    def _context(self) -> PluginContext:
        return PluginContext(
            namespace=self.config.namespace,
            clock=self._manual,
            base_dir=self.config.base_dir,
        )

    def _build(self, kind: str) -> Any:
        choice = getattr(self.config, kind)
        return self.registry.build(kind, choice.use, choice.options, self._context())

    def _capabilities(self) -> frozenset[Capability]:
        if self._storage is not None:
            return self._storage.capabilities
        storage = self.registry.load("storage", self.config.storage.use)
        capabilities: frozenset[Capability] = storage.capabilities
        return capabilities

    def _check_required(self) -> None:
        missing = sorted(self.config.required - self._capabilities())
        if missing:
            message = (
                f"require.{missing[0]}: storage {self.config.storage.use!r} does not offer it; "
                "choose another storage or take the requirement out"
            )
            raise ConfigError(message)


class App(Tasks):
    """The tasks of an application.

    ``include`` names modules that register more of them, imported by workers and by
    ``plugq check``.
    """

    @asynccontextmanager
    async def running(
        self,
        config: ConfigLike = None,
        *,
        concurrency: int | None = None,
        clock: Clock | None = None,
    ) -> AsyncIterator[Client]:
        """Run a worker and give a client, both in this process: for scripts, notebooks and tests.

        ``{}`` as configuration keeps the jobs in memory. Coroutine tasks run on the loop of the
        caller. Leaving the block stops the worker as a signal would.
        """
        assembly = Assembly(config, clock=clock)
        worker = Worker(self, assembly=assembly, concurrency=concurrency)
        async with assembly.client(self.tasks) as client, worker:
            yield client


def connect(
    config: ConfigLike = None,
    *,
    storage: Storage | None = None,
    clock: Clock | None = None,
) -> Client:
    """Return an unstarted client of the deployment that a configuration describes.

    ``config`` is a path, a mapping or a ``Config``; without one ``PLUGQ_CONFIG`` counts, else
    ``plugq.toml`` here or in a folder above. ``storage`` takes a ready instance in place of
    ``[storage]``.

    Raises:
        ConfigError: the configuration can not be used, or nobody else could see the jobs.
        PluginError: a plugin that it names can not be used.
    """
    assembly = Assembly(config, storage=storage, clock=clock)
    if storage is None and assembly.private:
        raise ConfigError(PRIVATE.format(storage=assembly.config.storage.use))
    return assembly.client()


PRIVATE = (
    "storage {storage!r} lives inside one process, so nobody else would see these jobs: use "
    '`async with app.running({{}}) as client` or set [storage] use = "sqlite"'
)


@dataclass(frozen=True)
class _Handler:
    name: str
    is_async: bool
    bind: Callable[[Any], tuple[Sequence[Any], Mapping[str, Any]]]
    call: Callable[..., Any] = field(repr=False)


class Worker:
    """Runs the jobs of an application.

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
        assembly: Assembly | None = None,
        queues: Sequence[str] | None = None,
        concurrency: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._assembly = assembly or Assembly(config, clock=clock)
        config = self._assembly.config
        settings = config.worker
        for module in app.include:
            import_module(module, config)
        hooks = self._assembly.hooks
        self._handlers = {
            name: _Handler(name, task.is_async, task.bind, hooks.wrap_handler(name, task.call))
            for name, task in app.tasks.items()
        }
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
            threads=min(settings.threads, self._settings.concurrency),
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

    async def stop(self) -> None:
        """Claim no more, let running handlers finish within the grace, then cancel and release.

        A second call does nothing.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.stop()
            self._runner.stop()

    async def run(self) -> None:
        """Work until SIGTERM or SIGINT, then stop; a second signal ends the process at once."""
        await self.start()
        thread = self._thread
        if thread is None:
            return
        previous = self._catch_signals(thread)
        returned = threading.Event()
        thread.ended.add_done_callback(lambda _: _exit_if_stuck(returned))
        try:
            await asyncio.wrap_future(thread.ended)
        finally:
            await self.stop()
            returned.set()
            for number, handler in previous.items():
                signal.signal(number, handler)

    def scale(self, concurrency: int) -> None:
        """Change how many handlers may run at once; those that run are left alone."""
        thread, engine = self._thread, self._engine
        if thread is not None and engine is not None:
            thread.call(lambda: engine.scale(concurrency))

    def state(self) -> dict[str, Any]:
        """Return what runs, what failed and what waits in this worker, without I/O."""
        engine = self._engine
        return {"worker": self.id} if engine is None else engine.state()

    def _make_engine(self) -> Engine:
        self._engine = Engine(
            self._assembly.broker(maintain=True),
            self._runner,
            self._handlers,
            self._settings,
            self._assembly.clock,
        )
        return self._engine

    def _finished(self, attempt: Any, settlement: Any) -> None:
        if self._engine is not None:
            self._engine.finished(attempt, settlement)

    def _catch_signals(self, thread: LoopThread) -> dict[int, Any]:
        # A handler of the loop would wait for a coroutine that blocks it; this one does not.
        def caught(number: int, _: FrameType | None) -> None:
            self._signals += 1
            if self._signals > 1:
                os._exit(128 + number)
            logger.info("stopping; a second signal ends the process at once")
            thread.request_stop()

        self._signals = 0
        previous = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            # Only the main thread may; elsewhere whoever owns the process stops the worker.
            with contextlib.suppress(ValueError):
                previous[int(number)] = signal.signal(number, caught)
        return previous


def load_app(name: str, config: Config) -> App:
    """Import ``module`` or ``module:attribute`` and return its App.

    Raises:
        ConfigError: it can not be imported, or the module has no single App.
    """
    module_name, _, attribute = name.partition(":")
    module = import_module(module_name, config)
    if attribute:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, App):
            message = f"app {name!r}: {attribute!r} is no plugq.App in {_place(module)}"
            raise ConfigError(message)
        return found
    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    if len(apps) != 1:
        number = "no" if not apps else "more than one"
        message = (
            f"app {name!r}: {_place(module)} has {number} plugq.App; name it like '{name}:app'"
        )
        raise ConfigError(message)
    return next(iter(apps.values()))


def import_module(name: str, config: Config) -> ModuleType:
    """Import a module of the user's, with the folder of the configuration first on the path.

    Raises:
        ConfigError: it can not be imported; the message names the module, its file and the cause.
    """
    folder = str(config.base_dir.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        message = f"app: module {name!r} can not be imported: {cause}{_line_of(error)}"
        raise ConfigError(message) from error


def _line_of(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith("<frozen") and "importlib" not in file and file != __file__:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def _place(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or module.__name__)


def _exit_if_stuck(returned: threading.Event) -> None:
    """End the process when a handler blocks the loop although everything else has stopped."""

    def wait() -> None:
        if not returned.wait(LAST_MOMENT):
            logger.error("a handler blocks its loop and is left behind; its lease was given back")
            os._exit(1)

    threading.Thread(target=wait, name="plugq-exit", daemon=True).start()


__all__ = ["App", "Assembly", "Worker", "connect", "import_module", "load_app"]
