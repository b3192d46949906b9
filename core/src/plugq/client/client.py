"""The client: submits jobs, waits for them, looks at them and steers them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from plugq import failpoints
from plugq.client.announced import Announcements
from plugq.client.batches import Batch, Batches
from plugq.client.completion import check_handles, completed
from plugq.client.events import EventHub, choice_of
from plugq.client.handle import JobHandle
from plugq.client.queues import Queues
from plugq.client.reason import reason
from plugq.client.requests import Requests
from plugq.client.results import decode, own_record, result_of
from plugq.client.schedules import Schedules
from plugq.client.steering import LIVE, Filter, Steering, query_of, ttl_of
from plugq.client.views import Page, stats_view, view
from plugq.client.waiters import Waiters
from plugq.client.workers import workers_view
from plugq.duration import Duration, seconds
from plugq.envelope import open_body
from plugq.errors import (
    AmbiguousId,
    InvalidJob,
    JobNotFound,
    OutcomeUnknown,
    Unavailable,
    WaitTimeout,
)
from plugq.job import FINAL, JobRef, JobState
from plugq.lifecycle import Lifecycle
from plugq.presence import PREFIX
from plugq.presence import decode as decode_live
from plugq.protocols.edits import (
    Cancel,
    Edit,
    EditStatus,
    JobEdit,
    Purge,
    Redrive,
    Reprioritise,
    Retain,
)
from plugq.protocols.serde import Serde
from plugq.protocols.storage import SubmitStatus
from plugq.request import Asked, ask, bounded, check_id, check_priority
from plugq.task import JobRequest, bound

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        Awaitable,
        Callable,
        Iterable,
        Mapping,
        Sequence,
    )
    from datetime import datetime
    from typing import Self, Unpack

    from plugq.client.events import EventStream, Kind
    from plugq.client.views import Job, Stats
    from plugq.client.workers import WorkerInfo
    from plugq.clock import Clock
    from plugq.job import JobRecord
    from plugq.protocols.broker import Broker
    from plugq.protocols.edits import EditReply
    from plugq.protocols.serde import Serde
    from plugq.protocols.storage import FindQuery, NewJob, SubmitReply
    from plugq.protocols.storage import Page as StoredPage
    from plugq.request import CallOptions, RequestOptions
    from plugq.submission import Submitter
    from plugq.task import Task

R = TypeVar("R")
CancelAnswer = Literal["cancelled", "requested", "finished", "not_found"]
Outcome = Literal["accepted", "duplicate"]

#: Jobs that are stored in one step.
CHUNK = 1000

_CANCEL: dict[EditStatus, CancelAnswer] = {
    EditStatus.DONE: "cancelled",
    EditStatus.REQUESTED: "requested",
    EditStatus.FINISHED: "finished",
    EditStatus.NOT_FOUND: "not_found",
}


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """How long requests take; in seconds. ``reconnect`` is the first and the longest pause."""

    deadline: float = 5.0
    fallback_poll: float = 1.0
    reconnect: tuple[float, float] = (0.1, 2.0)


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What a client shares with the workers of its deployment."""

    submitter: Submitter
    serdes: Mapping[str, Serde]
    tasks: Mapping[str, Task[Any, Any]] = field(default_factory=dict)


class Client(Lifecycle):
    """Talks to one deployment; made by :func:`plugq.connect` and bound to the loop that starts it.

    Every call has a deadline and raises only errors of :mod:`plugq`. A cancelled call may still
    have happened; to submit again with the same id is safe.
    """

    def __init__(
        self,
        broker: Broker,
        deployment: Deployment,
        clock: Clock,
        *,
        settings: ClientSettings | None = None,
    ) -> None:
        super().__init__()
        self._broker = broker
        self._deployment = deployment
        self._clock = clock
        self._settings = settings or ClientSettings()
        self._requests = Requests(
            broker,
            self._running,
            deadline=self._settings.deadline,
            reconnect=self._settings.reconnect,
        )
        self._waiters = Waiters(broker, clock, poll=self._settings.fallback_poll)
        self._events = EventHub(broker, clock, deadline=self._settings.deadline)
        self._announced = Announcements(lambda keys: self._ask(lambda: broker.load(keys)), clock)
        self._batches = Batches(broker, clock, self._ask, poll=self._settings.fallback_poll)
        self._steering = Steering(self._find, self._edit)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.queues: Queues = Queues(self)
        self.schedules: Schedules = Schedules(self)

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop."""
        await self.stop()

    async def start(self) -> None:
        """Start on the running loop; a second call does nothing.

        Raises:
            Unavailable: it was started on another loop, or the storage can not be reached.
            ConfigError: the storage can not be used.
        """
        self._check_loop()
        await super().start()

    async def stop(self) -> None:
        """Stop and wait until nothing is left running; a second call does nothing.

        Raises:
            Unavailable: it was started on another loop, where it has to be stopped.
        """
        self._check_loop()
        await super().stop()

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._broker.start()
        self._waiters.start()
        self._events.start()
        self._batches.start()

    async def _stop(self) -> None:
        await self._events.stop()
        await self._waiters.stop()
        await self._batches.stop()
        await self._broker.stop()

    async def submit(
        self,
        request: JobRequest[R],
        *,
        connection: object | None = None,
        **options: Unpack[RequestOptions],
    ) -> JobHandle[R]:
        """Submit one job and return its handle once it is stored.

        With a ``connection`` of your own to the database of the storage the job is stored in the
        transaction that you have begun on it: it exists if that commits and not before, and never
        if that is rolled back. Its handle is there at once; wait for it after the commit. Such a
        call is made once and not repeated. ``OutcomeUnknown`` means then that your transaction
        has to be rolled back.

        Raises:
            InvalidJob: the request, an option or the connection can not be; nothing was stored.
            ConfigError: the storage can not submit inside a transaction.
            PayloadError: the arguments can not travel; nothing was stored.
            QueueFull: the queue takes no more; nothing was stored.
            Unavailable: the storage could not be reached in time; nothing was stored.
            OutcomeUnknown: the answer was lost; submitting again with the same id is safe.
        """
        jobs = await self._prepare([request], ask(options))
        replies = await self._send(jobs, connection)
        return self._handle(request, jobs[0], replies[0])

    async def submit_many(
        self,
        requests: Iterable[JobRequest[R]],
        *,
        connection: object | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[JobHandle[R]]:
        """Submit jobs and return their handles, in order.

        All of them are checked before any is stored. Each thousand is stored in one step. With a
        ``connection`` all of them are, in your transaction, as by :meth:`submit`.

        Raises:
            InvalidJob: one, or the connection, can not be; nothing was stored.
            ConfigError: the storage can not submit inside a transaction.
            PayloadError: the arguments of one can not travel; nothing was stored.
            QueueFull: a queue takes no more; nothing of that thousand was stored.
            OutcomeUnknown: ``ids`` names what is not confirmed; submitting that again is safe.
        """
        asked = ask(options)
        if asked.id is not None:
            raise InvalidJob("id: one id can not serve many jobs; use request.options(id=…)")
        wanted = list(requests)
        jobs = await self._prepare(wanted, asked)
        handles: list[JobHandle[R]] = []
        # What is refused must leave a transaction of the user's as it was.
        size = CHUNK if connection is None else max(1, len(jobs))
        for start in range(0, len(jobs), size):
            chunk = jobs[start : start + size]
            try:
                replies = await self._send(chunk, connection)
            except (OutcomeUnknown, Unavailable) as error:
                if start == 0 and isinstance(error, Unavailable):
                    raise
                message = f"{len(jobs) - start:,} of {len(jobs):,} jobs are not confirmed: {error}"
                raise OutcomeUnknown(message, ids=[job.id for job in jobs[start:]]) from error
            handles += [
                self._handle(request, job, reply)
                for request, job, reply in zip(
                    wanted[start : start + size],
                    chunk,
                    replies,
                    strict=True,
                )
            ]
        return handles

    async def call(
        self,
        request: JobRequest[R],
        *,
        timeout: Duration | None = 30.0,
        **options: Unpack[CallOptions],
    ) -> R:
        """Submit one job and return its result.

        ``timeout`` is how long to wait for it, not the timeout of its attempts. Raises what
        :meth:`submit` and :meth:`JobHandle.result` do. There is no ``connection`` here: the job
        could not start before the commit.
        """
        if "connection" in options:
            raise InvalidJob(
                "connection: call() would wait for a job that can not start before your "
                "transaction commits; use submit(…, connection=…) and wait after the commit"
            )
        return await (await self.submit(request, **options)).result(timeout)

    def as_completed(
        self,
        handles: Iterable[JobHandle[R]],
        *,
        timeout: Duration | None = None,
    ) -> AsyncGenerator[JobHandle[R], None]:
        """Iterate over handles in the order in which their jobs end, however they do.

        Each is yielded as often as it was given, those whose job is not stored (any longer), too.
        The next ``result()`` or ``wait()`` of a handle that was yielded answers at once, from what
        was seen when its job ended: also where the result is not kept, the job was removed since,
        or the client was stopped. After a ``client.retry(…)`` those that did not succeed look
        again.

        The order is that in which this client learns of the ends: exact for jobs that it
        submitted, and to the fallback poll for others. ``timeout`` is for all of them, from the
        first step on. Leaving the loop leaves the jobs as they are.

        Raises:
            InvalidJob: one of them is no handle.
            WaitTimeout: some had not ended after ``timeout``; the message says how many.
            Unavailable: the client was stopped.
        """
        wanted = list(handles)
        check_handles(wanted)
        self._running()
        limit = None if timeout is None else seconds(timeout, name="timeout")
        return completed(self._waiters, wanted, limit)

    def handle(
        self,
        id: str,
        *,
        queue: str,
        task: Task[Any, R] | None = None,
    ) -> JobHandle[R]:
        """Return the handle of a job that may exist; does no I/O."""
        return JobHandle(self, JobRef(queue, check_id(id)), task=task)

    async def get(self, id: str, *, queue: str | None = None) -> Job:
        """Return a job; without a queue, all queues are looked through.

        Raises:
            JobNotFound: there is none.
            AmbiguousId: several queues have a job of that id.
        """
        return view(await self._record(id, queue))

    async def payload(
        self,
        id: str,
        *,
        queue: str | None = None,
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the decoded positional and keyword arguments of a job.

        Raises:
            JobNotFound: there is no such job.
            Undecodable: there is no serde here for its content type, or the bytes are damaged.
        """
        record = await self._record(id, queue, body=True)
        envelope = open_body(record.body or b"")
        args, kwargs = decode(
            record, self._deployment.serdes, envelope.content_type, envelope.arguments
        )
        return args, kwargs

    async def find(
        self,
        *,
        state: JobState | str | Sequence[JobState | str] | None = None,
        queue: str | None = None,
        task: str | None = None,
        batch: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Return a page of jobs, the newest first.

        Pass the page's cursor for the next one until it is ``None``; a page may be short before.
        A job that matches throughout the walk appears in it exactly once.
        """
        filters: Filter = {
            "state": state,
            "queue": queue,
            "task": task,
            "batch": batch,
            "since": since,
            "until": until,
        }
        page = await self._find(query_of(filters, limit=limit, cursor=cursor))
        return Page(jobs=tuple(map(view, page.jobs)), cursor=page.cursor)

    async def stats(self) -> Stats:
        """Return jobs by state, cumulative totals and ages, by queue and by task."""
        return stats_view(await self._ask(self._broker.stats))

    async def workers(self) -> tuple[WorkerInfo, ...]:
        """Return the workers and brokers that are alive.

        One that stops is gone at once, one that is killed after 25 s. What it says of itself is up
        to 10 s old.
        """
        return workers_view(decode_live(await self._ask(lambda: self._broker.scan(PREFIX))))

    async def cancel(
        self, *handles: JobHandle[Any] | Job, **filters: Unpack[Filter]
    ) -> list[CancelAnswer]:
        """Cancel jobs: at once where they wait, by their workers where they run.

        The jobs are named by handles, or by what they have in common: ``state`` (else all live
        ones), ``queue``, ``task``, ``batch``, ``since``, ``until``. No live job of the filter is
        left then that was there at the call; what is submitted meanwhile may stay. A ``state``
        that is given, with handles as well, holds to the end: nothing is done to a job that has
        left it by the time it is reached.

        Answers for each ``cancelled``, ``requested``, ``finished`` or ``not_found``, which also
        means that it has left the ``state`` given, or that another job has its id now. Where an
        error is raised a part may have been done, and to do it again is safe.

        Raises:
            InvalidJob: both handles and a filter are given, or the filter can not be.
        """
        replies = await self._steering.change(Cancel, handles, filters, LIVE)
        return [_CANCEL[reply.status] for reply in replies]

    async def retry(
        self, *handles: JobHandle[Any] | Job, **filters: Unpack[Filter]
    ) -> list[EditStatus]:
        """Queue failed, cancelled and skipped jobs again, with all their attempts.

        The jobs are named by handles or by a filter as for :meth:`cancel`; without a ``state`` it
        finds those that failed. Answers for each ``done``, ``conflict`` (it is in another state,
        or another job holds its unique key) or ``not_found``.
        """
        try:
            return await self._changed(Redrive, handles, filters, (JobState.FAILED,))
        finally:
            # Behind the change: what is seen during it may be from before. Whatever becomes of the
            # call, a part of it may be done.
            self._waiters.retries += 1

    async def purge(
        self, *handles: JobHandle[Any] | Job, **filters: Unpack[Filter]
    ) -> list[EditStatus]:
        """Remove final jobs for good.

        The jobs are named by handles or by a filter as for :meth:`cancel`; without a ``state`` it
        finds final ones. Answers for each ``done``, ``conflict`` (it is not final) or
        ``not_found``.
        """
        return await self._changed(Purge, handles, filters, tuple(FINAL))

    async def retain(
        self,
        *handles: JobHandle[Any] | Job,
        ttl: Duration | Literal["forever"] | None,
        **filters: Unpack[Filter],
    ) -> list[EditStatus]:
        """Keep jobs and their results for ``ttl`` from their ends; final ones: from now.

        ``"forever"`` and ``None`` keep them until they are purged. A result that is gone does not
        come back. The jobs are named by handles or by a filter as for :meth:`cancel`; without a
        ``state`` it finds all. Answers for each ``done`` or ``not_found``.
        """
        return await self._changed(partial(Retain, ttl=ttl_of(ttl)), handles, filters, ())

    async def reprioritise(
        self, *handles: JobHandle[Any] | Job, priority: int, **filters: Unpack[Filter]
    ) -> list[EditStatus]:
        """Give live jobs another priority; one that runs has it when it is queued again.

        The jobs are named by handles or by a filter as for :meth:`cancel`. Answers for each
        ``done``, ``finished`` or ``not_found``.
        """
        edit = partial(Reprioritise, priority=check_priority(priority))
        return await self._changed(edit, handles, filters, LIVE)

    def batch(self, key: str) -> Batch:
        """Return the batch of that key, whether or not it has a job; does no I/O.

        Raises:
            InvalidJob: it is no text of 1 to 1,024 UTF-8 bytes.
        """
        if not isinstance(key, str):
            raise InvalidJob(f"batch: expected text, got {key!r}")
        return Batch(self, bounded("batch", key, 1024))

    def events(
        self,
        kinds: Kind | Iterable[Kind] | None = None,
        *,
        queue: str | None = None,
        task: str | None = None,
        batch: str | None = None,
        id: str | None = None,
    ) -> EventStream:
        """Return a stream of what happens from its ``async with`` on, in whichever process.

        It gives a ``JobEvent`` for each event that fits, and a ``Resync`` wherever events may be
        missing. Events of one job may overtake each other where several processes tell them; their
        ``at`` orders them. ``async with`` and ``aclose()`` leave it at once; an ``async for`` that
        is left otherwise goes on hearing until nobody refers to the stream any more.

        Raises:
            InvalidJob: one of the kinds is none.
        """
        return self._events.stream(
            choice_of(kinds, queue=queue, task=task, batch=batch, id=id),
        )

    def on(self, kind: Kind, fn: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``fn(event)`` on the client's loop for each event of a kind, in whichever process.

        ``"resync"`` as kind calls it, with a ``Resync``, whenever events may be missing. The
        calls begin soon after this one, or after the start of the client, and end with that of the
        function returned. ``fn`` should be quick; when it raises, that is logged and nothing else.

        Raises:
            InvalidJob: there is no such kind, or ``fn`` is no plain function.
        """
        return self._events.on(kind, fn)

    def state(self) -> dict[str, Any]:
        """Return what runs, what failed and what waits in this client, without I/O."""
        return {
            "started": self.started,
            "waiters": self._waiters.state(),
            "events": self._events.state(),
            "batches": self._batches.state(),
            "broker": self._broker.state(),
        }

    async def _prepare(self, requests: Sequence[JobRequest[Any]], asked: Asked) -> list[NewJob]:
        prepare, origin = self._deployment.submitter.prepare, self._broker.peer
        for request in requests:
            if not isinstance(request, JobRequest):
                raise InvalidJob(f"expected task.job(…), got {request!r}")
        # A task that is here needs no announcement to count, by name as well.
        tasks = self._deployment.tasks
        requests = [bound(one, tasks) if one.task is None else one for one in requests]
        absent = {one.task_name for one in requests if one.task is None}
        if not absent:
            return [prepare(request, asked, origin=origin) for request in requests]
        known = await self._announced.of(sorted(absent))
        return [
            prepare(request, asked, origin=origin, announced=known.get(request.task_name))
            for request in requests
        ]

    def _handle(self, request: JobRequest[R], job: NewJob, reply: SubmitReply) -> JobHandle[R]:
        return JobHandle(
            self,
            JobRef(job.queue, reply.id),
            task=request.task,
            outcome="accepted" if reply.status is SubmitStatus.ACCEPTED else "duplicate",
            sequence=reply.sequence,
            generation=reply.generation,
        )

    async def _send(
        self, jobs: Sequence[NewJob], connection: object | None = None
    ) -> Sequence[SubmitReply]:
        if failpoints.ARMED:
            failpoints.hit("client.submit.before")
        if connection is None:
            replies = await self._requests.submit(jobs)
        else:
            replies = await self._requests.submit_within(jobs, connection)
        if failpoints.ARMED:
            failpoints.hit("client.submit.after")
        return replies

    async def _ask(self, verb: Callable[[], Awaitable[R]]) -> R:
        return await self._requests.ask(verb)

    async def _find(self, query: FindQuery) -> StoredPage:
        return await self._ask(lambda: self._broker.find(query))

    async def _changed(
        self,
        edit: Callable[..., JobEdit],
        handles: Sequence[JobHandle[Any] | Job],
        filters: Filter,
        states: Sequence[JobState],
    ) -> list[EditStatus]:
        replies = await self._steering.change(edit, handles, filters, states)
        return [reply.status for reply in replies]

    async def _status(self, handle: JobHandle[Any]) -> Job:
        return view(own_record(handle, await self._record(handle.id, handle.queue)))

    async def _edit(self, edit: Edit) -> Sequence[EditReply]:
        return await self._ask(lambda: self._broker.edit(edit))

    def _running(self) -> asyncio.AbstractEventLoop:
        if not self.started or self._loop is None:
            raise Unavailable("the client is not started; use `async with client:` or start()")
        self._check_loop()
        return self._loop

    def _check_loop(self) -> None:
        if self.started and asyncio.get_running_loop() is not self._loop:
            raise Unavailable("the client belongs to another event loop; make one for each loop")

    async def _record(self, id: str, queue: str | None, *, body: bool = False) -> JobRecord:
        check_id(id)
        if queue is None:
            names = [one.queue for one in (await self._ask(self._broker.stats)).queues]
        else:
            names = [queue]
        refs = [JobRef(name, id) for name in names]
        found = await self._ask(lambda: self._broker.get(refs, body=body)) if refs else []
        records = [record for record in found if record is not None]
        if not records:
            where = "any queue" if queue is None else f"queue {queue!r}"
            raise JobNotFound(f"no job {id!r} in {where}", queue=queue, id=id)
        if len(records) > 1:
            queues = [record.queue for record in records]
            raise AmbiguousId(
                f"several queues have a job {id!r}; name one of {', '.join(queues)}",
                id=id,
                queues=queues,
            )
        return records[0]

    async def _wait(self, handle: JobHandle[Any], timeout: Duration | None) -> Job:
        return view(await self._final(handle, timeout))

    async def _result(
        self,
        handle: JobHandle[R],
        task: Task[Any, R] | None,
        timeout: Duration | None,
    ) -> R:
        record = await self._final(handle, timeout)
        task = task or self._deployment.tasks.get(record.task)
        return result_of(record, task, self._deployment.serdes)

    async def _final(self, handle: JobHandle[Any], timeout: Duration | None) -> JobRecord:
        seen, handle._ended = handle._ended, None  # noqa: SLF001
        if seen is not None and (
            seen.job is None
            or seen.job.state is JobState.SUCCEEDED
            or seen.retries == self._waiters.retries
        ):
            return own_record(handle, seen.job)
        self._running()
        limit = None if timeout is None else seconds(timeout, name="timeout")
        try:
            async with asyncio.timeout(limit):
                record = await self._waiters.wait(handle.ref, sequence=handle.sequence)
        except TimeoutError:
            raise await self._timed_out(handle, limit or 0.0) from None
        return own_record(handle, record)

    async def _timed_out(self, handle: JobHandle[Any], limit: float) -> WaitTimeout:
        said = await reason(self._broker, handle.ref, limit)
        return WaitTimeout(said, queue=handle.queue, id=handle.id)


__all__ = ["CancelAnswer", "Client", "ClientSettings", "Deployment"]
