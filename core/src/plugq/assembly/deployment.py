"""From a configuration to the parts of a deployment."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from plugq.assembly.schedules import owner_of
from plugq.broker import LocalBroker
from plugq.client import Client, ClientSettings, Deployment
from plugq.clock import Clock, SystemClock
from plugq.config import Config, ConfigLike, load_config
from plugq.errors import ConfigError
from plugq.fields import EnvText
from plugq.hooks import Hooks
from plugq.limiters import Chain, unpack_limits
from plugq.protocols.plugin import Capability, PluginContext
from plugq.registry import Registry
from plugq.submission import OptionTables, SizeLimits, Submitter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plugq.protocols.limiter import Limiter
    from plugq.protocols.serde import Serde
    from plugq.protocols.storage import Storage
    from plugq.schedule import Definition
    from plugq.task import Task

PRIVATE = (
    "storage {storage!r} lives inside one process, so nobody else would see these jobs: use "
    '`async with app.running({{}}) as client` or set [storage] use = "sqlite"'
)


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
        self.config: Config = load_config(config)
        self.config.refuse_unsupported()
        self.clock: Clock = clock or SystemClock()
        self._manual = clock
        plugins = self.config.plugins
        self.registry: Registry = Registry(disabled=plugins.disabled, allow=plugins.allow)
        self.hooks: Hooks = Hooks(self.registry, disabled=plugins.disabled, allow=plugins.allow)
        self._storage = storage
        self._building = threading.Lock()
        self._serde: Serde = self._build("serde")
        self._check_required()
        self._check_limits()

    @property
    def private(self) -> bool:
        """Whether nobody outside this process can see the storage."""
        shared = {Capability.SHARED_PROCESSES, Capability.SHARED_HOSTS}
        return not shared & self._capabilities()

    def storage(self) -> Storage:
        """Return a storage for one event loop; the same for all where it lives in this process."""
        # Workers ask from threads of their own, and two private storages would not know each other.
        with self._building:
            if self._storage is not None:
                return self._storage
            storage: Storage = self._build("storage")
            if self.private:
                self._storage = storage
            return storage

    def broker(
        self,
        *,
        maintain: bool,
        schedules: Sequence[Definition] | None = None,
        listed: bool = True,
    ) -> LocalBroker:
        """Return a broker for one event loop, on a storage of its own.

        ``schedules`` are all that the application and the file define: what else their owner has
        stored is removed. Without them nothing is announced or removed.
        """
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
            limiters=self.limiter,
            schedules=schedules or (),
            owner=owner_of(config) if maintain and schedules is not None else "",
            observer=self.hooks,
            listed=listed,
        )

    def limiter(self, specification: bytes) -> Limiter:
        """Return the limiter that a queue has stored, made by the plugins of this deployment.

        Raises:
            ConfigError: the specification or an option in it can not be used here.
            PluginError: a plugin that it names can not.
        """
        made = []
        for use, given in unpack_limits(specification):
            # A text may have come from an environment and stand for a number.
            options = {
                key: EnvText(value, origin="the stored limits") if isinstance(value, str) else value
                for key, value in given.items()
            }
            made.append(self.registry.build("limiter", use, options, self._context()))
        return made[0] if len(made) == 1 else Chain(made)

    def client(self, tasks: Mapping[str, Task[Any, Any]] | None = None) -> Client:
        """Return an unstarted client."""
        config = self.config
        client = Client(
            self.broker(maintain=False),
            Deployment(
                submitter=self.submitter(),
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
        _ASSEMBLIES[client] = self
        return client

    def submitter(self) -> Submitter:
        """Return what turns requests into the submissions of this deployment."""
        broker = self.config.broker
        limits = SizeLimits(payload=broker.max_payload, headers=broker.max_headers)
        return Submitter(self.tables, self._serde, limits)

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

    def _check_limits(self) -> None:
        for name, queue in self.config.queues.items():
            for path, choice in queue.limiters(name):
                self.registry.build(
                    "limiter", choice.use, choice.options, self._context(), path=path
                )


#: Which deployment a client belongs to, for a worker that shall join it.
_ASSEMBLIES: WeakKeyDictionary[Client, Assembly] = WeakKeyDictionary()


def assembly_of(client: Client) -> Assembly:
    """Return the assembly that made a client."""
    return _ASSEMBLIES[client]


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


__all__ = ["PRIVATE", "Assembly", "assembly_of", "connect"]
