"""What is printed, for people on a terminal and for programs in a pipe."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import click
import pytest

from plugq.cli.failure import guarded, log_to_stderr
from plugq.cli.output import (
    moment,
    on_terminal,
    plural,
    print_facts,
    print_json,
    print_table,
    safe,
    safe_lines,
    span,
)
from plugq.errors import ConfigError, Conflict, PayloadError, Undecodable


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugq.cli.output.on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "dumb")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain ü 日本 🎉", "plain ü 日本 🎉"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b31m\u202e\u200b", "\\x9b31m\\u202e\\u200b"),
        ("\udc80\U000e0001", "\\udc80\\U000e0001"),
        (None, ""),
        (7, "7"),
    ],
)
def test_safe(value: object, expected: str) -> None:
    assert safe(value) == expected


def test_lines_stay_lines() -> None:
    assert safe_lines("a\n\tb\x1b\n") == ["a", "    b\\x1b", ""]


def test_words() -> None:
    assert plural(1, "job") == "1 job"
    assert plural(1234, "job") == "1,234 jobs"
    assert plural(2, "process", "processes") == "2 processes"
    assert moment(datetime(2030, 1, 2, 5, tzinfo=timezone(timedelta(hours=2)))) == (
        "2030-01-02 03:00:00Z"
    )
    assert moment(None) == ""


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, ""),
        (0, "0s"),
        (1.25, "1.2s"),
        (60, "1m0s"),
        (3599.9, "59m59s"),
        (3700, "1h1m"),
        (90000, "1d1h"),
    ],
)
def test_span(seconds: float | None, expected: str) -> None:
    assert span(seconds) == expected


def test_table_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["id", "n"], [["a\tb", 1], ["[red]c", None]])
    assert capsys.readouterr().out == "ID\tN\na\\tb\t1\n[red]c\t\n"


@pytest.mark.usefixtures("terminal")
def test_table_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["id", "n"], [["[red]a[/] :smile:\x1b[2J", 1], ["long", 22]])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "id                        n",
        "[red]a[/] :smile:\\x1b[2J  1",
        "long                      22",
    ]


@pytest.mark.usefixtures("terminal")
def test_table_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    id = "01a2010d-6972-7190-a2ec-c69c823e66c6"
    print_table(["id", "failed", "note", "code"], [[id, 0, "some words", ""]])
    out = capsys.readouterr().out
    assert id in out
    assert "failed" not in out
    assert "code" not in out
    # An id that leaves no room for anything else is folded like the rest.
    print_table(["id", "n"], [["x" * 90, 1]])
    assert capsys.readouterr().out.count("x") == 90


@pytest.mark.usefixtures("terminal")
def test_table_without_rows_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "8")
    print_table(["id", "n"], [])
    assert capsys.readouterr().out.split() == ["id", "n"]


def test_closed_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert not on_terminal()
    assert guarded(lambda: None) == 0


def test_facts(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"a": 1, "long": "x\ny", "none": None})
    assert capsys.readouterr().out == "a     1\nlong  x\\ny\nnone\n"
    print_facts({})
    assert capsys.readouterr().out == ""


def test_json_is_one_line_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"t": datetime(2030, 1, 2, tzinfo=UTC), "o": UTC, "s": "ü\x9b\x7f\n\ue000"}
    print_json(value)
    out = capsys.readouterr().out
    assert out == ('{"t":"2030-01-02T00:00:00Z","o":"UTC","s":"ü\\u009b\\u007f\\n\\ue000"}\n')
    assert json.loads(out)["s"] == value["s"]


@pytest.mark.usefixtures("terminal")
def test_json_is_indented_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [1]})
    print_json("text")
    assert capsys.readouterr().out == '{\n  "a": [\n    1\n  ]\n}\n"text"\n'


def raising(error: BaseException) -> Any:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a\nb\x1b"), 2, "plugq: a b\\x1b\n"),
        (Conflict("no"), 1, "plugq: no\n"),
        (PayloadError("a set"), 2, "plugq: a set\n"),
        (Undecodable("no JSON"), 1, "plugq: no JSON\n"),
        (click.ClickException("no"), 1, "plugq: no\n"),
        (click.UsageError("No such thing."), 2, "plugq: no such thing (see `plugq --help`)\n"),
        (click.Abort(), 130, ""),
        (OSError(28, "No space left on device"), 1, "plugq: No space left on device\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "plugq: x: Permission denied\n"),
        (OSError(), 1, "plugq: OSError\n"),
    ],
)
def test_error_is_one_line(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == code
    assert capsys.readouterr() == ("", said)


def test_defect_is_shown_as_one() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()))


def test_exit_code_of_a_command() -> None:
    assert guarded(lambda: 3) == 3
    assert guarded(lambda: None) == 0


@contextlib.contextmanager
def bare_logging() -> Iterator[logging.Logger]:
    """Take away what pytest has installed while its own test runs."""
    root, ours = logging.getLogger(), logging.getLogger("plugq")
    handlers, level = root.handlers, ours.level
    root.handlers = []
    try:
        yield root
    finally:
        root.handlers = handlers
        ours.setLevel(level)


def test_log_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_logging() as root:
        log_to_stderr()
        log_to_stderr()
        assert len(root.handlers) == 1
        error = ValueError("why")
        logging.getLogger("plugq.some").error("told \x1b", exc_info=error)
        logging.getLogger("mine").error("told", exc_info=error)
        lines = capsys.readouterr().err.splitlines()
        assert lines[0].endswith(" ERROR told \\x1b")
        assert lines[1].endswith(" ERROR told")
        assert lines[2] == "ValueError: why"

        log_to_stderr(level=logging.INFO, tracebacks=True)
        logging.getLogger("plugq.some").info("more")
        assert capsys.readouterr().err.endswith(" INFO more\n")


def test_log_holds_no_line_that_a_job_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_logging():
        log_to_stderr(tracebacks=True)
        forged = "no\n12:00:00 ERROR it burns"
        logging.getLogger("plugq.some").error("it said %s", forged, exc_info=ValueError(forged))
        first, *others = capsys.readouterr().err.splitlines()
        assert first.endswith(" ERROR it said no 12:00:00 ERROR it burns")
        assert others == ["  ValueError: no", "  12:00:00 ERROR it burns"]


def test_loops_of_short_commands_are_not_heard(capsys: pytest.CaptureFixture[str]) -> None:
    loops = logging.getLogger("plugq.lifecycle")
    with bare_logging():
        log_to_stderr()
        loops.warning("watch failed and restarts in 0.1 s: the disk is full")
        assert capsys.readouterr().err == ""
        log_to_stderr(level=logging.INFO)
        loops.warning("watch failed and restarts in 0.1 s: the disk is full")
        assert "the disk is full" in capsys.readouterr().err


def test_log_of_others_is_left_alone() -> None:
    with bare_logging() as root:
        theirs = logging.StreamHandler(sys.stderr)
        root.addHandler(theirs)
        log_to_stderr()
        assert root.handlers == [theirs]
