"""``plugq demo`` on Redis: a worker is killed in the middle of real work, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

#: Seconds that the demonstration may take on a machine that is busy with other things.
PATIENCE = 110.0
CONFIG = """
[storage]
use = "redis"
url = "{url}"

[worker]
concurrency = 8

[broker]
lease = "1s"
renewal = "250ms"

[client.reconnect]
max = "250ms"
"""


def demonstrate(folder: Path, url: str) -> dict[str, Any]:
    file = folder / "plugq.toml"
    file.write_text(CONFIG.format(url=url), "utf-8")
    run = subprocess.run(
        [sys.executable, "-m", "plugq", "demo", "--jobs", "400", "--json", "--config", str(file)],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={key: value for key, value in os.environ.items() if not key.startswith("PLUGQ_")},
    )
    assert run.returncode == 0, run.stderr
    report: dict[str, Any] = json.loads(run.stdout)
    return report


@pytest.mark.timeout(2 * PATIENCE)
def test_nothing_is_lost_when_a_worker_is_killed(server: str, tmp_path: Path) -> None:
    report = demonstrate(tmp_path, server)
    assert (report["lost"], report["right"]) == (0, 400)
    assert report["crashed"] == report["recovered"] == report["held"]
