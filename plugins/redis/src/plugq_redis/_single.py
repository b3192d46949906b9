"""The verbs on a single server, each of which is one script call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq_redis import _claims, _index, _registers, _submit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, EditReply
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
    from plugq_redis._server import Server


class Single:
    """The verbs of a storage that is one server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @property
    def listened(self) -> bool:
        """Whether anybody listened when the last change was made."""
        return self._server.listened

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs and answer for each."""
        return await _submit.submit(self._server, jobs)

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        await _submit.restore(self._server, jobs)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        return await _claims.claim(self._server, request)

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim, in one step."""
        return await _claims.settle(self._server, settlements, claim)

    async def renew(
        self, leases: Sequence[LeaseRef], lease: float, holder: Holder | None
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        return await _claims.renew(self._server, leases, lease, holder)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due."""
        return await _index.sweep(self._server, request)

    async def get(
        self, refs: Sequence[JobRef], *, body: bool, waiting: bool
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

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        return await _registers.load(self._server, keys)

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        return await _registers.swap(self._server, changes)

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        return await _registers.scan(self._server, prefix)
