"""What the command line of ``run.py`` says, for every benchmark."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stores import Store


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured, where the files lie, and of which storage.

    ``None`` leaves a size to the benchmark, and the storages as well: memory and SQLite.
    """

    jobs: int | None
    processes: int | None
    repeat: int
    quick: bool
    folder: Path
    store: Store | None

    @contextlib.contextmanager
    def folder_for(self, name: str) -> Iterator[Path]:
        """Give an empty folder, which is removed after the block."""
        path = Path(tempfile.mkdtemp(prefix=f"plugq-bench-{name}-", dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
