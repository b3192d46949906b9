"""Events that can not be handed over: whoever listens gets a resync in their place."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from pathlib import Path

import pytest

from plugq.events import EventKind, JobEvent
from plugq.protocols import Happened, NewJob, Resync, SweepRequest
from plugq_sqlite import SqliteStorage, _writer
from plugq_sqlite._events import Listener, datagrams
from plugq_sqlite._transaction import Transaction
from plugq_sqlite._writer import Writer

HERE = Path(__file__).parent
OpenStore = Callable[..., AbstractAsyncContextManager[SqliteStorage]]
NewJobs = Callable[..., NewJob]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")

EVENT = JobEvent(kind=EventKind.STARTED, queue="q", id="0" * 36, task="task")


@pytest.fixture
def sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder above that of the sockets, for one test alone."""
    # It also keeps pytest from making the folder of all tests in this one.
    assert tmp_path.is_dir()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pq") as name:
        monkeypatch.setattr(tempfile, "tempdir", name)
        yield Path(name)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every look come soon."""
    monkeypatch.setattr(_writer, "LOOK_EVERY", 0.005)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[Writer]:
    """Whose looks have ended."""
    ended: asyncio.Queue[Writer] = asyncio.Queue()
    look = Writer._look

    def reported(writer: Writer) -> None:
        look(writer)
        if writer._loop is not None:
            writer._loop.call_soon_threadsafe(ended.put_nowait, writer)

    monkeypatch.setattr(Writer, "_look", reported)
    return ended


@asynccontextmanager
async def listening(storage: SqliteStorage) -> AsyncIterator[Listener]:
    stream = storage.listen()
    assert await anext(stream) == Resync()
    yield stream
    await stream.aclose()


async def rows(storage: SqliteStorage) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = await storage._writer.call(
        lambda tx: tx.db.execute("SELECT address, missed FROM listener").fetchall()
    )
    return found


async def tell(storage: SqliteStorage) -> None:
    """Tell an event as one who knows everybody that listens."""
    await storage.sweep(SweepRequest())
    assert storage.listened
    storage.tell([EVENT])


@pytest.mark.usefixtures("impatient")
async def test_processes_that_end_leave_word_for_a_listener_that_does_not_read(
    tmp_path: Path, open_store: OpenStore
) -> None:
    async with open_store() as storage, listening(storage) as stream:
        loop = asyncio.get_running_loop()
        assert stream._socket is not None
        # As if the loop were busy all the while.
        loop.remove_reader(stream._socket)
        filled = 0
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    filler.sendto(datagrams([EVENT])[0], stream.address)
                    filled += 1
        for number in range(2):
            teller = await asyncio.create_subprocess_exec(
                sys.executable, str(HERE / "teller.py"), str(tmp_path), f"job-{number}"
            )
            assert await teller.wait() == 0
            # Nothing can reach it through its socket.
            assert await anext(stream) == Resync()
        assert await rows(storage) == [(stream.address, 0)]
        loop.add_reader(stream._socket, stream._receive)
        heard: list[JobEvent] = []
        while len(heard) < filled:
            happened = await anext(stream)
            assert isinstance(happened, Happened)
            heard += happened.events
        assert heard == [EVENT] * filled


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[None]:
    """Put something into the place of a folder that no path leads through."""
    aside = folder.with_name("aside")
    folder.rename(aside)
    folder.touch()
    yield
    folder.unlink()
    aside.rename(folder)


@contextlib.contextmanager
def shut(folder: Path) -> Iterator[None]:
    if os.geteuid() == 0:
        pytest.skip("root may enter every folder")
    folder.chmod(0)
    yield
    folder.chmod(0o700)


@pytest.mark.usefixtures("sockets", "impatient")
@pytest.mark.parametrize("bar", [replaced, shut])
async def test_a_listener_that_may_not_be_reached_gets_a_resync(
    open_store: OpenStore, bar: Callable[[Path], AbstractContextManager[None]]
) -> None:
    async with open_store() as storage, open_store() as other, listening(storage) as stream:
        with bar(Path(stream.address).parent):
            for _ in range(3):
                await tell(other)
                assert await anext(stream) == Resync()
        await tell(other)
        assert await anext(stream) == Happened((EVENT,))
        assert await rows(other) == [(stream.address, 0)]


@pytest.mark.usefixtures("sockets")
async def test_word_for_who_may_not_be_reached_is_left_at_the_end(open_store: OpenStore) -> None:
    async with open_store() as storage, open_store() as other, listening(storage) as stream:
        with replaced(Path(stream.address).parent):
            await tell(other)
            await other.stop()
            assert await anext(stream) == Resync()


@pytest.mark.usefixtures("sockets", "impatient")
async def test_a_listener_that_was_taken_for_dead_is_known_again(open_store: OpenStore) -> None:
    async with open_store() as storage, open_store() as other, listening(storage) as stream:
        path, aside = Path(stream.address), Path(stream.address).with_name("aside")
        path.rename(aside)
        await tell(other)
        assert await anext(stream) == Resync()
        aside.rename(path)
        await tell(other)
        assert await anext(stream) == Happened((EVENT,))
        assert await rows(other) == [(stream.address, 0)]


async def test_a_write_of_the_listener_finds_the_word_that_was_left(open_store: OpenStore) -> None:
    async with open_store() as storage, open_store() as other, listening(storage) as stream:
        await other._writer.call(lambda tx: tx.mark_missed([stream.address]))
        await storage.sweep(SweepRequest())
        assert await anext(stream) == Resync()
        assert await rows(other) == [(stream.address, 0)]


async def test_a_probe_keeps_the_word_that_was_left(open_store: OpenStore, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "bound.s"))
        address = bound.getsockname()
        async with open_store() as storage:
            await storage._writer.call(lambda tx: tx.know_listener(address))
            await storage._writer.call(lambda tx: tx.mark_missed([address]))
            await storage._writer.call(lambda tx: tx.db.execute("UPDATE listener SET probed = 0"))
            await storage.sweep(SweepRequest())
            assert await rows(storage) == [(address, 1)]


@pytest.mark.usefixtures("sockets", "impatient")
async def test_word_that_can_not_be_left_now_is_left_later(
    open_store: OpenStore, looks: asyncio.Queue[Writer], tmp_path: Path
) -> None:
    async with (
        open_store() as storage,
        open_store(busy_timeout="50ms") as other,
        listening(storage) as stream,
    ):
        with replaced(Path(stream.address).parent):
            await other.sweep(SweepRequest())
            with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as holder:
                holder.isolation_level = None
                holder.execute("BEGIN IMMEDIATE")
                other.tell([EVENT])
                tried = 0
                while tried < 3:
                    tried += await looks.get() is other._writer and bool(other._writer._missed)
                assert other._writer._missed == {stream.address}
                holder.execute("ROLLBACK")
            assert await anext(stream) == Resync()


@pytest.mark.usefixtures("impatient")
async def test_looking_writes_nothing_and_makes_no_resync(
    open_store: OpenStore, looks: asyncio.Queue[Writer]
) -> None:
    async with open_store() as storage:
        async with listening(storage) as stream:
            before = await storage._writer.call(lambda tx: tx.db.total_changes)
            for _ in range(5):
                await looks.get()
            assert await storage._writer.call(lambda tx: tx.db.total_changes) == before
            assert stream._next() is None
        # Nobody listens any more, so that the thread waits without a limit.
        assert storage._writer._until_look() is None


async def word_arrives(open_store: OpenStore) -> bool:
    """Whether a word that was left reaches its listener, survives a probe, and is told once."""
    async with open_store() as storage, open_store() as other, listening(storage) as stream:
        address = stream.address
        await other._writer.call(lambda tx: tx.mark_missed([address]))
        await other._writer.call(lambda tx: tx.know_listener(address))
        heard = []
        for _ in range(2):
            # What a write of the listener finds has been told to it before the write is answered.
            await storage.sweep(SweepRequest())
            heard.append(stream._next())
        return heard == [Resync(), None] and await rows(other) == [(address, 0)]


def _leaves_no_word(tx: Transaction, addresses: Collection[str]) -> None:
    del tx, addresses


def _finds_no_word(tx: Transaction, addresses: Collection[str]) -> list[str]:
    del tx, addresses
    return []


def _keeps_the_word(tx: Transaction, addresses: Collection[str]) -> list[str]:
    return [address for address in addresses if address in tx.missed]


def _forgets_the_word(tx: Transaction, address: str) -> None:
    tx.db.execute("UPDATE listener SET missed = 0 WHERE address = ?", (address,))
    tx._read_listeners()


@pytest.mark.parametrize(
    ("verb", "broken"),
    [
        ("mark_missed", _leaves_no_word),
        ("take_missed", _finds_no_word),
        ("take_missed", _keeps_the_word),
        ("know_listener", _forgets_the_word),
    ],
)
async def test_a_word_that_is_lost_or_kept_is_noticed(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch, verb: str, broken: Callable[..., object]
) -> None:
    assert await word_arrives(open_store)
    sound = getattr(Transaction, verb)
    if broken is _forgets_the_word:

        def both(tx: Transaction, address: str) -> None:
            sound(tx, address)
            _forgets_the_word(tx, address)

        broken = both
    monkeypatch.setattr(Transaction, verb, broken)
    assert not await word_arrives(open_store)
