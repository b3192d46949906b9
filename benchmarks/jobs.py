"""The tasks that the benchmarks run, and the ledger in which every run is marked.

A worker process finds the ledger by its environment. Its file is shared, so that the process that
measures can read it at any time, also after the worker was killed.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

from plugq import App

LEDGER = "PLUGQ_BENCH_LEDGER"
#: With its number a job of this text has arguments of about 100 bytes.
TEXT = "abcdefghijklmnopqrstuvwxyz " * 3

app = App()


class Ledger:
    """One byte for each job, which says how often the job has run."""

    def __init__(self, path: Path, jobs: int = 0) -> None:
        if jobs:
            path.write_bytes(bytes(jobs))
        with path.open("r+b") as file:
            self.marks = mmap.mmap(file.fileno(), 0)

    def finished(self) -> bool:
        return self.marks.find(b"\0") < 0

    def check(self) -> None:
        """Stop everything unless each job has run exactly once."""
        marks = self.marks[:]
        lost, repeated = marks.count(0), len(marks) - marks.count(0) - marks.count(1)
        if lost or repeated:
            message = f"{lost} of {len(marks)} jobs did not run, {repeated} ran more than once"
            raise SystemExit(message)


class _Current:
    ledger: Ledger | None = Ledger(Path(os.environ[LEDGER])) if LEDGER in os.environ else None


def keep(ledger: Ledger) -> None:
    """Let the jobs of this process mark that ledger."""
    _Current.ledger = ledger


def _mark(number: int) -> None:
    assert _Current.ledger is not None
    _Current.ledger.marks[number] += 1


@app.task("noop")
async def noop(number: int, text: str) -> int:
    assert text
    _mark(number)
    return number


@app.task("noop_function")
def noop_function(number: int, text: str) -> int:
    assert text
    _mark(number)
    return number


@app.task("stamp")
async def stamp() -> int:
    return time.time_ns()


@app.task("echo")
async def echo(text: str) -> str:
    return text
