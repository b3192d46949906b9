"""``plugq worker`` and ``plugq dev``: processes that run jobs until they are told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
from typing import TYPE_CHECKING, Any

import click

from plugq.assembly import PRIVATE, Assembly, Worker
from plugq.cli.deployment import config_option, describe, import_app, read_config
from plugq.cli.failure import log_to_stderr
from plugq.cli.output import note, say
from plugq.errors import ConfigError
from plugq.request import check_queue
from plugq.worker import loop_factory

if TYPE_CHECKING:
    from collections.abc import Callable


@click.command()
@config_option
@click.option("--app", metavar="MODULE", help="The application, in place of the file's.")
def dev(*, file: str | None, app: str | None) -> None:
    """Run jobs here until Ctrl-C, for development.

    One worker in one process; what fails is shown. In production run `plugq worker`.
    """
    config = read_config(file, app=app)
    log_to_stderr(level=logging.INFO, tracebacks=True)
    found = import_app(config)
    assembly = Assembly(config)
    worker = Worker(found, assembly=assembly)
    line = f"plugq dev · {describe(config, list(found.tasks), worker.queues)} · Ctrl-C stops"

    def started() -> None:
        say(line)
        if assembly.private:
            note(
                "these jobs live in this process alone, where plugq submit can not reach them; "
                "run: pip install 'plugq[sqlite]', then write use = \"sqlite\" and path = "
                '"jobs.db" below [storage]'
            )

    serve(worker, started)


@click.command()
@config_option
@click.option("--app", metavar="MODULE", help="The application, in place of the file's.")
@click.option(
    "-q", "--queue", "queues", multiple=True, help="Serve this queue; repeat it for more, in order."
)
@click.option(
    "--concurrency", type=click.IntRange(min=1), help="How many jobs each process runs at a time."
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many processes; those that die are started again.",
)
@click.option("--supervised", is_flag=True, hidden=True)
def worker(
    *,
    file: str | None,
    app: str | None,
    queues: tuple[str, ...],
    concurrency: int | None,
    processes: int,
    supervised: bool,
) -> None:
    """Run jobs until SIGTERM or Ctrl-C.

    The first signal lets running jobs finish within [worker] grace, then gives back what is left;
    the second one ends the process at once.

    \b
    Examples:
      plugq worker
      plugq worker --queue email --queue default --concurrency 50 --processes 4
    """  # noqa: D301 - click wants the character itself
    config = read_config(file, app=app)
    for queue in queues:
        check_queue(queue)
    log_to_stderr(level=logging.INFO, tracebacks=True)
    assembly = Assembly(config)
    if assembly.private:
        raise ConfigError(PRIVATE.format(storage=config.storage.use))
    if processes > 1:
        from plugq.cli.processes import Processes, worker_command

        command = worker_command(config, app=app, queues=queues, concurrency=concurrency)
        code = asyncio.run(Processes(command, processes).run())
        raise click.exceptions.Exit(code)
    found = import_app(config)
    one = Worker(found, assembly=assembly, queues=queues or None, concurrency=concurrency)
    line = describe(config, list(found.tasks), one.queues)
    if supervised:
        serve(one, lambda: _report_to_parent(one, line))
    else:
        serve(one, lambda: say(f"plugq worker · {line} · Ctrl-C stops"))


def serve(worker: Worker, started: Callable[[], Any]) -> None:
    """Run a worker to its end and call ``started`` once it works and can be stopped by signals."""

    async def work() -> None:
        async with worker:
            # Runs when `run` has begun to wait, that is after it has taken over the signals.
            asyncio.get_running_loop().call_soon(_quietly, started)
            await worker.run()

    # What is imported by now lives as long as the process: looking through it again and again
    # cost about a tenth of the jobs a second.
    gc.freeze()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work())


def _quietly(started: Callable[[], Any]) -> None:
    # A worker whose output nobody reads any longer goes on working.
    with contextlib.suppress(OSError):
        started()


def _report_to_parent(worker: Worker, line: str) -> None:
    from plugq.cli.processes import report_ready, wait_for_parent

    report_ready(line)
    loop = asyncio.get_running_loop()

    def orphaned() -> None:
        wait_for_parent()
        with contextlib.suppress(RuntimeError):
            asyncio.run_coroutine_threadsafe(worker.stop(), loop)

    threading.Thread(target=orphaned, name="plugq-parent", daemon=True).start()


__all__ = ["dev", "serve", "worker"]
