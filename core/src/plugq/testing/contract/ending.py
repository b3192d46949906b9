"""Starting and stopping at any moment: everything is answered, nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plugq.errors import PlugqError
from plugq.events import EventKind, JobEvent
from plugq.job import JobRef
from plugq.protocols.edits import Cancel
from plugq.protocols.storage import FindQuery, LeaseRef, RegisterChange, Resync, SweepRequest
from plugq.testing.contract.interrupted import interrupt
from plugq.testing.contract.scene import Contract
from plugq.testing.contract.snapshot import check_books

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from plugq.testing.contract.scene import Scene

    Verbs = dict[str, Callable[[], Coroutine[Any, Any, object]]]

_DESCRIPTORS = Path("/dev/fd")
_MOST_WAITS = 1_000


def every_verb(scene: Scene) -> Verbs:
    """Return a call of each verb that awaits something."""
    storage = scene.storage
    lease = LeaseRef("q", "nobody", 1)

    async def watch() -> object:
        stream = storage.watch("p")
        try:
            return await anext(stream)
        finally:
            await stream.aclose()

    async def listen() -> object:
        stream = storage.listen()
        try:
            return await anext(stream)
        finally:
            await stream.aclose()

    return {
        "submit": lambda: storage.submit([scene.job(os.urandom(8).hex())]),
        "restore": lambda: storage.restore([]),
        "claim": lambda: storage.claim(scene.request()),
        "settle": lambda: storage.settle([], scene.request()),
        "renew": lambda: storage.renew([lease], lease=30.0),
        "sweep": lambda: storage.sweep(SweepRequest()),
        "get": lambda: storage.get([JobRef("q", "a")], body=True),
        "find": lambda: storage.find(FindQuery()),
        "batches": lambda: storage.batches(["x"]),
        "stats": storage.stats,
        "edit": lambda: storage.edit(Cancel(scene.refs("nobody"))),
        "load": lambda: storage.load(["k"]),
        "swap": lambda: storage.swap([RegisterChange(key="k", expect=-1, value=b"")]),
        "scan": lambda: storage.scan(""),
        "watch": watch,
        "listen": listen,
    }


def left_over() -> dict[str, int]:
    """Count what a process has to give back: tasks, threads and file descriptors."""
    gc.collect()
    descriptors = len(list(_DESCRIPTORS.iterdir())) if _DESCRIPTORS.is_dir() else 0
    return {
        "tasks": len(asyncio.all_tasks()),
        # Those of an event loop's own executor come and go with the loop.
        "threads": sum(not one.name.startswith("asyncio_") for one in threading.enumerate()),
        "file descriptors": descriptors,
    }


class Ending(Contract):
    """Start and stop, once, twice, in the middle of things and cancelled (I15, I17)."""

    def _nothing_is_left(self, before: dict[str, int]) -> None:
        for what, count in left_over().items():
            assert count <= before[what], f"{count - before[what]} {what} were left behind"

    async def _works(self, scene: Scene) -> None:
        id = os.urandom(8).hex()
        await scene.submit(id, queue="works")
        await scene.end(await scene.take(id, queues=("works",)))
        assert isinstance(await every_verb(scene)["watch"](), Resync)

    async def test_a_stopped_storage_has_no_verb_that_works_or_hangs(self) -> None:
        """Each fails with an error of plugq's; watching and listening may just end."""
        async with self.scene() as scene:
            await scene.submit("a", batch="x")
            await scene.storage.stop()
            for name, verb in every_verb(scene).items():
                try:
                    async with asyncio.timeout(self.patience):
                        await verb()
                except PlugqError:
                    continue
                except StopAsyncIteration:
                    if name in {"watch", "listen"}:
                        continue
                message = f"{name} worked after stop"
                raise AssertionError(message)

    async def test_telling_a_stopped_storage_does_nothing(self) -> None:
        """It neither raises nor is it heard later."""
        async with self.scene() as scene:
            await scene.storage.stop()
            scene.storage.tell([JobEvent(kind=EventKind.STARTED, at=1.0, queue="q", id="a")])
            assert scene.storage.listened in {True, False}
            await scene.storage.start()
            await self._works(scene)

    async def test_a_storage_works_again_after_stop_and_start(self) -> None:
        """As often as one likes; each stop ends what watches."""
        async with self.scene() as scene:
            for _ in range(3):
                stream = scene.storage.watch("p")
                assert isinstance(await anext(stream), Resync)
                await scene.storage.stop()
                await scene.storage.stop()
                async with asyncio.timeout(self.patience):
                    try:
                        while True:
                            await anext(stream)
                    except (StopAsyncIteration, PlugqError):
                        await stream.aclose()
                await scene.storage.start()
                await self._works(scene)
            await check_books(scene)

    async def test_starts_and_stops_that_overlap_end_as_the_last_says(self) -> None:
        """Called at once, from several tasks."""
        async with self.scene() as scene:
            storage = scene.storage
            async with asyncio.timeout(self.patience * 10):
                await asyncio.gather(storage.stop(), storage.stop())
                await asyncio.gather(storage.start(), storage.stop())
                await asyncio.gather(storage.stop(), storage.start())
                await asyncio.gather(storage.start(), storage.start())
                await self._works(scene)

    async def test_a_stop_answers_every_call_under_way(self) -> None:
        """With what it did or with an error of plugq's; what was acknowledged is there."""
        async with self.scene() as scene, scene.another() as other:
            for round_ in range(4):
                jobs = [scene.job(f"{round_}-{number}", queue="many") for number in range(20)]
                submissions = [asyncio.create_task(scene.storage.submit([job])) for job in jobs]
                verbs = [asyncio.create_task(verb()) for verb in every_verb(scene).values()]
                for _ in range(round_):
                    await asyncio.sleep(0)
                async with asyncio.timeout(self.patience * 10):
                    await scene.storage.stop()
                    answers = await asyncio.gather(*submissions, *verbs, return_exceptions=True)
                for answer in answers:
                    if isinstance(answer, BaseException):
                        assert isinstance(answer, PlugqError | StopAsyncIteration), answer
                for job, answer in zip(jobs, answers, strict=False):
                    if not isinstance(answer, BaseException):
                        assert await other.look(job.id, "many") is not None, f"{job.id} is lost"
                await scene.storage.start()
            await check_books(scene)

    async def test_one_instance_may_stop_while_another_works(self) -> None:
        """In the middle of its calls."""
        async with self.scene() as scene:
            for round_ in range(3):
                async with scene.another() as other:
                    calls = [
                        asyncio.create_task(scene.submit(f"{round_}-{number}"))
                        for number in range(20)
                    ]
                    await other.submit(f"other-{round_}")
                await asyncio.gather(*calls)
            assert len(await scene.claim(100)) == 63

    async def test_nothing_is_left_after_stop(self) -> None:
        """Neither tasks nor threads nor file descriptors, whoever watched and listened."""
        async with self.scene() as scene:
            # What a library makes once and keeps for the whole process is no leak.
            await self._works(scene)
            await scene.storage.stop()
            before = left_over()
            for _ in range(3):
                await scene.storage.start()
                await self._works(scene)
                watch, listening = scene.storage.watch("p"), scene.storage.listen()
                await anext(watch)
                await anext(listening)
                await scene.storage.stats()
                await scene.storage.stop()
                await watch.aclose()
                await listening.aclose()
            self._nothing_is_left(before)

    async def test_a_cancelled_start_leaves_nothing_behind(self) -> None:
        """In each of its waits; a later stop does its work, and so does a later start."""
        async with self.scene() as scene:
            await self._works(scene)
            await scene.storage.stop()
            before = left_over()
            for answered in (False, True):
                for number in range(1, _MOST_WAITS):
                    async with asyncio.timeout(self.patience * 10):
                        cut = await interrupt(scene.storage.start, number, answered=answered)
                        await scene.storage.stop()
                    self._nothing_is_left(before)
                    if not cut:
                        break
            await scene.storage.start()
            await self._works(scene)

    async def test_a_cancelled_stop_can_be_made_again(self) -> None:
        """In each of its waits; then nothing is left, and a later start works."""
        async with self.scene() as scene:
            await self._works(scene)
            await scene.storage.stop()
            before = left_over()
            for answered in (False, True):
                for number in range(1, _MOST_WAITS):
                    await scene.storage.start()
                    stream = scene.storage.watch("p")
                    await anext(stream)
                    async with asyncio.timeout(self.patience * 10):
                        cut = await interrupt(scene.storage.stop, number, answered=answered)
                        await scene.storage.stop()
                        await stream.aclose()
                    self._nothing_is_left(before)
                    if not cut:
                        break
            await scene.storage.start()
            await self._works(scene)


__all__ = ["Ending", "every_verb"]
