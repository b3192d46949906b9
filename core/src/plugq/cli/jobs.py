"""``plugq jobs``: look at jobs and steer them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from plugq.cli.deployment import config_option, json_option, read_config, with_client
from plugq.cli.output import (
    moment,
    note,
    plural,
    print_facts,
    print_json,
    print_table,
    safe,
    safe_lines,
    say,
    span,
)
from plugq.cli.steering import (
    cancel,
    filter_options,
    pages,
    purge,
    queue_option,
    reprioritise,
    retain,
    retry,
)
from plugq.errors import JobNotFound, ResultExpired
from plugq.job import JobState

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plugq.client import Client, Job

_COLUMNS = ("state", "queue", "id", "task", "attempt", "submitted", "code", "error")
#: Seconds that the result of a job that has ended may take to come.
_RESULT = 5.0


@click.group()
def jobs() -> None:
    """List jobs, show them and steer them."""


@jobs.command("list")
@config_option
@filter_options
@click.option("-q", "--queue", help="Only jobs of this queue.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="The most jobs to list.",
)
@json_option
def list_(*, file: str | None, limit: int, as_json: bool, **asked: Any) -> None:
    """List jobs, the newest first."""
    config = read_config(file)
    asked["state"] = asked["state"] or None
    found, more = with_client(config, lambda client: _first(client, asked, limit))
    if as_json:
        print_json([_plain(job) for job in found])
        return
    print_table(_COLUMNS, map(_row, found))
    if more:
        note(f"plugq: there are more than {plural(limit, 'job')}; --limit shows them")


@jobs.command()
@click.argument("id")
@config_option
@queue_option
@click.option(
    "--payload", is_flag=True, help="Also its arguments and its result, which may be confidential."
)
@json_option
def show(*, id: str, file: str | None, queue: str | None, payload: bool, as_json: bool) -> None:
    """Show a job and its attempts that failed."""
    config = read_config(file)
    job, more = with_client(config, lambda client: _look(client, id, queue, payload=payload))
    if as_json:
        print_json(_plain(job) | more)
    else:
        _print_job(job, more)


for _command in (cancel, retry, purge, retain, reprioritise):
    jobs.add_command(_command)


async def _first(client: Client, asked: dict[str, Any], limit: int) -> tuple[list[Job], bool]:
    """Return the newest jobs, and whether there are more."""
    found: list[Job] = []
    async for page in pages(client, asked, limit + 1):
        found += page
        if len(found) > limit:
            return found[:limit], True
    return found, False


async def _look(
    client: Client, id: str, queue: str | None, *, payload: bool
) -> tuple[Job, dict[str, Any]]:
    job = await client.get(id, queue=queue)
    more: dict[str, Any] = {}
    if payload:
        more["args"], more["kwargs"] = await client.payload(id, queue=job.queue)
        if job.state is JobState.SUCCEEDED:
            try:
                more["result"] = await client.handle(id, queue=job.queue).result(_RESULT)
            except (ResultExpired, JobNotFound) as error:
                note(f"plugq: {safe(error)}")
    return job, more


def _print_job(job: Job, more: dict[str, Any]) -> None:
    print_facts(dict(_facts(job)))
    for name, value in more.items():
        say(f"{name}:")
        print_json(value)
    for attempt in job.attempts:
        say()
        when = "" if attempt.ended_at is None else f" at {moment(attempt.ended_at)}"
        worker = f" on {safe(attempt.worker)}" if attempt.worker else ""
        what = f"{safe(attempt.type)}: {safe(attempt.message)}".strip(": ")
        say(f"attempt {attempt.attempt}{when}{worker}: {safe(attempt.code)}: {what}".rstrip(": "))
        for line in safe_lines(attempt.traceback.rstrip()) if attempt.traceback else ():
            say(f"  {line}")


def _facts(job: Job) -> Iterator[tuple[str, object]]:
    yield "id", job.id
    yield "queue", job.queue
    yield "task", job.task
    asked = job.cancel_requested and not job.final
    yield "state", f"{job.state}{', to be cancelled' if asked else ''}"
    yield "attempt", f"{job.attempt} of {job.max_attempts}"
    optional: dict[str, object] = {
        "crashes": job.crashes or None,
        "code": job.code or None,
        "priority": job.priority or None,
        "lane": job.lane,
        "batch": job.batch,
        "worker": job.worker or None,
        "submitted": moment(job.submitted_at),
        "ready": moment(job.ready_at),
        "started": moment(job.started_at),
        "finished": moment(job.finished_at),
        "ran": _ran(job),
        "deadline": moment(job.deadline_at),
        "kept until": moment(job.expires_at),
    }
    if job.progress is not None:
        said = job.progress
        optional["progress"] = f"{said.current:g} of {said.total:g} {said.message}"
    for name, value in optional.items():
        if value not in {None, ""}:
            yield name, value


def _ran(job: Job) -> str:
    if job.started_at is None or job.finished_at is None:
        return ""
    return span((job.finished_at - job.started_at).total_seconds())


def _row(job: Job) -> list[object]:
    error = job.error
    return [
        job.state,
        job.queue,
        job.id,
        job.task,
        f"{job.attempt}/{job.max_attempts}",
        moment(job.submitted_at),
        job.code,
        "" if error is None else f"{error.type}: {error.message}".strip(": "),
    ]


def _plain(job: Job) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(job)
    return plain


__all__ = ["jobs"]
