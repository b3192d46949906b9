"""Limited queues: whole workers in simulated time, over one store, with all calls counted.

Engines, brokers and the memory storage are the real ones. The event loop's clock jumps to the
next timer instead of waiting, and each call to the store takes as long as the test says.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from plugq.broker import LocalBroker
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.config import load_config
from plugq.envelope import Envelope, pack
from plugq.limiters import Chain, unpack_limits
from plugq.protocols.edits import Configure
from plugq.protocols.limiter import Limiter
from plugq.protocols.plugin import PluginContext
from plugq.protocols.storage import ClaimReply, ClaimRequest, Lease, NewJob, Settlement
from plugq.registry import Registry
from plugq.retry import RetryTerms
from plugq.worker import Engine, EngineSettings, Runner

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
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


class Link:
    """One process's way to the store, which takes a while there and back."""

    def __init__(self, world: World, latency: float) -> None:
        self._world = world
        self._latency = latency
        self.calls: Counter[str] = Counter()
        self.capabilities = MemoryStorage.capabilities

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        self.calls["claim"] += 1
        await self._travel()
        reply = await self._world.store.claim(request)
        self._world.took(reply.leases)
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
        await self._travel()
        return replies, claimed

    async def _travel(self) -> None:
        await asyncio.sleep(self._latency * self._world.random.uniform(0.5, 1.0))

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
        self.random = random.Random(self.seed)
        self.clock = LoopClock(self.drift)
        self.store = MemoryStorage(MemoryOptions(), PluginContext(clock=self.clock))
        self.registry = Registry()
        self.submitted = 0

    async def __aenter__(self) -> World:
        await self.store.start()
        await self.configure(self.queues)
        return self

    async def __aexit__(self, *_: object) -> None:
        for engine in self.engines:
            await engine.stop()
        await self.store.stop()

    async def configure(self, queues: dict[str, Any]) -> None:
        config = load_config({"queues": queues}, environ={})
        settings = [queue.settings(name) for name, queue in config.queues.items()]
        await self.store.edit(Configure(tuple(settings)))

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
        runner = Runner(
            {serde.content_type: serde},
            self.clock,
            threads=1,
            result_limit=1000,
            finished=lambda attempt, settlement: engine.finished(attempt, settlement),
        )
        settings = EngineSettings(worker=f"w{len(self.links)}", queues=queues, concurrency=slots)
        engine = Engine(broker, runner, {"t": Handler(seconds)}, settings, self.clock)
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
    """Return the starts that are one too many for their window."""
    return [
        later
        for earlier, later in zip(moments, moments[limit:], strict=False)
        if later - earlier < per
    ]


def rate(limit: int, per: float) -> list[dict[str, Any]]:
    return [{"use": "rate", "limit": limit, "per": per}]


def lanes(count: int) -> list[str]:
    return [f"lane-{number}" for number in range(count)]


@pytest.mark.parametrize("use", ["rate", "spaced", "token_bucket"])
@pytest.mark.parametrize("idle", [0, 7])
@pytest.mark.parametrize("seed", range(3))
def test_a_backlog_costs_two_calls_a_start_at_most(use: str, idle: int, seed: int) -> None:
    options: dict[str, Any] = {"limit": 20, "per": 1.0}
    if use == "token_bucket":
        options = {"rate": 20, "burst": 4}
    limits = [{"use": use, **options}]

    async def work() -> None:
        async with World({"q": {"lane_limits": limits}}, seed=seed) as world:
            for lane in lanes(5):
                await world.submit("q", lane, 300)
            await world.process("q", maintain=True)
            for _ in range(idle):
                await world.process("q", maintain=True)
            await asyncio.sleep(5)
            print(
                use,
                idle,
                seed,
                len(world.starts),
                world.calls,
                world.calls / len(world.starts),
                [l.calls for l in world.links],
            )
            for moments in world.lanes().values():
                if use != "token_bucket":
                    assert not crowded(moments, 20, 1.0)
            admitted = 5 * 20 * 5
            assert len(world.starts) >= 0.8 * admitted
            assert world.calls <= 2 * len(world.starts) + CONSTANT * len(world.links)

    simulate(work)
