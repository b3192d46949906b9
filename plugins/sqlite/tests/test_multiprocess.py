"""Several real processes on one file: each job once, no lock errors, one wake-up for one job."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from plugq.job import JobRef
from plugq.protocols import Cancel, ClaimRequest, NewJob
from plugq_sqlite import SqliteStorage

HERE = Path(__file__).parent
OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")


class Child:
    """A process of ours that talks in lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin, self._stdout = process.stdin, process.stdout

    async def line(self) -> str:
        return (await self._stdout.readline()).decode().rstrip()

    async def tell(self, text: str) -> None:
        self._stdin.write(text.encode() + b"\n")
        await self._stdin.drain()

    async def end(self) -> None:
        self._stdin.close()
        assert await self.process.wait() == 0


@asynccontextmanager
async def child(script: str, *arguments: object) -> AsyncIterator[Child]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / script),
        *map(str, arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**24,
    )
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_four_processes_claim_each_job_once(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with AsyncExitStack() as stack:
        # They also create the file, all at once.
        children = [
            await stack.enter_async_context(child("claimant.py", tmp_path, f"w-{number}"))
            for number in range(4)
        ]
        assert [await each.line() for each in children] == ["ready"] * 4
        async with open_store() as storage:
            for _ in range(5):
                await storage.submit([new_job() for _ in range(1_000)])
            for each in children:
                await each.tell("go")
            granted = [grant for each in children for grant in json.loads(await each.line())]
            assert len(granted) == 5_000
            assert len({id for id, _ in granted}) == 5_000
            assert len({token for _, token in granted}) == 5_000
            [stats] = (await storage.stats()).tasks
            assert stats.counts["succeeded"] == stats.totals["accepted"] == 5_000
            assert stats.totals["started"] == 5_000
        for each in children:
            await each.end()


async def test_of_a_hundred_idle_peers_one_job_wakes_exactly_one(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_store())
        children = [
            await stack.enter_async_context(child("watchers.py", tmp_path, number, 25))
            for number in range(4)
        ]
        assert [await each.line() for each in children] == ["ready"] * 4

        await storage.submit([new_job("the one")])
        # A peer gets its notices in order: the end of a job of its own proves that it was sent
        # no other before.
        peers = [f"{number}-{place}" for number in range(4) for place in range(25)]
        await storage.submit([new_job(peer, queue="other", origin=peer) for peer in peers])
        await storage.edit(cancel_all("other", peers))

        woken: list[str] = []
        for each in children:
            finished = 0
            while finished < 25:
                kind, peer = (await each.line()).split()
                finished += kind == "finished"
                woken += [peer] * (kind == "woken")
        assert len(woken) == 1
        for each in children:
            await each.end()


async def test_a_job_wakes_another_peer_when_the_first_was_killed(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with AsyncExitStack() as stack:
        storage = await stack.enter_async_context(open_store())
        alive = await stack.enter_async_context(child("watchers.py", tmp_path, "alive", 1))
        assert await alive.line() == "ready"
        async with child("watchers.py", tmp_path, "dead", 10) as dead:
            assert await dead.line() == "ready"
            dead.process.kill()
            await dead.process.wait()
        await storage.submit([new_job()])
        assert await alive.line() == "woken alive-0"
        await alive.end()


def cancel_all(queue: str, ids: list[str]) -> Cancel:
    return Cancel(refs=tuple(JobRef(queue, id) for id in ids))


async def test_what_a_killed_process_wrote_is_there(
    tmp_path: Path, open_store: OpenStore, new_job: NewJobs
) -> None:
    async with open_store() as storage:
        await storage.submit([new_job(str(number)) for number in range(100)])
        async with child("claimant.py", tmp_path, "killed") as claimant:
            assert await claimant.line() == "ready"
            claimant.process.kill()
            await claimant.process.wait()
        request = ClaimRequest(worker="w", number=1, queues=("q",), limit=100)
        assert len((await storage.claim(request)).leases) == 100
