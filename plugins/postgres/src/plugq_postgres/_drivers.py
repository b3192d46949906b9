"""Connections of users: one way to run a statement on those of each driver.

No driver is imported here but through an object of it that the user has.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

T = TypeVar("T")

_SUPPORTED = (
    "pass a connection of asyncpg, psycopg or psycopg2, or a connection or session of SQLAlchemy "
    "on one of these"
)
_CLOSED = "it is closed"
_NO_TRANSACTION = "no transaction has begun on it; begin one, which is to have the jobs"
_FAILED = "its transaction has failed before; roll it back"
#: The transaction status of libpq.
_IDLE, _IN_ERROR, _UNKNOWN = 0, 3, 4


class Unusable(Exception):
    """What is wrong with a connection."""


class Driver:
    """A user's connection, on which statements run in the transaction that the user has begun."""

    #: What stands for the connection itself, the same each time.
    key: object

    def mark(self, place: int) -> str:
        """Return how a statement names its argument at a place, from 1 on."""
        del place
        return "%s"

    def literal(self, text: str) -> str:
        """Return how a text stands in a statement that has arguments."""
        return text.replace("%", "%%")

    async def fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        """Run a statement and return its first row."""
        raise NotImplementedError


class _Asyncpg(Driver):
    def __init__(self, connection: Any) -> None:
        # A pool's proxy is made anew each time; one that was given back has nothing behind it.
        self.key = getattr(connection, "_con", connection)
        if self.key is None or connection.is_closed():
            raise Unusable(_CLOSED)
        if not connection.is_in_transaction():
            raise Unusable(_NO_TRANSACTION)
        self._connection = connection

    def mark(self, place: int) -> str:
        return f"${place}"

    def literal(self, text: str) -> str:
        return text

    async def fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        row = await self._connection.fetchrow(statement, *values)
        return None if row is None else tuple(row)


class _Psycopg(Driver):
    """psycopg 3, of either kind, with a plain cursor whatever the user has set."""

    def __init__(self, connection: Any, *, waits: bool) -> None:
        _check_libpq(
            closed=connection.closed,
            autocommit=connection.autocommit,
            status=int(connection.info.transaction_status),
        )
        self.key = connection
        self._waits = waits
        cursor = import_module("psycopg").Cursor if waits else import_module("psycopg").AsyncCursor
        tuples = import_module("psycopg.rows").tuple_row
        self._cursor: Callable[[], Any] = lambda: cursor(connection, row_factory=tuples)

    async def fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        if self._waits:
            return await _in_thread(lambda: self._fetch(statement, values))
        async with self._cursor() as cursor:
            await cursor.execute(statement, values, prepare=False)
            row: Sequence[Any] | None = await cursor.fetchone()
            return row

    def _fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        with self._cursor() as cursor:
            cursor.execute(statement, values, prepare=False)
            row: Sequence[Any] | None = cursor.fetchone()
            return row


class _Psycopg2(Driver):
    def __init__(self, connection: Any) -> None:
        _check_libpq(
            closed=bool(connection.closed),
            autocommit=connection.autocommit,
            status=connection.get_transaction_status(),
        )
        self.key = self._connection = connection

    async def fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        return await _in_thread(lambda: self._fetch(statement, values))

    def _fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        plain = import_module("psycopg2.extensions").cursor
        with self._connection.cursor(cursor_factory=plain) as cursor:
            cursor.execute(statement, tuple(values))
            row: Sequence[Any] | None = cursor.fetchone()
            return row


class _Alchemy(Driver):
    """A connection of SQLAlchemy, which begins its transaction with the first statement."""

    def __init__(self, connection: Any, raw: Any, *, waits: bool) -> None:
        self.key = raw.driver_connection
        self._connection = connection
        self._waits = waits
        self._numbered = connection.dialect.driver == "asyncpg"

    def mark(self, place: int) -> str:
        return f"${place}" if self._numbered else "%s"

    def literal(self, text: str) -> str:
        return text if self._numbered else super().literal(text)

    async def fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        if self._waits:
            return await _in_thread(lambda: self._fetch(statement, values))
        result = await self._connection.exec_driver_sql(statement, tuple(values))
        row: Sequence[Any] | None = result.fetchone()
        return row

    def _fetch(self, statement: str, values: Sequence[Any]) -> Sequence[Any] | None:
        row: Sequence[Any] | None = self._connection.exec_driver_sql(
            statement, tuple(values)
        ).fetchone()
        return row


def _check_libpq(*, closed: bool, autocommit: bool, status: int) -> None:
    if closed or status == _UNKNOWN:
        raise Unusable(_CLOSED)
    if status == _IN_ERROR:
        raise Unusable(_FAILED)
    if autocommit and status == _IDLE:
        raise Unusable(_NO_TRANSACTION)


async def _alchemy_async(connection: Any) -> Driver:
    if connection.closed:
        raise Unusable(_CLOSED)
    return _checked_alchemy(connection, await connection.get_raw_connection(), waits=False)


async def _alchemy_async_session(session: Any) -> Driver:
    return await _alchemy_async(await _opened(session.connection()))


async def _alchemy(connection: Any) -> Driver:
    if connection.closed:
        raise Unusable(_CLOSED)
    _check_sync(connection)
    raw = await _in_thread(lambda: connection.connection)
    return _checked_alchemy(connection, raw, waits=True)


async def _alchemy_session(session: Any) -> Driver:
    def open_() -> Any:
        _check_sync(session.get_bind())
        return session.connection()

    return await _alchemy(await _opened(_in_thread(open_)))


def _check_sync(bind: Any) -> None:
    if bind.dialect.is_async:
        message = "SQLAlchemy drives it by asyncio; pass the AsyncConnection or AsyncSession itself"
        raise Unusable(message)


def _checked_alchemy(connection: Any, raw: Any, *, waits: bool) -> Driver:
    dialect = connection.dialect
    if dialect.name != "postgresql" or dialect.driver not in _DRIVERS:
        message = f"SQLAlchemy drives it by {dialect.name}+{dialect.driver}; {_SUPPORTED}"
        raise Unusable(message)
    if raw.dbapi_connection.autocommit:
        raise Unusable(_NO_TRANSACTION)
    return _Alchemy(connection, raw, waits=waits)


#: The drivers of SQLAlchemy that are supported.
_DRIVERS = {"asyncpg", "psycopg", "psycopg_async", "psycopg2"}


async def _opened(opening: Awaitable[T]) -> T:
    """Wait for the connection of a session, which tells by its own errors why there is none."""
    try:
        return await opening
    except Unusable:
        raise
    except Exception as error:
        if getattr(error, "orig", None) is not None:
            raise
        text = " ".join(str(error).split())
        raise Unusable(text) from error


async def _in_thread(call: Callable[[], T]) -> T:
    """Run what blocks without holding up the loop.

    It is waited for whatever happens: a statement that still ran when the user had ended the
    transaction would begin the next one.
    """
    task = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError:
                continue
        raise


async def _plain(made: Driver) -> Driver:
    return made


#: By package and class, in the order in which a class is looked at with its bases.
_KINDS: dict[tuple[str, str], Callable[[Any], Awaitable[Driver]]] = {
    ("asyncpg", "Connection"): lambda it: _plain(_Asyncpg(it)),
    ("asyncpg", "PoolConnectionProxy"): lambda it: _plain(_Asyncpg(it)),
    ("psycopg", "AsyncConnection"): lambda it: _plain(_Psycopg(it, waits=False)),
    ("psycopg", "Connection"): lambda it: _plain(_Psycopg(it, waits=True)),
    ("psycopg2", "connection"): lambda it: _plain(_Psycopg2(it)),
    ("sqlalchemy", "AsyncConnection"): _alchemy_async,
    ("sqlalchemy", "AsyncSession"): _alchemy_async_session,
    ("sqlalchemy", "async_scoped_session"): _alchemy_async_session,
    ("sqlalchemy", "Connection"): _alchemy,
    ("sqlalchemy", "Session"): _alchemy_session,
    ("sqlalchemy", "scoped_session"): _alchemy_session,
}


async def driver(connection: object) -> Driver:
    """Return what runs statements on a connection of a user, by the driver that made it.

    Raises:
        Unusable: it is of no kind that is supported, is closed, or has no transaction.
    """
    for kind in type(connection).__mro__:
        made = _KINDS.get((kind.__module__.partition(".")[0], kind.__name__))
        if made is not None:
            return await made(connection)
    message = f"{type(connection).__name__} is no connection that can be used; {_SUPPORTED}"
    raise Unusable(message)
