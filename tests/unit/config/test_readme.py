"""The configuration that the README shows is one that plugq takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import plugq
from plugq.assembly import planned
from plugq.config import find_problems, load_config

README = Path(__file__).parents[3] / "README.md"
BLOCK = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_configurations_of_the_readme_have_no_problems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, whole = map(tomllib.loads, BLOCK.findall(README.read_text("utf-8")))
    monkeypatch.setenv("DATABASE_URL", "postgresql://user@localhost/shop")
    assert find_problems(server) == []
    assert load_config(server).storage.options["url"] == "postgresql://user@localhost/shop"
    assert find_problems(whole) == []
    config = load_config(whole)
    assert config.unsupported == ()
    app = plugq.App()

    @app.task
    async def hello(name: str) -> str:
        return name

    (nightly,) = planned(config, app)
    assert nightly.request.args == ("night",)
