"""The sections of a configuration, typed, with every default in place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import UNSET, UnsetType

from plugq.errors import ConfigError
from plugq.fields import Check, EnvText, Reader, Size, Span, Word, join, plain
from plugq.limiters import pack_limits
from plugq.options import SubmitOptions
from plugq.protocols.edits import QueueSettings
from plugq.protocols.plugin import Capability
from plugq.redaction import HIDDEN, is_secret, redact, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_Name = Annotated[str, msgspec.Meta(min_length=1)]
_Count = Annotated[int, msgspec.Meta(ge=1)]
_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*(?::[^\W\d]\w*(?:\.[^\W\d]\w*)*)?")
_MIB = 1024**2


def _app(value: str | None) -> str | None:
    if value is None or (_MODULE.fullmatch(value) and not value.endswith(".py")):
        return None
    return f"expected a module such as 'shop.jobs' or 'shop.jobs:app', got {value!r}"


def _zone(value: str) -> str | None:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return f"unknown time zone {value!r}; write it like 'Europe/Berlin' or 'UTC'"
    return None


def _queues(value: tuple[str, ...] | dict[str, float] | None) -> str | None:
    if value is None:
        return None
    if not value:
        return "names no queue; leave it out to serve all of them"
    double = sorted({name for name in value if list(value).count(name) > 1})
    return f"queue {double[0]!r} is there twice" if double else None


class PluginChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin by name or dotted path, and the options that it will check itself."""

    use: _Name
    options: dict[str, Any] = {}

    @classmethod
    def from_table(cls, values: Any, path: str, reader: Reader) -> PluginChoice | None:
        """Return the choice that a table with ``use`` makes, or ``None`` after a complaint."""
        if isinstance(values, cls):
            return values
        if not hasattr(values, "keys"):
            complaint = f"expected a table with `use`, got {shown(plain(values), path)}"
            reader.report(path, complaint)
            return None
        if "use" not in values:
            reader.report(join(path, "use"), "this option is required: the name of a plugin")
            return None
        use = reader.value(_Name, values["use"], join(path, "use"))
        options = {key: value for key, value in values.items() if key != "use"}
        return cls(use=use, options=options) if isinstance(use, str) else None

    def __repr__(self) -> str:
        return f"PluginChoice({_table(self)!r})"


def _packed(choices: Sequence[PluginChoice]) -> bytes:
    return pack_limits([(choice.use, plain(choice.options)) for choice in choices])


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[worker]``: ``queues`` in order, or with weights, or ``None`` for all that are known."""

    queues: Annotated[
        tuple[_Name, ...] | dict[_Name, Annotated[float, msgspec.Meta(gt=0)]] | None,
        Check(_queues),
    ] = None
    concurrency: _Count = 32
    threads: _Count = 0
    prefetch: Annotated[int, msgspec.Meta(ge=0)] = 0
    grace: Annotated[float, Span()] = 20.0
    abandon_after: Annotated[float, Span()] = 30.0
    id: _Name | None = None

    def __post_init__(self) -> None:
        """Fill in what depends on another option."""
        if not self.threads:
            msgspec.structs.force_setattr(self, "threads", min(32, self.concurrency))


class BrokerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[broker]``: leases, limits in bytes, and the heartbeat of its sessions."""

    lease: Annotated[float, Span(0.5)] = 30.0
    renewal: Annotated[float, Span(0.05)] = 0.0
    max_crashes: _Count = 3
    max_payload: Annotated[int, Size()] = _MIB
    max_result: Annotated[int, Size()] = _MIB
    max_headers: Annotated[int, Size()] = 8 * 1024
    unknown_ttl: Annotated[float, Span()] = 86400.0
    heartbeat: Annotated[float, Span(0.05)] = 2.5
    liveness: _Count = 3

    def __post_init__(self) -> None:
        """Fill in what depends on another option, and check that it fits."""
        if not self.renewal:
            msgspec.structs.force_setattr(self, "renewal", self.lease / 3)
        if self.renewal >= self.lease:
            message = (
                f"renewal: expected less than the lease of {self.lease:g} s, got {self.renewal:g} s"
            )
            raise ValueError(message)


class ReconnectConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[client.reconnect]``: the first and the longest pause, doubling with full jitter."""

    first: Annotated[float, Span(0.001)] = 0.1
    max: Annotated[float, Span(0.001)] = 2.0

    def __post_init__(self) -> None:
        """Check that the pauses can grow."""
        if self.max < self.first:
            message = f"max: expected at least `first`, {self.first:g} s, got {self.max:g} s"
            raise ValueError(message)


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[client]``: how long requests and waiting take."""

    deadline: Annotated[float, Span(0.001)] = 5.0
    fallback_poll: Annotated[float, Span(0.001)] = 1.0
    reconnect: ReconnectConfig = ReconnectConfig()


class QueueConfig(SubmitOptions, frozen=True, kw_only=True):
    """``[queues.NAME]``: submit options of its jobs, and what decides its claims."""

    limits: tuple[PluginChoice, ...] = ()
    lane_limits: tuple[PluginChoice, ...] = ()
    max_running: _Count | None = None
    lane_max_running: _Count = 1
    max_length: _Count | None = None
    unknown_ttl: Annotated[float | UnsetType, Span()] = UNSET

    def __post_init__(self) -> None:
        """Refuse a second name of the queue."""
        super().__post_init__()
        if self.queue is not UNSET:
            message = "queue: the queue is the one that this section names"
            raise ValueError(message)

    def settings(self, name: str) -> QueueSettings:
        """Return the part that is stored with the queue of that name."""
        return QueueSettings(
            queue=name,
            max_running=self.max_running,
            lane_max_running=self.lane_max_running,
            max_length=self.max_length,
            limits=_packed(self.limits),
            lane_limits=_packed(self.lane_limits),
        )

    def limiters(self, name: str) -> Iterator[tuple[str, PluginChoice]]:
        """Return the limiters of the queue of that name and where each stands."""
        for key, choices in (("limits", self.limits), ("lane_limits", self.lane_limits)):
            for number, choice in enumerate(choices):
                yield f"{join(join('queues', name), key)}[{number}]", choice


class ScheduleConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[schedules.NAME]``: which job is submitted when; either ``cron`` or ``every`` is set."""

    task: _Name
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    cron: _Name | None = None
    every: Annotated[float | None, Span(0.05)] = None
    timezone: Annotated[str, Check(_zone)] = "UTC"
    catch_up: Literal["skip", "one", "all"] = "one"
    overlap: Literal["skip", "allow"] = "skip"
    options: SubmitOptions = SubmitOptions()

    def __post_init__(self) -> None:
        """Check that there is exactly one rule."""
        if (self.cron is None) == (self.every is None):
            message = "expected either `cron` or `every`"
            raise ValueError(message)


class PluginsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``[plugins]``: names that are refused, and, unless ``None``, the only ones that are not."""

    disabled: tuple[_Name, ...] = ()
    allow: tuple[_Name, ...] | None = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A whole configuration. ``path`` is its file, if any; paths in it count from ``base_dir``."""

    app: Annotated[str | None, Check(_app)] = None
    namespace: _Name = "default"
    storage: PluginChoice = PluginChoice(use="memory")
    transport: PluginChoice | None = None
    serde: PluginChoice = PluginChoice(use="json")
    worker: WorkerConfig = WorkerConfig()
    broker: BrokerConfig = BrokerConfig()
    client: ClientConfig = ClientConfig()
    defaults: SubmitOptions = SubmitOptions()
    queues: dict[_Name, QueueConfig] = {}
    tasks: dict[_Name, SubmitOptions] = {}
    schedules: dict[_Name, ScheduleConfig] = {}
    require: dict[Capability, bool] = {}
    plugins: PluginsConfig = PluginsConfig()
    path: Path | None = None
    base_dir: Path = Path()

    @classmethod
    def from_table(cls, table: Mapping[str, Any], reader: Reader) -> Self | None:
        """Return the configuration that a table describes, or ``None`` after complaints."""
        return reader.struct(cls, table, refuse=_REFUSED)

    def queue(self, name: str) -> QueueConfig:
        """Return the section of a queue, or one with every default."""
        return self.queues.get(name) or QueueConfig()

    def task(self, name: str) -> SubmitOptions:
        """Return the options that the configuration sets for a task."""
        return self.tasks.get(name) or SubmitOptions()

    def unknown_ttl(self, queue: str) -> float:
        """Return for how many seconds a job of that queue waits for a worker that has its task."""
        own = self.queue(queue).unknown_ttl
        return self.broker.unknown_ttl if own is UNSET else own

    @property
    def required(self) -> frozenset[Capability]:
        """The capabilities without which this deployment must not start."""
        return frozenset(name for name, wanted in self.require.items() if wanted)

    @property
    def unsupported(self) -> tuple[str, ...]:
        """One line for everything here that this version reads and can not carry out."""
        if self.transport is None:
            return ()
        return ("transport: transports are not supported by this version yet",)

    def refuse_unsupported(self) -> None:
        """Do nothing if this version can carry out everything that is configured.

        Raises:
            ConfigError: it can not; the message is the first line of :attr:`unsupported`.
        """
        for line in self.unsupported:
            raise ConfigError(line)

    def redacted(self) -> dict[str, Any]:
        """Return what is in force as plain values, without secrets; durations are seconds.

        Where it hides nothing, the result is a configuration that means the same.
        """
        return {
            name: _table(getattr(self, name))
            for name in sorted(KEYS, key=self.__struct_fields__.index)
            if getattr(self, name) is not None
        }

    def __repr__(self) -> str:
        return f"Config({self.redacted()!r})"


_REFUSED = {
    "path": "unknown option; it belongs into a section such as [storage]",
    "base_dir": "unknown option; paths count from the folder of the file",
}
#: Fields of sections whose keys are the users' own.
_FREE = frozenset({"args", "headers", "kwargs"})
#: What the top level of a configuration may have.
KEYS = frozenset(Config.__struct_fields__) - _REFUSED.keys()


def _table(value: Any) -> Any:
    """Return a section as a table that could be read again, without secrets.

    Only what users fill in freely is looked at by its keys: a queue may well be named ``tokens``.
    """
    if isinstance(value, PluginChoice):
        return {"use": value.use, **redact(_visible(value.options))}
    if isinstance(value, msgspec.Struct):
        words = _words(type(value))
        return {
            name: words[name]
            if item is None
            else redact(_visible(item))
            if name in _FREE
            else _table(item)
            for name in value.__struct_fields__
            if (item := getattr(value, name)) is not UNSET and (item is not None or name in words)
        }
    if isinstance(value, dict):
        return {str(key): _table(item) for key, item in value.items()}
    return [_table(item) for item in value] if isinstance(value, list | tuple) else redact(value)


def _visible(value: Any) -> Any:
    """Return plain values, those hidden that a variable with the name of a secret gave."""
    if isinstance(value, EnvText):
        return HIDDEN if is_secret(value.origin) else plain(value)
    if isinstance(value, dict):
        return {key: _visible(item) for key, item in value.items()}
    return [_visible(item) for item in value] if isinstance(value, list | tuple) else value


def _words(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return by field the text that stands for ``None``."""
    return {
        field.name: mark.text
        for field in msgspec.structs.fields(kind)
        for mark in getattr(field.type, "__metadata__", ())
        if isinstance(mark, Word)
    }


__all__ = [
    "BrokerConfig",
    "ClientConfig",
    "Config",
    "PluginChoice",
    "PluginsConfig",
    "QueueConfig",
    "ReconnectConfig",
    "ScheduleConfig",
    "WorkerConfig",
]
