"""``plugq plugins``: what is installed, and whether it can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from plugq.cli.deployment import config_option, json_option
from plugq.cli.failure import FAILED, log_to_stderr
from plugq.cli.output import print_json, print_table
from plugq.config import find_file, load_config
from plugq.errors import ConfigError, PluginError
from plugq.registry import HOOKS, Registry

if TYPE_CHECKING:
    from plugq.registry import PluginInfo


@click.command()
@config_option
@click.option("--check", is_flag=True, help="Import each plugin, and say what is wrong with it.")
@json_option
@click.pass_context
def plugins(ctx: click.Context, *, file: str | None, check: bool, as_json: bool) -> None:
    """List the installed plugins by kind.

    With --check each one is imported, and a broken one makes the command fail. Whatever
    [plugins] in the configuration disables is marked then.
    """
    log_to_stderr()
    registry = _registry(file)
    rows = []
    broken = False
    for info in registry.installed():
        row = {
            "kind": info.kind,
            "name": info.name,
            "distribution": info.distribution,
            "version": info.version,
            "target": info.target,
        }
        if check:
            problem = _problem(registry, info)
            refused = registry.refusal(info.kind, info.name)
            row["status"] = refused or problem or "ok"
            broken = broken or bool(problem and not refused)
        rows.append(row)
    if as_json:
        print_json(rows)
    else:
        columns = ["kind", "name", "distribution", "version", *(["status"] if check else [])]
        print_table(columns, [[row[column] for column in columns] for row in rows])
    if broken:
        ctx.exit(FAILED)


def _registry(file: str | None) -> Registry:
    """Return a registry with the refusals of the configuration, if there is one."""
    if file is None:
        try:
            find_file()
        except ConfigError:
            return Registry()
    refused = load_config(file).plugins
    return Registry(disabled=refused.disabled, allow=refused.allow)


def _problem(registry: Registry, info: PluginInfo) -> str | None:
    if info.kind == HOOKS:
        point = next(point for found, point in registry.entry_points(HOOKS) if found == info)
        try:
            point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything
            return f"can not be imported: {type(error).__name__}: {error}"
        return None
    try:
        registry.load(info.kind, info.name)
    except PluginError as error:
        return str(error)
    return None


__all__ = ["plugins"]
