"""What the command line of ``run.py`` says, for every benchmark."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How much is measured and where the files lie; ``None`` leaves a size to the benchmark."""

    jobs: int | None
    processes: int | None
    repeat: int
    quick: bool
    folder: Path

    @contextlib.contextmanager
    def folder_for(self, name: str) -> Iterator[Path]:
        """Give an empty folder, which is removed after the block."""
        path = Path(tempfile.mkdtemp(prefix=f"plugq-bench-{name}-", dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
