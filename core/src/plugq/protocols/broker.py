"""The broker contract: the only thing that clients and workers know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from plugq.events import JobEvent
    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, EditReply
    from plugq.protocols.storage import (
        BatchCounts,
        ClaimReply,
        ClaimRequest,
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
        Settlement,
        SettleReply,
        Stats,
        SubmitReply,
        Swapped,
    )


class Broker(Protocol):
    """Decides who runs what; in this process or behind a transport, the caller can not tell.

    Every call has a deadline, raises only errors of :mod:`plugq.errors` and may be repeated: a
    submission by its submission id, a claim by its claim id, a settlement by its token.
    """

    @property
    def peer(self) -> str:
        """The name under which the storage signals to this broker."""
        ...

    async def start(self) -> None:
        """Connect; a second call does nothing."""
        ...

    async def stop(self) -> None:
        """Answer what is waiting, end every loop and disconnect; a second call does nothing."""
        ...

    async def submit(
        self, jobs: Sequence[NewJob], *, within: object | None = None
    ) -> Sequence[SubmitReply]:
        """Store jobs; calls under way at one time share one call of the storage.

        ``within`` is a connection of the user's own: they are stored in the transaction that has
        begun on it, by a call of their own, which must not be repeated.

        Raises:
            ConfigError: the storage can not do it in a transaction.
        """
        ...

    async def claim(self, request: ClaimRequest, *, wait: float = 0.0) -> ClaimReply:
        """Return leases as soon as there is one, or none after ``wait`` seconds.

        When the caller is cancelled, what was granted to it meanwhile is released.
        """
        ...

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts and claim, in one step, what is ready now."""
        ...

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases."""
        ...

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs; calls under way at one time share one call of the storage."""
        ...

    async def find(self, query: FindQuery) -> Page:
        """Return one page of jobs."""
        ...

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches, ``None`` for one that never had a job or is forgotten."""
        ...

    async def stats(self) -> Stats:
        """Return the store in numbers."""
        ...

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        ...

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers, all as of one moment."""
        ...

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all the changes, or none if any version is another than expected."""
        ...

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return every register whose key starts with ``prefix``, by key."""
        ...

    def subscribe(self, listener: Callable[[Sequence[Notice]], None]) -> Callable[[], None]:
        """Call ``listener`` with every batch of notices; the function returned ends that."""
        ...

    def listen(self) -> AsyncGenerator[Heard, None]:
        """Iterate over what happens in the namespace, until the iterator is closed.

        The first ``__anext__`` returns ``Resync`` once everything from then on is heard. Wherever
        events may have been lost, a ``Resync`` stands for them.
        """
        ...

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens, in any process; neither waits nor raises."""
        ...

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening, as of the last change; if not, build no event."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what runs, what failed and what waits, without I/O."""
        ...


__all__ = ["Broker"]
