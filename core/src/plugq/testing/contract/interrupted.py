"""Callers that are cancelled, at each of the moments in which a verb waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from plugq.job import JobState, Progress
from plugq.protocols.edits import Cancel, Configure, QueueSettings
from plugq.protocols.storage import (
    FindQuery,
    LeaseRef,
    RegisterChange,
    Resync,
    SubmitReply,
    SubmitStatus,
    SweepRequest,
)
from plugq.testing.contract.scene import QUEUE, Contract
from plugq.testing.contract.snapshot import check_books, snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Generator

    from plugq.testing.contract.scene import Scene

T = TypeVar("T")

#: No verb waits that often.
_MOST_WAITS = 1_000


class Interruption:
    """Runs a call and cancels it in one of its waits, ``number`` counted from 1.

    With ``answered`` the wait has come to its end, so that the answer is there and is lost;
    without it the wait itself is cancelled.
    """

    def __init__(self, call: Awaitable[Any], number: int, *, answered: bool) -> None:
        self._call = call
        self._number = number
        self._answered = answered

    def __await__(self) -> Generator[Any, Any, Any]:
        """Run the call as the task that awaits this one."""
        steps = self._call.__await__()
        waits = 0
        failure: BaseException | None = None
        while True:
            try:
                waited = next(steps) if failure is None else steps.throw(failure)
            except StopIteration as end:
                return end.value
            failure = None
            waits += 1
            now = waits == self._number
            task = asyncio.current_task()
            if now and not self._answered and task is not None:
                task.cancel()
            try:
                yield waited
            except BaseException as error:  # noqa: BLE001 - it is the call that has to see it
                failure = error
            if now and self._answered and failure is None:
                failure = asyncio.CancelledError()


async def interrupt(call: Callable[[], Awaitable[Any]], number: int, *, answered: bool) -> bool:
    """Run a call that is cancelled in that wait; return whether it came so far."""

    async def run() -> None:
        await Interruption(call(), number, answered=answered)

    task = asyncio.create_task(run())
    await asyncio.wait([task])
    if task.cancelled():
        return True
    await task
    return False


class Act(msgspec.Struct):
    """A call, what of it has been done (all or nothing), and whether its answer is right."""

    call: Callable[[], Coroutine[Any, Any, Any]]
    done: Callable[[], Coroutine[Any, Any, Sequence[bool]]]
    right: Callable[[Any], bool] = lambda _: True


async def _submitting(scene: Scene, mark: str) -> Act:
    jobs = [scene.job(f"{mark}-{n}", batch=mark, lane=mark, body=b"x" * 999) for n in range(3)]
    refs = scene.refs(*(job.id for job in jobs))

    async def done() -> Sequence[bool]:
        return [job is not None for job in await scene.storage.get(refs)]

    def right(replies: Sequence[SubmitReply]) -> bool:
        return [reply.status for reply in replies] == [SubmitStatus.ACCEPTED] * 3

    return Act(lambda: scene.storage.submit(jobs), done, right)


async def _restoring(scene: Scene, mark: str) -> Act:
    await scene.submit(mark)
    await scene.cancel(mark)
    model = await scene.show(mark, body=True)
    jobs = [msgspec.structs.replace(model, id=f"{mark}-{n}", sequence=0) for n in range(3)]
    refs = scene.refs(*(job.id for job in jobs))

    async def done() -> Sequence[bool]:
        return [job is not None for job in await scene.storage.get(refs)]

    return Act(lambda: scene.storage.restore(jobs), done)


async def _claiming(scene: Scene, mark: str) -> Act:
    await scene.submit(f"{mark}-0", f"{mark}-1", queue=mark)
    request = scene.request(2, queues=(mark,))
    return Act(
        lambda: scene.storage.claim(request),
        lambda: _are(scene, JobState.RUNNING, mark, f"{mark}-0", f"{mark}-1"),
        lambda reply: len(reply.leases) == 2,
    )


async def _settling(scene: Scene, mark: str) -> Act:
    await scene.submit(f"{mark}-0", f"{mark}-1", queue=mark)
    leases = await scene.claim(2, queues=(mark,))
    settlements = [scene.settlement(lease) for lease in leases]
    return Act(
        lambda: scene.storage.settle(settlements),
        lambda: _are(scene, JobState.SUCCEEDED, mark, f"{mark}-0", f"{mark}-1"),
    )


async def _settling_and_claiming(scene: Scene, mark: str) -> Act:
    await scene.submit(f"{mark}-0", f"{mark}-1", queue=mark)
    settlement = scene.settlement(await scene.take(f"{mark}-0", queues=(mark,)))
    request = scene.request(1, queues=(mark,))
    refs = scene.refs(f"{mark}-0", f"{mark}-1", queue=mark)

    async def done() -> Sequence[bool]:
        found = await scene.storage.get(refs)
        states = [None if job is None else job.state for job in found]
        return [states[0] is JobState.SUCCEEDED, states[1] is JobState.RUNNING]

    return Act(
        lambda: scene.storage.settle([settlement], request),
        done,
        lambda answer: len(answer[1].leases) == 1,
    )


async def _renewing(scene: Scene, mark: str) -> Act:
    await scene.submit(f"{mark}-0", f"{mark}-1", queue=mark)
    leases = await scene.claim(2, queues=(mark,))
    news = Progress(current=5.0)
    named = [LeaseRef(lease.queue, lease.id, lease.token, news) for lease in leases]
    refs = scene.refs(f"{mark}-0", f"{mark}-1", queue=mark)

    async def done() -> Sequence[bool]:
        found = [job for job in await scene.storage.get(refs) if job is not None]
        until = scene.clock.time() + 600
        return [job.lease_until == until for job in found] + [
            job.progress is not None for job in found
        ]

    return Act(lambda: scene.storage.renew(named, lease=600.0), done)


async def _sweeping(scene: Scene, mark: str) -> Act:
    await scene.submit(f"{mark}-0", f"{mark}-1", queue=mark, max_attempts=9)
    await scene.claim(2, queues=(mark,), lease=5.0)
    scene.clock.advance(5)
    return Act(
        lambda: scene.storage.sweep(SweepRequest()),
        lambda: _are(scene, JobState.QUEUED, mark, f"{mark}-0", f"{mark}-1"),
    )


async def _cancelling(scene: Scene, mark: str) -> Act:
    await scene.submit(f"{mark}-0", f"{mark}-1", queue=mark)
    edit = Cancel(scene.refs(f"{mark}-0", f"{mark}-1", queue=mark))
    return Act(
        lambda: scene.storage.edit(edit),
        lambda: _are(scene, JobState.CANCELLED, mark, f"{mark}-0", f"{mark}-1"),
    )


async def _configuring(scene: Scene, mark: str) -> Act:
    queues = [f"{mark}-0", f"{mark}-1"]
    edit = Configure(tuple(QueueSettings(queue=queue, max_running=7) for queue in queues))

    async def done() -> Sequence[bool]:
        limited = [
            stats.queue
            for stats in (await scene.storage.stats()).queues
            if stats.settings is not None and stats.settings.max_running == 7
        ]
        return [queue in limited for queue in queues]

    return Act(lambda: scene.storage.edit(edit), done)


async def _swapping(scene: Scene, mark: str) -> Act:
    keys = [f"{mark}-0", f"{mark}-1"]
    changes = [RegisterChange(key=key, expect=0, value=b"v") for key in keys]

    async def done() -> Sequence[bool]:
        loaded = await scene.storage.load(keys)
        return [register is not None for register in loaded.registers]

    return Act(lambda: scene.storage.swap(changes), done)


async def _are(scene: Scene, state: JobState, queue: str, *ids: str) -> list[bool]:
    found = await scene.storage.get(scene.refs(*ids, queue=queue))
    return [job is not None and job.state is state for job in found]


_WRITES = {
    "submit": _submitting,
    "restore": _restoring,
    "claim": _claiming,
    "settle": _settling,
    "settle with a claim": _settling_and_claiming,
    "renew": _renewing,
    "sweep": _sweeping,
    "edit": _cancelling,
    "configure": _configuring,
    "swap": _swapping,
}


class Interruptions(Contract):
    """A cancelled caller's call happens as a whole or not at all, and harms nobody."""

    async def _interrupted(self, scene: Scene, name: str, *, answered: bool) -> None:
        """Interrupt a verb in its first wait, its second, … until it has no more of them."""
        for number in range(1, _MOST_WAITS):
            mark = f"{name}-{number}-{answered}"
            act = await _WRITES[name](scene, mark)
            neighbours = [scene.job(f"{mark}-{side}", queue="neighbour") for side in "lr"]
            async with asyncio.timeout(self.patience * 10):
                left = asyncio.create_task(self._neighbour(scene, neighbours[0]))
                cut = asyncio.create_task(interrupt(act.call, number, answered=answered))
                right = asyncio.create_task(self._neighbour(scene, neighbours[1]))
                came_so_far, *_ = await asyncio.gather(cut, left, right)
            parts = await act.done()
            assert len(set(parts)) == 1, f"{name}, cancelled in wait {number}, did half: {parts}"
            again = await act.call()
            assert all(await act.done()), f"{name} did not work after it was cancelled"
            assert act.right(again), f"{name}, made again, answered {again}"
            await check_books(scene)
            if not came_so_far:
                return
        message = f"{name} waits without an end"
        raise AssertionError(message)

    async def _neighbour(self, scene: Scene, job: Any) -> None:
        (reply,) = await scene.storage.submit([job])
        assert reply.status is SubmitStatus.ACCEPTED
        assert await scene.look(job.id, job.queue) is not None

    async def test_a_write_that_is_cancelled_while_it_waits_is_whole(self) -> None:
        """Each verb, in each of its waits: all or nothing, and it can be made again."""
        async with self.scene() as scene:
            for name in _WRITES:
                await self._interrupted(scene, name, answered=False)

    async def test_a_write_whose_answer_is_lost_is_whole(self) -> None:
        """Each verb, cancelled as soon as what it waited for is there."""
        async with self.scene() as scene:
            for name in _WRITES:
                await self._interrupted(scene, name, answered=True)

    async def test_a_read_that_is_cancelled_can_be_made_again(self) -> None:
        """With the same answer, in each of its waits; and nothing has changed."""
        async with self.scene() as scene:
            await scene.submit("a", "b", batch="x", body=b"payload")
            await scene.storage.swap([RegisterChange(key="k", expect=0, value=b"v")])
            storage = scene.storage
            reads: dict[str, Callable[[], Awaitable[Any]]] = {
                "get": lambda: storage.get(scene.refs("a", "b"), body=True),
                "find": lambda: storage.find(FindQuery(queue=QUEUE)),
                "stats": storage.stats,
                "batches": lambda: storage.batches(["x"]),
                "load": lambda: storage.load(["k"]),
                "scan": lambda: storage.scan(""),
            }
            before = await snapshot(scene)
            for name, read in reads.items():
                expected = await read()
                for answered in (False, True):
                    number = 1
                    async with asyncio.timeout(self.patience * 10):
                        while await interrupt(read, number, answered=answered):
                            number += 1
                            assert number < _MOST_WAITS, f"{name} waits without an end"
                            assert await read() == expected
            assert await snapshot(scene) == before

    async def test_an_opening_watch_that_is_cancelled_can_be_opened_again(self) -> None:
        """By the same iterator or by another one, and what listens as well."""
        async with self.scene() as scene:
            for answered in (False, True):
                for number in range(1, _MOST_WAITS):
                    watch, listening = scene.storage.watch("p"), scene.storage.listen()
                    cut = [
                        await interrupt(stream.__anext__, number, answered=answered)
                        for stream in (watch, listening)
                    ]
                    async with asyncio.timeout(self.patience):
                        for stream, cancelled in ((watch, cut[0]), (listening, cut[1])):
                            if cancelled:
                                assert isinstance(await anext(stream), Resync)
                            await stream.aclose()
                    async with scene.listen("p") as ear:
                        assert isinstance(ear.heard[0], Resync)
                    if not any(cut):
                        break

    async def test_many_callers_that_are_cancelled_at_once_harm_nobody(self) -> None:
        """Every third of two hundred calls: those of the others are all acknowledged and there."""
        async with self.scene() as scene:
            jobs = [scene.job(str(number), batch="x") for number in range(200)]
            calls = [asyncio.create_task(scene.storage.submit([job])) for job in jobs]
            await asyncio.sleep(0)
            for call in calls[::3]:
                call.cancel()
            answers = await asyncio.gather(*calls, return_exceptions=True)
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, asyncio.CancelledError):
                    (again,) = await scene.storage.submit([job])
                    assert again.status is SubmitStatus.ACCEPTED
                else:
                    assert not isinstance(answer, BaseException), answer
            assert len(await scene.claim(300)) == 200
            assert await scene.batch("x") == {"running": 200}
            await check_books(scene)


__all__ = ["Interruptions", "interrupt"]
