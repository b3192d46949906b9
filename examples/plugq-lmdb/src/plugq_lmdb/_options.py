"""The options of the storage and what they come to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from plugq.duration import seconds
from plugq.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

#: The size of a new map in bytes; it doubles whenever it is full.
FIRST_SIZE = 1 << 26


class LmdbOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the jobs are kept and how much room they may take.

    ``path`` is a folder, relative to the configuration file; each namespace has one of its own in
    it. ``max_size`` is the most that the file of a namespace may grow to, in bytes.
    ``lock_timeout`` is how long a write waits for other processes before it ends as
    :class:`~plugq.errors.Unavailable`.
    """

    path: str
    max_size: int = 1 << 36
    lock_timeout: float | str = "5s"


@dataclass(frozen=True)
class Settings:
    """The options as the environment needs them."""

    folder: Path
    max_size: int
    lock_timeout: float


def settings_from(options: LmdbOptions, base: Path, namespace: str) -> Settings:
    """Return the settings that the options come to.

    Raises:
        ConfigError: they can not work.
    """
    if not options.path.strip() or "\0" in options.path:
        raise ConfigError('storage.path: name a folder, for instance path = "jobs"')
    if options.max_size < FIRST_SIZE:
        raise ConfigError(f"storage.max_size: give {FIRST_SIZE} bytes (64 MiB) or more")
    try:
        timeout = seconds(options.lock_timeout, name="storage.lock_timeout")
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    folder = (base / options.path).absolute() / f"{quote(namespace, safe='')}.lmdb"
    return Settings(folder, options.max_size, timeout)
