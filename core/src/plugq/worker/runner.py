"""Where handlers run: coroutines on the loop that started the worker, functions in threads.

Nothing here waits for the storage. Attempts come in batches from the engine's thread, and each
ends with one call of ``finished``, from whichever thread it ran in.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import threading
from typing import TYPE_CHECKING, Any, Protocol

from plugq import failpoints
from plugq.errors import InvalidJob, Undecodable
from plugq.protocols.serde import SerdeContext
from plugq.worker.context import CancelReason, JobContext, _current
from plugq.worker.outcome import failed, raised, released, stopped, succeeded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from plugq.clock import Clock
    from plugq.envelope import Envelope
    from plugq.protocols.serde import Serde
    from plugq.protocols.storage import Lease, Settlement

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds until a job is tried again for which there was no thread.
NO_THREAD = 1.0


class Handler(Protocol):
    """A task as the worker needs it."""

    @property
    def name(self) -> str:
        """The task's name."""
        ...

    @property
    def is_async(self) -> bool:
        """Whether calling it gives a coroutine."""
        ...

    def bind(self, arguments: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return the positional and keyword arguments that decoded arguments stand for.

        Raises:
            InvalidJob: they do not fit the task.
        """
        ...

    @property
    def call(self) -> Callable[..., Any]:
        """The function, with its middleware."""
        ...


class Attempt:
    """One leased job on its way through a handler."""

    __slots__ = ("context", "envelope", "handler", "lease", "reason", "started_at", "task")

    def __init__(self, lease: Lease, envelope: Envelope, handler: Handler) -> None:
        self.lease: Lease = lease
        self.envelope: Envelope = envelope
        self.handler: Handler = handler
        self.context: JobContext = JobContext(lease, envelope)
        self.reason: CancelReason | None = None
        #: When the handler began, by the clock's monotonic time.
        self.started_at: float | None = None
        self.task: asyncio.Task[None] | None = None

    def stop(self, reason: CancelReason) -> None:
        """Tell the handler to stop; the first reason stays."""
        if self.reason is None:
            self.reason = reason
            self.context._reason = reason  # noqa: SLF001 - the context's writing side


class Runner:
    """Runs attempts and reports how each ended.

    ``finished(attempt, settlement)`` is called once for each attempt, in any thread; the
    settlement is ``None`` where there is nothing to settle.
    """

    def __init__(
        self,
        serdes: Mapping[str, Serde],
        clock: Clock,
        *,
        threads: int,
        result_limit: int,
        finished: Callable[[Attempt, Settlement | None], None],
    ) -> None:
        self._serdes = serdes
        self._clock = clock
        self._result_limit = result_limit
        self._finished = finished
        self._pool = ThreadPool(threads, self._run_in_thread)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Take the running loop as the one for coroutines."""
        self._loop = asyncio.get_running_loop()

    def stop(self) -> None:
        """Let idle threads go; one that is stuck in a handler ends with it."""
        self._pool.stop()

    def deliver(self, attempts: Sequence[Attempt]) -> None:
        """Start attempts; called from the engine's thread."""
        coroutines = []
        for attempt in attempts:
            if attempt.handler.is_async:
                coroutines.append(attempt)
            elif not self._pool.put(attempt):
                self._finished(attempt, released(attempt.lease, delay=NO_THREAD))
        if coroutines:
            self._hand_over(self._start, coroutines)

    def stop_attempts(self, attempts: Sequence[Attempt], reason: CancelReason) -> None:
        """Ask handlers to stop; called from the engine's thread."""
        for attempt in attempts:
            attempt.stop(reason)
        running = [attempt for attempt in attempts if attempt.handler.is_async]
        if running:
            self._hand_over(_cancel, running)

    def leave_behind(self, attempt: Attempt) -> None:
        """Count no longer on the thread of a handler that does not stop; another may start."""
        self._pool.leave_behind(attempt)

    def _hand_over(
        self, work: Callable[[Sequence[Attempt]], None], attempts: list[Attempt]
    ) -> None:
        if self._loop is None:
            message = "the runner was not started"
            raise RuntimeError(message)
        try:
            self._loop.call_soon_threadsafe(work, attempts)
        except RuntimeError:
            # The loop of the handlers is closed: nothing will ever run there again.
            for attempt in attempts:
                self._finished(attempt, stopped(attempt.lease, attempt.envelope.retry, "shutdown"))

    def _start(self, attempts: Sequence[Attempt]) -> None:
        if failpoints.ARMED:
            failpoints.hit("worker.delivered")
        loop = asyncio.get_running_loop()
        for attempt in attempts:
            attempt.task = loop.create_task(self._run(attempt))

    async def _run(self, attempt: Attempt) -> None:
        attempt.started_at = self._clock.monotonic()
        if attempt.reason is not None:
            self._finish(attempt, asyncio.CancelledError())
            return
        _current.set(attempt.context)
        if (arguments := self._bind(attempt)) is None:
            return
        args, kwargs = arguments
        try:
            if failpoints.ARMED:
                failpoints.hit("worker.started")
            value = await attempt.handler.call(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything
            self._finish(attempt, error)
        else:
            self._succeed(attempt, value)

    def _run_in_thread(self, attempt: Attempt) -> None:
        attempt.started_at = self._clock.monotonic()
        if attempt.reason is not None:
            self._finish(attempt, asyncio.CancelledError())
            return
        contextvars.Context().run(self._call, attempt)

    def _call(self, attempt: Attempt) -> None:
        _current.set(attempt.context)
        if (arguments := self._bind(attempt)) is None:
            return
        args, kwargs = arguments
        try:
            if failpoints.ARMED:
                failpoints.hit("worker.started")
            value = attempt.handler.call(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - a handler may raise anything
            self._finish(attempt, error)
        else:
            self._succeed(attempt, value)

    def _bind(self, attempt: Attempt) -> tuple[Sequence[Any], Mapping[str, Any]] | None:
        """Return the arguments; ``None`` when they can not be used and the job has failed."""
        lease, content_type = attempt.lease, attempt.envelope.content_type
        serde = self._serdes.get(content_type)
        if serde is None:
            message = (
                f"the arguments are encoded as {content_type!r}, and this worker has no serde for "
                "it; install the plugin that the submitter uses"
            )
            self._finished(attempt, failed(lease, Undecodable(message), code="undecodable"))
            return None
        try:
            return attempt.handler.bind(serde.decode(attempt.envelope.arguments, _context(lease)))
        except InvalidJob as error:
            self._finished(attempt, failed(lease, error, code="arguments"))
        except BaseException as error:  # noqa: BLE001 - a plugin's decoder; the job must not hang
            self._finished(attempt, failed(lease, error, code="undecodable"))
        return None

    def _succeed(self, attempt: Attempt, value: object) -> None:
        if failpoints.ARMED:
            failpoints.hit("worker.finished")
        serde = self._serdes[attempt.envelope.content_type]
        try:
            settlement = succeeded(attempt.lease, value, serde, self._result_limit)
        except BaseException as error:  # noqa: BLE001 - a user's value may do anything
            settlement = failed(attempt.lease, error, code="result")
        self._finished(attempt, settlement)

    def _finish(self, attempt: Attempt, error: BaseException) -> None:
        try:
            settlement = raised(attempt.lease, attempt.envelope.retry, error, attempt.reason)
        except Exception as broken:  # noqa: BLE001 - a user's exception may lack what its base has
            settlement = failed(attempt.lease, broken)
        self._finished(attempt, settlement)


class ThreadPool:
    """Daemon threads that take attempts from one line; made on demand, at most ``most``.

    The standard library's executor joins its threads when the interpreter exits, so one handler
    that never returns would keep a stopped worker alive.
    """

    def __init__(self, most: int, run: Callable[[Attempt], None]) -> None:
        self._most = most
        self._run = run
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._line: queue.SimpleQueue[Attempt | None] = queue.SimpleQueue()
        #: Threads that serve the line, attempts in it or in a handler, and the latter alone.
        self._threads = 0
        self._busy = 0
        self._inside: set[Attempt] = set()

    def put(self, attempt: Attempt) -> bool:
        """Add an attempt to the line; false when there is no thread and none can be had."""
        with self._lock:
            self._busy += 1
            self._hire()
            if not self._threads:
                self._busy -= 1
                return False
            self._line.put(attempt)
            return True

    def leave_behind(self, attempt: Attempt) -> None:
        """Let another thread take the place of the one in which this attempt is stuck."""
        with self._lock:
            if attempt in self._inside:
                self._inside.remove(attempt)
                self._busy -= 1
                self._threads -= 1
                self._hire()

    def stop(self) -> None:
        """Tell the threads to end when their line is empty; those inside a handler end after it."""
        with self._lock:
            self._line.put(None)
            # A thread that is stuck must not count, nor take anything, after a new start.
            self._begin()

    def _hire(self) -> None:
        if self._busy <= self._threads or self._threads >= self._most:
            return
        thread = threading.Thread(
            target=self._work, args=(self._line,), name="plugq-handler", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:
            logger.warning("no thread for a handler: %s", error)
        else:
            self._threads += 1

    def _work(self, line: queue.SimpleQueue[Attempt | None]) -> None:
        while (attempt := line.get()) is not None:
            with self._lock:
                if line is self._line:
                    self._inside.add(attempt)
            self._run(attempt)
            with self._lock:
                if line is not self._line:
                    continue
                if attempt not in self._inside:
                    return
                self._inside.remove(attempt)
                self._busy -= 1
        # For the next thread of this line, those left behind among them.
        line.put(None)


def _cancel(attempts: Sequence[Attempt]) -> None:
    for attempt in attempts:
        if attempt.task is not None and attempt.started_at is not None:
            attempt.task.cancel(attempt.reason)


def _context(lease: Lease) -> SerdeContext:
    return SerdeContext(task=lease.task, queue=lease.queue, id=lease.id)


__all__ = ["Attempt", "Handler", "Runner"]
