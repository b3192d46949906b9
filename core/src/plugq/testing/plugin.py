"""The pytest plugin: runs the tests of contract classes, whatever async plugin is installed.

Only coroutine tests of classes that derive from a plugq contract are touched. pytest loads this
module in every session of an environment that has plugq, so it imports next to nothing.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

import pytest

from plugq.testing.requirements import MissingCapability, MissingHook

if TYPE_CHECKING:
    from collections.abc import Generator

pytest.register_assert_rewrite("plugq.testing.contract")

#: Seconds that one coroutine test may take, on a machine that is busy.
DEFAULT_LIMIT = 300.0
#: Where a session keeps another one.
LIMIT = pytest.StashKey[float]()


def _is_contract(item: pytest.Item) -> bool:
    # Items of other plugins, such as the documents of Sybil, have no class.
    return getattr(getattr(item, "cls", None), "plugq_contract", False) is True


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test of a contract in an event loop of its own."""
    if not _is_contract(pyfuncitem) or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    with asyncio.Runner(debug=False) as runner:
        runner.run(_bounded(pyfuncitem))
    return True


async def _bounded(item: pytest.Function) -> None:
    limit = item.config.stash.get(LIMIT, None)
    if limit is None:
        limit = max(DEFAULT_LIMIT, getattr(item.cls, "longest", 0.0))
    try:
        async with asyncio.timeout(limit) as bound:
            await item.obj()
    except TimeoutError:
        if not bound.expired():
            raise
        raise AssertionError(hangs(limit)) from None


def hangs(limit: float) -> str:
    """Return how a test is told of that did not end."""
    return f"it did not end within {limit:g} s: the plugin hangs"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Turn a missing capability or hook into a skip that names it, whoever ran the test."""
    if not _is_contract(item):
        return (yield)
    try:
        return (yield)
    except (MissingCapability, MissingHook) as missing:
        pytest.skip(str(missing))
