"""Any id, name and bytes, and work in proportion to what is asked for."""

from __future__ import annotations

from plugq.job import JobState, Outcome
from plugq.protocols.edits import Cancel
from plugq.protocols.storage import FindQuery
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.levels import Level

_IDS = (
    "a:b",
    "../x",
    "/etc/passwd",
    "x:exp",
    "\n",
    "\x00",
    "a\x00b",
    " ",
    "'; drop table job; --",
    "%s{0}$1?",
    "*",
    "\U0001f600",
    "e\u0301",
    "\u00e9",
    "\u202e",
    "A" * 1_024,
    "\u00e9" * 512,
)


class Payloads(Contract):
    """Any id, any name, any bytes."""

    async def _live(self, scene: Scene, id: str, name: str) -> None:
        fields = {"queue": name, "task": name, "lane": name, "batch": name}
        await scene.submit(id, body=id.encode(), **fields)
        lease = await scene.take(id, queues=(name,), worker=name, peer=name)
        assert (lease.queue, lease.task, lease.lane, lease.batch) == (name, name, name, name)
        assert lease.body == id.encode()
        assert (await scene.show(id, name)).worker == name
        await scene.end(lease, result=id.encode())
        assert (await scene.show(id, name)).result == id.encode()

    async def test_any_text_is_an_id(self) -> None:
        """Each is itself and no other, through the whole life of a job."""
        async with self.scene() as scene:
            await scene.submit(*_IDS)
            assert await scene.claimed_ids(0) == []
            leases = await scene.claim(len(_IDS))
            assert [lease.id for lease in leases] == list(_IDS)
            for lease in leases:
                assert await scene.end(lease, result=lease.id.encode()) is JobState.SUCCEEDED
            for id in _IDS:
                assert (await scene.show(id)).result == id.encode()
            found = (await scene.storage.find(FindQuery())).jobs
            assert [job.id for job in found] == list(_IDS)[::-1]
            for id in _IDS:
                await scene.purge(id)
                assert await scene.look(id) is None

    async def test_any_text_is_a_name(self) -> None:
        """Of a queue, a task, a lane, a batch, a worker and a peer."""
        async with self.scene() as scene:
            for name in _IDS:
                await self._live(scene, "a", name)
            tasks = (await scene.storage.stats()).tasks
            assert sorted(stats.task for stats in tasks) == sorted(_IDS)
            found = (await scene.storage.find(FindQuery(batch="*"))).jobs
            assert [job.batch for job in found] == ["*"]

    async def test_queue_and_id_are_not_run_together(self) -> None:
        """Whatever separates them inside."""
        async with self.scene() as scene:
            pairs = [("a", "b:c"), ("a:b", "c"), ("a", "b\x00c"), ("a\x00b", "c"), ("a:b:c", ":")]
            for queue, id in pairs:
                await scene.submit(id, queue=queue, body=f"{queue}|{id}".encode())
            for queue, id in pairs:
                job = await scene.show(id, queue, body=True)
                assert job.body == f"{queue}|{id}".encode()

    async def test_bodies_and_results_are_any_bytes(self) -> None:
        """Empty, binary, a mebibyte."""
        async with self.scene() as scene:
            for number, data in enumerate((b"", bytes(range(256)) * 8, b"\x00", b"\xff" * 2**20)):
                id = str(number)
                await scene.submit(id, body=data, submission=data[:32])
                lease = await scene.take(id)
                assert lease.body == data
                await scene.end(lease, result=data)
                job = await scene.show(id, body=True)
                assert (job.body, job.result) == (data, data)

    async def test_what_a_caller_gets_is_its_own(self) -> None:
        """Changing it, or what was handed in, changes nothing in the store."""
        async with self.scene() as scene:
            jobs = [scene.job("a")]
            await scene.storage.submit(jobs)
            jobs.clear()
            first = await scene.show("a")
            await scene.take("a")
            assert first.state is JobState.QUEUED
            assert await scene.state("a") is JobState.RUNNING


class Cost(Contract):
    """Work in proportion to what is asked for, told by calls and not by the clock on the wall."""

    level = Level.COST

    async def test_a_claim_is_filled_however_much_has_ended_or_is_yet_to_come(self) -> None:
        """Finished, delayed and blocked jobs stand in nobody's way."""
        async with self.scene() as scene:
            for start in range(0, 3_000, 500):
                await scene.submit(*(f"done-{start + n}" for n in range(500)))
            while leases := await scene.claim(500):
                settlements = [scene.settlement(lease) for lease in leases]
                await scene.storage.settle(settlements)
            await scene.submit(*(f"delayed-{n}" for n in range(1_000)), delay=3600.0)
            await scene.submit(*(f"blocked-{n}" for n in range(1_000)), lane="busy")
            await scene.take("blocked-0")
            await scene.submit(*(f"ready-{n:03}" for n in range(100)))
            assert await scene.claimed_ids(100) == [f"ready-{n:03}" for n in range(100)]

    async def test_the_number_of_calls_to_drain_does_not_grow_with_the_backlog(self) -> None:
        """Each claim is filled as long as there is enough, with lanes and without."""
        async with self.scene() as scene:
            for lanes in (0, 400):
                count = 2_000
                for start in range(0, count, 500):
                    await scene.send(
                        *(
                            scene.job(
                                f"{lanes}-{number}", lane=str(number % lanes) if lanes else None
                            )
                            for number in range(start, start + 500)
                        )
                    )
                calls = 0
                while leases := await scene.claim(100):
                    calls += 1
                    await scene.storage.settle([scene.settlement(lease) for lease in leases])
                assert calls == count // 100

    async def test_a_burst_of_cancelled_jobs_is_passed_over(self) -> None:
        """The first claim after it is filled."""
        async with self.scene() as scene:
            ids = [str(number) for number in range(2_000)]
            await scene.submit(*ids)
            await scene.submit("last")
            for start in range(0, len(ids), 500):
                await scene.storage.edit(Cancel(scene.refs(*ids[start : start + 500])))
            assert await scene.claimed_ids(1) == ["last"]

    async def test_a_retry_storm_keeps_every_job_once(self) -> None:
        """Going round many times leaves nothing behind."""
        async with self.scene() as scene:
            await scene.submit(*(str(number) for number in range(50)), max_attempts=100)
            for _ in range(20):
                leases = await scene.claim(100)
                assert len({lease.id for lease in leases}) == len(leases) == 50
                await scene.storage.settle(
                    [scene.settlement(lease, Outcome.RETRY, delay=1.0) for lease in leases]
                )
                scene.clock.advance(1)
            assert await scene.count(JobState.DELAYED) + await scene.count(JobState.QUEUED) == 50
            assert await scene.total("started") == 1_000


__all__ = ["Cost", "Payloads"]
