"""``plugq check``: everything that keeps a deployment from working, found before it runs."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plugq.assembly import Assembly, planned
from plugq.cli.deployment import (
    config_option,
    describe_storage,
    import_app,
    json_option,
    read_config,
    run,
)
from plugq.cli.failure import MISTAKE, log_to_stderr
from plugq.cli.output import note, print_facts, print_json, safe, say
from plugq.config import find_file, find_problems, load_config
from plugq.config.environment import PREFIX
from plugq.errors import ConfigError, PluginError, PlugqError
from plugq.fields import join, suggestion
from plugq.protocols import Explaining
from plugq.registry import Registry
from plugq.submission import OptionTables, queues_of
from plugq.task import Tasks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from plugq.config import Config, PluginChoice
    from plugq.protocols import Fact
    from plugq.task import Task


@click.command()
@config_option
@click.option("--no-app", is_flag=True, help="Do not import the application.")
@json_option
@click.pass_context
def check(ctx: click.Context, *, file: str | None, no_app: bool, as_json: bool) -> None:
    """Look for everything that is wrong with a deployment.

    Reads the file, the options of its plugins, the application and its modules, and opens the
    storage. Each problem is one line, and any makes the command fail with exit code 2. Without one
    the storage says what it promises and needs.
    """
    log_to_stderr()
    problems = find_problems(file)
    config = _loadable(file) if problems else read_config(file)
    facts: list[Fact] = []
    if config is not None:
        problems += list(_problems(config, facts, with_app=not no_app))
    problems = list(dict.fromkeys(problems))
    if as_json:
        print_json({"problems": problems, "storage": _storage_document(config, facts)})
    for problem in problems if not as_json else ():
        say(safe(problem))
    if problems:
        ctx.exit(MISTAKE)
    if not as_json and config is not None:
        say(f"{safe(config.path)}: no problems · {describe_storage(config)}")
        print_facts({fact.name: fact.text for fact in facts})


def _storage_document(config: Config | None, facts: Sequence[Fact]) -> dict[str, Any] | None:
    return None if config is None else {"use": config.storage.use, "facts": facts}


def _loadable(file: str | None) -> Config | None:
    """Return the configuration without the sections that have problems, if that can be read."""
    try:
        path = find_file() if file is None else Path(file)
        table = tomllib.loads(path.read_text("utf-8-sig"))
        bad = {line.partition(":")[0].partition(".")[0] for line in find_problems(file)}
        rest = {key: value for key, value in table.items() if key not in bad}
        environ = {
            name: value
            for name, value in os.environ.items()
            if name.removeprefix(PREFIX).partition("__")[0].lower() not in bad
        }
        return load_config(rest, environ=environ, cwd=path.absolute().parent)
    except (OSError, ValueError):
        return None


def _problems(config: Config, facts: list[Fact], *, with_app: bool) -> Iterator[str]:
    yield from config.unsupported
    registry = Registry(disabled=config.plugins.disabled, allow=config.plugins.allow)
    plugins = list(_plugin_problems(config, registry))
    yield from plugins
    if with_app and config.app is not None:
        try:
            app = import_app(config)
        except ConfigError as error:
            yield str(error)
        else:
            yield from _name_problems(config, app.tasks)
            yield from _schedule_problems(config, app)
    else:
        if with_app:
            note("plugq: note: no application is named, without which there is no `plugq worker`")
        yield from _schedule_problems(config, Tasks())
    if not plugins and not config.unsupported:
        yield from _storage_problems(config, facts)


def _plugin_problems(config: Config, registry: Registry) -> Iterator[str]:
    for kind, path, choice in _choices(config):
        yield from registry.problems(kind, choice.use, choice.options, path=path)


def _choices(config: Config) -> Iterator[tuple[str, str, PluginChoice]]:
    yield "storage", "storage", config.storage
    yield "serde", "serde", config.serde
    for name, queue in config.queues.items():
        for path, limiter in queue.limiters(name):
            yield "limiter", path, limiter
    # A transport is refused as a whole where this version can not carry it out.
    if config.transport is not None and not config.unsupported:
        yield "transport", "transport", config.transport


def _name_problems(config: Config, tasks: Mapping[str, Task[Any, Any]]) -> Iterator[str]:
    for name in config.tasks:
        if name not in tasks:
            hint = suggestion(name, tasks).replace("; it takes none", "; it has none")
            yield f"{join('tasks', name)}: {config.app} has no such task{hint}"
    for name, schedule in config.schedules.items():
        if schedule.task not in tasks:
            hint = suggestion(schedule.task, tasks)
            path = join(join("schedules", name), "task")
            yield f"{path}: {config.app} has no task {schedule.task!r}{hint}"
    tables = OptionTables(
        tasks=dict(config.tasks), queues=dict(config.queues), defaults=config.defaults
    )
    used = queues_of(tasks, tables)
    served = config.worker.queues
    if served is None:
        return
    for queue in served:
        if queue not in used:
            hint = suggestion(queue, used)
            yield (
                f"worker.queues: no task and no [queues] names {queue!r}{hint} "
                f"(if it is right, write [{join('queues', queue)}])"
            )
    plain = OptionTables(tasks=tables.tasks, defaults=tables.defaults)
    for name, task in tasks.items():
        queue = queues_of({name: task}, plain)[0]
        if queue not in served:
            note(f"plugq: note: [worker] queues leaves out {safe(queue)}, where {safe(name)} goes")


def _schedule_problems(config: Config, app: Tasks) -> Iterator[str]:
    try:
        planned(config, app)
    except ConfigError as error:
        yield str(error)


def _storage_problems(config: Config, facts: list[Fact]) -> Iterator[str]:
    """Open the storage, and let it say what it promises."""

    async def open_once() -> None:
        storage = Assembly(config).storage()
        try:
            await storage.start()
            if isinstance(storage, Explaining):
                facts.extend(await storage.facts())
        finally:
            await storage.stop()

    try:
        run(open_once())
    except (ConfigError, PluginError) as error:
        yield str(error)
    except PlugqError as error:
        yield f"storage: {error}"


__all__ = ["check"]
