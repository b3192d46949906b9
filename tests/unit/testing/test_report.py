"""The report of docs/storages.md says what the kit found, and why something was skipped."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def reporter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tests_report", ROOT / "tests" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def found(*tests: tuple[str, str, str], server: str = "") -> dict[str, Any]:
    outcomes = [outcome for _, outcome, _ in tests]
    tally = {name: outcomes.count(name) for name in ("passed", "failed", "skipped")}
    return {
        "server": server,
        "summary": "conforms",
        "conforms": True,
        "capabilities": {"durable": "declared and held"},
        "levels": {"semantics": tally, "crash": dict.fromkeys(tally, 0)},
        "tests": [
            {"level": level, "promise": "it holds", "outcome": outcome, "reason": reason}
            for level, outcome, reason in tests
        ],
    }


def test_counts_and_reasons_stand_side_by_side(reporter: ModuleType) -> None:
    text = reporter.report(
        {
            "one": found(("semantics", "passed", ""), server="One 1.0"),
            "two": found(
                ("semantics", "passed", ""),
                ("semantics", "skipped", "no | hook"),
                ("semantics", "skipped", "no | hook"),
            ),
        },
        "9.9",
    )
    assert "| on | One 1.0 | – |" in text
    assert "| semantics | 1 passed | 1 passed, 2 skipped |" in text
    assert "| crash | 0 passed | 0 passed |" in text
    assert "| `durable` | declared and held | declared and held |" in text
    assert "| semantics: no \\| hook |  | 2 |" in text
    assert "failed" not in text


def test_what_failed_is_named(reporter: ModuleType) -> None:
    text = reporter.report({"one": found(("semantics", "failed", "it\nwas 2"))}, "9.9")
    assert "0 passed, 1 failed" in text
    assert "- one, semantics: it holds (it was 2)" in text


def test_only_what_stands_between_the_marks_is_replaced(reporter: ModuleType) -> None:
    text = f"before\n{reporter.BEGIN}\nold\n{reporter.END}\nafter\n"
    assert reporter.page(text, "new\n") == (
        f"before\n{reporter.BEGIN}\n\nnew\n\n{reporter.END}\nafter\n"
    )
    page = reporter.PAGE.read_text("utf-8")
    assert page.count(reporter.BEGIN) == page.count(reporter.END) == 1


def test_every_storage_is_there_to_be_tested(reporter: ModuleType) -> None:
    for target in reporter.STORAGES.values():
        file, _, name = str(target).partition("::")
        assert f"class {name}(StorageContract)" in Path(file).read_text("utf-8")
