"""The application: its tasks and schedules, and how to run it here and now."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from plugq.assembly.deployment import Assembly
from plugq.assembly.imports import import_module, place_of
from plugq.assembly.schedules import Planned
from plugq.assembly.worker import Worker
from plugq.duration import Duration, seconds
from plugq.errors import ConfigError
from plugq.schedule import check_words, rule_of
from plugq.task import Tasks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from plugq.client import Client
    from plugq.clock import Clock
    from plugq.config import Config, ConfigLike
    from plugq.schedule import CatchUp, Overlap
    from plugq.task import JobRequest


class App(Tasks):
    """The tasks of an application.

    ``include`` names modules that register more of them, imported by workers and by
    ``plugq check``.
    """

    def __init__(self, *, include: Sequence[str] = ()) -> None:
        super().__init__(include=include)
        self.schedules: list[Planned] = []

    def schedule(
        self,
        name: str,
        request: JobRequest[Any],
        *,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str = "UTC",
        catch_up: CatchUp = "one",
        overlap: Overlap = "skip",
    ) -> None:
        """Submit a request by the clock, whichever process runs the schedules.

        Either ``cron`` or ``every`` is the rule. ``catch_up`` says which of the ticks are
        submitted that passed while no worker ran: none (``skip``), the newest (``one``) or
        ``all``. With ``overlap="skip"`` a tick is left out while the job of the one before has
        not ended, so that of several due ticks only the newest is submitted: ``all`` needs
        ``overlap="allow"`` to submit each.

        Raises:
            ConfigError: the name is taken, or the rule, ``catch_up`` or ``overlap`` can not be.
        """
        if any(one.name == name for one in self.schedules):
            message = f"schedule {name!r} is defined twice; give one of them another name"
            raise ConfigError(message)
        try:
            interval = None if every is None else seconds(every, name="every")
            rule = rule_of(cron, interval, timezone)
            check_words(catch_up, overlap)
        except (ValueError, TypeError) as error:
            message = f"schedule {name!r}: {error}"
            raise ConfigError(message) from error
        self.schedules.append(
            Planned(name=name, rule=rule, request=request, catch_up=catch_up, overlap=overlap),
        )

    @asynccontextmanager
    async def running(
        self,
        config: ConfigLike = None,
        *,
        concurrency: int | None = None,
        clock: Clock | None = None,
    ) -> AsyncIterator[Client]:
        """Run a worker and give a client, both in this process: for scripts, notebooks and tests.

        ``{}`` as configuration keeps the jobs in memory. Coroutine tasks run on the loop of the
        caller. Leaving the block stops the worker as a signal would.
        """
        assembly = Assembly(config, clock=clock)
        worker = Worker(self, assembly=assembly, concurrency=concurrency)
        async with assembly.client(self.tasks) as client, worker:
            yield client


def load_app(name: str, config: Config) -> App:
    """Import ``module`` or ``module:attribute`` and return its App.

    Raises:
        ConfigError: it can not be imported, or the module has no single App.
    """
    module_name, _, attribute = name.partition(":")
    module = import_module(module_name, config)
    if attribute:
        found: Any = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, App):
            message = f"app {name!r}: {attribute!r} is no plugq.App in {place_of(module)}"
            raise ConfigError(message)
        return found
    apps = {id(value): value for value in vars(module).values() if isinstance(value, App)}
    if len(apps) != 1:
        number = "no" if not apps else "more than one"
        message = (
            f"app {name!r}: {place_of(module)} has {number} plugq.App; name it like '{name}:app'"
        )
        raise ConfigError(message)
    return next(iter(apps.values()))


__all__ = ["App", "load_app"]
