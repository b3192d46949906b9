"""Two producers and two workers under load while their server fails: the ledger must add up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from plugq.envelope import open_result
from plugq.job import JobRecord, JobRef, JobState
from plugq.protocols import FindQuery
from plugq.protocols.storage import Stats
from plugq.testing.ledger import Expected, Ledger, Line, check
from plugq_redis import RedisStorage

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
StartServer = Callable[..., Any]

APP = Path(__file__).with_name("load_app.py")
PRODUCERS = ("a", "b")
WORKERS = 2
FLAKY = 20
#: Seconds that anything may take on a machine that is busy.
PATIENCE = 40.0
#: Seconds after the end of the last fault by which everything is done.
DRAINED = 20.0
#: Seconds within which a worker that has missed a wake-up looks for jobs by itself.
SLOW_POLL = 12.5
GET = 500


class Fault(NamedTuple):
    """What happens once a share of the jobs has run, and for how many seconds."""

    kind: str
    share: float
    seconds: float


class Load:
    """The processes over one server, and the ledger that they write."""

    def __init__(self, folder: Path, server: Any, number: int, broker: str) -> None:
        self.server = server
        self.number = number
        self.namespace = f"load-{uuid.uuid4().hex}"
        self.ledger = Ledger(folder / "ledger")
        self.config = folder / "plugq.toml"
        self.config.write_text(
            f'namespace = "{self.namespace}"\n[storage]\nuse = "redis"\nurl = "{server.url}"\n'
            f"[broker]\n{broker}\n"
        )
        self.processes: list[subprocess.Popen[str]] = []
        self._read = self._ended = 0

    def start(self, kind: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, str(APP), kind, str(self.config), str(self.ledger.path), *more]
        with (self.ledger.path.parent / f"{kind}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ
            )
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == '"ready"\n', self.said()
        return process

    def ended(self) -> int:
        """Return how many attempts have come to their end."""
        if self.ledger.path.exists():
            with self.ledger.path.open("rb") as file:
                file.seek(self._read)
                whole = file.read().rpartition(b"\n")[0]
            self._read += len(whole)
            self._ended += whole.count(b'"kind":"end"')
        return self._ended

    async def until(self, what: Callable[[], bool], why: str) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end, f"{why}\n{self.said()}"
            await asyncio.sleep(0.02)

    def said(self) -> str:
        logs = sorted(self.ledger.path.parent.glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in logs)

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()

    async def strike(self, fault: Fault) -> float:
        """Let the fault happen, and return when it was over."""
        await getattr(self, f"_{fault.kind}")(fault.seconds)
        return time.monotonic()

    async def _restart(self, seconds: float) -> None:
        await asyncio.to_thread(self.server.stop)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.server.start)

    async def _kill(self, seconds: float) -> None:
        await asyncio.to_thread(self.server.kill)
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.server.start)

    async def _hang(self, seconds: float) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
        os.kill(self.server.pid, signal.SIGCONT)

    async def _storm(self, seconds: float) -> None:
        """Cut all connections, again and again."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for kind in ("normal", "pubsub"):
                await asyncio.to_thread(self.server.command, "CLIENT", "KILL", "TYPE", kind)
            await asyncio.sleep(0.05)


@contextlib.contextmanager
def running(folder: Path, server: Any, number: int, broker: str = "") -> Iterator[Load]:
    load = Load(folder, server, number, broker)
    try:
        yield load
    finally:
        load.close()


async def records_of(storage: RedisStorage) -> list[JobRecord]:
    """Return all jobs with their results."""
    refs: list[JobRef] = []
    cursor: str | None = None
    while True:
        page = await storage.find(FindQuery(cursor=cursor, limit=GET))
        refs += [JobRef(job.queue, job.id) for job in page.jobs]
        cursor = page.cursor
        if cursor is None:
            break
    found: list[JobRecord] = []
    for start in range(0, len(refs), GET):
        found += [job for job in await storage.get(refs[start : start + GET]) if job is not None]
    return found


def counted(stats: Stats, state: str) -> int:
    return sum(task.counts.get(state, 0) for task in stats.tasks)


async def drained(storage: RedisStorage, number: int) -> Stats:
    """Return the counters once every job has ended."""
    async with asyncio.timeout(PATIENCE):
        while True:
            stats = await storage.stats()
            if counted(stats, "succeeded") == number:
                return stats
            await asyncio.sleep(0.02)


async def suffer(load: Load, open_store: OpenStore, faults: list[Fault]) -> dict[str, float]:
    """Run the whole load, hold the ledger against the store, and return figures."""
    began = time.monotonic()
    workers = [load.start("work") for _ in range(WORKERS)]
    share = load.number // len(PRODUCERS)
    producers = [load.start("submit", name, str(share)) for name in PRODUCERS]
    total = share * len(PRODUCERS)
    over = began
    for fault in faults:
        await load.until(lambda: load.ended() >= fault.share * total, "the jobs do not run")  # noqa: B023
        over = await load.strike(fault)
    for producer in producers:
        await load.until(lambda: producer.poll() is not None, "a producer does not end")  # noqa: B023
        assert producer.returncode == 0, load.said()
    async with open_store(load.server.url, namespace=load.namespace) as storage:
        stats = await drained(storage, total)
        ended = time.monotonic()
        records = await records_of(storage)
    states = [await stopped(load, worker) for worker in workers]
    lines = load.ledger.read()
    held_against(lines, records, stats, share)
    if ended - over > SLOW_POLL:
        silent(lines, workers, over)
    assert len(states) == WORKERS
    return {"seconds": ended - began, "seconds after the last fault": ended - over}


async def stopped(load: Load, worker: subprocess.Popen[str]) -> dict[str, Any]:
    worker.terminate()
    said, _ = await asyncio.to_thread(worker.communicate, timeout=PATIENCE)
    assert worker.returncode == 0, load.said()
    state: dict[str, Any] = json.loads(said)
    return state


def held_against(lines: list[Line], records: list[JobRecord], stats: Stats, share: int) -> None:
    """Every job ran as often as its task asks for, and no promise is broken."""
    expected = [
        Expected(id=f"{name}-{number}", payload=number)
        for name in PRODUCERS
        for number in range(share)
    ]
    results = {
        job.id: msgspec.json.decode(open_result(job.result).value)
        for job in records
        if job.result is not None
    }
    assert check(lines, expected, records, stats, results=results, died=0) == []
    assert {job.state for job in records} == {JobState.SUCCEEDED}
    # The server's outages were shorter than the leases, so none was ended.
    assert sum(task.totals["lease_ended"] for task in stats.tasks) == 0
    starts = Counter(line.id for line in lines if line.kind == "start")
    assert starts == {job.id: 1 + (job.payload % FLAKY == 0) for job in expected}


def silent(lines: list[Line], workers: list[subprocess.Popen[str]], since: float) -> None:
    ran = {line.pid for line in lines if line.kind == "start" and line.at > since}
    assert ran == {worker.pid for worker in workers}


@pytest.mark.timeout(300)
async def test_a_few_jobs_survive_all_faults(
    tmp_path: Path, start_server: StartServer, open_store: OpenStore
) -> None:
    server = start_server("--appendonly", "yes", "--appendfsync", "always")
    faults = [
        Fault("kill", 0.1, 0.0),
        Fault("hang", 0.25, 0.3),
        Fault("restart", 0.4, 0.0),
        Fault("storm", 0.55, 0.3),
    ]
    with running(tmp_path, server, 1_000) as load:
        await suffer(load, open_store, faults)


#: Seconds of each of the three outages; the last is longer than a lease.
OUTAGES = (1.0, 3.0, 11.0)
LEASES = 'lease = "10s"\nrenewal = "3s"'


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["restart", "kill", "hang", "storm"])
async def test_many_jobs_survive(
    kind: str, tmp_path: Path, start_server: StartServer, open_store: OpenStore
) -> None:
    number = int(os.environ.get("SOAK_JOBS", "20000"))
    server = start_server("--appendonly", "yes", "--appendfsync", "always")
    pairs = zip((0.15, 0.35, 0.55), OUTAGES, strict=True)
    faults = [Fault(kind, share, seconds) for share, seconds in pairs]
    with running(tmp_path, server, number, LEASES) as load:
        figures = await suffer(load, open_store, faults)
    print(kind, figures)  # noqa: T201 - what a soak has measured
    assert figures["seconds after the last fault"] < DRAINED
