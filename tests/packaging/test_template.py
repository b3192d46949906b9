"""The template of plugins, copied and renamed as the guide says, works in a clean environment."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from plugq.protocols import Storage
from plugq.testing import StorageContract

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "plugins/_template"
GUIDE = (ROOT / "docs/plugins.md").read_text("utf-8")
PROJECT = tomllib.loads((TEMPLATE / "pyproject.toml").read_text("utf-8"))["project"]
VERSION = tomllib.loads((ROOT / "core/pyproject.toml").read_text("utf-8"))["project"]["version"]

#: Calls every verb of the copied storage and prints what it says.
CALLS = """
import asyncio, inspect, json
from plugq.errors import Unavailable
from plugq.protocols import PluginContext, Storage
from plugq_mongo import MongoStorage

async def call(storage, verb):
    method = getattr(storage, verb)
    result = method(*[()] * len([
        each for each in inspect.signature(method).parameters.values()
        if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD
    ]), **({"lease": 1.0} if verb == "renew" else {}))
    return await (anext(result) if hasattr(result, "__anext__") else result)

async def main():
    said = {}
    storage = MongoStorage(MongoStorage.Options(url="x"), PluginContext())
    await storage.start()
    await storage.start()
    own = {name for part in Storage.__mro__ for name in vars(part) if name[0] != "_"}
    for verb in own - {"start", "stop", "api_version", "capabilities"}:
        try:
            await call(storage, verb)
        except Unavailable as error:
            said[verb] = str(error)
    await storage.stop()
    await storage.stop()
    print(json.dumps(said))

asyncio.run(main())
"""


def commands() -> list[str]:
    """Return the shell blocks below the heading "Copy", in their order."""
    section = GUIDE.split("\n## Copy\n")[1].split("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def verbs() -> list[str]:
    """Return what a storage has to implement beyond starting and stopping."""
    names = {name for part in Storage.__mro__ for name in vars(part) if name[0] != "_"}
    return sorted(names - {"start", "stop", "api_version", "capabilities"})


def test_the_template_fits_this_core() -> None:
    needs = {each.name: each for each in map(Requirement, PROJECT["dependencies"])}
    assert needs["plugq"].specifier.contains(VERSION)
    assert PROJECT["version"] == VERSION
    assert (TEMPLATE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_storage_of_the_template_names_every_verb() -> None:
    source = (TEMPLATE / "src/plugq_template/_storage.py").read_text("utf-8")
    assert sorted(re.findall(r'raise _missing\("(\w+)"\)', source)) == verbs()


def test_the_guide_begins_with_a_copy() -> None:
    assert commands()[0].startswith("cp -r plugins/_template ../plugq-mongo\n")


class Shell:
    """Runs commands where the last one went, in a clean environment that has what was built."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "plugq"
        self._state = folder / "folder"
        fresh = folder / "venv"
        venv.create(fresh, with_pip=True)
        removed = {"PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"}
        self._environment = {n: value for n, value in os.environ.items() if n not in removed}
        self._environment |= {
            "PATH": f"{fresh / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "VIRTUAL_ENV": str(fresh),
            "PIP_FIND_LINKS": str(ROOT / "dist"),
            "COLUMNS": "200",
        }
        # First without the index, so that nobody else's distribution of the same name is taken.
        self.run(f"pip install -q --no-index --no-deps --find-links '{ROOT / 'dist'}' plugq")

    def run(self, text: str, code: int = 0) -> str:
        """Return what commands print; they have to end with that code."""
        ran = subprocess.run(
            ["bash", "-c", f"set -eu\n{text}\npwd > '{self._state}'\n"],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert ran.returncode == code, f"exit code {ran.returncode} of\n{text}\n{ran.stdout}"
        if not code:
            self._folder = Path(self._state.read_text("utf-8").strip())
        return ran.stdout


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", str(TEMPLATE)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        (tmp_path / "plugq" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plugq" / name).write_bytes((ROOT / name).read_bytes())
    return Shell(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="the guide's shell is bash")
@pytest.mark.wheels
@pytest.mark.timeout(900)
def test_a_copy_of_the_template_works_as_the_guide_says(shell: Shell, tmp_path: Path) -> None:
    copy, install, prove, report = commands()
    shell.run(copy)
    left = [
        path
        for path in (tmp_path / "plugq-mongo").rglob("*")
        if "template" in path.name.lower()
        or path.suffix == ".bak"
        or (path.is_file() and b"template" in path.read_bytes().lower())
    ]
    assert left == []

    listed = shell.run(install)
    for kind in ("limiter", "serde", "storage"):
        assert re.search(rf"^\W*{kind}\s.*\bmongo\b.*\bplugq-mongo\b.*\bok\b", listed, re.MULTILINE)

    assert re.search(r"\b\d+ passed in ", shell.run(prove))
    red = shell.run(report, code=1)
    # Every failure is one line that names what is to be written.
    errors = re.findall(r"^E +(\S.*)$", red, re.MULTILINE)
    assert len(errors) > 100
    assert [line for line in errors if " does not implement " not in line] == []
    called = json.loads(shell.run(f"python -I - <<'END'\n{CALLS}\nEND"))
    assert sorted(called) == verbs()
    for verb, message in called.items():
        assert message.startswith(f"MongoStorage does not implement {verb} yet; ")
        assert "\n" not in message


def test_the_guide_leads_through_every_verb() -> None:
    rows = re.findall(r"^\| \d+ \| (.*) \| (.*) \|$", GUIDE, re.MULTILINE)
    led = [verb for cells, _ in rows for verb in re.findall(r"`(\w+)`", cells)]
    assert sorted(led) == sorted([*verbs(), "submit_within"])
    parts = {part.__name__ for part in StorageContract.__bases__}
    named = {name for _, cells in rows for name in re.findall(r"`([A-Z]\w+)`", cells)}
    assert named - {"Configure"} <= parts
