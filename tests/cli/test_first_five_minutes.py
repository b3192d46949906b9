"""What a newcomer types, word for word."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from plugq.config import load_config

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell


def test_transcript(shop: Shell) -> None:
    for file in shop.folder.iterdir():
        file.unlink()

    init = shop.run("init")
    assert (init.returncode, init.stdout, init.stderr) == (
        0,
        "wrote plugq.toml, jobs.py. Next: plugq dev\n",
        "",
    )

    dev = shop.start("dev")
    assert dev.wait_for("plugq dev") == (
        "plugq dev · sqlite jobs.db · 1 task (hello) · queue default · Ctrl-C stops"
    )

    submit = shop.run("submit", "hello", "world", "--wait")
    assert (submit.returncode, submit.stdout, submit.stderr) == (0, '"hello world"\n', "")

    assert dev.end(signal.SIGINT) == 0
    assert dev.output.count("\n") == 2  # the banner, and that it stops


def test_init_overwrites_nothing(shell: Shell) -> None:
    shell.write("jobs.py", "mine")
    run = shell.run("init")
    assert run.returncode == 1
    assert run.stdout == ""
    assert run.stderr == "plugq: jobs.py exists already; nothing was written\n"
    assert [path.name for path in shell.folder.iterdir()] == ["jobs.py"]
    assert (shell.folder / "jobs.py").read_text() == "mine"


def test_init_makes_the_folder(shell: Shell) -> None:
    run = shell.run("init", "first/shop")
    assert run.stdout == (
        "wrote first/shop/plugq.toml, first/shop/jobs.py. Next: cd first/shop && plugq dev\n"
    )
    assert load_config(shell.folder / "first" / "shop").app == "jobs"


def test_init_without_sqlite_uses_memory(
    shell: Shell, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugq.cli.init.Registry.installed", lambda *_: [])
    assert invoke("init").output == "wrote plugq.toml, jobs.py. Next: plugq dev\n"
    assert load_config(shell.folder).storage.use == "memory"

    dev = shell.start("dev")
    assert dev.wait_for("plugq dev") == (
        "plugq dev · memory · 1 task (hello) · queue default · Ctrl-C stops"
    )
    assert "plugq submit can not reach them" in dev.wait_for("pip install")
    assert dev.end(signal.SIGTERM) == 0


def test_what_init_writes_passes_check(shop: Shell) -> None:
    for file in shop.folder.iterdir():
        file.unlink()
    shop.run("init")
    run = shop.run("check")
    assert (run.returncode, run.stderr) == (0, "")
    assert "plugq.toml: no problems · sqlite jobs.db\n" in run.stdout


def test_dev_shows_what_fails(shop: Shell) -> None:
    dev = shop.start("dev")
    dev.wait_for("plugq dev")
    shop.run("submit", "fail", "no paper", "--id", "f1")
    assert "fail 'f1' attempt 1 of 1: RuntimeError: no paper; it is failed" in dev.wait_for("'f1'")
    assert dev.end(signal.SIGINT) == 0


def test_help_page(invoke: Invoke) -> None:
    page = invoke("--help")
    assert page.exit_code == 0
    for name in ("init", "dev", "submit", "worker", "jobs", "queues", "stats", "check", "demo"):
        assert f"\n  {name} " in page.output
        assert invoke(name, "--help").exit_code == 0


def test_version(invoke: Invoke) -> None:
    assert invoke("--version").output == "plugq 0.1.0\n"
