"""Any id, name and bytes."""

from __future__ import annotations

from plugq.job import JobState
from plugq.protocols.storage import FindQuery
from plugq.testing.contract.scene import Contract, Scene

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


__all__ = ["Payloads"]
