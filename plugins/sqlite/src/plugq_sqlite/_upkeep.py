"""What whoever runs a file may ask of it: what it keeps, and which version its tables have."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING, Literal

from plugq.protocols.upkeep import Fact, Layout
from plugq_sqlite._faults import unusable
from plugq_sqlite._schema import MIGRATIONS, check_owner, migrate

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def facts_of(synchronous: Literal["full", "normal"]) -> Sequence[Fact]:
    """Return what a file keeps of what was acknowledged, by how it is written."""
    if synchronous == "full":
        text = "what was acknowledged survives a loss of power (synchronous = full)"
    else:
        text = (
            "what was acknowledged survives a crash of its processes, and a loss of power all but "
            "the last moments before it (synchronous = normal)"
        )
    return [
        Fact(name="server", text=f"SQLite {sqlite3.sqlite_version}"),
        Fact(name="keeps", text=text, warning=synchronous != "full"),
        Fact(name="access", text="every process reads and writes the file and its folder"),
    ]


def look(path: Path, timeout: float) -> Layout:
    """Return the version of a file, without making one.

    Raises:
        ConfigError: it belongs to something else, or can not be opened.
        Unavailable: it is locked.
    """
    if path.parent.is_dir() and not path.exists():
        return Layout(version=0, newest=len(MIGRATIONS))
    try:
        address = f"{path.as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=timeout)) as db:
            return Layout(version=check_owner(db, path), newest=len(MIGRATIONS))
    except (sqlite3.Error, OSError) as error:
        raise unusable(error, path) from None


def apply(path: Path, timeout: float) -> Layout:
    """Bring a file to the newest version and return what it had.

    Raises:
        ConfigError: it belongs to something else, or can not be written.
        Unavailable: it is locked.
    """
    before = look(path, timeout)
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=timeout)) as db:
            migrate(db, path)
    except (sqlite3.Error, OSError) as error:
        raise unusable(error, path) from None
    return before
