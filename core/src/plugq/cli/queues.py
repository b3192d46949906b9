"""``plugq queues`` and ``plugq stats``: jobs in numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from plugq.cli.deployment import config_option, json_option, read_config, with_client
from plugq.cli.output import print_json, print_table, safe, say, span
from plugq.job import JobState

if TYPE_CHECKING:
    from plugq.client.views import QueueInfo, Stats, TaskInfo

_STATES = [str(state) for state in JobState]
_TOTALS = ("accepted", "started", "retried", "lease_ended", "removed")


@click.group()
def queues() -> None:
    """List, pause, drain and resume queues."""


@queues.command("list")
@config_option
@json_option
def list_(*, file: str | None, as_json: bool) -> None:
    """List the queues that were ever used, with their jobs by state.

    OLDEST is how long the oldest job has waited that is next in line, also while a pause or a
    limit of its queue holds it up.
    """
    stats_ = with_client(read_config(file), lambda client: client.stats())
    if as_json:
        print_json([_queue(queue) for queue in stats_.queues])
        return
    print_table(
        ["queue", "paused", "draining", *_STATES, "oldest"],
        [
            [
                queue.name,
                "yes" if queue.paused else "no",
                "yes" if queue.draining else "no",
                *(queue.counts.get(state, 0) for state in _STATES),
                "" if queue.oldest is None else span(queue.oldest.total_seconds()),
            ]
            for queue in stats_.queues
        ],
    )


@queues.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@config_option
@json_option
def pause(*, names: tuple[str, ...], file: str | None, as_json: bool) -> None:
    """Let no more jobs of these queues start, for every worker.

    Submissions are accepted and running jobs go on.
    """
    with_client(read_config(file), lambda client: client.queues.pause(*names))
    _told(names, "paused", as_json=as_json)


@queues.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@config_option
@json_option
def drain(*, names: tuple[str, ...], file: str | None, as_json: bool) -> None:
    """Take no more jobs into these queues, from anybody.

    What waits in them runs. `resume` ends it.
    """
    with_client(read_config(file), lambda client: client.queues.drain(*names))
    _told(names, "draining", as_json=as_json)


@queues.command()
@click.argument("names", metavar="QUEUE...", nargs=-1, required=True)
@config_option
@json_option
def resume(*, names: tuple[str, ...], file: str | None, as_json: bool) -> None:
    """Let the jobs of these queues start again, and take jobs again."""
    with_client(read_config(file), lambda client: client.queues.resume(*names))
    _told(names, "resumed", as_json=as_json)


@click.command()
@config_option
@json_option
def stats(*, file: str | None, as_json: bool) -> None:
    """Print the numbers of jobs by task and state.

    ACCEPTED and what follows it count from the beginning of the store: STARTED counts attempts,
    LEASE_ENDED those whose worker died, REMOVED the jobs that are gone. RUN_TIME is how long an
    attempt takes on average, RATE how many jobs end in a second, as of the last minute.
    """
    found = with_client(read_config(file), lambda client: client.stats())
    if as_json:
        print_json(_stats(found))
        return
    print_table(
        ["queue", "task", *_STATES, *_TOTALS, "run_time", "rate"],
        [
            [
                row.queue,
                row.task,
                *(row.counts.get(state, 0) for state in _STATES),
                *(row.totals.get(name, 0) for name in _TOTALS),
                "" if row.run_time is None else _brief(row.run_time.total_seconds()),
                f"{row.rate:.3g}",
            ]
            for row in found.tasks
        ],
    )


def _told(names: tuple[str, ...], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json(dict.fromkeys(names, what))
    else:
        for name in names:
            say(f"{safe(name)}\t{what}")


def _stats(stats: Stats) -> dict[str, Any]:
    return {
        "at": stats.at,
        "counts": stats.counts,
        "queues": [_queue(queue) for queue in stats.queues],
        "tasks": [_in_seconds(task) for task in stats.tasks],
    }


def _queue(queue: QueueInfo) -> dict[str, Any]:
    """Return a queue with its age in seconds."""
    oldest = None if queue.oldest is None else queue.oldest.total_seconds()
    return _in_seconds(queue) | {"oldest": oldest}


def _in_seconds(info: QueueInfo | TaskInfo) -> dict[str, Any]:
    run_time = None if info.run_time is None else info.run_time.total_seconds()
    return msgspec.structs.asdict(info) | {"run_time": run_time}


def _brief(seconds: float) -> str:
    return f"{seconds * 1000:.3g}ms" if seconds < 1 else span(seconds)


__all__ = ["queues", "stats"]
