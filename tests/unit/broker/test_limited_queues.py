"""Limited queues: whole workers in simulated time, over one store, with all calls counted.

Engines, brokers and the memory storage are the real ones. The event loop's clock jumps to the
next timer instead of waiting, and each call to the store takes as long as the test says.
"""

from __future__ import annotations

import asyncio
import math
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Self

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plugq.broker import LocalBroker
from plugq.broker.budgets import Budgets
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.config import load_config
from plugq.envelope import Envelope, pack
from plugq.errors import ConfigError, OutcomeUnknown, Unavailable
from plugq.limiters import Chain, unpack_limits
from plugq.protocols.budgets import GRANT_AGE
from plugq.protocols.edits import Configure
from plugq.protocols.limiter import Limiter
from plugq.protocols.plugin import PluginContext
from plugq.protocols.storage import ClaimReply, ClaimRequest, Lease, NewJob, Settlement
from plugq.registry import Registry
from plugq.retry import RetryTerms
from plugq.worker import Engine, EngineSettings, Runner
from plugq.worker.runner import Attempt

BODY = pack(Envelope("application/json", b"[[], {}]", RetryTerms()))
START = 1_700_000_000.0
#: What a test may cost beyond what its admissions cost: starting, stopping, the first round.
CONSTANT = 12


class _Selector(selectors.DefaultSelector):
    """Does not wait; tells how long it was to."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everything waits for something that nothing will bring"
        found = super().select(0)
        if not found and timeout > 0:
            self._loop.now += timeout
        return found


class Loop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while nothing can run, and then at once."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class LoopClock:
    """The time of that loop; the machine's clock may be off by so much, and drift."""

    def __init__(self, drift: float = 0.0) -> None:
        self.drift = drift
        self.step = 0.0

    def time(self) -> float:
        return START + self.monotonic() * (1 + self.drift) + self.step

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def simulate(work: Callable[[], Awaitable[None]]) -> None:
    loop = Loop()
    try:
        loop.run_until_complete(asyncio.wait_for(work(), 10_000))
        assert not asyncio.all_tasks(loop)
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class Link:
    """One process's way to the store, which takes a while there and back."""

    def __init__(self, world: World, latency: float) -> None:
        self._world = world
        self._latency = latency
        self.calls: Counter[str] = Counter()
        self.dead = self.lossy = False
        self.capabilities = MemoryStorage.capabilities

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self.calls["claim"] += 1
        await self._travel()
        reply = await self._world.store.claim(request)
        self._world.took(reply.leases)
        self._lose()
        await self._travel()
        return reply

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> Any:
        self.calls["settle"] += 1
        await self._travel()
        replies, claimed = await self._world.store.settle(settlements, claim)
        if claimed is not None:
            self._world.took(claimed.leases)
        self._lose()
        await self._travel()
        return replies, claimed

    def _lose(self) -> None:
        if self.lossy and self._world.random.random() < 0.1:
            raise OutcomeUnknown("the reply was lost")

    async def _travel(self) -> None:
        if self.dead or (self.lossy and self._world.random.random() < 0.05):
            raise Unavailable("this process is dead, or its request was lost")
        await asyncio.sleep(self._latency * self._world.random.uniform(0.5, 1.0))

    async def sweep(self, request: Any) -> Any:
        await self._travel()
        return await self._world.store.sweep(request)

    async def swap(self, changes: Any) -> Any:
        await self._travel()
        return await self._world.store.swap(changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world.store, name)


class Handler:
    """A task that takes so many seconds."""

    name = "t"
    is_async = True

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def bind(self, arguments: Any) -> tuple[Sequence[Any], dict[str, Any]]:
        return (), {}

    async def call(self) -> None:
        await asyncio.sleep(self._seconds)


@dataclass
class World:
    """A store with limited queues, and the processes that work on it."""

    queues: dict[str, Any]
    seed: int = 0
    drift: float = 0.0
    starts: list[Lease] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    engines: list[Engine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - the same in every run
        self.clock = LoopClock(self.drift)
        self.store = MemoryStorage(MemoryOptions(), PluginContext(clock=self.clock))
        self.registry = Registry()
        self.submitted = 0

    async def __aenter__(self) -> Self:
        await self.store.start()
        await self.configure(self.queues)
        return self

    async def __aexit__(self, *_: object) -> None:
        for engine in self.engines:
            await engine.stop()
        await self.store.stop()

    async def configure(self, queues: dict[str, Any]) -> None:
        config = load_config({"queues": queues}, environ={})
        stored = [queue.settings(name) for name, queue in config.queues.items()]
        await self.store.edit(Configure(tuple(stored)))

    def limiter(self, specification: bytes) -> Limiter:
        return Chain(
            [
                self.registry.build("limiter", use, options, PluginContext())
                for use, options in unpack_limits(specification)
            ]
        )

    async def submit(self, queue: str, lane: str | None, count: int, **fields: Any) -> None:
        jobs = []
        for _ in range(count):
            self.submitted += 1
            jobs.append(
                NewJob(
                    queue=queue,
                    id=str(self.submitted),
                    task="t",
                    submission=self.random.randbytes(16),
                    body=BODY,
                    lane=lane,
                    **fields,
                )
            )
        await self.store.submit(jobs)

    async def process(
        self,
        *queues: str,
        slots: int = 8,
        seconds: float = 0.001,
        latency: float = 0.001,
        maintain: bool = False,
        limiter: Callable[[bytes], Limiter] | None = None,
    ) -> Engine:
        link = Link(self, latency)
        self.links.append(link)
        broker = LocalBroker(
            link,  # type: ignore[arg-type]
            self.clock,
            maintain=maintain,
            limiters=limiter or self.limiter,
        )
        serde = self.registry.build("serde", "json", {}, PluginContext())

        def finished(attempt: Attempt, settlement: Settlement | None) -> None:
            engine.finished(attempt, settlement)

        runner = Runner(
            {serde.content_type: serde},
            self.clock,
            threads=1,
            result_limit=1000,
            finished=finished,
        )
        terms = EngineSettings(worker=f"w{len(self.links)}", queues=queues, concurrency=slots)
        engine = Engine(broker, runner, {"t": Handler(seconds)}, terms, self.clock)
        runner.start()
        await engine.start()
        self.engines.append(engine)
        return engine

    def took(self, leases: Sequence[Lease]) -> None:
        self.starts += leases

    @property
    def calls(self) -> int:
        return sum(sum(link.calls.values()) for link in self.links)

    def lanes(self) -> dict[str | None, list[float]]:
        """Return the moments of the starts by lane, in order."""
        moments: dict[str | None, list[float]] = {}
        for lease in sorted(self.starts, key=lambda lease: lease.started_at):
            moments.setdefault(lease.lane, []).append(lease.started_at)
        return moments


def crowded(moments: Sequence[float], limit: int, per: float) -> list[float]:
    """Return the starts that are one too many for their window, wherever it begins."""
    return [
        later
        for earlier, later in zip(moments, moments[limit:], strict=False)
        if later - earlier < per
    ]


def overdrawn(moments: Sequence[float], rate: float, burst: int) -> list[float]:
    """Return the starts for which a bucket had no token."""
    return [
        later
        for index, later in enumerate(moments)
        for count, earlier in enumerate(reversed(moments[: index + 1]), 1)
        if count > burst + rate * (later - earlier) + 1e-6
    ]


def rate(limit: int, per: float) -> list[dict[str, Any]]:
    return [{"use": "rate", "limit": limit, "per": per}]


def names(count: int) -> list[str]:
    return [f"lane-{number}" for number in range(count)]


LIMITS: dict[str, tuple[dict[str, Any], Callable[[Sequence[float]], list[float]]]] = {
    "rate": ({"limit": 20, "per": 1.0}, lambda moments: crowded(moments, 20, 1.0)),
    "spaced": ({"limit": 20, "per": 1.0}, lambda moments: crowded(moments, 20, 1.0)),
    "delay": ({"every": 0.05}, lambda moments: crowded(moments, 1, 0.05)),
    "token_bucket": ({"rate": 20, "burst": 4}, lambda moments: overdrawn(moments, 20, 4)),
}


@pytest.mark.parametrize("use", ["rate", "spaced", "token_bucket"])
@pytest.mark.parametrize("idle", [0, 1, 7])
def test_a_backlog_costs_two_calls_a_start_at_most(use: str, idle: int) -> None:
    options, excess = LIMITS[use]

    async def work() -> None:
        async with World({"q": {"lane_limits": [{"use": use, **options}]}}, seed=idle) as world:
            for lane in names(5):
                await world.submit("q", lane, 300)
            for _ in range(idle + 1):
                await world.process("q", maintain=True)
            await asyncio.sleep(5)
            for moments in world.lanes().values():
                assert not excess(moments)
            assert len(world.starts) >= 0.8 * 5 * 20 * 5
            assert world.calls <= 2 * len(world.starts) + CONSTANT * len(world.links)

    simulate(work)


@pytest.mark.parametrize(("seconds", "most"), [(0.001, 2.0), (0.03, 2.0), (0.2, 3.2)])
def test_a_queue_as_a_whole_costs_two_calls_a_start_at_most(seconds: float, most: float) -> None:
    """More where the slots of all processes are hardly enough: each start is handed over then."""
    limits = [{"use": "spaced", "limit": 20, "per": 1}]

    async def work() -> None:
        async with World({"q": {"limits": limits}}) as world:
            await world.submit("q", None, 300)
            for _ in range(4):
                await world.process("q", slots=2, seconds=seconds, maintain=True)
            await asyncio.sleep(5)
            assert not crowded(world.lanes()[None], 20, 1.0)
            assert len(world.starts) >= 0.8 * 20 * 5
            assert world.calls <= most * len(world.starts) + CONSTANT * len(world.links)

    simulate(work)


@given(st.data())
@settings(max_examples=30)
def test_no_window_holds_more_than_its_limit_and_nothing_starves(data: st.DataObject) -> None:
    use = data.draw(st.sampled_from(sorted(LIMITS)))
    options, excess = LIMITS[use]
    whole = data.draw(st.booleans())
    lanes = data.draw(st.integers(1, 6))
    processes = data.draw(st.integers(1, 4))
    latencies = data.draw(st.lists(st.sampled_from([0.0005, 0.002, 0.03]), min_size=4, max_size=4))
    drift = data.draw(st.sampled_from([0.0, 1e-4, -1e-4]))
    seconds = data.draw(st.sampled_from([0.0, 0.005, 0.04]))
    running = data.draw(st.integers(1, 3))
    seed = data.draw(st.integers(0, 1000))

    async def work() -> None:
        limits = [{"use": use, **options}]
        queue: dict[str, Any] = {"lane_limits": limits, "lane_max_running": running}
        if whole:
            queue["limits"] = rate(30, 1.0)
        async with World({"q": queue}, seed=seed, drift=drift) as world:
            for lane in names(lanes):
                await world.submit("q", lane, 120)
            for number in range(processes):
                await world.process(
                    "q", seconds=seconds, latency=latencies[number], maintain=number == 0
                )
            await asyncio.sleep(4)
            for moments in world.lanes().values():
                assert not excess(moments)
            if whole:
                assert not crowded(sorted(x.started_at for x in world.starts), 30, 1.0)
            # A lane starts one job after another, there and back, and no more than its limit.
            trip = 2 * max(latencies[:processes]) + seconds
            each = 4 / max(1 / 20 + GRANT_AGE * (use == "delay"), 2 * trip / running)
            expected = min(each * lanes, 4 * 30 if whole else math.inf)
            assert len(world.starts) >= 0.6 * expected
            # Two where nobody comes in between, and three where brokers far away take turns. Where
            # the way there and back is what bounds the lane, each of its starts changes hands.
            most = 3 if 2 * trip / running <= 1 / 20 else 5
            assert world.calls <= most * len(world.starts) + CONSTANT * len(world.links)

    simulate(work)


def test_a_process_without_a_free_slot_leaves_what_it_parked_to_others() -> None:
    async def work() -> None:
        async with World({"q": {"lane_limits": rate(1, 1.0), "lane_max_running": 9}}) as world:
            await world.process("q", slots=1, seconds=100)
            await world.submit("q", "a", 3)
            await asyncio.sleep(0.01)
            assert len(world.starts) == 1
            await world.process("q", slots=4)
            await asyncio.sleep(2.5)
            first, second, third = world.lanes()["a"]
            assert 1.0 <= second - first < 1.2
            assert 1.0 <= third - second < 1.2

    simulate(work)


def test_what_a_dead_process_parked_is_let_in_by_a_sweep() -> None:
    async def work() -> None:
        async with World({"q": {"limits": rate(1, 1.0)}}) as world:
            await world.process("q", maintain=True)
            await world.process("q", maintain=True, latency=0.0)
            await world.submit("q", None, 10)
            await asyncio.sleep(0.01)
            (link,) = [link for link in world.links if link.calls["settle"]]
            link.dead = True
            await asyncio.sleep(8)
            link.dead = False
            moments = world.lanes()[None]
            # A takeover of the sweep, should it be needed, takes three seconds.
            assert len(moments) >= 4
            assert all(later - earlier < 1.3 for earlier, later in pairwise(moments[1:]))

    simulate(work)


@pytest.mark.parametrize("seed", range(5))
def test_lost_replies_exceed_no_limit_and_lose_no_job(seed: int) -> None:
    async def work() -> None:
        queue = {"limits": rate(60, 1.0), "lane_limits": rate(20, 1.0)}
        async with World({"q": queue}, seed=seed) as world:
            for lane in names(4):
                await world.submit("q", lane, 50)
            for _ in range(3):
                await world.process("q", maintain=True)
                world.links[-1].lossy = True
            await asyncio.sleep(20)
            for link in world.links:
                link.lossy = False
            await asyncio.sleep(60)
            # A claim that is asked again shows leases that it was granted before.
            started = {(lease.id, lease.attempt): lease for lease in world.starts}
            moments = sorted(lease.started_at for lease in started.values())
            assert not crowded(moments, 60, 1.0)
            for lane in names(4):
                assert not crowded(
                    sorted(x.started_at for x in started.values() if x.lane == lane), 20, 1.0
                )
            (stats,) = (await world.store.stats()).tasks
            assert stats.counts["succeeded"] == 200

    simulate(work)


def test_jobs_start_in_order_and_other_queues_and_lanes_go_on() -> None:
    queues = {"q": {"limits": rate(2, 1.0)}, "lanes": {"lane_limits": rate(1, 60)}, "free": {}}

    async def work() -> None:
        async with World(queues) as world:
            await world.submit("q", None, 5)
            await world.submit("q", None, 3, priority=5)
            await world.submit("lanes", "full", 40)
            await world.submit("lanes", "other", 1)
            await world.submit("lanes", None, 5)
            await world.submit("free", None, 100)
            await world.process("q", "lanes", "free", slots=4)
            await asyncio.sleep(6)
            order = [int(lease.id) for lease in world.starts if lease.queue == "q"]
            assert order == [6, 7, 8, 1, 2, 3, 4, 5]
            started = Counter((lease.queue, lease.lane) for lease in world.starts)
            assert started["free", None] == 100
            assert started["lanes", "full"] == started["lanes", "other"] == 1
            assert started["lanes", None] == 5
            assert all(x.started_at < START + 0.5 for x in world.starts if x.queue != "q")

    simulate(work)


def test_limits_that_change_hold_at_once_for_every_process() -> None:
    async def work() -> None:
        async with World({"q": {"limits": rate(50, 1.0)}}) as world:
            await world.submit("q", None, 1000)
            for _ in range(3):
                await world.process("q", maintain=True)
            for limit in (5, 40, 10):
                await world.configure({"q": {"limits": rate(limit, 1.0)}})
                since = len(world.starts)
                await asyncio.sleep(4)
                moments = sorted(lease.started_at for lease in world.starts[since:])
                assert not crowded(moments, limit, 1.0)
                assert len(moments) >= 0.8 * limit * 3
            await world.configure({"q": {}})
            await asyncio.sleep(1)
            assert len(world.starts) == 1000

    simulate(work)


def test_limits_that_can_not_be_read_here_are_left_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def unreadable(_: bytes) -> Limiter:
        raise ConfigError("no limiter plugin is named 'rate'")

    async def work() -> None:
        async with World({"q": {"limits": rate(5, 1.0)}}) as world:
            engine = await world.process("q", "free", limiter=unreadable)
            await world.submit("q", None, 30)
            await asyncio.sleep(5)
            assert not world.starts
            state = engine._broker.state()["limits"]
            assert state == {
                "limited": [],
                "unusable": {"q": "ConfigError: no limiter plugin is named 'rate'"},
            }
            assert world.links[0].calls["claim"] < 10
            await world.process("q", maintain=True)
            await asyncio.sleep(3)
            assert len(world.starts) >= 15

    with caplog.at_level("ERROR"):
        simulate(work)
    (line,) = caplog.messages
    assert line == (
        "queue 'q' gets no jobs from here, its limits can not be used: "
        "no limiter plugin is named 'rate'"
    )


def test_a_clock_that_is_set_back_or_ahead_costs_a_moment() -> None:
    async def work() -> None:
        async with World({"q": {"limits": rate(10, 1.0)}}) as world:
            await world.submit("q", None, 200)
            await world.process("q", maintain=True)
            await asyncio.sleep(2)
            for step in (300.0, 300.2):
                world.clock.step = step
                since = len(world.starts)
                await asyncio.sleep(4)
                assert len(world.starts) - since >= 0.8 * 4 * 9
            assert not crowded(sorted(x.started_at for x in world.starts), 10, 1.0)

    simulate(work)


class OldStates(Budgets):
    """Goes on from the state before the last claim, by the version of the present one."""

    def learn(self, request: ClaimRequest, reply: ClaimReply, sent: float, now: float) -> bool:
        spent = []
        for use in reply.spent:
            queue, lane = self._queues[use.queue], use.state.lane
            known = queue._whole if lane is None else queue._lanes[lane]
            assert known is not None
            state = msgspec.structs.replace(use.state, state=known.state)
            spent.append(msgspec.structs.replace(use, state=state))
        reply = msgspec.structs.replace(reply, spent=tuple(spent))
        return super().learn(request, reply, sent, now)


class OldRevision(Budgets):
    """Keeps the limiters that it made first, under the revision of the present ones."""

    def _enter(self, want: Any, now: float) -> None:
        if (known := self._queues.get(want.queue)) is not None:
            known.revision = want.revision
        super()._enter(want, now)


class FromTheFuture(Budgets):
    """Steps its limiters ahead of time and says that it did so now."""

    def prepare(self, request: ClaimRequest, now: float) -> ClaimRequest:
        ahead = super().prepare(request, now + 0.5)
        grants = [msgspec.structs.replace(grant, at=grant.at - 0.5) for grant in ahead.grants]
        return msgspec.structs.replace(ahead, grants=tuple(grants))


class FromTheFutureAsItIs(Budgets):
    """Grants what will only be there in a while, and says so."""

    def prepare(self, request: ClaimRequest, now: float) -> ClaimRequest:
        return super().prepare(request, now + 0.5)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (OldStates, lambda: test_a_backlog_costs_two_calls_a_start_at_most("rate", 0)),
        (OldRevision, test_limits_that_change_hold_at_once_for_every_process),
        (FromTheFuture, lambda: test_a_backlog_costs_two_calls_a_start_at_most("spaced", 0)),
        (FromTheFutureAsItIs, lambda: test_a_backlog_costs_two_calls_a_start_at_most("rate", 0)),
    ],
)
def test_a_broken_broker_is_caught(
    broken: type[Budgets], test: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugq.broker.local.Budgets", broken)
    with pytest.raises(AssertionError):
        test()
