"""The broker that talks to a storage in this process."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import socket
import uuid
from operator import attrgetter
from typing import TYPE_CHECKING, Any, cast

from plugq import failpoints
from plugq.broker.budgets import Budgets
from plugq.broker.coalesce import Coalescer, Coalescers
from plugq.broker.dispatch import (
    Action,
    Answered,
    Asked,
    Dispatch,
    Due,
    Event,
    GiveBack,
    Gone,
    LetIn,
    Probe,
    Refused,
    Reply,
    Returned,
    Short,
    Tick,
    Timer,
    Woken,
)
from plugq.broker.limited import LimitedQueues
from plugq.broker.reports import Reports
from plugq.broker.scheduler import Scheduler
from plugq.broker.sweeper import Sweeper
from plugq.errors import ConfigError, PlugqError, Unavailable
from plugq.events import EventKind
from plugq.job import JobState, Outcome
from plugq.lifecycle import Alarm, Lifecycle, Supervisor
from plugq.presence import Live, Presence
from plugq.protocols.edits import Configure
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import (
    ClaimReply,
    ClaimRequest,
    Resync,
    Settlement,
    SubmitStatus,
    Wake,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence

    from plugq.broker.budgets import MakeLimiter
    from plugq.broker.reports import Observer
    from plugq.clock import Clock
    from plugq.events import JobEvent
    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, EditReply, QueueSettings
    from plugq.protocols.limiter import Limiter
    from plugq.protocols.storage import (
        BatchCounts,
        FindQuery,
        Heard,
        Holder,
        LeaseRef,
        Loaded,
        NewJob,
        Notice,
        Page,
        Register,
        RegisterChange,
        RenewReply,
        SettleReply,
        Stats,
        Storage,
        SubmitReply,
        Swapped,
    )
    from plugq.protocols.transactions import TransactionalStorage
    from plugq.schedule import Definition

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds after which a waiting claim asks again though nothing woke it, with and without
#: wake-ups by the storage.
SLOW_POLL = 10.0
POLL = 1.0

#: Answers that stand for a whole call of which nothing was stored.
_NOTHING_STORED = frozenset({SubmitStatus.FULL, SubmitStatus.DRAINING, SubmitStatus.REFUSED})


def _no_limiters(_: bytes) -> Limiter:
    message = "no limiters are known to this process"
    raise ConfigError(message)


class LocalBroker(Lifecycle):
    """Dispatch, coalescing and housekeeping over one storage, for one event loop.

    ``maintain`` stands for the office of the sweeper, as workers and brokers do and plain clients
    do not. ``patience`` is how long a new sweeper leaves lapsed leases alone. ``settings`` are
    stored at the start; where processes differ the last one started wins. ``limiters`` makes the
    limiter of a stored specification. ``schedules`` are announced in the name of ``owner``; the
    elected process runs those of everybody. A broker that maintains lists itself among the live
    ones; ``listed=False`` leaves that to the worker that it is part of.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        *,
        maintain: bool = False,
        max_crashes: int = 3,
        patience: float = 12.0,
        deadline_grace: float = 30.0,
        settings: Sequence[QueueSettings] = (),
        limiters: MakeLimiter = _no_limiters,
        schedules: Sequence[Definition] = (),
        owner: str = "",
        observer: Observer | None = None,
        listed: bool = True,
    ) -> None:
        super().__init__()
        self._storage = storage
        self._clock = clock
        self._settings = tuple(settings)
        self._peer = uuid.uuid4().hex
        self._supervisor = Supervisor(clock)
        self._reports = Reports(clock, observer, storage, self._peer)
        self._sweeper = (
            Sweeper(
                storage,
                clock,
                name=self._peer,
                max_crashes=max_crashes,
                patience=patience,
                deadline_grace=deadline_grace,
                report=self._reports.changed,
                news=self._schedules_changed,
            )
            if maintain
            else None
        )
        self._scheduler = (
            Scheduler(
                storage,
                clock,
                schedules,
                owner=owner,
                active=lambda: self._sweeper is not None and self._sweeper.elected,
                ticked=self._reports.ticked,
            )
            if maintain
            else None
        )
        self._presence = Presence(storage, clock, self._facts) if maintain and listed else None
        self._poll = SLOW_POLL if Capability.PUSH_WAKEUPS in storage.capabilities else POLL
        self._dispatch = Dispatch(self._next_poll)
        #: Others were told that this broker runs, and have to be told when it does not any more.
        self._announced = False
        self._limits = LimitedQueues(
            Budgets(limiters),
            clock,
            again=lambda queues: self._handle(Woken(queues)),
            let_in=lambda queues: self._spawn(self._let_in(queues)),
        )
        self._keys = itertools.count()
        self._replies: dict[int, asyncio.Future[ClaimReply]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._alarm = Alarm(clock, lambda: self._handle(Tick()))
        self._listeners: list[Callable[[Sequence[Notice]], None]] = []
        self._submits: Coalescers[NewJob, SubmitReply] = Coalescers(
            lambda: Coalescer(
                storage.submit,
                size=lambda job: len(job.body) + 200,
                refused=lambda reply: reply.status in _NOTHING_STORED,
                queue=attrgetter("queue"),
            ),
            queue=attrgetter("queue"),
            apart=self._lie_apart,
        )
        self._gets: dict[tuple[bool, bool], Coalescers[JobRef, JobRecord | None]] = {}

    @property
    def peer(self) -> str:
        """The name under which the storage signals to this broker."""
        return self._peer

    async def _start(self) -> None:
        await self._storage.start()
        if self._settings:
            await self._configure()
        watching = asyncio.Event()
        self._supervisor.run("watch", lambda: self._watch(watching))
        # A job that ends before the peer is known would be told to nobody.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await watching.wait()
        if self._sweeper is not None:
            self._supervisor.run("sweep", self._sweeper.run)
        if self._scheduler is not None:
            self._supervisor.run("schedule", self._scheduler.run)
        if self._presence is not None:
            self._supervisor.run("presence", self._presence.run)
        if self._sweeper is not None:
            self._announced = True
            self._reports.broker(EventKind.BROKER_STARTED)

    async def _stop(self) -> None:
        for key in list(self._replies):
            self._handle(Gone(key))
        for reply in list(self._replies.values()):
            reply.cancel()
        self._replies.clear()
        await self._submits.stop()
        for gets in self._gets.values():
            await gets.stop()
        await self._supervisor.stop()
        await self._alarm.stop()
        await self._limits.stop()
        while self._tasks:
            # Probes whose callers have gone still have leases to give back.
            await asyncio.gather(*self._tasks, return_exceptions=True)
        # Their answers may have set a timer again.
        await self._limits.stop()
        if self._sweeper is not None:
            with contextlib.suppress(PlugqError):
                await self._sweeper.resign()
        if self._presence is not None:
            await self._presence.remove()
        if self._announced:
            self._announced = False
            self._reports.broker(EventKind.BROKER_STOPPED)
        await self._storage.stop()

    async def submit(
        self, jobs: Sequence[NewJob], *, within: object | None = None
    ) -> Sequence[SubmitReply]:
        """Store jobs; calls under way at one time share one call of the storage.

        Nothing is told of those that are stored ``within`` a transaction: it may not commit.
        """
        if within is not None:
            return await self._submit_within(within, jobs)
        if failpoints.ARMED:
            failpoints.hit("broker.submit.before")
        began = self._reports.now()
        replies = await self._submits.call(jobs)
        if failpoints.ARMED:
            failpoints.hit("broker.submit.after")
        self._reports.submitted(jobs, replies, began)
        delays = [
            job.delay
            for job, reply in zip(jobs, replies, strict=True)
            if job.delay and reply.state is JobState.DELAYED
        ]
        if delays:
            self._handle(Due(min(delays)))
        return replies

    async def _submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        if Capability.TRANSACTIONAL_SUBMIT not in self._storage.capabilities:
            message = (
                f"connection: {type(self._storage).__name__} can not submit inside a transaction "
                "of yours; use a storage that declares transactional_submit, or submit after the "
                "commit"
            )
            raise ConfigError(message)
        storage = cast("TransactionalStorage", self._storage)
        if failpoints.ARMED:
            failpoints.hit("broker.submit.before")
        replies = await storage.submit_within(connection, jobs)
        if failpoints.ARMED:
            failpoints.hit("broker.submit.after")
        return replies

    async def claim(self, request: ClaimRequest, *, wait: float = 0.0) -> ClaimReply:
        """Return leases as soon as there is one, or none after ``wait`` seconds."""
        key = next(self._keys)
        future: asyncio.Future[ClaimReply] = asyncio.get_running_loop().create_future()
        self._replies[key] = future
        now = self._clock.monotonic()
        closed = self._limits.budgets.closed_until(request.queues, now)
        self._handle(Asked(key, request, now + wait, closed))
        try:
            reply = await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and future.exception() is None:
                self._handle_actions([GiveBack(future.result())])
            else:
                self._handle(Gone(key))
            raise
        finally:
            self._replies.pop(key, None)
        self._reports.started(reply.leases, request.worker)
        return reply

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts and claim, in one step, what is ready now."""
        changes = self._dispatch.changes
        lent = None
        if claim is None and (frees := self._limits.budgets.frees(settlements)):
            # What these jobs leave free would wake another broker, which knows no state.
            lent = self._dispatch.lend(frees)
        sent = self._clock.monotonic()
        asked = claim if lent is None else lent.request
        asked = None if asked is None else self._limits.budgets.prepare(asked, sent)
        began = self._reports.now()
        try:
            if failpoints.ARMED:
                failpoints.hit("broker.settle.before")
            replies, claimed = await self._storage.settle(settlements, asked)
            if failpoints.ARMED:
                failpoints.hit("broker.settle.after")
        except BaseException:
            if lent is not None:
                self._handle(Returned(lent.key))
            raise
        self._reports.settled(settlements, replies, began)
        delays = [
            settlement.delay
            for settlement, reply in zip(settlements, replies, strict=True)
            if reply.state is JobState.DELAYED
        ]
        if asked is not None and claimed is not None:
            more = self._limits.learn(asked, claimed, sent)
            if lent is not None:
                self._handle(Answered(lent.key, claimed, more))
                claimed = None
            else:
                if len(claimed.leases) < asked.limit and not more:
                    self._handle(Short(asked.queues, claimed.next_in, changes))
                self._reports.started(claimed.leases, asked.worker)
        if delays:
            self._handle(Due(min(delays)))
        return replies, claimed

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases."""
        began = self._reports.now()
        if failpoints.ARMED:
            failpoints.hit("broker.renew.before")
        replies = await self._storage.renew(leases, lease=lease, holder=holder)
        if failpoints.ARMED:
            failpoints.hit("broker.renew.after")
        self._reports.renewed(leases, replies, began)
        return replies

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs; calls under way at one time share one call of the storage."""
        gets = self._gets.get((body, waiting))
        if gets is None:

            async def verb(refs: Sequence[JobRef]) -> Sequence[JobRecord | None]:
                return await self._storage.get(refs, body=body, waiting=waiting)

            gets = self._gets[body, waiting] = Coalescers(
                lambda: Coalescer(verb, queue=attrgetter("queue")),
                queue=attrgetter("queue"),
                apart=self._lie_apart,
            )
        return await gets.call(refs)

    async def find(self, query: FindQuery) -> Page:
        """Return one page of jobs."""
        return await self._storage.find(query)

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches, ``None`` for one that never had a job or is forgotten."""
        return await self._storage.batches(batches)

    async def stats(self) -> Stats:
        """Return the store in numbers."""
        return await self._storage.stats()

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        began = self._reports.now()
        if failpoints.ARMED:
            failpoints.hit("broker.edit.before")
        replies = await self._storage.edit(edit)
        if failpoints.ARMED:
            failpoints.hit("broker.edit.after")
        self._reports.edited(edit, replies, began)
        return replies

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers, all as of one moment."""
        return await self._storage.load(keys)

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all the changes, or none if any version is another than expected."""
        return await self._storage.swap(changes)

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return every register whose key starts with ``prefix``, by key."""
        return await self._storage.scan(prefix)

    def subscribe(self, listener: Callable[[Sequence[Notice]], None]) -> Callable[[], None]:
        """Call ``listener`` with every batch of notices; the function returned ends that."""
        self._listeners.append(listener)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(listener)

        return remove

    def listen(self) -> AsyncGenerator[Heard, None]:
        """Iterate over what happens in the namespace; the first thing heard is ``Resync``."""
        return self._storage.listen()

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens, in any process."""
        self._storage.tell(events)

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening, as of the last change."""
        return self._storage.listened

    def state(self) -> dict[str, Any]:
        """Return what runs, what failed and what waits, without I/O."""
        return {
            "peer": self._peer,
            "waiting_claims": self._dispatch.waiting,
            "limits": self._limits.budgets.state(),
            "loops": self._supervisor.state(),
            "sweeper": None if self._sweeper is None else self._sweeper.state(),
            "schedules": {} if self._scheduler is None else self._scheduler.state(),
        }

    def _facts(self) -> Live:
        return Live(kind="broker", id=self._peer, host=socket.gethostname(), pid=os.getpid())

    async def _configure(self) -> None:
        """Store the settings; where others were stored before, say so."""
        stored: dict[str, QueueSettings | None] = {}
        # A queue of others that is out of reach is no reason not to start.
        with contextlib.suppress(Unavailable):
            stored = {queue.queue: queue.settings for queue in (await self._storage.stats()).queues}
        for settings in self._settings:
            if stored.get(settings.queue) not in {None, settings}:
                logger.warning(
                    "queue %r had other limits, those of this process count from now on: "
                    "give all processes the same",
                    settings.queue,
                )
        await self._storage.edit(Configure(self._settings))

    def _lie_apart(self) -> bool:
        return bool(getattr(self._storage, "apart", False))

    async def _watch(self, watching: asyncio.Event) -> None:
        async with contextlib.aclosing(self._storage.watch(self._peer)) as notices:
            async for notice in notices:
                watching.set()
                if isinstance(notice, Wake | Resync):
                    self._handle(Woken())
                for listener in tuple(self._listeners):
                    try:
                        listener((notice,))
                    except Exception:
                        logger.exception("a listener for notices failed")

    def _next_poll(self) -> float:
        return self._poll * random.uniform(0.75, 1.25)  # noqa: S311 - jitter

    def _handle(self, event: Event) -> None:
        self._handle_actions(self._dispatch.handle(event, self._clock.monotonic()))

    def _handle_actions(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Probe(key, request):
                    self._spawn(self._probe(key, request))
                case Reply(key, reply):
                    future = self._replies.get(key)
                    if future is not None and not future.done():
                        future.set_result(ClaimReply() if reply is None else reply)
                    elif reply is not None and reply.leases:
                        self._spawn(self._give_back(reply))
                case GiveBack(reply):
                    if reply.leases:
                        self._spawn(self._give_back(reply))
                case LetIn(queues):
                    self._limits.leave(queues)
                case Timer(at):
                    self._alarm.set(at)

    def _schedules_changed(self) -> None:
        if self._scheduler is not None:
            self._scheduler.changed()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _probe(self, key: int, request: ClaimRequest) -> None:
        sent = self._clock.monotonic()
        request = self._limits.budgets.prepare(request, sent)
        try:
            if failpoints.ARMED:
                failpoints.hit("broker.claim.before")
            reply = await self._storage.claim(request)
            if failpoints.ARMED and reply.leases:
                failpoints.hit("broker.claim.after")
        except PlugqError as error:
            self._fail(key, error)
        except Exception as error:
            logger.exception("the storage failed to answer a claim")
            self._fail(key, Unavailable(f"the storage failed: {type(error).__name__}: {error}"))
        else:
            self._handle(Answered(key, reply, self._limits.learn(request, reply, sent)))

    def _fail(self, key: int, error: PlugqError) -> None:
        future = self._replies.get(key)
        if future is not None and not future.done():
            future.set_exception(error)
        self._handle(Refused(key))

    async def _let_in(self, queues: tuple[str, ...]) -> None:
        """Let in, for others, what this broker has parked; when that fails a sweep does it."""
        peer = self._peer
        request = ClaimRequest(worker=peer, number=0, queues=queues, limit=0, peer=peer)
        try:
            await self._storage.claim(request)
        except PlugqError as error:
            logger.warning("queues %s could not be looked at: %s", ", ".join(queues), error)

    async def _give_back(self, reply: ClaimReply) -> None:
        """Release leases that nobody waits for; when that fails they lapse."""
        releases = [
            Settlement(queue=x.queue, id=x.id, token=x.token, outcome=Outcome.RELEASE)
            for x in reply.leases
        ]
        try:
            await self._storage.settle(releases)
        except PlugqError as error:
            logger.warning("%d leases could not be given back: %s", len(releases), error)


__all__ = ["LocalBroker"]
