"""Writes the report of docs/storages.md: ``nox -s report``, or ``python tests/report.py``.

It runs the conformance kit on each storage, as its own tests do: those bring the servers, the hooks
for outages and what counts work. ``PLUGQ_TEST_REDIS_SERVER`` and ``PLUGQ_TEST_POSTGRES_PROGRAMS``
choose other servers than those that are found. Fails if a storage does not conform.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "storages.md"
BEGIN, END = "<!-- report: nox -s report -->", "<!-- end of the report -->"
PLUGINS = ROOT / "plugins"
#: By the name of its column: the tests of the contract on a storage.
STORAGES = {
    "memory": ROOT / "tests" / "unit" / "builtin" / "test_memory.py::TestMemoryStorage",
    "SQLite": PLUGINS / "sqlite" / "tests" / "test_conformance.py::TestSqlite",
    "Redis": PLUGINS / "redis" / "tests" / "test_conformance.py::TestRedis",
    "Redis Cluster": PLUGINS / "redis" / "tests" / "test_cluster_conformance.py::TestRedisCluster",
    "PostgreSQL": PLUGINS / "postgres" / "tests" / "test_conformance.py::TestPostgres",
}
#: Seconds that one test may take on a machine that is busy with other things.
LIMIT = 300


def run(name: str) -> dict[str, Any]:
    """Return what ``plugq conformance`` says of a storage."""
    target = str(STORAGES[name].relative_to(ROOT))
    command = [sys.executable, "-m", "plugq", "conformance", target, "--json"]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, "--timeout", str(LIMIT)], check=False, cwd=ROOT, stdout=subprocess.PIPE
    )
    if not done.stdout:
        sys.exit(f"{name}: the kit could not be run")
    found: dict[str, Any] = json.loads(done.stdout)
    sys.stderr.write(f"{name}: {found['summary']} · {time.monotonic() - begun:.0f} s\n")
    return found


def report(found: dict[str, dict[str, Any]], kit: str) -> str:
    """Return what stands between the marks of the page."""
    names = list(found)
    capabilities = list(found[names[0]]["capabilities"])
    levels = list(found[names[0]]["levels"])
    rows = [["", *names], ["---"] * (len(names) + 1)]
    rows.append(["on", *(found[name]["server"] or "–" for name in names)])
    rows += [[level, *(_tally(found[name]["levels"][level]) for name in names)] for level in levels]
    for capability in capabilities:
        verdicts = (found[name]["capabilities"][capability] for name in names)
        rows.append([f"`{capability}`", *verdicts])
    rows.append(["verdict", *(f"**{found[name]['summary']}**" for name in names)])
    parts = [f"The kit of plugq {kit}:", "", *_table(rows), ""]
    parts += ["What was skipped, by level, and why:", ""]
    skipped = {name: _skipped(found[name]) for name in names}
    reasons = sorted({reason for counts in skipped.values() for reason in counts})
    rows = [["", *names], ["---"] * (len(names) + 1)]
    for level, reason in reasons:
        counts = (skipped[name].get((level, reason), 0) for name in names)
        rows.append([f"{level}: {reason}", *(str(count or "") for count in counts)])
    parts += [*_table(rows), ""] if reasons else ["Nothing.", ""]
    failures = [
        f"- {name}, {test['level']}: {_cell(test['promise'])} ({_cell(test['reason'])})"
        for name in names
        for test in found[name]["tests"]
        if test["outcome"] == "failed"
    ]
    if failures:
        parts += ["What failed:", "", *failures, ""]
    return "\n".join(parts)


def _tally(tally: dict[str, int]) -> str:
    return ", ".join(
        f"{tally[outcome]} {outcome}"
        for outcome in ("passed", "failed", "skipped")
        if tally[outcome] or outcome == "passed"
    )


def _skipped(found: dict[str, Any]) -> Counter[tuple[str, str]]:
    return Counter(
        (test["level"], _cell(test["reason"]))
        for test in found["tests"]
        if test["outcome"] == "skipped"
    )


def _table(rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def page(text: str, made: str) -> str:
    """Return the page with a new report."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{made}\n{END}{after}"


def main() -> int:
    """Write the page; given names of storages, print the report on these instead."""
    chosen = sys.argv[1:]
    unknown = set(chosen) - set(STORAGES)
    if unknown:
        sys.exit(f"no storage {', '.join(sorted(unknown))}; there are {', '.join(STORAGES)}")
    names = chosen or list(STORAGES)
    # Two at a time, as each waits for its processes and its server.
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(run, names), strict=True))
    made = report(found, version("plugq"))
    if chosen:
        sys.stdout.write(f"{made}\n")
    else:
        PAGE.write_text(page(PAGE.read_text("utf-8"), made), "utf-8")
    return 0 if all(one["conforms"] for one in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
