"""``plugq demo``: real work on real files, with a worker killed in the middle of it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from plugq.assembly import Assembly
from plugq.cli.demo_files import find_files, look
from plugq.cli.demo_jobs import app
from plugq.cli.demo_run import DemoFailed, Run, Workers
from plugq.cli.deployment import describe_storage, json_option, opened, read_config
from plugq.cli.failure import FAILED
from plugq.cli.output import note, on_terminal, plural, print_facts, print_json, safe, say, span
from plugq.cli.processes import worker_command
from plugq.config import FILE_NAME
from plugq.job import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from plugq.cli.demo_run import Outcome
    from plugq.client import Client
    from plugq.config import Config

_APP = "plugq.cli.demo_jobs"
#: Seconds within which some job has to end, besides twice the lease.
PATIENCE = 60.0
#: Short leases, so that the jobs of the worker that is killed are soon taken over. A new sweeper
#: waits for one renewal and the longest reconnect before it ends any.
_CONFIG = """\
app = "plugq.cli.demo_jobs"

[storage]
use = "sqlite"
path = "jobs.db"

[worker]
queues = ["demo"]
concurrency = 16

[broker]
lease = "2s"
renewal = "500ms"

[client.reconnect]
max = "500ms"

[defaults]
result_ttl = "1h"
"""


@click.command()
@click.argument(
    "folder", metavar="[DIR]", required=False, type=click.Path(exists=True, file_okay=False)
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="How many worker processes.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="At most this many files.")
@click.option(
    "-c", "--config", "file", metavar="FILE", help="Run it on the deployment of this configuration."
)
@click.option("--keep", is_flag=True, help="Leave the temporary folder with all files of the run.")
@json_option
@click.pass_context
def demo(
    ctx: click.Context,
    *,
    folder: str | None,
    workers: int,
    jobs: int | None,
    file: str | None,
    keep: bool,
    as_json: bool,
) -> None:
    """Kill a worker in the middle of real work: nothing is lost.

    Each file below DIR becomes a job that computes its SHA-256, size, lines and words. Without DIR
    it is the standard library of this Python. In the middle of the run one worker is killed with
    SIGKILL while it runs jobs, and another one is started; at the end every result is compared with
    a direct computation. Succeeds only if all are right and no job is lost.

    The jobs are kept in SQLite in a temporary folder. With --config they go through the deployment
    that the file describes, in a queue of their own, and are removed afterwards.
    """
    screen = _Screen(beside=as_json)
    place = Path(tempfile.mkdtemp(prefix="plugq-demo-"))
    try:
        plan = _Plan(
            folder,
            place,
            file,
            workers=workers,
            most=jobs,
            screen=screen,
        )
        outcome = plan.run()
        report = _report(plan, outcome)
    finally:
        if keep:
            screen.tell(f"kept {safe(place)}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    if as_json:
        print_json(report | {"ok": _good(report)})
    else:
        _print(report)
    if not _good(report):
        ctx.exit(FAILED)


class _Screen:
    """Lines, and below them a bar on a terminal or a line a quarter elsewhere.

    ``beside`` sends everything to standard error.
    """

    def __init__(self, *, beside: bool) -> None:
        self._say = note if beside else say
        self._bars = not beside and on_terminal()

    def tell(self, line: str) -> None:
        """Print a line."""
        self._say(line)

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Give a function to be called with the number that is done."""
        if not self._bars:
            quarters = {total * quarter // 4: quarter * 25 for quarter in range(1, 5)}

            def count(done: int) -> None:
                if done in quarters:
                    self.tell(f"{quarters[done]:>3} % · {done:,} of {total:,} {what}")

            yield count
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.text import Text

        before = self._say
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as bar:
            # What is printed past the bar would end up in the middle of it.
            self._say = lambda line: bar.console.print(Text(line), soft_wrap=True)
            task = bar.add_task(what, total=total)
            try:
                yield lambda done: bar.update(task, completed=done)
            finally:
                self._say = before


class _Plan:
    """One run: its files, its configuration and its queue."""

    def __init__(
        self,
        folder: str | None,
        place: Path,
        file: str | None,
        *,
        workers: int,
        most: int | None,
        screen: _Screen,
    ) -> None:
        self.screen = screen
        self._place = place
        self._workers = workers
        self._own = file is None
        self.config = self._configured(file)
        # Beside the jobs of others in a storage that others use as well.
        self._queue = "demo" if self._own else f"plugq-demo-{secrets.token_hex(4)}"
        found = find_files(folder, most)
        if not found.paths:
            message = f"there is no file to read below {found.folder}"
            raise DemoFailed(message)
        self.paths = found.paths
        left_out = f" ({found.left_out} left out)" if found.left_out else ""
        screen.tell(
            f"plugq demo · {plural(len(self.paths), 'file')} below {safe(found.folder)}{left_out}"
        )
        screen.tell(f"configuration {safe(self.config.path)}:")
        lease = (
            f"lease {span(self.config.broker.lease)}, which the jobs of the killed worker wait for"
        )
        own = [describe_storage(self.config), lease]
        for line in _CONFIG.splitlines() if self._own else own:
            screen.tell(f"  {line}".rstrip())
        self.files: dict[str, str] = {}

    def run(self) -> Outcome:
        """Run all jobs and return what became of them."""
        private = Assembly(self.config).private
        # Whoever ends the demonstration early leaves no worker and no folder behind.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return asyncio.run(self._alone() if private else self._shared())
        finally:
            signal.signal(signal.SIGTERM, before)

    def _configured(self, file: str | None) -> Config:
        if file is None:
            own = self._place / FILE_NAME
            own.write_text(_CONFIG, encoding="utf-8")
            file = str(own)
        return read_config(file, app=_APP)

    async def _alone(self) -> Outcome:
        self.screen.tell(
            f"storage {self.config.storage.use} lives in one process: the worker runs in this one, "
            "and no worker is killed"
        )
        worker = msgspec.structs.replace(self.config.worker, queues=(self._queue,))
        config = msgspec.structs.replace(self.config, worker=worker)
        async with app.running(config) as client:
            with self.screen.progress("jobs done", len(self.paths)) as count:
                run = self._run(client, count)
                outcome = await run.alone()
        self.files = run.files
        return outcome

    async def _shared(self) -> Outcome:
        command = worker_command(self.config, app=_APP, queues=[self._queue])
        async with opened(self.config) as client:
            workers = Workers(command, self._place, f"demo-{secrets.token_hex(2)}")
            try:
                ids = [await workers.start() for _ in range(self._workers)]
                pids = ", ".join(f"{id} (pid {workers.running[id].pid})" for id in ids)
                self.screen.tell(f"started {plural(len(ids), 'worker')}: {pids}")
                with self.screen.progress("jobs done", len(self.paths)) as count:
                    run = self._run(client, count)
                    outcome = await run.with_workers(workers)
                if outcome.crash is None:
                    self.screen.tell(
                        "no worker was killed: all was done before one was seen running jobs"
                    )
                if not self._own:
                    await run.clear()
                await workers.stop()
            finally:
                await workers.kill_all()
        self.files = run.files
        return outcome

    def _run(self, client: Client, count: Callable[[int], None]) -> Run:
        return Run(
            client,
            self.paths,
            queue=self._queue,
            # The jobs of the worker that is killed wait for their leases to end.
            patience=2 * self.config.broker.lease + PATIENCE,
            tell=self.screen.tell,
            count=count,
        )


def _report(plan: _Plan, outcome: Outcome) -> dict[str, Any]:
    """Compare every result with a direct computation, and count."""
    wrong = []
    with plan.screen.progress("results checked", len(plan.files)) as count:
        for number, (id, path) in enumerate(plan.files.items(), 1):
            if id in outcome.results and (reason := _differs(path, outcome.results[id])):
                wrong.append(f"{path}: {reason}")
            count(number)
    for line in [*wrong, *outcome.errors.values()][:10]:
        note(f"plugq: {safe(line)}")
    final = [job for job in outcome.jobs.values() if job.final]
    crash = outcome.crash
    crashed = outcome.crashed
    return {
        "jobs": len(plan.paths),
        "succeeded": sum(job.state is JobState.SUCCEEDED for job in final),
        "right": len(outcome.results) - len(wrong),
        "wrong": len(wrong),
        "killed": None if crash is None else crash.worker,
        "held": 0 if crash is None else len(crash.held),
        "crashed": sum(a.code == "crashed" for job in crashed for a in job.attempts),
        "recovered": sum(job.state is JobState.SUCCEEDED for job in crashed),
        "restarted": len(outcome.restarted),
        "lost": len(plan.paths) - len(final),
        "seconds": round(outcome.seconds, 3),
        "recovery_seconds": round(outcome.recovery, 3),
        "jobs_per_second": round(outcome.rate, 1),
    }


def _differs(path: str, result: Any) -> str | None:
    try:
        direct = look(path)
    except OSError as error:
        return f"can not be read any longer: {error.strerror}"
    return None if result == direct else f"the job says {result}, a direct look {direct}"


def _good(report: dict[str, Any]) -> bool:
    return bool(report["jobs"] == report["succeeded"] == report["right"] and not report["lost"])


def _print(report: dict[str, Any]) -> None:
    say()
    print_facts(
        {
            "jobs": f"{report['jobs']:,}",
            "succeeded": f"{report['succeeded']:,}",
            "right results": f"{report['right']:,}",
            "attempts ended by the crash": report["crashed"],
            "recovered": report["recovered"],
            "started more than once": report["restarted"],
            "lost": report["lost"],
            "seconds": f"{report['seconds']:.2f}",
            "crash to last recovery": f"{report['recovery_seconds']:.2f}",
            "jobs per second (others)": f"{report['jobs_per_second']:,.0f}",
        }
    )
    say()
    what = "every result is right" if _good(report) else "NOT every result is there and right"
    say(f"{what} · lost {report['lost']}")


__all__ = ["demo"]
