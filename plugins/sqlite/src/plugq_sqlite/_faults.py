"""What SQLite says, in words of plugq."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from plugq.errors import ConfigError, InvalidJob, OutcomeUnknown, PlugqError, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

#: Errors that mean "locked by another connection".
BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})

_TEXTS = {
    sqlite3.SQLITE_FULL: "the disk that holds {path} is full; free some space",
    sqlite3.SQLITE_IOERR: "{path} can not be read or written ({error}); check the disk",
    sqlite3.SQLITE_CORRUPT: "{path} is damaged; stop its users and restore it from a backup",
    sqlite3.SQLITE_NOTADB: "{path} is no longer a database; stop its users and restore it",
    sqlite3.SQLITE_READONLY: "{path} can not be written; check its permissions and its folder's",
    sqlite3.SQLITE_CANTOPEN: "{path} can not be opened; check that its folder is there",
    sqlite3.SQLITE_PERM: "{path} can not be opened; check its permissions",
    sqlite3.SQLITE_NOMEM: "there is no memory left to use {path}",
    sqlite3.SQLITE_INTERRUPT: "reading {path} took longer than read_timeout; ask for less",
}
_UNUSABLE = frozenset(
    {
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
    },
)


def code_of(error: BaseException) -> int:
    """Return the primary result code of an SQLite error, 0 for any other."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def locked(path: Path, seconds: float) -> Unavailable:
    """Return the error of a write that did not get its turn."""
    return Unavailable(
        f"{path} was locked by other processes for {seconds:g} s; raise storage.busy_timeout or "
        "look for a program that holds the file",
    )


def fault(error: BaseException, path: Path) -> PlugqError:
    """Return what an error of a call that did not happen means to its caller."""
    if isinstance(error, PlugqError):
        return error
    if code_of(error) in BUSY:
        return Unavailable(f"{path} is locked by another process; try again")
    text = _TEXTS.get(code_of(error))
    if text is not None:
        return Unavailable(text.format(path=path, error=error))
    if isinstance(error, OverflowError | UnicodeEncodeError | sqlite3.DataError):
        return InvalidJob(f"a value can not be stored in SQLite: {error}")
    if code_of(error) == sqlite3.SQLITE_CONSTRAINT:
        return InvalidJob(f"a value can not be stored in SQLite, such as a NaN: {error}")
    if code_of(error) == sqlite3.SQLITE_TOOBIG:
        return InvalidJob("a value is larger than SQLite can store")
    return Unavailable(f"{path}: {type(error).__name__}: {error}")


def unfinished(error: sqlite3.Error, path: Path) -> PlugqError:
    """Return what it means that a commit failed."""
    if code_of(error) == sqlite3.SQLITE_IOERR:
        # What was written may or may not be found again when the file is next opened.
        return OutcomeUnknown(f"{path} failed while writing ({error}); check the disk")
    return fault(error, path)


def unusable(error: BaseException, path: Path) -> PlugqError:
    """Return what it means that a file could not be opened when the storage started."""
    code = code_of(error)
    if path.is_dir():
        return ConfigError(f"storage.path: {path} is a folder; name a file")
    if not path.parent.is_dir():
        return ConfigError(f"storage.path: there is no folder {path.parent}; create it")
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigError(f"storage.path: {path} is not a database; name another file")
    if code in _UNUSABLE:
        return ConfigError(f"storage.path: {path} can not be written; check its permissions")
    return fault(error, path)
