"""Whatever goes wrong is one line on standard error and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell

SQLITE = '[storage]\nuse = "sqlite"\n'


def refused(shell: Shell, code: int, said: str, *arguments: str) -> None:
    run = shell.run(*arguments)
    assert run.returncode == code, run.stderr
    assert run.stdout == ""
    assert run.stderr.startswith("plugq: ")
    assert run.stderr.count("\n") == 1, run.stderr
    assert said in run.stderr


def test_no_configuration(shell: Shell) -> None:
    refused(shell, 2, "run `plugq init` to make one", "stats")
    refused(shell, 2, "other.toml is not there", "stats", "-c", "other.toml")


def test_malformed_configuration(shell: Shell) -> None:
    shell.write("plugq.toml", "[storage\nuse = 1\n")
    refused(shell, 2, "plugq.toml, line 1, column 9: ", "jobs", "list")


def test_wrong_values(shell: Shell) -> None:
    shell.write("plugq.toml", '[storage]\nuse = "memory"\n[worker]\nconcurency = 1\ngrace = -1\n')
    refused(
        shell,
        2,
        "worker.concurency: unknown option, did you mean 'concurrency'? (and 1 more: run plugq",
        "dev",
    )


@pytest.mark.parametrize(
    ("use", "said"),
    [
        ("sqlit", "no storage plugin is named 'sqlit', did you mean 'sqlite'?"),
        ("broken:Storage", "can not be imported: RuntimeError: boom second line"),
        ("nowhere:Storage", "no module named 'nowhere'"),
    ],
)
def test_unusable_plugin(shell: Shell, use: str, said: str) -> None:
    shell.write("broken.py", 'raise RuntimeError("boom\\nsecond line")\n')
    shell.write("plugq.toml", f'[storage]\nuse = "{use}"\n')
    refused(shell, 2, said, "stats")
    refused(shell, 2, said, "worker")


def test_plugin_of_an_extra(shell: Shell) -> None:
    shell.write("plugq.toml", f'{SQLITE}path = "jobs.db"\n[serde]\nuse = "msgpack"\n')
    refused(shell, 2, "run: pip install 'plugq[msgpack]'", "stats")


def test_database_that_can_not_be_written(shop: Shell) -> None:
    shop.write("file", "")
    shop.write("plugq.toml", f'{SQLITE}path = "file/jobs.db"\n')
    refused(shop, 2, "storage.path: ", "stats")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write")
def test_folder_that_can_not_be_written(shop: Shell) -> None:
    folder = shop.folder / "locked"
    folder.mkdir(0o500)
    shop.write("plugq.toml", f'{SQLITE}path = "locked/jobs.db"\n')
    refused(shop, 2, "can not be written; check its permissions", "stats")


def test_file_that_is_no_database(shop: Shell) -> None:
    shop.write("jobs.db", "something else\n" * 100)
    refused(shop, 2, "jobs.db is not a database", "stats")


def test_database_of_a_newer_version(shop: Shell) -> None:
    assert shop.run("stats").returncode == 0
    db = sqlite3.connect(shop.folder / "jobs.db")
    db.execute("PRAGMA user_version = 99")
    db.commit()
    db.close()
    refused(shop, 2, "was written by a newer plugq-sqlite (schema 99", "stats")
    refused(shop, 2, "was written by a newer plugq-sqlite (schema 99", "worker")


@pytest.mark.parametrize("command", [("worker",), ("dev",), ("submit", "hello")])
def test_application_that_can_not_be_imported(shop: Shell, command: tuple[str, ...]) -> None:
    shop.write("jobs.py", "import plugq\n\nimport nothing_of_that_name\n")
    said = "module 'jobs' can not be imported: ModuleNotFoundError: No module named 'nothing_of"
    refused(shop, 2, said, *command)
    refused(shop, 2, "jobs.py, line 3)", *command)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("def f(:\n", 1),
        ("\n1 / 0\n", 2),
        ("import plugq\napp = plugq.App()\napp.task(max_attempts=0)(print)\n", 3),
    ],
)
def test_mistake_in_an_application_is_shown_where_it_is(shop: Shell, text: str, line: int) -> None:
    shop.write("jobs.py", text)
    run = shop.run("check")
    assert run.returncode == 2
    assert run.stdout.count("line") == 1
    assert run.stdout.endswith(f"jobs.py, line {line})\n")


def test_key_that_a_variable_names(shop: Shell) -> None:
    shop.environ["PLUGQ_STORAGE__PTH"] = "x"
    shop.environ["PLUGQ_WORKR__GRACE"] = "1s"
    run = shop.run("check")
    assert run.returncode == 2
    assert "workr: unknown option, did you mean 'worker'? (from PLUGQ_WORKR__GRACE)" in run.stdout
    assert "'path'? (from PLUGQ_STORAGE__PTH)" in run.stdout


def test_queue_without_a_name(shop: Shell) -> None:
    refused(shop, 2, "queue: expected 1 to 255 bytes of UTF-8, got 0", "worker", "--queue", "")


def test_check_says_what_is_missing_for_a_worker(shop: Shell) -> None:
    shop.write("plugq.toml", f'{SQLITE}path = "jobs.db"\n')
    run = shop.run("check")
    assert run.returncode == 0
    assert "no application is named" in run.stderr
    assert shop.run("check", "--no-app").stderr == ""


def test_dev_takes_an_application(shop: Shell) -> None:
    shop.write("plugq.toml", f'{SQLITE}path = "jobs.db"\n')
    dev = shop.start("dev", "--app", "jobs")
    dev.wait_for("plugq dev")
    assert dev.end(signal.SIGINT) == 0


def test_no_application(shop: Shell) -> None:
    shop.write("plugq.toml", f'{SQLITE}path = "jobs.db"\n')
    refused(shop, 2, 'names no application; add app = "jobs" for jobs.py', "worker")
    shop.write("jobs.py", "value = 1\n")
    refused(shop, 2, "has no plugq.App", "worker", "--app", "jobs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["helo", "x"], "jobs has no task 'helo', did you mean 'hello'?"),
        (["hello"], "hello(name: str) -> str: missing a required argument: 'name'"),
        (["hello", "a", "b"], "too many positional arguments"),
        (["hello", "5"], "argument 'name': Expected `str`, got `int`"),
        (["hello", "a", "x=1"], "got an unexpected keyword argument 'x'"),
        (["add", "1", "b=2", "b=3"], "the argument 'b' is given twice"),
        (["hello", "a", "--priority", "1001"], "priority: expected -1000 to 1000, got 1001"),
        (["hello", "a", "--priority", "high"], "'--priority': 'high' is not a valid integer"),
        (["hello", "a", "--id", ""], "id: expected 1 to 1,024 bytes of UTF-8, got 0"),
        (["hello", "a", "--id", "x" * 2048], "id: expected 1 to 1,024 bytes of UTF-8, got 2,048"),
        (["hello", "a", "--queue", ""], "queue: expected 1 to 255 bytes"),
        (["hello", "a", "--delay", "-5"], "'--delay': '-5' is no duration; write it like 30s"),
        (["hello", "a", "--delay", "soon"], "'--delay': 'soon' is no duration"),
        (["hello", "a", "--run-at", "noon"], "'--run-at': 'noon' is no time"),
        (["hello", "a", "--max-attempts", "0"], "max_attempts: expected an integer of at least 1"),
        (["hello", "a", "--header", "x"], "--header: write it like trace=1"),
        (["hello", "a", "--timeout", "5"], "--timeout is how long to wait: give --wait too"),
        (["hello", "a", "--delay", "1", "--run-at", "2030-01-01"], "give one of the two"),
        (["hello", "--prioriti", "5"], "--prioriti"),
        (["hello", "a", "-x"], "(see `plugq submit --help`)"),
        ([], "missing argument 'TASK' (see `plugq submit --help`)"),
    ],
)
def test_job_that_can_not_be(shop: Shell, invoke: Invoke, arguments: list[str], said: str) -> None:
    result = invoke("submit", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert not (shop.folder / "jobs.db").exists()


def test_commands_that_are_none(shell: Shell) -> None:
    refused(shell, 2, "no command 'wroker', did you mean 'worker'?", "wroker")
    refused(shell, 2, "no such command 'lst'", "jobs", "lst")


@pytest.mark.parametrize(
    "arguments",
    [("stats",), ("submit", "hello", "x"), ("jobs", "list"), ("worker",), ("queues", "list")],
)
def test_private_storage(shell: Shell, arguments: tuple[str, ...]) -> None:
    shell.write("plugq.toml", '[storage]\nuse = "memory"\n')
    refused(shell, 2, "app.running({})", *arguments)


def test_job_that_is_not_there(shop: Shell) -> None:
    refused(shop, 1, "no job 'nope' in any queue", "jobs", "show", "nope")


def test_debugging_shows_the_traceback(shell: Shell) -> None:
    shell.environ["PLUGQ_DEBUG"] = "1"
    run = shell.run("stats")
    assert run.returncode == 2
    assert run.stderr.startswith("Traceback (most recent call last):")
    assert run.stderr.splitlines()[-1].startswith("plugq: no plugq.toml in")


def test_failing_job(shop: Shell) -> None:
    dev = shop.start("dev")
    dev.wait_for("plugq dev")
    refused(shop, 1, "RuntimeError: no paper", "submit", "fail", "no paper", "--wait")


def test_wait_that_takes_too_long(shop: Shell) -> None:
    arguments = ("submit", "hello", "x", "--id", "slow", "--wait", "--timeout", "0.05")
    # The reason follows where the storage answers in time.
    refused(shop, 1, "still queued after 0.05 s", *arguments)


def test_output_that_nobody_reads(shop: Shell) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        run = subprocess.run(
            [sys.executable, "-m", "plugq", "config", "show"],
            check=False,
            cwd=shop.folder,
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=45,
        )
    assert (run.returncode, run.stderr) == (1, b"")


def test_ctrl_c_is_quiet(shop: Shell) -> None:
    waiting = shop.start("submit", "hello", "x", "--wait")
    while not json.loads(shop.run("jobs", "list", "--json").stdout):
        pass
    assert waiting.end(signal.SIGINT) == 130
    assert waiting.output.strip() == ""


def test_folder_that_can_not_be_made(shell: Shell) -> None:
    shell.write("file", "")
    refused(shell, 1, "file/shop: Not a directory", "init", "file/shop")
