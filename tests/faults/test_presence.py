"""Workers as others see them: processes that are killed and stopped, and storages that fail."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.presence import PREFIX, TTL
from plugq.protocols import PluginContext
from plugq.testing import ManualClock

APP = Path(__file__).with_name("ledger_app.py")
#: Seconds that anything here may take on a machine that is busy with other things.
PATIENCE = 40.0


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(APP), str(config)],
        env={**os.environ, "LEDGER": str(config.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


async def pids(client: plugq.Client, number: int) -> set[int]:
    """Return the processes that are listed once they are so many."""
    end = time.monotonic() + PATIENCE
    while True:
        found = {one.pid for one in await client.workers()}
        if len(found) == number:
            return found
        assert time.monotonic() < end, f"{number} were expected, these are listed: {found}"
        await asyncio.sleep(0.02)


async def test_one_that_stops_is_gone_at_once_and_one_that_is_killed_after_its_ttl(
    tmp_path: Path,
) -> None:
    config = tmp_path / "plugq.toml"
    config.write_text('[storage]\nuse = "sqlite"\npath = "jobs.db"\n')
    processes = [start(config) for _ in range(2)]
    try:
        async with plugq.connect(config) as client:
            assert await pids(client, 2) == {one.pid for one in processes}
            killed, stopped = processes
            stopped.terminate()
            out, _ = await asyncio.to_thread(stopped.communicate, timeout=PATIENCE)
            last = json.loads(out)["worker"]
            assert last not in {one.id for one in await client.workers()}
            assert await pids(client, 1) == {killed.pid}
            killed.send_signal(signal.SIGKILL)
            await asyncio.to_thread(killed.communicate, timeout=PATIENCE)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    # Nobody else is left whose time this could disturb.
    later = ManualClock(time.time() + TTL + 1)
    async with plugq.connect(config, clock=later) as client:
        assert await client.workers() == ()


class Failing(MemoryStorage):
    """Fails or hangs whenever somebody says that he is alive, or announces a task."""

    hangs = False

    async def swap(self, changes: Any) -> Any:
        if any(change.key.startswith((PREFIX, "announced:")) for change in changes):
            if self.hangs:
                await asyncio.Event().wait()
            raise plugq.Unavailable("no registers today")
        return await super().swap(changes)


@pytest.mark.parametrize("hangs", [False, True])
async def test_what_can_not_be_told_holds_nothing_up(
    monkeypatch: pytest.MonkeyPatch,
    *,
    hangs: bool,
) -> None:
    monkeypatch.setattr("plugq.presence.ANSWER", 0.05)
    monkeypatch.setattr("plugq.announcement.ANSWER", 0.05)
    app = plugq.App()
    renewed = asyncio.Event()

    @app.task
    async def add(a: int, b: int) -> int:
        return a + b

    @app.task
    async def long() -> int:
        await renewed.wait()
        return plugq.current().attempt

    class Store(Failing):
        async def renew(self, leases: Any, **options: Any) -> Any:
            replies = await super().renew(leases, **options)
            if leases:
                loop.call_soon_threadsafe(renewed.set)
            return replies

    loop = asyncio.get_running_loop()
    store = Store(MemoryOptions(), PluginContext())
    store.hangs = hangs
    assembly = Assembly({"broker": {"lease": 0.6, "renewal": 0.05}}, storage=store)
    worker = plugq.Worker(app, assembly=assembly)
    async with assembly.client(app.tasks) as client, worker:
        assert await client.call(long.job()) == 1
        assert await client.call(add.job(1, 2)) == 3
        while not {"error"} & worker.state()["loops"]["presence"].keys():
            await asyncio.sleep(0.01)
        while not {"error"} & worker.state()["loops"]["announce"].keys():
            await asyncio.sleep(0.01)
        worker.scale(3)
        assert await client.call(add.job(2, 2)) == 4
        assert worker.state()["loops"]["presence"]["running"]
        assert worker.state()["presence"] == {"told": None}
