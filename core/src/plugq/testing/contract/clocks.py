"""Users of one store whose clocks disagree: one time for all, which never runs backwards."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from plugq.job import Event, JobState
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import RegisterChange
from plugq.testing.clock import ManualClock
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.requirements import MissingCapability

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from plugq.protocols.storage import Lease

_SHARED = frozenset({Capability.SHARED_PROCESSES, Capability.SHARED_HOSTS})
#: How far the clocks are apart, in seconds.
_APART = 600.0


async def _now(scene: Scene) -> float:
    return (await scene.storage.load([])).now


class Clocks(Contract):
    """The storage's time is the latest that any of its users has brought, and is kept."""

    @asynccontextmanager
    async def _apart(self, *offsets: float) -> AsyncIterator[list[Scene]]:
        """Open one store once for each clock; the first one is exact."""
        async with self.scene() as scene, AsyncExitStack() as stack:
            if not scene.storage.capabilities & _SHARED:
                raise MissingCapability(_SHARED)
            scenes = [scene]
            for offset in offsets:
                clock = ManualClock(scene.clock.time() + offset)
                context = dataclasses.replace(scene.context, clock=clock)
                storage = await stack.enter_async_context(self.open(context))
                scenes.append(Scene(self, context, storage))
            yield scenes

    async def test_users_with_different_clocks_agree_on_the_time(self) -> None:
        """Each write of the one that is ahead is the present of all; it is nobody's past."""
        async with self._apart(_APART, -_APART) as (exact, ahead, behind):
            seen = 0.0
            for number in range(3):
                for index, scene in enumerate((ahead, behind, exact)):
                    id = f"{number}-{index}"
                    await scene.submit(id)
                    stamped = (await scene.show(id)).submitted_at
                    assert stamped >= seen, f"{id} was stamped earlier than what was there before"
                    seen = stamped
                    times = [await _now(one) for one in (exact, ahead, behind)]
                    assert times == [ahead.clock.time()] * 3
                for scene in (exact, ahead, behind):
                    scene.clock.advance(1)

    async def test_jobs_of_users_with_different_clocks_keep_the_order_of_submission(self) -> None:
        """A clock that is behind lets nobody in front."""
        async with self._apart(_APART, -_APART) as scenes:
            ids = [f"{number:02}" for number in range(12)]
            await scenes[1].submit("first")
            for number, id in enumerate(ids):
                await scenes[number % 3].submit(id)
            assert await scenes[2].claimed_ids(5) == ["first", *ids[:4]]
            assert await scenes[0].claimed_ids() == ids[4:]

    async def test_a_user_that_is_ahead_ends_no_lease_of_the_others_early(self) -> None:
        """A lease lasts its length by the storage's clock, whoever granted and whoever sweeps."""
        async with self._apart(_APART, -_APART) as (exact, ahead, behind):
            await ahead.submit("warm")
            await ahead.end(await ahead.take("warm"))
            for granting in (exact, behind, ahead):
                await granting.submit("a", max_attempts=9)
                lease = await granting.take("a", lease=30.0)
                for scene in (exact, behind, ahead):
                    scene.clock.advance(29)
                    assert (await scene.sweep()).changes == (), "a lease was ended early"
                    scene.clock.set_back(29)
                assert await granting.end(lease) is JobState.SUCCEEDED
                await granting.purge("a")

    async def test_a_lease_by_any_clock_is_ended_once_it_has_lapsed(self) -> None:
        """The sweep of the one that is ahead ends it then, and only that moves it."""
        async with self._apart(_APART, -_APART) as (exact, ahead, behind):
            await ahead.submit("a", max_attempts=9)
            lease = await behind.take("a", lease=30.0)
            behind.clock.advance(31)
            exact.clock.advance(31)
            assert (await behind.sweep()).changes == ()
            ahead.clock.advance(30)
            assert [change.event for change in (await ahead.sweep()).changes] == [Event.LAPSE]
            assert (await behind.settle(lease)).lost
            assert (await exact.take("a")).token > lease.token

    async def test_tokens_rise_across_users_with_different_clocks(self) -> None:
        """In the order of the grants, whatever each clock says; each job goes to one (I4, I5)."""
        async with self._apart(_APART, -_APART) as scenes:
            tokens: list[int] = []
            for number in range(12):
                scene = scenes[(number * 2 + 1) % 3]
                await scene.submit(str(number))
                tokens.append((await scene.take(str(number))).token)
            assert tokens == sorted(set(tokens))

            await scenes[0].submit(*(f"more-{number}" for number in range(90)))

            async def claimer(scene: Scene, worker: str) -> list[Lease]:
                mine: list[Lease] = []
                while leases := await scene.claim(4, worker=worker):
                    mine += leases
                return mine

            claims = (claimer(scene, f"w-{number}") for number, scene in enumerate(scenes))
            granted = [lease for mine in await asyncio.gather(*claims) for lease in mine]
            assert len(granted) == len({lease.id for lease in granted}) == 90
            assert len({lease.token for lease in granted}) == 90
            assert min(lease.token for lease in granted) > tokens[-1]

    async def test_retention_is_never_early_by_any_clock(self) -> None:
        """It counts from the end by the storage's clock, not by that of whoever looks."""
        async with self._apart(_APART, -_APART) as (exact, ahead, behind):
            await ahead.submit("warm")
            await behind.submit("a", result_ttl=700.0, id_ttl=600.0)
            lease = await behind.take("warm")
            await behind.end(lease)
            await behind.end(await behind.take("a"), result=b"42")
            change = RegisterChange(key="k", expect=0, value=b"v", ttl=700.0)
            await behind.storage.swap([change])
            for scene in (exact, ahead, behind):
                scene.clock.advance(699)
                await scene.sweep()
            for scene in (exact, ahead, behind):
                assert (await scene.show("a")).result == b"42"
                assert (await scene.storage.load(["k"])).registers[0] is not None
            ahead.clock.advance(1)
            await ahead.sweep()
            for scene in (exact, ahead, behind):
                assert await scene.look("a") is None
                assert (await scene.storage.load(["k"])).registers[0] is None

    async def test_a_clock_that_is_set_back_while_open_changes_nothing(self) -> None:
        """Of that user nor of the others: time stands still until it has caught up."""
        async with self._apart(0.0) as (one, other):
            await one.submit("a", max_attempts=9)
            lease = await one.take("a", lease=30.0)
            before = await _now(one)
            one.clock.set_back(_APART)
            assert await _now(one) == await _now(other) == before
            await one.submit("b")
            assert (await other.show("b")).submitted_at == before
            other.clock.advance(29)
            assert (await one.sweep()).changes == (await other.sweep()).changes == ()
            assert await one.end(lease) is JobState.SUCCEEDED
            later = await one.take("b")
            assert later.token > lease.token
            assert later.started_at >= lease.started_at

    async def test_a_clock_that_jumps_forward_takes_all_along(self) -> None:
        """Once it has written its time is everybody's, also after it was set right again."""
        async with self._apart(0.0) as (one, other):
            await one.submit("due", delay=300.0)
            one.clock.advance(_APART)
            await one.submit("a")
            one.clock.set_back(_APART)
            jumped = (await one.show("a")).submitted_at
            assert await _now(other) == jumped
            assert await other.claimed_ids() == ["due", "a"]
            await other.submit("b", max_attempts=9)
            lease = await other.take("b", lease=30.0)
            assert lease.started_at == jumped
            for scene in (one, other):
                scene.clock.advance(_APART - 1)
                assert (await scene.sweep()).changes == ()
            assert await other.end(lease) is JobState.SUCCEEDED


__all__ = ["Clocks"]
