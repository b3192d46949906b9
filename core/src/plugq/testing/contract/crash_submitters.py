"""Submitters that die before they are answered, alone and beside another that wants the same."""

from __future__ import annotations

from typing import Any

import msgspec

from plugq.protocols.plugin import Capability
from plugq.testing.contract.crash_story import NeverPassed, Stories, Story, died, together
from plugq.testing.crashing import CALL, Spec
from plugq.testing.requirements import requires

#: Ids, and as many unique keys, for which two submitters contend.
_CONTENDED = 12


def _wishes(by: str) -> list[Spec]:
    """Return what one of the contenders submits: ids and keys that the other has, and its own."""
    specs = []
    for n in range(_CONTENDED):
        specs.append(Spec(id=f"same-{n}", payload={"by": by}))
        specs.append(Spec(id=f"{by}-{n}", payload={"by": by}, unique=f"key-{n}"))
        specs.append(Spec(id=f"{by}-alone-{n}", payload={"by": by}))
    return specs


def _winners(ours: dict[str, bool]) -> list[Spec]:
    """Return what has to be stored, by what the one that lived was told."""
    winners = []
    for n in range(_CONTENDED):
        by = "lives" if ours[f"same-{n}"] else "dies"
        winners.append(Spec(id=f"same-{n}", payload={"by": by}))
        by = "lives" if ours[f"lives-{n}"] else "dies"
        winners.append(Spec(id=f"{by}-{n}", payload={"by": by}, unique=f"key-{n}"))
        winners += [Spec(id=f"{by}-alone-{n}", payload={"by": by}) for by in ("lives", "dies")]
    return winners


class SubmittersDie(Stories):
    """What was acknowledged is there, and what is sent again is there once."""

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_a_submitter_dies(self) -> None:
        """What it knows to be stored is there; all that it sends again is there once (I1, I8)."""
        places = ("client.submit.before", "client.submit.after", "broker.submit.before")
        await together(
            *(self._submitter_dies_at(f"{p}@2") for p in (*places, "broker.submit.after")),
            self._submitter_is_killed(),
        )

    async def _submitter_is_killed(self) -> None:
        """What it has just been told outlives it, though it did nothing since."""
        async with self.story() as story:
            specs = story.plan()[:CALL]
            plain = [msgspec.to_builtins(spec) for spec in specs]
            async with story.child("submit", specs=plain) as child:
                assert await child.hear() == "ready"
                await child.say("go")
                told = {id for id, _ in await child.hear()}
                await child.kill()
            lost = told - {job.id for job in await story.jobs()}
            assert not lost, f"I1: {lost} were acknowledged and are gone"

    async def _submitter_dies_at(self, place: str) -> None:
        async with self.story() as story:
            specs = story.plan()
            plain = [msgspec.to_builtins(spec) for spec in specs]
            async with story.child("submit", dies=place, specs=plain) as child:
                assert await child.hear() == "ready"
                await child.say("go")
                told = {id for some in await child.rest() for id, _ in some}
                await died(child, place)
            stored = {record.id for record in await story.records()}
            assert told <= stored, f"I1: {told - stored} were acknowledged and are gone"
            # As the submitter would, who knows only that it was not answered.
            await story.submit(specs)
            await story.drain()
            await story.holds()

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_one_of_two_who_submit_the_same_dies(self) -> None:
        """Each id and each unique key is taken once, and both are told so (I8, I15)."""
        places = ("client.submit.after", "broker.submit.before", "broker.submit.after")
        await together(*(self._contender_dies_at(f"{place}@2") for place in places))

    @requires(Capability.DURABLE, Capability.SHARED_PROCESSES)
    async def test_one_of_two_who_submit_the_same_dies_at_a_commit(self) -> None:
        """As long as nobody was answered, a key is held by one of them or by none (I8)."""
        places = ("storage.commit.before@2", "storage.commit.after@2", "storage.commit.after@3")
        await together(*(self._contender_dies_at(place) for place in places))

    async def _contender_dies_at(self, place: str) -> None:
        async with self.story() as story:
            plain = {by: msgspec.to_builtins(_wishes(by)) for by in ("dies", "lives")}
            async with (
                story.child("submit", dies=place, specs=plain["dies"]) as victim,
                story.child("submit", specs=plain["lives"]) as other,
            ):
                # One that dies as it opens the store is as good.
                if await victim.listen() is not None:
                    assert await other.hear() == "ready"
                    for child in (victim, other):
                        await child.say("go")
                    theirs = _answers(await victim.rest())
                else:
                    assert await other.hear() == "ready"
                    await other.say("go")
                    theirs = {}
                if await victim.wait() == 0 and place.startswith("storage"):
                    raise NeverPassed(place.partition("@")[0])
                await died(victim, place)
                ours = _answers(await other.rest())
                await other.ends()
            await self._is_taken_once(story, ours, theirs)

    async def _is_taken_once(
        self, story: Story, ours: dict[str, bool], theirs: dict[str, bool]
    ) -> None:
        both = [id for id, accepted in theirs.items() if accepted and ours.get(id)]
        assert not both, f"I8: {both} were accepted from two submitters"
        wanted = _winners(ours)
        lost = {id for id, accepted in theirs.items() if accepted} - {spec.id for spec in wanted}
        assert not lost, f"I8: the keys of {lost} were acknowledged and given away"
        story.specs = wanted
        # As they would, who know only that they were not answered.
        await story.send([*_wishes("dies"), *_wishes("lives")])
        stored = sorted(record.id for record in await story.jobs())
        assert stored == sorted(spec.id for spec in wanted), f"I8: stored are {stored}"
        await story.drain()
        await story.holds()


def _answers(said: list[Any]) -> dict[str, bool]:
    return {id: accepted for some in said for id, accepted in some}


__all__ = ["SubmittersDie"]
