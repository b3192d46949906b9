"""``plugq conformance``: whether a plugin keeps its promises."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plugq.cli.deployment import json_option
from plugq.cli.failure import FAILED, log_to_stderr
from plugq.cli.output import plural, print_facts, print_json, progress, safe, safe_lines, say
from plugq.cli.values import value
from plugq.config import load_config
from plugq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from plugq.testing.conformance.report import Result, Run
    from plugq.testing.conformance.target import Target

#: Seconds in which the threads of a plugin have to end once its tests are over.
_LINGER = 2.0
_LEVELS = ("semantics", "concurrency", "crash", "cost")


@click.command()
@click.argument("target")
@click.option(
    "-o",
    "--option",
    "options",
    metavar="KEY=VALUE",
    multiple=True,
    help="An option of the plugin, as JSON or else text. May be repeated.",
)
@click.option(
    "-c",
    "--config",
    "file",
    metavar="FILE",
    help="Take the options of the storage from the [storage] of this file.",
)
@click.option(
    "--level",
    "levels",
    type=click.Choice(_LEVELS),
    multiple=True,
    help="Run the tests of this level only. May be repeated.",
)
@click.option(
    "-k", "choose", metavar="EXPR", default="", help="Run the tests that pytest -k picks."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=300.0,
    show_default=True,
    help="Seconds after which a test that does not end is broken off and fails.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the traceback of every failure.")
@json_option
@click.pass_context
def conformance(
    ctx: click.Context,
    *,
    target: str,
    options: Sequence[str],
    file: str | None,
    levels: Sequence[str],
    choose: str,
    timeout: float,
    verbose: bool,
    as_json: bool,
) -> None:
    """Run the conformance kit on a plugin and report what it keeps.

    TARGET is the name of an installed plugin (sqlite, or serde:json where several kinds have that
    name), a plugin class (package.module:Class), or a contract of yours (package.module:TestMine,
    test_mine.py, test_mine.py::TestMine).

    The tests write into stores of their own names and folders. Do not point them at a database
    that is in use. Needs the extra plugq[testing].
    """
    # What a plugin says while it is being provoked is told only to those who want to see it all.
    log_to_stderr(level=logging.WARNING if verbose else logging.CRITICAL)
    _require_extra()
    from plugq.testing.conformance.session import run
    from plugq.testing.conformance.target import find
    from plugq.testing.levels import Level

    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with _silent():
        found = find(target, {**_configured(file, target), **_typed(options)}, Path(folder))
    with progress(f"testing {safe(found.title)}", 0) as show, _silent():
        came = run(
            found,
            levels=[Level(name) for name in levels],
            choose=choose,
            limit=timeout,
            show=show,
        )
    if as_json:
        print_json(_document(found, came))
    else:
        _print(found, came, verbose=verbose)
    if came.hung or not _threads_end():
        # A thread that hangs would keep the interpreter from ending.
        sys.stdout.flush()
        os._exit(0 if came.conforms else FAILED)
    if not came.conforms:
        ctx.exit(FAILED)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep what a plugin prints, also from C or from a process of its own, out of the report."""
    with contextlib.ExitStack() as until:
        with contextlib.suppress(OSError):  # where there is no standard output
            kept = os.dup(1)
            until.callback(os.close, kept)
            until.callback(os.dup2, kept, 1)
            sink = os.open(os.devnull, os.O_WRONLY)
            until.callback(os.close, sink)
            os.dup2(sink, 1)
        until.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def _threads_end() -> bool:
    """Return whether nothing that a plugin began keeps the interpreter from ending."""
    end = time.monotonic() + _LINGER
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                return False
    return True


def _require_extra() -> None:
    missing = [n for n in ("pytest", "hypothesis") if not _is_there(n)]
    if missing:
        raise ConfigError(
            f"the conformance kit needs {' and '.join(missing)}; run: pip install 'plugq[testing]'"
        )


def _is_there(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _typed(texts: Iterable[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in texts:
        key, sign, rest = text.partition("=")
        if not sign or not key:
            message = f"{text!r} is no option; write it as KEY=VALUE"
            raise click.UsageError(message)
        if key in options:
            message = f"the option {key!r} is given twice"
            raise click.UsageError(message)
        options[key] = value(rest)
    return options


def _configured(file: str | None, target: str) -> dict[str, Any]:
    if file is None:
        return {}
    storage = load_config(file).storage
    if storage.use != target.removeprefix("storage:"):
        raise ConfigError(f"[storage] of {file} uses {storage.use!r}, not {target!r}")
    return dict(storage.options)


def _print(target: Target, came: Run, *, verbose: bool) -> None:
    from plugq.testing.levels import Level

    verdicts = came.verdicts()
    facts = {
        "tested": target.title,
        "class": target.subject,
        "from": f"{target.distribution} {target.version}".strip(),
        "on": came.server,
        "declares": ", ".join(came.declared or ()) or "no capability",
    }
    print_facts({name: fact for name, fact in facts.items() if fact})
    for level in Level:
        results = came.of(level)
        if not results:
            continue
        tally = came.tally(level)
        say()
        say(f"{level}: {tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
        for result in results:
            if result.outcome == "failed":
                _print_failure(result, verbose=verbose)
        for reason, number in _skips(results).items():
            say(f"  skipped: {safe(reason)} ({plural(number, 'test')})")
    if verdicts:
        say()
        print_facts({name: verdict.value for name, verdict in verdicts.items()})
    say()
    say(came.summary())


def _print_failure(result: Result, *, verbose: bool) -> None:
    say(f"  FAILED {safe(result.promise)}")
    say(f"    {safe(result.reason)}")
    for line in safe_lines(result.traceback) if verbose else ():
        say(f"    | {line}".rstrip())


def _skips(results: Iterable[Result]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for result in results:
        if result.outcome == "skipped":
            reason = result.reason.replace("the plugin does not declare", "not declared:")
            counts[reason] = counts.get(reason, 0) + 1
    return counts


def _document(target: Target, came: Run) -> dict[str, Any]:
    from plugq.testing.levels import Level

    return {
        "target": target.title,
        "kind": target.kind,
        "class": target.subject,
        "distribution": target.distribution,
        "version": target.version,
        "server": came.server,
        "conforms": came.conforms,
        "summary": came.summary(),
        "left_out": came.left_out,
        "capabilities": came.verdicts(),
        "levels": {level.value: came.tally(level) for level in Level},
        "tests": [
            {
                "level": result.level,
                "name": result.name,
                "promise": result.promise,
                "outcome": result.outcome,
                "reason": result.reason,
                "seconds": result.seconds,
                "needs": result.needs,
            }
            for result in came.results
        ],
    }


__all__ = ["conformance"]
