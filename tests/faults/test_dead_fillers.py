"""A process that is killed while it holds a batch open."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

import plugq
from plugq.client.holds import HOLD_TTL
from plugq.testing import ManualClock

FILLER = """
import asyncio, json, sys
import plugq

async def fill():
    async with plugq.connect(json.loads(sys.argv[1])) as client, client.batch("b"):
        await client.submit(plugq.job("t"), batch="b", id="a")
        print("filling", flush=True)
        await asyncio.Event().wait()

asyncio.run(fill())
"""

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("plugq_sqlite") is None, reason="plugq-sqlite is not installed"
)


@pytest.fixture
def config(tmp_path: Path) -> dict[str, dict[str, str]]:
    """A store in which a process that is dead holds the batch open."""
    config = {"storage": {"use": "sqlite", "path": str(tmp_path / "jobs.db")}}
    with subprocess.Popen(
        [sys.executable, "-c", FILLER, json.dumps(config)], stdout=subprocess.PIPE, text=True
    ) as filler:
        assert filler.stdout is not None
        try:
            assert filler.stdout.readline() == "filling\n"
        finally:
            filler.kill()
    return config


async def test_a_filler_that_is_killed_frees_its_batch(config: dict[str, dict[str, str]]) -> None:
    # A storage's clock never runs backwards: this one goes on where the other process ended.
    clock = ManualClock(time.time())
    async with plugq.connect(config, clock=clock) as client:
        assert await client.cancel(batch="b") == ["cancelled"]
        with pytest.raises(plugq.WaitTimeout, match="still held open by somebody who fills it"):
            await client.batch("b").wait(0.2)
        waiting = asyncio.create_task(client.batch("b").wait())
        while clock.sleeping < 1:
            await asyncio.sleep(0)
        clock.advance(HOLD_TTL)
        assert (await waiting)["cancelled"] == 1
