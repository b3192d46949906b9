"""Jobs under many hands at once: what only one may win is won by one, limits hold throughout."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plugq.job import Event, JobState, Outcome
from plugq.protocols.storage import (
    FindQuery,
    Lease,
    Settlement,
    SubmitStatus,
    UniqueKey,
    UniqueMode,
)
from plugq.testing.contract.crew import Crew, Side, at_work, begin, together
from plugq.testing.contract.scene import QUEUE, Contract
from plugq.testing.levels import Level

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from plugq.protocols.storage import NewJob
    from plugq.testing.contract.scene import Scene

#: Queue → its limits, and how many of its jobs, or of those of each lane, may run at once.
_LIMITS: dict[str, tuple[dict[str, int], int]] = {
    "one": ({}, 1),
    "two": ({"lane_max_running": 2}, 2),
    "few": ({"max_running": 3}, 3),
}


async def submit_in_calls(side: Side, name: str, calls: list[list[dict[str, str]]]) -> None:
    """Submit the same as the others do, and tell how each job was answered."""
    async with at_work(side) as scene:
        for call in calls:
            jobs = [_job(scene, name, fields) for fields in call]
            replies = await scene.send(*jobs)
            side.say(
                [
                    (job.id, reply.status, reply.id, reply.sequence)
                    for job, reply in zip(jobs, replies, strict=True)
                ]
            )


def _job(scene: Scene, name: str, fields: dict[str, str]) -> NewJob:
    """Return a job of an ``id``, or of a ``key`` in a ``mode``; the ``submission`` may be given."""
    made: dict[str, object] = {}
    if "key" in fields:
        made["unique"] = UniqueKey(UniqueMode(fields["mode"]), fields["key"], 3600.0)
    if "submission" in fields:
        made["submission"] = fields["submission"].encode()
    return scene.job(fields.get("id", f"{name}-{fields.get('key')}"), body=name.encode(), **made)


async def submit_in_order(side: Side, name: str, count: int) -> None:
    """Submit numbered jobs, some calls of one job and some of several."""
    async with at_work(side) as scene:
        ids = [f"{name}-{number:03}" for number in range(count)]
        while ids:
            size = 1 + len(ids) % 4
            await scene.submit(*ids[:size])
            del ids[:size]


async def claim_all(side: Side, name: str) -> None:
    """Claim and settle until nothing is left, and tell of each lease."""
    async with at_work(side) as scene:
        while leases := await scene.claim(20, worker=name):
            side.say([(lease.id, lease.token, lease.sequence) for lease in leases])
            await _end(scene, leases)


async def run_by_the_ledger(side: Side, name: str, ledger: str, queues: list[str]) -> None:
    """Run jobs until none waits any more, and note on the ledger while they are held.

    A line says that a job is held only after the lease was granted, and that it is not only before
    it is settled; lines are appended whole and in the order of time. So whatever the ledger shows
    as held at once was held at once.
    """
    file = os.open(ledger, os.O_WRONLY | os.O_APPEND)
    try:
        async with at_work(side) as scene:
            while await _waiting(scene, queues):
                leases = await scene.claim(2, worker=name, queues=tuple(queues))
                for lease in leases:
                    os.write(file, f"+ {lease.queue} {lease.lane} {lease.id}\n".encode())
                # Long enough for the others to come meanwhile.
                await asyncio.sleep(0.002)
                for lease in leases:
                    job = await scene.show(lease.id, lease.queue)
                    held = (job.state, job.token, job.worker)
                    assert held == (JobState.RUNNING, lease.token, name)
                for lease in leases:
                    os.write(file, f"- {lease.queue} {lease.lane} {lease.id}\n".encode())
                await _end(scene, leases)
    finally:
        os.close(file)


async def _waiting(scene: Scene, queues: list[str]) -> bool:
    tasks = (await scene.storage.stats()).tasks
    return any(stats.counts.get(JobState.QUEUED) for stats in tasks if stats.queue in queues)


async def _end(scene: Scene, leases: Sequence[Lease]) -> None:
    """Settle leases in one call; all of them must be current."""
    replies, _ = await scene.storage.settle([scene.settlement(lease) for lease in leases])
    assert not any(reply.lost for reply in replies)


async def settle_the_same(side: Side, name: str, leases: list[tuple[str, int]]) -> None:
    """Settle leases that the others settle, too, and tell which it was that counted."""
    async with at_work(side) as scene:
        settlements = [
            Settlement(
                queue=QUEUE, id=id, token=token, outcome=Outcome.SUCCEED, result=name.encode()
            )
            for id, token in leases
        ]
        for start in range(0, len(settlements), 5):
            call = settlements[start : start + 5]
            replies, _ = await scene.storage.settle(call)
            side.say([one.id for one, reply in zip(call, replies, strict=True) if not reply.lost])


async def sweep_until_none_runs(side: Side, **_: str) -> None:
    """Sweep as long as there are leases, and tell which jobs it moved."""
    async with at_work(side) as scene:
        while await scene.count(JobState.RUNNING):
            changes = (await scene.sweep(limit=3)).changes
            side.say([change.id for change in changes if change.event is Event.LAPSE])


def _once(said: Iterable[Iterable[list[str]]], expected: set[str]) -> None:
    """Check that all that everybody told of is what is expected, each told of once."""
    told = Counter(id for each in said for ids in each for id in ids)
    assert {id: count for id, count in told.items() if count > 1} == {}
    assert set(told) == expected


@contextmanager
def _empty_ledger() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = Path(folder, "ledger")
        ledger.touch()
        yield str(ledger)


def _most_at_once(ledger: str) -> dict[str, int]:
    """Return for each queue how many of it, or of a lane where it has lanes, were held at once."""
    held: Counter[tuple[str, str]] = Counter()
    most = dict.fromkeys(_LIMITS, 0)
    for line in Path(ledger).read_text().splitlines():
        sign, queue, lane, _ = line.split()
        held[queue, lane] += 1 if sign == "+" else -1
        most[queue] = max(most[queue], held[queue, lane])
    assert not +held
    return most


class Crowds(Contract):
    """What many do with the same jobs at the same moment."""

    level = Level.CONCURRENCY

    @together
    async def test_an_id_that_all_submit_at_once_is_accepted_once(self, crew: Crew) -> None:
        """The others are duplicates of that job, whose payload is the accepted one's (I8)."""
        ids = [f"{number:03}" for number in range(200)]
        calls = [[{"id": id} for id in ids[start : start + 10]] for start in range(0, 200, 10)]
        said = await crew.work(submit_in_calls, 4, calls=calls)
        winners: dict[str, str] = {}
        sequences: dict[str, set[int]] = {id: set() for id in ids}
        for number, each in enumerate(said):
            for id, status, held, sequence in (answer for call in each for answer in call):
                assert held == id
                sequences[id].add(sequence)
                if status == SubmitStatus.ACCEPTED:
                    assert winners.setdefault(id, f"m{number}") == f"m{number}", id
                else:
                    assert status == SubmitStatus.DUPLICATE
        assert sorted(winners) == ids
        assert {len(found) for found in sequences.values()} == {1}
        for id, name in winners.items():
            assert (await crew.scene.show(id, body=True)).body == name.encode()
        assert await crew.scene.total("accepted") == len(ids)

    @together
    async def test_a_key_that_all_submit_at_once_is_taken_once(self, crew: Crew) -> None:
        """In every mode; the others are told who holds it (I8)."""
        calls = [
            [{"mode": mode, "key": f"{mode}-{number}"} for number in range(start, start + 5)]
            for start in range(0, 30, 5)
            for mode in UniqueMode
        ]
        said = await crew.work(submit_in_calls, 4, calls=calls)
        holders: dict[str, str] = {}
        named: dict[str, set[str]] = {}
        for id, status, held, _ in (answer for each in said for call in each for answer in call):
            key = id.partition("-")[2]
            named.setdefault(key, set()).add(held)
            if status == SubmitStatus.ACCEPTED:
                assert key not in holders
                holders[key] = id
        assert len(holders) == 90
        assert named == {key: {id} for key, id in holders.items()}
        assert await crew.scene.total("accepted") == 90

    @together
    async def test_a_submission_that_all_send_is_stored_once(self, crew: Crew) -> None:
        """Each is told that it was accepted, as one who sends it again is (I15)."""
        calls = [
            [{"id": f"{n}", "submission": f"s-{n}"} for n in range(start, start + 10)]
            for start in range(0, 100, 10)
        ]
        said = await crew.work(submit_in_calls, 4, calls=calls)
        answers = [answer for each in said for call in each for answer in call]
        assert {status for _, status, _, _ in answers} == {SubmitStatus.ACCEPTED}
        assert len({(id, sequence) for id, _, _, sequence in answers}) == 100
        assert await crew.scene.total("accepted") == 100

    @together
    async def test_the_jobs_of_each_come_in_the_order_in_which_it_sent_them(
        self, crew: Crew
    ) -> None:
        """However many others submit meanwhile (I10)."""
        await crew.work(submit_in_order, count=100)
        leases = await crew.scene.claim(500)
        assert len(leases) == 300
        for number in range(3):
            mine = [lease.id for lease in leases if lease.id.startswith(f"m{number}-")]
            assert mine == [f"m{number}-{n:03}" for n in range(100)]
        newest = (await crew.scene.storage.find(FindQuery(limit=500))).jobs
        keys = {job.id: (job.ready_at, job.sequence) for job in newest}
        granted = [keys[lease.id] for lease in leases]
        assert granted == sorted(granted)

    @together
    async def test_each_job_is_granted_once_under_a_rising_token(self, crew: Crew) -> None:
        """No token repeats, and whoever claims again is granted greater ones, in order (I4, I5)."""
        ids = {str(number) for number in range(1_000)}
        await crew.scene.submit(*ids)
        said = await crew.work(claim_all)
        _once(([[id for id, _, _ in call] for call in each] for each in said), ids)
        for each in said:
            tokens = [token for call in each for _, token, _ in call]
            assert tokens == sorted(tokens)
            sequences = [sequence for call in each for _, _, sequence in call]
            assert sequences == sorted(sequences)
        assert len({token for each in said for call in each for _, token, _ in call}) == len(ids)
        assert await crew.scene.count(JobState.SUCCEEDED) == len(ids)
        assert await crew.scene.total("started") == len(ids)

    @together
    async def test_limits_hold_at_every_moment(self, crew: Crew) -> None:
        """Of jobs that run in a lane, of one or of two, and in a whole queue (I9)."""
        scene = crew.scene
        for queue, (limits, _) in _LIMITS.items():
            await scene.configure(queue, **limits)
            lanes = [None] if "max_running" in limits else ["a", "b"]
            for lane in lanes:
                ids = (f"{lane}-{number}" for number in range(60 // len(lanes)))
                await scene.submit(*ids, queue=queue, lane=lane)
        with _empty_ledger() as ledger:
            await crew.work(run_by_the_ledger, ledger=ledger, queues=list(_LIMITS))
            most = _most_at_once(ledger)
        for queue, (_, limit) in _LIMITS.items():
            assert most[queue] <= limit, (queue, most[queue])
            assert await scene.count(JobState.SUCCEEDED, queue) == 60

    @together
    async def test_a_lease_that_all_settle_at_once_is_settled_once(self, crew: Crew) -> None:
        """The result is that of the one who was not told that it had lost it (I4)."""
        scene = crew.scene
        ids = {str(number) for number in range(100)}
        await scene.submit(*ids)
        leases = [(lease.id, lease.token) for lease in await scene.claim(100)]
        said = await crew.work(settle_the_same, leases=leases)
        _once(said, ids)
        for number, each in enumerate(said):
            for id in (id for call in each for id in call):
                assert (await scene.show(id)).result == f"m{number}".encode()
        assert await scene.total("succeeded") == len(ids)

    @together
    async def test_a_lapsed_lease_is_ended_by_one_sweep(self, crew: Crew) -> None:
        """Many sweep at once, and each lapse is told of and counted once."""
        scene = crew.scene
        ids = {str(number) for number in range(60)}
        async with crew.members(sweep_until_none_runs) as mates:
            await scene.submit(*ids, max_attempts=5)
            held: list[Lease] = list(await scene.claim(100, lease=0.05))
            assert len(held) == len(ids)
            await begin(*mates)
            said = [await mate.rest() for mate in mates]
            for mate in mates:
                await mate.ends()
        _once(said, ids)
        assert await scene.total("lease_ended") == len(ids)
        for job in (await scene.storage.find(FindQuery(limit=100))).jobs:
            assert (job.state, job.crashes) == (JobState.QUEUED, 1)


__all__ = ["Crowds"]
