"""The books of the memory storage, checked against the jobs themselves after every step."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.builtin.memory_jobs import JobTable
from plugq.builtin.memory_queue import Queue
from plugq.builtin.memory_records import Record
from plugq.job import FINAL, WAITING, JobRef, JobState, Outcome
from plugq.protocols import (
    Budget,
    Cancel,
    ClaimRequest,
    Configure,
    Drain,
    Edit,
    Grant,
    Holder,
    Lease,
    LeaseRef,
    NewJob,
    Pause,
    PluginContext,
    Purge,
    QueueSettings,
    Redrive,
    Reprioritise,
    Resume,
    Retain,
    Settlement,
    SweepRequest,
    UniqueKey,
    UniqueMode,
    Want,
)
from plugq.testing import ManualClock

QUEUES = ("q", "r")
IDS = [str(number) for number in range(25)]


class Life:
    """Random calls on one storage by a few workers, some of whom forget what they hold."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - a life that can be lived again
        self.clock = ManualClock()
        self.storage = MemoryStorage(MemoryOptions(), PluginContext(clock=self.clock))
        self.held: dict[str, list[Lease]] = {"w": [], "x": []}
        self.numbers = itertools.count(1)
        self.tokens = dict.fromkeys(QUEUES, 0)
        self.wants: tuple[Want, ...] = ()

    async def step(self) -> None:
        often = (self.submit, self.claim, self.settle)
        verb = self.random.choice((*often, *often, self.renew, self.sweep, self.edit, self.wait))
        await verb()

    async def submit(self) -> None:
        await self.storage.submit([self.job() for _ in range(self.random.randint(1, 6))])

    def job(self) -> NewJob:
        pick = self.random
        unique = UniqueKey(pick.choice(list(UniqueMode)), pick.choice("kl"), 20.0)
        return NewJob(
            queue=pick.choice(QUEUES),
            id=pick.choice(IDS),
            task=pick.choice("ab"),
            submission=pick.randbytes(2),
            body=b"",
            priority=pick.choice((0, 0, 1)),
            delay=pick.choice((0.0, 0.0, 5.0)),
            deadline_in=pick.choice((None, None, 12.0)),
            max_attempts=pick.randint(1, 4),
            lane=pick.choice((None, "m", "n")),
            batch=pick.choice((None, "x", "y")),
            unique=unique if pick.random() < 0.2 else None,
            result_ttl=pick.choice((0.0, 15.0, None)),
            failure_ttl=pick.choice((0.0, 30.0)),
            id_ttl=pick.choice((0.0, 10.0)),
        )

    async def claim(self) -> None:
        worker = self.random.choice(list(self.held))
        request = ClaimRequest(
            worker=worker,
            number=next(self.numbers),
            queues=tuple(self.random.sample(QUEUES, 2)),
            limit=self.random.randint(0, 5),
            lease=8.0,
            grants=tuple(self.grant(want) for want in self.wants),
        )
        reply = await self.storage.claim(request)
        self.wants = reply.wants
        leases = reply.leases
        again = (await self.storage.claim(request)).leases if leases else ()
        assert again == leases
        for lease in leases:
            assert lease.token > self.tokens[lease.queue]
            self.tokens[lease.queue] = lease.token
            if self.random.random() < 0.9:
                self.held[worker].append(lease)

    def grant(self, want: Want) -> Grant:
        budgets = tuple(
            Budget(
                state.lane,
                state.version,
                (b"s",) * self.random.randint(0, 3),
                20.0,
                self.random.choice((None, self.clock.time() + 4, self.clock.time() + 9)),
            )
            for state in want.states
        )
        now = self.clock.time()
        return Grant(queue=want.queue, revision=want.revision, at=now, budgets=budgets)

    async def settle(self) -> None:
        leases = self.held[self.random.choice(list(self.held))]
        self.random.shuffle(leases)
        settlements = [
            Settlement(
                queue=lease.queue,
                id=lease.id,
                token=lease.token,
                outcome=self.random.choice(list(Outcome)),
                result=b"1",
                delay=self.random.choice((0.0, 3.0)),
            )
            for lease in leases[:3]
        ]
        await self.storage.settle(settlements)
        if self.random.random() < 0.9:
            del leases[:3]

    async def renew(self) -> None:
        worker = self.random.choice(list(self.held))
        refs = [LeaseRef(held.queue, held.id, held.token) for held in self.held[worker]]
        holder = Holder(worker, next(self.numbers)) if self.random.random() < 0.5 else None
        await self.storage.renew(refs, lease=self.random.choice((2.0, 8.0, 16.0)), holder=holder)

    async def sweep(self) -> None:
        await self.storage.sweep(
            SweepRequest(
                limit=self.random.choice((1, 3, 500)),
                end_leases=self.random.random() < 0.8,
                deadline_grace=2.0,
            ),
        )

    async def edit(self) -> None:
        queue = self.random.choice(QUEUES)
        refs = tuple(JobRef(queue, id) for id in self.random.sample(IDS, 4))
        settings = QueueSettings(
            queue=queue,
            max_running=self.random.choice((None, None, 3)),
            lane_max_running=self.random.choice((1, 2)),
            max_length=self.random.choice((None, None, 12)),
            limits=self.random.choice((b"", b"", b"l")),
            lane_limits=self.random.choice((b"", b"l")),
        )
        edits: tuple[Edit, ...] = (
            Cancel(refs),
            Cancel(refs),
            Redrive(refs),
            Purge(refs),
            Retain(refs, self.random.choice((0.0, 20.0))),
            Reprioritise(refs, self.random.choice((-1, 0, 2))),
            Drain((queue,)),
            Pause((queue,)),
            Resume((queue,)),
            Resume(QUEUES),
            Configure((settings,)),
        )
        await self.storage.edit(self.random.choice(edits))

    async def wait(self) -> None:
        self.clock.advance(self.random.choice((0.5, 1.0, 5.0)))
        if self.random.random() < 0.1:
            self.clock.set_back(30)


def check(storage: MemoryStorage) -> None:
    """Compare every counter and index with what the records say."""
    table = storage._jobs
    now = storage._latest
    records = [record for queue in table.queues.values() for record in queue.jobs.values()]
    kept = [record for record in table.by_sequence if record.move]
    assert len(kept) == len(records)
    assert [record.sequence for record in kept] == sorted(record.sequence for record in records)
    for queue in table.queues.values():
        check_queue(queue, now)
    check_batches(table, records)
    running = [record for record in records if record.state is JobState.RUNNING]
    assert all((record.claim is not None) == (record in running) for record in records)
    for record in running:
        assert record.claim is not None
        assert record in record.claim.granted
        assert record.claim.due <= record.lease_until
        assert record.claim.worker.live[record.claim.number] is record.claim
    for record in records:
        assert (record.state in FINAL) == (record.finished_at is not None)


def check_batches(table: JobTable, records: list[Record]) -> None:
    batches = {record.job.batch for record in records} - {None}
    assert set(table.by_batch) == batches
    for name, series in table.by_batch.items():
        mine = [record for record in series if record.move]
        assert mine == sorted(mine, key=lambda one: one.sequence)
        assert {id(record) for record in mine} == {
            id(record) for record in records if record.job.batch == name
        }
        counts = table.batches._batches[name].counts
        stored = Counter(record.state for record in mine)
        assert all(
            counts[state] == stored[state] if state not in FINAL else counts[state] >= stored[state]
            for state in counts
        )


def check_queue(queue: Queue, now: float) -> None:
    records = list(queue.jobs.values())
    states = Counter(record.state for record in records)
    assert queue.waiting == sum(states[state] for state in WAITING)
    assert queue.running == states[JobState.RUNNING]
    for tally in queue.tallies.values():
        mine = Counter(record.state for record in records if record.tally is tally)
        assert {state: count for state, count in tally.counts.items() if count} == mine
        assert tally.totals["accepted"] == sum(mine.values()) + tally.totals["removed"]
    placed = {record for record in records if record.place}
    entries = [entry[4] for entry in queue._entries if entry[4].place == entry[3]]
    assert len(entries) == len(placed) == queue.ready
    assert set(entries) == placed
    ready = set(placed)
    for lane in queue.lanes.values():
        if lane.head is not None:
            limit = 1 if queue.settings is None else queue.settings.lane_max_running
            standing = sorted(entry[:4] for entry in lane.entries if entry[4].move == entry[3])
            moves = {entry[3] for entry in standing[: limit - lane.running]}
            ready |= {record for record in records if record.move in moves}
    assert queue.oldest() == min((record.ready_at for record in ready), default=None)
    check_lanes(queue, [record for record in records if not record.overdue(now)], placed)
    for key, held in queue.keys.items():
        unique = held.holder.job.unique
        assert unique is not None
        assert unique.key == key
        assert held.until is not None or held.holder.state not in FINAL


def check_lanes(queue: Queue, records: list[Record], placed: set[Record]) -> None:
    limit = 1 if queue.settings is None else queue.settings.lane_max_running
    by_lane: dict[str, list[Record]] = {}
    for record in records:
        if record.state is JobState.QUEUED:
            if record.job.lane is None:
                assert record.place
            else:
                by_lane.setdefault(record.job.lane, []).append(record)
    for name, queued in by_lane.items():
        lane = queue.lanes[name]
        shown = [record for record in placed if record.job.lane == name]
        assert len(shown) == (lane.running < limit and lane.parked_until is None)
        if shown and not shown[0].overdue(float("inf")):
            best = min(queued, key=lambda one: (one.order, one.ready_at, one.sequence))
            key = (shown[0].order, shown[0].ready_at, shown[0].sequence)
            assert key <= (best.order, best.ready_at, best.sequence)
    for name, lane in queue.lanes.items():
        running = sum(
            record.state is JobState.RUNNING and record.job.lane == name
            for record in queue.jobs.values()
        )
        assert lane.running == running
    parked = {(lane.parked_until, name) for name, lane in queue.lanes.items() if lane.parked_until}
    assert len(queue._parked) == len(parked)
    assert set(queue._parked) == parked
    assert queue.limited is not None or not (parked or queue.parked_until)


@pytest.mark.parametrize("seed", range(30))
async def test_the_books_agree_with_the_jobs_through_a_random_life(seed: int) -> None:
    life = Life(seed)
    await life.storage.start()
    for _ in range(250):
        await life.step()
        check(life.storage)
    await life.storage.stop()


@pytest.mark.parametrize("seed", range(10))
async def test_after_a_random_life_everything_can_be_brought_to_its_end(seed: int) -> None:
    life = Life(seed)
    await life.storage.start()
    for _ in range(150):
        await life.step()
    unlimited = tuple(QueueSettings(queue=queue) for queue in QUEUES)
    await life.storage.edit(Configure(unlimited))
    await life.storage.edit(Resume(QUEUES))
    for _ in range(200):
        life.clock.advance(10)
        while (await life.storage.sweep(SweepRequest(deadline_grace=0.0))).next_in == 0:
            pass
        request = ClaimRequest(
            worker="last", number=next(life.numbers), queues=QUEUES, limit=100, lease=5.0
        )
        leases = (await life.storage.claim(request)).leases
        await life.storage.settle(
            [
                Settlement(
                    queue=lease.queue,
                    id=lease.id,
                    token=lease.token,
                    outcome=Outcome.SUCCEED,
                    result=b"1",
                )
                for lease in leases
            ]
        )
    check(life.storage)
    left = [
        record for queue in life.storage._jobs.queues.values() for record in queue.jobs.values()
    ]
    assert {record.state for record in left} <= {JobState.SUCCEEDED, JobState.CANCELLED}
    assert all(record.job.result_ttl is None for record in left)
    assert not any(queue.ready or queue.lanes for queue in life.storage._jobs.queues.values())
    assert not life.storage._jobs.budgets._states
    await life.storage.stop()


class Unwalked(list[Any]):
    """What may be added to and taken from, but not walked through."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("somebody walks through all of it")


async def test_jobs_of_two_priorities_are_looked_through_for_the_oldest_once() -> None:
    clock = ManualClock()
    storage = MemoryStorage(MemoryOptions(), PluginContext(clock=clock))
    await storage.start()

    def job(id: str, priority: int = 0) -> NewJob:
        return NewJob(
            queue="q", id=id, task="t", submission=id.encode(), body=b"", priority=priority
        )

    await storage.submit([job(str(number)) for number in range(50)])
    clock.advance(10)
    await storage.submit([job("urgent", 5)])
    assert (await storage.stats()).queues[0].oldest == 10
    queue = storage._jobs.queue("q")
    queue._entries = Unwalked(queue._entries)
    for number in range(1, 40):
        assert (await storage.stats()).queues[0].oldest == 10
        await storage.claim(ClaimRequest(worker="w", number=number, queues=("q",), limit=1))
        await storage.submit([job(f"more-{number}", number % 3)])
    await storage.stop()
