"""Signals that nobody fetches, or that come while nobody watches: never lost without a word."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from plugq.protocols.edits import Cancel
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import BACKLOG, CancelAsked, Finished, Notice, Resync, Wake
from plugq.testing.contract.scene import Contract
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.job import JobRef

_push = requires(Capability.PUSH_WAKEUPS)


class LostSignals(Contract):
    """Whoever missed something is told to look again, and a lost wake-up costs one sweep."""

    @_push
    async def test_a_watch_that_nobody_fetches_from_ends_in_a_resync(self) -> None:
        """Or has kept everything; nobody else waits for it meanwhile."""
        async with self.scene() as scene:
            stream = scene.storage.watch("p")
            assert isinstance(await anext(stream), Resync)
            ids = [str(number) for number in range(BACKLOG + 500)]
            await scene.submit(*ids, origin="p")
            for start in range(0, len(ids), 1_000):
                await scene.storage.edit(Cancel(scene.refs(*ids[start : start + 1_000])))
            heard: list[Notice] = []
            named: set[JobRef] = set()
            wanted = set(scene.refs(*ids))
            async with scene.expecting_an_end():
                while not named >= wanted and not any(isinstance(one, Resync) for one in heard):
                    notice = await anext(stream)
                    heard.append(notice)
                    named.update(notice.refs if isinstance(notice, Finished) else ())
            await stream.aclose()

    @_push
    async def test_what_was_not_fetched_yet_is_kept(self) -> None:
        """A few notices of each kind wait for whoever is slow; or a resync stands for them."""
        async with self.scene() as scene:
            stream = scene.storage.watch("p")
            assert isinstance(await anext(stream), Resync)
            await scene.submit("running")
            await scene.take("running", peer="p")
            await scene.claim(1, peer="p")
            await scene.cancel("running")
            await scene.submit("a", "b", origin="p")
            await scene.cancel("a")
            await scene.cancel("b")
            heard: list[Notice] = []

            def all_there() -> bool:
                finished = {ref for one in heard if isinstance(one, Finished) for ref in one.refs}
                asked = {ref for one in heard if isinstance(one, CancelAsked) for ref in one.refs}
                woken = any(isinstance(one, Wake) for one in heard)
                return (
                    woken
                    and finished >= set(scene.refs("a", "b"))
                    and asked >= set(scene.refs("running"))
                ) or any(isinstance(one, Resync) for one in heard)

            async with scene.expecting_an_end():
                while not all_there():
                    heard.append(await anext(stream))
            await stream.aclose()

    @_push
    async def test_a_watch_that_comes_back_begins_with_a_resync(self) -> None:
        """It stands for what happened while it was away; what happens then is told."""
        async with self.scene() as scene:
            async with scene.listen("p"):
                await scene.submit("a", "b", "c", origin="p")
                assert await scene.claim(0, peer="p") == ()
            # Nobody watches as p now, and that holds up nobody.
            await scene.cancel("a")
            async with scene.listen("p") as ear:
                assert isinstance(ear.heard[0], Resync)
                await scene.cancel("b")
                await ear.hears(Finished, *scene.refs("b"))
            async with scene.listen("p") as ear:
                assert isinstance(ear.heard[0], Resync)
                await scene.cancel("c")
                await ear.hears(Finished, *scene.refs("c"))

    @_push
    async def test_a_wake_up_that_is_lost_costs_one_sweep(self) -> None:
        """The peer that was woken is gone: the next sweep wakes one that is idle."""
        async with self.scene() as scene, scene.listen("p") as p, scene.listen("r") as r:
            await scene.claim(1, peer="p")
            await scene.claim(1, peer="r")
            await scene.submit("a")
            woken = {asyncio.create_task(ear.hears_wake()): ear for ear in (p, r)}
            done, _ = await asyncio.wait(woken, return_when=asyncio.FIRST_COMPLETED)
            for waiting in woken:
                waiting.cancel()
            await asyncio.gather(*woken, return_exceptions=True)
            lost = woken[done.pop()]
            await lost.stop()
            await scene.sweep()
            await (r if lost is p else p).hears_wake()
            assert await scene.claimed_ids() == ["a"]

    @_push
    async def test_a_wake_up_that_nobody_acts_on_costs_one_sweep(self) -> None:
        """A peer that was woken and asks again is woken again while there is something."""
        async with self.scene() as scene, scene.listen("p") as ear:
            await scene.claim(1, peer="p")
            await scene.submit("a")
            await ear.hears_wake()
            # It claimed elsewhere instead and is idle again.
            await scene.claim(1, queues=("elsewhere",), peer="p")
            await scene.claim(1, queues=("q", "elsewhere"), peer="other")
            await scene.submit("b")
            await scene.take()
            await scene.claim(2, peer="p")
            await scene.submit("c")
            await ear.hears_wake(2)

    @_push
    async def test_a_cancelled_wait_for_a_notice_loses_nothing(self) -> None:
        """Waiting for a time only, again and again, hears of everything."""
        async with self.scene() as scene:
            stream = scene.storage.watch("p")
            assert isinstance(await anext(stream), Resync)
            await scene.submit("a", "b", origin="p")
            for id in ("a", "b"):
                waiting = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
                await scene.cancel(id)
                async with scene.expecting_an_end():
                    notice = await anext(stream)
                assert notice == Finished(scene.refs(id))
            await stream.aclose()


__all__ = ["LostSignals"]
