"""``plugq events``: what happens, as it happens."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import msgspec

from plugq.cli.deployment import config_option, read_config, with_client
from plugq.cli.output import note, print_json, safe, say, span
from plugq.events import EventKind, JobEvent

if TYPE_CHECKING:
    from plugq.client import Client


@click.command()
@click.option(
    "--kind",
    "kinds",
    metavar="KIND",
    multiple=True,
    type=click.Choice([str(kind) for kind in EventKind]),
    help="Only events of this kind; may be given more than once.",
)
@click.option("--queue", help="Only events of this queue.")
@click.option("--task", help="Only events of jobs of this task.")
@click.option("--batch", help="Only events of jobs of this batch.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as one line of JSON.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@config_option
def events(
    *,
    kinds: tuple[str, ...],
    queue: str | None,
    task: str | None,
    batch: str | None,
    as_json: bool,
    count: int | None,
    file: str | None,
) -> None:
    """Print what happens in every process, one line an event, until Ctrl-C.

    A line on standard error says when listening has begun, and where events may be missing.
    """

    async def follow(client: Client) -> None:
        left = count
        async with client.events(kinds or None, queue=queue, task=task, batch=batch) as stream:
            note("listening; Ctrl-C ends it")
            async for event in stream:
                if not isinstance(event, JobEvent):
                    note("events may be missing here")
                    continue
                if as_json:
                    print_json(json_of(event))
                else:
                    say(line_of(event))
                if left is not None:
                    left -= 1
                    if not left:
                        return

    try:
        with_client(read_config(file), follow)
    except KeyboardInterrupt:
        # It is how this command is meant to end.
        return


def line_of(event: JobEvent) -> str:
    """Return an event as one line: when, what, whose, and the facts that its kind has."""
    at = datetime.fromtimestamp(event.at, UTC).strftime("%H:%M:%S.%f")[:-3]
    facts = {
        "attempt": _attempt(event),
        "worker": event.worker,
        "lane": event.lane,
        "batch": event.batch,
        "schedule": event.schedule,
        "delay": None if event.delay is None else span(event.delay),
        "progress": _progress(event),
        "code": event.code,
        "message": event.message,
    }
    told = [f"{name}={safe(value)}" for name, value in facts.items() if value]
    whose = [safe(name) for name in (event.queue, event.task, event.id) if name]
    return "  ".join([f"{at}Z", f"{event.kind:<16}", *whose, *told]).rstrip()


def json_of(event: JobEvent) -> msgspec.Raw:
    """Return an event as JSON, without the facts that its kind does not have."""
    document = msgspec.to_builtins(event)
    if event.progress is not None:
        document["progress"] = msgspec.structs.asdict(event.progress)
    return msgspec.Raw(msgspec.json.encode(document))


def _attempt(event: JobEvent) -> str:
    if not event.attempt:
        return ""
    return f"{event.attempt}/{event.max_attempts}" if event.max_attempts else str(event.attempt)


def _progress(event: JobEvent) -> str:
    said = event.progress
    if said is None:
        return ""
    return " ".join(filter(None, [f"{said.current:g}/{said.total:g}", said.message]))


__all__ = ["events", "json_of", "line_of"]
