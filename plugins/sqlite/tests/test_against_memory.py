"""Random histories: SQLite and the memory storage give the same answers to the same calls."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.job import AttemptRecord, JobRef, JobState, Outcome, Progress
from plugq.protocols import (
    Budget,
    Cancel,
    ClaimReply,
    ClaimRequest,
    Configure,
    Drain,
    FindQuery,
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
    RegisterChange,
    Reprioritise,
    Resume,
    Retain,
    Settlement,
    Stats,
    Storage,
    SubmitStatus,
    SweepReply,
    SweepRequest,
    TaskStats,
    UniqueKey,
    UniqueMode,
    Want,
)
from plugq.testing import ManualClock
from plugq_sqlite import SqliteOptions, SqliteStorage

QUEUES = ("a", "b")
LANES = (None, None, "x", "y", "z")
REFUSED = frozenset(
    {SubmitStatus.FULL, SubmitStatus.DRAINING, SubmitStatus.REFUSED, SubmitStatus.LATE}
)
OUTCOMES = (*Outcome, Outcome.SUCCEED, Outcome.RETRY)


def plain(value: Any) -> Any:
    """Return an answer as data, with times rounded and without what may differ."""
    data = msgspec.to_builtins(value, builtin_types=(bytes,))
    return _rounded(data)


def _rounded(data: Any) -> Any:
    if isinstance(data, float):
        return round(data, 3)
    if isinstance(data, dict):
        return {key: _rounded(item) for key, item in data.items() if key != "message"}
    if isinstance(data, list | tuple):
        return [_rounded(item) for item in data]
    return data


def counts(stats: Stats) -> tuple[TaskStats, ...]:
    """Return what was counted of tasks, without what was measured."""
    return tuple(replace(task, run_time=None, rate=0.0) for task in stats.tasks)


def figures(stats: Stats) -> list[float]:
    """Return what was measured of tasks."""
    return [
        figure
        for task in stats.tasks
        for figure in (task.rate, -1.0 if task.run_time is None else task.run_time)
    ]


def moves(reply: SweepReply) -> list[str]:
    """Return the moves of a sweep in an order that does not matter."""
    kept = [change if change.state else replace(change, code="") for change in reply.changes]
    return sorted(repr(plain(change)) for change in kept)


class History:
    """Makes up calls and plays each to both storages."""

    def __init__(
        self, seed: int, clock: ManualClock, storages: list[Storage], limits: tuple[bytes, ...]
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a test has to be repeatable
        self.clock = clock
        self.limits = limits
        self.storages = storages
        self.leases: list[Lease] = []
        self.claims = 0
        self.made = 0
        self.versions: dict[str, int] = {}
        self.wants: dict[str, Want] = {}
        self.spent = 0

    async def both(self, call: Callable[[Storage], Any]) -> Any:
        """Return the answer of both, which have to agree."""
        first, second = [await call(storage) for storage in self.storages]
        assert plain(first) == plain(second)
        return second

    def job(self) -> NewJob:
        pick = self.random
        self.made += 1
        unique = None
        if pick.random() < 0.2:
            unique = UniqueKey(pick.choice(list(UniqueMode)), pick.choice("kl"), 20.0)
        return NewJob(
            queue=pick.choice(QUEUES),
            id=f"id-{pick.randrange(60)}" if pick.random() < 0.5 else f"new-{self.made}",
            task=pick.choice(("t", "u")),
            submission=pick.randbytes(2) if pick.random() < 0.8 else b"same",
            body=pick.randbytes(4),
            priority=pick.choice((0, 0, 0, 5, -5)),
            delay=pick.choice((0.0, 0.0, 0.0, 3.0, 30.0)),
            deadline_in=pick.choice((None, None, None, 2.0, 15.0)),
            max_attempts=pick.randint(1, 3),
            lane=pick.choice(LANES),
            batch=pick.choice((None, "batch", "other")),
            unique=unique,
            result_ttl=pick.choice((0.0, 5.0, 100.0, None)),
            failure_ttl=pick.choice((0.0, 5.0, 100.0, None)),
            id_ttl=pick.choice((0.0, 5.0, 20.0)),
            not_after=pick.choice((None, None, None, self.clock.time() - 1)),
        )

    async def submit(self) -> None:
        jobs = [self.job() for _ in range(self.random.randint(1, 8))]
        first, second = [await storage.submit(jobs) for storage in self.storages]
        for one, other in zip(first, second, strict=True):
            # Which of several reasons a refusal gives is left open.
            if not REFUSED.issuperset({one.status, other.status}):
                assert plain(one) == plain(other)

    async def claim(self) -> None:
        request = self.request()
        self.granted(await self.both(lambda storage: storage.claim(request)))

    def granted(self, reply: ClaimReply) -> None:
        self.leases += reply.leases
        self.wants.update({want.queue: want for want in reply.wants})
        self.spent += len(reply.spent)

    def grant(self, want: Want) -> Grant:
        """Return budgets, now and then late ones or on a state that has changed."""
        pick = self.random
        now = self.clock.time()
        budgets = tuple(
            Budget(
                state.lane,
                state.version,
                tuple(pick.randbytes(2) for _ in range(pick.choice((0, 1, 1, 2, 5)))),
                pick.choice((3.0, 60.0)),
                pick.choice((None, now, now + 2, now + 20)),
            )
            for state in want.states
            if pick.random() < 0.9
        )
        at = now - pick.choice((0.0, 0.0, 0.0, 0.05, 0.2))
        return Grant(queue=want.queue, revision=want.revision, at=at, budgets=budgets)

    async def bargain(self) -> None:
        """Claim again with budgets for what a claim wants, as a broker does."""
        for _ in range(3):
            await self.claim()

    def request(self) -> ClaimRequest:
        self.claims += 1
        return ClaimRequest(
            worker=self.random.choice(("v", "w")),
            number=self.claims,
            queues=self.random.choice((("a",), ("b",), ("a", "b"), ("b", "a", "b"))),
            limit=self.random.randint(0, 6),
            lease=self.random.choice((5.0, 30.0)),
            grants=tuple(self.grant(want) for want in self.wants.values()),
        )

    async def settle(self) -> None:
        self.random.shuffle(self.leases)
        taken, self.leases = self.leases[:4], self.leases[4:]
        settlements = [self.settlement(lease) for lease in taken]
        claim = self.request() if self.random.random() < 0.5 else None
        _, reply = await self.both(lambda storage: storage.settle(settlements, claim))
        if reply is not None:
            self.granted(reply)

    def settlement(self, lease: Lease) -> Settlement:
        pick = self.random
        outcome = pick.choice(OUTCOMES)
        wrong = outcome is not Outcome.SUCCEED
        return Settlement(
            queue=lease.queue,
            id=lease.id,
            token=lease.token,
            outcome=outcome,
            result=None if wrong else pick.randbytes(3),
            delay=pick.choice((0.0, 2.0)),
            code=pick.choice(("", "unknown_task", "mine")),
            error=AttemptRecord(attempt=lease.attempt, code="error") if wrong else None,
            progress=pick.choice((None, Progress(current=1.0))),
        )

    async def renew(self) -> None:
        refs = [
            LeaseRef(lease.queue, lease.id, lease.token, Progress(current=2.0))
            for lease in self.leases[:5]
        ]
        holder = self.random.choice((None, None, Holder("w", self.claims)))
        await self.both(lambda storage: storage.renew(refs, lease=20.0, holder=holder))

    async def sweep(self) -> None:
        request = SweepRequest(end_leases=self.random.random() < 0.8, deadline_grace=3.0)
        first, second = [await storage.sweep(request) for storage in self.storages]
        assert moves(first) == moves(second)
        assert plain(first.next_in) == plain(second.next_in)

    async def edit(self) -> None:
        pick = self.random
        refs = tuple(
            JobRef(pick.choice(QUEUES), f"id-{pick.randrange(60)}")
            for _ in range(pick.randint(1, 6))
        )
        conditions: dict[str, Any] = pick.choice(
            (
                {},
                {},
                {"sequences": tuple(pick.randrange(60) for _ in refs)},
                {"states": tuple(pick.sample(tuple(JobState), 4))},
            )
        )
        change = pick.choice(
            (
                Cancel(refs=refs, **conditions),
                Cancel(refs=refs, **conditions),
                Redrive(refs=refs, **conditions),
                Purge(refs=refs, **conditions),
                Retain(refs=refs, **conditions, ttl=pick.choice((0.0, 10.0, 100.0, None))),
                Retain(refs=refs, **conditions, ttl=pick.choice((0.0, 10.0, 100.0))),
                Reprioritise(refs=refs, **conditions, priority=pick.choice((0, 5, -5, 9))),
                Reprioritise(refs=refs, **conditions, priority=pick.choice((0, 5, -5, 9))),
                Pause(queues=("a",)),
                Drain(queues=("a",)),
                Resume(queues=("a",)),
                Resume(queues=("a",)),
                Resume(queues=("a",)),
                Configure(settings=(self.settings(pick.choice(QUEUES)),)),
            )
        )
        await self.both(lambda storage: storage.edit(change))

    def settings(self, queue: str) -> QueueSettings:
        pick = self.random
        return QueueSettings(
            queue=queue,
            max_running=pick.choice((None, None, 3)),
            lane_max_running=pick.randint(1, 3),
            max_length=pick.choice((None, None, 40)),
            limits=pick.choice(self.limits),
            lane_limits=pick.choice(self.limits),
        )

    async def configure(self) -> None:
        settings = tuple(self.settings(queue) for queue in QUEUES)
        await self.both(lambda storage: storage.edit(Configure(settings=settings)))

    async def look(self) -> None:
        pick = self.random
        refs = [JobRef(queue, f"id-{number}") for queue in QUEUES for number in range(60)]
        waiting = pick.random() < 0.5
        await self.both(lambda storage: storage.get(refs, body=True, waiting=waiting))
        query = FindQuery(
            queue=pick.choice((None, "a")),
            task=pick.choice((None, "t")),
            batch=pick.choice((None, "batch")),
            limit=1_000,
        )
        await self.both(lambda storage: storage.find(query))
        first, second = [await storage.stats() for storage in self.storages]
        assert figures(first) == pytest.approx(figures(second))
        first, second = [replace(stats, tasks=counts(stats)) for stats in (first, second)]
        if any(self.limits):
            # Which jobs past their deadline a walk meets differs, and those do not count as ready.
            first, second = [
                replace(stats, queues=tuple(replace(one, oldest=None) for one in stats.queues))
                for stats in (first, second)
            ]
        assert plain(first) == plain(second)
        names = ["batch", "other", "unknown"]
        await self.both(lambda storage: storage.batches(names))
        for stats in second.tasks:
            accepted, removed = stats.totals["accepted"], stats.totals["removed"]
            assert accepted == sum(stats.counts.values()) + removed

    async def swap(self) -> None:
        key = self.random.choice("xyz")
        expect = self.versions.get(key, 0) if self.random.random() < 0.7 else 7
        value = self.random.choice((None, b"v"))
        change = RegisterChange(key=key, expect=expect, value=value, ttl=10.0)
        reply = await self.both(lambda storage: storage.swap([change]))
        [register] = reply.registers
        self.versions[key] = 0 if register is None else register.version
        await self.both(lambda storage: storage.scan(""))

    async def advance(self) -> None:
        self.clock.advance(self.random.choice((0.25, 1.0, 4.0, 12.0)))


@pytest.mark.parametrize(
    ("seed", "limits"),
    [
        *((seed, (b"",)) for seed in range(6)),
        *((seed, (b"", b"l", b"m", b"m")) for seed in range(6, 14)),
    ],
)
async def test_a_random_history_has_the_same_answers(
    seed: int, limits: tuple[bytes, ...], tmp_path: Path
) -> None:
    clock = ManualClock()
    context = PluginContext(base_dir=tmp_path, clock=clock)
    memory = MemoryStorage(MemoryOptions(), context)
    sqlite = SqliteStorage(SqliteOptions(path="jobs.db", synchronous="normal"), context)
    async with AsyncExitStack() as stack:
        for storage in (memory, sqlite):
            await storage.start()
            stack.push_async_callback(storage.stop)
        history = History(seed, clock, [memory, sqlite], limits)
        await history.configure()
        steps = [
            *[history.submit] * 4,
            *[history.claim] * 3,
            *[history.bargain] * (3 * any(limits)),
            *[history.settle] * 5,
            *[history.advance] * 3,
            history.renew,
            history.sweep,
            history.edit,
            history.edit,
            history.look,
            history.swap,
        ]
        for _ in range(400):
            await history.random.choice(steps)()
        await history.look()
        assert bool(history.spent) == bool(any(limits))
