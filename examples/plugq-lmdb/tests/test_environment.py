"""What the contract can not do by itself: bad folders, full maps, and processes that hold on."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import lmdb
import pytest

from plugq.errors import ConfigError, InvalidJob, Unavailable
from plugq.protocols import PluginContext, Storage
from plugq.protocols.storage import ClaimRequest, NewJob, SweepRequest
from plugq.testing.contract.outage import Outages
from plugq_lmdb import LmdbOptions, LmdbStorage
from plugq_lmdb._options import FIRST_SIZE

MEBIBYTE = b"x" * 2**20

#: Holds the write lock until its input ends, or until it is killed.
HOLDER = """
import lmdb, sys
env = lmdb.open(sys.argv[1], map_size=int(sys.argv[2]))
with env.begin(write=True) as txn:
    txn.put(b"~", b"x" * int(sys.argv[3]))
    print("held", flush=True)
    sys.stdin.read()
"""

#: Reads until it is killed.
READER = """
import lmdb, sys
env = lmdb.open(sys.argv[1])
with env.begin() as txn:
    print("held", flush=True)
    sys.stdin.read()
"""


def job(id: str, body: bytes = b"{}", lane: str | None = None) -> NewJob:
    return NewJob(queue="q", id=id, task="t", submission=b"s", body=body, lane=lane)


def storage_in(folder: Path, **options: object) -> LmdbStorage:
    return LmdbStorage(LmdbOptions(path="jobs", **options), PluginContext(base_dir=folder))  # type: ignore[arg-type]


@contextmanager
def holder(
    folder: Path, size: int = FIRST_SIZE, count: int = 1, program: str = HOLDER
) -> Iterator[subprocess.Popen[str]]:
    """Run another process that holds the write lock while the block runs."""
    (store,) = (folder / "jobs").iterdir()
    arguments = [str(store), str(size), str(count)]
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


class TestLockedStore(Outages):
    """Another process holds the write lock for longer than a write waits."""

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = LmdbStorage(LmdbOptions(path="jobs", lock_timeout="250ms"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    @asynccontextmanager
    async def outage(self, context: PluginContext) -> AsyncIterator[None]:
        with holder(context.base_dir):
            yield


async def claimed(storage: LmdbStorage, number: int = 1) -> list[str]:
    request = ClaimRequest(worker="w", number=number, queues=("q",), limit=1000)
    return [lease.id for lease in (await storage.claim(request)).leases]


async def test_a_folder_that_can_not_be_used_is_a_config_error(tmp_path: Path) -> None:
    for path in ("", " ", "a\0b"):
        with pytest.raises(ConfigError, match=r"^storage\.path: name a folder"):
            LmdbStorage(LmdbOptions(path=path), PluginContext(base_dir=tmp_path))
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(ConfigError, match=r"^storage\.path: .* can not be made a folder"):
        await storage_in(tmp_path).start()


async def test_a_file_of_something_else_is_a_config_error(tmp_path: Path) -> None:
    folder = tmp_path / "jobs" / "default.lmdb"
    folder.mkdir(parents=True)
    (folder / "data.mdb").write_bytes(b"no store of anything" * 1000)
    with pytest.raises(ConfigError, match=r"^storage\.path: .* holds no store") as caught:
        await storage_in(tmp_path).start()
    assert "\n" not in str(caught.value)


def test_options_that_can_not_work_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^storage\.max_size: give"):
        storage_in(tmp_path, max_size=1)
    with pytest.raises(ConfigError, match="lock_timeout"):
        storage_in(tmp_path, lock_timeout="soon")


async def test_the_map_grows(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    await storage.start()
    count = 2 * FIRST_SIZE // len(MEBIBYTE)
    for number in range(count):
        await storage.submit([job(str(number), MEBIBYTE)])
    assert len(await claimed(storage)) == count
    await storage.stop()


async def test_a_full_map_says_what_to_change_and_leaves_the_rest_whole(tmp_path: Path) -> None:
    storage = storage_in(tmp_path, max_size=FIRST_SIZE)
    await storage.start()
    await storage.submit([job("small")])
    with pytest.raises(Unavailable, match=r"raise storage\.max_size"):
        await storage.submit([job(str(number), MEBIBYTE) for number in range(80)])
    assert await claimed(storage) == ["small"]
    await storage.stop()


async def test_a_call_that_fails_undoes_nothing_but_itself(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    await storage.start()
    calls = [job("a"), job("\udc80"), job("b")]
    answers = await asyncio.gather(
        *(storage.submit([call]) for call in calls), return_exceptions=True
    )
    assert isinstance(answers[1], InvalidJob)
    assert await claimed(storage) == ["a", "b"]
    await storage.stop()


async def test_a_map_that_another_process_has_made_larger_is_taken_over(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    await storage.start()
    await storage.submit([job("a")])
    with holder(tmp_path, 4 * FIRST_SIZE, 2 * FIRST_SIZE) as other:
        assert other.stdin is not None
        other.stdin.close()
        assert other.wait() == 0
    assert len((await storage.stats()).queues) == 1
    assert await claimed(storage) == ["a"]
    await storage.stop()


async def test_a_write_that_gets_no_turn_is_unavailable_and_does_not_happen(tmp_path: Path) -> None:
    storage = storage_in(tmp_path, lock_timeout=0.1)
    await storage.start()
    with holder(tmp_path):
        with pytest.raises(Unavailable, match=r"raise storage\.lock_timeout"):
            await storage.submit([job("a")])
        # Readers wait for nobody.
        assert (await storage.stats()).queues == ()
    await storage.stop()
    again = storage_in(tmp_path)
    await again.start()
    assert await claimed(again) == []
    await again.stop()


async def test_a_store_that_is_locked_can_be_stopped_and_started_again(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    storage = storage_in(tmp_path, lock_timeout=0.1)
    await storage.start()
    await storage.submit([job("a")])
    with holder(tmp_path):
        await storage.stop()
        for _ in range(2):
            with pytest.raises(Unavailable, match=r"raise storage\.lock_timeout"):
                await storage.start()
    await storage.start()
    assert await claimed(storage) == ["a"]
    await storage.stop()
    assert set(threading.enumerate()) == threads


async def test_what_is_stopped_while_locked_is_closed_once_the_lock_is_free(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    storage = storage_in(tmp_path, lock_timeout=0.1)
    await storage.start()
    with holder(tmp_path):
        await storage.stop()
    for thread in set(threading.enumerate()) - threads:
        thread.join()
    lmdb.open(str(tmp_path / "jobs" / "default.lmdb")).close()


async def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    await storage.start()
    with holder(tmp_path) as other:
        waiting = asyncio.ensure_future(storage.submit([job("a")]))
        os.kill(other.pid, signal.SIGKILL)
        await waiting
    assert await claimed(storage) == ["a"]
    await storage.stop()


async def test_a_sweep_lets_go_of_what_a_killed_process_was_reading(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    await storage.start()
    with holder(tmp_path, program=READER) as other:
        pass
    environment = storage._environment
    assert environment is not None
    assert str(other.pid) in environment._env.readers()
    await storage.sweep(SweepRequest())
    assert str(other.pid) not in environment._env.readers()
    await storage.stop()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_child_process_opens_the_store_anew(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    await storage.start()
    await storage.submit([job("a")])

    def child() -> None:
        async def submit() -> None:
            mine = storage_in(tmp_path)
            await mine.start()
            await mine.submit([job("b")])
            await mine.stop()

        asyncio.run(submit())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert await claimed(storage) == ["a", "b"]
    await storage.stop()


async def test_nothing_is_left_open(tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    one, two = storage_in(tmp_path), storage_in(tmp_path)
    await one.start()
    await two.start()
    await one.submit([job("a")])
    await one.stop()
    assert await claimed(two) == ["a"]
    await two.stop()
    assert set(threading.enumerate()) == threads
    # LMDB would refuse to open a folder that this process has open.
    lmdb.open(str(tmp_path / "jobs" / "default.lmdb")).close()


async def test_namespaces_are_stores_of_their_own(tmp_path: Path) -> None:
    context = PluginContext(base_dir=tmp_path, namespace="../other")
    other = LmdbStorage(LmdbOptions(path="jobs"), context)
    storage = storage_in(tmp_path)
    await storage.start()
    await other.start()
    await storage.submit([job("a")])
    assert await claimed(other) == []
    assert len(list((tmp_path / "jobs").iterdir())) == 2
    await storage.stop()
    await other.stop()
