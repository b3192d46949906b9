"""Limited queues: what may start is what limiters have granted, and what they refuse is parked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from plugq.protocols.budgets import GRANT_AGE, Budget, Grant, LimitState, Want
from plugq.protocols.storage import Spent
from plugq.testing.contract.scene import QUEUE, Contract

if TYPE_CHECKING:
    from plugq.protocols.storage import ClaimReply
    from plugq.testing.contract.scene import Scene

LIMITS = b"of the queue"
LANE_LIMITS = b"of its lanes"


async def limit_starts(
    scene: Scene, *, queue: bool = False, lanes: bool = False, **others: Any
) -> None:
    """Limit the starts of the queue, of its lanes or of both."""
    limits = LIMITS if queue else b""
    await scene.configure(limits=limits, lane_limits=LANE_LIMITS if lanes else b"", **others)


async def wanted(scene: Scene, limit: int = 10, **fields: Any) -> Want:
    """Claim without any budget: nothing is granted, and the reply says what is wanted."""
    reply = await scene.ask(limit, **fields)
    assert reply.leases == ()
    assert reply.spent == ()
    (want,) = reply.wants
    return want


def budget_for(
    want: Want,
    lane: str | None = None,
    starts: int = 1,
    *,
    retry_at: float | None = None,
    ttl: float = 600.0,
) -> Budget:
    """Return a budget on the state that the want shows."""
    (expect,) = [state.version for state in want.states if state.lane == lane]
    states = tuple([f"{lane} after {number}".encode() for number in range(1, starts + 1)])
    return Budget(lane, expect, states, ttl, retry_at)


def granted(scene: Scene, want: Want, *budgets: Budget, age: float = 0.0) -> Grant:
    """Return a grant as of now, or of some time ago."""
    at = scene.clock.time() - age
    return Grant(queue=want.queue, revision=want.revision, at=at, budgets=budgets)


async def spend(
    scene: Scene,
    lane: str | None = None,
    starts: int = 1,
    *,
    limit: int = 10,
    retry_in: float | None = None,
    ttl: float = 600.0,
) -> ClaimReply:
    """Learn what is wanted, be granted a budget for it, and claim with that."""
    want = await wanted(scene, limit)
    retry_at = None if retry_in is None else scene.clock.time() + retry_in
    budget = budget_for(want, lane, starts, retry_at=retry_at, ttl=ttl)
    return await scene.ask(limit, grants=(granted(scene, want, budget),))


def ids_of(reply: ClaimReply) -> list[str]:
    """Return the jobs that were granted, in the order of the grant."""
    return [lease.id for lease in reply.leases]


class Budgets(Contract):
    """Limits on starts (I10): a start takes budget, and no budget is taken without a start."""

    async def test_a_limited_queue_grants_nothing_without_a_budget(self) -> None:
        """The reply says what could start, and the states to decide on."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True)
            await scene.submit("a")
            await scene.submit("b1", "b2", lane="b")
            await scene.submit("c", lane="c", priority=1)
            want = await wanted(scene)
            assert want.queue == QUEUE
            assert want.revision > 0
            assert (want.limits, want.lane_limits) == (LIMITS, LANE_LIMITS)
            assert want.ready == ("c", None, "b")
            assert want.states[0] == LimitState(None, 0, None)
            assert {state.lane for state in want.states} == {None, "b", "c"}
            assert {state.version for state in want.states} == {0}

    async def test_a_queue_without_limits_knows_no_budgets(self) -> None:
        """Grants for it are not looked at."""
        async with self.scene() as scene:
            await scene.submit("a")
            grant = Grant(queue=QUEUE, revision=0, at=scene.clock.time(), budgets=())
            reply = await scene.ask(5, grants=(grant,))
            assert ids_of(reply) == ["a"]
            assert (reply.wants, reply.spent) == ((), ())
            await limit_starts(scene, queue=True)
            await limit_starts(scene)
            await scene.submit("b")
            assert await scene.claimed_ids() == ["b"]

    async def test_the_limits_of_a_queue_are_shown(self) -> None:
        """As they were set."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True, max_running=3)
            (stats,) = (await scene.storage.stats()).queues
            assert stats.settings is not None
            assert (stats.settings.limits, stats.settings.lane_limits) == (LIMITS, LANE_LIMITS)
            assert stats.settings.max_running == 3

    async def test_nothing_is_wanted_where_nothing_could_start(self) -> None:
        """An empty queue, a paused one, a deadline that has passed, places that are taken."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True, max_running=2)
            assert (await scene.ask(5)).wants == ()
            await scene.submit("late", deadline_in=1.0)
            await scene.submit("later", delay=60.0)
            scene.clock.advance(1)
            assert (await scene.ask(5)).wants == ()
            await scene.submit("a", "b", "c", lane="l")
            assert (await wanted(scene)).ready == ("l",)
            await scene.pause()
            assert (await scene.ask(5)).wants == ()
            await scene.resume()
            want = await wanted(scene)
            grants = (granted(scene, want, budget_for(want), budget_for(want, "l")),)
            (a,) = await scene.claim(5, grants=grants)
            assert (await scene.ask(5)).wants == ()
            await scene.end(a)
            assert (await wanted(scene)).ready == ("l",)

    async def test_what_is_wanted_keeps_to_the_places_that_are_left(self) -> None:
        """Of a lane as many as may run beside each other, of a queue as well."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lane_max_running=2)
            await scene.submit("a1", "a2", "a3", lane="a")
            await scene.submit("b1", "b2", "b3", lane="b")
            assert (await wanted(scene)).ready == ("a", "a", "b", "b")
            await limit_starts(scene, queue=True, lane_max_running=2, max_running=3)
            assert (await wanted(scene)).ready == ("a", "a", "b")
            assert ids_of(await spend(scene, starts=2)) == ["a1", "a2"]
            assert (await wanted(scene)).ready == ("b",)

    async def test_a_want_names_as_many_as_the_claim_has_room_for(self) -> None:
        """And not the whole backlog."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit(*(f"{number:04}" for number in range(500)))
            assert 1 <= len((await wanted(scene, 1)).ready) <= 100
            assert 150 <= len((await wanted(scene, 150)).ready) <= 150

    async def test_a_budget_is_spent_exactly(self) -> None:
        """In order, and the state after as many starts is stored with them."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit(*"abcde")
            want = await wanted(scene)
            reply = await scene.ask(10, grants=(granted(scene, want, budget_for(want, None, 3)),))
            assert ids_of(reply) == ["a", "b", "c"]
            (spent,) = reply.spent
            assert spent == Spent(QUEUE, 3, LimitState(None, spent.state.version, b"None after 3"))
            assert spent.state.version > 0
            assert (await wanted(scene)).states == (spent.state,)

    async def test_a_claim_takes_of_a_budget_what_it_has_room_for(self) -> None:
        """The rest was never spent."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit(*"abcde")
            want = await wanted(scene)
            grants = (granted(scene, want, budget_for(want, None, 5)),)
            reply = await scene.ask(2, grants=grants)
            assert ids_of(reply) == ["a", "b"]
            assert [(spent.count, spent.state.state) for spent in reply.spent] == [
                (2, b"None after 2")
            ]

    async def test_a_budget_of_which_nothing_was_taken_is_not_written(self) -> None:
        """A version stands for a start."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            await scene.submit("b1", lane="b")
            want = await wanted(scene)
            grants = (granted(scene, want, budget_for(want, "a"), budget_for(want, "b")),)
            reply = await scene.ask(1, grants=grants)
            assert ids_of(reply) == ["a1"]
            assert [spent.state.lane for spent in reply.spent] == ["a"]
            assert (await wanted(scene)).states == (LimitState("b", 0, None),)

    async def test_what_has_more_jobs_than_its_budget_wants_another(self) -> None:
        """Where no time to wait until was named, in the same reply and on the new state."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit(*"abc")
            reply = await spend(scene, starts=2)
            (want,) = reply.wants
            assert want.ready == (None,)
            assert want.states == (reply.spent[0].state,)

    async def test_a_grant_serves_one_claim(self) -> None:
        """What it was decided on has changed with the first."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit(*"abc")
            want = await wanted(scene)
            grants = (granted(scene, want, budget_for(want)),)
            assert ids_of(await scene.ask(1, grants=grants)) == ["a"]
            assert (await wanted(scene, grants=grants)).ready == (None, None)

    async def test_of_those_who_decided_on_one_state_only_one_starts_something(self) -> None:
        """However many processes claim at once."""
        async with self.scene() as scene, scene.another() as other:
            await limit_starts(scene, queue=True)
            await scene.submit(*(str(number) for number in range(20)))
            for _ in range(3):
                want = await wanted(scene, worker="asks")
                grants = (granted(scene, want, budget_for(want, None, 2)),)
                replies = await asyncio.gather(
                    *(
                        (other if number % 2 else scene).ask(5, worker=f"w-{number}", grants=grants)
                        for number in range(6)
                    )
                )
                assert sorted(len(reply.leases) for reply in replies) == [0] * 5 + [2]
                assert sorted(len(reply.spent) for reply in replies) == [0] * 5 + [1]

    async def test_an_old_grant_is_not_used(self) -> None:
        """Limiters are widened by the oldest that one may be, and by no more."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit("a")
            want = await wanted(scene)
            old = granted(scene, want, budget_for(want), age=GRANT_AGE * 1.01)
            assert (await scene.ask(1, grants=(old,))).wants == (want,)
            fresh = granted(scene, want, budget_for(want), age=GRANT_AGE * 0.99)
            assert ids_of(await scene.ask(1, grants=(fresh,))) == ["a"]

    async def test_a_grant_from_the_future_is_not_used(self) -> None:
        """It was decided for another moment."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit("a")
            want = await wanted(scene)
            early = granted(scene, want, budget_for(want), age=-0.01)
            assert (await scene.ask(1, grants=(early,))).wants == (want,)

    async def test_a_grant_by_other_limits_is_not_used(self) -> None:
        """The revision is another with each change of the limits, and only then."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit("a")
            want = await wanted(scene)
            grants = (granted(scene, want, budget_for(want)),)
            seen = {want.revision}
            for limits in ({"lanes": True, "queue": True}, {"queue": True}):
                await limit_starts(scene, **limits)
                want = await wanted(scene, grants=grants)
                assert want.revision not in seen
                seen.add(want.revision)
            await limit_starts(scene, queue=True, max_running=5)
            assert (await wanted(scene)).revision == want.revision

    async def test_jobs_without_a_lane_are_not_bound_by_the_limits_of_lanes(self) -> None:
        """They pass those that are."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            await scene.submit("free-1", "free-2")
            reply = await scene.ask(5)
            assert ids_of(reply) == ["free-1", "free-2"]
            assert reply.spent == ()
            (want,) = reply.wants
            assert want.ready == ("a",)
            assert want.states == (LimitState("a", 0, None),)

    async def test_lanes_with_a_budget_pass_those_without(self) -> None:
        """In the order of the queue among themselves."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True, lane_max_running=2)
            for number in range(1, 3):
                await scene.submit(f"a{number}", lane="a")
                await scene.submit(f"b{number}", lane="b")
                await scene.submit(f"c{number}", lane="c")
            await scene.submit("b3", lane="b", priority=1)
            want = await wanted(scene)
            assert want.ready == ("b", "a", "b", "c", "a", "c")
            grants = (granted(scene, want, budget_for(want, "c"), budget_for(want, "b", 2)),)
            reply = await scene.ask(10, grants=grants)
            assert ids_of(reply) == ["b3", "b1", "c1"]
            assert {spent.state.lane: spent.count for spent in reply.spent} == {"b": 2, "c": 1}
            (want,) = reply.wants
            assert want.ready == ("a", "a", "c")

    async def test_a_start_takes_of_both_budgets(self) -> None:
        """The queue's and its lane's, or of neither."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True)
            await scene.submit("a1", lane="a")
            await scene.submit("b1", lane="b")
            await scene.submit("free")
            want = await wanted(scene)
            assert want.ready == ("a", "b", None)
            lanes_only = granted(scene, want, budget_for(want, "a"), budget_for(want, "b"))
            assert (await wanted(scene, grants=(lanes_only,))).states == want.states
            grant = granted(scene, want, budget_for(want, None, 3), budget_for(want, "b"))
            reply = await scene.ask(10, grants=(grant,))
            assert ids_of(reply) == ["b1", "free"]
            assert {spent.state.lane: spent.count for spent in reply.spent} == {None: 2, "b": 1}
            (want,) = reply.wants
            assert want.ready == ("a",)
            assert [state.version > 0 for state in want.states] == [True, False]

    async def test_a_limited_queue_holds_up_no_other(self) -> None:
        """Neither for want of a budget nor while it is parked."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit("a", "b")
            await scene.submit("x", queue="other")
            queues = (QUEUE, "other")
            reply = await scene.ask(1, queues=queues)
            assert ids_of(reply) == ["x"]
            assert [want.queue for want in reply.wants] == [QUEUE]
            await spend(scene, starts=1, retry_in=60.0)
            await scene.submit("y", queue="other")
            reply = await scene.ask(5, queues=queues)
            assert ids_of(reply) == ["y"]
            assert reply.wants == ()

    async def test_a_state_is_forgotten_after_its_time(self) -> None:
        """Then it counts as none, and a version is never used again."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit(*"abcdef")
            versions = []
            for sweeps in (False, True, False):
                reply = await spend(scene, ttl=10.0)
                versions.append(reply.spent[0].state.version)
                scene.clock.advance(9.9)
                assert (await wanted(scene)).states == (reply.spent[0].state,)
                scene.clock.advance(0.1)
                if sweeps:
                    await scene.sweep(end_leases=False)
                assert (await wanted(scene)).states == (LimitState(None, 0, None),)
            assert versions == sorted(set(versions))

    async def test_every_reply_has_the_time_of_the_storage(self) -> None:
        """A grant is decided as of it."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            scene.clock.advance(5)
            request = scene.request(1)
            reply = await scene.storage.claim(request)
            assert reply.now == scene.clock.time()
            scene.clock.advance(5)
            assert (await scene.storage.claim(request)).now == scene.clock.time()
            _, claimed = await scene.storage.settle(
                [scene.settlement(reply.leases[0])], scene.request(1)
            )
            assert claimed is not None
            assert claimed.now == scene.clock.time()

    async def test_a_claim_after_settlements_uses_budgets_too(self) -> None:
        """It is served like any other."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", "a2", "a3", lane="a")
            (lease,) = (await spend(scene, "a")).leases
            _, reply = await scene.storage.settle([scene.settlement(lease)], scene.request(5))
            assert reply is not None
            assert reply.leases == ()
            (want,) = reply.wants
            grants = (granted(scene, want, budget_for(want, "a")),)
            _, reply = await scene.storage.settle([], scene.request(5, grants=grants))
            assert reply is not None
            assert ids_of(reply) == ["a2"]
            assert [spent.state.lane for spent in reply.spent] == ["a"]

    async def test_a_repeated_claim_spends_nothing(self) -> None:
        """Its leases stand for what was spent."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit("a", "b")
            want = await wanted(scene)
            request = scene.request(1, grants=(granted(scene, want, budget_for(want, None, 2)),))
            first = await scene.storage.claim(request)
            again = await scene.storage.claim(request)
            assert [lease.token for lease in again.leases] == [
                lease.token for lease in first.leases
            ]
            assert again.spent == ()
            assert (await wanted(scene)).states == (first.spent[0].state,)


__all__ = [
    "LANE_LIMITS",
    "LIMITS",
    "Budgets",
    "budget_for",
    "granted",
    "ids_of",
    "limit_starts",
    "spend",
    "wanted",
]
