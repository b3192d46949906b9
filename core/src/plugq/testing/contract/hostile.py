"""Values that mean nothing, names that mean harm, and much of everything."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import InvalidJob, PlugqError
from plugq.job import AttemptRecord, JobRef, JobState, Outcome, Progress
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Pause,
    QueueSettings,
    Reprioritise,
    Retain,
)
from plugq.protocols.storage import (
    FindQuery,
    LeaseRef,
    RegisterChange,
    SweepRequest,
    UniqueKey,
    UniqueMode,
)
from plugq.testing.contract.scene import Contract
from plugq.testing.contract.snapshot import check_books, snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plugq.testing.contract.scene import Scene

#: Numbers that no clock ever shows.
_NO_TIMES: tuple[Any, ...] = (math.nan, math.inf, -math.inf, 10**400)
#: Whole numbers that need more than 64 bits.
_TOO_MUCH = (2**63, -(2**63) - 1, 10**30)
_SURROGATES = ("\ud800", "a\udfff", "\udc80b")
#: The longest id that is allowed, and names that are about as long, in as few characters.
_LONGEST = "\U0001f600" * 256
_LONG = "\u65e5" * 341
_TIMES = ("delay", "run_at", "deadline_in", "deadline_at", "result_ttl", "failure_ttl", "id_ttl")


async def _is_refused(call: Awaitable[object], what: str) -> None:
    try:
        await call
    except InvalidJob as error:
        text = str(error)
        assert text, f"the error about {what} says nothing"
        assert "\n" not in text, f"the error about {what} has more than one line"
    else:
        message = f"{what} was taken"
        raise AssertionError(message)


class Hostile(Contract):
    """Nothing that anybody hands in breaks a storage or gets foreign errors out of it."""

    async def _refused_job(self, scene: Scene, what: str, **fields: Any) -> None:
        """Check that a job is refused together with the sound one beside it."""
        jobs = [scene.job("sound"), scene.job(**{"id": "unsound", **fields})]
        await _is_refused(scene.storage.submit(jobs), what)

    async def test_a_job_with_a_time_that_is_none_is_refused(self) -> None:
        """NaN, infinity and numbers beyond every float, in each field, with the whole call."""
        async with self.scene() as scene:
            before = await snapshot(scene)
            for value in _NO_TIMES:
                for field in (*_TIMES, "not_after"):
                    await self._refused_job(scene, f"{field} {value}", **{field: value})
                key = UniqueKey(UniqueMode.THROTTLE, "k", value)
                await self._refused_job(scene, f"unique.ttl {value}", unique=key)
            assert await snapshot(scene) == before
            await scene.submit("sound")
            assert await scene.claimed_ids() == ["sound"]

    async def test_a_number_of_more_than_64_bits_is_refused(self) -> None:
        """A priority and a number of attempts."""
        async with self.scene() as scene:
            for value in _TOO_MUCH:
                for field in ("priority", "max_attempts"):
                    await self._refused_job(scene, f"{field} {value}", **{field: value})
            assert (await snapshot(scene)).jobs == ()
            await scene.submit("least", priority=-(2**31))
            await scene.submit("most", priority=2**31 - 1)
            assert await scene.claimed_ids() == ["most", "least"]

    async def test_a_claim_that_means_nothing_is_refused(self) -> None:
        """A lease without an end, a number that no column holds, a name without an encoding."""
        async with self.scene() as scene:
            await scene.submit("a")
            before = await snapshot(scene)
            wrong: list[dict[str, Any]] = [{"lease": value} for value in _NO_TIMES]
            wrong += [{"number": value} for value in _TOO_MUCH]
            wrong += [{"worker": text} for text in _SURROGATES]
            wrong += [{"queues": (text,)} for text in _SURROGATES]
            wrong += [{"peer": text} for text in _SURROGATES]
            for fields in wrong:
                request = scene.request(1, **fields)
                await _is_refused(scene.storage.claim(request), f"a claim with {fields}")
                call = scene.storage.settle([], request)
                await _is_refused(call, f"a settlement and a claim with {fields}")
            assert await snapshot(scene) == before
            assert await scene.claimed_ids() == ["a"]

    async def test_a_settlement_that_means_nothing_is_refused(self) -> None:
        """The lease stands, and so do those of the other settlements of the call."""
        async with self.scene() as scene:
            await scene.submit("a", "b", max_attempts=5)
            a, b = await scene.claim(2)
            before = await snapshot(scene)
            torn = AttemptRecord(attempt=1, code="error", message="\ud800")
            wrong: list[dict[str, Any]] = [{"delay": value} for value in _NO_TIMES]
            wrong += [{"at": value} for value in _NO_TIMES]
            wrong += [{"error": torn}, {"code": "\ud800"}]
            wrong += [{"progress": Progress(current=1.0, message="\ud800")}]
            wrong += [{"progress": Progress(current=1.0, details={"\ud800": "\ud800"})}]
            for fields in wrong:
                settlements = [
                    scene.settlement(b),
                    scene.settlement(a, Outcome.RETRY, **fields),
                ]
                await _is_refused(scene.storage.settle(settlements), f"a retry with {fields}")
            for value in _TOO_MUCH:
                forged = scene.settlement(scene.relabel(a, token=value))
                await _is_refused(scene.storage.settle([forged]), f"token {value}")
            assert await snapshot(scene) == before
            assert await scene.end(a) is await scene.end(b) is JobState.SUCCEEDED

    async def test_a_renewal_that_means_nothing_is_refused(self) -> None:
        """The lease is as long as it was."""
        async with self.scene() as scene:
            await scene.submit("a")
            lease = await scene.take("a")
            before = await snapshot(scene)
            for value in _NO_TIMES:
                await _is_refused(scene.renew(lease, lease=value), f"lease {value}")
            for value in _TOO_MUCH:
                ref = LeaseRef("q", "a", value)
                await _is_refused(scene.storage.renew([ref], lease=1.0), f"token {value}")
            torn = LeaseRef("q", "a", lease.token, Progress(current=1.0, message="\ud800"))
            await _is_refused(scene.storage.renew([torn], lease=1.0), "progress")
            assert await snapshot(scene) == before
            # As much as clients may send: one job's news must not hold up other leases.
            details: dict[str, Any] = {"most": 2**64 - 1, "least": -(2**63), "nan": math.nan}
            news = LeaseRef("q", "a", lease.token, Progress(current=1e300, details=details))
            assert list(await scene.storage.renew([news], lease=1.0)) == ["ok"]
            shown = (await scene.show("a")).progress
            assert shown is not None
            assert (shown.details or {})["most"] == 2**64 - 1

    async def test_edits_sweeps_and_registers_that_mean_nothing_are_refused(self) -> None:
        """And change nothing."""
        async with self.scene() as scene:
            await scene.bring("a", JobState.FAILED)
            await scene.submit("b")
            before = await snapshot(scene)
            storage = scene.storage
            for value in _NO_TIMES:
                await _is_refused(scene.retain(value, "a"), f"retain {value}")
                sweep = SweepRequest(deadline_grace=value)
                await _is_refused(storage.sweep(sweep), f"deadline_grace {value}")
                change = RegisterChange(key="k", expect=0, value=b"v", ttl=value)
                await _is_refused(storage.swap([change]), f"a register for {value} s")
            for number in _TOO_MUCH:
                reprioritise = Reprioritise(scene.refs("b"), number)
                await _is_refused(storage.edit(reprioritise), f"priority {number}")
                edit = Retain(scene.refs("a"), 1.0, sequences=(number,))
                await _is_refused(storage.edit(edit), f"sequence {number}")
                settings = QueueSettings(queue="q", max_running=number)
                await _is_refused(storage.edit(Configure((settings,))), f"max_running {number}")
            for number in (0, -1):
                settings = QueueSettings(queue="q", lane_max_running=number)
                await _is_refused(storage.edit(Configure((settings,))), f"lanes of {number}")
            for text in _SURROGATES:
                change = RegisterChange(key=text, expect=0, value=b"v")
                await _is_refused(storage.swap([change]), f"a register {text!r}")
                await _is_refused(storage.edit(Pause((text,))), f"a pause of {text!r}")
            assert await snapshot(scene) == before

    async def test_text_without_an_encoding_is_refused(self) -> None:
        """A lone surrogate, in an id and in each name of a job."""
        async with self.scene() as scene:
            for text in _SURROGATES:
                for field in ("id", "queue", "task", "lane", "batch", "origin"):
                    await self._refused_job(scene, f"{field} {text!r}", **{field: text})
                key = UniqueKey(UniqueMode.UNTIL_FINISHED, text)
                await self._refused_job(scene, f"unique key {text!r}", unique=key)
            assert (await snapshot(scene)).jobs == ()

    async def test_looking_for_what_can_not_be_there_finds_nothing(self) -> None:
        """Or is refused, with an error of plugq's and no other."""
        async with self.scene() as scene:
            await scene.submit("a")
            before = await snapshot(scene)
            storage = scene.storage
            for text in _SURROGATES:
                queries = [FindQuery(queue=text), FindQuery(task=text), FindQuery(batch=text)]
                queries.append(FindQuery(cursor=text))
                queries += [FindQuery(since=value) for value in _NO_TIMES]
                queries += [FindQuery(until=value) for value in _NO_TIMES]
                looks: list[Callable[[], Awaitable[object]]] = [
                    partial(storage.get, [JobRef("q", text), JobRef(text, "a")]),
                    partial(storage.batches, [text]),
                    partial(storage.load, [text]),
                    partial(storage.scan, text),
                    partial(storage.edit, Cancel((JobRef("q", text),))),
                    *(partial(storage.find, query) for query in queries),
                ]
                for look in looks:
                    with contextlib.suppress(PlugqError):
                        await look()
            assert await snapshot(scene) == before

    async def test_times_that_have_passed_count_as_now(self) -> None:
        """A negative delay gains no place, and what is kept for less than 0 s is as for 0 s."""
        async with self.scene() as scene:
            now = scene.clock.time()
            await scene.submit("first")
            await scene.submit("second", delay=-3600.0)
            second = await scene.show("second")
            assert (second.state, second.ready_at) == (JobState.QUEUED, now)
            assert await scene.claimed_ids() == ["first", "second"]
            await scene.submit("a", max_attempts=5)
            await scene.end(await scene.take("a"), Outcome.RETRY, delay=-3600.0)
            assert (await scene.show("a")).ready_at == now
            await scene.end(await scene.take("a"), Outcome.SNOOZE, delay=-3600.0)
            assert (await scene.show("a")).ready_at == now
            await scene.end(await scene.take("a"), Outcome.RELEASE, delay=-3600.0)
            lease = await scene.take("a", lease=-3600.0)
            assert (await scene.settle(lease)).state is JobState.SUCCEEDED
            await scene.submit("b", result_ttl=-9.0, failure_ttl=-9.0, id_ttl=-9.0)
            await scene.end(await scene.take("b"), result=b"42")
            assert await scene.look("b") is None
            assert (await scene.show("b", waiting=True)).result == b"42"
            await scene.submit("c", deadline_in=-9.0)
            assert await scene.state("c") is JobState.FAILED
            assert await scene.claimed_ids() == []
            await scene.sweep()
            await scene.settled_store()

    async def test_the_longest_ids_and_long_names_go_through_a_life(self) -> None:
        """1,024 bytes of id in four-byte characters, and names of three-byte ones."""
        async with self.scene() as scene:
            assert len(_LONGEST.encode()) == 1_024
            await scene.submit(
                _LONGEST,
                queue=_LONG,
                task=_LONG,
                lane=_LONG,
                batch=_LONG,
                origin=_LONG,
                unique=UniqueKey(UniqueMode.UNTIL_FINISHED, _LONG),
                max_attempts=5,
            )
            # One that differs in its last character is another.
            await scene.submit(_LONGEST[:-1] + "\U0001f601", queue=_LONG)
            lease = await scene.take(_LONGEST, queues=(_LONG,), worker=_LONG, peer=_LONG)
            assert (lease.task, lease.lane, lease.batch) == (_LONG, _LONG, _LONG)
            await scene.end(lease, Outcome.RETRY, error=AttemptRecord(attempt=0, code=_LONG))
            await scene.end(await scene.take(_LONGEST, queues=(_LONG,)), result=b"1")
            job = await scene.show(_LONGEST, _LONG)
            assert (job.result, job.history[0].code) == (b"1", _LONG)
            assert await scene.batch(_LONG) == {"succeeded": 1}
            change = RegisterChange(key=_LONG, expect=0, value=b"v")
            assert (await scene.storage.swap([change])).done
            assert [register.key for register in await scene.storage.scan(_LONG[:9])] == [_LONG]

    async def test_ten_thousand_jobs_in_one_call(self) -> None:
        """Are stored, claimed, renewed and settled together, each answered in its place."""
        async with self.scene() as scene:
            ids = [f"{number:05}" for number in range(10_000)]
            replies = await scene.submit(*ids, batch="x")
            assert [reply.id for reply in replies] == ids
            sequences = [reply.sequence for reply in replies]
            assert sequences == sorted(set(sequences))
            leases = await scene.claim(10_000)
            assert [lease.id for lease in leases] == ids
            assert set(await scene.renew(*leases)) == {"ok"}
            found = await scene.storage.get(scene.refs(*ids))
            assert {None if job is None else job.state for job in found} == {JobState.RUNNING}
            ended, _ = await scene.storage.settle([scene.settlement(lease) for lease in leases])
            assert {reply.state for reply in ended} == {JobState.SUCCEEDED}
            assert await scene.batch("x") == {"succeeded": 10_000}
            purged = await scene.storage.edit(Retain(scene.refs(*ids), 0.0))
            assert len(purged) == 10_000
            await scene.settled_store()

    async def test_fifty_bodies_of_a_mebibyte_in_one_call(self) -> None:
        """Each job has its own."""
        async with self.scene() as scene:
            jobs = [scene.job(str(n), body=bytes([n]) * 2**20) for n in range(50)]
            await scene.send(*jobs)
            for lease in await scene.claim(50):
                assert lease.body == bytes([int(lease.id)]) * 2**20
                await scene.end(lease, result=lease.body[:9])
            for n in range(50):
                assert (await scene.show(str(n))).result == bytes([n]) * 9

    async def test_restoring_what_can_not_be_kept_is_refused(self) -> None:
        """With everything else of the call."""
        async with self.scene() as scene:
            await scene.submit("a")
            model = msgspec.structs.replace(await scene.show("a", body=True), sequence=0)
            before = await snapshot(scene)
            wrong: list[dict[str, Any]] = [{"ready_at": value} for value in _NO_TIMES]
            wrong += [{"token": value} for value in _TOO_MUCH]
            # What is granted later counts on from there.
            counts = ("sequence", "token", "attempt", "crashes", "generation")
            wrong += [{name: 2**63 - 1} for name in counts]
            wrong += [{"lane": text} for text in _SURROGATES]
            for fields in wrong:
                jobs = [
                    msgspec.structs.replace(model, id="b"),
                    msgspec.structs.replace(model, id="c", **fields),
                ]
                await _is_refused(scene.storage.restore(jobs), f"a job with {fields}")
            assert await snapshot(scene) == before
            await check_books(scene)


__all__ = ["Hostile"]
