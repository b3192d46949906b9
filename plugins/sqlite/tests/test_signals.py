"""The sockets of the wake-ups: private, cleaned up, and deaf to what is not a packet of ours."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from plugq.errors import Unavailable
from plugq.job import JobRef
from plugq.protocols import (
    BACKLOG,
    Cancel,
    ClaimRequest,
    Finished,
    NewJob,
    Notice,
    Resync,
    SweepRequest,
    Wake,
)
from plugq_sqlite import SqliteStorage, _signals
from plugq_sqlite._signals import Delivery, Postman, packets, reachable, runtime_folder

OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]
Claims = Callable[..., ClaimRequest]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")

HOSTILE = [
    b"",
    b"\xff" * 100,
    b"\x92",
    msgspec.msgpack.encode([2, [["wake"]]]),
    msgspec.msgpack.encode([1, [{"type": "unheard_of"}]]),
    msgspec.msgpack.encode([1, [{"type": "finished", "refs": [["q", 7]]}]]),
    msgspec.msgpack.encode({"version": 1}),
    msgspec.msgpack.encode([1, 10**12]),
    os.urandom(60_000),
]


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(5)
        bound.bind(str(tmp_path / "r.s"))
        yield bound


def deliver(address: str, notice: Notice) -> None:
    postman = Postman()
    assert postman.send(address, [notice]) is Delivery.SENT
    postman.close()


def decoded(data: bytes) -> list[object]:
    return list(_signals._decode(data).notices)


async def test_what_is_no_packet_of_ours_is_ignored(open_store: OpenStore) -> None:
    async with open_store() as storage:
        notices = storage.watch("p")
        assert await anext(notices) == Resync()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as enemy:
            for data in HOSTILE:
                enemy.sendto(data, notices.address)
                # The watcher empties its buffer before the next, or it would be full.
                await asyncio.sleep(0)
        deliver(notices.address, Wake())
        assert await anext(notices) == Wake()


async def test_the_socket_lies_where_only_its_user_may_go(open_store: OpenStore) -> None:
    async with open_store() as storage:
        notices = storage.watch("p")
        await anext(notices)
        folder = await asyncio.to_thread(Path(notices.address).parent.stat)
        assert stat.S_IMODE(folder.st_mode) == 0o700
        assert folder.st_uid == os.getuid()
        assert len(os.fsencode(notices.address)) <= 103


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, however many tests there are."""
    with tempfile.TemporaryDirectory(prefix="plugq-") as folder:
        yield Path(folder)


def test_a_folder_that_others_may_enter_is_not_used(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_folder = short_path / f"plugq-{os.getuid()}"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    assert runtime_folder() != open_folder
    open_folder.chmod(0o700)
    assert runtime_folder() == open_folder


def test_a_folder_with_a_long_path_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    assert deep not in runtime_folder().parents


def test_sockets_of_dead_processes_are_removed(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))
    folder = runtime_folder()
    paths = {name: folder / f"{name}.s" for name in ("dead", "young", "alive")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as alive:
        alive.bind(str(paths["alive"]))
        for name in ("dead", "young"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gone:
                gone.bind(str(paths[name]))
        for name in ("dead", "alive"):
            os.utime(paths[name], (0, 0))
        assert runtime_folder() == folder
        assert sorted(entry.stem for entry in folder.iterdir()) == ["alive", "young"]
        assert reachable(str(paths["young"])) is Delivery.DEAD
        assert reachable(str(paths["alive"])) is Delivery.SENT


def test_long_lists_travel_in_pieces_and_very_long_ones_as_a_resync() -> None:
    refs = tuple(JobRef("queue", f"{number:036}") for number in range(1_000))
    pieces = packets([Wake(), Finished(refs)])
    assert len(pieces) > 1
    assert all(len(piece) <= 16_000 for piece in pieces)
    arrived = [notice for piece in pieces for notice in decoded(piece)]
    assert arrived[0] == Wake()
    assert refs == tuple(
        ref for notice in arrived if isinstance(notice, Finished) for ref in notice.refs
    )
    [packet] = packets([Finished(refs * 10)])
    assert decoded(packet) == [Resync()]


def fill(postman: Postman, address: str, notice: Notice) -> int:
    """Send until the buffer is full, and return how many notices that took."""
    for count in itertools.count(1):
        if postman.send(address, [notice]) is Delivery.FULL:
            return count
    raise AssertionError


def drain(receiver: socket.socket) -> list[object]:
    """Return what the buffer holds."""
    receiver.setblocking(False)
    notices: list[object] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            notices += decoded(receiver.recv(65_536))
    return notices


def test_what_a_full_buffer_does_not_take_follows_in_order(receiver: socket.socket) -> None:
    postman = Postman()
    address = receiver.getsockname()
    sent = fill(postman, address, Wake())
    tail = [Finished((JobRef("q", str(number)),)) for number in range(5)]
    assert {postman.send(address, [notice]) for notice in tail} == {Delivery.FULL}
    received = drain(receiver)
    while postman.waiting:
        postman.retry()
        received += drain(receiver)
    assert received == [Wake()] * sent + tail
    postman.close()


def test_a_receiver_that_leaves_too_much_is_told_to_resync(receiver: socket.socket) -> None:
    postman = Postman()
    address = receiver.getsockname()
    sent = fill(postman, address, Wake())
    for _ in range(64):
        assert postman.send(address, [Wake()]) is Delivery.FULL
    received = drain(receiver)
    postman.retry()
    received += drain(receiver)
    assert received == [Wake()] * (sent - 1) + [Resync()]
    assert not postman.waiting
    postman.close()


def test_a_socket_that_is_closed_or_gone_is_dead(receiver: socket.socket) -> None:
    postman = Postman()
    address = receiver.getsockname()
    fill(postman, address, Wake())
    receiver.close()
    postman.retry()
    assert not postman.waiting
    assert postman.send(address, [Wake()]) is Delivery.DEAD
    Path(address).unlink()
    assert postman.send(address, [Wake()]) is Delivery.DEAD
    postman.close()


async def test_a_slow_peer_gets_everything_in_the_end(
    open_store: OpenStore, new_job: NewJobs, receiver: socket.socket
) -> None:
    async with open_store() as storage:
        address = receiver.getsockname()
        await storage._writer.call(lambda tx: tx.know_peer("slow", address))
        refs: list[JobRef] = []
        while not storage._writer._postman.waiting:
            refs.append(JobRef("q", f"id-{len(refs)}"))
            await storage.submit([new_job(refs[-1].id, origin="slow")])
            await storage.edit(Cancel(refs=(refs[-1],)))
        loop = asyncio.get_running_loop()
        received: list[JobRef] = []
        while len(received) < len(refs):
            data = await loop.run_in_executor(None, receiver.recv, 65_536)
            received += [
                ref
                for notice in decoded(data)
                if isinstance(notice, Finished)
                for ref in notice.refs
            ]
        assert received == refs


async def test_a_peer_that_was_taken_for_dead_is_known_again(
    open_store: OpenStore, new_job: NewJobs, claim: Claims
) -> None:
    async with open_store() as storage:
        notices = storage.watch("p")
        await anext(notices)
        await storage._writer.call(lambda tx: tx.forget_peer("p", notices.address))
        await storage.claim(claim(1, peer="p"))
        await storage.submit([new_job()])
        assert await anext(notices) == Wake()


async def test_references_that_nobody_fetches_become_a_resync(open_store: OpenStore) -> None:
    async with open_store() as storage:
        notices = storage.watch("p")
        assert await anext(notices) == Resync()
        refs = tuple(JobRef("q", str(number)) for number in range(BACKLOG + 1))
        notices._take(Finished(refs))
        assert await anext(notices) == Resync()


async def test_peers_of_one_process_are_woken_the_same_way(
    open_store: OpenStore, new_job: NewJobs, claim: Claims
) -> None:
    async with open_store() as one, open_store() as other:
        for storage in (one, other):
            notices = storage.watch("p")
            await anext(notices)
            await storage.claim(claim(1, peer="p"))
            await one.submit([new_job("a")])
            assert await anext(notices) == Wake()
            await one.edit(Cancel(refs=(JobRef("q", "a"),)))
            await notices.aclose()


async def test_a_sweep_forgets_peers_that_ended_without_a_word(
    open_store: OpenStore, receiver: socket.socket
) -> None:
    async with open_store() as storage:
        address = receiver.getsockname()
        await storage._writer.call(lambda tx: tx.know_peer("gone", address))
        await storage._writer.call(lambda tx: tx.db.execute("UPDATE peer SET probed = 0"))
        receiver.close()
        await storage.sweep(SweepRequest())
        left = await storage._writer.call(lambda tx: tx.db.execute("SELECT * FROM peer").fetchall())
        assert left == []


async def test_a_watch_ends_with_its_storage(open_store: OpenStore) -> None:
    async with open_store() as storage:
        notices = storage.watch("p")
        await anext(notices)
        waiting = asyncio.ensure_future(anext(notices))
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting


async def test_a_cancelled_wait_loses_no_notice(open_store: OpenStore) -> None:
    async with open_store() as storage:
        notices = storage.watch("p")
        await anext(notices)
        waiting = asyncio.ensure_future(anext(notices))
        await asyncio.sleep(0)
        deliver(notices.address, Wake())
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await anext(notices) == Wake()


async def test_no_folder_for_sockets_is_said_in_one_line(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_folder(folder: Path, uid: int) -> bool:
        return False

    monkeypatch.setattr(_signals, "_is_ours", no_folder)
    async with open_store() as storage:
        with pytest.raises(Unavailable, match="no folder for wake-up sockets"):
            await anext(storage.watch("p"))


async def test_an_idle_peer_that_polls_writes_nothing(open_store: OpenStore, claim: Claims) -> None:
    async with open_store() as storage:
        notices = storage.watch("p")
        await anext(notices)
        await storage.claim(claim(1, peer="p"))
        before = await storage._writer.call(lambda tx: tx.db.total_changes)
        await storage.claim(claim(1, peer="p"))
        assert await storage._writer.call(lambda tx: tx.db.total_changes) == before
