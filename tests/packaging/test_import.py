"""``import plugq`` stays light: whoever imports it pays only for what it is."""

import json
import subprocess
import sys

import pytest

LOADED = """
import json, sys
before = set(sys.modules)
import plugq
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    run = subprocess.run(
        [sys.executable, "-c", LOADED], check=True, capture_output=True, text=True, timeout=30
    )
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    "name",
    [
        "aiosqlite",
        "asyncpg",
        "click",
        "hypothesis",
        "plugq.builtin",
        "plugq.cli",
        "plugq.testing",
        "pytest",
        "redis",
        "rich",
        "sqlite3",
        "uvloop",
    ],
)
def test_import_does_not_load(name: str, loaded: set[str]) -> None:
    assert sorted(module for module in loaded if f"{module}.".startswith(f"{name}.")) == []


def test_import_loads_no_plugin(loaded: set[str]) -> None:
    assert sorted(module for module in loaded if module.startswith("plugq_")) == []
