from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plugq.errors import (
    ConfigError,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
    PlugqError,
)
from plugq.fields import EnvText, InvalidConfig
from plugq.protocols.plugin import PluginContext
from plugq.registry import PluginInfo, Registry

Install = Callable[..., Path]
CONTEXT = PluginContext(namespace="shop", logger=logging.getLogger("shop"))

GOOD = """
    import msgspec

    class MongoOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
        url: str
        path: str = "jobs.db"
        pool: int = 10

    class MongoStorage:
        api_version = 1
        Options = MongoOptions
        capabilities = frozenset()

        def __init__(self, options, context):
            self.options = options
            self.context = context
"""


def nothing_installed(*, group: str) -> tuple[()]:
    assert group.startswith("plugq.")
    return ()


def names(kind: str) -> str:
    found = dict.fromkeys(info.name for info in Registry().installed(kind))
    return f"installed: {', '.join(found)}" if found else "none is installed"


def mongo(install: Install, source: str = GOOD, *, target: str = "MongoStorage") -> Registry:
    install(
        "plugq-mongo",
        {"plugq.storage": {"mongo": f"plugq_mongo:{target}"}},
        {"plugq_mongo": source},
        version="1.2",
    )
    return Registry()


def test_a_plugin_is_loaded_by_its_name(install: Install) -> None:
    registry = mongo(install)
    plugin = registry.load("storage", "mongo")
    assert plugin.__name__ == "MongoStorage"
    assert registry.load("storage", "mongo") is plugin


def test_listing_imports_nothing(install: Install) -> None:
    registry = mongo(install, "raise SystemExit('imported')")
    info = PluginInfo(
        kind="storage",
        name="mongo",
        distribution="plugq-mongo",
        version="1.2",
        target="plugq_mongo:MongoStorage",
    )
    assert info in registry.installed()
    assert info in registry.installed("storage")
    assert info not in registry.installed("serde")
    assert info.origin == "plugq-mongo 1.2"
    assert "plugq_mongo" not in sys.modules


def test_listing_is_in_order_and_has_every_kind(install: Install) -> None:
    groups = ("storage", "transport", "serde", "limiter", "hooks")
    install("plugq-b", {f"plugq.{kind}": {"zz-b": "b:B", "zz-a": "a:A"} for kind in groups})
    found = [(info.kind, info.name) for info in Registry().installed() if "zz-" in info.name]
    assert found == [(kind, name) for kind in groups for name in ("zz-a", "zz-b")]


def test_other_groups_are_not_looked_at(install: Install) -> None:
    install("plugq-x", {"plugq.storages": {"zz": "x:X"}, "other": {"zz": "x:X"}})
    assert "zz" not in {info.name for info in Registry().installed()}


def test_importing_the_registry_imports_no_plugin() -> None:
    code = (
        "import sys, plugq.registry as r; r.Registry().installed(); "
        "print([m for m in sys.modules if m.startswith(('plugq.builtin', 'plugq_', 'pytest'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("kind", "name", "start"),
    [
        ("storage", "nothing-like-it", "no storage plugin is named 'nothing-like-it'"),
        ("storage", "mongp", "no storage plugin is named 'mongp', did you mean 'mongo'?"),
        ("storage", "postgre", "no storage plugin is named 'postgre', did you mean 'postgres'?"),
        ("serde", "mongo", "no serde plugin is named 'mongo', yet a storage plugin is"),
    ],
)
def test_a_name_that_is_not_installed(install: Install, kind: str, name: str, start: str) -> None:
    registry = mongo(install)
    with pytest.raises(PluginNotFound) as raised:
        registry.load(kind, name)
    assert str(raised.value) == f"{start} ({names(kind)})"
    assert raised.value.plugin == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("transport", "zmq"),
        ("transport", "redis"),
        ("storage", "redis"),
        ("storage", "sqlite"),
        ("storage", "postgres"),
        ("serde", "msgpack"),
        ("serde", "cbor"),
    ],
)
def test_what_plugq_brings_as_an_extra_is_told(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    monkeypatch.setattr("plugq.registry.metadata.entry_points", nothing_installed)
    with pytest.raises(PluginNotFound) as raised:
        Registry().load(kind, name)
    assert str(raised.value) == (
        f"no {kind} plugin is named {name!r}; run: pip install 'plugq[{name}]' (none is installed)"
    )


def test_an_extra_that_brings_another_kind_is_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugq.registry.metadata.entry_points", nothing_installed)
    with pytest.raises(PluginNotFound, match=r"^no serde plugin is named 'zmq' \(none is inst"):
        Registry().load("serde", "zmq")


def test_a_kind_that_does_not_exist() -> None:
    line = "there is no kind of plugin 'cache'; the kinds are storage, transport, serde, limiter"
    for ask in (lambda: Registry().installed("cache"), lambda: Registry().load("cache", "x")):
        with pytest.raises(PluginNotFound) as raised:
            ask()
        assert str(raised.value) == line


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        (
            "import pymongo_is_not_here",
            "ModuleNotFoundError: No module named 'pymongo_is_not_here'",
        ),
        ("x = 1", "AttributeError: module 'plugq_mongo' has no attribute 'MongoStorage'"),
        ("raise ValueError('two\\nlines')", "ValueError: two lines"),
        ("raise ValueError", "ValueError"),
        ("raise ValueError('x://u:hunter2@h')", "ValueError: x://***@h"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_plugin_that_can_not_be_imported(install: Install, source: str, cause: str) -> None:
    registry = mongo(install, source)
    with pytest.raises(PluginBroken) as raised:
        registry.load("storage", "mongo")
    assert str(raised.value) == (
        f"the storage plugin 'mongo' of plugq-mongo 1.2 can not be imported: {cause}"
    )
    assert type(raised.value.__cause__).__name__ == cause.split(":", maxsplit=1)[0]
    assert raised.value.plugin == "mongo"


def test_an_interrupt_is_no_fault_of_the_plugin(install: Install) -> None:
    registry = mongo(install, "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        registry.load("storage", "mongo")


def test_a_target_that_is_no_class(install: Install) -> None:
    registry = mongo(install, "MongoStorage = 3")
    with pytest.raises(PluginBroken) as raised:
        registry.load("storage", "mongo")
    assert str(raised.value) == (
        "the storage plugin 'mongo' of plugq-mongo 1.2 is broken: 3 is no class"
    )


@pytest.mark.parametrize(
    ("version", "what"),
    [
        ("2", "was written for plugin API 2, this plugq speaks 1; upgrade plugq"),
        ("0", "was written for plugin API 0, this plugq speaks 1; upgrade the plugin"),
        ("'1'", "does not say which plugin API it was written for (api_version)"),
        ("True", "does not say which plugin API it was written for (api_version)"),
    ],
)
def test_a_plugin_for_another_api(install: Install, version: str, what: str) -> None:
    registry = mongo(install, GOOD.replace("api_version = 1", f"api_version = {version}"))
    with pytest.raises(PluginIncompatible) as raised:
        registry.load("storage", "mongo")
    assert str(raised.value) == f"the storage plugin 'mongo' of plugq-mongo 1.2 {what}"


def test_a_plugin_that_says_no_api(install: Install) -> None:
    registry = mongo(install, "class MongoStorage: pass")
    with pytest.raises(PluginIncompatible, match=r"does not say .* \(api_version\)$"):
        registry.load("storage", "mongo")


def test_two_distributions_with_one_name(install: Install) -> None:
    mongo(install)
    install(
        "acme-mongo",
        {"plugq.storage": {"mongo": "acme_mongo:Mongo"}},
        {"acme_mongo": "raise RuntimeError"},
        version="3.0",
    )
    registry = Registry()
    with pytest.raises(PluginConflict) as raised:
        registry.load("storage", "mongo")
    assert str(raised.value) == (
        "the storage plugin 'mongo' is offered by acme-mongo 3.0 and plugq-mongo 1.2; "
        'uninstall one, or name the class, use = "acme_mongo:Mongo"'
    )
    assert registry.load("storage", "plugq_mongo:MongoStorage").__name__ == "MongoStorage"
    assert [
        info.distribution for info in registry.installed("storage") if info.name == "mongo"
    ] == [
        "acme-mongo",
        "plugq-mongo",
    ]


def test_one_distribution_found_twice_is_no_conflict(install: Install) -> None:
    mongo(install)
    registry = mongo(install)
    assert registry.load("storage", "mongo").__name__ == "MongoStorage"


def test_one_name_may_have_several_kinds(install: Install) -> None:
    mongo(install)
    install(
        "plugq-mongo-transport",
        {"plugq.transport": {"mongo": "plugq_mongo:MongoStorage"}},
    )
    assert Registry().load("transport", "mongo").__name__ == "MongoStorage"


def test_a_dotted_path_stands_for_a_name(install: Install) -> None:
    nested = GOOD + "\n    class Outer:\n        Inner = MongoStorage\n"
    install("unrelated", {}, {"my_mongo": nested})
    registry = Registry()
    assert registry.load("storage", "my_mongo:MongoStorage").__name__ == "MongoStorage"
    assert registry.load("storage", "my_mongo:Outer.Inner").__name__ == "MongoStorage"


@pytest.mark.parametrize(
    ("name", "error", "line"),
    [
        (
            "gone_module:X",
            PluginNotFound,
            "the storage plugin 'gone_module:X' is not there: no module named 'gone_module'",
        ),
        (
            "my_mongo.inner:X",
            PluginNotFound,
            "the storage plugin 'my_mongo.inner:X' is not there: no module named 'my_mongo.inner'",
        ),
        (
            "my_mongo:Gone",
            PluginBroken,
            (
                "the storage plugin 'my_mongo:Gone' can not be imported: "
                "AttributeError: module 'my_mongo' has no attribute 'Gone'"
            ),
        ),
        (
            "needs_more:X",
            PluginBroken,
            (
                "the storage plugin 'needs_more:X' can not be imported: "
                "ModuleNotFoundError: No module named 'gone_driver'"
            ),
        ),
        (
            "my_mongo:",
            PluginNotFound,
            "the storage plugin 'my_mongo:' is no name; write a class as 'package.module:Class'",
        ),
        (
            "a/b:c",
            PluginNotFound,
            "the storage plugin 'a/b:c' is no name; write a class as 'package.module:Class'",
        ),
        (
            "my_mongo:number",
            PluginBroken,
            "the storage plugin 'my_mongo:number' is broken: 3 is no class",
        ),
    ],
)
def test_a_dotted_path_that_leads_nowhere(
    install: Install, name: str, error: type[PluginError], line: str
) -> None:
    install("unrelated", {}, {"my_mongo": "number = 3", "needs_more": "import gone_driver"})
    with pytest.raises(error) as raised:
        Registry().load("storage", name)
    assert type(raised.value) is error
    assert str(raised.value) == line


@pytest.mark.parametrize("disabled", ["mongo", "storage.mongo"])
def test_a_disabled_plugin_is_refused(install: Install, disabled: str) -> None:
    mongo(install, "raise RuntimeError('imported')")
    with pytest.raises(PluginError) as raised:
        Registry(disabled=[disabled]).load("storage", "mongo")
    assert str(raised.value) == "the storage plugin 'mongo' is disabled by [plugins] disabled"
    assert "plugq_mongo" not in sys.modules


@pytest.mark.parametrize("allow", [[], ["redis"], ["serde.mongo"]])
def test_what_is_not_allowed_is_refused(install: Install, allow: list[str]) -> None:
    mongo(install)
    with pytest.raises(PluginError) as raised:
        Registry(allow=allow).load("storage", "mongo")
    assert str(raised.value) == (
        "the storage plugin 'mongo' is not in the list [plugins] allow; add it there to use it"
    )


@pytest.mark.parametrize("allow", [["mongo"], ["storage.mongo", "x"]])
def test_what_is_allowed_is_not(install: Install, allow: list[str]) -> None:
    mongo(install)
    plugin = Registry(disabled=["serde.mongo", "other"], allow=allow).load("storage", "mongo")
    assert plugin.__name__ == "MongoStorage"


def test_dotted_paths_are_refused_as_they_are_written(install: Install) -> None:
    mongo(install)
    path = "plugq_mongo:MongoStorage"
    with pytest.raises(PluginError, match="is not in the list"):
        Registry(allow=["mongo"]).load("storage", path)
    with pytest.raises(PluginError, match="is disabled"):
        Registry(disabled=[path]).load("storage", path)
    assert Registry(allow=[path]).load("storage", path).__name__ == "MongoStorage"


def test_an_instance_gets_its_options_and_context(install: Install) -> None:
    registry = mongo(install)
    options = {"url": EnvText("5", origin="URL"), "pool": EnvText("5", origin="POOL")}
    made = registry.build("storage", "mongo", options, CONTEXT)
    assert (made.options.url, made.options.path, made.options.pool) == ("5", "jobs.db", 5)
    assert made.context is CONTEXT


@pytest.mark.parametrize(
    ("options", "lines"),
    [
        ({"url": "x", "pth": "y"}, ["storage.pth: unknown option, did you mean 'path'?"]),
        ({"url": "x", "path": 3}, ["storage.path: expected text, got 3"]),
        ({}, ["storage.url: this option is required"]),
        (
            {"zzzz": 1, "pool": "many"},
            [
                "storage.zzzz: unknown option; known: path, pool, url",
                "storage.url: this option is required",
                "storage.pool: expected a whole number, got 'many'",
            ],
        ),
    ],
)
def test_options_are_checked(install: Install, options: dict[str, Any], lines: list[str]) -> None:
    registry = mongo(install)
    with pytest.raises(InvalidConfig) as raised:
        registry.build("storage", "mongo", options, CONTEXT)
    assert raised.value.problems == tuple(lines)
    assert str(raised.value).startswith(lines[0])
    assert registry.problems("storage", "mongo", options) == lines


def test_the_path_of_the_options_may_be_another(install: Install) -> None:
    registry = mongo(install)
    with pytest.raises(ConfigError, match=r"^queues\.a\.limits\[0\]\.url: this option is req"):
        registry.build("storage", "mongo", {}, CONTEXT, path="queues.a.limits[0]")
    assert registry.problems("storage", "mongo", {}, path="x") == ["x.url: this option is required"]


def test_problems_of_what_can_not_be_loaded() -> None:
    [line] = Registry().problems("storage", "nothing-like-it", {})
    assert line.startswith("no storage plugin is named 'nothing-like-it'")


def test_problems_make_no_instance(install: Install) -> None:
    registry = mongo(install, GOOD + "            raise RuntimeError('made')\n")
    assert registry.problems("storage", "mongo", {"url": "x"}) == []


def test_a_plugin_without_options_takes_none(install: Install) -> None:
    source = """
        class MongoStorage:
            api_version = 1
            def __init__(self, options, context):
                self.options = options
    """
    registry = mongo(install, source)
    registry.build("storage", "mongo", {}, CONTEXT)
    with pytest.raises(ConfigError, match=r"^storage\.a: unknown option; it takes none$"):
        registry.build("storage", "mongo", {"a": 1}, CONTEXT)


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ("Options = dict", "its Options is no msgspec.Struct"),
        ("Options = 3", "its Options is no msgspec.Struct"),
        ("Options = Unreadable", "its Options: NameError: name 'Gone' is not defined"),
    ],
)
def test_a_plugin_whose_options_can_not_be_read(install: Install, options: str, cause: str) -> None:
    source = f"""
        import msgspec
        class Unreadable(msgspec.Struct):
            a: "Gone" = 1
        class MongoStorage:
            api_version = 1
            {options}
    """
    registry = mongo(install, source)
    line = f"the storage plugin 'mongo' of plugq-mongo 1.2 is broken: {cause}"
    with pytest.raises(PluginBroken) as raised:
        registry.build("storage", "mongo", {}, CONTEXT)
    assert str(raised.value) == line
    assert registry.problems("storage", "mongo", {}) == [line]


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("raise RuntimeError('no\\ndriver')", "RuntimeError: no driver"),
        ("raise OSError('x://u:hunter2@h is bad')", "OSError: x://***@h is bad"),
        ("raise SystemExit(2)", "SystemExit: 2"),
    ],
)
def test_a_plugin_that_can_not_be_made(install: Install, statement: str, cause: str) -> None:
    registry = mongo(install, GOOD + f"            {statement}\n")
    with pytest.raises(PluginBroken) as raised:
        registry.build("storage", "mongo", {"url": "x"}, CONTEXT)
    assert str(raised.value) == (
        f"the storage plugin 'mongo' of plugq-mongo 1.2 can not be made: {cause}"
    )
    assert raised.value.__cause__ is not None


def test_a_plugin_may_find_its_options_wrong(install: Install) -> None:
    source = GOOD + (
        "            from plugq.errors import ConfigError\n"
        "            raise ConfigError('storage.url: the host is missing')\n"
    )
    with pytest.raises(ConfigError, match=r"^storage\.url: the host is missing$"):
        mongo(install, source).build("storage", "mongo", {"url": "x"}, CONTEXT)


def test_the_class_given_by_path_is_named_by_it(install: Install) -> None:
    mongo(install, GOOD + "            raise RuntimeError('x')\n")
    with pytest.raises(PlugqError) as raised:
        Registry().build("storage", "plugq_mongo:MongoStorage", {"url": "x"}, CONTEXT)
    assert str(raised.value) == (
        "the storage plugin 'plugq_mongo:MongoStorage' can not be made: RuntimeError: x"
    )
