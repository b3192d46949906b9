"""The plugins that are chosen by name: which are installed, and how one becomes an instance.

Distributions offer plugins as entry points of the groups ``plugq.storage``, ``plugq.transport``,
``plugq.serde`` and ``plugq.limiter``. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import (
    ConfigError,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
)
from plugq.fields import Reader, suggestion
from plugq.protocols.plugin import API_VERSION
from plugq.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from importlib.metadata import EntryPoint

    from plugq.protocols.plugin import PluginContext

#: The kinds of which a deployment chooses one by name.
KINDS = ("storage", "transport", "serde", "limiter")
#: The kind of which every installed one is used.
HOOKS = "hooks"
#: Which kinds each extra of plugq brings.
EXTRAS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "zmq": frozenset({"transport"}),
        "redis": frozenset({"storage", "transport"}),
        "sqlite": frozenset({"storage"}),
        "postgres": frozenset({"storage"}),
        "msgpack": frozenset({"serde"}),
        "cbor": frozenset({"serde"}),
    }
)
_DOTTED = re.compile(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)")


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin as its distribution announces it; nothing of it has been imported."""

    kind: str
    name: str
    distribution: str
    version: str
    target: str

    @property
    def origin(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}".strip()


class NoOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a plugin gets that declares no ``Options``."""


class Registry:
    """Finds, checks and makes plugins.

    ``disabled`` refuses plugins by name, ``allow`` every one that it does not name. A name counts
    for all kinds, ``storage.redis`` for one; a dotted path is named as it is written.
    """

    def __init__(self, *, disabled: Iterable[str] = (), allow: Iterable[str] | None = None) -> None:
        self.disabled: frozenset[str] = frozenset(disabled)
        self.allow: frozenset[str] | None = None if allow is None else frozenset(allow)
        self._found: dict[str, tuple[tuple[PluginInfo, EntryPoint], ...]] = {}
        self._loaded: dict[tuple[str, str], type[Any]] = {}

    def installed(self, kind: str | None = None) -> list[PluginInfo]:
        """Return what the installed distributions offer, by kind and name, importing nothing."""
        kinds = (*KINDS, HOOKS) if kind is None else (kind,)
        return [info for each in kinds for info, _ in self.entry_points(each)]

    def entry_points(self, kind: str) -> Sequence[tuple[PluginInfo, EntryPoint]]:
        """Return the entry points of a kind, in the order of their names and distributions."""
        if kind not in (*KINDS, HOOKS):
            message = f"there is no kind of plugin {kind!r}; the kinds are {', '.join(KINDS)}"
            raise PluginNotFound(message, plugin=kind)
        if kind not in self._found:
            points = {
                _info(kind, point): point for point in metadata.entry_points(group=f"plugq.{kind}")
            }
            order = sorted(points, key=lambda info: (info.name, info.distribution, info.target))
            self._found[kind] = tuple((info, points[info]) for info in order)
        return self._found[kind]

    def refusal(self, kind: str, name: str) -> str | None:
        """Return why ``[plugins]`` keeps a plugin from being used, or ``None``."""
        names = {name, f"{kind}.{name}"}
        if names & self.disabled:
            return f"{_title(kind, name)} is disabled by [plugins] disabled"
        if self.allow is not None and not names & self.allow:
            return (
                f"{_title(kind, name)} is not in the list [plugins] allow; add it there to use it"
            )
        return None

    def load(self, kind: str, name: str) -> type[Any]:
        """Return the class of a plugin by its name or by ``package.module:Class``.

        Raises:
            PluginNotFound: nothing of that name is installed.
            PluginBroken: it is installed and can not be imported, or is no class.
            PluginIncompatible: it was written for another plugin API.
            PluginConflict: two distributions offer that name.
            PluginError: ``[plugins]`` refuses it.
        """
        self.entry_points(kind)
        reason = self.refusal(kind, name)
        if reason:
            raise PluginError(reason, plugin=name)
        if (kind, name) not in self._loaded:
            if ":" in name:
                loaded, origin = _import_path(kind, name), ""
            else:
                info, point = self._one(kind, name)
                loaded, origin = _import(point, info), f" of {info.origin}"
            self._loaded[kind, name] = _checked(loaded, f"{_title(kind, name)}{origin}", name)
        return self._loaded[kind, name]

    def build(
        self,
        kind: str,
        name: str,
        options: Mapping[str, Any],
        context: PluginContext,
        *,
        path: str | None = None,
    ) -> Any:
        """Return an instance of a plugin, its options checked by the ``Options`` of its class.

        ``path`` is where the options stand in the configuration, by default the kind.

        Raises:
            ConfigError: an option is unknown, missing or of another type; ``problems`` has all.
            PluginBroken: the plugin can not be made.
            PluginError: as :meth:`load`.
        """
        plugin = self.load(kind, name)
        reader = Reader()
        made = self._options((kind, name), options, reader, path)
        reader.finish()
        try:
            return plugin(made, context)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            message = f"{self._origin(kind, name)} can not be made: {_cause(error)}"
            raise PluginBroken(message, plugin=name) from error

    def problems(
        self, kind: str, name: str, options: Mapping[str, Any], *, path: str | None = None
    ) -> list[str]:
        """Return a line for everything that is wrong with a plugin or its options, making none."""
        reader = Reader()
        try:
            self._options((kind, name), options, reader, path)
        except PluginError as error:
            return [str(error)]
        return reader.problems

    def _options(
        self,
        plugin: tuple[str, str],
        options: Mapping[str, Any],
        reader: Reader,
        path: str | None,
    ) -> msgspec.Struct | None:
        kind, name = plugin
        declared = getattr(self.load(kind, name), "Options", NoOptions)
        if not (isinstance(declared, type) and issubclass(declared, msgspec.Struct)):
            message = f"{self._origin(kind, name)} is broken: its Options is no msgspec.Struct"
            raise PluginBroken(message, plugin=name)
        try:
            return reader.struct(declared, options, kind if path is None else path)
        except Exception as error:
            message = f"{self._origin(kind, name)} is broken: its Options: {_cause(error)}"
            raise PluginBroken(message, plugin=name) from error

    def _origin(self, kind: str, name: str) -> str:
        origins = [info.origin for info in self.installed(kind) if info.name == name]
        return _title(kind, name) + (f" of {origins[0]}" if origins else "")

    def _one(self, kind: str, name: str) -> tuple[PluginInfo, EntryPoint]:
        found = [pair for pair in self.entry_points(kind) if pair[0].name == name]
        if not found:
            raise PluginNotFound(self._missing(kind, name), plugin=name)
        if len(found) > 1:
            origins = " and ".join(info.origin for info, _ in found)
            message = (
                f"{_title(kind, name)} is offered by {origins}; uninstall one, or name the class, "
                f'use = "{found[0][0].target}"'
            )
            raise PluginConflict(message, plugin=name)
        return found[0]

    def _missing(self, kind: str, name: str) -> str:
        names = [info.name for info in self.installed(kind)]
        listed = f"installed: {', '.join(dict.fromkeys(names))}" if names else "none is installed"
        start = f"no {kind} plugin is named {name!r}"
        if kind in EXTRAS.get(name, ()):
            return f"{start}; run: pip install 'plugq[{name}]' ({listed})"
        others = [each for each in KINDS if name in {info.name for info in self.installed(each)}]
        if others:
            return f"{start}, yet a {others[0]} plugin is ({listed})"
        offered = [*names, *(extra for extra, kinds in EXTRAS.items() if kind in kinds)]
        close = suggestion(name, offered)
        return f"{start}{close if 'did you mean' in close else ''} ({listed})"


def _info(kind: str, point: EntryPoint) -> PluginInfo:
    distribution = point.dist
    return PluginInfo(
        kind=kind,
        name=point.name,
        distribution=distribution.name if distribution else "",
        version=distribution.version if distribution else "",
        target=point.value,
    )


def _title(kind: str, name: str) -> str:
    return f"the {kind} plugin {name!r}"


def _cause(error: BaseException) -> str:
    """Return an error as one line, without what is secret in it."""
    text = str(redact(" ".join(str(error).split())))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _import(point: EntryPoint, info: PluginInfo) -> Any:
    try:
        return point.load()
    except (Exception, SystemExit) as error:
        message = (
            f"{_title(info.kind, info.name)} of {info.origin} can not be imported: {_cause(error)}"
        )
        raise PluginBroken(message, plugin=info.name) from error


def _import_path(kind: str, name: str) -> Any:
    written = _DOTTED.fullmatch(name)
    if written is None:
        message = f"{_title(kind, name)} is no name; write a class as 'package.module:Class'"
        raise PluginNotFound(message, plugin=name)
    module, attributes = written[1], written[2]
    try:
        target = importlib.import_module(module)
        for attribute in attributes.split("."):
            target = getattr(target, attribute)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            message = f"{_title(kind, name)} is not there: no module named {missing!r}"
            raise PluginNotFound(message, plugin=name) from error
        message = f"{_title(kind, name)} can not be imported: {_cause(error)}"
        raise PluginBroken(message, plugin=name) from error
    return target


def _checked(loaded: Any, title: str, name: str) -> type[Any]:
    if not isinstance(loaded, type):
        message = f"{title} is broken: {loaded!r} is no class"
        raise PluginBroken(message, plugin=name)
    version = getattr(loaded, "api_version", None)
    if type(version) is int and version == API_VERSION:
        return loaded
    if type(version) is not int:
        message = f"{title} does not say which plugin API it was written for (api_version)"
    else:
        older = version < API_VERSION
        message = (
            f"{title} was written for plugin API {version}, this plugq speaks {API_VERSION}; "
            f"upgrade {'the plugin' if older else 'plugq'}"
        )
    raise PluginIncompatible(message, plugin=name)


__all__ = ["EXTRAS", "HOOKS", "KINDS", "NoOptions", "PluginInfo", "Registry"]
