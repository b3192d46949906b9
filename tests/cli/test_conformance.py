"""``plugq conformance``: what it reports of sound and broken plugins, and of mistakes."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

BROKEN = """
from plugq.builtin.memory import MemoryStorage
from plugq.protocols import Capability

class Forgetful(MemoryStorage):
    async def submit(self, jobs):
        return (await super().submit(jobs))[:0]

class Boastful(MemoryStorage):
    capabilities = frozenset({Capability.DURABLE, Capability.TRANSACTIONAL_SUBMIT})

class Slow(MemoryStorage):
    async def submit(self, jobs):
        import asyncio
        await asyncio.Event().wait()

class Noisy(MemoryStorage):
    async def submit(self, jobs):
        import logging, os
        print("by Python")
        os.write(1, b"by C\\n")
        logging.getLogger("driver").error("by a logger")
        return await super().submit(jobs)

class Ends(MemoryStorage):
    async def start(self):
        raise SystemExit("it has had enough")

class Interrupts(MemoryStorage):
    async def submit(self, jobs):
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        return await super().submit(jobs)

class StartHangs(MemoryStorage):
    async def start(self):
        import asyncio
        await asyncio.Event().wait()

class LeavesAThread(MemoryStorage):
    async def start(self):
        import threading
        threading.Thread(target=threading.Event().wait).start()
        await super().start()

class Neither:
    pass

class Own:
    api_version = 1
    def step(self, state, want, now): ...
    def widened(self, seconds): ...

number = 5
"""
AUTHORS = """
import weakref
from contextlib import asynccontextmanager
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.testing import StorageContract

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

    def test_with_a_fixture(self, answer):
        assert answer == 42
"""
CONFTEST = """
import pytest

@pytest.fixture
def answer():
    return 42
"""


def refused(shell: Shell, said: str, *arguments: str) -> None:
    run = shell.run("conformance", *arguments)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stdout == ""
    assert run.stderr.startswith("plugq: ")
    assert run.stderr.count("\n") == 1, run.stderr
    assert said in run.stderr


def test_a_sound_storage_conforms(shell: Shell) -> None:
    run = shell.run("conformance", "memory", "-k", "Signals or wakes or skip")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert lines[0] == "tested    memory"
    assert "push_wakeups          declared and held" in lines
    assert "durable               not declared" in lines
    assert lines[-1].startswith("conforms in what was tried: ")


def test_the_memory_storage_keeps_all_of_the_semantics(shell: Shell) -> None:
    run = shell.run("conformance", "memory", "--level", "semantics", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert report["conforms"] is True
    assert report["summary"].startswith("conforms in what was tried: ")
    assert report["levels"]["semantics"]["passed"] > 300


def test_levels_are_chosen(shell: Shell) -> None:
    run = shell.run("conformance", "memory", "--level", "cost", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert {test["level"] for test in report["tests"]} == {"cost"}
    assert report["left_out"] > 100


def test_what_is_not_declared_is_skipped_and_counted(shell: Shell) -> None:
    run = shell.run("conformance", "memory", "-k", "opened_by_several or outlasts")
    assert "  skipped: not declared: durable (1 test)" in run.stdout
    assert "  skipped: not declared: shared_processes (" in run.stdout


def test_a_run_in_which_nothing_ran_is_no_success(shell: Shell) -> None:
    for choose in ("nothing_is_named_so", "acknowledged_outlasts"):
        run = shell.run("conformance", "memory", "-k", choose)
        assert run.returncode == 1
        assert run.stdout.splitlines()[-1] == "does not conform: no test was run"


def test_sqlite_with_its_processes(shop: Shell) -> None:
    run = shop.run("conformance", "sqlite", "-k", "opened_by_several or outlasts or hosts")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "durable               declared and held" in run.stdout
    assert "shared_processes      declared and held" in run.stdout


def test_options_of_a_configuration(shop: Shell) -> None:
    run = shop.run("conformance", "sqlite", "-c", "plugq.toml", "-k", "a_skip_is_final")
    assert run.returncode == 0, run.stdout + run.stderr
    assert not (shop.folder / "jobs.db").exists()
    refused(shop, "uses 'sqlite', not 'memory'", "memory", "-c", "plugq.toml")


def test_what_only_the_author_can_try_is_said_not_to_be_tried(shop: Shell) -> None:
    run = shop.run("conformance", "sqlite", "--json", "-k", "transaction_of or a_skip_is_final")
    assert run.returncode == 0, run.stdout
    report = json.loads(run.stdout)
    assert report["capabilities"]["transactional_submit"] == "declared and not tried"
    reasons = {test["name"]: test["reason"] for test in report["tests"]}
    name = "test_a_job_is_submitted_in_a_transaction_of_the_user"
    assert "the hook transactions() is not written" in reasons[name]


def test_a_broken_storage_is_told_of_in_lines(shell: Shell) -> None:
    shell.write("broken.py", BROKEN)
    run = shell.run("conformance", "broken:Forgetful", "-k", "a_skip_is_final or empty_call")
    assert run.returncode == 1
    assert "Traceback" not in run.stdout + run.stderr
    lines = run.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("  FAILED a skip is final"))
    assert "assert" in lines[at + 1]
    assert lines[-1] == "does not conform: 1 test failed"
    more = shell.run("conformance", "broken:Forgetful", "-k", "a_skip_is_final", "--verbose")
    assert "    | " in more.stdout


def test_a_false_declaration_is_a_failure(shell: Shell) -> None:
    shell.write("broken.py", BROKEN)
    run = shell.run("conformance", "broken:Boastful", "--json", "-k", "outlasts or transaction_of")
    assert run.returncode == 1
    report = json.loads(run.stdout)
    assert report["conforms"] is False
    assert report["class"] == "broken:Boastful"
    assert report["capabilities"]["durable"] == "declared and broken"
    assert report["capabilities"]["transactional_submit"] == "declared and broken"
    assert report["capabilities"]["push_wakeups"] == "not declared"
    assert report["levels"]["crash"] == {"passed": 0, "failed": 1, "skipped": 0}
    reasons = {test["name"]: test["reason"] for test in report["tests"]}
    name = "test_a_job_is_submitted_in_a_transaction_of_the_user"
    assert "the hook transactions() is not written" in reasons[name]
    assert set(report["tests"][0]) == {
        *("level", "name", "promise", "outcome", "reason", "seconds", "needs")
    }


def test_a_process_that_fails_is_told_of_in_a_line(shell: Shell) -> None:
    forgetful = (
        "    capabilities = frozenset({Capability.DURABLE})\n    async def submit(self, jobs):"
    )
    shell.write("broken.py", BROKEN.replace("    async def submit(self, jobs):", forgetful, 1))
    run = shell.run("conformance", "broken:Forgetful", "-k", "acknowledged_outlasts")
    assert run.returncode == 1
    assert "Traceback" not in run.stdout
    assert "    the process ended with 1: AssertionError" in run.stdout


def test_a_plugin_that_hangs_ends(shell: Shell) -> None:
    shell.write("broken.py", BROKEN)
    run = shell.run("conformance", "broken:Slow", "-k", "a_skip_is_final", "--timeout", "0.5")
    assert run.returncode == 1
    assert "it did not end within 0.5 s: the plugin hangs" in run.stdout


def test_a_plugin_whose_start_hangs_is_not_asked_for_longer_than_a_test(shell: Shell) -> None:
    shell.write("broken.py", BROKEN)
    run = shell.run("conformance", "broken:StartHangs", "-k", "a_skip_is_final", "--timeout", "0.5")
    assert run.returncode == 1
    assert "it did not end within 0.5 s: the plugin hangs" in run.stdout


def test_a_thread_that_a_plugin_leaves_does_not_keep_the_command(shell: Shell) -> None:
    shell.write("broken.py", BROKEN)
    run = shell.run("conformance", "broken:LeavesAThread", "-k", "a_skip_is_final")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].startswith("conforms in what was tried: ")


def test_what_a_plugin_says_is_not_in_the_report(shell: Shell) -> None:
    shell.write("broken.py", 'print("at its import")\n' + BROKEN)
    run = shell.run("conformance", "broken:Noisy", "-k", "a_skip_is_final", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    assert json.loads(run.stdout)["conforms"] is True
    assert run.stderr == ""


def test_a_plugin_that_ends_the_process_fails(shell: Shell) -> None:
    shell.write("broken.py", BROKEN)
    run = shell.run("conformance", "broken:Ends", "-k", "a_skip_is_final")
    assert run.returncode == 1
    assert "    SystemExit: it has had enough" in run.stdout.splitlines()


@pytest.mark.skipif(os.name != "posix", reason="there is no such signal")
def test_ctrl_c_ends_the_run_without_a_word(shell: Shell) -> None:
    shell.write("broken.py", BROKEN)
    run = shell.run("conformance", "broken:Interrupts", "-k", "a_skip_is_final")
    assert run.returncode == 130
    assert run.stdout + run.stderr == ""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="nothing breaks it off there")
def test_a_plugin_that_blocks_the_loop_ends(shell: Shell) -> None:
    shell.write(
        "blocks.py",
        "import threading\n"
        "from plugq.builtin.memory import MemoryStorage\n"
        "class Blocks(MemoryStorage):\n"
        "    async def submit(self, jobs):\n"
        "        threading.Event().wait()\n",
    )
    run = shell.run("conformance", "blocks:Blocks", "-k", "a_skip_is_final", "--timeout", "0.5")
    assert run.returncode == 1
    assert "    it did not end within 0.5 s: the plugin hangs" in run.stdout.splitlines()


def test_a_limiter_of_plugq(shell: Shell) -> None:
    for arguments in (
        ("rate", "-o", "limit=5", "-o", "per=2s"),
        ("limiter:spaced", "-o", "limit=7", "-o", "per=1.0"),
        ("delay", "-o", "every=0.3"),
        ("token_bucket", "-o", "rate=0.7", "-o", "burst=2"),
    ):
        run = shell.run("conformance", *arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        assert run.stdout.splitlines()[-1] == "conforms"
    assert list(shell.folder.iterdir()) == []


def test_a_contract_of_an_author(shell: Shell) -> None:
    shell.write("test_mine.py", AUTHORS)
    shell.write("conftest.py", CONFTEST)
    # Neither the configuration of the project nor the environment's options count.
    shell.write("pytest.ini", "[pytest]\naddopts = --no-such-option\n")
    shell.environ["PYTEST_ADDOPTS"] = "--no-such-option"
    for target in ("test_mine.py", "test_mine.py::TestMine", "test_mine:TestMine"):
        run = shell.run("conformance", target, "-k", "a_skip_is_final or fixture or wakes_nobody")
        assert run.returncode == 0, run.stdout + run.stderr
        assert "declares  push_wakeups" in run.stdout
        assert "semantics: " in run.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sqlit",), "no storage, serde or limiter plugin is named 'sqlit'"),
        (("storage:rate",), "yet a limiter plugin is"),
        (("nowhere:Storage",), "nowhere:Storage can not be imported: ModuleNotFoundError"),
        (("broken:Missing",), "can not be imported: AttributeError"),
        (("raises:Storage",), "can not be imported: RuntimeError: boom second line"),
        (("broken:number",), "broken:number is no class"),
        (("broken:Neither",), "is neither a storage, serde or limiter plugin nor a contract"),
        (("broken:Own",), "write a subclass of plugq.testing.LimiterContract"),
        (("rate",), "limiter.limit: this option is required (and 1 more)"),
        (("memory", "-o", "colour=red"), "storage.colour: unknown option"),
        (("memory", "-o", "colour"), "'colour' is no option; write it as KEY=VALUE"),
        (("memory", "-k", "a and"), "memory can not be run: "),
        (("missing.py",), "missing.py is not there"),
        (("broken.py",), "broken.py has no tests; write a subclass of a contract"),
        (("ends.py",), "ends.py can not be run: SystemExit: 3"),
        (("raises.py",), "raises.py can not be collected: RuntimeError: boom"),
        (("test_mine.py::TestOther",), "test_mine.py::TestOther can not be run: not found"),
        (("test_mine.py", "-o", "a=1"), "takes no options"),
    ],
)
def test_mistakes(shell: Shell, arguments: tuple[str, ...], said: str) -> None:
    shell.write("broken.py", BROKEN)
    shell.write("raises.py", 'raise RuntimeError("boom\\nsecond line")\n')
    shell.write("ends.py", "raise SystemExit(3)\n")
    shell.write("test_mine.py", AUTHORS)
    refused(shell, said, *arguments)


def test_without_pytest(shell: Shell) -> None:
    # A folder in front of the path in which pytest can not be found.
    shell.write(
        "sitecustomize.py",
        "import sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pytest':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Finder())\n",
    )
    shell.environ["PYTHONPATH"] = str(shell.folder)
    refused(shell, "run: pip install 'plugq[testing]'", "memory")
