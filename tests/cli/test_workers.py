"""``plugq workers``: who is alive, for people and for programs."""

from __future__ import annotations

import json
import signal
import socket
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell

TITLES = "KIND\tID\tHOST\tPID\tQUEUES\tTASKS\tRUNNING\tSLOTS\tSTATE\tSTARTED\tLAST SEEN\n"


def test_nobody_is_alive(invoke: Invoke, shop: Shell) -> None:
    assert invoke("workers").output == TITLES
    assert invoke("workers", "--json").output == "[]\n"


def test_a_worker_is_listed_while_it_runs(invoke: Invoke, shop: Shell) -> None:
    shop.write("jobs.py", (shop.folder / "jobs.py").read_text() + HOSTILE)
    worker = shop.start("worker", "--concurrency=3", "--queue=b", "--queue=a")
    worker.wait_for("plugq worker")
    while not (found := json.loads(invoke("workers", "--json").output)):
        assert not worker.ended, worker.output
    (one,) = found
    assert one["kind"] == "worker"
    assert (one["host"], one["pid"]) == (socket.gethostname(), worker.process.pid)
    assert (one["queues"], one["concurrency"], one["running"]) == (["b", "a"], 3, 0)
    assert "hello" in one["tasks"]
    assert one["draining"] is False
    started, seen = (datetime.fromisoformat(one[name]) for name in ("started_at", "last_seen"))
    assert started.tzinfo is not None
    assert started <= seen

    table = invoke("workers").output
    assert table.startswith(TITLES)
    row = table.splitlines()[1].split("\t")
    assert row[:2] == ["worker", one["id"]]
    assert row[4] == "b, a"
    assert row[6:9] == ["0", "3", "up"]
    assert "odd\\x1b[31m" in row[5]
    assert "\x1b" not in table

    assert worker.end(signal.SIGTERM) == 0
    assert invoke("workers").output == TITLES


HOSTILE = """
@app.task("odd\\x1b[31m")
async def odd() -> None:
    pass
"""
