"""Jobs that are submitted inside a transaction of the user's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from plugq.protocols.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import NewJob, SubmitReply


class TransactionalStorage(Storage, Protocol):
    """A storage that declares ``TRANSACTIONAL_SUBMIT``."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        """Store jobs in the transaction that the user has begun on ``connection``.

        They exist exactly if it commits, and nobody sees, claims or counts them before. The
        connection is used and never committed, rolled back or closed; nothing that this storage
        writes itself is part of it. The call runs on the loop of the caller, and it may be made
        several times in one transaction.

        The answers are those of ``submit``, as of now and with what the transaction itself has
        submitted. Where two transactions may be open at once, both may be told ``ACCEPTED`` of one
        id or unique key. Whichever comes first counts then: an id stands for the first job, and
        the job that finds its unique key held by now ends as ``skipped``, code ``duplicate``. A
        job that was accepted finds room in a queue that is full or drained by now. ``sequence``
        is 0 where it is not known before the commit.

        Whoever is idle need not be woken before the next sweep after the commit.

        Raises:
            InvalidJob: the connection is of no kind that is supported, is closed, has no
                transaction, or is one of another store; or a job can not be.
            Unavailable: the jobs are not in the transaction.
            OutcomeUnknown: they may be in it; it has to be rolled back.
        """
        ...


__all__ = ["TransactionalStorage"]
