"""What a wait that timed out says: one line, as much as is known, and never late."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.client import reason
from plugq.errors import Unavailable
from plugq.job import AttemptRecord, JobRecord, JobState
from plugq.presence import Live
from plugq.protocols import PluginContext, QueueSettings, QueueStats, Stats, TaskStats

RECORD = JobRecord(
    queue="email",
    id="x",
    task="email.send",
    state=JobState.QUEUED,
    sequence=1,
    submitted_at=1.7e9,
    ready_at=1.7e9,
    max_attempts=4,
)
WORKER = Live(
    kind="worker",
    id="w-1",
    host="h",
    pid=1,
    queues=("email",),
    tasks=("email.send",),
    concurrency=2,
)


def replace(one: Any, **changes: Any) -> Any:
    return msgspec.structs.replace(one, **changes)


def stats(
    *, paused: bool = False, running: int = 0, settings: QueueSettings | None = None
) -> Stats:
    queue = QueueStats(
        queue="email",
        paused=paused,
        settings=settings,
    )
    other = QueueStats(queue="other", settings=QueueSettings(queue="other", max_running=1))
    tasks = (
        TaskStats(queue="email", task="a", counts={"running": running}),
        TaskStats(queue="other", task="a", counts={"running": 9}),
    )
    return Stats(now=1.7e9, queues=(other, queue), tasks=tasks)


@pytest.mark.parametrize(
    ("live", "said"),
    [
        ([], "no worker serves queue 'email'"),
        ([replace(WORKER, queues=("emial",))], "no worker serves queue 'email'"),
        ([replace(WORKER, draining=True)], "every worker that serves queue 'email' is stopping"),
        (
            [replace(WORKER, tasks=("other",)), replace(WORKER, queues=("b",))],
            "no worker that serves queue 'email' knows task 'email.send'",
        ),
        ([WORKER, replace(WORKER, draining=True)], ""),
    ],
)
def test_why_a_job_is_queued(live: list[Live], said: str) -> None:
    assert reason.queued(RECORD, live, stats()) == said
    assert reason.queued(RECORD, live, stats(paused=True)) == "queue 'email' is paused"


@pytest.mark.parametrize(
    ("running", "said"),
    [
        ((2, 2), "all 4 slots of the workers that serve queue 'email' are busy"),
        ((2, 1), ""),
    ],
)
def test_whether_every_slot_is_busy(running: tuple[int, int], said: str) -> None:
    live = [replace(WORKER, running=number) for number in running]
    # Neither those that serve other queues nor those that stop have slots for it.
    live += [replace(WORKER, queues=("b",)), replace(WORKER, draining=True)]
    assert reason.busy(RECORD, live) == said
    assert reason.busy(RECORD, []) == ""


def test_one_slot_is_no_slots() -> None:
    live = [replace(WORKER, concurrency=1, running=1)]
    assert (
        reason.busy(RECORD, live) == "the one slot of the worker that serves queue 'email' is busy"
    )


def test_who_is_in_front_in_the_lane() -> None:
    record = replace(RECORD, lane="l")
    running = [replace(RECORD, id="y", lane="m"), replace(RECORD, id="z", lane="l")]
    assert reason.behind(record, running, stats()) == "job 'z' of its lane 'l' is running"
    assert reason.behind(record, running[:1], stats()) == ""
    two = stats(settings=QueueSettings(queue="email", lane_max_running=2))
    assert reason.behind(record, running, two) == ""
    assert reason.behind(record, [*running, running[1]], two) == (
        "its lane 'l' runs 2 at once at most, and as many are running"
    )


def test_whether_the_queue_runs_as_many_as_it_may() -> None:
    said = "queue 'email' runs 2 at once at most, and as many are running"
    settings = QueueSettings(queue="email", max_running=2)
    assert reason.full(RECORD, stats(running=2, settings=settings)) == said
    assert reason.full(RECORD, stats(running=1, settings=settings)) == ""
    assert reason.full(RECORD, stats(running=5)) == ""


def test_whether_limits_may_hold_a_job_back() -> None:
    for settings in (
        QueueSettings(queue="email", limits=b"x"),
        QueueSettings(queue="email", lane_limits=b"x"),
    ):
        held = "perhaps held back by the limits of queue 'email'"
        assert reason.limited(RECORD, stats(settings=settings)) == held
    assert reason.limited(RECORD, stats()) == ""
    other = QueueSettings(queue="email", max_running=1)
    assert reason.limited(RECORD, stats(settings=other)) == ""


def test_until_when_a_job_is_delayed() -> None:
    record = replace(RECORD, state=JobState.DELAYED)
    assert reason.delayed(record) == "delayed until 2023-11-14T22:13:20+00:00"
    attempt = AttemptRecord(attempt=2, code="error", type="OSError", message="a\nb")
    assert reason.delayed(replace(record, history=(attempt,))) == (
        "delayed until 2023-11-14T22:13:20+00:00, after attempt 2 ended with OSError"
    )


def test_who_runs_a_job() -> None:
    record = replace(RECORD, state=JobState.RUNNING, attempt=1, worker="w-1", started_at=1.7e9)
    said = "attempt 1 is running on worker 'w-1' since 2023-11-14T22:13:20+00:00"
    assert reason.running(record, [WORKER]) == said
    assert reason.running(record, []) == f"{said}, which is not among the live workers"
    asked = replace(record, cancel_requested=True)
    assert reason.running(asked, [WORKER]) == f"{said}; its cancellation was requested"


class Store(MemoryStorage):
    """Hangs or fails in one of its verbs."""

    fault: str | None = None
    hangs = False

    async def _maybe(self, verb: str) -> None:
        if self.fault == verb and self.hangs:
            await asyncio.Event().wait()
        if self.fault == verb:
            raise Unavailable("gone")

    async def scan(self, prefix: str) -> Any:
        await self._maybe("scan")
        return await super().scan(prefix)

    async def stats(self) -> Any:
        await self._maybe("stats")
        return await super().stats()


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("verb", ["scan", "stats"])
async def test_a_look_that_fails_leaves_what_is_known(
    verb: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    hangs: bool,
) -> None:
    store = Store(MemoryOptions(), PluginContext())
    async with Assembly({}, storage=store).client() as client:
        handle = await client.submit(plugq.job("t"), id="x")
        store.fault, store.hangs = verb, hangs
        assert reason.LOOK < 1
        # What is known when the time is up needs the first answer, on a busy machine as well.
        monkeypatch.setattr(reason, "LOOK", 2.0 if hangs else 30.0)
        with pytest.raises(plugq.WaitTimeout) as caught:
            await handle.result(0.01)
    assert str(caught.value) == "job 'x' in queue 'default' is still queued after 0.01 s"
    assert (caught.value.id, caught.value.queue) == ("x", "default")


async def test_the_words_are_those_of_the_queue_that_was_mistyped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine the look may take longer than users want to wait for it.
    monkeypatch.setattr("plugq.client.reason.LOOK", 30.0)
    async with Assembly({}).client() as client:
        handle = await client.submit(plugq.job("t"), id="x", queue="emial")
        with pytest.raises(plugq.WaitTimeout) as caught:
            await handle.wait(0.01)
        assert str(caught.value) == (
            "job 'x' is still queued after 0.01 s: no worker serves queue 'emial'"
        )
        delayed = await client.submit(plugq.job("t"), delay="1h")
        due = (await delayed.status()).ready_at.isoformat(timespec="seconds")
        with pytest.raises(plugq.WaitTimeout) as caught:
            await delayed.result(0.01)
        assert str(caught.value).endswith(
            f" is still delayed after 0.01 s: delayed until {due}; no worker serves queue 'default'"
        )


async def test_what_has_ended_or_gone_meanwhile_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a busy machine the look may take longer than users want to wait for it.
    monkeypatch.setattr("plugq.client.reason.LOOK", 30.0)
    async with Assembly({}).client() as client:
        handle = await client.submit(plugq.job("t"), id="x")
        broker = client._broker
        ref = handle.ref
        await handle.cancel()
        assert await reason.reason(broker, ref, 2.0) == (
            "job 'x' did not end within 2 s; it is cancelled now"
        )
        gone = client.handle("y", queue="q").ref
        assert await reason.reason(broker, gone, 2.0) == "job 'y' is not in queue 'q' after 2 s"


async def test_hostile_names_stay_in_one_line() -> None:
    async with Assembly({}).client() as client:
        handle = await client.submit(plugq.job("t"), id="a\nb", queue="q\x1b\n")
        with pytest.raises(plugq.WaitTimeout) as caught:
            await handle.result(0.01)
    assert str(caught.value).isprintable()
