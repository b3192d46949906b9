"""What every plugin class declares, and what it is given."""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import msgspec

    from plugq.clock import Clock

#: The plugin API that this version of plugq speaks. A plugin of another one is refused.
API_VERSION = 1


class Capability(enum.StrEnum):
    """What a plugin may promise beyond the mandatory; the list is closed."""

    #: What was acknowledged survives a crash of the process, at the level that is configured.
    DURABLE = "durable"
    #: Several processes of one machine may open the same store.
    SHARED_PROCESSES = "shared_processes"
    #: Processes of several machines may open the same store.
    SHARED_HOSTS = "shared_hosts"
    #: An idle process is woken by another one's work without polling.
    PUSH_WAKEUPS = "push_wakeups"
    #: A job can be submitted inside the user's own transaction.
    TRANSACTIONAL_SUBMIT = "transactional_submit"


@dataclass(frozen=True, kw_only=True)
class PluginContext:
    """What plugq hands to a plugin besides its options.

    ``clock`` is ``None`` in production, where a shared storage asks its server for the time. A
    clock that is given replaces the server's in every script and statement.
    """

    namespace: str = "default"
    clock: Clock | None = None
    base_dir: Path = field(default_factory=Path.cwd)
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("plugq.plugin"))


class PluginClass(Protocol):
    """The attributes that the registry reads of a plugin before it makes an instance."""

    #: The plugin API it was written for.
    api_version: ClassVar[int]
    #: A keyword-only ``msgspec.Struct`` that forbids unknown fields.
    Options: ClassVar[type[msgspec.Struct]]
    capabilities: ClassVar[frozenset[Capability]]


__all__ = ["API_VERSION", "Capability", "PluginClass", "PluginContext"]
