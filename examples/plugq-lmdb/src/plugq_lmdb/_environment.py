"""The environments of this process: one for each folder, with one thread that writes.

LMDB forbids opening a folder twice in a process, so instances share an environment. A write waits
for the writers of other processes, therefore writes have a thread of their own; what is called
meanwhile goes into the next transaction, each call in a nested one, so that one which fails undoes
nothing but itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import lmdb

from plugq import failpoints
from plugq.errors import ConfigError, InvalidJob, OutcomeUnknown, PlugqError, Unavailable
from plugq_lmdb._options import FIRST_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from plugq_lmdb._options import Settings

T = TypeVar("T")

#: How many calls share a transaction at most.
_MOST_CALLS = 500
_MOST_READERS = 1024


class _Call:
    """A write that somebody waits for."""

    def __init__(self, run: Callable[[lmdb.Transaction[bytes]], Any]) -> None:
        self.run = run
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: Exception | None = None
        #: Whether the writer has it in hand, and whether its caller has given up before that.
        self.taken = False
        self.dropped = False

    def answer(self) -> None:
        """Hand the outcome to whoever still waits; in the loop of the caller."""
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


class Environment:
    """An open folder; made by :meth:`open`, let go of by :meth:`release`."""

    _registry: ClassVar[dict[Path, Environment]] = {}
    _turn: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, settings: Settings) -> None:
        self.path = settings.folder
        #: Whether anything was written in the transaction under way.
        self.wrote = False
        #: The latest time that was told in this process.
        self.latest = 0.0
        self._max_size = settings.max_size
        self._users = 0
        self._calls: list[_Call] = []
        self._changed = threading.Condition()
        self._closing = self._closed = False
        #: Held by a reading transaction, as no other may be open while the map is resized.
        self._gate = threading.Lock()
        self._env = lmdb.open(
            str(self.path),
            map_size=FIRST_SIZE,
            max_readers=_MOST_READERS,
        )
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="plugq-lmdb-reader")
        self._writer = threading.Thread(target=self._work, name="plugq-lmdb-writer", daemon=True)
        self._writer.start()

    @classmethod
    def open(cls, settings: Settings) -> Environment:
        """Return the environment of a folder, opened if this process has it not open.

        Raises:
            ConfigError: the folder can not be used.
            Unavailable: it can not be opened now.
        """
        path = settings.folder
        try:
            path.mkdir(parents=True, exist_ok=True)
            with cls._turn:
                key = path.resolve()
                environment = cls._registry.get(key)
                if environment is None:
                    environment = cls._registry[key] = cls(settings)
                environment._users += 1
                # It may still be waiting for another process before it can close.
                environment._set_closing(closing=False)
                return environment
        except OSError as error:
            raise ConfigError(
                f"storage.path: {path} can not be made a folder: {error.strerror}; name another"
            ) from None
        except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
            raise ConfigError(
                f"storage.path: {path} holds no store of this plugin ({error}); name another folder"
            ) from None
        except lmdb.Error as error:
            raise ConfigError(
                f"storage.path: {path} can not be opened ({error}); check its permissions"
            ) from None

    @classmethod
    def forget_inherited(cls) -> None:
        """Let go of the environments of the parent process, as none survives a fork."""
        inherited, cls._registry, cls._turn = cls._registry, {}, threading.Lock()
        for environment in inherited.values():
            environment._env.close()  # noqa: SLF001 - its own class

    async def release(self, timeout: float) -> None:
        """Let go of it; the last user closes it once all that was called has been answered."""
        stuck = False
        if self._users == 1:
            try:
                await self.write(lambda _: None, timeout)
            except PlugqError:
                # Another process holds the lock: the thread closes it when it gets that.
                stuck = True
        with self._turn:
            self._users -= 1
            if self._users:
                return
            self._set_closing(closing=True)
        with self._changed:
            self._changed.wait_for(
                lambda: stuck or self._closed or not self._closing,
                timeout,
            )
        if self._closed:
            self._writer.join()

    def _set_closing(self, *, closing: bool) -> None:
        with self._changed:
            self._closing = closing
            self._changed.notify_all()

    def forget_the_dead(self) -> None:
        """Let go of the snapshots of processes that were killed, which would make the file grow."""
        self._env.reader_check()

    @property
    def commits(self) -> int:
        """The number of the last transaction of any process that changed something."""
        return self._env.info()["last_txnid"]

    async def read(self, look: Callable[[lmdb.Transaction[bytes]], T], timeout: float) -> T:
        """Look at one moment of the store."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await loop.run_in_executor(self._reader, self._look, look)
            except lmdb.MapResizedError:
                await self.write(lambda _: None, timeout)
            except Exception as error:  # noqa: BLE001 - no foreign exception may come out
                raise self._fault(error) from None

    def _look(self, look: Callable[[lmdb.Transaction[bytes]], T]) -> T:
        with self._gate, self._env.begin() as txn:
            return look(txn)

    async def write(self, run: Callable[[lmdb.Transaction[bytes]], T], timeout: float) -> T:
        """Run a verb in the writer's thread and return what it returned, once it is on the disk.

        Raises:
            Unavailable: it did not get its turn in time, or could not be written; nothing happened.
            OutcomeUnknown: the disk failed while it was written.
        """
        call = _Call(run)
        with self._changed:
            self._calls.append(call)
            self._changed.notify_all()
        try:
            await asyncio.wait((call.future,), timeout=timeout)
            with self._changed:
                call.dropped = not call.taken and not call.future.done()
            if call.dropped:
                raise Unavailable(
                    f"{self.path} was locked by other processes for {timeout:g} s; raise "
                    "storage.lock_timeout or look for a process that hangs"
                )
            result: T = await call.future
        except asyncio.CancelledError:
            call.future.cancel()
            raise
        return result

    def _work(self) -> None:
        while not self._closed:
            while calls := self._next_calls():
                self._serve(calls)
            with self._turn:
                # Somebody may have opened the folder again meanwhile.
                if not self._users:
                    self._close()

    def _close(self) -> None:
        self._registry.pop(self.path.resolve(), None)
        self._reader.shutdown()
        self._env.close()
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _next_calls(self) -> list[_Call]:
        with self._changed:
            while not self._calls and not self._closing:
                self._changed.wait()
            calls, self._calls = self._calls[:_MOST_CALLS], self._calls[_MOST_CALLS:]
            return calls

    def _serve(self, calls: list[_Call]) -> None:
        try:
            served = self._commit(calls)
        except Exception as error:  # noqa: BLE001 - the callers are told, and the thread goes on
            served = calls
            for call in calls:
                call.error = self._fault(error)
        by_loop: defaultdict[asyncio.AbstractEventLoop, list[_Call]] = defaultdict(list)
        for call in served:
            by_loop[call.loop].append(call)
        for loop, answered in by_loop.items():
            try:
                loop.call_soon_threadsafe(_answer, answered)
            except RuntimeError:
                # The loop was closed with the call under way: nobody waits any more.
                continue

    def _commit(self, calls: list[_Call]) -> list[_Call]:
        while True:
            try:
                return self._attempt(calls)
            except lmdb.MapResizedError:
                # Another process has made the map larger; 0 takes over its size.
                self._resize(0)
            except lmdb.MapFullError:
                size = self._env.info()["map_size"]
                if size >= self._max_size:
                    raise
                self._resize(min(2 * size, self._max_size))

    def _resize(self, size: int) -> None:
        with self._gate:
            self._env.set_mapsize(size)

    def _attempt(self, calls: list[_Call]) -> list[_Call]:
        served = []
        self.wrote = False
        txn = self._env.begin(write=True)
        try:
            for call in calls:
                with self._changed:
                    call.taken = not call.dropped
                if call.taken:
                    served.append(call)
                    self._run(call, txn)
        except BaseException:
            txn.abort()
            raise
        if failpoints.ARMED and self.wrote:
            failpoints.hit("storage.commit.before")
        try:
            txn.commit()
        except lmdb.MapFullError:
            raise
        except lmdb.Error as error:
            # What was written may or may not be found again when the folder is next opened.
            raise OutcomeUnknown(f"{self.path} failed while writing: {error}") from None
        if failpoints.ARMED and self.wrote:
            failpoints.hit("storage.commit.after")
        return served

    def _run(self, call: _Call, txn: lmdb.Transaction[bytes]) -> None:
        call.error = None
        try:
            with self._env.begin(write=True, parent=txn) as nested:
                call.result = call.run(nested)
        except lmdb.MapFullError:
            raise
        except Exception as error:  # noqa: BLE001 - it belongs to the caller
            call.error = self._fault(error)

    def _fault(self, error: Exception) -> Exception:
        if isinstance(error, PlugqError):
            return error
        if isinstance(error, lmdb.MapFullError):
            return Unavailable(
                f"{self.path} is full with {self._max_size} bytes; raise storage.max_size or "
                "shorten result_ttl and failure_ttl"
            )
        if isinstance(error, UnicodeError | OverflowError | ValueError):
            return InvalidJob(f"a value can not be stored: {error}")
        return Unavailable(f"{self.path}: {type(error).__name__}: {error}")

    def tick(self, now: float) -> float:
        """Return the time, or the latest that was told if that is later."""
        self.latest = max(self.latest, now)
        return self.latest


def _answer(calls: Iterable[_Call]) -> None:
    for call in calls:
        call.answer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Environment.forget_inherited)
