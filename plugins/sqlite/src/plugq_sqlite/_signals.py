"""Notices between processes: one unix datagram socket for each peer that watches.

The sockets lie in a folder that only their user may enter. What arrives is checked all the same,
and dropped when it is not one of our packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import secrets
import socket
import stat
import tempfile
import time
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from plugq.errors import Unavailable
from plugq.protocols.storage import BACKLOG, CancelAsked, Finished, Notice, Resync, Wake

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Sequence
    from types import TracebackType

    from plugq.job import JobRef

T = TypeVar("T")

#: Whether this platform has what the wake-ups need.
SUPPORTED = hasattr(socket, "AF_UNIX") and hasattr(os, "getuid")

_VERSION = 1
#: The longest datagram, and how many one flush sends to a peer; beyond that it is told to resync.
_LONGEST, _MOST = 16_000, 8
#: Datagrams kept for a peer whose buffer is full; beyond that it is told to resync.
_MOST_KEPT = 64
_BUFFER = 65_536
#: The longest path of a unix socket that every platform takes.
_LONGEST_PATH = 103
#: Sockets of dead processes are removed once they are this old, in seconds.
_STALE = 60.0
_LOOKED_AT = 1_000

_Notice = Wake | Finished | CancelAsked | Resync


class _Packet(msgspec.Struct, array_like=True, frozen=True):
    version: int
    notices: list[_Notice]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Packet).decode


class Delivery(enum.Enum):
    """What became of a letter."""

    SENT = enum.auto()
    #: The peer's buffer is full, so it has something to wake up to; the rest is kept for it.
    FULL = enum.auto()
    #: Nobody listens there any more.
    DEAD = enum.auto()
    #: This process may not reach it.
    BARRED = enum.auto()


def runtime_folder() -> Path:
    """Return the folder for sockets of this user, made if it is missing.

    Raises:
        Unavailable: there is none that only this user can enter.
    """
    # The runtime folder of a login comes second, for it goes when its user logs out.
    places = [tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"]  # noqa: S108
    uid = os.getuid()
    for place in places:
        folder = Path(place) / f"plugq-{uid}"
        if place and len(os.fsencode(folder)) + 24 <= _LONGEST_PATH and _is_ours(folder, uid):
            _remove_stale(folder)
            return folder
    message = (
        "no folder for wake-up sockets: let TMPDIR or XDG_RUNTIME_DIR name a folder with a short "
        "path that this user may write to"
    )
    raise Unavailable(message)


def _is_ours(folder: Path, uid: int) -> bool:
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


def _remove_stale(folder: Path) -> None:
    """Remove sockets on which nobody listens, left behind by processes that were killed."""
    before = time.time() - _STALE
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for _, entry in zip(range(_LOOKED_AT), entries, strict=False):
            with contextlib.suppress(OSError):
                old = entry.stat(follow_symlinks=False).st_mtime < before
                if entry.name.endswith(".s") and old and reachable(entry.path) is Delivery.DEAD:
                    Path(entry.path).unlink()


def _outcome(error: OSError) -> Delivery:
    if error.errno in {errno.ECONNREFUSED, errno.ENOENT, errno.ENOTSOCK, errno.EPROTOTYPE}:
        return Delivery.DEAD
    if error.errno in {errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS}:
        return Delivery.FULL
    return Delivery.BARRED


def reachable(address: str) -> Delivery:
    """Return whether somebody listens at an address, without sending anything."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0)
        try:
            probe.connect(address)
        except OSError as error:
            return _outcome(error)
    return Delivery.SENT


class Postman:
    """Sends notices from the writer's thread, without ever waiting for a receiver.

    What a full buffer does not take is kept, in order, for :meth:`retry`; a peer that leaves too
    much of it there is told to resync instead.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._kept: dict[str, deque[bytes]] = {}

    @property
    def waiting(self) -> bool:
        """Whether anything is kept for a receiver."""
        return bool(self._kept)

    def waits_for(self, addresses: Collection[str]) -> list[str]:
        """Return those of the addresses for which something is kept."""
        return [address for address in addresses if address in self._kept]

    def send(self, address: str, notices: Sequence[Notice]) -> Delivery:
        """Send notices to one address, after what is kept for it."""
        return self.post(address, packets(notices), packets([Resync()]))

    def post(self, address: str, datagrams: Sequence[bytes], resync: Sequence[bytes]) -> Delivery:
        """Send datagrams to one address, after what is kept for it; ``resync`` if too much is."""
        queue = self._kept.setdefault(address, deque())
        queue += datagrams
        if len(queue) > _MOST_KEPT:
            queue.clear()
            queue += resync
        return self._empty(address, queue)

    def retry(self) -> list[str]:
        """Send what is kept as far as the receivers take it; return whom it can not reach."""
        reached = {Delivery.SENT, Delivery.FULL}
        kept = list(self._kept.items())
        return [address for address, queue in kept if self._empty(address, queue) not in reached]

    def _empty(self, address: str, queue: deque[bytes]) -> Delivery:
        try:
            sender = self._sender()
            while queue:
                sender.sendto(queue[0], address)
                queue.popleft()
        except OSError as error:
            delivery = _outcome(error)
        else:
            delivery = Delivery.SENT
        if delivery is not Delivery.FULL:
            del self._kept[address]
        return delivery

    def _sender(self) -> socket.socket:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.settimeout(0)
            # The default of some platforms is no more than 2 KiB a datagram.
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < _BUFFER:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        return self._socket

    def close(self) -> None:
        """Close the socket and drop what is kept."""
        self._kept.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def packets(notices: Sequence[Notice]) -> list[bytes]:
    """Return the datagrams that carry the notices, or one that says resync if they are too many."""
    whole = _encode(_Packet(_VERSION, list(notices)))
    if len(whole) <= _LONGEST:
        return [whole]
    parts = max(2, -(-len(whole) // (_LONGEST // 2)))
    if parts > _MOST:
        return [_encode(_Packet(_VERSION, [Resync()]))]
    found: list[bytes] = []
    for notice in notices:
        if isinstance(notice, Finished | CancelAsked):
            step = max(1, -(-len(notice.refs) // parts))
            kind = type(notice)
            pieces: list[_Notice] = [
                kind(notice.refs[start : start + step])
                for start in range(0, len(notice.refs), step)
            ]
        else:
            pieces = [notice]
        found += [_encode(_Packet(_VERSION, [piece])) for piece in pieces]
    if len(found) > _MOST * 2 or any(len(packet) > _LONGEST for packet in found):
        return [_encode(_Packet(_VERSION, [Resync()]))]
    return found


class Receiver(AsyncGenerator[T, None]):
    """What arrives at one socket, fetched by one task.

    ``enter`` makes the address of the receiver known to the other processes, ``leave`` takes that
    back. Closing it, or stopping the storage, ends the iteration. A cancelled ``__anext__`` loses
    nothing.
    """

    def __init__(
        self,
        enter: Callable[[Any], Awaitable[None]],
        leave: Callable[[Any], Awaitable[None]],
    ) -> None:
        self.address = ""
        self._enter = enter
        self._leave = leave
        self._loop: asyncio.AbstractEventLoop | None = None
        self._socket: socket.socket | None = None
        self._arrived = asyncio.Event()
        self._entered = self._closed = False
        self._resync = False

    async def asend(self, value: None, /) -> T:
        """Return the next notice, once there is one; the first is a resync.

        Raises:
            StopAsyncIteration: it was closed or the storage was stopped.
            Unavailable: the storage is not started, or no socket can be made.
        """
        del value
        if not self._entered and not self._closed:
            self._entered = True
            try:
                await self._enter(self)
            except BaseException:
                self._entered = False
                self._drop_socket()
                raise
            self._resync = True
        while not self._closed:
            notice = self._next()
            if notice is not None:
                return notice
            self._arrived.clear()
            await self._wait()
        raise StopAsyncIteration

    def open(self) -> None:
        """Open the socket; does blocking but immediate calls.

        Raises:
            Unavailable: no socket can be made.
        """
        self._loop = asyncio.get_running_loop()
        if not SUPPORTED:
            return
        path = runtime_folder() / f"{secrets.token_hex(8)}.s"
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            receiver.settimeout(0)
            receiver.bind(str(path))
        except OSError as error:
            receiver.close()
            message = f"no socket for wake-ups can be made at {path}: {error.strerror}"
            raise Unavailable(message) from None
        self._socket, self.address = receiver, str(path)
        self._loop.add_reader(receiver, self._receive)

    def _receive(self) -> None:
        while self._socket is not None:
            try:
                data = self._socket.recv(_BUFFER)
            except OSError:
                return
            self._read(data)

    async def _wait(self) -> None:
        await self._arrived.wait()

    @abstractmethod
    def _read(self, data: bytes) -> None: ...

    @abstractmethod
    def _next(self) -> T | None: ...

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> T:
        """End the iteration and raise the error."""
        del val
        await self.aclose()
        error = typ if isinstance(typ, BaseException) else typ()
        raise error.with_traceback(tb)

    async def aclose(self) -> None:
        """End the iteration; what was not fetched is dropped."""
        entered = self._entered and not self._closed
        self.shut()
        if entered:
            await self._leave(self)

    def shut(self) -> None:
        """End the iteration and remove the socket."""
        self._closed = True
        self._drop_socket()
        self._arrived.set()

    def _drop_socket(self) -> None:
        receiver, self._socket = self._socket, None
        if receiver is not None and self._loop is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(receiver)
            receiver.close()
            # It may lie in a folder that this process may no longer enter.
            with contextlib.suppress(OSError):
                Path(self.address).unlink()


class Watch(Receiver[Notice]):
    """The notices to one peer, merged while nobody fetches them."""

    def __init__(
        self,
        peer: str,
        enter: Callable[[Self], Awaitable[None]],
        leave: Callable[[Self], Awaitable[None]],
    ) -> None:
        super().__init__(enter, leave)
        self.peer = peer
        self._wake = False
        self._finished: list[JobRef] = []
        self._cancels: list[JobRef] = []

    def _read(self, data: bytes) -> None:
        try:
            packet = _decode(data)
        except msgspec.DecodeError:
            return
        if packet.version == _VERSION:
            for notice in packet.notices:
                self._take(notice)

    def _take(self, notice: Notice) -> None:
        if isinstance(notice, Wake):
            self._wake = True
        elif isinstance(notice, Finished):
            self._finished += notice.refs
        elif isinstance(notice, CancelAsked):
            self._cancels += notice.refs
        else:
            self._resync = True
        if len(self._finished) + len(self._cancels) > BACKLOG:
            self._finished.clear()
            self._cancels.clear()
            self._resync = True
        self._arrived.set()

    def _next(self) -> Notice | None:
        if self._resync:
            self._resync = False
            return Resync()
        if self._wake:
            self._wake = False
            return Wake()
        if self._finished:
            refs, self._finished = tuple(self._finished), []
            return Finished(refs)
        if self._cancels:
            refs, self._cancels = tuple(self._cancels), []
            return CancelAsked(refs)
        return None
