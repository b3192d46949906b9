"""Workers as processes: signals, and a parent that keeps a number of them running."""

from __future__ import annotations

import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Running, Shell

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent to processes")


def pid_of(shop: Shell) -> int:
    return int(shop.run("submit", "pid", "--wait").stdout)


def quick_leases(shop: Shell) -> None:
    text = (shop.folder / "plugq.toml").read_text()
    shop.write("plugq.toml", f'{text}\n[broker]\nlease = "1s"\n[worker]\ngrace = "0.1s"\n')


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_stops_on_a_signal(shop: Shell, number: signal.Signals) -> None:
    worker = shop.start("worker", "--concurrency", "3")
    assert worker.wait_for("plugq worker") == (
        "plugq worker · sqlite jobs.db · 5 tasks (hello, add, fail, pid, wait) · queue default "
        "· Ctrl-C stops"
    )
    assert pid_of(shop) == worker.process.pid
    assert worker.end(number) == 0


def test_first_signal_gives_jobs_back(shop: Shell) -> None:
    quick_leases(shop)
    worker = shop.start("worker")
    worker.wait_for("plugq worker")
    shop.run("submit", "wait", "--id", "w")
    worker.wait_for("waiting")
    assert worker.end(signal.SIGTERM) == 0
    assert "queued\tdefault\tw\twait\t0/4" in shop.run("jobs", "list").stdout


def test_second_signal_ends_the_process(shop: Shell) -> None:
    worker = shop.start("worker")
    worker.wait_for("plugq worker")
    shop.run("submit", "wait")
    worker.wait_for("waiting")
    worker.process.send_signal(signal.SIGTERM)
    worker.wait_for("a second signal ends the process at once")
    assert worker.end(signal.SIGTERM) == 128 + signal.SIGTERM


def test_queues_are_those_asked_for(shop: Shell) -> None:
    worker = shop.start("worker", "-q", "mail", "-q", "default")
    assert " · queues mail, default · " in worker.wait_for("plugq worker")
    assert worker.end(signal.SIGTERM) == 0


def test_application_is_the_one_asked_for(shop: Shell) -> None:
    shop.write("other.py", "import plugq\napp = plugq.App()\n")
    worker = shop.start("worker", "--app", "other")
    assert " · no tasks · " in worker.wait_for("plugq worker")
    assert worker.end(signal.SIGTERM) == 0


@pytest.fixture
def two(shop: Shell) -> Running:
    worker = shop.start("worker", "--processes", "2")
    assert worker.wait_for("plugq worker") == (
        "plugq worker · sqlite jobs.db · 5 tasks (hello, add, fail, pid, wait) · queue default "
        "· 2 processes · Ctrl-C stops"
    )
    return worker


def test_processes_stop_on_a_signal(shop: Shell, two: Running) -> None:
    child = pid_of(shop)
    assert child != two.process.pid
    assert two.end(signal.SIGTERM) == 0
    assert two.output.endswith("plugq worker · 2 processes stopped\n")
    assert not running(child)


def test_terminal_reaches_the_parent_alone(shop: Shell, two: Running) -> None:
    assert os.getpgid(pid_of(shop)) != os.getpgid(two.process.pid)
    assert two.end(signal.SIGINT) == 0


def test_process_that_died_is_started_again(shop: Shell, two: Running) -> None:
    child = pid_of(shop)
    os.kill(child, signal.SIGKILL)
    died = two.wait_for("was ended by SIGKILL; it restarts in 0.1 s")
    place = re.match(rf"worker (\d) \(pid {child}\) ", died)
    assert place is not None
    again = two.wait_for(f"worker {place[1]} runs again (pid ")
    assert f"(pid {child})" not in again
    pid_of(shop)
    assert two.end(signal.SIGTERM) == 0


def test_second_signal_kills_the_processes(shop: Shell, two: Running) -> None:
    child = pid_of(shop)
    shop.run("submit", "wait")
    two.wait_for("waiting")
    two.process.send_signal(signal.SIGTERM)
    two.wait_for("a second signal ends the process at once", times=2)
    assert two.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "was ended by SIGKILL instead of stopping" in two.output
    assert not running(child)


def test_processes_outlive_no_parent(two: Running) -> None:
    two.process.kill()
    # What they print to ends when the last of them has gone.
    assert two.end() == -signal.SIGKILL
    assert two.ended


def test_configuration_is_refused_once(shop: Shell) -> None:
    shop.write("jobs.py", "import nothing_of_that_name\n")
    run = shop.run("worker", "--processes", "3")
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert "No module named 'nothing_of_that_name'" in run.stderr
