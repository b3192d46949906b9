"""The files that ``plugq demo`` works on, and what a direct look at them says."""

from __future__ import annotations

import hashlib
import os
import stat
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Python writes into these while the demo runs, so that their files are not the same for long.
CACHES = frozenset({"__pycache__"})
#: Folders inside that of the standard library which are none of it.
ADDED = frozenset({"dist-packages", "site-packages"})


class Found(msgspec.Struct, frozen=True):
    """The files to work on, and how many were left out because no job can name or read them."""

    folder: str
    paths: tuple[str, ...]
    left_out: int


def find_files(folder: str | None = None, most: int | None = None) -> Found:
    """Return the regular files below a folder that can be read, in the order of their names.

    Without a folder it is that of Python's standard library. Symbolic links are not followed, and
    caches of Python left out. ``most`` is the most files to return.
    """
    skipped = CACHES if folder is not None else CACHES | ADDED
    folder = os.path.abspath(folder or sysconfig.get_path("stdlib"))  # noqa: PTH100 - names that are no UTF-8 stay as they are
    paths: list[str] = []
    left_out = 0
    for path in _walk(folder, skipped):
        if most is not None and len(paths) >= most:
            break
        if _usable(path):
            paths.append(path)
        else:
            left_out += 1
    return Found(folder, tuple(paths), left_out)


def look(path: str) -> dict[str, str | int]:
    """Return SHA-256, size, lines and words of a file, found in another way than the job does.

    Raises:
        OSError: the file can not be read.
    """
    size = lines = words = 0
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        for line in file:
            size += len(line)
            lines += line.endswith(b"\n")
            words += len(line.split())
    return {"sha256": sha256, "size": size, "lines": lines, "words": words}


def _walk(folder: str, skipped: frozenset[str]) -> Iterator[str]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in skipped)
        for name in sorted(names):
            yield os.path.join(place, name)  # noqa: PTH118 - thousands of them


def _usable(path: str) -> bool:
    try:
        path.encode()
        return stat.S_ISREG(os.lstat(path).st_mode) and os.access(path, os.R_OK)
    except (OSError, UnicodeEncodeError):
        return False


__all__ = ["Found", "find_files", "look"]
