"""The kit is proven as a whole: every part of it has caught something, and the page says so."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from plugq.builtin.memory import MemoryStorage
from plugq.testing import StorageContract


@pytest.fixture(scope="module")
def table() -> ModuleType:
    path = Path(__file__).with_name("table.py")
    spec = importlib.util.spec_from_file_location("plugq_broken_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(table: ModuleType) -> None:
    text = table.PAGE.read_text("utf-8")
    assert text == table.page(text), "run: nox -s tables"


def test_there_are_at_least_twenty_broken_storages(table: ModuleType) -> None:
    broken = {
        each.__name__
        for module in table.modules().values()
        for each in table.caught(module)
        if issubclass(each, MemoryStorage)
    }
    assert len(broken) >= 20


def test_every_subject_of_the_storage_contract_has_caught_something(table: ModuleType) -> None:
    modules = table.modules()
    names = {
        f"test_{name.removeprefix('test_')}"
        for module in modules.values()
        for names in table.caught(module).values()
        for name in names
    }
    # Some modules run one test for all and tell by its message what was caught.
    files = [Path(str(module.__file__)) for module in modules.values()]
    # Storages that fail in a crash need one that is in a file.
    files.append(Path(__file__).parents[2] / "faults" / "test_broken_crashes.py")
    sources = "".join(file.read_text("utf-8") for file in files)
    untried = set()
    for subject in StorageContract.__mro__:
        tests = {name for name in vars(subject) if name.startswith("test_")}
        if tests and not tests & names and not any(name in sources for name in tests):
            untried.add(subject.__name__)
    assert untried == set()
