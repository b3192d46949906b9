"""What most commands begin with: the configuration, its application, a client on it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from plugq.assembly import connect, import_module, load_app
from plugq.cli.failure import log_to_stderr
from plugq.cli.output import plural, safe
from plugq.config import load_config
from plugq.errors import ConfigError
from plugq.redaction import redact

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from plugq.assembly import App
    from plugq.client import Client
    from plugq.config import Config

T = TypeVar("T")
#: What click makes of an option or argument: a decorator that keeps its function.
Decorates = Callable[[Callable[..., Any]], Callable[..., Any]]
#: Options of storages that say where the jobs are, in the order in which they are looked for.
_PLACES = ("path", "url", "dsn", "endpoint")
#: Tasks and queues that a line names before it only counts.
_NAMED = 5

config_option: Decorates = click.option(
    "-c",
    "--config",
    "file",
    metavar="FILE",
    help="The configuration. Without it: $PLUGQ_CONFIG, else plugq.toml here or in a folder above.",
)
json_option: Decorates = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document, for programs."
)


def read_config(file: str | None, *, app: str | None = None) -> Config:
    """Return the configuration of a command, with ``app`` in place of its own if given.

    Modules in the folder of the file can be imported from here on: an application, a plugin.
    """
    log_to_stderr()
    config = load_config(file)
    folder = str(config.base_dir.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return config if app is None else msgspec.structs.replace(config, app=app)


def import_app(config: Config) -> App:
    """Import the application and the modules that it includes.

    What they print goes to standard error, where it does not mix with the output.

    Raises:
        ConfigError: none is named, or it can not be imported.
    """
    if config.app is None:
        where = config.path or "the configuration"
        message = f'{where} names no application; add app = "jobs" for jobs.py, or pass --app'
        raise ConfigError(message)
    with contextlib.redirect_stdout(sys.stderr):
        app = load_app(config.app, config)
        for module in app.include:
            import_module(module, config)
    return app


@asynccontextmanager
async def opened(config: Config) -> AsyncIterator[Client]:
    """Give a client while the block runs.

    Raises:
        ConfigError: nobody else could see the jobs of that storage.
    """
    async with connect(config) as client:
        yield client


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end; Ctrl-C cancels it and raises ``KeyboardInterrupt``."""
    return asyncio.run(work)


def with_client(config: Config, work: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
    """Run a function with a client."""

    async def inside() -> T:
        async with opened(config) as client:
            return await work(client)

    return run(inside())


def describe(config: Config, tasks: Sequence[str], queues: Sequence[str]) -> str:
    """Return in one line where the jobs are, which tasks there are and which queues are served."""
    return " · ".join(
        (
            describe_storage(config),
            f"{plural(len(tasks), 'task')} ({_names(tasks)})" if tasks else "no tasks",
            f"{'queue' if len(queues) == 1 else 'queues'} {_names(queues)}",
        )
    )


def describe_storage(config: Config) -> str:
    """Return the storage and where it keeps the jobs, without secrets."""
    options = redact(config.storage.options)
    place = next((str(options[key]) for key in _PLACES if key in options), "")
    return safe(f"{config.storage.use} {place}".strip())


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join([*map(safe, names[:_NAMED]), *([f"{more} more"] if more > 0 else [])])


__all__ = [
    "config_option",
    "describe",
    "describe_storage",
    "import_app",
    "json_option",
    "opened",
    "read_config",
    "run",
    "with_client",
]
