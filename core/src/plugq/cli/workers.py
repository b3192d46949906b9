"""``plugq workers``: who is alive."""

from __future__ import annotations

import click
import msgspec

from plugq.cli.deployment import config_option, json_option, read_config, with_client
from plugq.cli.output import moment, print_json, print_table


@click.command()
@config_option
@json_option
def workers(*, file: str | None, as_json: bool) -> None:
    """List the workers and brokers that are alive.

    One that stops is gone at once, one that is killed after 25 s. RUNNING is as of LAST SEEN.
    """
    found = with_client(read_config(file), lambda client: client.workers())
    if as_json:
        print_json([msgspec.structs.asdict(one) for one in found])
        return
    print_table(
        [
            "kind",
            "id",
            "host",
            "pid",
            "queues",
            "tasks",
            "running",
            "slots",
            "state",
            "started",
            "last seen",
        ],
        [
            [
                one.kind,
                one.id,
                one.host,
                one.pid,
                ", ".join(one.queues),
                ", ".join(one.tasks),
                one.running,
                one.concurrency,
                "stopping" if one.draining else "up",
                moment(one.started_at),
                moment(one.last_seen),
            ]
            for one in found
        ],
    )


__all__ = ["workers"]
