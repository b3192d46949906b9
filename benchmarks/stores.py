"""The storages that are measured, and deployments over them that nobody has used before."""

from __future__ import annotations

import json
import secrets
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Store:
    """A storage as a configuration names it, and what it is called in the figures.

    ``{folder}`` and ``{name}`` in a text among its options stand for the folder of the measurement
    and for a name that no other deployment has, which is its namespace, too.
    """

    name: str
    options: Mapping[str, Any]

    def deployment(self, folder: Path, name: str = "jobs") -> dict[str, Any]:
        """Return the configuration of an empty store."""
        unique = f"{name}_{secrets.token_hex(4)}"

        def filled(value: object) -> object:
            if not isinstance(value, str):
                return value
            return value.replace("{folder}", str(folder)).replace("{name}", unique)

        options = {key: filled(value) for key, value in self.options.items()}
        return {"namespace": unique, "storage": options}

    def write(self, folder: Path, name: str = "jobs") -> Path:
        """Write the configuration of an empty store in which the tasks of ``jobs.py`` run."""
        found = self.deployment(folder, name)
        lines = ['app = "jobs"', f"namespace = {json.dumps(found['namespace'])}", "[storage]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in found["storage"].items()]
        path = folder / f"{name}.toml"
        path.write_text("\n".join([*lines, ""]), "utf-8")
        return path


MEMORY = Store(name="memory", options={"use": "memory"})


def sqlite(synchronous: str = "full") -> Store:
    path = "{folder}/{name}.db"
    return Store(
        name=f"SQLite {synchronous}",
        options={"use": "sqlite", "path": path, "synchronous": synchronous},
    )


def chosen(use: str, name: str | None, settings: Sequence[str]) -> Store:
    """Return the storage of a command line.

    Raises:
        ValueError: one of the settings is not ``KEY=VALUE``.
    """
    options: dict[str, Any] = {"use": use}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not key or not equals:
            message = f"{setting!r} is no KEY=VALUE"
            raise ValueError(message)
        options[key] = _value(text)
    return Store(name=name or use, options=options)


def _value(text: str) -> object:
    """Return what a text says in TOML, or else the text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
