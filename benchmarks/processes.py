"""The processes that a benchmark starts, and what they cost."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return an environment in which processes find the tasks of the benchmarks."""
    found = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found), **(extra or {})}


@contextlib.contextmanager
def worker(
    config: Path,
    *,
    concurrency: int | None = None,
    extra: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Run ``plugq worker`` while the block runs, which begins when the worker is ready."""
    command = [sys.executable, "-m", "plugq", "worker", f"--config={config}"]
    if concurrency is not None:
        command.append(f"--concurrency={concurrency}")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment(extra)
    ) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            if not said.startswith("plugq worker"):
                message = f"the worker did not start: {said!r}"
                raise SystemExit(message)
            yield process
        finally:
            process.terminate()
            code = process.wait(30)
    if code:
        message = f"the worker ended with exit code {code}"
        raise SystemExit(message)


class Station:
    """A process of ``station.py``, which tells what it has done whenever it is asked."""

    def __init__(self, config: Path, role: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, HERE / "station.py", config, role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.role = role
        self._answer()

    def ask(self) -> dict[str, Any]:
        """Return its storage calls by verb, its processor time in seconds and the moment."""
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            message = f"the {self.role} process ended with exit code {self._process.wait(30)}"
            raise SystemExit(message)
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


def processor_time(pid: int) -> float | None:
    """Return the seconds of processor time that another process has used, on Linux."""
    if sys.platform != "linux":
        return None
    # clock_getcpuclockid(3): the clock of a process is made of its number.
    return time.clock_gettime((~pid << 3) | 2)


def resident(pid: int) -> float | None:
    """Return the resident memory of a process in MiB, on Linux."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else None
