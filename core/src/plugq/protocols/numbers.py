"""What every storage refuses before it writes anything: times that are not a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.errors import InvalidJob

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plugq.protocols.storage import NewJob, Settlement


def refuse_nan_jobs(jobs: Iterable[NewJob]) -> None:
    """Check the times of submissions.

    Raises:
        InvalidJob: one of them is NaN; the message names the job and the field.
    """
    for job in jobs:
        unique = job.unique
        # NaN is the one value that differs from itself.
        if (
            job.delay != job.delay
            or job.id_ttl != job.id_ttl
            or job.result_ttl != job.result_ttl
            or job.failure_ttl != job.failure_ttl
            or job.run_at != job.run_at
            or job.deadline_in != job.deadline_in
            or job.deadline_at != job.deadline_at
            or job.not_after != job.not_after
            or (unique is not None and unique.ttl != unique.ttl)
        ):
            raise InvalidJob(f"{job.queue}/{job.id}: a time of it is NaN; give a number")


def refuse_nan_settlements(settlements: Iterable[Settlement]) -> None:
    """Check the times of settlements.

    Raises:
        InvalidJob: one of them is NaN; the message names the job.
    """
    for settlement in settlements:
        delay, at = settlement.delay, settlement.at
        if delay != delay or at != at:  # noqa: PLR0124
            message = f"{settlement.queue}/{settlement.id}: its delay is NaN; give a number"
            raise InvalidJob(message)


__all__ = ["refuse_nan_jobs", "refuse_nan_settlements"]
