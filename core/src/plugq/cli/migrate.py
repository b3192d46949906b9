"""``plugq migrate``: the layout that a storage gives its store, looked at, printed or applied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from plugq.assembly import Assembly
from plugq.cli.deployment import config_option, describe_storage, json_option, read_config, run
from plugq.cli.failure import FAILED
from plugq.cli.output import print_json, safe, say
from plugq.protocols import Migrating

if TYPE_CHECKING:
    from plugq.config import Config
    from plugq.protocols import Layout


@click.command()
@config_option
@click.option("--sql", is_flag=True, help="Print the script instead; needs no connection.")
@click.option(
    "--since",
    type=click.IntRange(min=0),
    default=0,
    metavar="VERSION",
    help="With --sql: begin behind this version, which the store has already.",
)
@click.option("--check", is_flag=True, help="Change nothing, and fail if something is pending.")
@json_option
@click.pass_context
def migrate(
    ctx: click.Context, *, file: str | None, sql: bool, since: int, check: bool, as_json: bool
) -> None:
    """Bring the store of the configured storage to the layout that this version needs.

    Safe while workers run and where two do it at once. With --sql somebody else can apply it, by
    hand; with --check a deployment can wait for that: the exit code is 1 while something is
    pending. A storage that has no layout of its own needs no migrations.
    """
    if sql and check:
        message = "--sql prints and --check looks; give one of them"
        raise click.UsageError(message)
    if since and not sql:
        message = "--since is for --sql; the store says itself what it has"
        raise click.UsageError(message)
    config = read_config(file)
    storage = Assembly(config).storage()
    if not isinstance(storage, Migrating):
        _say_none(config, sql=sql, as_json=as_json)
    elif sql:
        script = storage.migration_sql(since)
        if as_json:
            print_json(_document(config) | {"sql": script})
        else:
            say(script.rstrip("\n"))
    elif check:
        layout = run(storage.layout())
        _print(config, layout, applied=False, as_json=as_json)
        if layout.pending:
            ctx.exit(FAILED)
    else:
        _print(config, run(storage.migrate()), applied=True, as_json=as_json)


def _say_none(config: Config, *, sql: bool, as_json: bool) -> None:
    line = f"storage {safe(config.storage.use)!r} needs no migrations"
    if as_json:
        print_json(_document(config) | {"migrations": False, "pending": False})
    else:
        # What is printed for a database is a script, if an empty one.
        say(f"-- {line}" if sql else line)


def _print(config: Config, layout: Layout, *, applied: bool, as_json: bool) -> None:
    pending = layout.pending and not applied
    if as_json:
        print_json(
            _document(config)
            | {
                "pending": pending,
                "before": layout.version,
                "version": max(layout.version, layout.newest) if applied else layout.version,
                "newest": layout.newest,
            }
        )
        return
    where = describe_storage(config)
    if not layout.pending:
        say(f"{where}: version {layout.version} already, nothing is pending")
    elif applied:
        say(f"{where}: version {layout.version} -> {layout.newest}")
    else:
        had = f"version {layout.version}" if layout.version else "nothing yet"
        say(f"{where}: {had}, version {layout.newest} is pending; run plugq migrate")


def _document(config: Config) -> dict[str, Any]:
    return {"storage": config.storage.use, "migrations": True}


__all__ = ["migrate"]
