"""The application of ``plugq demo``: what is to be known of a file."""

from __future__ import annotations

import hashlib
from pathlib import Path

from plugq.assembly import App

#: Bytes that are read at a time.
CHUNK = 256 * 1024

app: App = App()


@app.task("plugq.demo.digest", queue="demo")
def digest(path: str) -> dict[str, str | int]:
    """Return SHA-256, size, lines and words of a file, read in chunks."""
    sha256 = hashlib.sha256()
    size = lines = words = 0
    inside = False
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            sha256.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
            words += len(chunk.split())
            if inside and not chunk[:1].isspace():
                # The word that the chunk before ended in goes on and was counted there.
                words -= 1
            inside = not chunk[-1:].isspace()
    return {"sha256": sha256.hexdigest(), "size": size, "lines": lines, "words": words}


__all__ = ["app", "digest"]
