"""What work costs: round trips a job, and commands a call however much is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from plugq.protocols import ClaimRequest, Configure, NewJob, QueueSettings, SweepRequest
from plugq_redis import RedisStorage

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
NewJobs = Callable[..., NewJob]
Claim = Callable[..., ClaimRequest]


class Meter:
    """Counts the commands that a server runs, those of scripts as well."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def reset(self) -> None:
        self._server.command("CONFIG", "RESETSTAT")

    def calls(self) -> dict[str, int]:
        stats = self._server.client().info("commandstats")
        return {
            name.removeprefix("cmdstat_"): numbers["calls"]
            for name, numbers in stats.items()
            if not name.startswith(("cmdstat_config", "cmdstat_info", "cmdstat_client"))
        }

    async def of(self, call: Any) -> int:
        """Return how many commands a call runs."""
        self.reset()
        await call
        return sum(self.calls().values())


async def test_a_job_costs_a_few_hundredths_of_a_round_trip(
    start_server: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """Submit, claim and settle of 100 jobs are three calls, or two where a settle claims."""
    server = start_server()
    meter = Meter(server)
    async with open_store(server.url) as storage:
        meter.reset()
        for _ in range(5):
            await storage.submit([new_job() for _ in range(100)])
        leases = (await storage.claim(claim(100))).leases
        for _ in range(5):
            assert len(leases) == 100
            _, reply = await storage.settle(succeed(leases), claim(100))
            assert reply is not None
            leases = reply.leases
        calls = meter.calls()
        assert calls["evalsha"] == 11


async def test_calls_cost_the_same_however_much_is_stored(
    start_server: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """Finished, delayed and blocked jobs are not looked at; told by commands, not by time."""
    server = start_server()
    meter = Meter(server)

    async def costs(storage: RedisStorage) -> dict[str, int]:
        jobs = [new_job(priority=9) for _ in range(20)]
        found = {"submit": await meter.of(storage.submit(jobs))}
        request = claim(20)
        found["claim"] = await meter.of(storage.claim(request))
        leases = (await storage.claim(request)).leases
        assert len(leases) == 20
        found["settle"] = await meter.of(storage.settle(succeed(leases)))
        found["sweep"] = await meter.of(storage.sweep(SweepRequest()))
        found["stats"] = await meter.of(storage.stats())
        return found

    async with open_store(server.url) as storage:
        await storage.submit([new_job(), new_job(lane="busy"), new_job(delay=3600.0)])
        await costs(storage)
        empty = await costs(storage)
        for _ in range(5):
            await storage.submit([new_job(priority=9) for _ in range(400)])
            await storage.settle(succeed((await storage.claim(claim(400))).leases))
            await storage.submit([new_job(delay=3600.0) for _ in range(400)])
            await storage.submit([new_job(lane="busy") for _ in range(400)])
            await storage.submit([new_job() for _ in range(400)])
        # The first call after a sweep tells the next one to come.
        await storage.sweep(SweepRequest())
        assert await costs(storage) == empty


async def test_a_claim_that_finds_nothing_costs_next_to_nothing(
    start_server: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    """A handful of commands in one round trip."""
    server = start_server()
    meter = Meter(server)
    async with open_store(server.url) as storage:
        await storage.submit([new_job(delay=3600.0)])
        assert await meter.of(storage.claim(claim(10, peer="p"))) < 25


async def test_calls_of_many_tasks_go_out_together(
    start_server: Any, open_store: OpenStore, new_job: NewJobs
) -> None:
    """A thousand at once are answered one by one, over one connection."""
    server = start_server()
    async with open_store(server.url) as storage:
        before = server.client().info("clients")["connected_clients"]
        replies = await asyncio.gather(*(storage.submit([new_job()]) for _ in range(1_000)))
        assert len({reply.sequence for (reply,) in replies}) == 1_000
        assert server.client().info("clients")["connected_clients"] == before


async def test_a_sweep_looks_only_at_queues_where_something_is_due(
    start_server: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """Those that hold jobs for later, for ever, or none any more, cost nothing."""
    server = start_server()
    meter = Meter(server)

    async def settled(storage: RedisStorage) -> int:
        for _ in range(2):
            await storage.sweep(SweepRequest())
        return await meter.of(storage.sweep(SweepRequest()))

    async with open_store(server.url) as storage:
        alone = await settled(storage)
        queues = [f"q{number}" for number in range(200)]
        await storage.submit([new_job(queue=queue, result_ttl=None) for queue in queues])
        leases = (await storage.claim(claim(200, queues=tuple(queues)))).leases
        assert len(leases) == 200
        await storage.settle(succeed(leases))
        await storage.submit([new_job(queue=queue, delay=3600.0) for queue in queues])
        await storage.submit([new_job(queue=f"{queue}-ready") for queue in queues])
        assert await settled(storage) == alone
        await storage.submit([new_job(queue="q0", delay=0.001)])
        await asyncio.sleep(0.002)
        assert [change.queue for change in (await storage.sweep(SweepRequest())).changes] == ["q0"]


async def test_passing_over_overdue_heads_of_lanes_reads_each_place_once_or_twice(
    start_server: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim
) -> None:
    """And not for each of them as many as the claim asks for."""
    server = start_server()
    async with open_store(server.url) as storage:
        jobs = [new_job(lane=f"l{number}", deadline_in=0.001) for number in range(300)]
        await storage.submit([*jobs, *(new_job() for _ in range(300))])
        await asyncio.sleep(0.002)
        with server.client().monitor() as monitor:
            assert len((await storage.claim(claim(300))).leases) == 300
            server.command("ECHO", "end")
            read = 0
            for command in iter(lambda: monitor.next_command()["command"], "ECHO end"):
                if command.startswith("ZRANGE ") and ":ready " in command:
                    first, last = command.split()[2:4]
                    read += int(last) - int(first) + 1
        assert read <= 4 * 600


async def test_another_lane_max_running_looks_at_some_lanes_at_a_time(
    start_server: Any, open_store: OpenStore, new_job: NewJobs, claim: Claim, succeed: Any
) -> None:
    """The limit holds from the first claim on; sweeps show what may run besides."""
    server = start_server()
    meter = Meter(server)

    async def configured(storage: RedisStorage, most: int) -> int:
        settings = QueueSettings(queue="q", lane_max_running=most)
        return await meter.of(storage.edit(Configure((settings,))))

    async def swept(storage: RedisStorage) -> int:
        costs = [await meter.of(storage.sweep(SweepRequest()))]
        while (await storage.sweep(SweepRequest())).next_in == 0:
            costs.append(await meter.of(storage.sweep(SweepRequest())))
        return max(costs)

    async with open_store(server.url) as storage:
        for _ in range(3):
            jobs = [new_job(lane=f"l{number}") for number in range(6_000)]
            await storage.submit(jobs)
        assert await configured(storage, 2) < 15_000
        assert await swept(storage) < 15_000
        leases = (await storage.claim(claim(100_000))).leases
        assert len(leases) == 12_000
        await storage.settle(succeed(leases))
        await storage.submit([new_job(lane=f"l{number}") for number in range(6_000)])
        # Two jobs of each lane are shown, and only one of them may run now.
        assert await configured(storage, 1) < 15_000
        leases = (await storage.claim(claim(100_000))).leases
        assert len(leases) == len({lease.lane for lease in leases}) == 6_000
        assert await swept(storage) < 15_000
        await storage.settle(succeed(leases))
        assert len((await storage.claim(claim(100_000))).leases) == 6_000
