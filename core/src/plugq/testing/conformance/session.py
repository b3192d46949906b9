"""Runs pytest on a target, apart from the project in which the command was typed."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from plugq.errors import ConfigError
from plugq.testing.conformance.report import Result, Run
from plugq.testing.conformance.target import VARIABLE
from plugq.testing.levels import Level, level_of
from plugq.testing.plugin import LIMIT, hangs
from plugq.testing.requirements import required_by

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from types import FrameType

    from plugq.testing.conformance.target import Target

#: Seconds between the polite end of a test that hangs and the one by force, and between those: as
#: many as a test may take, within these bounds.
_GRACE = (1.0, 10.0)
#: Seconds in which a plugin has to say what it declares.
_ASKING = 30.0
#: What would run the tests in another way or print beside the report.
_UNWANTED = ("cacheprovider", "randomly", "xdist", "sugar", "timeout", "pytest_cov")
_INTERNAL = "INTERNALERROR>"
_TRACEBACK = "Traceback (most recent call last):"


class Reporter:
    """A pytest plugin that notes what becomes of every test."""

    def __init__(
        self, levels: Sequence[Level], limit: float, show: Callable[[int, int], object]
    ) -> None:
        self._levels, self._limit, self._show = levels, limit, show
        self._facts: dict[str, dict[str, Any]] = {}
        self._total = 0
        self.results: dict[str, Result] = {}
        self.problems: list[str] = []
        self._asked: set[type] = set()
        self.declared: tuple[str, ...] | None = None
        self.server: str = ""
        self.left_out: int = 0
        self.hung: bool = False

    def pytest_configure(self, config: pytest.Config) -> None:
        """Bound every coroutine test, and let assertions of the kit say what they compared."""
        # What the pytest plugin asked for may have been before there was a session.
        pytest.register_assert_rewrite("plugq.testing.contract")
        config.stash[LIMIT] = self._limit

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Note what can not be imported."""
        if report.failed:
            self.problems.append(_reason(report))

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """Count what was not chosen."""
        self.left_out += len(items)

    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Choose the levels, in their order."""
        chosen = [item for item in items if not self._levels or _level(item) in self._levels]
        others = [item for item in items if item not in chosen]
        if others:
            config.hook.pytest_deselected(items=others)
        order = list(Level)
        items[:] = sorted(chosen, key=lambda item: order.index(_level(item)))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note what each test promises."""
        for item in session.items:
            function = getattr(item, "obj", None)
            promise = item.name.removeprefix("test_").replace("_", " ")
            detail = " ".join((getattr(function, "__doc__", "") or "").split())
            self._facts[item.nodeid] = {
                "level": _level(item),
                "name": item.name,
                "promise": f"{promise}: {detail}" if detail else promise,
                "needs": tuple(sorted(required_by(function))),
            }
        self._total = len(session.items)

    def _ask(self, contract: type) -> None:
        """Ask the plugin once what it declares and what it stands on.

        That is in the midst of the first test: what it needs is there only then.
        """
        if contract in self._asked or not hasattr(contract, "declared"):
            return
        self._asked.add(contract)
        within = min(_ASKING, self._limit)

        async def ask() -> None:
            subject: Any = contract()
            async with asyncio.timeout(within):
                declared = await subject.declared()
                self.declared = tuple(sorted({*(self.declared or ()), *map(str, declared)}))
                explained = getattr(subject, "explained", None)
                for fact in () if explained is None else await explained():
                    if fact.name == "server":
                        self.server = fact.text

        # Why it can not say is told by the tests.
        with (
            contextlib.suppress(Exception, SystemExit),
            _alarm(within, _grace(self._limit), self._hangs),
        ):
            asyncio.run(ask())

    def _hangs(self) -> None:
        self.hung = True
        raise AssertionError(hangs(self._limit))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, None, None]:
        """Break off by force what does not end when it is cancelled."""
        self._ask(getattr(item, "cls", None) or object)
        with _alarm(self._limit, _grace(self._limit), self._hangs):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one outcome; what fails before or after a test counts as the test."""
        before = self.results.get(report.nodeid)
        if report.when != "call" and report.passed:
            return
        if before is not None and before.outcome == "failed":
            return
        self.results[report.nodeid] = Result(
            **self._facts[report.nodeid],
            outcome=report.outcome,
            seconds=round(report.duration, 3),
            reason="" if report.passed else _reason(report),
            traceback=report.longreprtext if report.failed else "",
        )
        self._show(len(self.results), self._total)


def run(
    target: Target,
    *,
    levels: Sequence[Level] = (),
    choose: str = "",
    limit: float = 300.0,
    show: Callable[[int, int], object] = lambda _done, _total: None,
) -> Run:
    """Run the tests of a target and return what came of them.

    Nothing of the project in the current folder counts, but the conftest files of a contract that
    its author wrote. A test is broken off after ``limit`` seconds.

    Raises:
        ConfigError: there are no tests, they can not be collected, or ``choose`` is no expression.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    reporter = Reporter(levels, limit, show)
    printed = io.StringIO()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        arguments = list(_arguments(target, Path(folder), choose))
        with (
            _environment(target, Path(folder)),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
        ):
            code = pytest.main(arguments, plugins=[reporter])
    if code == pytest.ExitCode.INTERRUPTED and not reporter.problems:
        raise KeyboardInterrupt
    if reporter.problems:
        raise ConfigError(f"{target.title} can not be collected: {reporter.problems[0]}")
    if code not in {
        pytest.ExitCode.OK,
        pytest.ExitCode.TESTS_FAILED,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    }:
        raise ConfigError(f"{target.title} can not be run: {_complaint(printed.getvalue(), code)}")
    if not reporter.results and not reporter.left_out:
        raise ConfigError(
            f"{target.title} has no tests; write a subclass of a contract of plugq.testing, "
            "with a name that begins with Test"
        )
    return Run(
        results=tuple(reporter.results.values()),
        declared=reporter.declared,
        server=reporter.server,
        left_out=reporter.left_out,
        hung=reporter.hung,
    )


def _complaint(printed: str, code: int) -> str:
    """Return why pytest gave up; the last line of a traceback says what it was."""
    lines = [line for line in printed.splitlines() if "ERROR" in line]
    internal = [line for line in lines if line.startswith(_INTERNAL)]
    if internal:
        return internal[-1].removeprefix(_INTERNAL).strip()
    return lines[0].replace("ERROR:", "").strip() if lines else f"pytest ended with {int(code)}"


def _arguments(target: Target, folder: Path, choose: str) -> Iterator[str]:
    empty = folder / "pytest.ini"
    empty.write_text("[pytest]\n", "utf-8")
    yield from ("-c", str(empty), "--import-mode=importlib", "--capture=sys", "-q")
    yield from ("--basetemp", str(folder / "tests"))
    for name in _UNWANTED:
        yield from ("-p", f"no:{name}")
    if target.conftest is None:
        yield from ("--rootdir", str(folder), "--noconftest")
        yield from ("-p", "plugq.testing.plugin")
    else:
        yield from ("--rootdir", target.conftest, "--confcutdir", target.conftest)
        if "::" in target.nodes[0]:
            yield from ("-o", "python_classes=*")
    if choose:
        yield from ("-k", choose)
    yield from target.nodes


@contextlib.contextmanager
def _environment(target: Target, folder: Path) -> Iterator[None]:
    """Tell child processes of the target, and keep pytest from options of the user's own."""
    before = dict(os.environ)
    for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS"):
        os.environ.pop(name, None)
    # It would keep what it has learned in the user's folder.
    os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(folder / "hypothesis"))
    os.environ[VARIABLE] = msgspec.json.encode(target).decode()
    if target.conftest is None:
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _grace(limit: float) -> float:
    least, most = _GRACE
    return min(max(limit, least), most)


@contextlib.contextmanager
def _alarm(seconds: float, grace: float, ring: Callable[[], None]) -> Iterator[None]:
    """Call ``ring`` in the main thread if the block takes longer by ``grace``, until it ends."""
    usable = hasattr(signal, "setitimer")
    if not usable or threading.current_thread() is not threading.main_thread():
        yield
        return

    def rings(_number: int, _frame: FrameType | None) -> None:
        ring()

    before = signal.signal(signal.SIGALRM, rings)
    signal.setitimer(signal.ITIMER_REAL, seconds + grace, grace)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _level(item: pytest.Item) -> Level:
    contract = getattr(item, "cls", None)
    if contract is None:
        return Level.SEMANTICS
    return level_of(contract, getattr(item, "originalname", item.name))


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return in one line why a test failed or was skipped."""
    told: Any = report.longrepr
    if isinstance(told, tuple):
        return str(told[2]).removeprefix("Skipped: ")
    crash = getattr(told, "reprcrash", None)
    text = str(crash.message) if crash is not None else _last(report.longreprtext)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else "no reason is given"
    if first == "AssertionError":
        # Imported before the session, so that nothing but its text can be shown.
        marked = [line for line in report.longreprtext.splitlines() if line.startswith(">")]
        first = marked[-1].removeprefix(">").strip() if marked else first
    if _TRACEBACK in first:
        # Of a process that failed: what it raised comes last.
        first = first.replace(_TRACEBACK, lines[-1])
    return first.removeprefix("AssertionError: ")[:300]


def _last(text: str) -> str:
    """Return the last line of a traceback that says something."""
    lines = [line.removeprefix("E").strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


__all__ = ["Reporter", "run"]
