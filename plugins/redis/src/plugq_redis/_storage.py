"""The storage itself: each verb is one script call, and the server does it in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from plugq.lifecycle import Lifecycle
from plugq.protocols.plugin import API_VERSION, Capability
from plugq_redis import _claims, _index, _registers, _submit
from plugq_redis._check import check, check_rights
from plugq_redis._hub import Hub
from plugq_redis._options import RedisOptions, Target, duration
from plugq_redis._server import Server
from plugq_redis._signals import Listener, Watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

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
        Loaded,
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
        SweepReply,
        SweepRequest,
    )


class RedisStorage(Lifecycle):
    """Keeps jobs in a Redis server, shared by every process that can reach it.

    What was acknowledged is as durable as the server is configured to make it; the start says in
    the log what that is. The calls of all tasks share one connection, and another one carries
    signals. An instance belongs to the event loop that starts it.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = RedisOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.DURABLE,
            Capability.SHARED_PROCESSES,
            Capability.SHARED_HOSTS,
            Capability.PUSH_WAKEUPS,
        },
    )

    def __init__(self, options: RedisOptions, context: PluginContext) -> None:
        super().__init__()
        self.options = options
        self._logger = context.logger
        target = Target(options, context.base_dir)
        timeout = duration(options.timeout, "timeout")
        self._server = Server(target, options, context, timeout)
        self._hub = Hub(target, self._server, timeout, context.logger)
        self._promise = ""

    @property
    def promise(self) -> str:
        """What the server is configured to keep of what it has acknowledged, in one line."""
        return self._promise

    async def _start(self) -> None:
        await self._server.open()
        facts = await check(self._server, self.options)
        self._promise = facts.promise
        self._logger.info("%s", facts.promise)
        await self._server.load()
        await check_rights(self._server)
        self._hub.open()

    async def _stop(self) -> None:
        await self._hub.close()
        await self._server.close()

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs as durably as the server is configured, and answer for each."""
        return await _submit.submit(self._server, jobs)

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        await _submit.restore(self._server, jobs)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        return await _claims.claim(self._server, request)

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim, in one step."""
        return await _claims.settle(self._server, settlements, claim)

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        return await _claims.renew(self._server, leases, lease, holder)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due, and wake idle peers where jobs are ready."""
        return await _index.sweep(self._server, request)

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        return await _index.get(self._server, refs, body=body, waiting=waiting)

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        names = await self._server.queues() if query.queue is None else [query.queue]
        return await _index.find(dict.fromkeys(names, self._server), query)

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches."""
        return await _index.batches(self._server, batches)

    async def stats(self) -> Stats:
        """Return the counters."""
        return await _index.stats(self._server)

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        return await _index.edit(self._server, edit)

    def watch(self, peer: str) -> Watch:
        """Iterate over the notices to a peer, in the event loop that started the storage."""
        return Watch(peer, self._hub)

    def listen(self) -> Listener:
        """Iterate over what happens, in the event loop that started the storage."""
        return Listener(self._hub)

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens."""
        self._hub.tell(events)

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening, as of the last change of this instance."""
        return self._server.listened

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        return await _registers.load(self._server, keys)

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        return await _registers.swap(self._server, changes)

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        return await _registers.scan(self._server, prefix)
