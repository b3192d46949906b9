"""One deployment on each storage; a test asks for a capability where it needs one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

#: The storages that every test of this folder runs on.
STORAGES: dict[str, dict[str, Any]] = {
    "memory": {},
    "sqlite": {"storage": {"use": "sqlite", "path": "jobs.db"}},
}


@pytest.fixture(params=sorted(STORAGES))
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """A configuration on a store of its own."""
    config = {key: dict(value) for key, value in STORAGES[request.param].items()}
    if "storage" in config:
        config["storage"]["path"] = str(tmp_path / "jobs.db")
    return config
