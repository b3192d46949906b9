"""Imports the modules that users name, and says in one line what went wrong."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

from plugq.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from plugq.config import Config


def import_module(name: str, config: Config) -> ModuleType:
    """Import a module of the user's, with the folder of the configuration first on the path.

    Raises:
        ConfigError: it can not be imported; the message names the module, its file and the cause.
    """
    folder = str(config.base_dir.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        # A SyntaxError names its place in its text too.
        said = error.msg if isinstance(error, SyntaxError) else error
        cause = f"{type(error).__name__}: {said}".splitlines()[0]
        message = f"app: module {name!r} can not be imported: {cause}{_line_of(error)}"
        raise ConfigError(message) from error


def _line_of(error: BaseException) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        ours = trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "plugq"
        if not file.startswith("<frozen") and "importlib" not in file and not ours:
            place = f" ({file}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return place


def place_of(module: ModuleType) -> str:
    """Return where a module comes from, for a message."""
    return str(getattr(module, "__file__", None) or module.__name__)


__all__ = ["import_module", "place_of"]
