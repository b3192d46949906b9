"""The pytest plugin: it runs contracts in anybody's session and leaves everything else alone."""

from __future__ import annotations

import subprocess
import sys

import pytest

import plugq.testing

pytest_plugins = ["pytester"]

CONTRACT = """
import weakref
from contextlib import asynccontextmanager
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.protocols import Capability
from plugq.testing import StorageContract, requires

class TestMine(StorageContract):
    stores = weakref.WeakKeyDictionary()

    @asynccontextmanager
    async def open(self, context):
        storage = self.stores.get(context)
        if storage is None:
            storage = self.stores[context] = MemoryStorage(MemoryOptions(), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    async def test_of_its_own(self):
        async with self.scene() as scene:
            await scene.submit("a")

    @requires(Capability.TRANSACTIONAL_SUBMIT, Capability.DURABLE)
    async def test_beyond_it(self):
        raise AssertionError("it was run")

    def test_that_is_no_coroutine(self):
        assert True
"""


@pytest.fixture
def session(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini("[pytest]\naddopts = -p no:randomly -p no:cacheprovider\n")
    return pytester


FORGETFUL = """
class Forgetful(MemoryStorage):
    async def submit(self, jobs):
        return (await super().submit(jobs))[:0]

class TestForgetful(TestMine):
    @asynccontextmanager
    async def open(self, context):
        storage = Forgetful(MemoryOptions(), context)
        await storage.start()
        yield storage
"""

PATIENT = """
import asyncio

class TestShort(TestMine):
    longest = 0.0

    async def test_in_steps(self):
        for _ in range(5):
            await asyncio.sleep(0)

class TestLong(TestShort):
    longest = 60.0
"""


def test_a_contract_runs_without_an_async_plugin(session: pytest.Pytester) -> None:
    session.makepyfile(CONTRACT)
    result = session.runpytest_subprocess("-q", "-rs", "-k", "of_its_own or beyond or coroutine")
    result.assert_outcomes(passed=2, skipped=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines("*SKIPPED*the plugin does not declare durable, transactional_*")


def test_what_needs_a_hook_that_is_not_written_is_skipped_by_its_name(
    session: pytest.Pytester,
) -> None:
    session.makepyfile(CONTRACT)
    result = session.runpytest_subprocess("-q", "-rs", "-k", "leases_outlive_an_outage")
    result.assert_outcomes(skipped=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines("*SKIPPED*the hook outage() is not written; override it*")


def test_a_failure_of_a_contract_is_told_in_full(session: pytest.Pytester) -> None:
    session.makepyfile(CONTRACT + FORGETFUL)
    chosen = "TestForgetful and (an_empty_call or a_skip_is_final)"
    result = session.runpytest_subprocess("-q", "-k", chosen)
    result.assert_outcomes(failed=1, passed=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines("E *assert [[]] == *accepted*")


def test_a_contract_may_ask_for_more_time(session: pytest.Pytester) -> None:
    session.makeconftest("import plugq.testing.plugin as plugin\nplugin.DEFAULT_LIMIT = 0.0\n")
    session.makepyfile(CONTRACT + PATIENT)
    result = session.runpytest_subprocess("-q", "-k", "in_steps")
    result.assert_outcomes(passed=1, failed=1, deselected=result.parseoutcomes()["deselected"])
    result.stdout.fnmatch_lines("*did not end within 0 s*")
    result.stdout.fnmatch_lines("FAILED *TestShort*")


def test_what_is_no_contract_is_left_alone(session: pytest.Pytester) -> None:
    session.makepyfile(
        """
import pytest

async def test_without_a_runner():
    raise AssertionError("it was run")

class TestPlain:
    def test_passes(self):
        assert True

    @pytest.mark.xfail(strict=True)
    def test_fails(self):
        assert 1 == 2
"""
    )
    result = session.runpytest_subprocess("-q", "-p", "no:asyncio", "-p", "no:anyio")
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 1
    assert outcomes["xfailed"] == 1
    result.stdout.fnmatch_lines("*async def functions are not natively supported*")


def test_items_without_a_class_do_not_disturb_it(session: pytest.Pytester) -> None:
    session.makeconftest(
        """
import pytest

class Line(pytest.Item):
    def runtest(self):
        pass

class Text(pytest.File):
    def collect(self):
        yield Line.from_parent(self, name="line")

def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".lines":
        return Text.from_parent(parent, path=file_path)
"""
    )
    session.makefile(".lines", lines="x")
    session.runpytest_subprocess("-q").assert_outcomes(passed=1)


def test_the_package_does_not_need_pytest() -> None:
    code = (
        "import sys; sys.modules['pytest'] = None; import plugq.testing as t; "
        "t.ManualClock(); t.StorageContract; t.requires; print('hypothesis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_plugin_loads_no_contract_by_itself() -> None:
    code = (
        "import sys, plugq.testing.plugin; "
        "print([name for name in sys.modules if name.startswith('plugq.testing.contract')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_that_the_package_does_not_have_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        _ = plugq.testing.Nothing
