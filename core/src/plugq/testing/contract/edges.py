"""The edges of retention: a millisecond before, exactly at and after each, with 0 and for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import FINAL, LINGER, JobState
from plugq.protocols.edits import EditStatus
from plugq.protocols.storage import (
    BATCH_TTL,
    FindQuery,
    RegisterChange,
    SubmitStatus,
    UniqueKey,
    UniqueMode,
)
from plugq.testing.contract.scene import Contract

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene

_MS = 0.001
#: Times of retention; ``None`` is for ever.
_TTLS = (0.0, _MS, 60.0, 700.0, None)
_LONG = 100 * 365 * 86_400.0


async def _there(scene: Scene, *, there: bool, when: str) -> None:
    """Check that all who look for a job agree on whether it is there."""
    found = (await scene.storage.find(FindQuery())).jobs
    status = (await scene.cancel("a")).status
    seen = {
        "get": await scene.look("a") is not None,
        "find": bool(found),
        "edit": status is not EditStatus.NOT_FOUND,
    }
    assert set(seen.values()) == {there}, f"{when}: {seen}"


class Edges(Contract):
    """What is kept is there until its time has come, and not a moment longer."""

    async def _goes_at(self, scene: Scene, ttl: float | None, what: str) -> None:
        """Check that the one job, which has just ended, goes that many seconds from now."""
        if ttl is None:
            for swept in (False, True):
                scene.clock.advance(_LONG)
                await _there(scene, there=True, when=f"{what}, swept: {swept}")
                assert (await scene.sweep()).changes == ()
            return
        if ttl:
            scene.clock.advance(ttl - _MS)
            await _there(scene, there=True, when=f"{what}, before its time")
            await scene.sweep()
            await _there(scene, there=True, when=f"{what}, swept before its time")
            scene.clock.advance(_MS)
        await _there(scene, there=False, when=f"{what}, at its time")
        scene.clock.advance(_MS)
        await _there(scene, there=False, when=f"{what}, after its time")
        (again,) = await scene.send(scene.job("a"))
        assert again.status is SubmitStatus.ACCEPTED

    async def test_every_final_state_goes_at_the_edge_of_its_ttl(self) -> None:
        """Of ``result_ttl``, ``failure_ttl`` or ``id_ttl``, whichever is longer."""
        for state in sorted(FINAL):
            for ttl in _TTLS:
                for id_ttl in (0.0, 60.0):
                    async with self.scene() as scene:
                        own = state in {JobState.SUCCEEDED, JobState.CANCELLED}
                        fields: dict[str, Any] = {"result_ttl": 5.0, "failure_ttl": 5.0}
                        fields["id_ttl"] = id_ttl
                        fields["result_ttl" if own else "failure_ttl"] = ttl
                        await scene.bring("a", state, **fields)
                        kept = None if ttl is None else max(ttl, id_ttl)
                        await self._goes_at(scene, kept, f"{state} for {ttl} s, id {id_ttl} s")

    async def test_what_was_retained_goes_at_the_edge_of_its_new_time(self) -> None:
        """Whether it was asked for before the end or after it; the id keeps its own time."""
        for state in sorted(FINAL):
            for ttl in _TTLS:
                async with self.scene() as scene:
                    fields: dict[str, Any] = {
                        "result_ttl": 300.0,
                        "failure_ttl": 300.0,
                        "id_ttl": 60.0,
                    }
                    await scene.bring("a", state, **fields)
                    scene.clock.advance(20)
                    assert (await scene.retain(ttl)).status is EditStatus.DONE
                    kept = None if ttl is None else max(ttl, 40.0)
                    await self._goes_at(scene, kept, f"{state}, retained for {ttl} s")
            async with self.scene() as scene:
                await scene.submit("a", result_ttl=300.0, failure_ttl=300.0, id_ttl=0.0)
                await scene.retain(100.0)
                if state is JobState.CANCELLED:
                    await scene.cancel("a")
                else:
                    await scene.advance_to(await scene.take("a"), state)
                await self._goes_at(scene, 100.0, f"{state}, retained while it was live")

    async def test_a_waiting_reader_sees_an_end_until_it_has_lingered(self) -> None:
        """However short it was to be kept, retained or not; others go by its ttl."""
        for state in sorted(FINAL):
            for retained in (False, True):
                async with self.scene() as scene:
                    ttl = LINGER if retained else 0.0
                    await scene.bring("a", state, result_ttl=ttl, failure_ttl=ttl, id_ttl=0.0)
                    if retained:
                        await scene.retain(0.0)
                    for step in (0.0, LINGER - _MS):
                        scene.clock.advance(step)
                        await scene.sweep()
                        job = await scene.show("a", waiting=True)
                        assert (job.state, job.result_expired) == (state, False)
                        assert await scene.look("a") is None
                    scene.clock.advance(_MS)
                    assert await scene.look("a", waiting=True) is None

    async def test_a_result_goes_at_its_edge_for_readers_who_wait_and_who_do_not(self) -> None:
        """For 0 s, for less than a job lingers, for longer, for ever; the job itself stays."""
        for ttl in (0.0, LINGER / 2, LINGER, LINGER + 5, None):
            async with self.scene() as scene:
                await scene.submit("a", result_ttl=ttl, id_ttl=3600.0)
                await scene.end(await scene.take("a"), result=b"42")
                moments = {0.0, LINGER - _MS, LINGER, LINGER + _MS}
                if ttl is not None:
                    moments |= {max(0.0, ttl - _MS), ttl, ttl + _MS}
                passed = 0.0
                for moment in sorted(moments):
                    scene.clock.advance(moment - passed)
                    passed = moment
                    kept = ttl is None or moment < ttl
                    for waiting in (False, True):
                        shown = kept or (waiting and moment < LINGER)
                        job = await scene.show("a", waiting=waiting)
                        expected = (b"42", False) if shown else (None, True)
                        assert (job.result, job.result_expired) == expected, (
                            f"kept for {ttl} s, after {moment} s, waiting: {waiting}"
                        )
                    await scene.sweep()

    async def test_a_throttle_key_is_free_at_the_edge_of_its_ttl(self) -> None:
        """With 0 it is not held at all."""
        for ttl in (0.0, _MS, 60.0):
            async with self.scene() as scene:
                unique = UniqueKey(UniqueMode.THROTTLE, "k", ttl)
                await scene.submit("a", unique=unique)
                if ttl:
                    scene.clock.advance(ttl - _MS)
                    await scene.sweep()
                    (held,) = await scene.send(scene.job("b", unique=unique))
                    assert (held.status, held.id) == (SubmitStatus.DUPLICATE, "a")
                    scene.clock.advance(_MS)
                (free,) = await scene.send(scene.job("b", unique=unique))
                assert (free.status, free.id) == (SubmitStatus.ACCEPTED, "b")

    async def test_a_register_goes_at_the_edge_of_its_ttl(self) -> None:
        """For loads, scans and swaps alike, swept or not; with 0 at once, with ``None`` never."""
        for swept in (False, True):
            for ttl in (0.0, _MS, 60.0, None):
                async with self.scene() as scene:
                    change = RegisterChange(key="k", expect=0, value=b"v", ttl=ttl)
                    assert (await scene.storage.swap([change])).done
                    if ttl != 0:
                        scene.clock.advance(_LONG if ttl is None else ttl - _MS)
                        if swept:
                            await scene.sweep()
                        assert (await scene.storage.load(["k"])).registers[0] is not None
                        assert len(await scene.storage.scan("")) == 1
                        assert not (await scene.storage.swap([change])).done
                    if ttl is None:
                        continue
                    scene.clock.advance(_MS if ttl else 0.0)
                    if swept:
                        await scene.sweep()
                    assert (await scene.storage.load(["k"])).registers == (None,)
                    assert list(await scene.storage.scan("")) == []
                    assert (await scene.storage.swap([change])).done

    async def test_batch_counts_go_at_the_edge_of_their_time(self) -> None:
        """After the last change, which a retention is not."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.FAILED, batch="x", failure_ttl=None)
            scene.clock.advance(100)
            await scene.retain(None)
            scene.clock.advance(BATCH_TTL - 100 - _MS)
            await scene.sweep()
            assert await scene.batch() == {"failed": 1}
            scene.clock.advance(_MS)
            assert await scene.batch() is None
            await scene.sweep()
            assert await scene.batch() is None
            assert await scene.state("a") is JobState.FAILED


__all__ = ["Edges"]
