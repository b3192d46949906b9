"""``plugq events``: what another process is shown of what happens."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from plugq import EventKind, JobEvent
from plugq.cli.events import json_of, line_of
from plugq.job import JobState, Progress

if TYPE_CHECKING:
    from tests.cli.conftest import Shell

LISTENING = "listening; Ctrl-C ends it"


def test_events_are_printed_as_they_happen(shop: Shell) -> None:
    events = shop.start("events", "--task", "hello", "--count", "3")
    events.wait_for(LISTENING)
    worker = shop.start("worker")
    assert shop.run("submit", "fail", "boom").returncode == 0
    done = shop.run("submit", "hello", "world", "--wait", "--batch", "b")
    assert done.returncode == 0, done.stderr
    assert events.end() == 0
    worker.close()
    lines = [line for line in events.output.splitlines() if line != LISTENING]
    words = [line.split() for line in lines]
    assert sorted(word[1] for word in words) == ["started", "submitted", "succeeded"]
    assert {tuple(word[2:4]) for word in words} == {("default", "hello")}
    assert all("batch=b" in word for word in words)


def test_events_as_json_of_some_kinds(shop: Shell) -> None:
    events = shop.start(
        "events", "--kind", "queue_paused", "--kind", "queue_resumed", "--json", "--count", "2"
    )
    events.wait_for(LISTENING)
    for command in ("pause", "resume"):
        assert shop.run("queues", command, "letters").returncode == 0
    assert events.end() == 0
    found = [json.loads(line) for line in events.output.splitlines() if line != LISTENING]
    assert [(event["kind"], event["queue"]) for event in found] == [
        ("queue_paused", "letters"),
        ("queue_resumed", "letters"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_is_how_it_ends(shop: Shell) -> None:
    events = shop.start("events")
    events.wait_for(LISTENING)
    assert events.end(signal.SIGINT) == 0
    assert events.output.splitlines() == [LISTENING]


def test_mistakes_are_one_line(shop: Shell) -> None:
    for arguments, said in (
        (("--kind", "begun"), "'begun' is not one of 'submitted'"),
        (("--count", "0"), "0 is not in the range"),
    ):
        run = shop.run("events", *arguments)
        assert run.returncode == 2
        assert run.stderr.startswith("plugq: ")
        assert said in run.stderr
        assert len(run.stderr.splitlines()) == 1


def test_a_line_has_the_facts_of_its_kind_and_nothing_that_a_terminal_obeys() -> None:
    event = JobEvent(
        kind=EventKind.RETRYING,
        at=0.125,
        queue="q",
        task="t",
        id="a\x1b[2J\n",
        state=JobState.DELAYED,
        attempt=2,
        max_attempts=4,
        worker="w",
        code="error",
        message="no\r",
        delay=90.0,
        lane="l",
    )
    assert line_of(event) == (
        "00:00:00.125Z  retrying          q  t  a\\x1b[2J\\n  attempt=2/4  worker=w  lane=l  "
        "delay=1m30s  code=error  message=no\\r"
    )
    assert line_of(JobEvent(kind=EventKind.TICK, schedule="nightly")) == (
        "00:00:00.000Z  tick              schedule=nightly"
    )


def test_progress_has_names_in_json() -> None:
    progress = Progress(current=1, total=4, message="begun")
    event = JobEvent(kind=EventKind.PROGRESS, id="a", attempt=1, progress=progress)
    assert line_of(event) == ("00:00:00.000Z  progress          a  attempt=1  progress=1/4 begun")
    assert json.loads(bytes(json_of(event))) == {
        "kind": "progress",
        "id": "a",
        "attempt": 1,
        "progress": {"current": 1, "total": 4, "message": "begun", "details": None},
    }
