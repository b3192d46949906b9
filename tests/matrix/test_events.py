"""What happens to jobs, heard in another process, on every storage that processes share."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, Self

import pytest

import plugq
from plugq import EventKind, JobEvent, Resync, RetryPolicy
from plugq.assembly import Assembly

Deployment = dict[str, Any]
PRINTER = Path(__file__).with_name("event_printer.py")
QUICK = {"broker": {"lease": "1s", "renewal": "50ms"}}


class Printer:
    """A client in another process that hears of one job."""

    def __init__(self, folder: Path, deployment: Deployment, id: str, count: int) -> None:
        path = folder / f"{id}.toml"
        path.write_text(
            "".join(
                f"[{table}]\n" + "".join(f"{key} = {json.dumps(x)}\n" for key, x in values.items())
                for table, values in deployment.items()
            ),
            encoding="utf-8",
        )
        self._arguments = (str(PRINTER), str(path), id, str(count))
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *self._arguments, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"listening\n"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()

    async def events(self) -> list[dict[str, Any]]:
        """Return what it heard, in the order of the times."""
        assert self._process is not None
        output, _ = await self._process.communicate()
        assert self._process.returncode == 0
        return sorted(map(json.loads, output.splitlines()), key=lambda event: event["at"])


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["kind"] for event in events]


@pytest.fixture
def shared(deployment: Deployment) -> Deployment:
    """A deployment whose jobs another process can see."""
    if "storage" not in deployment:
        pytest.skip("nobody else can see a memory storage")
    return {**deployment, **QUICK}


@pytest.mark.timeout(120)
async def test_another_process_hears_a_job_from_its_submission_to_its_success(
    shared: Deployment, tmp_path: Path
) -> None:
    app = plugq.App()
    heard_of = asyncio.Event()

    @app.task("work")
    async def work() -> int:
        plugq.current().progress(1, 4, "begun")
        await heard_of.wait()
        plugq.current().progress(4, 4, "done")
        return 1

    async with app.running(shared) as client, Printer(tmp_path, shared, "a", 5) as printer:
        # What a renewal carries is heard while the handler still runs.
        client.on("progress", lambda _: heard_of.set())
        handle = await client.submit(work.job(), id="a", batch="b", lane="l")
        assert await handle.result(60) == 1
        events = await printer.events()
    assert kinds(events) == ["submitted", "started", "progress", "progress", "succeeded"]
    assert {(event["task"], event["lane"], event["batch"]) for event in events} == {
        ("work", "l", "b")
    }
    assert [event.get("attempt", 0) for event in events] == [0, 1, 1, 1, 1]
    assert [event["progress"][2] for event in events[2:4]] == ["begun", "done"]
    assert [event["state"] for event in events] == [
        "queued",
        "running",
        "running",
        "running",
        "succeeded",
    ]


@pytest.mark.timeout(120)
async def test_another_process_hears_of_retries_failures_and_cancelling(
    shared: Deployment, tmp_path: Path
) -> None:
    app = plugq.App()

    @app.task(retry=RetryPolicy(max_attempts=2, backoff="fixed", base=0.01))
    async def broken() -> None:
        raise LookupError("nobody")

    started = asyncio.Event()

    @app.task
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    async with (
        app.running(shared) as client,
        Printer(tmp_path, shared, "broken", 5) as of_broken,
        Printer(tmp_path, shared, "waiting", 2) as of_waiting,
        Printer(tmp_path, shared, "endless", 4) as of_endless,
    ):
        await client.submit(broken.job(), id="broken")
        await (await client.submit(broken.job(), id="waiting", delay="1h")).cancel()
        running = await client.submit(endless.job(), id="endless")
        await started.wait()
        assert await running.cancel() == "requested"
        events = await of_broken.events()
        assert kinds(events) == ["submitted", "started", "retrying", "started", "failed"]
        assert [event.get("attempt", 0) for event in events] == [0, 1, 1, 2, 2]
        assert [event.get("message") for event in events[2::2]] == ["nobody", "nobody"]
        assert events[2]["delay"] <= 0.01
        assert kinds(await of_waiting.events()) == ["submitted", "cancelled"]
        assert kinds(await of_endless.events()) == [
            "submitted",
            "started",
            "cancel_requested",
            "cancelled",
        ]


async def test_an_operators_changes_and_the_processes_are_heard(deployment: Deployment) -> None:
    app = plugq.App()

    @app.task(max_attempts=1)
    async def broken() -> None:
        raise LookupError("nobody")

    assembled = plugq.assembly.Assembly(deployment)
    heard: list[JobEvent | Resync] = []
    async with assembled.client() as client, client.events() as stream:

        async def hear(kind: str) -> JobEvent:
            while True:
                event = await anext(stream)
                heard.append(event)
                if isinstance(event, JobEvent) and event.kind == kind:
                    return event

        async with plugq.Worker(app, assembly=assembled) as worker:
            name = (await hear("worker_started")).worker
            assert name == worker.state()["worker"]
            assert name.startswith(f"{worker.id}-")
            while name not in {one.id for one in await client.workers()}:
                await asyncio.sleep(0)
            job = await client.submit(broken.job())
            assert (await hear("started")).worker == name
            await hear("failed")
            await client.queues.pause("default")
            await client.retry(await job.status())
            released = await hear("released")
            assert (released.id, released.code, released.state) == (job.id, "retry", "queued")
            await job.cancel()
            await client.purge(job)
            assert (await hear("removed")).id == job.id
            await client.queues.resume("default")
            assert (await hear("queue_resumed")).queue == "default"
        assert (await hear("worker_stopped")).worker == name
        await hear("broker_stopped")
    told = {event.kind for event in heard if isinstance(event, JobEvent)}
    assert told >= {EventKind.BROKER_STARTED, EventKind.QUEUE_PAUSED, EventKind.CANCELLED}
    assert Resync() not in heard


async def test_with_nobody_listening_no_event_is_built(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Any] = []

    def build(**facts: Any) -> JobEvent:
        built.append(facts)
        return JobEvent(**facts)

    # The storage's own types are made of the real one when it is imported.
    Assembly(deployment)
    for module in list(sys.modules.values()):
        if module.__name__.startswith("plugq.") and vars(module).get("JobEvent") is JobEvent:
            monkeypatch.setattr(module, "JobEvent", build)
    app = plugq.App()

    @app.task(retry=RetryPolicy(max_attempts=2, backoff="fixed", base=0.01))
    async def work(attempts: int) -> None:
        plugq.current().progress(1)
        if plugq.current().attempt < attempts:
            raise LookupError("nobody")

    async def run(client: plugq.Client) -> None:
        await client.queues.resume("default")
        handles = await client.submit_many([work.job(attempts) for attempts in (1, 2, 3)])
        for handle in handles:
            await handle.wait(20)
        await client.retry(handles[2])
        await client.queues.pause("default")
        await client.cancel(await client.submit(work.job(1)))

    async with app.running(deployment) as client:
        await run(client)
        assert built == []
        # The same is told as soon as somebody listens, and no longer.
        async with client.events():
            await run(client)
        assert built
    async with app.running(deployment) as client:
        built.clear()
        await run(client)
    assert built == []
