"""``plugq batches``: the jobs of one key, counted, waited for and cancelled together."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from plugq.cli.deployment import config_option, json_option, read_config, with_client
from plugq.cli.output import on_terminal, print_facts, print_json, progress
from plugq.cli.steering import print_answers
from plugq.cli.values import DurationType
from plugq.errors import JobNotFound

if TYPE_CHECKING:
    from plugq.client import Batch, BatchProgress, Client

#: Seconds between two looks while a bar is shown.
_STEP = 1.0


@click.group()
def batches() -> None:
    """Show batches and cancel them."""


@batches.command()
@click.argument("key")
@click.option("--wait", is_flag=True, help="Wait until no job of it is live and nobody fills it.")
@click.option(
    "--timeout",
    type=DurationType(),
    help="With --wait: give up waiting after this long; the jobs go on.",
)
@config_option
@json_option
def show(*, key: str, wait: bool, timeout: float | None, file: str | None, as_json: bool) -> None:
    """Print how many jobs of a batch are in which state.

    Jobs that are gone count as what they were in the end, for 7 days after the last of them.
    """
    if timeout is not None and not wait:
        message = "--timeout is how long to wait: give --wait too"
        raise click.UsageError(message)

    async def work(client: Client) -> tuple[dict[str, int], BatchProgress]:
        batch = client.batch(key)
        if wait:
            await _wait(batch, timeout)
        counts, done = await batch.counts(), await batch.progress()
        if not done.total and not wait:
            raise _unknown(key)
        return counts, done

    counts, done = with_client(read_config(file), work)
    if as_json:
        print_json({"batch": key, "done": done.done, "total": done.total, "counts": counts})
    else:
        ended = f"{done.done:,} of {done.total:,} ({done.fraction:.0%})"
        print_facts({"batch": key, "ended": ended, **counts})


@batches.command()
@click.argument("key")
@config_option
@json_option
def cancel(*, key: str, file: str | None, as_json: bool) -> None:
    """Cancel all jobs of a batch that have not ended.

    Prints how many were cancelled, and how many are requested: they run, and their workers are
    told.
    """

    async def work(client: Client) -> Any:
        batch = client.batch(key)
        answers = await batch.cancel()
        if not answers and not any((await batch.counts()).values()):
            raise _unknown(key)
        return Counter(answers)

    print_answers(with_client(read_config(file), work), as_json=as_json)


def _unknown(key: str) -> JobNotFound:
    return JobNotFound(f"no job was ever submitted to batch {key!r}")


async def _wait(batch: Batch, timeout: float | None) -> None:
    """Wait for a batch with a bar that follows it, on a terminal."""
    if not on_terminal():
        await batch.wait(timeout)
        return
    waiting = asyncio.ensure_future(batch.wait(timeout))
    try:
        with progress("jobs ended", 0) as show:
            while not waiting.done():
                now = await batch.progress()
                show(now.done, now.total)
                await asyncio.wait([waiting], timeout=_STEP)
        await waiting
    finally:
        waiting.cancel()


__all__ = ["batches"]
