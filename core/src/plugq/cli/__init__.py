"""The command line: ``plugq`` and ``python -m plugq``.

One module for each subject, imported when its command runs. Nothing outside of this package imports
click or rich.
"""

import click

from plugq.cli.group import Cli

#: Every command with the module that has it, in the order of the help page.
COMMANDS = {
    "init": "plugq.cli.init",
    "dev": "plugq.cli.worker",
    "submit": "plugq.cli.submit",
    "worker": "plugq.cli.worker",
    "jobs": "plugq.cli.jobs",
    "batches": "plugq.cli.batches",
    "queues": "plugq.cli.queues",
    "schedules": "plugq.cli.schedules",
    "workers": "plugq.cli.workers",
    "stats": "plugq.cli.queues",
    "events": "plugq.cli.events",
    "check": "plugq.cli.check",
    "migrate": "plugq.cli.migrate",
    "config": "plugq.cli.config",
    "plugins": "plugq.cli.plugins",
    "conformance": "plugq.cli.conformance",
    "demo": "plugq.cli.demo",
}


@click.group(
    "plugq",
    cls=Cli,
    modules=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="plugq", prog_name="plugq", message="%(prog)s %(version)s")
def main() -> None:
    """Run background jobs and look after them.

    \b
    The first steps, in an empty folder:
      plugq init                        write plugq.toml and jobs.py
      plugq dev                         run the jobs that are submitted
      plugq submit hello world --wait   submit one, in a second terminal

    Commands find plugq.toml in this folder or in one above it, or take it with --config.
    """  # noqa: D301 - click wants the character itself


__all__ = ["COMMANDS", "main"]
