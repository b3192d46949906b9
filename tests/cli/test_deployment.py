"""``check``, ``config``, ``plugins``, and the commands that plugins add."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugq.cli.toml import to_toml
from plugq.config import load_config

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell

PLUGIN = '''
import click
import plugq

@plugq.hookimpl
def plugq_cli(group):
    @group.command()
    def extra():
        """Say more."""
        click.echo("more")

    @group.command()
    def stats():
        click.echo("replaced")
'''


@pytest.fixture
def site(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """Install a hook plugin with commands, and one that fails to import."""
    folder = shell.folder / "site"
    for name, module in (("extra", "extra_plugin"), ("broken", "broken_plugin")):
        info = folder / f"plugq_{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugq-{name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[plugq.hooks]\n{name} = {module}\n")
    (folder / "extra_plugin.py").write_text(PLUGIN)
    (folder / "broken_plugin.py").write_text("raise RuntimeError('boom')\n")
    shell.environ["PYTHONPATH"] = str(folder)
    monkeypatch.syspath_prepend(str(folder))
    return shell


def test_plugin_adds_commands(site: Shell) -> None:
    run = site.run("extra")
    assert (run.returncode, run.stdout) == (0, "more\n")
    assert "Traceback" not in run.stderr
    page = site.run("--help")
    assert page.returncode == 0
    assert page.stdout.splitlines()[-1].split() == ["extra", "Say", "more."]
    assert "broken 1.0 is left out: it can not be imported: RuntimeError: boom\n" in page.stderr


def test_plugin_replaces_no_command(site: Shell) -> None:
    assert "replaced" not in site.run("stats").stdout


def test_disabled_plugin_adds_none(site: Shell) -> None:
    site.write("plugq.toml", '[plugins]\ndisabled = ["extra", "broken"]\n')
    run = site.run("extra")
    assert run.returncode == 2
    assert run.stderr.startswith("plugq: no command 'extra'")
    other = site.write("other.toml", "")
    assert site.run("extra", "-c", str(other)).returncode == 2
    assert "extra" not in site.run("--help").stdout


def test_broken_configuration_keeps_help(site: Shell) -> None:
    site.write("plugq.toml", "nonsense = = 1\n")
    page = site.run("--help")
    assert (page.returncode, page.stderr) == (0, "")
    assert "extra" not in page.stdout
    assert site.run("submit", "--help").returncode == 0


def test_plugins(site: Shell) -> None:
    run = site.run("plugins")
    assert run.returncode == 0
    rows = [line.split("\t") for line in run.stdout.splitlines()]
    assert rows[0] == ["KIND", "NAME", "DISTRIBUTION", "VERSION"]
    assert ["storage", "memory", "plugq", "0.1.0"] in rows
    assert ["hooks", "broken", "plugq-broken", "1.0"] in rows

    run = site.run("plugins", "--check")
    assert run.returncode == 1
    assert "storage\tmemory\tplugq\t0.1.0\tok\n" in run.stdout
    assert "plugq-broken\t1.0\tcan not be imported: RuntimeError: boom\n" in run.stdout

    site.write("plugq.toml", '[plugins]\ndisabled = ["broken"]\n')
    run = site.run("plugins", "--check", "--json")
    assert run.returncode == 0
    status = {plugin["name"]: plugin["status"] for plugin in json.loads(run.stdout)}
    assert "is disabled by [plugins] disabled" in status["broken"]


def test_help_imports_no_table_library(shell: Shell) -> None:
    code = (
        "import sys\nfrom plugq.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'rich', 'plugq.builtin', 'uvloop'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=45
    )
    assert run.stdout.endswith("[]\n")


def test_check_finds_everything(shop: Shell) -> None:
    shop.write(
        "plugq.toml",
        """
        app = "jobs"
        nme = "x"
        [storage]
        use = "sqlite"
        pth = "jobs.db"
        [worker]
        queues = ["defualt", "mail"]
        [tasks.helo]
        queue = "mail"
        [queues.mail]
        limits = [{ use = "rate", limit = 0, per = "1s" }, { use = "rat" }]
        [require]
        shared_hosts = true
        [schedules.night]
        task = "nothing"
        cron = "0 3 * * *"
        [schedules.late]
        task = "hello"
        args = ["world"]
        cron = "0 25 * * *"
        """,
    )
    run = shop.run("check")
    assert run.returncode == 2
    lines = run.stdout.splitlines()
    for start in (
        "nme: unknown option, did you mean 'app'?",
        "storage.pth: unknown option, did you mean 'path'?",
        "storage.path: this option is required",
        "schedules.late: cron",
        "queues.mail.limits[0].limit: expected a whole number from 1",
        "no limiter plugin is named 'rat'",
        "tasks.helo: jobs has no such task, did you mean 'hello'?",
        "schedules.night.task: jobs has no task 'nothing'",
        "worker.queues: no task and no [queues] names 'defualt', did you mean 'default'?",
    ):
        assert any(line.startswith(start.partition(",")[0]) for line in lines), (start, lines)
    found = json.loads(shop.run("check", "--json").stdout)
    assert found == {"problems": lines, "storage": {"use": "sqlite", "facts": []}}


def test_schedules_are_listed_with_their_next_runs(shop: Shell) -> None:
    text = (shop.folder / "plugq.toml").read_text()
    shop.write(
        "plugq.toml",
        f"""{text}
[schedules.yearly]
task = "hello"
args = ["world"]
cron = "0 3 1 1 *"
timezone = "Europe/Berlin"
[schedules.often]
task = "hello"
args = ["again"]
every = "90s"
""",
    )
    assert shop.run("check").returncode == 0
    run = shop.run("schedules", "--next", "2", "--json")
    assert (run.returncode, run.stderr) == (0, "")
    often, yearly = json.loads(run.stdout)
    assert often["state"] == yearly["state"] == "not announced"
    assert (yearly["name"], yearly["task"]) == ("yearly", "hello")
    assert [tick[4:] for tick in yearly["next"]] == ["-01-01T02:00:00+00:00"] * 2
    assert often["rule"] == "every 90 s"
    assert "Europe/Berlin" in shop.run("schedules").stdout


def test_check_opens_the_storage(shop: Shell) -> None:
    shop.write("jobs.db", "something else\n" * 100)
    run = shop.run("check", "-c", "plugq.toml")
    assert (run.returncode, run.stderr) == (2, "")
    assert "jobs.db is not a database" in run.stdout


def test_check_imports_the_application_unless_told_not_to(shop: Shell) -> None:
    shop.write("jobs.py", "import plugq\napp = plugq.App(include=['reports'])\n")
    run = shop.run("check")
    assert (run.returncode, run.stdout.count("\n")) == (2, 1)
    assert "module 'reports' can not be imported" in run.stdout
    assert shop.run("check", "--no-app").returncode == 0


def test_check_requires_capabilities(shop: Shell) -> None:
    text = (shop.folder / "plugq.toml").read_text()
    shop.write("plugq.toml", f"{text}\n[require]\nshared_hosts = true\n")
    run = shop.run("check")
    assert run.returncode == 2
    assert run.stdout.startswith("require.shared_hosts: storage 'sqlite' does not offer it")


def test_check_notes_queues_that_nobody_serves(shop: Shell) -> None:
    text = (shop.folder / "plugq.toml").read_text()
    shop.write("plugq.toml", f'{text}\n[worker]\nqueues = ["mail"]\n[queues.mail]\n')
    run = shop.run("check")
    assert run.returncode == 0
    assert "note: [worker] queues leaves out default, where hello goes" in run.stderr


def test_check_without_a_file(shell: Shell) -> None:
    run = shell.run("check")
    assert run.returncode == 2
    assert "run `plugq init`" in run.stdout


def test_config_show(shop: Shell, invoke: Invoke) -> None:
    shop.environ["PLUGQ_BROKER__LEASE"] = "9s"
    shop.environ["WORD"] = "hunter2"
    shop.write(
        "plugq.toml",
        '[storage]\nuse = "sqlite"\npath = "jobs.db"\npassword = "${WORD}"\n'
        '[queues."a b"]\nretry = { max_attempts = 2 }\n[defaults]\ntimeout = "none"\n',
    )
    run = shop.run("config", "show")
    assert run.returncode == 0
    assert "hunter2" not in run.stdout
    table = tomllib.loads(run.stdout)
    assert table["storage"] == {"use": "sqlite", "path": "jobs.db", "password": "***"}
    assert table["broker"]["lease"] == 9.0
    assert json.loads(shop.run("config", "show", "--json").stdout)["broker"]["lease"] == 9.0
    again = load_config(table, environ={})
    assert again.queues["a b"].given()["retry"].max_attempts == 2
    assert again.defaults.timeout is None
    assert again.redacted() | {"storage": None} == table_of(run.stdout) | {"storage": None}


def table_of(text: str) -> dict[str, Any]:
    return load_config(tomllib.loads(text), environ={}).redacted()


values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), values))
def test_toml_means_the_same(table: dict[str, Any]) -> None:
    def shape(value: Any) -> Any:
        """Drop tables without values, and write texts as configurations do."""
        if isinstance(value, dict):
            return {key: shape(item) for key, item in value.items()}
        if isinstance(value, list):
            return [shape(item) for item in value]
        return value.replace("${", "$${") if isinstance(value, str) else value

    def filled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        inner = {key: filled(item) for key, item in value.items()}
        return {key: item for key, item in inner.items() if item != {}}

    assert filled(tomllib.loads(to_toml(table))) == filled(shape(table))
