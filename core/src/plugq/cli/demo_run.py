"""The run of ``plugq demo``: workers, a crash in the middle, and what became of every job."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from plugq.cli.demo_jobs import digest
from plugq.cli.processes import WorkerProcess
from plugq.errors import JobError, PlugqError
from plugq.job import JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
    from pathlib import Path

    from plugq.client import Client, Job, JobHandle

#: How much is done when a worker is killed.
MIDDLE = 0.35
#: Seconds between two looks at a worker that held nothing when it was to be killed.
NEXT_TRY = 0.02
#: Seconds that workers get to stop.
LAST_MOMENT = 30.0
#: Jobs that one call looks for or removes.
PAGE = 1000


class DemoFailed(PlugqError):
    """The demonstration could not be carried through."""


@dataclass(kw_only=True)
class Crash:
    """The worker that was killed, and the jobs that it was running."""

    worker: str
    pid: int
    after: int
    held: frozenset[str]
    #: Seconds since the first submission.
    at: float


@dataclass(kw_only=True)
class Outcome:
    """What became of the jobs; ``ends`` and ``seconds`` count from the first submission."""

    seconds: float = 0.0
    ends: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    crash: Crash | None = None

    @property
    def crashed(self) -> list[Job]:
        """The jobs of which at least one attempt was ended by the loss of its worker."""
        return [
            job
            for job in self.jobs.values()
            if any(attempt.code == "crashed" for attempt in job.attempts)
        ]

    @property
    def recovery(self) -> float:
        """Seconds from the crash until the last of the jobs that it hit had ended."""
        if self.crash is None:
            return 0.0
        last = max((self.ends.get(job.id, 0.0) for job in self.crashed), default=0.0)
        return max(0.0, last - self.crash.at)

    @property
    def rate(self) -> float:
        """Jobs per second, without those that had to wait for the lease of a dead worker to end."""
        hit = {job.id for job in self.crashed}
        ends = [end for id, end in self.ends.items() if id not in hit]
        return len(ends) / max(ends) if ends else 0.0

    @property
    def restarted(self) -> list[Job]:
        """The jobs that were started more than once."""
        return [job for job in self.jobs.values() if job.attempt > 1]


class Workers:
    """The worker processes of the demonstration, each with an id of its own and a log."""

    def __init__(self, command: Sequence[str], folder: Path, name: str) -> None:
        self._command = command
        self._folder = folder
        self._name = name
        self._running: dict[str, WorkerProcess] = {}
        self._started = 0
        self._expected: set[str] = set()
        self._ends: dict[str, asyncio.Task[int]] = {}
        self._died: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def running(self) -> dict[str, WorkerProcess]:
        """The processes by the ids of their workers."""
        return dict(self._running)

    async def start(self) -> str:
        """Start one more, wait until it works, and return its id.

        Raises:
            DemoFailed: it ended instead.
        """
        self._started += 1
        id = f"{self._name}-{self._started}"
        with self._log(id).open("wb") as log:
            process = await WorkerProcess.start(
                self._command, environ={"PLUGQ_WORKER__ID": id}, errors=log.fileno()
            )
        self._running[id] = process
        self._ends[id] = asyncio.create_task(self._end(id, process))
        if await process.ready() is None:
            raise DemoFailed(await self._obituary(id))
        return id

    async def kill(self, id: str) -> int:
        """Kill one as a crash would, and return its process number once it is gone."""
        process = self._running[id]
        self._expected.add(id)
        process.kill()
        await self._ends[id]
        return process.pid

    async def watch(self) -> None:
        """Raise DemoFailed when a worker ends that was not killed."""
        await asyncio.shield(self._died)

    async def stop(self) -> None:
        """Stop all of them; those that do not stop in time are killed."""
        self._expected.update(self._running)
        for process in self._running.values():
            process.send(signal.SIGTERM)
        await self._gone(LAST_MOMENT)
        await self.kill_all()

    async def kill_all(self) -> None:
        """Kill whatever is left and wait for it."""
        self._expected.update(self._running)
        for process in self._running.values():
            process.kill()
        await self._gone(None)
        if self._died.done():
            self._died.exception()

    async def _gone(self, limit: float | None) -> None:
        if self._ends:
            await asyncio.wait(self._ends.values(), timeout=limit)

    async def _end(self, id: str, process: WorkerProcess) -> int:
        code = await process.wait()
        del self._running[id]
        if id not in self._expected and not self._died.done():
            self._died.set_exception(DemoFailed(await self._obituary(id)))
        return code

    async def _obituary(self, id: str) -> str:
        said = self._log(id).read_text(errors="replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        return f"the worker {id} ended by itself: {last}"

    def _log(self, id: str) -> Path:
        return self._folder / f"{id}.log"


class Run:
    """Submits one job for each file, waits for all of them and remembers what came of each.

    ``patience`` is within how many seconds some job has to end. ``tell`` is called with what
    happens, ``count`` with the number of jobs that have ended.
    """

    def __init__(
        self,
        client: Client,
        paths: Sequence[str],
        *,
        queue: str,
        patience: float,
        tell: Callable[[str], None],
        count: Callable[[int], None],
    ) -> None:
        self._client = client
        self._paths = paths
        self._queue = queue
        self._patience = patience
        self._tell = tell
        self._count = count
        self._ended = 0
        self._changed = asyncio.Event()
        self._outcome = Outcome()
        self._began = 0.0
        self._room = asyncio.Semaphore(PAGE)
        #: The file of each job.
        self.files: dict[str, str] = {}

    async def alone(self) -> Outcome:
        """Run on the worker of this process."""
        return await self._until_done(self._work(), [])

    async def with_workers(self, workers: Workers) -> Outcome:
        """Run on worker processes, one of which is killed in the middle."""
        return await self._until_done(self._work(self._crash(workers)), [workers.watch()])

    async def clear(self) -> None:
        """Remove the jobs from the storage."""
        jobs = list(self._outcome.jobs.values())
        for start in range(0, len(jobs), PAGE):
            await self._client.purge(*jobs[start : start + PAGE])

    async def _work(self, *beside: Coroutine[Any, Any, None]) -> Outcome:
        self._began = time.monotonic()
        try:
            handles = await self._client.submit_many(
                [digest.job(path) for path in self._paths], queue=self._queue
            )
            self.files = {
                handle.id: path for handle, path in zip(handles, self._paths, strict=True)
            }
            self._tell(f"submitted {len(handles):,} jobs in {self._elapsed():.2f} s")
        except BaseException:
            for one in beside:
                one.close()
            raise
        await asyncio.gather(*map(self._wait_for, handles), *beside)
        self._outcome.seconds = self._elapsed()
        await self._look_back()
        return self._outcome

    async def _wait_for(self, handle: JobHandle[Any]) -> None:
        # Jobs run about in the order of submission: the wait for a thousand of them at a time
        # ends as soon as that for all, and asks the storage for less.
        async with self._room:
            try:
                self._outcome.results[handle.id] = await handle.result()
            except JobError as error:
                self._outcome.errors[handle.id] = str(error)
        self._outcome.ends[handle.id] = self._elapsed()
        self._ended += 1
        self._count(self._ended)
        self._changed.set()

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    async def _crash(self, workers: Workers) -> None:
        """Kill a worker that runs jobs, once enough is done, and start another one."""
        await self._reached(int(MIDDLE * len(self._paths)))
        while self._ended < len(self._paths):
            for id, process in workers.running.items():
                with _frozen(process):
                    if not await self._held(id):
                        continue
                    pid = await workers.kill(id)
                # What it had settled just before is not running any longer.
                held = await self._held(id)
                crash = Crash(worker=id, pid=pid, after=self._ended, held=held, at=self._elapsed())
                self._outcome.crash = crash
                other = await workers.start()
                self._tell(
                    f"killed worker {id} (pid {pid}) with SIGKILL while it was running {len(held)} "
                    f"jobs, {crash.after:,} being done; worker {other} takes its place"
                )
                return
            await asyncio.sleep(NEXT_TRY)

    async def _held(self, worker: str) -> frozenset[str]:
        # A lease names its worker with what tells one start of it from the next.
        running = self._pages(state=JobState.RUNNING)
        return frozenset([job.id async for job in running if job.worker.startswith(f"{worker}-")])

    async def _reached(self, number: int) -> None:
        while self._ended < number:
            self._changed.clear()
            await self._changed.wait()

    async def _look_back(self) -> None:
        found = self._outcome.jobs
        found.update({job.id: job async for job in self._pages() if job.id in self.files})

    async def _pages(self, state: JobState | None = None) -> AsyncIterator[Job]:
        cursor: str | None = None
        while True:
            page = await self._client.find(
                state=state, queue=self._queue, limit=PAGE, cursor=cursor
            )
            for job in page.jobs:
                yield job
            cursor = page.cursor
            if cursor is None:
                return

    async def _stalled(self) -> None:
        """Raise DemoFailed when no job has ended for a while."""
        while True:
            before = self._ended
            await asyncio.sleep(self._patience)
            if self._ended == before:
                counts = (await self._client.stats()).counts
                states = ", ".join(
                    f"{number} {state}" for state, number in counts.items() if number
                )
                message = f"no job has ended for {self._patience:g} s; in the storage: {states}"
                raise DemoFailed(message)

    async def _until_done(
        self, work: Coroutine[Any, Any, Outcome], guards: Sequence[Awaitable[None]]
    ) -> Outcome:
        """Return what the work returns, or raise what one of the guards does."""
        main = asyncio.create_task(work)
        tasks = [main, *map(asyncio.ensure_future, [*guards, self._stalled()])]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks[1:]:
                if task.done():
                    task.result()
            return await main
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def _frozen(process: WorkerProcess) -> Any:
    """Stop a process for a look at it, where the system can, and let it go on afterwards."""
    stop: signal.Signals | None = getattr(signal, "SIGSTOP", None)
    if stop is None:
        yield
        return
    process.send(stop)
    try:
        yield
    finally:
        process.send(signal.SIGCONT)


__all__ = ["Crash", "DemoFailed", "Outcome", "Run", "Workers"]
