"""What became of a job: its value, or the error that says why there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from plugq.client.views import attempt_view
from plugq.envelope import open_result
from plugq.errors import (
    JobCancelled,
    JobFailed,
    JobNotFound,
    JobSkipped,
    ResultExpired,
    Undecodable,
)
from plugq.job import JobState
from plugq.protocols.serde import Serde, SerdeContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plugq.client.handle import JobHandle
    from plugq.job import JobRecord
    from plugq.task import Task

R = TypeVar("R")


def own_record(handle: JobHandle[Any], record: JobRecord | None) -> JobRecord:
    """Return the record that ended a wait if it is that of the handle's own job.

    Raises:
        JobNotFound: there is no such job, or another one has its id.
        JobCancelled: it was cancelled, and its id was submitted again.
    """
    if record is None:
        raise JobNotFound(
            f"no job {handle.id!r} in queue {handle.queue!r}; it never was there or is not "
            "committed, its retention has passed, or it was purged",
            queue=handle.queue,
            id=handle.id,
        )
    if handle.sequence and record.sequence != handle.sequence:
        error = JobCancelled if record.generation > handle.generation else JobNotFound
        raise error(
            f"job {handle.id!r} has ended, and another job has its id now",
            queue=handle.queue,
            id=handle.id,
        )
    return record


def result_of(record: JobRecord, task: Task[Any, R] | None, serdes: Mapping[str, Serde]) -> R:
    """Return what the handler of a final job returned, by the annotations of the task if known.

    Raises:
        JobFailed, JobCancelled, JobSkipped: it has no result.
        ResultExpired: it succeeded, and its result is not kept any longer.
        Undecodable: there is no serde here for its content type, or the bytes are damaged.
    """
    if record.state is not JobState.SUCCEEDED:
        _raise_final(record)
    if record.result is None:
        raise ResultExpired(
            f"job {record.id!r} succeeded, and its result is not kept any longer",
            queue=record.queue,
            id=record.id,
        )
    stored = open_result(record.result)
    value = decode(record, serdes, stored.content_type, stored.value)
    result: R = value if task is None else task.result(value)
    return result


def decode(record: JobRecord, serdes: Mapping[str, Serde], content_type: str, data: bytes) -> Any:
    """Return what was encoded for a job.

    Raises:
        Undecodable: there is no serde here for the content type, or the bytes are damaged.
    """
    serde = serdes.get(content_type)
    if serde is None:
        raise Undecodable(f"no serde for {content_type!r} is installed here")
    context = SerdeContext(task=record.task, queue=record.queue, id=record.id)
    return serde.decode(data, context)


def _raise_final(record: JobRecord) -> NoReturn:
    queue, id, error = record.queue, record.id, record.error
    if record.state is JobState.CANCELLED:
        raise JobCancelled(f"job {id!r} was cancelled", queue=queue, id=id)
    said = "" if error is None else error.message
    if record.state is JobState.SKIPPED:
        raise JobSkipped(f"job {id!r} was skipped: {said}", queue=queue, id=id)
    kind = "" if error is None else f"{error.type}: "
    raise JobFailed(
        f"job {id!r} failed ({record.code}) in attempt {record.attempt}: {kind}{said}".rstrip(": "),
        queue=queue,
        id=id,
        code=record.code,
        attempts=[attempt_view(attempt) for attempt in record.history],
        error=None if error is None else attempt_view(error),
    )


__all__ = ["decode", "own_record", "result_of"]
