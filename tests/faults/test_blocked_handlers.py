"""Handlers that block their loop or thread for many lease lengths run once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import plugq

LEASE = 0.5
BLOCK = 5 * LEASE


@pytest.mark.parametrize("kind", ["coroutine", "function"])
@pytest.mark.parametrize("storage", ["memory", "sqlite"])
async def test_a_handler_that_blocks_for_five_leases_runs_once(
    kind: str, storage: str, tmp_path: Path
) -> None:
    app = plugq.App()
    runs: list[int] = []

    @app.task("block")
    async def coroutine() -> int:
        runs.append(plugq.current().attempt)
        time.sleep(BLOCK)  # noqa: ASYNC251 - the fault under test
        return plugq.current().attempt

    if kind == "function":
        app = plugq.App()

        @app.task("block")
        def function() -> int:
            runs.append(plugq.current().attempt)
            time.sleep(BLOCK)
            return plugq.current().attempt

    config: dict[str, Any] = {
        "broker": {"lease": LEASE, "renewal": 0.1},
        "client": {"reconnect": {"first": 0.01, "max": 0.1}},
    }
    if storage == "sqlite":
        config["storage"] = {"use": "sqlite", "path": str(tmp_path / "jobs.db")}
    async with app.running(config) as client:
        handle = await client.submit(plugq.job("block"))
        assert await handle.result(20) == 1
        stats = await client.stats()
    assert runs == [1]
    assert stats.queues[0].totals["lease_ended"] == 0
    assert stats.queues[0].totals["started"] == 1
