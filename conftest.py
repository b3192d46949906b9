"""What holds for every test in the repository, wherever it lies.

Coroutine tests run in a fresh event loop in debug mode, without an async plugin; a test that leaves
a task behind fails. Hypothesis runs under the profile named by ``HYPOTHESIS_PROFILE``, which
defaults to ``ci`` where ``CI`` is set and to ``dev`` elsewhere. Python blocks of the Markdown
documents are tests too.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from hypothesis import settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest

# No deadlines: an example that is slow on a shared machine is not wrong.
settings.register_profile("dev", deadline=None, print_blob=True)
# The same examples each time, so that a failure belongs to the change under test.
settings.register_profile(
    "ci", deadline=None, print_blob=True, derandomize=True, database=None, max_examples=200
)
settings.register_profile("soak", deadline=None, print_blob=True, max_examples=5_000)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev")
)


async def _leaving_nothing(test: Coroutine[Any, Any, None]) -> None:
    await test
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"the test left tasks running: {sorted(task.get_name() for task in left)}"


def _synchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: object, **kwargs: object) -> None:
        with asyncio.Runner(debug=True) as runner:
            runner.run(_leaving_nothing(test(*args, **kwargs)))

    return run


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Make coroutine tests callable, those under Hypothesis example by example.

    Contracts never get here: the pytest plugin of plugq runs them, as it does for their users.
    """
    given = getattr(pyfuncitem.obj, "hypothesis", None)
    if given is not None and inspect.iscoroutinefunction(given.inner_test):
        given.inner_test = _synchronous(given.inner_test)
    elif inspect.iscoroutinefunction(pyfuncitem.obj):
        pyfuncitem.obj = _synchronous(pyfuncitem.obj)


def _enter_folder(namespace: dict[str, Any]) -> None:
    folder = TemporaryDirectory(prefix="plugq-docs-")
    namespace["_leave"] = functools.partial(_leave_folder, folder, Path.cwd())
    os.chdir(folder.name)


def _leave_folder(folder: TemporaryDirectory[str], back: Path) -> None:
    os.chdir(back)
    folder.cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["*.md"],
    setup=_enter_folder,
    teardown=lambda namespace: namespace["_leave"](),
).pytest()
