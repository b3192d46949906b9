"""``plugq config``: what is in force."""

from __future__ import annotations

import click

from plugq.cli.deployment import config_option, json_option, read_config
from plugq.cli.output import print_json, say
from plugq.cli.toml import to_toml


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command(short_help="Print the configuration in force.")
@config_option
@json_option
def show(*, file: str | None, as_json: bool) -> None:
    """Print the configuration in force: the file, the environment and every default.

    Durations are in seconds, and secrets are hidden.
    """
    values = read_config(file).redacted()
    if as_json:
        print_json(values)
    else:
        say(to_toml(values).rstrip())


__all__ = ["config"]
