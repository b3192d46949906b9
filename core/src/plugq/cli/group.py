"""The group of all commands: those of plugq, imported on demand, and those that plugins add."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from plugq.cli.failure import INTERRUPTED, guarded, log_to_stderr
from plugq.config import find_file, load_config
from plugq.config.environment import FILE_VARIABLE
from plugq.errors import ConfigError
from plugq.fields import suggestion
from plugq.hooks import Hooks
from plugq.registry import HOOKS, Registry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Cli(click.Group):
    """Knows the commands by name, and turns every error into one line and an exit code.

    Commands of plugins come second: they are looked for when a name is none of plugq's or the
    whole list is asked for, so that no plugin slows down or replaces a command of plugq.
    """

    def __init__(self, *args: Any, modules: Mapping[str, str], **options: Any) -> None:
        super().__init__(*args, **options)
        self._modules = modules
        self._extensions: click.Group | None = None
        self._arguments: Sequence[str] = ()

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,  # noqa: FBT001, FBT002 - click's signature
        windows_expand_args: bool = False,  # noqa: FBT001, FBT002 - click's signature
        **extra: Any,
    ) -> Any:
        """Run the command that the arguments name, then end the process with its exit code.

        With ``standalone_mode=False`` errors are raised and nothing ends.
        """
        run = super().main
        self._arguments = list(sys.argv[1:] if args is None else args)

        def command() -> Any:
            return run(
                self._arguments,
                prog_name,
                complete_var,
                standalone_mode=False,
                windows_expand_args=windows_expand_args,
                **extra,
            )

        if not standalone_mode:
            return command()
        sys.exit(guarded(command))

    def invoke(self, ctx: click.Context) -> None:
        """Run a command; what it returns is no exit code."""
        try:
            super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.exceptions.Exit(INTERRUPTED) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, those of plugins last."""
        added = self._plugins().list_commands(ctx)
        return [*self._modules, *(name for name in added if name not in self._modules)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, imported now."""
        module = self._modules.get(cmd_name)
        if module is None:
            return self._plugins().get_command(ctx, cmd_name)
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that the arguments begin with, or fail with a proposal."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            hint = suggestion(name, self.list_commands(ctx))
            ctx.fail(f"no command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def _plugins(self) -> click.Group:
        """Return the commands that hook plugins add; none where the configuration is broken.

        What a broken configuration disables is not known, so that nothing is loaded then.
        """
        if self._extensions is None:
            self._extensions = click.Group()
            registry = self._registry()
            if registry is not None and registry.entry_points(HOOKS):
                log_to_stderr()
                Hooks(registry).extend_cli(self._extensions)
        return self._extensions

    def _registry(self) -> Registry | None:
        source = _config_of(self._arguments)
        try:
            if source is None and not os.environ.get(FILE_VARIABLE):
                source = str(find_file())
        except ConfigError:
            return Registry()
        try:
            config = load_config(source)
        except ConfigError:
            return None
        return Registry(disabled=config.plugins.disabled, allow=config.plugins.allow)


def _config_of(arguments: Sequence[str]) -> str | None:
    """Return the file that the arguments name, before any command has read them."""
    for at, argument in enumerate(arguments):
        if argument in {"-c", "--config"}:
            return arguments[at + 1] if at + 1 < len(arguments) else None
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None


__all__ = ["Cli"]
