"""Schedules from the configuration and from code, as the scheduler runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from plugq.broker import Schedule
from plugq.errors import ConfigError, PlugqError
from plugq.request import Asked, bounded
from plugq.schedule import CatchUp, Cron, Interval, Rule
from plugq.task import JobRequest, Tasks, job

if TYPE_CHECKING:
    from plugq.assembly.deployment import Assembly
    from plugq.broker import Overlap
    from plugq.config import Config
    from plugq.config.model import ScheduleConfig


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A schedule as it was written down: its rule, and the request that each tick submits."""

    name: str
    rule: Rule
    request: JobRequest[Any]
    catch_up: CatchUp = "one"
    overlap: Overlap = "skip"


def rule_of(cron: str | None, every: float | None, timezone: str) -> Rule:
    """Return the rule that exactly one of ``cron`` and ``every`` describes.

    Raises:
        ConfigError: both are given or none, or the one that is can not be read.
    """
    if (cron is None) == (every is None):
        message = "a schedule has either `cron` or `every`"
        raise ConfigError(message)
    if cron is not None:
        return Cron(cron, timezone)
    return Interval(every or 0.0)


def planned(config: Config, app: Tasks) -> list[Planned]:
    """Return the schedules of the configuration and of the application.

    Raises:
        ConfigError: one can not be read, or both define one of the same name.
    """
    found: dict[str, Planned] = {}
    for name, table in config.schedules.items():
        try:
            rule = rule_of(table.cron, table.every, table.timezone)
            request = _request(table, app)
        except PlugqError as error:
            message = f"schedules.{name}: {error}"
            raise ConfigError(message) from error
        found[name] = Planned(
            name=name,
            rule=rule,
            request=request,
            catch_up=table.catch_up,
            overlap=table.overlap,
        )
    for one in getattr(app, "schedules", ()):
        if one.name in found:
            message = (
                f"schedules.{one.name}: the configuration and the application both define it; "
                "give one of them another name"
            )
            raise ConfigError(message)
        found[one.name] = one
    return list(found.values())


def schedules_of(assembly: Assembly, app: Tasks) -> list[Schedule]:
    """Return the schedules in the form that the scheduler runs.

    Raises:
        ConfigError: one can not be read, or its job can not be made.
    """
    submitter = assembly.submitter()
    schedules = []
    for one in planned(assembly.config, app):

        def make(id: str, request: JobRequest[Any] = one.request) -> Any:
            return submitter.prepare(request, Asked(id=id))

        try:
            # Behind the name comes '@' and the tick, in at most 33 bytes.
            bounded("name", one.name, 900)
            make(one.name)
        except PlugqError as error:
            message = f"schedules.{one.name}: {error}"
            raise ConfigError(message) from error
        schedules.append(
            Schedule(
                name=one.name,
                rule=one.rule,
                make=make,
                catch_up=one.catch_up,
                overlap=one.overlap,
            ),
        )
    return schedules


def _request(table: ScheduleConfig, app: Tasks) -> JobRequest[Any]:
    asked = Asked(layer=table.options)
    task = app.get(table.task)
    if task is None:
        # The task of another process's code; only its worker can tell whether the arguments fit.
        request: JobRequest[Any] = job(table.task, *table.args, **table.kwargs)
    else:
        request = task.job(*table.args, **table.kwargs)
    return JobRequest(request.task_name, request.args, request.kwargs, task=task, asked=asked)


__all__ = ["Planned", "planned", "rule_of", "schedules_of"]
