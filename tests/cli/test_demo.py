"""The demonstration: real files, a killed worker, and nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from plugq.cli.demo_files import Found, find_files, look
from plugq.cli.demo_jobs import CHUNK, digest

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is stopped and killed")


def facts(output: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z ()]+?)  +([\d,.]+)$", output, re.MULTILINE))


def test_demo(shop: Shell) -> None:
    run = shop.run("demo", "--jobs", "300")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert "started 2 workers: " in run.stdout
    assert 'use = "sqlite"' in run.stdout
    assert run.stdout.endswith("every result is right · lost 0\n")
    found = facts(run.stdout)
    assert (found["jobs"], found["succeeded"], found["right results"]) == ("300", "300", "300")
    assert found["lost"] == "0"
    held = re.search(r"with SIGKILL while it was running (\d+) jobs", run.stdout)
    assert held is not None, run.stdout
    assert found["attempts ended by the crash"] == held[1]
    assert found["recovered"] == found["started more than once"] == held[1]
    left = re.search(r"configuration (\S+)/plugq.toml", run.stdout)
    assert left is not None
    assert not Path(left[1]).exists()


def test_demo_on_a_deployment(shop: Shell) -> None:
    text = (shop.folder / "plugq.toml").read_text()
    shop.write(
        "plugq.toml",
        f'{text}\n[broker]\nlease = "1s"\nrenewal = "0.2s"\n[client.reconnect]\nmax = "0.2s"\n'
        '[worker]\nqueues = ["elsewhere"]\nid = "mine"\n',
    )
    shop.run("submit", "hello", "x", "--id", "mine")
    folder = shop.folder / "files"
    folder.mkdir()
    for number in range(120):
        (folder / f"{number}.txt").write_bytes(b"some words \n" * number)
    run = shop.run("demo", "files", "--config", "plugq.toml", "--json", "--workers", "1")
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert report["ok"]
    assert (report["jobs"], report["right"], report["lost"]) == (120, 120, 0)
    assert report["crashed"] == report["held"]
    jobs = json.loads(shop.run("jobs", "list", "--json").stdout)
    assert [job["id"] for job in jobs] == ["mine"]


def test_demo_in_memory_leaves_the_kill_out(shell: Shell) -> None:
    shell.write("plugq.toml", '[storage]\nuse = "memory"\n[worker]\nqueues = ["elsewhere"]\n')
    run = shell.run("demo", "--config", "plugq.toml", "--jobs", "50")
    assert run.returncode == 0, run.stderr
    assert "the worker runs in this one, and no worker is killed" in run.stdout
    assert facts(run.stdout)["right results"] == "50"


def test_demo_keeps_its_folder(shop: Shell) -> None:
    run = shop.run("demo", "--jobs", "5", "--keep")
    kept = re.search(r"^kept (\S+)$", run.stdout, re.MULTILINE)
    assert kept is not None
    assert {"plugq.toml", "jobs.db"} <= {path.name for path in Path(kept[1]).iterdir()}


def test_demo_ends_when_another_worker_does(shop: Shell) -> None:
    demo = shop.start("demo")
    pids = re.findall(r"\(pid (\d+)\)", demo.wait_for("started 2 workers"))
    os.kill(int(pids[1]), signal.SIGKILL)
    assert demo.end() == 1
    assert re.search(r"plugq: the worker demo-\w+-2 ended by itself: it said nothing", demo.output)


def test_demo_tells_wrong_results(
    shell: Shell, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write("plugq.toml", '[storage]\nuse = "memory"\n')
    monkeypatch.setattr("plugq.cli.demo.look", lambda path: {"size": -1})
    result = invoke("demo", ".", "--config=plugq.toml")
    assert result.exit_code == 1
    assert result.stdout.endswith("NOT every result is there and right · lost 0\n")
    assert "plugq.toml: the job says {'sha256': " in result.stderr

    def gone(path: str) -> dict[str, str | int]:
        raise FileNotFoundError(2, "No such file", path)

    monkeypatch.setattr("plugq.cli.demo.look", gone)
    result = invoke("demo", ".", "--config=plugq.toml", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["wrong"] == 1
    assert "plugq.toml: can not be read any longer: No such file" in result.stderr


def test_demo_tells_failed_jobs(
    shell: Shell, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.write("plugq.toml", '[storage]\nuse = "memory"\n[defaults]\nmax_attempts = 1\n')
    missing = Found("here", (str(shell.folder / "missing"), str(shell.folder / "plugq.toml")), 3)
    monkeypatch.setattr("plugq.cli.demo.find_files", lambda *_: missing)
    result = invoke("demo", "--config=plugq.toml")
    assert result.exit_code == 1
    assert "2 files below here (3 left out)" in result.stdout
    assert "FileNotFoundError" in result.stderr
    assert facts(result.stdout)["succeeded"] == "1"


def test_demo_on_a_terminal(shell: Shell, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    shell.write("plugq.toml", '[storage]\nuse = "memory"\n')
    monkeypatch.setattr("plugq.cli.demo.on_terminal", lambda: True)
    result = invoke("demo", ".", "--config=plugq.toml")
    assert result.exit_code == 0
    assert "\njobs done " in result.output
    assert " 1/1" in result.output
    assert "submitted 1 jobs in" in result.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_that_is_stopped_leaves_nothing(shop: Shell, number: signal.Signals) -> None:
    demo = shop.start("demo")
    place = demo.wait_for("configuration ").split()[1].removesuffix("/plugq.toml:")
    demo.wait_for("started 2 workers")
    assert demo.end(number) == 130
    # Its output would not have ended before that of the workers has.
    assert demo.ended
    assert "Traceback" not in demo.output
    assert not Path(place).exists()


def test_demo_without_files(shell: Shell) -> None:
    (shell.folder / "empty").mkdir()
    run = shell.run("demo", "empty")
    assert run.returncode == 1
    assert run.stderr.startswith("plugq: there is no file to read below ")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"one",
        b" one two\nthree ",
        b"x" * (CHUNK + 1),
        b"x" * CHUNK + b" y",
        b"x" * (CHUNK - 1) + b" y z\n",
        b"\x0b\x0c\xff \xfe\r\n" * CHUNK,
        os.urandom(3 * CHUNK + 7),
    ],
    ids=range(9),
)
def test_job_says_what_a_direct_look_says(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
        "lines": content.count(b"\n"),
        "words": len(content.split()),
    }
    assert digest(str(path)) == expected
    assert look(str(path)) == expected


def test_files_are_those_that_can_be_read(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "__pycache__/d.pyc", "site-packages/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "link").symlink_to("b.txt")
    os.mkfifo(tmp_path / "pipe")
    found = find_files(str(tmp_path))
    names = [str(Path(path).relative_to(tmp_path)) for path in found.paths]
    assert names == ["b.txt", "a/c.txt", "site-packages/e.py"]
    assert found.left_out == 2
    assert len(find_files(str(tmp_path), 1).paths) == 1
    assert not any("site-packages" in path for path in find_files().paths)
