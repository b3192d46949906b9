"""The one thread that writes: what arrives while it is busy goes into its next transaction.

Calls reach it through a queue, one wake of the thread each time it was idle; their replies reach
the event loop through one callback a transaction. A transaction is first tried for all calls
together. When one of them fails it is rolled back and every call gets a transaction of its own,
so that the one that fails, fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import random
import sqlite3
import threading
import time
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from plugq import failpoints
from plugq.errors import ConfigError, PlugqError, Unavailable
from plugq.protocols.storage import BACKLOG
from plugq_sqlite._events import RESYNC, datagrams
from plugq_sqlite._faults import BUSY, code_of, fault, locked, unfinished, unusable
from plugq_sqlite._schema import check_owner, migrate, namespace_number
from plugq_sqlite._signals import Delivery, Postman
from plugq_sqlite._transaction import Names, Transaction

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from plugq.clock import Clock
    from plugq.events import JobEvent
    from plugq_sqlite._transaction import Letter

    #: A future that waits for an answer, the answer, and the error that stands in its place.
    _Answer = tuple[asyncio.Future[Any] | None, Any, Exception | None]

T = TypeVar("T")

#: A transaction takes calls until they have so many bytes or items.
_MOST_BYTES = 8 * 1024 * 1024
_MOST_ITEMS = 4_000
#: The pauses between two tries for the lock, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.002
#: How long the thread steps back after a transaction when others compete for the lock.
_COURTESY = 0.0005
#: How long the thread, when it ends, waits for listeners to take what was told, in seconds.
_PARTING = 0.5
#: How soon a peer whose buffer was full is tried again, in seconds.
_RETRY_AFTER = 0.02
#: How often those who listen look whether they missed something, in seconds.
LOOK_EVERY = 1.0
_REPLACEMENTS = 100


@dataclass(slots=True)
class Call(Generic[T]):
    """One call of a verb, on its way through the thread."""

    run: Callable[[Transaction], T]
    items: int
    size: int
    future: asyncio.Future[T]


class _Told(enum.Enum):
    """Rouses the thread since there are events to be sent."""

    TOLD = enum.auto()


@dataclass(frozen=True, kw_only=True)
class WriterOptions:
    """How the thread opens and uses the file."""

    path: Path
    namespace: str
    synchronous: str
    busy_timeout: float
    clock: Clock
    logger: logging.Logger


class Writer:
    """Owns the writing connection and its thread, from :meth:`start` to :meth:`stop`."""

    def __init__(self, options: WriterOptions) -> None:
        self._options = options
        self._path = options.path
        self._queue: SimpleQueue[Call[Any] | _Told | None] = SimpleQueue()
        self._names = Names()
        self._postman = Postman()
        self._thread: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open = False
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._namespace = 0
        self._contended = 0.0
        self._latest = 0.0
        self._time_lock = threading.Lock()
        self._told: list[JobEvent] = []
        self._told_too_much = False
        self._telling = threading.Lock()
        #: Where those listen who want to know what happens, as of the last transaction.
        self.listeners: list[str] = []
        #: Where the peers that watch through this storage listen.
        self.addresses: dict[str, str] = {}
        #: Where those listen who do so through this storage, and what says that they missed events.
        self.hearers: dict[str, Callable[[], None]] = {}
        #: Whom events did not reach, until a transaction leaves word for them.
        self._missed: set[str] = set()
        self._looked = 0.0

    @property
    def namespace(self) -> int:
        """The number of the namespace in the file."""
        return self._namespace

    def now(self, stored: float) -> float:
        """Return the storage's time, given the persisted one; it never runs backwards."""
        with self._time_lock:
            self._latest = max(stored, self._latest, self._options.clock.time())
            return self._latest

    async def start(self) -> None:
        """Start the thread and let it open and migrate the file.

        Raises:
            ConfigError: the file can not be used.
            Unavailable: it can not be used now.
        """
        self._loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = self._loop.create_future()
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._main,
            args=(ready,),
            name="plugq-sqlite-writer",
            daemon=True,
        )
        self._thread.start()
        try:
            await asyncio.shield(ready)
        except BaseException:
            await self.stop()
            raise
        self._open = True

    async def stop(self) -> None:
        """Write what is waiting, then end the thread and close the file.

        When it was cancelled a second call waits for the same end.
        """
        self._open = False
        if self._thread is not None and self._ended is not None:
            self._queue.put(None)
            await asyncio.shield(self._ended)
            self._thread.join()
            self._thread = None

    async def call(self, run: Callable[[Transaction], T], items: int = 1, size: int = 0) -> T:
        """Run a function inside a transaction that may hold other calls as well.

        Raises:
            Unavailable: it did not happen.
            OutcomeUnknown: it may have happened.
        """
        if not self._open or self._loop is None:
            message = "the SQLite storage is not started; call start() or use it through connect()"
            raise Unavailable(message)
        future: asyncio.Future[T] = self._loop.create_future()
        self._queue.put(Call(run, items, size, future))
        return await future

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Let the thread send events to whoever listens, after the calls that wait for it."""
        if not self._open or not self.listeners:
            return
        with self._telling:
            rouse = not self._told
            self._told += events
            if len(self._told) > BACKLOG:
                # The newest keep the list from being empty, which it is while nothing is due.
                self._told = self._told[-1:]
                self._told_too_much = True
        if rouse:
            self._queue.put(_Told.TOLD)

    def _main(self, ready: asyncio.Future[None]) -> None:
        try:
            self._connect()
        except Exception as error:  # noqa: BLE001 - whatever it is, start() has to raise it
            self._close()
            self._tell([(ready, None, self._start_error(error))])
            self._tell([(self._ended, None, None)])
            return
        self._tell([(ready, None, None)])
        while (calls := self._collect()) is not None:
            try:
                self._flush(calls)
            except Exception as error:  # the thread has to outlive whatever befalls one flush
                self._options.logger.exception("a write to %s failed unexpectedly", self._path)
                failure = fault(error, self._path)
                self._tell([(call.future, None, failure) for call in calls])
        self._part()
        self._postman.close()
        self._close()
        self._tell([(self._ended, None, None)])

    def _part(self) -> None:
        """Give listeners whose buffers are full a last moment, then leave word for them."""
        try:
            self._send_told()
            until = time.monotonic() + _PARTING
            while self._postman.waits_for(self.listeners) and time.monotonic() < until:
                time.sleep(_LONGEST_PAUSE)
                self._retry()
            self._missed.update(self._postman.waits_for(self.listeners))
            if self._missed:
                self._leave_word()
        except Exception:  # whoever stops the storage waits for the end of the thread
            self._options.logger.exception("some events could not be told")

    def _retry(self) -> None:
        given_up = self._postman.retry()
        self._missed.update(address for address in given_up if address in self.listeners)

    def _look(self) -> None:
        """See what no transaction has seen lately: who missed something, or is no longer listed."""
        self._looked = time.monotonic()
        try:
            self._check_file()
            listed = {
                row[0]
                for row in self._connection().execute(
                    "SELECT address FROM listener WHERE namespace = ? AND missed = 0",
                    (self._namespace,),
                )
            }
            if self._missed or not listed.issuperset(tuple(self.hearers)):
                self._leave_word()
        except (sqlite3.Error, OSError, PlugqError) as error:
            self._options.logger.debug("whether events were missed is not known yet: %s", error)

    def _leave_word(self) -> None:
        _, _, error, _ = self._transact([])
        if error is not None:
            self._options.logger.warning("that events were missed can not be told: %s", error)

    def _exchange_word(self, tx: Transaction) -> list[Callable[[], None]]:
        """Leave word for whom events did not reach; return what tells those of ours of theirs."""
        if self._missed:
            tx.mark_missed(self._missed)
        hearers = dict(self.hearers)
        return [hearers[address] for address in tx.take_missed(hearers)] if hearers else []

    def _send_told(self) -> None:
        """Send the events that were told since the last time; whatever fails costs these only."""
        with self._telling:
            events, self._told = self._told, []
            too_much, self._told_too_much = self._told_too_much, False
        if not events:
            return
        try:
            letters = [RESYNC] if too_much else datagrams(events)
            dead = []
            for address in self.listeners:
                delivery = self._postman.post(address, letters, [RESYNC])
                if delivery is Delivery.DEAD:
                    dead.append(address)
                elif delivery is Delivery.BARRED:
                    self._missed.add(address)
            if dead:
                _, _, error, _ = self._transact([partial(_forget, addresses=dead)])
                if error is not None:
                    self._options.logger.warning("listeners that are gone stay listed: %s", error)
        except Exception:  # the thread has to outlive whatever befalls the events
            self._missed.update(self.listeners)
            self._options.logger.exception("%d events could not be told", len(events))

    def _start_error(self, error: Exception) -> Exception:
        return unusable(error, self._path) if isinstance(error, sqlite3.Error | OSError) else error

    def _connect(self) -> None:
        if not self._path.parent.is_dir() or self._path.is_dir():
            raise unusable(OSError(), self._path)
        db = self._db = sqlite3.connect(
            self._path,
            isolation_level=None,
            timeout=0,
            cached_statements=1024,
        )
        self._until_free(lambda: self._prepare(db))
        found = self._path.stat()
        self._file = (found.st_dev, found.st_ino)
        self._compare_clocks(db)

    def _compare_clocks(self, db: sqlite3.Connection) -> None:
        ahead = db.execute("SELECT now FROM meta").fetchone()[0] - self._options.clock.time()
        if ahead > 1:
            self._options.logger.warning(
                "the time of %s is %.1f s ahead of this machine's clock, and stands still until "
                "that has caught up; set the clock",
                self._path,
                ahead,
            )

    def _prepare(self, db: sqlite3.Connection) -> None:
        """Make the connection and the file what they have to be; may be repeated."""
        options = self._options
        # The file is looked at before anything in it is changed: it may be somebody else's.
        check_owner(db, self._path)
        if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            message = f"storage.path: {self._path} is not on a local disk; move it to one"
            raise ConfigError(message)
        for pragma in (
            f"synchronous = {options.synchronous}",
            # Only this makes a sync reach the disk on macOS; elsewhere it does nothing.
            f"fullfsync = {options.synchronous == 'full'}",
            "cache_size = -65536",
            "temp_store = MEMORY",
            "secure_delete = OFF",
            "journal_size_limit = 67108864",
        ):
            db.execute(f"PRAGMA {pragma}").fetchall()
        migrate(db, self._path)
        self._namespace = namespace_number(db, options.namespace)

    def _close(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            try:
                db.close()
            except sqlite3.Error as error:
                self._options.logger.warning("closing %s: %s", self._path, error)

    def _until_free(self, step: Callable[[], object]) -> None:
        deadline = time.monotonic() + self._options.busy_timeout
        pause = _FIRST_PAUSE
        while True:
            try:
                step()
            except sqlite3.OperationalError as error:
                if code_of(error) not in BUSY:
                    raise
                if time.monotonic() >= deadline:
                    raise locked(self._path, self._options.busy_timeout) from None
            else:
                return
            self._contended = time.monotonic()
            time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _begin(self) -> None:
        db = self._connection()
        self._until_free(lambda: db.execute("BEGIN IMMEDIATE"))

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._connect()
        assert self._db is not None  # noqa: S101 - _connect sets it or raises
        return self._db

    def _collect(self) -> list[Call[Any]] | None:
        """Wait for calls and return those of one transaction; ``None`` ends the thread."""
        calls: list[Call[Any]] = []
        items = size = 0
        while True:
            try:
                call = self._next(block=not calls and not self._told)
            except Empty:
                if calls:
                    return calls
                self._send_told()
                self._retry()
                if self._until_look() == 0:
                    self._look()
                continue
            if isinstance(call, _Told):
                continue
            if call is None:
                if calls:
                    self._queue.put(None)
                    return calls
                return None
            if call.future.cancelled():
                continue
            calls.append(call)
            items += call.items
            size += call.size
            if items >= _MOST_ITEMS or size >= _MOST_BYTES:
                return calls

    def _next(self, *, block: bool) -> Call[Any] | _Told | None:
        if not block:
            return self._queue.get_nowait()
        timeout = self._until_look()
        if self._postman.waiting:
            timeout = _RETRY_AFTER if timeout is None else min(timeout, _RETRY_AFTER)
        return self._queue.get(timeout=timeout)

    def _until_look(self) -> float | None:
        if not self.hearers and not self._missed:
            return None
        return max(0.0, self._looked + LOOK_EVERY - time.monotonic())

    def _flush(self, calls: list[Call[Any]]) -> None:
        replies, letters, error, alone = self._transact([call.run for call in calls])
        answers = [(call.future, reply, error) for call, reply in zip(calls, replies, strict=True)]
        if alone and len(calls) > 1:
            answers = []
            for call in calls:
                [reply], more, error, _ = self._transact([call.run])
                answers.append((call.future, reply, error))
                letters += more
        self._tell(answers)
        self._deliver(letters)
        self._send_told()
        self._retry()
        if time.monotonic() - self._contended < 1.0:
            time.sleep(_COURTESY)

    def _transact(
        self,
        runs: list[Callable[[Transaction], Any]],
    ) -> tuple[list[Any], list[Letter], PlugqError | None, bool]:
        """Run calls in one transaction.

        Returns their replies, the letters to send, why nothing happened, and whether one of the
        calls is to blame for that.
        """
        nothing = [None] * len(runs)
        try:
            self._check_file()
            db = self._connection()
            self._begin()
        except ConfigError as error:
            return nothing, [], Unavailable(str(error)), False
        except (sqlite3.Error, OSError, PlugqError) as error:
            return nothing, [], fault(error, self._path), False
        try:
            tx = Transaction(db, self._names, self._namespace, self.now(0.0), self.addresses)
            replies = [run(tx) for run in runs]
            losers = self._exchange_word(tx)
            letters = tx.flush()
        except Exception as error:
            self._roll_back(db)
            if not isinstance(error, sqlite3.Error | PlugqError | OverflowError | UnicodeError):
                self._options.logger.exception("a call failed unexpectedly")
            return nothing, [], fault(error, self._path), True
        # What changed nothing commits nothing.
        wrote = failpoints.ARMED and tx.wrote
        if wrote:
            failpoints.hit("storage.commit.before")
        try:
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(db)
            self._call_soon(losers)
            return nothing, [], unfinished(error, self._path), False
        if wrote:
            failpoints.hit("storage.commit.after")
        self._call_soon(losers)
        self._missed.clear()
        self._looked = time.monotonic()
        self.now(tx.now)
        self.listeners = tx.listeners
        return replies, letters, None, False

    def _roll_back(self, db: sqlite3.Connection) -> None:
        self._names.forget()
        try:
            if db.in_transaction:
                db.execute("ROLLBACK")
        except sqlite3.Error as error:
            self._options.logger.warning("%s is opened again after: %s", self._path, error)
            self._close()

    def _check_file(self) -> None:
        """Refuse to write into a file that nobody will ever open again."""
        if self._file is None:
            return
        try:
            found = self._path.stat()
        except FileNotFoundError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._file:
            message = (
                f"{self._path} was removed or replaced while it was in use; "
                "restart everything that uses it"
            )
            raise Unavailable(message)

    def _tell(self, answers: Sequence[_Answer]) -> None:
        if self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(_resolve, answers)
        except RuntimeError:
            # The event loop was closed under us; nobody waits for the answers any more.
            self._options.logger.debug("nobody waits for %d answers", len(answers))

    def _call_soon(self, callbacks: Sequence[Callable[[], None]]) -> None:
        for callback in callbacks:
            # Nobody hears anything any more when the event loop was closed under us.
            with contextlib.suppress(RuntimeError):
                assert self._loop is not None  # noqa: S101 - start() set it
                self._loop.call_soon_threadsafe(callback)

    def _deliver(self, letters: list[Letter]) -> None:
        """Send letters after the commit; for a peer that is gone another idle one is woken."""
        for _ in range(_REPLACEMENTS):
            gone: list[Letter] = []
            barred: list[Letter] = []
            for letter in letters:
                delivery = self._postman.send(letter.address, letter.notices)
                if delivery is Delivery.DEAD:
                    gone.append(letter)
                elif delivery is Delivery.BARRED:
                    barred.append(letter)
            if not gone and not barred:
                return
            _, letters, error, _ = self._transact([partial(_replace, gone=gone, barred=barred)])
            if error is not None:
                self._options.logger.warning("peers that are gone stay listed: %s", error)


def _replace(tx: Transaction, gone: list[Letter], barred: list[Letter]) -> None:
    for letter in gone:
        tx.forget_peer(letter.peer, letter.address)
    for letter in (*gone, *barred):
        if letter.queue is not None:
            tx.wake_instead(letter.queue)


def _forget(tx: Transaction, addresses: Sequence[str]) -> None:
    for address in addresses:
        tx.forget_listener(address)


def _resolve(answers: Sequence[_Answer]) -> None:
    for future, reply, error in answers:
        if future is not None and not future.done():
            if error is None:
                future.set_result(reply)
            else:
                future.set_exception(error)
