"""Worker processes over one SQLite file, and what their ledger says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plugq

APP = Path(__file__).with_name("ledger_app.py")
#: Seconds that anything here may take on a machine that is busy with other things.
PATIENCE = 40.0

CONFIG = """
[storage]
use = "sqlite"
path = "jobs.db"
[broker]
lease = 1.0
renewal = 0.2
[client.reconnect]
first = 0.01
max = 0.2
[worker]
grace = 0.5
concurrency = 8
"""


class Deployment:
    """A folder with a configuration, a ledger and the processes that work there."""

    patience = PATIENCE

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "plugq.toml"
        self.config.write_text(CONFIG)
        self.processes: list[subprocess.Popen[str]] = []

    def configure(self, **changes: str) -> None:
        """Replace values of the configuration, before anything is started."""
        text = self.config.read_text()
        for key, value in changes.items():
            text, number = re.subn(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
            assert number == 1, key
        self.config.write_text(text)

    def client(self) -> plugq.Client:
        return plugq.connect(self.config)

    def worker(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(APP), str(self.config)],
            env={**os.environ, "LEDGER": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    async def stopped(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        """Stop a worker as a process manager would and return its last state."""
        process.terminate()
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE)
        assert process.returncode == 0, err
        state: dict[str, Any] = json.loads(out)
        return state

    def facts(self, kind: str) -> list[list[str]]:
        try:
            lines = (self.folder / "ledger").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [parts for line in lines if (parts := line.split())[0] == kind]

    def pause(self, process: subprocess.Popen[str]) -> None:
        """Stop a process in its tracks, but never while it has the file locked.

        Nobody could write until it goes on: that is what SQLite does, and not what is tested here.
        """
        db = sqlite3.connect(self.folder / "jobs.db", isolation_level=None, timeout=PATIENCE)
        with contextlib.closing(db):
            db.execute("BEGIN IMMEDIATE")
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            db.execute("ROLLBACK")

    def let_go(self, process: subprocess.Popen[str]) -> None:
        (self.folder / f"go-{process.pid}").touch()

    async def until(self, what: Callable[[], bool], why: str) -> None:
        """Look at the ledger until it says so: the only thing that other processes can tell."""
        end = time.monotonic() + PATIENCE
        while not what():
            if time.monotonic() > end:
                pytest.fail(f"{why}: {(self.folder / 'ledger').read_text()}")
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.communicate()


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    one = Deployment(tmp_path)
    yield one
    one.close()
