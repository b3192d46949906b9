"""``plugq jobs cancel`` and the like: change jobs that are named by ids or by a filter."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from plugq.cli.deployment import Decorates, config_option, json_option, opened, read_config, run
from plugq.cli.failure import FAILED
from plugq.cli.output import note, on_terminal, print_json, progress, safe, say
from plugq.cli.values import DurationType, MomentType
from plugq.client.steering import LIVE
from plugq.errors import JobNotFound
from plugq.job import FINAL, JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from plugq.client import Client, Job

    #: Makes a change to jobs, and answers for each.
    Change = Callable[..., Awaitable[Sequence[str]]]

#: Jobs that are asked for in one call.
PAGE = 1000
#: The options that say what jobs have in common.
FILTERS = ("state", "queue", "task", "batch", "since", "until")
#: What comes of a job that a filter found and that has moved on meanwhile.
_MOVED_ON = frozenset({"finished", "not_found"})

queue_option: Decorates = click.option(
    "-q", "--queue", help="The queue of the job; without it, all queues are looked through."
)


def filter_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say what jobs have in common, but for the queue."""
    for option in reversed(
        (
            click.option(
                "-s",
                "--state",
                "state",
                multiple=True,
                type=click.Choice([str(state) for state in JobState]),
                help="Only jobs in this state; repeat it for more.",
            ),
            click.option("-t", "--task", help="Only jobs of this task."),
            click.option("--batch", help="Only jobs of this batch."),
            click.option(
                "--since", type=MomentType(), help="Only jobs submitted at this time or later."
            ),
            click.option("--until", type=MomentType(), help="Only jobs submitted before."),
        )
    ):
        function = option(function)
    return function


def _steers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every command has that changes jobs."""
    for option in reversed(
        (
            click.argument("ids", metavar="[ID]...", nargs=-1),
            click.option(
                "--all", "all_", is_flag=True, help="All jobs that the filters below let through."
            ),
            filter_options,
            click.option("-q", "--queue", help="The queue of the jobs."),
            click.option("--yes", is_flag=True, help="With --all: also without any filter."),
            config_option,
            json_option,
            click.pass_context,
        )
    ):
        function = option(function)
    return function


@click.command()
@_steers
def cancel(ctx: click.Context, /, **given: Any) -> None:
    """Cancel jobs, also those that run.

    What waits is cancelled at once, what runs by its worker. Prints for each ID what came of it:
    cancelled, requested (it runs, and its worker is told), finished or not_found. Fails unless all
    are cancelled or will be. With --all it takes all live jobs that match, and prints how many
    there were of each answer; jobs that are submitted meanwhile may stay.
    """
    _steer(ctx, lambda client: client.cancel, LIVE, {"cancelled", "requested"}, **given)


@click.command()
@_steers
def retry(ctx: click.Context, /, **given: Any) -> None:
    """Queue failed, cancelled and skipped jobs again.

    They get all their attempts back. Prints for each ID what came of it: done, not_found, or
    conflict (it is in another state, or another job holds its unique key). Fails unless all are
    done. With --all it takes the failed jobs that match, unless --state says otherwise, and prints
    how many there were of each answer.
    """
    _steer(ctx, lambda client: client.retry, (JobState.FAILED,), {"done"}, **given)


@click.command()
@_steers
def purge(ctx: click.Context, /, **given: Any) -> None:
    """Remove jobs that have ended.

    They would go by themselves once their retention has passed. Prints for each ID what came of
    it: done, not_found, or conflict (it has not ended). Fails unless all are done. With --all it
    takes the ended jobs that match, and prints how many there were of each answer.
    """
    _steer(ctx, lambda client: client.purge, tuple(FINAL), {"done"}, **given)


@click.command()
@click.option(
    "--ttl",
    required=True,
    type=DurationType("forever"),
    help="How long: 30s, 5m, 7d, or forever.",
)
@_steers
def retain(ctx: click.Context, /, *, ttl: float | str, **given: Any) -> None:
    """Keep jobs and their results for another time.

    It counts from the end of a job, for one that has ended from now. Prints for each ID what came
    of it: done or not_found. Fails unless all are done. With --all it takes the jobs that match,
    and prints how many there were of each answer.
    """

    def verb(client: Client) -> Change:
        return lambda *jobs, **given: client.retain(*jobs, ttl=ttl, **given)

    _steer(ctx, verb, (), {"done"}, **given)


@click.command()
@click.option("--priority", required=True, type=int, help="From -1000 to 1000; higher runs first.")
@_steers
def reprioritise(ctx: click.Context, /, *, priority: int, **given: Any) -> None:
    """Give jobs that have not ended another priority.

    One that runs has it when it is queued again. Prints for each ID what came of it: done,
    finished or not_found. Fails unless all are done. With --all it takes the live jobs that match,
    and prints how many there were of each answer.
    """

    def verb(client: Client) -> Change:
        return lambda *jobs, **given: client.reprioritise(*jobs, priority=priority, **given)

    _steer(ctx, verb, LIVE, {"done"}, **given)


def _steer(
    ctx: click.Context,
    verb: Callable[[Client], Change],
    states: Sequence[JobState],
    good: set[str],
    *,
    ids: tuple[str, ...],
    all_: bool,
    yes: bool,
    file: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    asked["state"] = asked["state"] or None
    _check(ids, asked, all_=all_, yes=yes)
    config = read_config(file)

    async def work() -> Any:
        async with opened(config) as client:
            if all_:
                return await _change_all(client, verb(client), asked, states)
            return await _change(client, verb(client), ids, asked["queue"])

    if all_:
        counts: Counter[str] = run(work())
        print_answers(counts, as_json=as_json)
        failed = not (good | _MOVED_ON).issuperset(counts)
    else:
        answers: list[str] = run(work())
        if as_json:
            print_json(
                [{"id": id, "answer": answer} for id, answer in zip(ids, answers, strict=True)]
            )
        else:
            for id, answer in zip(ids, answers, strict=True):
                say(f"{safe(id)}\t{answer}")
        failed = not good.issuperset(answers)
    if failed:
        ctx.exit(FAILED)


def _check(ids: tuple[str, ...], asked: Mapping[str, Any], *, all_: bool, yes: bool) -> None:
    given = [f"--{name}" for name in FILTERS if asked[name] is not None]
    if ids and all_:
        message = "name jobs by their ids or give --all, not both"
    elif ids and given not in ([], ["--queue"]):
        message = f"{', '.join(given)}: filters go with --all, not with ids"
    elif not ids and not all_:
        message = "name jobs by their ids, or give --all and a filter such as --queue"
    elif all_ and not given and not yes:
        message = "--all without a filter takes every job there is; add --yes if that is meant"
    else:
        return
    raise click.UsageError(message)


async def _change(
    client: Client, change: Change, ids: Sequence[str], queue: str | None
) -> list[str]:
    handles = await asyncio.gather(*(_find(client, id, queue) for id in ids))
    found = [handle for handle in handles if handle is not None]
    answers = iter(await change(*found) if found else ())
    return ["not_found" if handle is None else str(next(answers)) for handle in handles]


async def _find(client: Client, id: str, queue: str | None) -> Any:
    """Return what names a job; ``None`` if no queue has it."""
    if queue is not None:
        return client.handle(id, queue=queue)
    try:
        return await client.get(id)
    except JobNotFound:
        return None


async def _change_all(
    client: Client, change: Change, asked: Mapping[str, Any], states: Sequence[JobState]
) -> Counter[str]:
    """Change what matches, page by page, and count the answers."""
    given = asked["state"]
    asked = {**asked, "state": given or tuple(states) or None}
    counts: Counter[str] = Counter()
    most = await _most(client, asked) if on_terminal() else 0
    with progress("jobs", most) as show:
        async for jobs in pages(client, asked, PAGE):
            counts.update(map(str, await change(*jobs, state=given)))
            show(counts.total())
    return counts


async def _most(client: Client, asked: Mapping[str, Any]) -> int:
    """Return how many jobs there may be that match; fewer are where times bound them."""
    states = [str(state) for state in asked["state"] or JobState]
    if asked["batch"] is not None:
        rows = [await client.batch(asked["batch"]).counts()]
    else:
        rows = [
            task.counts
            for task in (await client.stats()).tasks
            if asked["queue"] in {None, task.queue} and asked["task"] in {None, task.task}
        ]
    return sum(row.get(state, 0) for row in rows for state in states)


async def pages(
    client: Client, asked: Mapping[str, Any], most: int
) -> AsyncIterator[Sequence[Job]]:
    """Walk through the jobs that match, at most so many at a time."""
    cursor: str | None = None
    while True:
        page = await client.find(**asked, limit=min(most, PAGE), cursor=cursor)
        if page.jobs:
            yield page.jobs
        cursor = page.cursor
        if cursor is None:
            return


def print_answers(counts: Mapping[str, int], *, as_json: bool) -> None:
    """Print how many jobs there were of each answer."""
    if as_json:
        print_json(counts)
    elif counts:
        for answer, number in sorted(counts.items()):
            say(f"{answer}\t{number}")
    else:
        note("plugq: no job matches")


__all__ = [
    "cancel",
    "filter_options",
    "pages",
    "print_answers",
    "purge",
    "queue_option",
    "reprioritise",
    "retain",
    "retry",
]
