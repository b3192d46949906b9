"""A storage to fill in: every verb of the protocol, and what it starts and stops."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import msgspec

from plugq.clock import Clock, SystemClock
from plugq.errors import ConfigError, Unavailable
from plugq.lifecycle import Lifecycle

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from plugq.events import JobEvent
    from plugq.job import JobRecord, JobRef
    from plugq.protocols import (
        BatchCounts,
        Capability,
        ClaimReply,
        ClaimRequest,
        Edit,
        EditReply,
        FindQuery,
        Heard,
        Holder,
        LeaseRef,
        Loaded,
        NewJob,
        Notice,
        Page,
        PluginContext,
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


class TemplateStorageOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the store is."""

    url: str


class TemplateStorage(Lifecycle):
    """Keeps jobs in a store that is yet to be chosen.

    ``start`` and ``stop`` come from :class:`~plugq.lifecycle.Lifecycle`, which runs one at a time
    and makes a second call do nothing.
    """

    api_version: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = TemplateStorageOptions
    #: What the class promises beyond the mandatory, and the contract then asks for.
    capabilities: ClassVar[frozenset[Capability]] = frozenset()

    def __init__(self, options: TemplateStorageOptions, context: PluginContext) -> None:
        super().__init__()
        if not options.url.strip():
            raise ConfigError('storage.url: say where the store is, for instance "host:1234"')
        self._url = options.url
        #: One store serves many deployments: it is part of every key, or of every statement.
        self._namespace = context.namespace
        self._logger = context.logger
        # A clock that is given stands in place of the server's. Where there is a server, ask it
        # for the time when `context.clock` is None, instead of this machine.
        self._clock: Clock = context.clock or SystemClock()

    async def _start(self) -> None:
        """Connect, check that the store can be used, and migrate it."""
        self._logger.debug("the store is at %s, namespace %s", self._url, self._namespace)

    async def _stop(self) -> None:
        """Finish what is under way, end every watch and listen, and let go of everything."""

    def _now(self) -> float:
        """Return the storage's time; it is kept where it can not run backwards."""
        return self._clock.time()

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs durably and answer for each."""
        raise _missing("submit")

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        raise _missing("restore")

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        raise _missing("claim")

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim, in one step."""
        raise _missing("settle")

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        raise _missing("renew")

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due, and wake idle peers where jobs are ready."""
        raise _missing("sweep")

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        raise _missing("get")

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        raise _missing("find")

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches."""
        raise _missing("batches")

    async def stats(self) -> Stats:
        """Return the counters."""
        raise _missing("stats")

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        raise _missing("edit")

    async def watch(self, peer: str) -> AsyncGenerator[Notice, None]:
        """Iterate over the notices to a peer."""
        raise _missing("watch")
        yield  # which makes it a generator

    async def listen(self) -> AsyncGenerator[Heard, None]:
        """Iterate over what happens."""
        raise _missing("listen")
        yield  # which makes it a generator

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens."""
        raise _missing("tell")

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening, as of the last change of this instance."""
        raise _missing("listened")

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        raise _missing("load")

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        raise _missing("swap")

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        raise _missing("scan")


def _missing(verb: str) -> Unavailable:
    return Unavailable(
        f"TemplateStorage does not implement {verb} yet; plugq.protocols.Storage.{verb} says what "
        "it has to do"
    )


__all__ = ["TemplateStorage", "TemplateStorageOptions"]
