"""``plugq submit``: one job from the shell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from plugq.cli.deployment import config_option, import_app, json_option, read_config, with_client
from plugq.cli.output import note, print_json, safe, say
from plugq.cli.values import DurationType, MomentType, arguments
from plugq.errors import InvalidJob
from plugq.fields import suggestion
from plugq.request import Unique
from plugq.task import job

if TYPE_CHECKING:
    from plugq.client import Client
    from plugq.config import Config
    from plugq.task import JobRequest

_NUMBER = re.compile(r"-[0-9.]")
_SPAN = DurationType()


class TaskCommand(click.Command):
    """Takes ``-1`` for an argument of the task and ``--prioriti`` for a mistake."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let negative numbers pass, and whatever follows ``--``."""
        after = len(args) - args.index("--") - 1 if "--" in args else 0
        ctx.ignore_unknown_options = True
        rest = super().parse_args(ctx, args)
        given = ctx.params["arguments_"]
        for text in (ctx.params["task"], *given)[: len(given) + 1 - after]:
            if text.startswith("-") and text != "-" and not _NUMBER.match(text):
                raise click.NoSuchOption(text.partition("=")[0], ctx=ctx)
        return rest


@click.command(cls=TaskCommand)
@click.argument("task")
@click.argument("arguments_", metavar="[ARG]... [KEY=VALUE]...", nargs=-1)
@config_option
@click.option("--app", metavar="MODULE", help="The application, in place of the file's.")
@click.option("--no-app", is_flag=True, help="Do not import the application to check the job.")
@click.option("--wait", is_flag=True, help="Wait for the job to end and print its result as JSON.")
@click.option(
    "--timeout",
    type=_SPAN,
    help="With --wait: give up waiting after this long; the job goes on.",
)
@click.option("--id", "id", help="The id of the job, unique in its queue. A repeated id is safe.")
@click.option("--queue", help="The queue, in place of the task's.")
@click.option("--priority", type=int, help="From -1000 to 1000; higher runs first.")
@click.option("--delay", type=_SPAN, help="Do not start before this long from now.")
@click.option("--run-at", type=MomentType(), help="Do not start before this time.")
@click.option("--deadline", type=_SPAN, help="Fail the job if it has not ended after this long.")
@click.option("--attempt-timeout", type=_SPAN, help="The longest that one attempt may take.")
@click.option("--max-attempts", type=int, help="How many executions in all; 1 means no retry.")
@click.option("--lane", help="Jobs of one lane run one at a time.")
@click.option("--batch", help="A key that ties jobs together.")
@click.option("--unique", help="Do nothing if an unfinished job holds this key.")
@click.option(
    "--header", "headers", multiple=True, metavar="KEY=VALUE", help="A header; may be repeated."
)
@click.option("--result-ttl", type=DurationType("forever"), help="How long to keep the result.")
@click.option("--failure-ttl", type=DurationType("forever"), help="How long to keep a failure.")
@json_option
def submit(
    *,
    task: str,
    arguments_: tuple[str, ...],
    file: str | None,
    app: str | None,
    no_app: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a job to run TASK, and print its id.

    An argument is read as JSON, and as text where it is none: 5 is a number, '"5"' is text, hello
    is text. KEY=VALUE is a keyword argument.

    \b
    Examples:
      plugq submit hello world --wait
      plugq submit report.build 7 format=pdf --delay 10m --queue reports

    Where the configuration names an application it is imported, so that a wrong name or argument
    is refused here; --no-app leaves that out.
    """  # noqa: D301 - click wants the character itself
    if timeout is not None and not wait:
        message = "--timeout is how long to wait: give --wait too, or use --attempt-timeout"
        raise click.UsageError(message)
    config = read_config(file, app=app)
    request = request_of(config, task, arguments_, checked=not no_app)
    request = request.options(**_options(options))
    with_client(
        config, lambda client: _submit(client, request, as_json=as_json, wait=wait, timeout=timeout)
    )


async def _submit(
    client: Client,
    request: JobRequest[Any],
    *,
    as_json: bool,
    wait: bool,
    timeout: float | None,
) -> None:
    handle = await client.submit(request)
    if handle.outcome == "duplicate":
        note(f"plugq: nothing new: job {safe(handle.id)} in {safe(handle.queue)} stands for it")
    if wait:
        print_json(await handle.result(timeout))
    elif as_json:
        print_json({"id": handle.id, "queue": handle.queue, "outcome": handle.outcome})
    else:
        say(safe(handle.id))


def request_of(
    config: Config, name: str, texts: tuple[str, ...], *, checked: bool
) -> JobRequest[Any]:
    """Return the request that was typed, checked against the application if it is to be."""
    positional, keywords = arguments(texts)
    if config.app is None or not checked:
        return job(name, *positional, **keywords)
    tasks = import_app(config).tasks
    task = tasks.get(name)
    if task is None:
        hint = suggestion(name, tasks).replace("; it takes none", "; it has none")
        message = f"{config.app} has no task {name!r}{hint}"
        raise InvalidJob(message)
    return task.job(*positional, **keywords)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    headers = {}
    for text in given.pop("headers"):
        key, sign, value = text.partition("=")
        if not sign or not key:
            message = f"--header: write it like trace=1, got {text!r}"
            raise click.UsageError(message)
        headers[key] = value
    options = {name: value for name, value in given.items() if value is not None}
    if headers:
        options["headers"] = headers
    if "attempt_timeout" in options:
        options["timeout"] = options.pop("attempt_timeout")
    if "unique" in options:
        options["unique"] = Unique.until_finished(options["unique"])
    return options


__all__ = ["TaskCommand", "request_of", "submit"]
