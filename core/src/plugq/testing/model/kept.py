"""The histories that are kept as regressions: JSON files, each with the steps of one history."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plugq.testing.model.steps import Step


def kept() -> Iterator[tuple[str, list[Step]]]:
    """Iterate over the kept histories and their names, by name."""
    folder = files("plugq.testing").joinpath("histories")
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            steps = json.loads(file.read_text(encoding="utf-8"))
            yield (
                file.name.removesuffix(".json"),
                [(verb, arguments) for verb, arguments in steps],
            )


__all__ = ["kept"]
