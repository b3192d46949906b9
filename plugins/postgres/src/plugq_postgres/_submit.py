"""Submissions: one call of the server, which judges and stores them in one step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.errors import InvalidJob
from plugq.protocols.storage import SubmitReply, SubmitStatus
from plugq_postgres._rows import STATES, UNIQUE_CODES, columns, name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plugq.protocols.storage import NewJob

#: By the code of the server.
_STATUSES = (
    SubmitStatus.ACCEPTED,
    SubmitStatus.DUPLICATE,
    SubmitStatus.FULL,
    SubmitStatus.DRAINING,
    SubmitStatus.REFUSED,
    SubmitStatus.LATE,
)
_WIDTH = 21
#: A message of the server, in which all jobs of a call travel, has less than 1 GiB.
MOST_BYTES = 512 * 1024 * 1024
STATEMENT = (
    "SELECT * FROM {schema}.submit_v1($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, "
    "$14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25)"
)


def check_size(jobs: Sequence[NewJob]) -> None:
    """Refuse jobs that no message of the server can carry.

    Raises:
        InvalidJob: together they are too large.
    """
    size = sum(len(job.body) for job in jobs)
    if size > MOST_BYTES:
        message = f"the jobs of one call have {size} bytes; submit at most {MOST_BYTES} at once"
        raise InvalidJob(message)


def arguments(
    jobs: Sequence[NewJob],
    queues: Mapping[str, int | bytes],
    tasks: Mapping[str, int | bytes],
) -> tuple[Any, ...]:
    """Return what the server takes beside namespace, time and timeout.

    ``queues`` and ``tasks`` are the numbers of names, or their columns where they have none yet.
    """
    rows = []
    plain = True
    for job in jobs:
        unique = job.unique
        plain = plain and unique is None and job.not_after is None
        rows.append(
            (
                queues[job.queue],
                tasks[job.task],
                job.id.encode(),
                job.submission,
                job.body,
                job.priority,
                job.delay,
                job.run_at,
                job.deadline_in,
                job.deadline_at,
                job.max_attempts,
                name(job.lane),
                name(job.batch),
                None if unique is None else UNIQUE_CODES[unique.mode],
                None if unique is None else unique.ttl,
                None if unique is None else unique.key.encode(),
                job.result_ttl,
                job.failure_ttl,
                job.id_ttl,
                job.not_after,
                job.origin.encode(),
            )
        )
    plain = plain and len({(row[0], row[2]) for row in rows}) == len(rows)
    return plain, *columns(rows, _WIDTH)


def replies(jobs: Sequence[NewJob], answer: Mapping[str, Any]) -> list[SubmitReply]:
    """Return the answers to submissions."""
    states, seqs = answer["states"], answer["seqs"]
    if answer["statuses"] is None:
        accepted = SubmitStatus.ACCEPTED
        return [
            SubmitReply(accepted, job.id, STATES[state], seq, 0)
            for job, state, seq in zip(jobs, states, seqs, strict=True)
        ]
    return [
        SubmitReply(_STATUSES[status], id_.decode(), STATES[state], seq, generation)
        for status, id_, state, seq, generation in zip(
            answer["statuses"], answer["ids"], states, seqs, answer["generations"], strict=True
        )
    ]


def refused(answers: Sequence[SubmitReply]) -> bool:
    """Return whether nothing of a call was stored since a queue did not take it."""
    return any(
        answer.status in {SubmitStatus.FULL, SubmitStatus.DRAINING, SubmitStatus.REFUSED}
        for answer in answers
    )
