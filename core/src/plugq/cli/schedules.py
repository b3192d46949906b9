"""``plugq schedules``: what is submitted by the clock, and when next."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from plugq.assembly import planned
from plugq.cli.deployment import config_option, import_app, json_option, read_config
from plugq.cli.output import moment, print_json, print_table
from plugq.duration import seconds
from plugq.schedule import Cron, Interval


@click.command()
@click.option("--next", "number", default=1, show_default=True, help="How many next runs to show.")
@config_option
@json_option
def schedules(*, number: int, file: str | None, as_json: bool) -> None:
    """List what is submitted by the clock, and when next.

    These are the schedules of the configuration and those of the application.

    The next runs follow from the rules alone: a worker has to run for them to happen.
    """
    config = read_config(file)
    now = datetime.now(UTC)
    rows = []
    for one in planned(config, import_app(config)):
        runs: list[datetime] = []
        at = now
        while len(runs) < number and (tick := one.rule.next(at)) is not None:
            runs.append(tick)
            at = tick
        rule = one.rule
        text = f"{rule.expression} {rule.timezone}" if isinstance(rule, Cron) else ""
        if isinstance(rule, Interval):
            text = f"every {seconds(rule.every):g} s"
        rows.append((one, text, runs))
    if as_json:
        print_json(
            [
                {
                    "name": one.name,
                    "task": one.request.task_name,
                    "rule": text,
                    "catch_up": one.catch_up,
                    "overlap": one.overlap,
                    "next": [tick.isoformat() for tick in runs],
                }
                for one, text, runs in rows
            ],
        )
        return
    print_table(
        ["schedule", "task", "rule", "catch up", "overlap", "next"],
        [
            [
                one.name,
                one.request.task_name,
                text,
                one.catch_up,
                one.overlap,
                ", ".join(moment(tick) for tick in runs),
            ]
            for one, text, runs in rows
        ],
    )
