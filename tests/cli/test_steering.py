"""Changing many jobs, queues and batches from the shell."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import pytest

from plugq.cli import output

if TYPE_CHECKING:
    from tests.cli.conftest import Invoke, Shell


def rows(text: str) -> dict[str, list[str]]:
    head, *lines = [line.split("\t") for line in text.splitlines()]
    return {line[0]: line for line in (head, *lines)}


def submit(invoke: Invoke, number: int, *options: str) -> None:
    for at in range(number):
        result = invoke("submit", "hello", "x", f"--id={''.join(options)}{at}", *options)
        assert result.exit_code == 0, result.output


def test_all_jobs_of_a_filter(invoke: Invoke, shop: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugq.cli.steering.PAGE", 3)
    submit(invoke, 7, "--batch=b")
    submit(invoke, 2, "--queue=other")
    kept = invoke("jobs", "retain", "--all", "--batch=b", "--ttl=3d")
    assert (kept.exit_code, kept.output) == (0, "done\t7\n")
    first = invoke("jobs", "reprioritise", "--all", "--queue=other", "--priority=9", "--json")
    assert first.output == '{"done":2}\n'
    assert {job["priority"] for job in listed(invoke, "--queue=other")} == {9}
    cancelled = invoke("jobs", "cancel", "--all", "--batch=b", "--task=hello")
    assert (cancelled.exit_code, cancelled.output) == (0, "cancelled\t7\n")
    nothing = invoke("jobs", "retry", "--all", "--batch=b")
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert nothing.stderr == "plugq: no job matches\n"
    assert invoke("jobs", "retry", "--all", "--batch=b", "--json").output == "{}\n"
    assert invoke("jobs", "retry", "--all", "--batch=b", "-s", "cancelled").output == "done\t7\n"
    assert invoke("jobs", "purge", "--all", "--queue=default").stdout == ""
    assert invoke("jobs", "cancel", "--all", "--yes").output == "cancelled\t9\n"
    assert invoke("jobs", "purge", "--all", "--state=cancelled").output == "done\t9\n"


def test_a_filter_by_time(invoke: Invoke, shop: Shell) -> None:
    submit(invoke, 2)
    assert listed(invoke, "--since=2100-01-01") == []
    assert len(listed(invoke, "--until=2100-01-01", "--since=2020-01-01T00:00Z")) == 2
    assert invoke("jobs", "cancel", "--all", "--since=2100-01-01").stdout == ""
    assert invoke("jobs", "cancel", "--all", "--until=2100-01-01").stdout == "cancelled\t2\n"


def listed(invoke: Invoke, *options: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(invoke("jobs", "list", "--json", *options).output)
    return found


def test_by_id(invoke: Invoke, shop: Shell) -> None:
    invoke("submit", "hello", "x", "--id=a")
    assert invoke("jobs", "retain", "a", "--ttl=forever").output == "a\tdone\n"
    moved = invoke("jobs", "reprioritise", "a", "none", "--priority=-5")
    assert (moved.exit_code, moved.output) == (1, "a\tdone\nnone\tnot_found\n")
    assert listed(invoke)[0]["priority"] == -5
    invoke("jobs", "cancel", "a")
    assert invoke("jobs", "reprioritise", "a", "--priority=1").output == "a\tfinished\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cancel"], "name jobs by their ids, or give --all and a filter such as --queue"),
        (["cancel", "--queue=q"], "name jobs by their ids, or give --all and a filter"),
        (["cancel", "--all"], "--all without a filter takes every job there is; add --yes"),
        (["purge", "a", "--all", "--queue=q"], "name jobs by their ids or give --all, not both"),
        (["retry", "a", "--batch=b", "--state=failed"], "--state, --batch: filters go with --all"),
        (["retain", "a"], "missing option '--ttl'"),
        (["retain", "a", "--ttl=soon"], "is no duration"),
        (["reprioritise", "a"], "missing option '--priority'"),
        (["reprioritise", "a", "--priority=1001"], "priority: expected -1000 to 1000, got 1001"),
        (["cancel", "--all", "--since=soon"], "is no time"),
        (["cancel", "--all", "--state=done"], "'done' is not one of"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    invoke: Invoke, shop: Shell, arguments: list[str], said: str
) -> None:
    invoke("submit", "hello", "x", "--id=a")
    result = invoke("jobs", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert len(listed(invoke, "--state=queued")) == 1


def test_a_bar_on_a_terminal(invoke: Invoke, shop: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugq.cli.steering.PAGE", 2)
    submit(invoke, 5, "--batch=b")
    for module in (output, "plugq.cli.steering", "plugq.cli.batches"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.on_terminal", lambda: True)
    assert invoke("jobs", "retain", "--all", "--ttl=1d", "--task=hello").stdout == "done\t5\n"
    assert invoke("jobs", "cancel", "--all", "--batch=b").stdout == "cancelled\t5\n"
    waited = invoke("batches", "show", "b", "--wait")
    assert "ended      5 of 5 (100%)\n" in waited.stdout
    missing = invoke("batches", "show", "tpyo", "--wait")
    assert missing.exit_code == 1


def test_a_queue_is_drained(invoke: Invoke, shop: Shell) -> None:
    submit(invoke, 1, "--queue=q")
    assert invoke("queues", "drain", "q").output == "q\tdraining\n"
    assert rows(invoke("queues", "list").output)["q"][1:3] == ["no", "yes"]
    (queue,) = json.loads(invoke("queues", "list", "--json").output)
    assert queue["draining"] is True
    assert (queue["run_time"], queue["rate"]) == (None, 0.0)
    refused = invoke("submit", "hello", "x", "--queue=q")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "queue 'q' is being drained" in refused.stderr
    assert invoke("queues", "resume", "q", "--json").output == '{"q":"resumed"}\n'
    submit(invoke, 1, "--queue=q")


def test_batches(invoke: Invoke, shop: Shell) -> None:
    missing = invoke("batches", "show", "tpyo")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == "plugq: no job was ever submitted to batch 'tpyo'\n"
    assert invoke("batches", "show", "tpyo", "--wait").exit_code == 1
    missing = invoke("batches", "cancel", "tpyo")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert missing.stderr == "plugq: no job was ever submitted to batch 'tpyo'\n"
    assert invoke("batches", "show", "tpyo", "--timeout=1").exit_code == 2
    submit(invoke, 3, "--batch=b")
    shown = invoke("batches", "show", "b").output
    assert "ended      0 of 3 (0%)\n" in shown
    assert "queued     3\n" in shown
    late = invoke("batches", "show", "b", "--wait", "--timeout=100ms")
    assert late.exit_code == 1
    assert "3 of 3 jobs of batch 'b' have not ended after 0.1 s" in late.stderr
    assert invoke("batches", "cancel", "b", "--json").output == '{"cancelled":3}\n'
    # One whose jobs have all ended is known, and there is nothing to do.
    assert invoke("batches", "cancel", "b").exit_code == 0
    document = json.loads(invoke("batches", "show", "b", "--wait", "--json").output)
    assert document["counts"]["cancelled"] == document["done"] == document["total"] == 3
    assert document["batch"] == "b"


def test_a_batch_is_waited_for_while_a_worker_runs_it(shop: Shell, invoke: Invoke) -> None:
    submit(invoke, 3, "--batch=b")
    assert invoke("submit", "fail", "x", "--batch=b").exit_code == 0
    worker = shop.start("worker")
    worker.wait_for("plugq worker")
    counts = json.loads(invoke("batches", "show", "b", "--wait", "--json").output)["counts"]
    assert (counts["succeeded"], counts["failed"]) == (3, 1)
    assert worker.end(signal.SIGTERM) == 0
    stats = rows(invoke("stats").output)
    assert stats["QUEUE"][-2:] == ["RUN_TIME", "RATE"]
    assert stats["default"][-2].endswith("s")
    tasks = json.loads(invoke("stats", "--json").output)["tasks"]
    assert all(task["run_time"] > 0 and task["rate"] > 0 for task in tasks)
    assert invoke("jobs", "retry", "--all", "--batch=b").output == "done\t1\n"
