"""What shall be tested: an installed plugin, a plugin class, or a contract of its author."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

import plugq.testing
from plugq.errors import ConfigError, PluginNotFound
from plugq.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The kinds for which there is a contract, with what tells a class of that kind.
_MARKS = {
    "storage": ("submit", "claim", "settle"),
    "limiter": ("step", "widened"),
    "serde": ("encode", "decode"),
}
_PATH = re.compile(r"(\w+(?:\.\w+)*):(\w+(?:\.\w+)*)")
#: Of these the bound in numbers follows from the options.
LIMITERS = ("delay", "rate", "spaced", "token_bucket")

#: The environment variable that has the target as JSON. No prefix of the configuration begins it.
VARIABLE = "_PLUGQ_CONFORMANCE_TARGET"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Which tests are run and on what.

    ``kind`` and ``use`` are empty for a contract that its author wrote; ``nodes`` is what pytest
    is given. ``conftest`` is the folder up to which its conftest files count, if any do.
    """

    title: str
    kind: str = ""
    use: str = ""
    options: dict[str, Any] = {}
    distribution: str = ""
    version: str = ""
    subject: str = ""
    nodes: tuple[str, ...] = ()
    conftest: str | None = None


def find(text: str, options: Mapping[str, Any], folder: Path) -> Target:
    """Return what a text names: ``NAME``, ``KIND:NAME``, ``package.module:Class`` or a file.

    Raises:
        ConfigError: it names nothing that can be tested, or the options are wrong.
        PluginError: the plugin can not be used.
    """
    file, _, inner = text.partition("::")
    if file.endswith(".py"):
        return _authors(folder / file, inner, text, options, folder)
    kind, sign, name = text.partition(":")
    if sign and kind in _MARKS:
        return _named(kind, name, text, options)
    if sign:
        return _imported(text, options, folder)
    registry = Registry()
    kinds = [k for k in _MARKS if text in {info.name for info in registry.installed(k)}]
    if len(kinds) == 1:
        return _named(kinds[0], text, text, options)
    if kinds:
        names = " or ".join(f"{kind}:{text}" for kind in kinds)
        raise ConfigError(f"several kinds of plugins are named {text!r}; write {names}")
    listed = ", ".join(
        dict.fromkeys(info.name for kind in _MARKS for info in registry.installed(kind))
    )
    raise PluginNotFound(
        f"no storage, serde or limiter plugin is named {text!r} (installed: {listed}); "
        "a class is written as package.module:Class, a contract of yours as a file",
        plugin=text,
    )


def _named(kind: str, use: str, title: str, options: Mapping[str, Any]) -> Target:
    registry = Registry()
    plugin = registry.load(kind, use)
    if kind == "limiter":
        own = {registry.load(kind, name) for name in LIMITERS}
        if plugin not in own:
            raise ConfigError(
                f"how much {title} may grant is not known to the kit; write a subclass of "
                "plugq.testing.LimiterContract with make() and most(), and pass that instead"
            )
    if kind == "serde" and not hasattr(plugq.testing, "SerdeContract"):
        raise ConfigError("this version of plugq has no contract for serdes")
    if kind == "storage" and "path" not in options and _wants_a_path(plugin):
        # It is relative to the folder that each test has.
        options = {**options, "path": "conformance.db"}
    problems = registry.problems(kind, use, options, path=kind)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{problems[0]}{more} (options are given as --option KEY=VALUE)")
    infos = [info for info in registry.installed(kind) if info.name == use]
    info = infos[0] if infos else None
    suite = Path(__file__).with_name("suite.py")
    return Target(
        title=title,
        kind=kind,
        use=use,
        options=dict(options),
        distribution=info.distribution if info else "",
        version=info.version if info else "",
        subject=f"{plugin.__module__}:{plugin.__qualname__}",
        nodes=(f"{suite}::Test{kind.capitalize()}",),
    )


def _wants_a_path(plugin: type[Any]) -> bool:
    declared = getattr(plugin, "Options", None)
    if not (isinstance(declared, type) and issubclass(declared, msgspec.Struct)):
        return False
    fields = msgspec.structs.fields(declared)
    return any(field.name == "path" and field.required for field in fields)


def _imported(text: str, options: Mapping[str, Any], folder: Path) -> Target:
    found = load(text)
    if not isinstance(found, type):
        raise ConfigError(f"{text} is no class")
    if getattr(found, "plugq_contract", False) is True:
        file = Path(inspect.getfile(found))
        return _authors(file, found.__qualname__.replace(".", "::"), text, options, folder)
    kinds = [kind for kind, names in _MARKS.items() if all(hasattr(found, n) for n in names)]
    if len(kinds) != 1:
        raise ConfigError(
            f"{text} is neither a storage, serde or limiter plugin nor a contract of plugq.testing"
        )
    return _named(kinds[0], text, text, options)


def load(text: str) -> Any:
    """Return what ``package.module:name`` names.

    Raises:
        ConfigError: it is not there, or importing it fails.
    """
    written = _PATH.fullmatch(text)
    if written is None:
        raise ConfigError(f"{text!r} is no target; write a class as package.module:Class")
    try:
        found: Any = importlib.import_module(written[1])
        for name in written[2].split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{text} can not be imported: {cause}") from error
    return found


def _authors(
    file: Path, inner: str, title: str, options: Mapping[str, Any], folder: Path
) -> Target:
    if options:
        raise ConfigError("a contract makes its plugin itself and takes no options")
    if not file.is_file():
        raise ConfigError(f"{file} is not there")
    file = file.resolve()
    top = folder.resolve() if file.is_relative_to(folder.resolve()) else file.parent
    return Target(
        title=title,
        subject=title,
        nodes=(f"{file}::{inner}" if inner else str(file),),
        conftest=str(top),
    )


__all__ = ["LIMITERS", "VARIABLE", "Target", "find", "load"]
