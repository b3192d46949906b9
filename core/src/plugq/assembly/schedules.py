"""Schedules from the configuration and from code, as a maintainer announces them."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import ConfigError, PlugqError
from plugq.request import Asked
from plugq.schedule import (
    CatchUp,
    Definition,
    Overlap,
    Rule,
    Source,
    check_name,
    rule_of,
    rule_text,
)
from plugq.task import JobRequest, Tasks, bound, job

if TYPE_CHECKING:
    from plugq.announcement import Announced
    from plugq.assembly.deployment import Assembly
    from plugq.config import Config
    from plugq.config.model import ScheduleConfig
    from plugq.protocols.storage import NewJob
    from plugq.submission import Submitter


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A schedule as it was written down: its rule, and the request that each tick submits."""

    name: str
    rule: Rule
    request: JobRequest[Any]
    catch_up: CatchUp = "one"
    overlap: Overlap = "skip"
    source: Source = "code"


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
            source="config",
        )
    for one in getattr(app, "schedules", ()):
        if one.name in found:
            message = (
                f"schedules.{one.name}: the configuration and the application both define it; "
                "give one of them another name"
            )
            raise ConfigError(message)
        request = bound(one.request, app.tasks) if one.request.task is None else one.request
        found[one.name] = replace(one, request=request)
    return list(found.values())


def definitions_of(assembly: Assembly, app: Tasks) -> list[Definition]:
    """Return the schedules of a configuration and an application in the form that is stored.

    Raises:
        ConfigError: one can not be read, or its job can not be made.
    """
    submitter = assembly.submitter()
    definitions = []
    for one in planned(assembly.config, app):
        try:
            definitions.append(_definition(one, submitter))
        except PlugqError as error:
            message = f"schedules.{one.name}: {error}"
            raise ConfigError(message) from error
    return definitions


def owner_of(config: Config) -> str:
    """Return in whose name the schedules of a process are announced, the same at each start.

    That is the application that the configuration names, else its file, else the script.
    """
    if config.app is not None:
        return config.app
    if config.path is not None:
        return str(config.path.resolve())
    script = getattr(sys.modules.get("__main__"), "__file__", None) or sys.argv[0]
    return str(Path(script).resolve()) if script else "python"


def _definition(one: Planned, submitter: Submitter) -> Definition:
    name = check_name(one.name)

    def prepare(announced: Announced | None = None) -> NewJob:
        return submitter.prepare(one.request, Asked(id=name), announced=announced)

    template = prepare()
    return Definition(
        name=name,
        rule=one.rule,
        job=template,
        catch_up=one.catch_up,
        overlap=one.overlap,
        source=one.source,
        digest=_digest(one, template),
        prepare=prepare if one.request.task is None else None,
    )


def _digest(one: Planned, template: NewJob) -> str:
    """Return a digest of what was written, the same in every process that reads the same.

    What the options inherit is no part of it: a change of ``[defaults]`` is none of the schedule.
    """
    request = one.request
    try:
        # Sorted, since the order of a set differs from process to process.
        arguments = msgspec.json.encode([request.args, request.kwargs], order="sorted")
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError):
        arguments = template.body
    written = [
        one.name,
        rule_text(one.rule),
        one.catch_up,
        one.overlap,
        request.task_name,
        hashlib.sha256(arguments).hexdigest(),
        msgspec.structs.replace(request.asked, id=None),
    ]
    text = msgspec.json.encode(written, order="sorted", enc_hook=repr)
    return hashlib.sha256(text).hexdigest()


def _request(table: ScheduleConfig, app: Tasks) -> JobRequest[Any]:
    asked = Asked(layer=table.options)
    task = app.get(table.task)
    if task is None:
        # The task of another process's code; only its worker can tell whether the arguments fit.
        request: JobRequest[Any] = job(table.task, *table.args, **table.kwargs)
    else:
        request = task.job(*table.args, **table.kwargs)
    return JobRequest(request.task_name, request.args, request.kwargs, task=task, asked=asked)


__all__ = ["Planned", "definitions_of", "owner_of", "planned"]
