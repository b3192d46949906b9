"""The configuration that the README shows is one that plugq takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import plugq
from plugq.assembly import planned
from plugq.config import find_problems, load_config

README = Path(__file__).parents[3] / "README.md"


def test_the_configuration_of_the_readme_has_no_problems() -> None:
    (text,) = re.findall(
        r"^```toml\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    table = tomllib.loads(text)
    assert find_problems(table) == []
    config = load_config(table)
    assert config.unsupported == ()
    app = plugq.App()

    @app.task
    async def hello(name: str) -> str:
        return name

    (nightly,) = planned(config, app)
    assert nightly.request.args == ("night",)
