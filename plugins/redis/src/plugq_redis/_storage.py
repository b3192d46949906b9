"""The storage itself: what it is made of, and how it starts and stops."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from plugq.errors import ConfigError
from plugq.lifecycle import Lifecycle
from plugq.protocols import checks
from plugq.protocols.plugin import API_VERSION, Capability
from plugq_redis._check import check, check_rights
from plugq_redis._hub import Hub
from plugq_redis._line import not_started
from plugq_redis._nodes import Nodes
from plugq_redis._options import RedisOptions, Target, duration, target_of
from plugq_redis._place import Keys
from plugq_redis._server import Server
from plugq_redis._signals import Listener, Watch
from plugq_redis._single import Single
from plugq_redis._spread import Spread
from plugq_redis._upkeep import facts_of

if TYPE_CHECKING:
    import asyncio
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
    from plugq.protocols.upkeep import Fact
    from plugq_redis._check import Facts


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
        timeout = duration(options.timeout, "timeout")
        self._target = target_of(options, context.base_dir)
        keys = Keys(options.prefix, context, self._target.database)
        self._server = Server(self._target, keys, timeout, context.logger)
        self._nodes = Nodes(self._target, keys, timeout, context.logger)
        self._verbs: Single | Spread = Single(self._server)
        self._hub = Hub(
            self._where, self._publish, keys, timeout, context.logger, learn=self._nodes.learn
        )
        self._namespace = context.namespace
        self._found: Facts | None = None

    @property
    def promise(self) -> str:
        """What the server is configured to keep of what it has acknowledged, in one line."""
        return "" if self._found is None else self._found.promise

    async def facts(self) -> Sequence[Fact]:
        """Return what the server promised at the start, and what a user has to be let do."""
        if self._found is None:
            raise not_started()
        return facts_of(self._found, self._namespace, self.options.prefix)

    @property
    def apart(self) -> bool:
        """Whether queues lie on several nodes, of which one may be down while others are not."""
        return isinstance(self._verbs, Spread)

    async def _start(self) -> None:
        await self._server.open()
        facts = await check(self._server, self.options)
        self._found = facts
        level = logging.INFO if facts.appendonly else logging.WARNING
        self._logger.log(level, "%s", facts.promise)
        cluster = facts.cluster if self.options.cluster == "auto" else self.options.cluster
        if cluster:
            if self._target.local:
                message = (
                    "storage.url: the nodes of a cluster are reached by their addresses; write "
                    "redis:// and the address of one of them"
                )
                raise ConfigError(message)
            await self._nodes.open(self._server.line)
            self._verbs = Spread(self._nodes)
        else:
            self._verbs = Single(self._server)
            await self._server.load()
            await check_rights(self._server)
        self._hub.open()

    async def _stop(self) -> None:
        await self._hub.close()
        await self._nodes.close()
        if isinstance(self._verbs, Spread):
            await self._verbs.close()
        await self._server.close()

    def _where(self) -> Target:
        """Return the server that carries signals."""
        if isinstance(self._verbs, Spread):
            return self._nodes.target_of(self._nodes.keys.common)
        return self._target

    def _publish(self, channel: str, data: bytes) -> asyncio.Future[Any]:
        """Send a message without waiting; the future tells of its end."""
        if isinstance(self._verbs, Spread):
            return self._nodes.publish(self._nodes.keys.common, channel, data)
        return self._server.publish(channel, data)

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs as durably as the server is configured, and answer for each."""
        checks.check_submit(jobs)
        return await self._verbs.submit(jobs)

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        checks.check_restore(jobs)
        await self._verbs.restore(jobs)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        checks.check_claim(request)
        return await self._verbs.claim(request)

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim, in one step."""
        checks.check_settle(settlements)
        checks.check_claim(claim)
        return await self._verbs.settle(settlements, claim)

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        checks.check_renew(leases, lease, holder)
        return await self._verbs.renew(leases, lease, holder)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due, and wake idle peers where jobs are ready."""
        checks.check_sweep(request)
        return await self._verbs.sweep(request)

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        return await self._verbs.get(refs, body=body, waiting=waiting)

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        return await self._verbs.find(query)

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches."""
        return await self._verbs.batches(batches)

    async def stats(self) -> Stats:
        """Return the counters."""
        return await self._verbs.stats()

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        checks.check_edit(edit)
        return await self._verbs.edit(edit)

    def watch(self, peer: str) -> Watch:
        """Iterate over the notices to a peer, in the event loop that started the storage."""
        if isinstance(self._verbs, Spread):
            return Watch(peer, self._hub, self._verbs)
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
        return self._verbs.listened

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        return await self._verbs.load(keys)

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        checks.check_swap(changes)
        return await self._verbs.swap(changes)

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        return await self._verbs.scan(prefix)
