"""What a claim may start of a limited queue, without a storage."""

from __future__ import annotations

import pytest

from plugq.allowance import Allowance, Limited, examined, usable
from plugq.protocols import GRANT_AGE, Budget, Grant

NOW = 1000.0
QUEUE_ONLY = Limited(queue=True, lanes=False)
LANES_ONLY = Limited(queue=False, lanes=True)
BOTH = Limited(queue=True, lanes=True)


def budget(lane: str | None, starts: int, retry_at: float | None = None) -> Budget:
    states = tuple(str(number).encode() for number in range(1, starts + 1))
    return Budget(lane, 0, states, 60.0, retry_at)


def allowance(
    *budgets: Budget, limited: Limited = BOTH, left: int = 10, room: int = 1_000
) -> Allowance:
    given = {budget.lane: budget for budget in budgets}
    return Allowance(given, limited, NOW, left=left, room=room)


def judged(allowance: Allowance, *lanes: str | None) -> list[str | None]:
    """Show the jobs of these lanes, as a storage does, and return which are to start."""
    taken = []
    for lane in lanes:
        if allowance.done:
            break
        if allowance.take(lane):
            taken.append(lane)
    return taken


@pytest.mark.parametrize(
    ("at", "revision", "queue", "used"),
    [
        (NOW, 3, "q", True),
        (NOW - GRANT_AGE, 3, "q", True),
        (NOW - GRANT_AGE - 0.001, 3, "q", False),
        (NOW + 0.001, 3, "q", False),
        (NOW, 2, "q", False),
        (NOW, 4, "q", False),
        (NOW, 3, "other", False),
    ],
)
def test_a_grant_is_used_if_it_is_fresh_and_by_these_limits(
    at: float, revision: int, queue: str, used: bool
) -> None:
    grant = Grant(queue=queue, revision=revision, at=at, budgets=(budget("a", 1),))
    assert set(usable([grant], "q", 3, NOW, LANES_ONLY)) == ({"a"} if used else set())


def test_budgets_of_what_is_not_limited_are_left_out() -> None:
    grant = Grant(queue="q", revision=3, at=NOW, budgets=(budget("a", 1), budget(None, 1)))
    assert set(usable([grant], "q", 3, NOW, QUEUE_ONLY)) == {None}
    assert set(usable([grant], "q", 3, NOW, LANES_ONLY)) == {"a"}
    assert set(usable([grant], "q", 3, NOW, BOTH)) == {"a", None}


def test_without_the_budget_of_the_queue_nothing_starts_and_the_first_are_named() -> None:
    claim = allowance(budget("a", 5))
    assert judged(claim, "a", None, "b") == []
    assert claim.wanted == ("a", None, "b")
    assert claim.named == [None, "a", "b"]
    assert claim.used == []


def test_the_walk_goes_on_behind_lanes_without_a_budget() -> None:
    claim = allowance(budget("b", 2), limited=LANES_ONLY)
    assert judged(claim, "a", "b", None, "a", "b", "b") == ["b", None, "b"]
    assert claim.wanted == ("a", "a", "b")
    assert claim.named == ["a", "b"]
    assert [(use.lane, use.starts, use.state) for use in claim.used] == [("b", 2, b"2")]
    assert claim.parked == {}


def test_a_budget_that_is_used_up_parks_with_its_last_start() -> None:
    claim = allowance(budget("a", 1, NOW + 5), budget("b", 0, NOW + 7), limited=LANES_ONLY)
    assert judged(claim, "a") == ["a"]
    assert claim.parked == {"a": NOW + 5}
    assert judged(claim, "a", "b") == []
    assert claim.parked == {"a": NOW + 5, "b": NOW + 7}
    assert claim.wanted == ()


def test_a_parked_queue_ends_the_walk_and_wants_nothing() -> None:
    claim = allowance(budget(None, 1, NOW + 5), budget("b", 9))
    assert judged(claim, "a", "b", "b") == ["b"]
    assert claim.done
    assert claim.parked == {None: NOW + 5}
    assert claim.wanted == ()
    assert [(use.lane, use.starts) for use in claim.used] == [(None, 1), ("b", 1)]


@pytest.mark.parametrize("retry_at", [None, NOW, NOW - 1])
def test_what_may_be_asked_for_again_at_once_is_named(retry_at: float | None) -> None:
    claim = allowance(budget(None, 1, retry_at), limited=QUEUE_ONLY)
    assert judged(claim, "a", "a", None) == ["a"]
    assert claim.parked == {}
    assert claim.wanted == ("a", None)
    assert claim.named == [None]


def test_a_start_takes_nothing_of_the_queue_if_its_lane_lacks_a_budget() -> None:
    claim = allowance(budget(None, 1))
    assert judged(claim, "a") == []
    assert claim.used == []


def test_a_claim_takes_and_names_no_more_than_there_is_room_for() -> None:
    claim = allowance(budget("b", 9), limited=LANES_ONLY, room=3)
    assert judged(claim, "a", "b", "a", "b", "c") == ["b", "b"]
    assert len(claim.wanted) == 1
    assert judged(claim, "b", "b") == ["b"]
    assert claim.done
    assert len(claim.wanted) == 0


@pytest.mark.parametrize(("left", "names"), [(1, 100), (100, 100), (300, 300)])
def test_what_is_named_and_looked_at_has_an_end(left: int, names: int) -> None:
    queue = allowance(limited=QUEUE_ONLY, left=left)
    lanes = allowance(limited=LANES_ONLY, left=left)
    for claim, looks in ((queue, names), (lanes, examined(left))):
        shown = 0
        while not claim.done:
            shown += 1
            claim.take("a")
        assert shown == looks
        assert len(claim.wanted) == names
