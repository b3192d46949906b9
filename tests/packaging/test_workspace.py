"""The lists that name the plugins agree with the folders, and all versions with each other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/[!_]*/pyproject.toml"))


def read(folder: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text("utf-8"))


WORKSPACE = read(".")
CORE = read("core")
TOOLS = WORKSPACE["tool"]
VERSION = CORE["project"]["version"]
PLUGIN_FOLDERS = [f"plugins/{name}" for name in PLUGINS]
DISTRIBUTIONS = ["core", *PLUGIN_FOLDERS]
EXAMPLE = "examples/plugq-lmdb"


def test_core_has_an_extra_for_each_plugin_at_its_own_version() -> None:
    extras = dict(CORE["project"]["optional-dependencies"])
    del extras["testing"], extras["uvloop"]
    assert extras == {name: [f"plugq-{name}=={VERSION}"] for name in PLUGINS}


def test_the_workspace_has_the_extras_of_core_and_takes_them_from_the_checkout() -> None:
    expected = {name: [f"plugq-{name} @ {{root:uri}}/plugins/{name}"] for name in PLUGINS}
    expected |= {name: [f"plugq[{name}] @ {{root:uri}}/core"] for name in ("testing", "uvloop")}
    assert WORKSPACE["project"]["optional-dependencies"] == expected
    assert set(expected) == set(CORE["project"]["optional-dependencies"])


def test_the_editable_list_names_every_distribution() -> None:
    lines = (ROOT / "requirements/editable.txt").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("-e")] == [f"-e ./{d}" for d in DISTRIBUTIONS]


def test_the_tools_know_every_distribution() -> None:
    packages = ["plugq", *(f"plugq_{name}" for name in PLUGINS)]
    assert TOOLS["importlinter"]["root_packages"] == packages
    assert TOOLS["coverage"]["run"]["source_pkgs"] == packages
    assert TOOLS["mypy"]["mypy_path"] == [
        f"$MYPY_CONFIG_FILE_DIR/{folder}/src"
        for folder in (*DISTRIBUTIONS, "plugins/_template", EXAMPLE)
    ]
    assert [(s["name"], s["path"]) for s in TOOLS["towncrier"]["section"]] == [
        ("plugq", ""),
        *((f"plugq-{name}", name) for name in PLUGINS),
    ]


def test_the_import_contracts_know_every_plugin() -> None:
    contracts = {contract["name"]: contract for contract in TOOLS["importlinter"]["contracts"]}
    packages = [f"plugq_{name}" for name in PLUGINS]
    assert contracts["core imports no plugin"]["forbidden_modules"] == packages
    public_only = contracts["plugins import only public modules of core"]
    assert public_only["source_modules"] == packages


def test_tox_tests_every_plugin_alone() -> None:
    tox = (ROOT / "tox.ini").read_text("utf-8")
    match = re.search(r"^env_list = py\{[\d,]+\}-\{core,(.*)\}$", tox, re.MULTILINE)
    assert match is not None
    assert match[1].split(",") == PLUGINS


@pytest.mark.parametrize("folder", [".", *DISTRIBUTIONS])
def test_versions_are_in_lockstep(folder: str) -> None:
    project = read(folder)["project"]
    assert project["version"] == VERSION
    assert project["requires-python"] == CORE["project"]["requires-python"]


@pytest.mark.parametrize("folder", PLUGIN_FOLDERS)
def test_a_plugin_is_named_for_its_folder_and_needs_this_core(folder: str) -> None:
    project = read(folder)["project"]
    name = folder.removeprefix("plugins/")
    assert project["name"] == f"plugq-{name}"
    assert f"plugq=={VERSION}" in project["dependencies"]
    assert (ROOT / folder / f"src/plugq_{name}/__init__.py").is_file()


@pytest.mark.parametrize("folder", DISTRIBUTIONS)
def test_every_distribution_carries_the_licence(folder: str) -> None:
    assert (ROOT / folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_example_plugin_imports_only_what_plugins_may() -> None:
    (contract,) = [
        contract
        for contract in TOOLS["importlinter"]["contracts"]
        if contract["name"] == "plugins import only public modules of core"
    ]
    imported = {
        name
        for path in (ROOT / EXAMPLE).rglob("*.py")
        for name in re.findall(
            r"^\s*(?:from|import) ([\w.]+)", path.read_text("utf-8"), re.MULTILINE
        )
    }
    assert "plugq.protocols" in imported
    for forbidden in [*contract["forbidden_modules"], *(f"plugq_{name}" for name in PLUGINS)]:
        assert not {name for name in imported if f"{name}.".startswith(f"{forbidden}.")}
