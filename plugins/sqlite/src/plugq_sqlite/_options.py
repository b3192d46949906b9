"""The options of the storage and what they come to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from plugq.duration import seconds
from plugq.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path


class SqliteOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the file is and how it is used.

    ``path`` is relative to the configuration file. ``synchronous = "full"`` keeps what was
    acknowledged through a loss of power, ``"normal"`` only through a crash of the process.
    ``busy_timeout`` is how long a write waits for other processes, ``read_timeout`` how long a
    read may take; then they end as :class:`~plugq.errors.Unavailable`.
    """

    path: str
    synchronous: Literal["full", "normal"] = "full"
    busy_timeout: float | str = "5s"
    read_timeout: float | str = "10s"


def database_path(options: SqliteOptions, base: Path) -> Path:
    """Return the absolute path of the file.

    Raises:
        ConfigError: the option names no file.
    """
    text = options.path
    if not text.strip() or "\0" in text:
        message = 'storage.path: name a file, for instance path = "jobs.db"'
        raise ConfigError(message)
    if text == ":memory:" or text.startswith("file:"):
        message = (
            f"storage.path: {text!r} is no file name; give the path of a file, or "
            'use = "memory" for jobs that need not survive the process'
        )
        raise ConfigError(message)
    return (base / text).absolute()


def duration(value: float | str, name: str) -> float:
    """Return an option in seconds.

    Raises:
        ConfigError: it is no duration.
    """
    try:
        return seconds(value, name=f"storage.{name}")
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
