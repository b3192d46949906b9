"""From a file or a mapping to a :class:`~plugq.config.model.Config`."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from plugq.config.environment import FILE_VARIABLE, expanded, overridden
from plugq.config.model import KEYS, Config
from plugq.errors import ConfigError
from plugq.fields import InvalidConfig, Reader

ConfigLike = str | Path | Mapping[str, Any] | Config | None
FILE_NAME = "plugq.toml"


def load_config(
    source: ConfigLike = None,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> Config:
    """Return the configuration of a file, a folder with ``plugq.toml``, or a mapping.

    Without a source it is the file that ``PLUGQ_CONFIG`` names, else the ``plugq.toml`` here or in
    the nearest parent folder. The environment counts for files and mappings alike; a ``Config``
    comes back as it is. ``environ`` and ``cwd`` stand in for those of the process.

    Raises:
        ConfigError: it can not be found, read or used. Where values are wrong, ``problems`` holds
            a line for each of them and the message is the first.
    """
    if isinstance(source, Config):
        return source
    reader = Reader()
    config = _read(source, reader, os.environ if environ is None else environ, cwd)
    reader.finish()
    if config is None:  # pragma: no cover - the reader has a line for whatever it refuses
        message = "the configuration can not be read"
        raise ConfigError(message)
    return config


def find_problems(
    source: ConfigLike = None,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
) -> list[str]:
    """Return a line for everything that is wrong in a configuration, none if it can be used."""
    try:
        load_config(source, environ=environ, cwd=cwd)
    except InvalidConfig as error:
        return list(error.problems)
    except ConfigError as error:
        return [str(error)]
    return []


def find_file(*, environ: Mapping[str, str] | None = None, cwd: str | Path | None = None) -> Path:
    """Return the file that applies where none is named.

    Raises:
        ConfigError: there is none, or ``PLUGQ_CONFIG`` names one that does not exist.
    """
    environ = os.environ if environ is None else environ
    here = Path.cwd() if cwd is None else Path(cwd).absolute()
    named = environ.get(FILE_VARIABLE)
    if named:
        path = _file(here / Path(named).expanduser())
        if not path.is_file():
            message = f"{FILE_VARIABLE} names {path}, which is not there"
            raise ConfigError(message)
        return path
    for folder in (here, *here.parents):
        path = folder / FILE_NAME
        if path.is_file():
            return path
    message = f"no {FILE_NAME} in {here} or a parent folder; run `plugq init` to make one"
    raise ConfigError(message)


def _file(path: Path) -> Path:
    return path / FILE_NAME if path.is_dir() else path


def _read(
    source: str | Path | Mapping[str, Any] | None,
    reader: Reader,
    environ: Mapping[str, str],
    cwd: str | Path | None,
) -> Config | None:
    path: Path | None = None
    base = Path.cwd() if cwd is None else Path(cwd).absolute()
    if isinstance(source, Mapping):
        table: Mapping[str, Any] = source
    elif source is None or isinstance(source, str | Path):
        path = find_file(environ=environ, cwd=base) if source is None else None
        path = path or _file(base / Path(source or "").expanduser())
        base = path.parent
        table = _parse(path)
    else:
        message = f"expected the path of a file or a mapping, got {type(source).__name__}"
        raise ConfigError(message)
    table = overridden(table, environ, KEYS, reader.problems)
    table = expanded(table, environ, reader.problems)
    config = Config.from_table(table, reader)
    return config and msgspec.structs.replace(config, path=path, base_dir=base)


def _parse(path: Path) -> dict[str, Any]:
    try:
        # Windows editors put a byte order mark in front, which TOML does not know.
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        message = f"{path} is not there; run `plugq init` to make a configuration"
        raise ConfigError(message) from None
    except OSError as error:
        message = f"{path} can not be read: {error.strerror or error}"
        raise ConfigError(message) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        message = f"{path}, line {line}: not UTF-8 text"
        raise ConfigError(message) from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        message = f"{path}, {_where(error)}"
        raise ConfigError(message) from error


def _where(error: Exception) -> str:
    """Return ``line 3, column 5: what`` for what the parser ends with ``(at line 3, column 5)``."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    what, _, place = str(error).rpartition(" (at ")
    return f"{place.rstrip(')')}: {what[:1].lower()}{what[1:]}" if what else str(error)


__all__ = ["FILE_NAME", "ConfigLike", "find_file", "find_problems", "load_config"]
