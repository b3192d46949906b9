"""Submitting in a transaction that a user has begun on a connection of their own.

The statements are those of ``submit``. They must not depend on how the user has set the connection
up, and all of a call happens between two savepoints, so that one that fails leaves the transaction
as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import aiosqlite

from plugq.errors import InvalidJob, OutcomeUnknown, PlugqError, Unavailable
from plugq_sqlite._faults import BUSY, code_of, fault
from plugq_sqlite._schema import TABLES
from plugq_sqlite._submit import submit
from plugq_sqlite._transaction import Names, Transaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from plugq.protocols.storage import NewJob, SubmitReply

T = TypeVar("T")

_KINDS = (
    "sqlite3.Connection, aiosqlite.Connection, or a Connection, Session, AsyncConnection or "
    "AsyncSession of SQLAlchemy on one of them"
)
#: ``Connection.autocommit`` of a connection that begins transactions by ``isolation_level``.
_LEGACY: int = getattr(sqlite3, "LEGACY_TRANSACTION_CONTROL", -1)
#: The pauses between two tries for the lock, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.001, 0.02
#: A temporary table of the user's hides one of ours that has its name.
_HIDDEN = "SELECT name FROM sqlite_temp_master"


@dataclass(frozen=True, kw_only=True)
class Home:
    """The file that a connection has to be of, and what is ours in it."""

    path: Path
    namespace: str
    time: float


class _Run(Protocol):
    """Runs a function of a connection where that may be used."""

    def __call__(self, step: Callable[[sqlite3.Connection], T], /) -> Awaitable[T]: ...


class _Plain:
    """A connection whose rows are tuples, whatever factory it has."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, statement: str, parameters: Sequence[Any] = ()) -> sqlite3.Cursor:
        # One that the connection makes would have its row factory, and may be of another class.
        return sqlite3.Cursor(self._db).execute(statement, parameters)

    def executemany(self, statement: str, rows: Iterable[Sequence[Any]]) -> sqlite3.Cursor:
        return sqlite3.Cursor(self._db).executemany(statement, rows)

    @property
    def total_changes(self) -> int:
        return self._db.total_changes


@contextlib.contextmanager
def _plain(db: sqlite3.Connection) -> Iterator[_Plain]:
    """Give a connection as the statements need it; nobody else uses it before the end."""
    factory = db.text_factory
    db.text_factory = str
    try:
        yield _Plain(db)
    finally:
        db.text_factory = factory


async def submit_within(
    connection: object, home: Home, jobs: Sequence[NewJob]
) -> list[SubmitReply]:
    """Store jobs in the transaction that has begun on the connection.

    Raises:
        InvalidJob: the connection can not serve.
        Unavailable: the jobs are not in the transaction.
        OutcomeUnknown: some may be, so that it has to be rolled back.
    """
    run = await _runner(connection)
    await run(partial(_check, home=home))
    time = asyncio.get_running_loop().time
    pause, until = _FIRST_PAUSE, time() + await run(_patience)
    while not await run(partial(_lock, path=home.path)):
        if time() >= until:
            raise Unavailable(
                f"{home.path} is locked by another connection, and yours waits no longer (its "
                "timeout); your transaction is as it was: try again, or roll it back"
            )
        await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
        pause = min(2 * pause, _LONGEST_PAUSE)
    return await run(partial(_submit, home=home, jobs=jobs))


async def _runner(connection: object) -> _Run:
    """Return what runs a function of the driver's connection below what the user has."""
    found: Any = connection
    bases = type(connection).__mro__
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in bases}
    try:
        if names & {"sqlalchemy.scoped_session", "sqlalchemy.async_scoped_session"}:
            return await _runner(found())
        if "sqlalchemy.AsyncSession" in names:
            return await _runner(await found.connection())
        if "sqlalchemy.Session" in names:
            return await _runner(found.connection())
        if "sqlalchemy.AsyncConnection" in names:
            return _driven(await found.run_sync(_driver), connection)
        if "sqlalchemy.Connection" in names:
            return _driven(_driver(found), connection)
    except PlugqError:
        raise
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise InvalidJob(f"connection: {type(connection).__name__}: {said}") from error
    return _driven(connection, connection)


def _driver(connection: Any) -> object:
    """Return the driver's connection below one of SQLAlchemy, in a transaction of that."""
    if not connection.in_transaction():
        # As any statement would: what is done on the connection ends with its next commit.
        connection.begin()
    return connection.connection.driver_connection


def _driven(driver: object, connection: object) -> _Run:
    if isinstance(driver, sqlite3.Connection):
        return partial(_run_here, driver)
    if isinstance(driver, aiosqlite.Connection):
        return partial(_run_there, driver)
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    below = "" if driver is connection else f" on {type(driver).__module__}"
    raise InvalidJob(f"connection: expected {_KINDS}, got {kind}{below}")


async def _run_here(db: sqlite3.Connection, step: Callable[[sqlite3.Connection], T]) -> T:
    return step(db)


async def _run_there(db: aiosqlite.Connection, step: Callable[[sqlite3.Connection], T]) -> T:
    # There is no public way into the thread of the connection.
    execute: Callable[[Callable[[], T]], Awaitable[T]] = db._execute  # noqa: SLF001
    try:
        return await execute(lambda: step(db._conn))  # noqa: SLF001
    except ValueError as error:
        if isinstance(error, PlugqError):
            raise
        raise InvalidJob(f"connection: it is closed ({error})") from error


def _patience(db: sqlite3.Connection) -> float:
    """Return how long to wait for the lock, in seconds.

    It is a little less than what the user lets the connection wait: by default that is as long as
    the client's deadline, and then nobody would learn what was waited for.
    """
    return float(_Plain(db).execute("PRAGMA busy_timeout").fetchone()[0]) / 1000 * 0.9


def _check(db: sqlite3.Connection, home: Home) -> None:
    """Refuse a connection that can not serve."""
    try:
        begun = db.in_transaction
        with _plain(db) as plain:
            files = {row[1]: row[2] for row in plain.execute("PRAGMA database_list")}
            hidden = [name for (name,) in plain.execute(_HIDDEN) if name in TABLES]
    except sqlite3.ProgrammingError as error:
        # Closed, or made in another thread that alone may use it.
        raise InvalidJob(f"connection: {error}") from error
    except sqlite3.Error as error:
        raise _failed(db, error, home.path) from error
    if not _same(files["main"], home.path):
        here = files["main"] or "a database in memory"
        raise InvalidJob(
            f"connection: it is one of {here}, and the jobs are in {home.path}; open that, since "
            "one transaction is in one file"
        )
    if hidden:
        raise InvalidJob(
            f"connection: its temporary table {hidden[0]!r} hides one of plugq's; give it another "
            "name"
        )
    legacy = getattr(db, "autocommit", _LEGACY) == _LEGACY
    if not begun and (db.isolation_level is None or not legacy):
        raise InvalidJob(
            "connection: no transaction has begun on it; execute BEGIN IMMEDIATE before you submit"
        )


def _same(file: str, path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(file) and path.samefile(file)
    return False


def _lock(db: sqlite3.Connection, path: Path) -> bool:
    """Take the lock of whoever writes, without waiting, and return whether that was possible."""
    plain = _Plain(db)
    timeout = plain.execute("PRAGMA busy_timeout").fetchone()[0]
    plain.execute("PRAGMA busy_timeout = 0").fetchall()
    try:
        if db.in_transaction:
            plain.execute("UPDATE meta SET now = now")
        else:
            # As the driver does before a statement that writes.
            plain.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT:
            raise Unavailable(
                f"{path} was written by another connection since your transaction read from it, "
                "so that it can not write any more; roll it back and begin it anew, with BEGIN "
                "IMMEDIATE"
            ) from error
        if code_of(error) in BUSY:
            return False
        raise _failed(db, error, path) from error
    except sqlite3.Error as error:
        raise _failed(db, error, path) from error
    finally:
        with contextlib.suppress(sqlite3.Error):
            plain.execute(f"PRAGMA busy_timeout = {int(timeout)}").fetchall()
    return True


def _submit(db: sqlite3.Connection, home: Home, jobs: Sequence[NewJob]) -> list[SubmitReply]:
    """Judge and store jobs, or leave the transaction as it was."""
    try:
        with _plain(db) as plain:
            plain.execute("SAVEPOINT plugq_submit")
            try:
                replies = _store(cast("sqlite3.Connection", plain), home, jobs)
            except BaseException:
                _undo(db, plain)
                raise
            plain.execute("RELEASE plugq_submit")
    except (sqlite3.Error, OverflowError, UnicodeError) as error:
        raise _failed(db, error, home.path) from error
    return replies


def _undo(db: sqlite3.Connection, plain: _Plain) -> None:
    """Take back what a call has done so far; SQLite may have rolled everything back already."""
    try:
        plain.execute("ROLLBACK TO plugq_submit")
        plain.execute("RELEASE plugq_submit")
    except sqlite3.Error as error:
        if db.in_transaction:
            message = f"a submission failed half way ({error}); roll your transaction back"
            raise OutcomeUnknown(message) from error


def _store(db: sqlite3.Connection, home: Home, jobs: Sequence[NewJob]) -> list[SubmitReply]:
    found = db.execute("SELECT id FROM namespace WHERE name = ?", (home.namespace,)).fetchone()
    if found is None:
        message = f"{home.path} was replaced while it was in use; restart everything that uses it"
        raise Unavailable(message)
    tx = Transaction(db, Names(), found[0], home.time, {})
    # The letters could not wait for the commit, and whoever is idle stays known to be.
    tx.wake_nobody()
    replies = submit(tx, jobs)
    tx.flush()
    return replies


def _failed(db: sqlite3.Connection, error: BaseException, path: Path) -> PlugqError:
    """Return what an error of the user's connection means."""
    found = fault(error, path)
    if isinstance(found, Unavailable):
        ended = "SQLite has rolled your transaction back"
        kept = "your transaction is as it was before the call"
        return Unavailable(f"{found}; {kept if db.in_transaction else ended}")
    return found
