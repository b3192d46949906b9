"""Registers, edits, settings, signals and events between users that are at work at once."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from plugq.events import EventKind, JobEvent
from plugq.job import JobState
from plugq.protocols.edits import Cancel, EditStatus, Redrive, Reprioritise
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import (
    Finished,
    Happened,
    RegisterChange,
    Resync,
    SubmitStatus,
    Wake,
)
from plugq.testing.contract.crew import Crew, Side, at_work, begin, together
from plugq.testing.contract.scene import Contract
from plugq.testing.levels import Level
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene

_push = requires(Capability.PUSH_WAKEUPS)


async def increment(side: Side, name: str, key: str, times: int) -> None:
    """Add to a number in a register, and leave a mark of one's own with each addition."""
    async with at_work(side) as scene:
        done = 0
        while done < times:
            number, mark = (await scene.storage.load([key, name])).registers
            value = b"%d" % (1 + (int(number.value) if number else 0))
            swapped = await scene.storage.swap(
                [
                    RegisterChange(key=key, expect=number.version if number else 0, value=value),
                    RegisterChange(key=name, expect=mark.version if mark else 0, value=value),
                ]
            )
            if swapped.done:
                done += 1
                assert swapped.registers[0] is not None
                side.say((swapped.registers[0].version, int(value)))


async def run_all(side: Side, name: str) -> None:
    """Run whatever can be claimed, and tell of it, until the word ``stop`` comes."""
    async with at_work(side) as scene:
        word = asyncio.create_task(side.hear())
        while True:
            last = word.done()
            leases = await scene.claim(3, worker=name)
            replies, _ = await scene.storage.settle([scene.settlement(one) for one in leases])
            assert not any(reply.lost for reply in replies)
            side.say([lease.id for lease in leases])
            if last and not leases:
                return
            await asyncio.sleep(0)


async def edit_all(side: Side, ids: list[str], **_: str) -> None:
    """Reprioritise jobs, cancel them, redrive some, and tell what each edit did."""
    async with at_work(side) as scene:
        for start in range(0, len(ids), 5):
            refs = scene.refs(*ids[start : start + 5])
            await scene.storage.edit(Reprioritise(refs, start % 7))
            cancelled = await scene.storage.edit(Cancel(refs))
            redriven = await scene.storage.edit(Redrive(refs[:2]))
            side.say(
                (
                    sum(reply.status is EditStatus.DONE for reply in cancelled),
                    sum(reply.status is EditStatus.DONE for reply in redriven),
                )
            )


async def obey(side: Side, name: str) -> None:
    """Claim, or submit, whenever it is told to, and tell what came of it."""
    async with at_work(side) as scene:
        while (order := await side.hear()) != "stop":
            if order == "claim":
                side.say([lease.id for lease in await scene.claim(5, worker=name)])
            else:
                (reply,) = await scene.send(scene.job(f"{order}-{name}"))
                side.say(reply.status)


async def stand_idle(side: Side, name: str, count: int) -> None:
    """Watch as so many idle peers, and tell of each wake-up and of each end that they hear of."""
    async with at_work(side) as scene:
        peers = [f"{name}-{number}" for number in range(count)]
        idle = [asyncio.Event() for _ in peers]
        tasks = [
            asyncio.create_task(_watch(side, scene, peer, event))
            for peer, event in zip(peers, idle, strict=True)
        ]
        for event in idle:
            await event.wait()
        side.say("idle")
        await side.hear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(side: Side, scene: Scene, peer: str, idle: asyncio.Event) -> None:
    async with aclosing(scene.storage.watch(peer)) as notices:
        assert isinstance(await anext(notices), Resync)
        assert not await scene.claim(1, peer=peer, worker=peer)
        idle.set()
        async for notice in notices:
            if isinstance(notice, Wake | Finished):
                side.say(("woken" if isinstance(notice, Wake) else "finished", peer))


async def tell_and_listen(side: Side, name: str, count: int) -> None:
    """Tell of numbered events, and say which ones it hears of until those are all, or some lost."""
    async with at_work(side) as scene, aclosing(scene.storage.listen()) as stream:
        assert isinstance(await anext(stream), Resync)
        side.say("listening")
        tellers = set(await side.hear())
        for number in range(count):
            await scene.sweep()
            assert scene.storage.listened
            scene.storage.tell(
                [JobEvent(kind=EventKind.STARTED, queue="q", id=name, task="t", attempt=number)]
            )
        while tellers:
            heard = await anext(stream)
            if isinstance(heard, Happened):
                side.say([(event.id, event.attempt) for event in heard.events])
                tellers -= {event.id for event in heard.events if event.attempt == count - 1}
            else:
                # What comes after it is as good as before; what it stands for does not come.
                side.say("resync")
                tellers.clear()
        side.say("done")
        # One that ends may not take along what it has told.
        await side.hear()


class Sharing(Contract):
    """What many do with one store at the same moment, beside running jobs."""

    level = Level.CONCURRENCY

    @together
    async def test_a_number_in_a_register_loses_no_addition(self, crew: Crew) -> None:
        """Versions rise with each of them and never repeat; several keys change as one."""
        said = await crew.work(increment, 4, key="n", times=200)
        versions = [version for each in said for version, _ in each]
        assert len(set(versions)) == len(versions) == 800
        ordered = sorted((version, value) for each in said for version, value in each)
        assert [value for _, value in ordered] == list(range(1, 801))
        keys = ["n", *(f"m{number}" for number in range(4))]
        registers = (await crew.scene.storage.load(keys)).registers
        values = [register and int(register.value) for register in registers]
        assert values == [800, *(each[-1][1] for each in said)]

    @together
    async def test_the_books_agree_after_edits_that_race_with_claims(self, crew: Crew) -> None:
        """Counters, batches and jobs tell the same of cancelled, redriven and finished (I13)."""
        scene = crew.scene
        ids = [f"{number:03}" for number in range(300)]
        await scene.submit(*ids, batch="x", lane="a", max_attempts=5)
        await scene.configure(lane_max_running=4)
        async with crew.members(run_all, 2) as runners, crew.members(edit_all, 2, ids=ids) as eds:
            await begin(*runners, *eds)
            edits = [edit for each in eds for edit in await each.rest()]
            for mate in runners:
                await mate.say("stop")
            runs = [id for mate in runners for call in await mate.rest() for id in call]
            for mate in (*runners, *eds):
                await mate.ends()
        cancelled, redriven = (sum(each) for each in zip(*edits, strict=True))
        totals = (await scene.task_stats()).totals
        assert (totals.get("cancelled", 0), totals.get("redriven", 0)) == (cancelled, redriven)
        assert totals["started"] == totals["succeeded"] == len(runs) == len(set(runs))
        kept = {"succeeded": len(runs), "cancelled": len(ids) - len(runs)}
        assert cancelled - redriven == kept["cancelled"]
        assert await scene.batch("x") == {state: count for state, count in kept.items() if count}
        for id in ids:
            expected = JobState.SUCCEEDED if id in set(runs) else JobState.CANCELLED
            assert await scene.state(id) is expected
        await scene.settled_store()

    @together
    async def test_settings_hold_for_everybody_from_the_next_call_on(self, crew: Crew) -> None:
        """Pause, resume, limits and drain, made by another."""
        scene = crew.scene
        await scene.submit(*(str(number) for number in range(10)))
        async with crew.members(obey, 2) as mates:
            await begin(*mates)

            async def answers(order: str) -> list[object]:
                replies: list[object] = []
                for mate in mates:
                    await mate.say(order)
                    replies.append(await mate.hear())
                return replies

            await scene.pause()
            assert await answers("claim") == [[], []]
            await scene.configure(max_running=3)
            await scene.resume()
            assert await answers("claim") == [["0", "1", "2"], []]
            await scene.configure(max_running=4)
            assert await answers("claim") == [["3"], []]
            await scene.configure(max_length=6)
            assert await answers("full") == [SubmitStatus.FULL] * 2
            await scene.configure()
            assert await answers("more") == [SubmitStatus.ACCEPTED] * 2
            await scene.drain()
            assert await answers("late") == [SubmitStatus.DRAINING] * 2
            for mate in mates:
                await mate.say("stop")
                await mate.ends()

    @_push
    @together
    async def test_of_many_idle_peers_elsewhere_one_job_wakes_one(self, crew: Crew) -> None:
        """A hundred idle workers do not all come for one job."""
        scene = crew.scene
        async with crew.members(stand_idle, 2, count=20) as mates:
            await begin(*mates)
            for mate in mates:
                assert await mate.hear() == "idle"
            await scene.submit("the one")
            # A peer gets its notices in order: the end of a job of its own proves that it was
            # sent no other before.
            peers = [f"m{number}-{place}" for number in range(2) for place in range(20)]
            jobs = [scene.job(peer, queue="other", origin=peer, delay=60.0) for peer in peers]
            await scene.send(*jobs)
            await scene.storage.edit(Cancel(scene.refs(*peers, queue="other")))
            woken: list[str] = []
            for mate in mates:
                finished = 0
                while finished < 20:
                    kind, peer = await mate.hear()
                    finished += kind == "finished"
                    woken += [peer] * (kind == "woken")
            assert len(woken) == 1
            for mate in mates:
                await mate.say("stop")
                await mate.ends()

    @_push
    @together
    async def test_what_each_tells_everybody_hears_in_order(self, crew: Crew) -> None:
        """Those of one teller one after the other and each once, or a resync in place of some."""
        names = ["m0", "m1", "m2"]
        async with crew.members(tell_and_listen, count=50) as mates:
            await begin(*mates)
            for mate in mates:
                assert await mate.hear() == "listening"
            for mate in mates:
                await mate.say(names)
            for mate in mates:
                heard: dict[str, list[int]] = {name: [] for name in names}
                gap = False
                while (said := await mate.hear()) != "done":
                    gap = gap or said == "resync"
                    for name, number in said if said != "resync" else ():
                        heard[name].append(number)
                for numbers in heard.values():
                    assert numbers == sorted(set(numbers))
                    assert gap or numbers == list(range(50))
            for mate in mates:
                await mate.say("stop")
                await mate.ends()


__all__ = ["Sharing"]
