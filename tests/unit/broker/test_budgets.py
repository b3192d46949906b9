"""Budgets: what the claims of a broker bring for limited queues."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from plugq.broker.budgets import OFFERED, Budgets
from plugq.errors import ConfigError
from plugq.job import Outcome
from plugq.limiters import DelayLimiter, DelayOptions, RateLimiter, RateOptions
from plugq.protocols.budgets import GRANT_AGE, Grant, LimitState, Want
from plugq.protocols.limiter import Limiter
from plugq.protocols.plugin import PluginContext
from plugq.protocols.storage import ClaimReply, ClaimRequest, Lease, Settlement, Spent

NOW = 1_700_000_000.0


def make(specification: bytes) -> Limiter:
    if specification == b"every 1":
        return DelayLimiter(DelayOptions(every=1 - GRANT_AGE), PluginContext())
    limit = int(specification)
    return RateLimiter(RateOptions(limit=limit, per=1 - GRANT_AGE), PluginContext())


def request(limit: int = 5, *queues: str) -> ClaimRequest:
    return ClaimRequest(worker="w", number=1, queues=queues or ("q",), limit=limit)


def want(*ready: str | None, revision: int = 1, **fields: Any) -> Want:
    given: dict[str, Any] = {"limits": b"", "lane_limits": b"2"} | fields
    names: list[str | None] = [None] if given["limits"] else []
    if given["lane_limits"]:
        names += [lane for lane in dict.fromkeys(ready) if lane is not None]
    states = given.pop("states", tuple(LimitState(name, 0, None) for name in names))
    return Want(queue="q", revision=revision, ready=ready, states=states, **given)


def lease(lane: str | None = None) -> Lease:
    return Lease(
        queue="q", id="a", task="t", token=1, attempt=1, max_attempts=1, body=b"", lane=lane
    )


class Broker:
    """Budgets, and a storage whose clock shows so much more than the monotonic one."""

    def __init__(self) -> None:
        self.budgets = Budgets(make)
        self.now = 10.0
        self.version = 0

    def told(self, *wants: Want, asked: ClaimRequest | None = None, **fields: Any) -> bool:
        reply = ClaimReply(wants=wants, now=NOW + self.now, **fields)
        return self.budgets.learn(asked or request(), reply, self.now, self.now)

    def grants(self, limit: int = 5) -> tuple[Grant, ...]:
        return self.budgets.prepare(request(limit), self.now).grants

    def takes(self, limit: int = 5, *, count: int | None = None, most: int = 1) -> ClaimRequest:
        """Claim, the storage taking so much of the first budgets."""
        asked = self.budgets.prepare(request(limit), self.now)
        spent = []
        for budget in asked.grants[0].budgets[:most]:
            taken = len(budget.states) if count is None else count
            self.version += 1
            state = LimitState(budget.lane, self.version, budget.states[taken - 1])
            spent.append(Spent("q", taken, state))
        leases = tuple(lease(use.state.lane) for use in spent for _ in range(use.count))
        self.told(asked=asked, spent=tuple(spent), leases=leases)
        return asked


def test_nothing_is_granted_before_something_was_wanted() -> None:
    one = Broker()
    assert one.budgets.prepare(request(), one.now) == request()
    assert not one.told()
    assert one.told(want("a"))
    assert one.budgets.prepare(request(0), one.now) == request(0)


def test_a_want_is_answered_lane_by_lane_and_start_by_start() -> None:
    one = Broker()
    one.told(want("b", "a", "b", None))
    (grant,) = one.grants()
    assert (grant.queue, grant.revision) == ("q", 1)
    assert grant.at == pytest.approx(NOW + 10, abs=1e-5)
    assert grant.at < NOW + 10
    first, second = grant.budgets
    assert (first.lane, len(first.states), first.expect) == ("b", 2, 0)
    assert (second.lane, len(second.states), second.retry_at) == ("a", 1, None)
    limiter = make(b"2").widened(GRANT_AGE)
    step = limiter.step(None, 1, grant.at)
    assert first.states == (step.state, limiter.step(step.state, 1, grant.at).state)
    assert first.retry_at == pytest.approx(NOW + 11, abs=1e-5)
    assert first.ttl > limiter.window


def test_a_queue_gets_as_much_as_the_claim_has_room_for() -> None:
    one = Broker()
    one.told(want("a", limits=b"3", lane_limits=b""))
    ((budget,),) = [grant.budgets for grant in one.grants(2)]
    assert (budget.lane, len(budget.states), budget.retry_at) == (None, 2, None)
    ((budget,),) = [grant.budgets for grant in one.grants(9)]
    assert len(budget.states) == 3
    assert budget.retry_at == pytest.approx(NOW + 11, abs=1e-5)


def test_a_queue_without_budget_is_parked_and_offers_no_lanes() -> None:
    one = Broker()
    one.told(want("a", limits=b"1"))
    one.takes(most=1)
    # Another broker let it in and this one is told of its state: nothing is left of it.
    used = one.budgets._queues["q"]._whole
    assert used is not None
    one.told(want("a", limits=b"1", states=(LimitState(None, 9, used.state),)))
    ((budget,),) = [grant.budgets for grant in one.grants()]
    assert (budget.lane, budget.expect, budget.states) == (None, 9, ())
    assert budget.retry_at == pytest.approx(NOW + 11, abs=1e-5)
    assert not one.told(asked=one.budgets.prepare(request(), one.now))
    assert one.grants() == ()
    assert one.budgets.closed_until(("q",), one.now) == pytest.approx(11, abs=1e-4)
    assert one.budgets.closed_until(("q", "other"), one.now) is None


def test_states_are_kept_from_reply_to_reply() -> None:
    one = Broker()
    one.told(want("a"))
    one.takes()
    ((budget,),) = [grant.budgets for grant in one.grants()]
    assert (budget.lane, budget.expect, len(budget.states)) == ("a", 1, 1)


def test_an_outdated_state_is_replaced_by_that_of_the_want() -> None:
    one = Broker()
    one.told(want("a"))
    one.takes()
    assert one.told(want("a", states=(LimitState("a", 7, None),)), asked=request())
    ((budget,),) = [grant.budgets for grant in one.grants()]
    assert budget.expect == 7


def test_what_is_parked_is_offered_again_at_its_time() -> None:
    one = Broker()
    one.told(want("a", "a"))
    one.takes()
    assert one.grants()[0].budgets == ()
    at = one.budgets.retry
    assert at == pytest.approx(11, abs=1e-4)
    assert one.budgets.due(10.9) == frozenset()
    one.now = at or 0.0
    assert one.budgets.due(one.now) == {"q"}
    assert one.budgets.due(one.now) == frozenset()
    assert one.budgets.retry is None
    ((budget,),) = [grant.budgets for grant in one.grants()]
    assert (budget.lane, len(budget.states)) == ("a", 2)


def test_a_claim_at_that_time_makes_up_for_being_told() -> None:
    one = Broker()
    one.told(want("a", "a"))
    one.takes()
    one.now = 11.1
    (grant,) = one.grants()
    assert [budget.lane for budget in grant.budgets] == ["a"]
    assert one.budgets.due(one.now) == frozenset()
    assert one.budgets.retry is None


def test_a_want_says_that_a_lane_is_parked_no_longer() -> None:
    one = Broker()
    one.told(want("a", "a"))
    one.takes()
    one.told(want("a", states=(LimitState("a", 9, None),)))
    assert one.budgets.retry is None
    assert one.budgets.due(20.0) == frozenset()


def test_lanes_lately_started_are_offered_up_to_a_number() -> None:
    one = Broker()
    names = [f"lane-{number}" for number in range(150)]
    one.told(want(*names))
    (grant,) = one.grants(3)
    assert [budget.lane for budget in grant.budgets] == names
    one.takes(3, most=150)
    one.told(want("other"))
    (grant,) = one.grants(3)
    assert len(grant.budgets) == 3 + OFFERED + 1
    assert grant.budgets[0].lane == "other"


def test_lanes_are_forgotten_when_their_state_has_passed() -> None:
    one = Broker()
    one.told(want("a"))
    for number in range(200):
        one.now += 10.0
        one.told(want(f"lane-{number}"))
    assert len(one.budgets._queues["q"]._lanes) < 20
    one.now += 1000.0
    one.told(asked=msgspec.structs.replace(request(), grants=one.grants()))
    assert one.grants() == ()


def test_new_limits_take_the_place_of_the_old() -> None:
    one = Broker()
    one.told(want("a", "a"))
    one.takes()
    one.told(want("a", revision=2, lane_limits=b"4"), asked=request())
    (grant,) = one.grants()
    assert grant.revision == 2
    assert [(each.lane, each.expect) for each in grant.budgets] == [("a", 0)]
    assert one.budgets.due(50.0) == frozenset()
    # An answer to a claim from before says nothing of them.
    late = Grant(queue="q", revision=1, at=NOW, budgets=grant.budgets)
    one.told(asked=msgspec.structs.replace(request(), grants=(late,)))
    assert one.grants()[0].budgets[0].expect == 0


def test_the_time_of_the_storage_is_never_thought_to_be_later() -> None:
    one = Budgets(make)
    reply = ClaimReply(wants=(want("a"),), now=NOW)
    one.learn(request(), reply, 10.0, 10.5)

    def at() -> float:
        return one.prepare(request(), 20.0).grants[0].at

    assert at() == pytest.approx(NOW + 9.5, abs=1e-5)
    # A quicker answer tells more, a slower one nothing new.
    one.learn(request(), msgspec.structs.replace(reply, now=NOW + 1), 10.9, 11.1)
    assert at() == pytest.approx(NOW + 9.9, abs=1e-5)
    one.learn(request(), msgspec.structs.replace(reply, now=NOW + 2), 11.5, 13.0)
    assert at() == pytest.approx(NOW + 9.9, abs=1e-5)
    # The clock was set back.
    one.learn(request(), msgspec.structs.replace(reply, now=NOW - 50), 13.0, 13.1)
    assert at() == pytest.approx(NOW - 50 + 6.9, abs=1e-5)


def test_unusable_limits_are_left_out_for_a_while() -> None:
    def unusable(_: bytes) -> Limiter:
        raise ConfigError("no such limiter")

    one = Budgets(unusable)
    reply = ClaimReply(wants=(want("a"),), now=NOW)
    assert not one.learn(request(), reply, 10.0, 10.0)
    assert one.prepare(request(5, "q", "other"), 10.0).queues == ("other",)
    assert one.prepare(request(5, "q", "other"), 30.0).queues == ("q", "other")
    assert one.state() == {"limited": [], "unusable": {"q": "ConfigError: no such limiter"}}


def test_a_limiter_that_fails_makes_its_queue_unusable() -> None:
    class Failing(DelayLimiter):
        def step(self, *_: Any) -> Any:
            raise ZeroDivisionError("by nothing")

    one = Budgets(lambda _: Failing(DelayOptions(every=1.0), PluginContext()))
    one.learn(request(), ClaimReply(wants=(want("a"),), now=NOW), 10.0, 10.0)
    assert one.prepare(request(), 10.0).grants == ()
    assert one.state()["unusable"] == {"q": "ZeroDivisionError: by nothing"}


def test_an_end_frees_something_unless_it_is_parked() -> None:
    one = Broker()

    def end(lane: str | None, queue: str = "q") -> Settlement:
        return Settlement(queue=queue, id="a", token=1, outcome=Outcome.SUCCEED, lane=lane)

    assert one.budgets.frees([end("a")]) == frozenset()
    one.told(want("a", "a"))
    one.takes()
    assert one.budgets.frees([end("a"), end("b", "other")]) == frozenset()
    assert one.budgets.frees([end("a"), end("b")]) == {"q"}


def test_queues_that_were_claimed_meanwhile_are_not_let_in_for_others() -> None:
    one = Broker()
    one.told(want("a"))
    assert one.budgets.unasked({"q": 10.0, "unknown": 10.0}) == ("q",)
    one.grants()
    assert one.budgets.unasked({"q": 10.0}) == ()
    assert one.budgets.unasked({"q": 10.1}) == ("q",)
