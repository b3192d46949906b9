"""What PostgreSQL and its driver say, in words of plugq."""

from __future__ import annotations

import asyncpg

from plugq.errors import ConfigError, InvalidJob, OutcomeUnknown, PlugqError, Unavailable
from plugq_postgres._access import grants
from plugq_postgres._options import without_secrets

_exceptions = asyncpg.exceptions

#: The server took everything back since two calls waited for each other; the call is made again.
AGAIN = (
    _exceptions.DeadlockDetectedError,
    _exceptions.SerializationError,
    # A number that a restored job had for its own before whoever took it had committed.
    _exceptions.UniqueViolationError,
)
#: After these a connection is of no use any more, whatever it says of itself.
SPOILED = (
    _exceptions.ReadOnlySQLTransactionError,
    _exceptions.OperatorInterventionError,
    _exceptions.PostgresConnectionError,
    _exceptions.OutdatedSchemaCacheError,
    OSError,
    TimeoutError,
)


class HeldUp(Unavailable):
    """Nothing happened, since others held a queue of the call for too long."""


_TEXTS: tuple[tuple[type[Exception], str], ...] = (
    (
        _exceptions.QueryCanceledError,
        "the call was cancelled, or took longer than statement_timeout",
    ),
    (_exceptions.ReadOnlySQLTransactionError, "it takes no writes, as a standby; name the primary"),
    (_exceptions.TooManyConnectionsError, "it has no connection left; lower storage.pool_size"),
    (_exceptions.DiskFullError, "its disk is full; free some space"),
    (_exceptions.OutOfMemoryError, "it is out of memory"),
    (
        _exceptions.IdleInTransactionSessionTimeoutError,
        "this process was stopped in the midst of the call",
    ),
    (_exceptions.CannotConnectNowError, "it is starting up or shutting down"),
    (
        _exceptions.InsufficientPrivilegeError,
        "the user may not use the schema; grant it all rights on its tables and sequences",
    ),
    (_exceptions.UndefinedFunctionError, "the schema is not as it was; run the migrations"),
    (_exceptions.UndefinedTableError, "the schema is not as it was; run the migrations"),
    (_exceptions.InvalidSchemaNameError, "the schema is gone; run the migrations"),
)
#: The connection broke while the server had the call, so that nobody knows what became of it.
_BROKEN = (
    _exceptions.AdminShutdownError,
    _exceptions.CrashShutdownError,
    _exceptions.PostgresConnectionError,
    _exceptions.InternalClientError,
    OSError,
    TimeoutError,
)
_UNSTORABLE = (_exceptions.DataError, asyncpg.DataError, OverflowError, UnicodeError)
_REFUSED = (
    _exceptions.InvalidAuthorizationSpecificationError,
    _exceptions.InvalidCatalogNameError,
    _exceptions.ClientConfigurationError,
)


def fault(error: BaseException, server: str, *, written: bool = False) -> Exception:
    """Return what an error of a call means to its caller.

    ``written`` says that the server may have had a write when the error arose.
    """
    if isinstance(error, PlugqError):
        return error
    if isinstance(error, _exceptions.ProgramLimitExceededError):
        return InvalidJob(f"a name is too long for PostgreSQL; shorten it: {_line(error)}")
    if getattr(error, "sqlstate", None) == "PQ002":
        return Unavailable(f"{server} has lost queues that it had; try again")
    if isinstance(error, _exceptions.LockNotAvailableError):
        return held_up(server)
    for kind, text in _TEXTS:
        if isinstance(error, kind):
            return Unavailable(f"{server}: {text}")
    if written and isinstance(error, _BROKEN):
        return OutcomeUnknown(f"{server}: the connection broke before the answer came")
    if isinstance(error, TimeoutError):
        return Unavailable(f"{server} did not answer in time")
    if isinstance(error, _UNSTORABLE):
        return InvalidJob(f"a value can not be stored in PostgreSQL: {_line(error)}")
    return Unavailable(f"{server}: {type(error).__name__}: {_line(error)}")


def held_up(server: str) -> HeldUp:
    """Return what its caller gets when others held a queue for too long."""
    return HeldUp(f"{server}: other calls held the queue for longer than lock_timeout")


def unusable(error: BaseException, server: str, url: str, schema: str) -> Exception:
    """Return what it means that the storage could not start; the password of the URL stays out."""
    if isinstance(error, _REFUSED):
        return ConfigError(f"storage.url: {server} refuses: {without_secrets(url, _line(error))}")
    if isinstance(error, _exceptions.InsufficientPrivilegeError):
        return ConfigError(
            f"storage.schema: {server} refuses: {_line(error)}; let somebody who may run "
            f"plugq migrate, and then {grants(schema)}"
        )
    if isinstance(error, _exceptions.ProgramLimitExceededError):
        return ConfigError("namespace: it is too long for PostgreSQL; shorten it")
    if isinstance(error, OverflowError | ValueError):
        # What the driver says of a port, or of an option that it does not know.
        said = without_secrets(url, _line(error))
        return ConfigError(f"storage.url: {server} can not be used: {said}")
    if isinstance(error, _exceptions.LockNotAvailableError):
        return Unavailable(
            f"{server}: another process has the schema {schema!r} for itself; try again"
        )
    return fault(error, server)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or "no reason given"
