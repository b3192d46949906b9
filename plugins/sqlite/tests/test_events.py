"""Events between processes: how they are packed, what becomes of a listener that does not read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from plugq.events import EventKind, JobEvent
from plugq.job import Progress
from plugq.protocols import (
    BACKLOG,
    ClaimRequest,
    Happened,
    PluginContext,
    Resync,
    SweepRequest,
)
from plugq_sqlite import SqliteOptions, SqliteStorage, _events
from plugq_sqlite._events import RESYNC, datagrams

OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
Claims = Callable[..., ClaimRequest]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")


def numbered(count: int, first: int = 0) -> list[JobEvent]:
    return [
        JobEvent(kind=EventKind.STARTED, queue="q", id="0" * 36, task="task", attempt=number)
        for number in range(first, first + count)
    ]


def opened(data: bytes) -> list[JobEvent]:
    return _events._decode(data).events


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that nobody reads unless the test does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(5)
        bound.bind(str(tmp_path / "deaf.s"))
        yield bound


async def listed(storage: SqliteStorage) -> list[str]:
    found: list[str] = await storage._writer.call(lambda tx: tx.listeners)
    return found


def test_many_events_travel_in_few_datagrams() -> None:
    events = numbered(1000)
    packed = datagrams(events)
    assert len(packed) <= 12
    assert all(len(data) <= 16_384 for data in packed)
    assert [event for data in packed for event in opened(data)] == events


def test_an_event_that_is_too_long_is_shortened_or_stood_for() -> None:
    progress = Progress(current=1, message="m" * 9000, details={"a": "b" * 9000})
    long = JobEvent(kind=EventKind.FAILED, id="a", message="x" * 9000, progress=progress)
    [data] = datagrams([long])
    [event] = opened(data)
    assert (event.id, len(event.message)) == ("a", 500)
    assert event.progress == Progress(current=1, message="m" * 500)
    before, after = numbered(2)
    for hopeless in ("x" * 20_000, "\udc80"):
        event = JobEvent(kind=EventKind.FAILED, id=hopeless)
        assert [opened(data) for data in datagrams([before, event, after])] == [
            [before],
            [],
            [after],
        ]
    assert opened(RESYNC) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 100,
        b"\x92",
        msgspec.msgpack.encode([2, [{"kind": "started"}]]),
        msgspec.msgpack.encode([1, [{"kind": "unheard_of"}]]),
        msgspec.msgpack.encode([1, [{"kind": "started", "attempt": "7"}]]),
        msgspec.msgpack.encode([1, 10**12]),
        RESYNC,
        os.urandom(60_000),
    ],
)
async def test_what_can_not_be_read_may_have_been_an_event(
    open_store: OpenStore, data: bytes
) -> None:
    async with open_store() as storage:
        stream = storage.listen()
        assert await anext(stream) == Resync()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as enemy:
            enemy.sendto(data, stream.address)
            assert await anext(stream) == Resync()
            enemy.sendto(datagrams(numbered(1))[0], stream.address)
            assert await anext(stream) == Happened(tuple(numbered(1)))


async def test_a_listener_that_does_not_read_is_told_that_it_missed_something(
    open_store: OpenStore, deaf: socket.socket
) -> None:
    async with open_store() as storage:
        address = deaf.getsockname()
        await storage._writer.call(lambda tx: tx.know_listener(address))
        assert storage.listened
        flood = 3 * BACKLOG
        for first in range(0, flood, 1000):
            storage.tell(numbered(1000, first))
            await storage.sweep(SweepRequest())
        received = [await asyncio.to_thread(deaf.recv, 65_536)]
        while received[-1] != RESYNC:
            received.append(await asyncio.to_thread(deaf.recv, 65_536))
        heard = [event.attempt for data in received for event in opened(data)]
        assert heard == list(range(len(heard)))
        assert len(heard) < flood
        assert await listed(storage) == [address]


async def test_what_is_told_while_the_file_is_locked_is_bounded(
    open_store: OpenStore, deaf: socket.socket
) -> None:
    async with open_store() as storage:
        address = deaf.getsockname()
        await storage._writer.call(lambda tx: tx.know_listener(address))
        writer = storage._writer
        busy, free = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            busy.set()
            free.wait(20)

        holding = asyncio.ensure_future(writer.call(hold))
        await asyncio.to_thread(busy.wait)
        for first in range(0, 2 * BACKLOG, 1000):
            storage.tell(numbered(1000, first))
            assert len(writer._told) <= BACKLOG
        assert len(writer._told) < BACKLOG
        free.set()
        await holding
        assert await asyncio.to_thread(deaf.recv, 65_536) == RESYNC


async def test_a_dead_listener_is_forgotten_by_whoever_tells(
    open_store: OpenStore, deaf: socket.socket
) -> None:
    async with open_store() as storage, open_store() as other:
        await storage._writer.call(lambda tx: tx.know_listener(deaf.getsockname()))
        deaf.close()
        storage.tell(numbered(1))
        # The second of these comes after the thread has sent what was told.
        for _ in range(2):
            await storage.sweep(SweepRequest())
        assert not storage.listened
        assert await listed(other) == []


async def test_a_dead_listener_is_forgotten_by_a_sweep(
    open_store: OpenStore, deaf: socket.socket
) -> None:
    async with open_store() as storage:
        await storage._writer.call(lambda tx: tx.know_listener(deaf.getsockname()))
        stream = storage.listen()
        await anext(stream)
        await storage._writer.call(lambda tx: tx.db.execute("UPDATE listener SET probed = 0"))
        deaf.close()
        await storage.sweep(SweepRequest())
        assert await listed(storage) == [stream.address]
        probed = await storage._writer.call(
            lambda tx: tx.db.execute("SELECT probed FROM listener").fetchone()
        )
        assert probed[0] > 0


async def test_what_was_told_before_the_stop_arrives(
    open_store: OpenStore, deaf: socket.socket
) -> None:
    async with open_store() as storage:
        await storage._writer.call(lambda tx: tx.know_listener(deaf.getsockname()))
        for number in range(20):
            storage.tell(numbered(1, number))
    heard: list[JobEvent] = []
    deaf.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            heard += opened(deaf.recv(65_536))
    assert heard == numbered(20)


async def test_listening_leaves_nothing_behind(open_store: OpenStore) -> None:
    async with open_store() as storage:
        stream = storage.listen()
        await anext(stream)
        path = Path(stream.address)
        assert await asyncio.to_thread(path.exists)
        await stream.aclose()
        assert not await asyncio.to_thread(path.exists)
        assert await listed(storage) == []
        unread = storage.listen()
        await anext(unread)
    assert not await asyncio.to_thread(Path(unread.address).exists)
    async with open_store() as storage:
        assert await listed(storage) == []


async def test_another_namespace_hears_nothing(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as storage:
        context = PluginContext(base_dir=tmp_path, namespace="other")
        other = SqliteStorage(SqliteOptions(path="jobs.db"), context)
        await other.start()
        try:
            stream = other.listen()
            await anext(stream)
            await storage.sweep(SweepRequest())
            assert not storage.listened
        finally:
            await other.stop()


async def test_without_unix_sockets_a_resync_says_when_to_look_again(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugq_sqlite._signals.SUPPORTED", False)
    monkeypatch.setattr(_events, "SUPPORTED", False)
    monkeypatch.setattr(_events, "POLL", 0.001)
    async with open_store() as storage:
        stream = storage.listen()
        for _ in range(3):
            assert await anext(stream) == Resync()
        await storage.sweep(SweepRequest())
        assert not storage.listened
        storage.tell(numbered(1))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
    await asyncio.gather(waiting, return_exceptions=True)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_listening_costs_an_idle_store_no_write(open_store: OpenStore, claim: Claims) -> None:
    async with open_store() as storage:
        await anext(storage.listen())
        before = await storage._writer.call(lambda tx: tx.db.total_changes)
        await storage.claim(claim(1))
        storage.tell(numbered(10))
        assert await storage._writer.call(lambda tx: tx.db.total_changes) == before
