"""Writes the tables of docs/conformance.md: ``python tests/unit/testing/table.py``.

They are made of what the modules in broken/ and a few others are parametrised with: ``CASES``,
and every constant that is a mapping from classes to names. A module that has neither has no table.
Where a class is the contract for a broken plugin, what is shown is the plugin.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).with_name("broken")
ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "conformance.md"
#: What proves parts of the contract for which the storage in memory is too little.
ELSEWHERE = {
    "processes": ROOT / "plugins" / "sqlite" / "tests" / "test_broken.py",
    "lost_transactions": ROOT / "plugins" / "sqlite" / "tests" / "test_broken_transactions.py",
    "crashes": ROOT / "tests" / "faults" / "test_broken_crashes.py",
}
BEGIN, END = "<!-- tables: nox -s tables -->", "<!-- end of tables -->"
#: Where the tables of a module come in, the others come behind them by name.
ORDER = (
    *("storage", "limiter", "serde", "capabilities", "transactions", "lost_transactions"),
    *("concurrency", "processes", "crashes", "cost", "model"),
)
_PROMISE = re.compile(r"I\d+")


def load(path: Path) -> ModuleType:
    """Import a test module from its file: folders of tests are no packages."""
    name = "_".join(("tabled", *path.relative_to(ROOT).with_suffix("").parts))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def modules() -> dict[str, ModuleType]:
    """Return the modules of broken plugins by what they are about, in the order of the page."""
    found = {
        "/".join(path.relative_to(FOLDER).with_suffix("").parts).replace("test_", ""): path
        for path in sorted(FOLDER.rglob("test_*.py"))
    } | ELSEWHERE
    known = {name: at for at, name in enumerate(ORDER)}
    order = sorted(found, key=lambda name: (known.get(name.partition("/")[0], len(known)), name))
    return {name: load(found[name]) for name in order}


def caught(module: ModuleType) -> dict[type, list[str]]:
    """Return the broken plugins of a module, each with the names of what catches it."""
    table: dict[type, list[str]] = {}
    for broken, name in _pairs(module):
        names = table.setdefault(_plugin(broken), [])
        if name not in names:
            names.append(name)
    return table


def _plugin(broken: type) -> type:
    """Return what a contract is opened for; another class is itself what is broken."""
    for name in ("broken", "storage"):
        if isinstance(plugin := vars(broken).get(name), type):
            return plugin
    return broken


def _pairs(module: ModuleType) -> Iterator[tuple[type, str]]:
    for case in getattr(module, "CASES", ()):
        values = getattr(case, "values", case)
        broken = next((value for value in values if isinstance(value, type)), None)
        if broken is not None:
            words = [value for value in values if isinstance(value, str)]
            # Beside the name of a test, the number of a promise says nothing of what catches it.
            names = [word for word in words if not _PROMISE.fullmatch(word)] or words
            yield from ((broken, name) for name in names)
    for constant, mapping in vars(module).items():
        if not (constant.isupper() and isinstance(mapping, Mapping)):
            continue
        for key, value in mapping.items():
            given: tuple[Any, ...] = (value,) if isinstance(value, str) else tuple(_each(value))
            if isinstance(key, type):
                yield from ((key, name) for name in given if isinstance(name, str))


def _each(value: object) -> Iterator[object]:
    if isinstance(value, tuple | list):
        yield from value


def tables() -> str:
    """Return what stands between the marks of the page."""
    parts: list[str] = []
    for module in modules().values():
        rows = caught(module)
        if not rows:
            continue
        title = (inspect.getdoc(module) or module.__name__).split("\n")[0].rstrip(".")
        parts += [f"### {_cell(title)}", "", "| broken plugin | its fault | caught by |"]
        parts += ["|---|---|---|"]
        for broken, names in rows.items():
            fault = (vars(broken).get("__doc__") or _words(broken)).split("\n\n")[0]
            listed = ", ".join(f"`{_cell(name.removeprefix('test_'))}`" for name in names)
            parts.append(f"| `{broken.__name__}` | {_cell(fault)} | {listed} |")
        parts.append("")
    return "\n".join(parts)


def _words(broken: type) -> str:
    """Return the name of a class as a sentence, for one of which it says all."""
    words = re.sub(r"(?<!^)(?=[A-Z])", " ", broken.__name__).lower()
    return f"{words.capitalize()}."


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page(text: str) -> str:
    """Return the page with tables that are up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n{END}{after}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
