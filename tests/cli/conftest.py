"""The command line as a user has it: a folder, a shell, and processes that stop with the test."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from plugq.cli import main

#: Seconds that anything here may take on a machine that is busy with other things.
PATIENCE = 100.0
COMMAND = (sys.executable, "-m", "plugq")

SQLITE = """
app = "jobs"
[storage]
use = "sqlite"
path = "jobs.db"
"""
JOBS = """
import asyncio, os
import plugq

app = plugq.App()

@app.task
async def hello(name: str) -> str:
    return f"hello {name}"

@app.task
async def add(a: int, b: int = 0) -> int:
    return a + b

@app.task(max_attempts=1)
async def fail(message: str) -> None:
    raise RuntimeError(message)

@app.task
async def pid() -> int:
    return os.getpid()

@app.task
async def wait() -> None:
    print("waiting", flush=True)
    await asyncio.Event().wait()
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a storage that processes share where none is installed."""
    if importlib.util.find_spec("plugq_sqlite") is not None:
        return
    for item in items:
        if "shop" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="plugq-sqlite is not installed"))


class Running:
    """A command that runs beside the test, with its output as it comes."""

    def __init__(self, arguments: Sequence[str], folder: Path, environ: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=folder,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return "".join(self._lines)

    @property
    def ended(self) -> bool:
        """Whether it and all that it started have let go of their output."""
        return self._ended

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def wait_for(self, text: str, times: int = 1) -> str:
        """Return the line that has the text, once it was printed so many times."""
        until = time.monotonic() + PATIENCE
        with self._changed:
            while len(found := [line for line in self._lines if text in line]) < times:
                assert not self._ended, f"it ended without {text!r}: {self.output}"
                assert self._changed.wait(until - time.monotonic()), (
                    f"no {text!r} in: {self.output}"
                )
        return found[-1].rstrip("\n")

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, and return the exit code."""
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def close(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Shell:
    """A folder and the commands that are run in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environ: dict[str, str] = {}
        self._running: list[Running] = []

    def write(self, name: str, text: str) -> Path:
        """Write a file into the folder."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return path

    def run(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [*COMMAND, *arguments],
            check=False,
            cwd=self.folder,
            env={**os.environ, **self.environ},
            capture_output=True,
            text=True,
            input=text,
            timeout=PATIENCE,
        )

    def start(self, *arguments: str) -> Running:
        """Run a command beside the test."""
        running = Running(arguments, self.folder, self.environ)
        self._running.append(running)
        return running

    def close(self) -> None:
        """End what still runs."""
        for running in self._running:
            running.close()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """Give an empty folder and real processes."""
    for name in [name for name in os.environ if name.startswith("PLUGQ_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "shop"
    folder.mkdir()
    shell = Shell(folder)
    shell.environ["TMPDIR"] = str(tmp_path)
    yield shell
    shell.close()


@pytest.fixture
def shop(shell: Shell) -> Shell:
    """Give a deployment over SQLite with a few tasks."""
    shell.write("plugq.toml", SQLITE)
    shell.write("jobs.py", JOBS)
    return shell


Invoke = Callable[..., Result]


@pytest.fixture
def invoke(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in this process, in the folder of the shell."""
    monkeypatch.chdir(shell.folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)

    def run(*arguments: str) -> Result:
        for name in set(sys.modules) - before:
            if name in {"jobs", "broken"}:
                del sys.modules[name]
        # Click 8.1 mixes both outputs unless told otherwise, later ones know no such option.
        mixes = "mix_stderr" in inspect.signature(CliRunner).parameters
        options: dict[str, Any] = {"mix_stderr": False} if mixes else {}
        return CliRunner(**options).invoke(main, arguments)

    return run
