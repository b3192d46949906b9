"""The memory storage: the readable reference of the storage contract, and the fastest one.

The jobs live as long as the instance. One instance may serve several event loops in several
threads at once: each verb does its work in one short synchronous step under a lock, which is
also what makes it atomic. :class:`MemoryStorage` itself only takes the lock, reads the clock and
sends the signals; the verbs are in ``memory_submit``, ``memory_attempts``, ``memory_sweep`` and
``memory_index``, over the moves of ``memory_jobs`` and the order of ``memory_queue``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

import msgspec

from plugq.builtin import memory_attempts, memory_index, memory_submit, memory_sweep
from plugq.builtin.memory_jobs import JobTable
from plugq.builtin.memory_registers import RegisterFile
from plugq.builtin.memory_signals import Listener, SignalBoard, Watch
from plugq.clock import SystemClock
from plugq.protocols import checks
from plugq.protocols.plugin import API_VERSION, Capability
from plugq.protocols.storage import Loaded, SweepReply
from plugq.protocols.upkeep import Fact

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.clock import Clock
    from plugq.events import JobEvent
    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, EditReply
    from plugq.protocols.plugin import PluginContext
    from plugq.protocols.storage import (
        BatchCounts,
        ClaimReply,
        ClaimRequest,
        FindQuery,
        Holder,
        LeaseRef,
        NewJob,
        Page,
        Register,
        RegisterChange,
        RenewReply,
        Settlement,
        SettleReply,
        Stats,
        SubmitReply,
        Swapped,
        SweepRequest,
    )


class MemoryOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The memory storage has nothing to configure."""


class MemoryStorage:
    """Keeps jobs in this process for as long as the instance lives.

    ``start`` and ``stop`` are counted, so that several users can share an instance: it serves
    while more have started it than have stopped it, and keeps its jobs either way.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = MemoryOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.PUSH_WAKEUPS})

    def __init__(self, options: MemoryOptions, context: PluginContext) -> None:
        self.options = options
        self._clock: Clock = context.clock or SystemClock()
        self._lock = threading.Lock()
        self._latest = 0.0
        self._signals = SignalBoard()
        self._registers = RegisterFile()
        self._jobs = JobTable(self._signals, self._registers.next_version)

    async def start(self) -> None:
        """Serve one more user."""
        with self._lock:
            self._signals.users += 1

    async def stop(self) -> None:
        """Serve one user less; with the last one every watch ends, and whatever listens."""
        with self._lock:
            self._signals.users = max(0, self._signals.users - 1)
            if not self._signals.users:
                self._signals.end()

    async def facts(self) -> Sequence[Fact]:
        """Return what a storage in memory keeps."""
        return [Fact(name="keeps", text="nothing outlasts this process")]

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs and answer for each."""
        checks.check_submit(jobs)
        with self._lock:
            replies = memory_submit.submit(self._jobs, jobs, self._now())
            self._signals.flush()
        return replies

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        checks.check_restore(jobs)
        with self._lock:
            now = self._now()
            for job in jobs:
                memory_submit.restore(self._jobs, job, now)
            self._signals.flush()

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        checks.check_claim(request)
        with self._lock:
            reply = memory_attempts.claim(self._jobs, request, self._now())
            self._signals.flush(caller=request.peer)
        return reply

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim."""
        checks.check_settle(settlements)
        checks.check_claim(claim)
        with self._lock:
            now = self._now()
            replies = [
                memory_attempts.settle(self._jobs, settlement, now) for settlement in settlements
            ]
            claimed = None if claim is None else memory_attempts.claim(self._jobs, claim, now)
            self._signals.flush(caller="" if claim is None else claim.peer)
        return replies, claimed

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        checks.check_renew(leases, lease, holder)
        with self._lock:
            replies = memory_attempts.renew(self._jobs, leases, lease, holder, self._now())
            self._signals.flush()
        return replies

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due, and wake idle peers where jobs are ready."""
        checks.check_sweep(request)
        with self._lock:
            now = self._now()
            reply = memory_sweep.sweep(self._jobs, request, now)
            self._registers.expire(now, request.limit)
            self._signals.flush(everything=True)
            expiry = self._registers.next_expiry()
        if expiry is None:
            return reply
        wait = max(0.0, expiry - now)
        if reply.next_in is not None:
            wait = min(wait, reply.next_in)
        return SweepReply(changes=reply.changes, next_in=wait)

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        with self._lock:
            return memory_index.get(self._jobs, refs, self._now(), body=body, waiting=waiting)

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        with self._lock:
            return memory_index.find(self._jobs, query, self._now())

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches."""
        with self._lock:
            return memory_index.batches(self._jobs, batches, self._now())

    async def stats(self) -> Stats:
        """Return the counters."""
        with self._lock:
            return memory_index.stats(self._jobs, self._now())

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        checks.check_edit(edit)
        with self._lock:
            replies = memory_index.edit(self._jobs, edit, self._now())
            self._signals.flush()
        return replies

    def watch(self, peer: str) -> Watch:
        """Iterate over the notices to a peer, in the event loop that fetches the first."""
        return Watch(peer, self._signals, self._lock)

    def listen(self) -> Listener:
        """Iterate over what happens, in the event loop that fetches the first."""
        return Listener(self._signals, self._lock)

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens."""
        if self._signals.listeners:
            with self._lock:
                self._signals.tell(events)

    @property
    def listened(self) -> bool:
        """Whether anybody listens."""
        return bool(self._signals.listeners)

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        with self._lock:
            now = self._now()
            found = tuple(self._registers.read(key, now) for key in keys)
        return Loaded(registers=found, now=now)

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        checks.check_swap(changes)
        with self._lock:
            return self._registers.swap(changes, self._now())

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        with self._lock:
            return self._registers.scan(prefix, self._now())

    def _now(self) -> float:
        self._signals.check_serving()
        now = self._clock.time()
        if now < self._latest:
            return self._latest
        self._latest = now
        return now


__all__ = ["MemoryOptions", "MemoryStorage"]
