"""Submitting, looking and steering from the shell."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from plugq.cli.values import arguments
from plugq.job import JobState

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell

HOSTILE = "a\x1b[31m\tb\n[bold]c[/]\u202e\x9b2J"
SHOWN = "a\\x1b[31m\\tb\\n[bold]c[/]\\u202e\\x9b2J"


def rows(output: str) -> list[list[str]]:
    return [line.split("\t") for line in output.splitlines()[1:]]


def run_all(shop: Shell, number: int) -> None:
    """Run a worker until so many jobs have ended."""
    worker = shop.start("worker")
    worker.wait_for("plugq worker")
    last = shop.run("submit", "hello", "last", "--wait", "--priority=-1000")
    assert last.returncode == 0, last.stderr
    counts = json.loads(shop.run("stats", "--json").stdout)["counts"]
    assert sum(counts[state] for state in JobState if state.final) == number + 1
    assert worker.end(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["5", "-1", "2.5", "true", "null"], ([5, -1, 2.5, True, None], {})),
        (['"5"', "text", "", "a b"], (["5", "text", "", "a b"], {})),
        (["[1, {}]", '{"a": [2]}'], ([[1, {}], {"a": [2]}], {})),
        (["a=1", "b=x=y", "c="], ([], {"a": 1, "b": "x=y", "c": ""})),
        (["http://x?a=b", "1=2", "=x", '"a=b"'], (["http://x?a=b", "1=2", "=x", "a=b"], {})),
        (["NaN", "01", "[" * 5000, "{'a': 1}"], (["NaN", "01", "[" * 5000, "{'a': 1}"], {})),
    ],
)
def test_values_are_json_or_text(texts: list[str], expected: Any) -> None:
    assert arguments(texts) == expected


def test_submit_prints_the_id(invoke: Invoke, shop: Shell) -> None:
    assert invoke("submit", "hello", "world", "--id", "n1").output == "n1\n"
    again = invoke("submit", "hello", "world", "--id", "n1")
    assert (again.exit_code, again.stdout) == (0, "n1\n")
    assert again.stderr == "plugq: nothing new: job n1 in default stands for it\n"
    made = json.loads(invoke("submit", "hello", "world", "--json").stdout)
    assert made == {"id": made["id"], "queue": "default", "outcome": "accepted"}


def test_submit_takes_negative_numbers(invoke: Invoke, shop: Shell) -> None:
    for arguments_ in (["-1", "b=-2"], ["--priority", "-3", "-1", "-2"], ["--", "-1"]):
        assert invoke("submit", "add", *arguments_).exit_code == 0
    assert invoke("submit", "hello", "--", "--name").exit_code == 0
    assert invoke("submit", "hello", "-x").exit_code == 2


def test_submit_without_the_application(invoke: Invoke, shop: Shell) -> None:
    shop.write("jobs.py", "import nothing_of_that_name\n")
    assert invoke("submit", "any.task", "1", "--no-app").exit_code == 0


def test_submit_options(invoke: Invoke, shop: Shell) -> None:
    options = "--queue mail --priority 7 --delay 1h --deadline 2h --max-attempts 2 --lane l"
    more = "--batch b --unique k --header t=1 --result-ttl forever --attempt-timeout 30"
    assert invoke("submit", "hello", "x", "--id=o", *options.split(), *more.split()).exit_code == 0
    job = json.loads(invoke("jobs", "show", "o", "--json").stdout)
    assert job["state"] == "delayed"
    assert (job["queue"], job["priority"], job["max_attempts"]) == ("mail", 7, 2)
    assert (job["lane"], job["batch"]) == ("l", "b")
    other = invoke("submit", "hello", "y", "--queue=mail", "--unique=k", "--json")
    assert json.loads(other.stdout) == {"id": "o", "queue": "mail", "outcome": "duplicate"}
    later = invoke("submit", "hello", "x", "--id=t", "--run-at", "2100-01-02T03:04+00:00")
    assert later.exit_code == 0
    assert "2100-01-02 03:04:00Z" in invoke("jobs", "show", "t").output


def test_what_an_application_prints_is_kept_apart(shop: Shell) -> None:
    shop.write("jobs.py", f"print('loading')\n{(shop.folder / 'jobs.py').read_text()}")
    run = shop.run("submit", "hello", "x", "--id", "n")
    assert (run.returncode, run.stdout, run.stderr) == (0, "n\n", "loading\n")


def test_result_as_json(shop: Shell) -> None:
    worker = shop.start("worker")
    worker.wait_for("plugq worker")
    assert shop.run("submit", "add", "1", "b=2", "--wait").stdout == "3\n"
    shown = shop.run("submit", "hello", "gr\u00fc\u00df\x1b[0m\x9b\U000e0001", "--wait").stdout
    assert shown == '"hello gr\u00fc\u00df\\u001b[0m\\u009b\\udb40\\udc01"\n'
    assert json.loads(shown) == "hello gr\u00fc\u00df\x1b[0m\x9b\U000e0001"


def test_list(invoke: Invoke, shop: Shell) -> None:
    for number in range(5):
        invoke("submit", "hello", "x", f"--id=n{number}", f"--queue=q{number % 2}")
    invoke("submit", "add", "1", "--id=late", "--delay=1h")
    found = rows(invoke("jobs", "list").output)
    assert [row[2] for row in found] == ["late", "n4", "n3", "n2", "n1", "n0"]
    assert found[1][:5] == ["queued", "q0", "n4", "hello", "0/4"]
    for option, ids in (
        (["--state=delayed"], ["late"]),
        (["--state=delayed", "--state=queued"], ["late", "n4", "n3", "n2", "n1", "n0"]),
        (["--queue=q1"], ["n3", "n1"]),
        (["--task=add"], ["late"]),
        (["--limit=2"], ["late", "n4"]),
        (["--state=failed"], []),
    ):
        assert [row[2] for row in rows(invoke("jobs", "list", *option).stdout)] == ids
    assert (
        "there are more than 5 jobs; --limit shows them"
        in invoke("jobs", "list", "--limit=5").stderr
    )
    assert invoke("jobs", "list", "--limit=6").stderr == ""
    assert [job["id"] for job in json.loads(invoke("jobs", "list", "-n1", "--json").stdout)] == [
        "late"
    ]


def test_list_follows_pages(invoke: Invoke, shop: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        invoke("submit", "add", "1", f"--id=n{number}")
    monkeypatch.setattr("plugq.cli.steering.PAGE", 2)
    assert len(rows(invoke("jobs", "list").stdout)) == 7
    assert len(rows(invoke("jobs", "list", "--limit=5").stdout)) == 5


def test_show(shop: Shell) -> None:
    shop.run("submit", "hello", "x", "--id=good")
    shop.run("submit", "fail", "no paper", "--id=bad")
    run_all(shop, 2)
    good = shop.run("jobs", "show", "good", "--payload").stdout
    assert "state       succeeded\n" in good
    assert 'args:\n["x"]\nkwargs:\n{}\nresult:\n"hello x"\n' in good
    bad = shop.run("jobs", "show", "bad").stdout
    assert "attempt     1 of 1\n" in bad
    assert ": error: RuntimeError: no paper\n  Traceback (most recent call last):\n" in bad
    document = json.loads(shop.run("jobs", "show", "bad", "--json").stdout)
    assert document["attempts"][0]["message"] == "no paper"
    assert "no paper" in shop.run("jobs", "list", "--state=failed").stdout


def test_hostile_names_are_shown_escaped(shop: Shell, invoke: Invoke) -> None:
    assert invoke("submit", "fail", HOSTILE, "--id", HOSTILE, "--queue", "q").output == f"{SHOWN}\n"
    worker = shop.start("worker", "-q", "q", "-q", "default")
    worker.wait_for(" it is failed")
    for arguments_ in (["jobs", "list"], ["jobs", "show", HOSTILE], ["jobs", "retry", HOSTILE]):
        output = invoke(*arguments_).output
        assert SHOWN in output
        assert not {"\x1b", "\x9b", "\u202e"} & set(output + worker.output)
    missing = invoke("jobs", "show", f"{HOSTILE}?")
    assert "no job " in missing.stderr
    assert "\x1b" not in missing.stderr


def test_cancel_retry_purge(shop: Shell, invoke: Invoke) -> None:
    shop.run("submit", "fail", "x", "--id=bad")
    run_all(shop, 1)
    invoke("submit", "hello", "x", "--id=w", "--queue=q")

    cancelled = invoke("jobs", "cancel", "w", "bad", "nope")
    assert cancelled.stdout == "w\tcancelled\nbad\tfinished\nnope\tnot_found\n"
    assert cancelled.exit_code == 1
    assert invoke("jobs", "retry", "bad", "--json").stdout == '[{"id":"bad","answer":"done"}]\n'
    assert invoke("jobs", "retry", "bad").output == "bad\tconflict\n"
    assert invoke("jobs", "purge", "bad").exit_code == 1
    assert invoke("jobs", "cancel", "bad", "--queue=default").output == "bad\tcancelled\n"
    purged = invoke("jobs", "purge", "bad", "w")
    assert (purged.exit_code, purged.output) == (0, "bad\tdone\nw\tdone\n")
    assert invoke("jobs", "purge", "w", "--queue=q").output == "w\tnot_found\n"
    assert invoke("jobs", "cancel", "none").output == "none\tnot_found\n"


def test_id_in_two_queues(invoke: Invoke, shop: Shell) -> None:
    for queue in ("a", "b"):
        invoke("submit", "hello", "x", "--id=n", f"--queue={queue}")
    result = invoke("jobs", "cancel", "n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "several queues have a job 'n'; name one of a, b" in result.stderr
    assert invoke("jobs", "cancel", "n", "-q", "b").exit_code == 0


def test_queues(invoke: Invoke, shop: Shell) -> None:
    invoke("submit", "hello", "x", "--queue=a")
    assert invoke("queues", "pause", "a", "b").output == "a\tpaused\nb\tpaused\n"
    listed = {row[0]: row for row in rows(invoke("queues", "list").output)}
    assert listed["a"][1:5] == ["yes", "no", "0", "1"]
    assert listed["a"][-1].endswith("s")
    assert invoke("queues", "resume", "a", "--json").output == '{"a":"resumed"}\n'
    document = {
        queue["name"]: queue for queue in json.loads(invoke("queues", "list", "--json").output)
    }
    assert document["a"]["paused"] is False
    assert document["a"]["oldest"] >= 0


def test_stats(invoke: Invoke, shop: Shell) -> None:
    invoke("submit", "hello", "x")
    invoke("submit", "add", "1")
    invoke("submit", "add", "1", "--delay=1h")
    output = invoke("stats").output
    assert output.startswith("QUEUE\tTASK\tDELAYED\tQUEUED\tRUNNING\tSUCCEEDED\tFAILED")
    assert {row[1]: row[2:4] for row in rows(output)} == {"hello": ["0", "1"], "add": ["1", "1"]}
    document = json.loads(invoke("stats", "--json").output)
    assert document["counts"]["queued"] == 2
    assert document["queues"][0]["totals"]["accepted"] == 3
