"""A handle names one job and asks after it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

if TYPE_CHECKING:
    from plugq.client.client import CancelAnswer, Client
    from plugq.client.views import Job
    from plugq.client.waiters import Ended
    from plugq.duration import Duration
    from plugq.job import JobRef, Progress
    from plugq.protocols.edits import EditStatus
    from plugq.task import Task

R_co = TypeVar("R_co", covariant=True)


class JobHandle(Generic[R_co]):
    """One job of one client.

    ``outcome`` is ``accepted`` or ``duplicate`` for a handle that a submission returned, and
    ``unknown`` for one made by :meth:`Client.handle`. The handle of a cancelled job does not turn
    into that of a later job with the same id.
    """

    __slots__ = ("_client", "_ended", "_task", "generation", "outcome", "ref", "sequence")

    def __init__(
        self,
        client: Client,
        ref: JobRef,
        *,
        task: Task[Any, R_co] | None = None,
        outcome: Literal["accepted", "duplicate", "unknown"] = "unknown",
        sequence: int = 0,
        generation: int = 0,
    ) -> None:
        self._client = client
        self._task = task
        #: How the job ended, where that was seen and the next question may be answered by it.
        self._ended: Ended | None = None
        self.ref: JobRef = ref
        self.outcome = outcome
        self.sequence: int = sequence
        self.generation: int = generation

    @property
    def id(self) -> str:
        """The id of the job."""
        return self.ref.id

    @property
    def queue(self) -> str:
        """The queue of the job."""
        return self.ref.queue

    async def result(self, timeout: Duration | None = None) -> R_co:
        """Wait for the job to end and return what its handler returned.

        A timeout or the cancellation of the caller leaves the job as it is.

        Raises:
            JobFailed: it failed; ``code``, ``attempts`` and ``error`` say how.
            JobCancelled: it was cancelled, or this generation of it was.
            JobSkipped: its handler skipped it.
            JobNotFound: it is not stored, or not any longer.
            ResultExpired: it succeeded, and its result is not kept any longer.
            WaitTimeout: it was not final after ``timeout``.
        """
        return await self._client._result(self, self._task, timeout)  # noqa: SLF001

    async def wait(self, timeout: Duration | None = None) -> Job:
        """Wait for the job to end, however it does, and return it.

        Raises:
            JobNotFound: it is not stored, or not any longer.
            WaitTimeout: it was not final after ``timeout``.
        """
        return await self._client._wait(self, timeout)  # noqa: SLF001

    async def status(self) -> Job:
        """Return the job as it is now.

        Raises:
            JobNotFound: it is not stored, or not any longer.
            JobCancelled: it was cancelled, and its id was submitted again.
        """
        return await self._client._status(self)  # noqa: SLF001

    async def progress(self) -> Progress | None:
        """Return how far the job says that it is; ``None`` where it has said nothing.

        Raises:
            JobNotFound: it is not stored, or not any longer.
            JobCancelled: it was cancelled, and its id was submitted again.
        """
        return (await self.status()).progress

    async def retain(self, ttl: Duration | Literal["forever"] | None) -> EditStatus:
        """Keep the job and its result for ``ttl`` from its end; a final one: from now.

        ``"forever"`` and ``None`` keep it until it is purged. Answers ``done`` or ``not_found``.
        """
        return (await self._client.retain(self, ttl=ttl))[0]

    async def cancel(self) -> CancelAnswer:
        """Cancel the job: at once where it waits, by its worker where it runs."""
        return (await self._client.cancel(self))[0]

    def __repr__(self) -> str:
        """Show which job it is."""
        return f"<JobHandle {self.id!r} in {self.queue!r}>"


__all__ = ["JobHandle"]
