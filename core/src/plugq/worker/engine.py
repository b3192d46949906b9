"""The part of a worker that talks to the broker, on a loop that no handler can block.

It claims as many jobs as there are free slots, hands them over in batches, renews every lease,
stops what has to stop, and settles. A settlement that can not be delivered is repeated for as long
as its lease stands; what handlers do meanwhile does not matter to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import os
import socket
import uuid
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from plugq import failpoints
from plugq.announcement import Announcer
from plugq.envelope import open_body
from plugq.errors import PlugqError, Undecodable
from plugq.events import EventKind, JobEvent
from plugq.job import JobState
from plugq.lifecycle import Alarm, Lifecycle, Supervisor
from plugq.presence import Live, Presence
from plugq.protocols.storage import CancelAsked, ClaimRequest, Holder, LeaseRef, RenewReply, Resync
from plugq.worker.outcome import failed, released, stopped
from plugq.worker.runner import Attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from plugq.clock import Clock
    from plugq.protocols.broker import Broker
    from plugq.protocols.storage import ClaimReply, Lease, Notice, Settlement, SettleReply
    from plugq.task import Task
    from plugq.worker.context import CancelReason
    from plugq.worker.runner import Handler, Runner

logger: logging.Logger = logging.getLogger(__name__)

#: Seconds that a claim waits in the broker before it is asked anew.
LONG_POLL = 60.0
#: Settlements of one call, and pauses between two tries of it in seconds.
BATCH = 500
PAUSE, LONGEST_PAUSE = 0.05, 2.0
#: An unknown task is tried again after 1 s, then 2 s, up to this.
UNKNOWN_PAUSE = 60.0
#: Timers that may be kept although what they were for has ended.
MOST_TIMERS = 1000
#: Seconds that handlers get to end after they were cancelled at shutdown.
LAST_MOMENT = 1.0


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How a worker works; durations in seconds."""

    worker: str
    queues: tuple[str, ...]
    concurrency: int = 32
    prefetch: int = 0
    lease: float = 30.0
    renewal: float = 10.0
    grace: float = 20.0
    abandon_after: float = 30.0
    unknown_ttl: float = 86400.0


class _Held:
    """A lease in the hands of this worker."""

    __slots__ = ("abandoned", "attempt", "lease", "lost", "settlement", "stopping")

    def __init__(self, lease: Lease) -> None:
        self.lease = lease
        self.attempt: Attempt | None = None
        self.settlement: Settlement | None = None
        self.stopping: CancelReason | None = None
        self.abandoned = False
        #: A renewal was refused: whatever the handler comes back with would be, too.
        self.lost = False


Key = tuple[str, int]


class Engine(Lifecycle):
    """Claims, renews and settles for one worker; everything but ``finished`` in its own loop."""

    def __init__(
        self,
        broker: Broker,
        runner: Runner,
        handlers: Mapping[str, Handler],
        settings: EngineSettings,
        clock: Clock,
        *,
        tasks: Mapping[str, Task[Any, Any]] | None = None,
    ) -> None:
        super().__init__()
        self._broker = broker
        self._runner = runner
        self._handlers = handlers
        self._settings = settings
        self._clock = clock
        self._supervisor = Supervisor(clock)
        #: New with each start: claim numbers begin anew, and two processes that were given one id
        #: must not answer for each other's leases.
        self._worker = f"{settings.worker}-{uuid.uuid4().hex[:8]}"
        self._held: dict[Key, _Held] = {}
        #: Attempts that have not finished, and those of them that wait for a slot.
        self._active = 0
        self._prefetched: deque[Attempt] = deque()
        self._running = 0
        self._numbers = itertools.count(1)
        self._acknowledged = 0
        #: A claim was given up that may have been granted: the next renewal must say so.
        self._unlisted = False
        self._claim_error: str | None = None
        #: The queues whose outcomes are stored by themselves, since a call with some has failed.
        self._apart: set[str] = set()
        self._outbox: deque[tuple[Attempt, Settlement | None]] = deque()
        self._signalled = False
        self._kick = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._parked: asyncio.Task[None] | None = None
        self._claiming = False
        self._concurrency = settings.concurrency
        self._timers: list[tuple[float, int, Key, CancelReason]] = []
        self._timer_order = itertools.count()
        self._alarm = Alarm(clock, self._ring)
        self._idle = asyncio.Event()
        self._announced = False
        self._remove_listener: Callable[[], None] | None = None
        self._presence = Presence(broker, clock, self._facts)
        self._announcer = Announcer(broker, clock, tasks or {})
        self._counts = {"started": 0, "finished": 0, "lost": 0, "abandoned": 0, "unknown": 0}

    @property
    def worker(self) -> str:
        """The name under which it holds leases and is known to others."""
        return self._worker

    async def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._broker.start()
        self._remove_listener = self._broker.subscribe(self._noticed)
        self._claiming = True
        self._apart.clear()
        self._supervisor.run("pump", self._pump)
        self._supervisor.run("renew", self._renew_loop)
        self._supervisor.run("presence", self._presence.run)
        self._supervisor.run("announce", self._announcer.run)
        self._kick.set()
        self._announce(EventKind.WORKER_STARTED)

    async def _stop(self) -> None:
        """Finish within the grace, then cancel and release, then disconnect."""
        await self._drain()
        if self._remove_listener is not None:
            self._remove_listener()
        await self._supervisor.stop()
        await self._alarm.stop()
        await self._release_rest()
        await self._presence.remove()
        if self._announced:
            self._announce(EventKind.WORKER_STOPPED)
        await self._broker.stop()

    def _announce(self, kind: EventKind) -> None:
        """Tell other processes that this worker has started or stopped."""
        self._announced = kind is EventKind.WORKER_STARTED
        if self._broker.listened:
            at = self._clock.time()
            self._broker.tell([JobEvent(kind=kind, at=at, worker=self._worker)])

    def scale(self, concurrency: int) -> None:
        """Change the number of slots; running handlers are left alone."""
        self._concurrency = concurrency
        self._kick.set()
        if self.started:
            self._tell()

    def finished(self, attempt: Attempt, settlement: Settlement | None) -> None:
        """Take the end of an attempt, from any thread."""
        self._outbox.append((attempt, settlement))
        if not self._signalled:
            self._signalled = True
            if self._loop is not None:
                # A closed loop means a worker that was stopped before its handler came back.
                with contextlib.suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._kick.set)

    def state(self) -> dict[str, Any]:
        """Return what runs, what failed and what waits."""
        return {
            "worker": self._worker,
            "claiming": self._claiming,
            "concurrency": self._concurrency,
            "running": self._running,
            "prefetched": len(self._prefetched),
            "leases": len(self._held),
            "claim_error": self._claim_error,
            "presence": self._presence.state(),
            "loops": self._supervisor.state(),
            **self._counts,
        }

    def _facts(self) -> Live:
        return Live(
            kind="worker",
            id=self._worker,
            host=socket.gethostname(),
            pid=os.getpid(),
            queues=self._settings.queues,
            tasks=tuple(sorted(self._handlers)),
            concurrency=self._concurrency,
            running=self._running,
            draining=not self._claiming,
        )

    def _tell(self) -> None:
        """Show a change to others now, in the background."""
        self._supervisor.run("tell", self._presence.tell)

    async def _drain(self) -> None:
        self._claiming = False
        self._tell()
        await self._unpark()
        self._give_back_prefetched()
        await self._wait_idle(self._settings.grace)
        if self._active:
            self._stop_attempts([held for held in self._held.values() if held.attempt], "shutdown")
            await self._wait_idle(LAST_MOMENT)
        # While settlements can not be delivered, what has finished since was not looked at.
        self._collect()
        for held in self._held.values():
            if held.settlement is None and held.attempt is not None:
                held.abandoned = True
                held.settlement = released(held.lease)
        self._kick.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(self._settings.lease / 2, 1.0)):
                while self._held:
                    await self._next_turn()

    async def _release_rest(self) -> None:
        """Release what could not be settled, and what a lost reply granted."""
        if not self._held and not self._unlisted:
            return
        with contextlib.suppress(PlugqError, TimeoutError):
            async with asyncio.timeout(LAST_MOMENT):
                holder = Holder(self._worker, self._acknowledged)
                await self._broker.renew([], lease=self._settings.lease, holder=holder)

    def _give_back_prefetched(self) -> None:
        while self._prefetched:
            lease = self._prefetched.popleft().lease
            held = self._held[lease.queue, lease.token]
            held.attempt = None
            held.settlement = released(lease)
            self._active -= 1
        self._kick.set()

    async def _wait_idle(self, seconds: float) -> None:
        self._idle.clear()
        waiting = asyncio.create_task(self._clock.sleep(seconds))
        try:
            while self._active and not waiting.done():
                idle = asyncio.create_task(self._idle.wait())
                await asyncio.wait({waiting, idle}, return_when=asyncio.FIRST_COMPLETED)
                idle.cancel()
                self._idle.clear()
        finally:
            waiting.cancel()

    async def _next_turn(self) -> None:
        self._idle.clear()
        await self._idle.wait()

    async def _unpark(self) -> None:
        parked, self._parked = self._parked, None
        if parked is not None:
            parked.cancel()
            await asyncio.gather(parked, return_exceptions=True)

    async def _pump(self) -> None:
        # After a failure of its own the loop must look at what came in meanwhile.
        self._kick.set()
        while True:
            await self._kick.wait()
            self._kick.clear()
            self._signalled = False
            self._collect()
            while batch := self._unsettled():
                await self._settle(batch)
                self._collect()
            self._idle.set()
            self._park()

    def _collect(self) -> None:
        """Take what handlers have finished."""
        outbox = self._outbox
        while outbox:
            attempt, settlement = outbox.popleft()
            key = (attempt.lease.queue, attempt.lease.token)
            held = self._held.get(key)
            if held is None or held.attempt is not attempt or held.abandoned:
                continue
            self._active -= 1
            self._running -= 1
            held.attempt = None
            if settlement is None or held.lost:
                del self._held[key]
            else:
                held.settlement = _with_progress(settlement, attempt)
        self._deliver_attempts()
        self._counts["finished"] = self._counts["started"] - self._running

    def _unsettled(self, queue: str | None = None) -> list[_Held]:
        """Return outcomes of one queue, or of all those that are not stored by themselves."""
        ready = (
            held
            for held in self._held.values()
            if held.settlement is not None
            and (
                held.lease.queue not in self._apart if queue is None else held.lease.queue == queue
            )
        )
        return list(itertools.islice(ready, BATCH))

    async def _settle(self, batch: list[_Held]) -> None:
        claim = self._claim_request() if self._parked is None else None
        settlements = [held.settlement for held in batch if held.settlement is not None]
        if failpoints.ARMED:
            failpoints.hit("worker.settle.before")
        try:
            if len(self._settings.queues) > 1:
                replies, claimed = await self._broker.settle(settlements, claim)
            else:
                replies, claimed = await self._deliver(settlements, claim)
        except PlugqError as error:
            logger.warning("%d outcomes wait to be stored: %s", len(settlements), error)
            self._part({held.lease.queue for held in batch}, claim)
            return
        except BaseException:
            if claim is not None:
                self._give_up(claim.number)
            raise
        self._settled(batch, replies)
        if claim is not None and claimed is not None:
            self._granted(claimed, claim.number)

    def _part(self, queues: set[str], claim: ClaimRequest | None) -> None:
        """Let no queue wait for another: one that is out of reach may stay so for long."""
        for queue in queues:
            self._apart.add(queue)
            self._supervisor.run(f"outcomes of {queue}", partial(self._settle_apart, queue))
        if claim is None:
            return
        if self._claiming:
            # The same number again, as after any reply that is lost.
            self._parked = asyncio.create_task(self._wait_for_work(claim))
        else:
            self._give_up(claim.number)

    async def _settle_apart(self, queue: str) -> None:
        """Store the outcomes of one queue, however long that takes."""
        while batch := self._unsettled(queue):
            settlements = [held.settlement for held in batch if held.settlement is not None]
            replies, _ = await self._deliver(settlements, None)
            self._settled(batch, replies)
        self._apart.discard(queue)
        self._kick.set()

    def _settled(self, batch: list[_Held], replies: Sequence[SettleReply]) -> None:
        for held, reply in zip(batch, replies, strict=True):
            self._held.pop((held.lease.queue, held.lease.token), None)
            if reply.lost:
                self._counts["lost"] += 1
                logger.warning(
                    "%s %r in queue %r: the lease was lost, so its outcome was refused",
                    held.lease.task,
                    held.lease.id,
                    held.lease.queue,
                )
            elif held.settlement is not None and held.settlement.error is not None:
                _tell(held.lease, held.settlement, reply.state)

    async def _deliver(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """Repeat until the storage has answered; a lease that is gone meanwhile answers so."""
        pause = PAUSE
        while True:
            try:
                return await self._broker.settle(settlements, claim)
            except PlugqError as error:
                logger.warning("%d outcomes wait to be stored: %s", len(settlements), error)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    def _claim_request(self) -> ClaimRequest | None:
        free = self._concurrency + self._settings.prefetch - self._active
        if not self._claiming or free <= 0:
            return None
        return ClaimRequest(
            worker=self._worker,
            number=next(self._numbers),
            queues=self._settings.queues,
            limit=free,
            lease=self._settings.lease,
            peer=self._broker.peer,
        )

    def _park(self) -> None:
        if self._parked is None and (request := self._claim_request()) is not None:
            self._parked = asyncio.create_task(self._wait_for_work(request))

    async def _wait_for_work(self, request: ClaimRequest) -> None:
        pause = PAUSE
        while True:
            try:
                reply = await self._broker.claim(request, wait=LONG_POLL)
            except asyncio.CancelledError:
                self._give_up(request.number)
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the worker claims on
                # The same number again: what a lost reply granted comes back with the next one.
                self._claim_error = f"{type(error).__name__}: {error}"
                logger.warning("no jobs can be claimed now: %s", error)
                try:
                    await self._clock.sleep(pause)
                except asyncio.CancelledError:
                    self._give_up(request.number)
                    raise
                pause = min(pause * 2, LONGEST_PAUSE)
                continue
            self._claim_error = None
            self._granted(reply, request.number)
            self._parked = None
            self._kick.set()
            return

    def _give_up(self, number: int) -> None:
        """Ask no more for what a claim was granted; the next renewal gives it back."""
        self._acknowledged = max(self._acknowledged, number)
        self._unlisted = True

    def _granted(self, reply: ClaimReply, number: int) -> None:
        if failpoints.ARMED and reply.leases:
            failpoints.hit("worker.granted")
        self._acknowledged = max(self._acknowledged, number)
        known = 0
        now = self._clock.monotonic()
        for lease in reply.leases:
            held = self._held[lease.queue, lease.token] = _Held(lease)
            if not self._claiming:
                # Asked for before the worker began to stop.
                held.settlement = released(lease)
                continue
            handler = self._handlers.get(lease.task)
            if handler is None:
                held.settlement = self._unknown(lease)
                continue
            try:
                envelope = open_body(lease.body)
            except Undecodable as error:
                held.settlement = failed(lease, error, code="undecodable")
                continue
            held.attempt = Attempt(lease, envelope, handler)
            self._active += 1
            self._prefetched.append(held.attempt)
            known += 1
            if envelope.timeout is not None:
                self._set_timer(now + envelope.timeout, held, "timeout")
            if lease.deadline_in is not None:
                self._set_timer(now + lease.deadline_in, held, "deadline")
        self._deliver_attempts()
        if known < len(reply.leases):
            self._kick.set()

    def _deliver_attempts(self) -> None:
        """Hand over what there are slots for; the rest stays here and can still be given back."""
        free = self._concurrency - self._running
        attempts = [self._prefetched.popleft() for _ in range(min(free, len(self._prefetched)))]
        if attempts:
            self._running += len(attempts)
            self._counts["started"] += len(attempts)
            self._runner.deliver(attempts)

    def _unknown(self, lease: Lease) -> Settlement:
        self._counts["unknown"] += 1
        message = f"no task {lease.task!r} is registered in this worker"
        if lease.unknown_for >= self._settings.unknown_ttl:
            return failed(lease, LookupError(message), code="unknown_task")
        delay = min(2.0 ** min(lease.unknown, 10), UNKNOWN_PAUSE)
        logger.warning("%s; job %r goes back for %g s", message, lease.id, delay)
        return released(lease, delay=delay, code="unknown_task")

    async def _renew_loop(self) -> None:
        while True:
            await self._clock.sleep(self._settings.renewal)
            while True:
                try:
                    await self._renew()
                except PlugqError as error:
                    # Soon again: the leases run out while the storage is away.
                    logger.warning("leases could not be renewed: %s", error)
                    await self._clock.sleep(min(self._settings.renewal / 4, LONGEST_PAUSE))
                else:
                    break

    async def _renew(self) -> None:
        held = list(self._held.values())
        if not held and not self._unlisted:
            return
        attempts = [one.attempt for one in held]
        refs = [_ref(one) for one in held]
        holder = Holder(self._worker, self._acknowledged)
        self._unlisted = False
        try:
            replies = await self._broker.renew(refs, lease=self._settings.lease, holder=holder)
        except BaseException:
            self._unlisted = True
            for attempt, ref in zip(attempts, refs, strict=True):
                if attempt is not None:
                    attempt.context.keep_progress(ref.progress)
            raise
        lost, cancelled = [], []
        for one, reply in zip(held, replies, strict=True):
            if one.attempt is None:
                # Its settlement may have ended the lease while this renewal was on its way.
                continue
            if reply is RenewReply.LOST:
                one.lost = True
                lost.append(one)
            elif reply is RenewReply.CANCEL:
                cancelled.append(one)
        self._stop_attempts(lost, "lease_lost")
        self._stop_attempts(cancelled, "cancel")
        self._counts["lost"] += len(lost)

    def _noticed(self, notices: Sequence[Notice]) -> None:
        for notice in notices:
            if isinstance(notice, CancelAsked):
                asked = {(ref.queue, ref.id) for ref in notice.refs}
                self._stop_attempts(
                    [
                        held
                        for held in self._held.values()
                        if held.attempt is not None and (held.lease.queue, held.lease.id) in asked
                    ],
                    "cancel",
                )
            elif isinstance(notice, Resync):
                self._supervisor.run("resync", self._renew)

    def _stop_attempts(self, held: Sequence[_Held], reason: CancelReason) -> None:
        attempts = []
        now = self._clock.monotonic()
        for one in held:
            if one.attempt is not None and one.stopping is None:
                one.stopping = reason
                attempts.append(one.attempt)
                self._set_timer(now + self._settings.abandon_after, one, reason)
        if attempts:
            self._runner.stop_attempts(attempts, reason)

    def _set_timer(self, at: float, held: _Held, reason: CancelReason) -> None:
        key = (held.lease.queue, held.lease.token)
        if len(self._timers) > 4 * len(self._held) + MOST_TIMERS:
            # Those of jobs that ended long before their time.
            self._timers = [timer for timer in self._timers if timer[2] in self._held]
            heapq.heapify(self._timers)
        first = self._timers[0][0] if self._timers else None
        heapq.heappush(self._timers, (at, next(self._timer_order), key, reason))
        if first is None or at < first:
            self._alarm.set(at)

    def _ring(self) -> None:
        now = self._clock.monotonic()
        stop: list[tuple[_Held, CancelReason]] = []
        while self._timers and self._timers[0][0] <= now:
            _, _, key, reason = heapq.heappop(self._timers)
            held = self._held.get(key)
            if held is None or held.attempt is None:
                continue
            if held.stopping is None:
                if reason == "timeout" and (at := _times_out(held.attempt, now)) > now:
                    # It waits for a slot or a thread, or has done so: its time began later.
                    heapq.heappush(self._timers, (at, next(self._timer_order), key, reason))
                    continue
                stop.append((held, reason))
            elif held.stopping == reason:
                self._abandon(held, reason)
        for held, reason in stop:
            self._stop_attempts([held], reason)
        self._alarm.set(self._timers[0][0] if self._timers else None)

    def _abandon(self, held: _Held, reason: CancelReason) -> None:
        """Settle for a handler that does not stop; its slot is free, and its token the fence."""
        attempt = held.attempt
        if attempt is None:
            return
        logger.error(
            "%s %r did not stop within %g s of its %s and is left behind",
            held.lease.task,
            held.lease.id,
            self._settings.abandon_after,
            reason,
        )
        self._runner.leave_behind(attempt)
        held.attempt = None
        held.abandoned = True
        self._active -= 1
        if attempt in self._prefetched:
            self._prefetched.remove(attempt)
        else:
            self._running -= 1
        self._counts["abandoned"] += 1
        settlement = stopped(held.lease, attempt.envelope.retry, reason)
        if settlement is None:
            del self._held[held.lease.queue, held.lease.token]
        else:
            held.settlement = settlement
        self._kick.set()


def _times_out(attempt: Attempt, now: float) -> float:
    """Return when the timeout of an attempt passes, at the earliest for one that waits."""
    began = now if attempt.started_at is None else attempt.started_at
    return began + (attempt.envelope.timeout or 0.0)


def _ref(held: _Held) -> LeaseRef:
    """Return the name of a lease, with what its handler has said since the last renewal."""
    lease = held.lease
    said = None if held.attempt is None else held.attempt.context.take_progress()
    if said is None:
        return LeaseRef(lease.queue, lease.id, lease.token)
    return LeaseRef(
        lease.queue,
        lease.id,
        lease.token,
        said,
        task=lease.task,
        attempt=lease.attempt,
        lane=lease.lane,
        batch=lease.batch,
    )


def _with_progress(settlement: Settlement, attempt: Attempt) -> Settlement:
    """Return the settlement with what the handler said last, if a renewal has not carried it."""
    said = attempt.context.take_progress()
    return settlement if said is None else msgspec.structs.replace(settlement, progress=said)


def _tell(lease: Lease, settlement: Settlement, state: JobState | None) -> None:
    """Log an attempt that did not succeed, for whoever watches the worker."""
    error = settlement.error
    logger.info(
        "%s %r attempt %d of %d: %s: %s; %s",
        lease.task,
        lease.id,
        lease.attempt,
        lease.max_attempts,
        error.type if error else "",
        error.message if error else "",
        f"again in {settlement.delay:.1f} s" if state is JobState.DELAYED else f"it is {state}",
    )


__all__ = ["Engine", "EngineSettings"]
