"""Limited queues: what limiters refuse leaves the ready order, and comes back at its time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.protocols.budgets import Budget, LimitState
from plugq.protocols.plugin import Capability
from plugq.testing.contract.budgets import (
    budget_for,
    granted,
    ids_of,
    limit_starts,
    spend,
    wanted,
)
from plugq.testing.contract.scene import QUEUE, Contract
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene

_push = requires(Capability.PUSH_WAKEUPS)


async def _park_lanes(scene: Scene, seconds: float) -> None:
    """Let limiters refuse every lane that wants something until then."""
    until = scene.clock.time() + seconds
    while (reply := await scene.ask(100)).wants:
        (want,) = reply.wants
        budgets = [budget_for(want, lane, 0, retry_at=until) for lane in dict.fromkeys(want.ready)]
        await scene.ask(100, grants=(granted(scene, want, *budgets),))


class Parks(Contract):
    """What limiters refuse leaves the ready order until its time."""

    async def test_a_lane_whose_budget_is_used_up_is_parked(self) -> None:
        """It wants nothing and shows nothing until its time; then it does."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", "a2", lane="a")
            await scene.submit("b1", lane="b")
            reply = await spend(scene, "a", retry_in=5.0)
            assert [want.ready for want in reply.wants] == [("b",)]
            await scene.end(reply.leases[0])
            assert (await wanted(scene)).ready == ("b",)
            scene.clock.advance(4.9)
            assert (await wanted(scene)).ready == ("b",)
            scene.clock.advance(0.1)
            want = await wanted(scene)
            assert want.ready == ("a", "b")
            assert want.states[0] == reply.spent[0].state

    async def test_a_want_names_the_jobs_of_a_lane_before_those_behind_them(self) -> None:
        """Many of one lane, if many of it may run; and a claim starts them in that order."""
        async with self.scene() as scene:
            await scene.configure(lane_max_running=500, lane_limits=b"l")
            first = [f"a{number}" for number in range(300)]
            await scene.submit(*first, lane="a", priority=1)
            await scene.submit("b", lane="b")
            (want,) = (await scene.ask(200)).wants
            assert want.ready == ("a",) * 200
            budget = budget_for(want, "a", 200)
            reply = await scene.ask(200, grants=(granted(scene, want, budget),))
            assert ids_of(reply) == first[:200]
            (want,) = (await scene.ask(200)).wants
            assert want.ready == ("a",) * 100 + ("b",)

    async def test_a_lane_that_is_refused_everything_is_parked(self) -> None:
        """No start, no state, and other lanes go on."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            await scene.submit("b1", lane="b")
            want = await wanted(scene)
            refused = budget_for(want, "a", 0, retry_at=scene.clock.time() + 5)
            reply = await scene.ask(
                5, grants=(granted(scene, want, refused, budget_for(want, "b")),)
            )
            assert ids_of(reply) == ["b1"]
            assert reply.wants == ()
            assert [spent.state.lane for spent in reply.spent] == ["b"]
            assert (await scene.ask(5)).wants == ()
            scene.clock.advance(5)
            assert (await wanted(scene)).states == (LimitState("a", 0, None),)

    async def test_a_queue_whose_budget_is_used_up_is_parked(self) -> None:
        """All of it, whatever budgets its lanes have."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True)
            await scene.submit("a1", lane="a")
            await scene.submit("b1", lane="b")
            await scene.submit("free")
            want = await wanted(scene)
            until = scene.clock.time() + 5
            budgets = (budget_for(want, None, 2, retry_at=until), budget_for(want, "a"))
            reply = await scene.ask(5, grants=(granted(scene, want, *budgets),))
            assert ids_of(reply) == ["a1", "free"]
            assert reply.wants == ()
            assert (await scene.ask(5)).wants == ()
            await scene.submit("more", priority=9)
            assert (await scene.ask(5)).wants == ()
            scene.clock.advance(5)
            assert (await wanted(scene)).ready == (None, "b")

    async def test_what_has_its_time_already_is_not_parked(self) -> None:
        """The time may have come between the decision and the claim."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True)
            await scene.submit("a", "b")
            reply = await spend(scene, retry_in=0.0)
            assert ids_of(reply) == ["a"]
            assert [want.ready for want in reply.wants] == [(None,)]

    async def test_a_budget_that_is_outdated_parks_nothing(self) -> None:
        """Its time was that of another state."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            want = await wanted(scene)
            outdated = Budget("a", 77, (), 60.0, scene.clock.time() + 60)
            assert (await scene.ask(5, grants=(granted(scene, want, outdated),))).wants == (want,)

    async def test_jobs_that_come_to_a_parked_lane_wait_with_it(self) -> None:
        """New ones, urgent ones, due ones, and those that go back into line."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            (a1,) = (await spend(scene, "a", retry_in=60.0)).leases
            await scene.submit("a2", lane="a", priority=9)
            await scene.submit("a3", lane="a", delay=1.0)
            scene.clock.advance(1)
            await scene.storage.settle([scene.settlement(a1)])
            await scene.submit("b1", lane="b")
            await scene.sweep()
            assert (await wanted(scene)).ready == ("b",)
            scene.clock.advance(59)
            assert (await wanted(scene)).ready == ("a", "b")
            assert ids_of(await spend(scene, "a")) == ["a2"]

    async def test_new_limits_let_in_what_is_parked(self) -> None:
        """They hold from the next claim on, and so does their absence."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True)
            await scene.submit("a1", "a2", lane="a")
            await scene.submit("b1", lane="b")
            until = scene.clock.time() + 3600
            want = await wanted(scene)
            refused = granted(
                scene, want, budget_for(want), budget_for(want, "a", 0, retry_at=until)
            )
            assert ids_of(await scene.ask(5, grants=(refused,))) == []
            await spend(scene, None, 0, retry_in=3600.0)
            assert (await scene.ask(5)).wants == ()
            await limit_starts(scene, lanes=True)
            assert (await wanted(scene)).ready == ("a", "b")
            await _park_lanes(scene, 3600.0)
            assert (await scene.ask(5)).wants == ()
            await limit_starts(scene)
            assert await scene.claimed_ids() == ["a1", "b1"]

    async def test_parked_lanes_cost_the_others_nothing(self) -> None:
        """Hundreds of them do not stand between a claim and the next job."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            for name in ("first", "second", "third"):
                await scene.send(
                    *(scene.job(f"{name}-{lane}", lane=str(lane)) for lane in range(400))
                )
            await _park_lanes(scene, 60.0)
            await scene.submit("last", lane="last")
            assert (await wanted(scene, 1)).ready == ("last",)
            assert ids_of(await spend(scene, "last", limit=1)) == ["last"]
            scene.clock.advance(60)
            assert len((await wanted(scene, 1)).ready) == 100

    async def test_a_sweep_lets_in_what_has_its_time(self) -> None:
        """Lanes and queues; and it forgets lanes that have nothing any more."""
        async with self.scene() as scene:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", "a2", lane="a")
            (a1,) = (await spend(scene, "a", retry_in=5.0)).leases
            await scene.end(a1)
            await scene.cancel("a2")
            scene.clock.advance(5)
            await scene.sweep()
            await scene.submit("a3", lane="a")
            assert (await wanted(scene)).ready == ("a",)

    async def test_what_is_parked_calls_for_no_sweep(self) -> None:
        """It comes round anyway; a limited queue must not keep the sweeper busy."""
        async with self.scene() as scene:
            await limit_starts(scene, queue=True, lanes=True)
            await scene.submit("a1", "a2", lane="a")
            want = await wanted(scene)
            until = scene.clock.time() + 5
            budgets = (budget_for(want, retry_at=until), budget_for(want, "a", retry_at=until))
            reply = await scene.ask(5, grants=(granted(scene, want, *budgets),))
            assert ids_of(reply) == ["a1"]
            assert reply.next_in is None
            await scene.end(reply.leases[0])
            await scene.purge("a1")
            assert (await scene.sweep()).next_in is None
            scene.clock.advance(60)
            await scene.sweep()
            assert (await scene.sweep()).next_in is None

    async def test_a_claim_of_nothing_takes_nothing(self) -> None:
        """Neither something new nor what it was granted before."""
        async with self.scene() as scene:
            await scene.submit("a", "b")
            request = scene.request(1)
            await scene.storage.claim(request)
            nothing = scene.request(0, number=request.number)
            assert (await scene.storage.claim(nothing)).leases == ()
            reply = await scene.ask(0)
            assert (reply.leases, reply.wants) == ((), ())
            assert reply.now == scene.clock.time()

    @_push
    async def test_a_claim_of_nothing_registers_nobody(self) -> None:
        """Its peer has no place for a job."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.ask(0, peer="p")
            await scene.submit("a")
            await ear.catch_up()
            assert ear.wakes() == 0

    @_push
    async def test_a_claim_of_nothing_lets_in_and_wakes(self) -> None:
        """As many idle peers as jobs have become claimable, the asking one never."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
            scene.listen("p3") as three,
        ):
            ears = (one, two, three)
            await limit_starts(scene, lanes=True)
            for lane in "ab":
                await scene.submit(f"{lane}1", f"{lane}2", lane=lane)
            await _park_lanes(scene, 5.0)
            for ear in ears:
                await scene.ask(1, peer=ear.peer, worker=ear.peer)
            await scene.ask(0)
            scene.clock.advance(4.9)
            await scene.ask(0)
            for ear in ears:
                await ear.catch_up()
            assert [ear.wakes() for ear in ears] == [0, 0, 0]
            scene.clock.advance(0.1)
            await scene.ask(0, peer="p1")
            await two.hears_wake()
            await three.hears_wake()
            await one.catch_up()
            assert one.wakes() == 0

    @_push
    async def test_one_lane_that_is_let_in_wakes_one_peer(self) -> None:
        """Not everybody who is idle."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
        ):
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", "a2", lane="a")
            await _park_lanes(scene, 5.0)
            for ear in (one, two):
                await scene.ask(1, peer=ear.peer, worker=ear.peer)
            scene.clock.advance(5)
            await scene.ask(0)
            for ear in (one, two):
                await ear.catch_up()
            assert one.wakes() + two.wakes() == 1

    @_push
    async def test_a_claim_that_is_filled_elsewhere_lets_in_too(self) -> None:
        """Of all its queues, so that what is parked does not wait for a free worker."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            await _park_lanes(scene, 5.0)
            await scene.ask(1, peer="p")
            scene.clock.advance(5)
            await scene.submit("x", queue="other")
            assert ids_of(await scene.ask(1, queues=("other", QUEUE))) == ["x"]
            await ear.hears_wake()

    @_push
    async def test_what_is_parked_again_at_once_wakes_nobody(self) -> None:
        """It was claimable for no longer than the step."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", "a2", lane="a")
            want = await wanted(scene)
            reply = await scene.ask(1, grants=(granted(scene, want, budget_for(want, "a")),))
            state = reply.spent[0].state
            refused = Budget("a", state.version, (), 60.0, scene.clock.time() + 5)
            await scene.ask(1, peer="p")
            claim = scene.request(1, grants=(granted(scene, want, refused),))
            await scene.storage.settle([scene.settlement(reply.leases[0])], claim)
            await ear.catch_up()
            assert ear.wakes() == 0

    @_push
    async def test_a_queue_that_is_let_in_wakes(self) -> None:
        """By a claim of nothing or by a sweep; before that a submission wakes nobody."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await limit_starts(scene, queue=True)
            await scene.submit("a", "b", "c")
            for wakes, by_sweep in enumerate((False, True)):
                await spend(scene, starts=1, retry_in=5.0)
                await scene.ask(1, peer="p")
                await scene.submit(f"more-{wakes}")
                await scene.sweep()
                await ear.catch_up()
                assert ear.wakes() == wakes
                scene.clock.advance(5)
                await (scene.sweep() if by_sweep else scene.ask(0))
                await ear.hears_wake(wakes + 1)

    @_push
    async def test_a_queue_that_is_let_in_wakes_one_peer(self) -> None:
        """However many jobs are ready: two claimers would take turns on its one state."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
        ):
            await limit_starts(scene, queue=True)
            await scene.submit("a", "b", "c")
            await spend(scene, starts=1, retry_in=5.0)
            for ear in (one, two):
                await scene.ask(1, peer=ear.peer, worker=ear.peer)
            scene.clock.advance(5)
            await scene.ask(0)
            for ear in (one, two):
                await ear.catch_up()
            assert one.wakes() + two.wakes() == 1

    @_push
    async def test_a_full_claim_that_leaves_budget_wakes_one_peer(self) -> None:
        """As it does not come again for the rest."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await limit_starts(scene, queue=True)
            await scene.submit("a", "b", "c", "d")
            await scene.ask(1, peer="p")
            await spend(scene, starts=1, limit=1, retry_in=5.0)
            await ear.catch_up()
            assert ear.wakes() == 0
            scene.clock.advance(5)
            await spend(scene, starts=2, limit=1, retry_in=5.0)
            await ear.hears_wake()

    @_push
    async def test_as_many_peers_wake_as_a_lane_may_run(self) -> None:
        """At once, or for each as soon as a claim has taken the one before it."""
        async with (
            self.scene() as scene,
            scene.listen("p1") as one,
            scene.listen("p2") as two,
            scene.listen("p3") as three,
        ):
            ears = (one, two, three)
            await limit_starts(scene, lanes=True, lane_max_running=2)
            for ear in ears:
                await scene.ask(1, peer=ear.peer, worker=ear.peer)
            await scene.submit("a1", "a2", "a3", lane="a")
            assert ids_of(await spend(scene, "a", limit=1)) == ["a1"]
            for ear in ears:
                await ear.catch_up()
            assert sum(ear.wakes() for ear in ears) == 2
            assert ids_of(await spend(scene, "a", limit=1)) == ["a2"]
            for ear in ears:
                await ear.catch_up()
            assert sum(ear.wakes() for ear in ears) == 2

    @_push
    async def test_what_a_claim_wants_is_left_to_it(self) -> None:
        """It comes again at once; should it not, a sweep wakes others."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            await _park_lanes(scene, 5.0)
            await scene.ask(1, peer="p")
            scene.clock.advance(5)
            assert (await wanted(scene)).ready == ("a",)
            await ear.catch_up()
            assert ear.wakes() == 0
            await scene.sweep()
            await ear.hears_wake()

    @_push
    async def test_a_sweep_wakes_for_lanes_that_it_lets_in(self) -> None:
        """Should the process that parked them have died."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await limit_starts(scene, lanes=True)
            await scene.submit("a1", lane="a")
            await _park_lanes(scene, 5.0)
            await scene.ask(1, peer="p")
            await scene.sweep()
            await ear.catch_up()
            assert ear.wakes() == 0
            scene.clock.advance(5)
            await scene.sweep()
            await ear.hears_wake()
            assert (await wanted(scene)).ready == ("a",)


__all__ = ["Parks"]
