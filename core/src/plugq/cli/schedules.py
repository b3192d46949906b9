"""``plugq schedules``: what is submitted by the clock, and when next."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from plugq.assembly import Assembly, planned
from plugq.cli.deployment import (
    config_option,
    import_app,
    json_option,
    read_config,
    with_client,
)
from plugq.cli.output import moment, print_json, print_table, safe, say
from plugq.cli.submit import TaskCommand, request_of
from plugq.cli.values import DurationType
from plugq.client.views import next_runs
from plugq.errors import Conflict, PlugqError
from plugq.schedule import Cron, rule_text
from plugq.task import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from plugq.assembly.schedules import Planned
    from plugq.client import Client, ScheduleInfo
    from plugq.config import Config
    from plugq.schedule import CatchUp, Overlap


class _Group(click.Group):
    """Lists the schedules where no command is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let ``plugq schedules --json`` stand for ``plugq schedules list --json``."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Group)
def schedules() -> None:
    """List and change what is submitted by the clock.

    Without a command: list.
    """


@schedules.command("list")
@click.option(
    "--next",
    "number",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="How many next runs to show.",
)
@config_option
@json_option
def list_(*, number: int, file: str | None, as_json: bool) -> None:
    """List what is submitted by the clock, and when next.

    These are the schedules of the store, and those of the configuration and the application that
    no worker has announced yet. A worker has to run for any of them to happen.
    """
    config = read_config(file)
    defined = planned(config, Tasks() if config.app is None else import_app(config))
    if Assembly(config).private:
        known: tuple[ScheduleInfo, ...] = ()
    else:
        known = with_client(config, lambda client: client.schedules.list(runs=number, removed=True))
    names = {one.name for one in known}
    rows = [*map(_stored, known)]
    rows += [_unannounced(one, number) for one in defined if one.name not in names]
    rows.sort(key=lambda row: row["name"])
    if as_json:
        print_json([_in_json(row) for row in rows])
        return
    print_table(
        ["schedule", "task", "queue", "rule", "catch up", "overlap", "source", "state", "next"],
        [
            [
                row["name"],
                row["task"],
                row["queue"],
                row["rule"],
                row["catch_up"],
                row["overlap"],
                row["source"],
                row["state"],
                ", ".join(map(moment, row["next"])),
            ]
            for row in rows
        ],
    )


@schedules.command()
@click.argument("name")
@config_option
@json_option
def pause(*, name: str, file: str | None, as_json: bool) -> None:
    """Let a schedule submit nothing until it is resumed.

    Ticks that pass meanwhile are not made up for.
    """
    _change(file, name, lambda client: client.schedules.pause(name), "paused", as_json=as_json)


@schedules.command()
@click.argument("name")
@config_option
@json_option
def resume(*, name: str, file: str | None, as_json: bool) -> None:
    """Let a paused schedule go on from now."""
    _change(file, name, lambda client: client.schedules.resume(name), "resumed", as_json=as_json)


@schedules.command()
@click.argument("name")
@config_option
@json_option
def remove(*, name: str, file: str | None, as_json: bool) -> None:
    """Remove a schedule.

    One that the configuration or the application defines stays away until that definition
    changes.
    """
    _change(file, name, lambda client: client.schedules.remove(name), "removed", as_json=as_json)


@schedules.command()
@click.argument("name")
@config_option
@json_option
def trigger(*, name: str, file: str | None, as_json: bool) -> None:
    """Submit the job of a schedule once, now, and print its id.

    The schedule goes on as if nothing had happened; a paused one stays paused.
    """

    async def submit(client: Client) -> None:
        handle = await client.schedules.trigger(name)
        if as_json:
            print_json({"id": handle.id, "queue": handle.queue, "outcome": handle.outcome})
        else:
            say(safe(handle.id))

    _with_existing(read_config(file), name, submit)


@schedules.command(cls=TaskCommand)
@click.argument("name")
@click.argument("task")
@click.argument("arguments_", metavar="[ARG]... [KEY=VALUE]...", nargs=-1)
@config_option
@click.option("--no-app", is_flag=True, help="Do not import the application to check the job.")
@click.option("--cron", help="When, as cron writes it: '0 3 * * *' is every day at 3.")
@click.option("--every", type=DurationType(), help="At a fixed distance, such as 90s or 1h.")
@click.option("--timezone", default="UTC", show_default=True, help="The time zone of --cron.")
@click.option(
    "--catch-up",
    type=click.Choice(["skip", "one", "all"]),
    default="one",
    show_default=True,
    help="Which ticks to submit that passed while no worker ran.",
)
@click.option(
    "--overlap",
    type=click.Choice(["skip", "allow"]),
    default="skip",
    show_default=True,
    help="Whether to leave a tick out while the job of the one before has not ended.",
)
@click.option("--queue", help="The queue, in place of the task's.")
@click.option("--lane", help="Jobs of one lane run one at a time.")
@json_option
def put(
    *,
    name: str,
    task: str,
    arguments_: tuple[str, ...],
    file: str | None,
    no_app: bool,
    cron: str | None,
    every: float | None,
    timezone: str,
    catch_up: CatchUp,
    overlap: Overlap,
    queue: str | None,
    lane: str | None,
    as_json: bool,
) -> None:
    """Create the schedule NAME that submits TASK, or give it another definition.

    Arguments are read as by `plugq submit`: as JSON, and as text where they are none.

    \b
    Examples:
      plugq schedules put nightly report.build 7 --cron "0 3 * * *" --timezone Europe/Berlin
      plugq schedules put beat ping host=example.org --every 90s
    """  # noqa: D301 - click wants the character itself
    if (cron is None) == (every is None):
        message = "give either --cron or --every"
        raise click.UsageError(message)
    config = read_config(file)
    request = request_of(config, task, arguments_, checked=not no_app)
    if queue is not None:
        request = request.options(queue=queue)
    if lane is not None:
        request = request.options(lane=lane)

    async def store(client: Client) -> None:
        await client.schedules.put(
            name,
            request,
            cron=cron,
            every=every,
            timezone=timezone,
            catch_up=catch_up,
            overlap=overlap,
        )

    with_client(config, store)
    _told(name, "put", as_json=as_json)


def _change(
    file: str | None,
    name: str,
    work: Callable[[Client], Coroutine[Any, Any, None]],
    what: str,
    *,
    as_json: bool,
) -> None:
    _with_existing(read_config(file), name, work)
    _told(name, what, as_json=as_json)


def _with_existing(
    config: Config, name: str, work: Callable[[Client], Coroutine[Any, Any, None]]
) -> None:
    """Do something to a schedule, and say so where it is only written down as yet."""
    try:
        with_client(config, work)
    except Conflict as error:
        if not _only_defined(config, name):
            raise
        message = (
            f"schedule {name!r} is defined, but no worker has announced it yet: start one with "
            "`plugq worker`"
        )
        raise Conflict(message) from error


def _only_defined(config: Config, name: str) -> bool:
    try:
        defined = planned(config, Tasks() if config.app is None else import_app(config))
    except PlugqError:
        # What was refused is told, and not why the application can not be imported.
        return False
    if all(one.name != name for one in defined):
        return False
    known = with_client(config, lambda client: client.schedules.list(removed=True))
    return all(one.name != name for one in known)


def _told(name: str, what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({name: what})
    else:
        say(f"{safe(name)}\t{what}")


def _stored(info: ScheduleInfo) -> dict[str, Any]:
    state = "removed" if info.removed else "paused" if info.paused else "active"
    return msgspec.structs.asdict(info) | {"state": state}


def _in_json(row: dict[str, Any]) -> dict[str, Any]:
    last = row["last"]
    return row | {
        "last": None if last is None else last.isoformat(),
        "next": [tick.isoformat() for tick in row["next"]],
    }


def _unannounced(one: Planned, number: int) -> dict[str, Any]:
    rule = one.rule
    return {
        "name": one.name,
        "task": one.request.task_name,
        "queue": None,
        "rule": rule_text(rule),
        "timezone": rule.timezone if isinstance(rule, Cron) else None,
        "catch_up": one.catch_up,
        "overlap": one.overlap,
        "paused": False,
        "removed": False,
        "source": one.source,
        "last": None,
        "next": next_runs(rule, datetime.now(UTC), number),
        "state": "not announced",
    }


__all__ = ["schedules"]
