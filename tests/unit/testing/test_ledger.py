"""The check of a ledger: sound ones pass, and each promise has one that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugq.job import AttemptRecord, JobRecord, JobState
from plugq.protocols.storage import Stats, TaskStats
from plugq.testing.ledger import Expected, Ledger, Line, check, check_ticks


class Story:
    """One job that was run and one that is waited for in its lane, both done."""

    def __init__(self) -> None:
        self.expected = [Expected(id="a", payload=1), Expected(id="b", payload=2)]
        self.lines = [*run("a", 1, 1, at=1.0), *run("b", 2, 2, at=2.0)]
        self.records = [record("a", 1), record("b", 2)]
        self.accepted = 2
        self.results: dict[str, Any] = {"a": 1, "b": 2}
        self.died: int | None = 1

    def check(self) -> list[str]:
        counts = {"succeeded": len(self.records)}
        stats = TaskStats(
            queue="default", task="t", counts=counts, totals={"accepted": self.accepted}
        )
        return check(
            self.lines,
            self.expected,
            self.records,
            Stats(now=0.0, tasks=(stats,)),
            results=self.results,
            died=self.died,
        )


def run(id: str, payload: Any, token: int, *, at: float, attempt: int = 1) -> list[Line]:
    facts: dict[str, Any] = {"id": id, "token": token, "attempt": attempt, "pid": 7, "lane": "l"}
    return [
        Line(kind="start", at=at, payload=payload, **facts),
        Line(kind="effect", at=at + 0.1, payload=payload, **facts),
        Line(kind="end", at=at + 0.2, payload=payload, **facts),
    ]


def record(id: str, token: int, **fields: Any) -> JobRecord:
    given: dict[str, Any] = {"state": JobState.SUCCEEDED, "attempt": 1, "token": token}
    given |= {"queue": "default", "task": "t", "sequence": token, **fields}
    return JobRecord(id=id, **given)


def crashed(attempt: int) -> AttemptRecord:
    return AttemptRecord(attempt=attempt, code="crashed")


def lose(story: Story) -> None:
    del story.records[0]


def leave(story: Story) -> None:
    story.records[0] = record("a", 1, state=JobState.RUNNING)


def change(story: Story) -> None:
    story.lines[:3] = run("a", 9, 1, at=1.0)


def invent(story: Story) -> None:
    story.lines += run("c", 3, 3, at=3.0)


def never_start(story: Story) -> None:
    del story.lines[:3]


def end_without_effect(story: Story) -> None:
    del story.lines[1]


def keep_another_result(story: Story) -> None:
    story.results["a"] = 9


def repeat_a_token(story: Story) -> None:
    story.lines[3:] = run("b", 2, 1, at=2.0)


def go_back(story: Story) -> None:
    story.lines[:3] = [
        *run("a", 1, 9, at=0.5),
        *run("a", 1, 1, at=1.0, attempt=2),
    ]
    story.records[0] = record("a", 1, attempt=2)


def start_too_often(story: Story) -> None:
    story.lines[:0] = run("a", 1, 0, at=0.0)


def lose_leases(story: Story) -> None:
    story.records[0] = record("a", 1, attempt=3, crashes=2)
    story.died = 0


def go_on(story: Story) -> None:
    story.records[0] = record("a", 1, attempt=5, crashes=4)
    story.died = 9


def let_it_live(story: Story) -> None:
    story.expected[0] = Expected(id="a", payload=1, fatal=True)


def fail(story: Story) -> None:
    story.records[0] = record("a", 1, state=JobState.FAILED, code="error")


def double(story: Story) -> None:
    story.records.append(record("a-again", 3))


def overlap(story: Story) -> None:
    story.lines[3:] = run("b", 2, 2, at=1.1)


def miscount(story: Story) -> None:
    story.accepted = 3


def test_a_sound_ledger_passes() -> None:
    assert Story().check() == []


@pytest.mark.parametrize(
    ("promise", "fault"),
    [
        ("I1", lose),
        ("I1", leave),
        ("I2", change),
        ("I2", invent),
        ("I3", never_start),
        ("I4", end_without_effect),
        ("I4", keep_another_result),
        ("I5", repeat_a_token),
        ("I5", go_back),
        ("I6", start_too_often),
        ("I6", lose_leases),
        ("I7", go_on),
        ("I7", let_it_live),
        ("I7", fail),
        ("I8", double),
        ("I9", overlap),
        ("I13", miscount),
    ],
)
def test_a_broken_promise_is_named(promise: str, fault: Callable[[Story], None]) -> None:
    story = Story()
    fault(story)
    assert any(line.startswith(f"{promise}: ") for line in story.check()), story.check()


def test_a_dead_holder_frees_its_lane() -> None:
    story = Story()
    story.lines[:3] = [story.lines[0], *run("a", 1, 3, at=3.0, attempt=2)]
    story.records[0] = record("a", 3, attempt=2, crashes=1, history=(crashed(1),))
    story.results["a"] = 3
    assert story.check() == []


def ticked(tick: str, *, id: str = "", attempt: int = 1, token: int = 1) -> Line:
    return Line(kind="start", id=id or tick, tick=tick, attempt=attempt, token=token, pid=7, at=1.0)


@pytest.mark.parametrize(
    ("lines", "broken"),
    [
        ([ticked("1"), ticked("2")], []),
        ([ticked("1"), ticked("2"), ticked("3")], []),
        ([ticked("1"), ticked("1", attempt=2, token=2), ticked("2")], []),
        ([ticked("1", attempt=2), ticked("2")], []),
        ([ticked("1")], ["I12: nothing was submitted for tick 2"]),
        ([ticked("1"), ticked("2"), ticked("4")], ["I12: 4 was submitted and is no tick"]),
        (
            [ticked("1"), ticked("1", token=2), ticked("2")],
            ["I12: tick 1 was submitted more than once"],
        ),
        (
            [ticked("1"), ticked("1", id="other", attempt=2), ticked("2")],
            ["I12: tick 1 was submitted more than once"],
        ),
    ],
)
def test_ticks_come_once_and_none_is_missing(lines: list[Line], broken: list[str]) -> None:
    assert check_ticks(lines, ["1", "2"], ["3"]) == broken


def test_tokens_rise_in_the_order_in_which_one_process_starts() -> None:
    story = Story()
    story.lines = [*run("b", 2, 1, at=2.0), *run("a", 1, 2, at=1.0)]
    story.records = [record("a", 2), record("b", 1)]
    story.results = {}
    late = "I5: 'b' has token 1 and was granted after 'a', which has 2"
    assert story.check() == [late]
    threaded = [msgspec.structs.replace(line, threaded=True) for line in story.lines]
    story.lines = threaded
    assert story.check() == []


@pytest.mark.parametrize("first", [{"kind": "submit", "id": "b", "pid": 1}, {"kind": "begin"}])
def test_tokens_rise_from_what_had_started_to_what_could_be_granted_only_then(
    first: dict[str, Any],
) -> None:
    story = Story()
    others = [msgspec.structs.replace(line, pid=8) for line in run("b", 2, 1, at=2.0)]
    story.lines = [*run("a", 1, 2, at=1.0), *others]
    story.records = [record("a", 2), record("b", 1)]
    story.results = {}
    assert story.check() == []
    story.lines.append(Line(**{"pid": 8, "at": 1.5, **first}))
    assert story.check() == ["I5: 'b' has token 1 and was granted after 'a', which has 2"]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    assert ledger.read() == []
    lines = run("a", {"n": 1}, 1, at=1.0)
    for line in lines:
        ledger.write(line)
    assert ledger.read() == lines
