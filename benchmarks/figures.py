"""What was measured: collected by case, told as JSON lines and as a table.

A figure is the list of its runs; what counts is their median, and the spread says how far to trust
it. Ratios are made run by run, between neighbours in time, before their median is taken.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


class Figures:
    """The figures of one benchmark, in the order in which they were first recorded."""

    def __init__(self, benchmark: str) -> None:
        self.benchmark = benchmark
        self.runs: dict[str, list[float]] = {}
        self.units: dict[str, str] = {}

    def record(self, case: str, value: float, unit: str) -> None:
        self.runs.setdefault(case, []).append(value)
        self.units[case] = unit
        print(f"  {self.benchmark}: {case}: {_number(value)} {unit}", file=sys.stderr, flush=True)

    def ratio(self, case: str, over: str) -> None:
        pairs = zip(self.runs.get(case, ()), self.runs.get(over, ()), strict=True)
        ratios = [above / below for above, below in pairs]
        if ratios:
            name = f"{case} / {over}"
            self.runs[name] = ratios
            self.units[name] = "x"

    def percentiles(self, case: str, values: Sequence[float], unit: str) -> None:
        ordered = sorted(values)
        for share in (50, 95, 99):
            at = min(len(ordered) - 1, round(share / 100 * (len(ordered) - 1)))
            self.record(f"{case} p{share}", ordered[at], unit)

    def lines(self) -> list[dict[str, Any]]:
        return [
            {
                "benchmark": self.benchmark,
                "case": case,
                "unit": self.units[case],
                "median": statistics.median(runs),
                "lowest": min(runs),
                "highest": max(runs),
                "runs": runs,
            }
            for case, runs in self.runs.items()
        ]

    def show(self) -> None:
        lines = self.lines()
        for line in lines:
            print(json.dumps(line))
        width = max((len(line["case"]) for line in lines), default=0)
        print(f"\n{self.benchmark.ljust(width)}  {'median':>12}  {'lowest':>12}  {'highest':>12}")
        for line in lines:
            numbers = "  ".join(
                f"{_number(line[key]):>12}" for key in ("median", "lowest", "highest")
            )
            print(f"{line['case'].ljust(width)}  {numbers}  {line['unit']}")
        print(flush=True)


def machine(folder: Path) -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    return {
        "benchmark": "machine",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "plugq": _version("plugq"),
        "uvloop": _version("uvloop"),
        "files": str(folder),
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else platform.machine()


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
