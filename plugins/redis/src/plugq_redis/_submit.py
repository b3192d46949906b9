"""How jobs get in: submit and restore."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from plugq.errors import InvalidJob
from plugq.job import JobState
from plugq.protocols.storage import NewJob, SubmitReply, SubmitStatus
from plugq_redis._faults import refusal
from plugq_redis._records import NUMBERS, STATES, check_number, encode, flat, staying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRecord
    from plugq_redis._place import Place

_STATUSES = tuple(SubmitStatus)
_FIELDS = 5
#: Numbers in Lua are exact up to twice as much.
_HIGHEST = 2**52
#: What else of a whole job is a number.
_NUMBERS = ("token", "attempt", "crashes", "priority", "generation", "max_attempts")
_TAKEN = msgspec.msgpack.Decoder(list[int]).decode
_ANSWERS = msgspec.msgpack.Decoder(list[int | str]).decode


async def submit(
    server: Place,
    jobs: Sequence[NewJob],
    sequences: Sequence[int] = (),
    *,
    judged_only: bool = False,
    mark: str | None = None,
) -> list[SubmitReply]:
    """Store jobs in the order given and answer for each.

    ``sequences`` are theirs where the server does not hand them out. Jobs that are only judged get
    the answers that they would get if the call were refused. With the mark of a call that is
    decided no queue refuses, and one that has done its part answers nothing.
    """
    if not jobs:
        return []
    given = sequences or (None,) * len(jobs)
    try:
        items = [
            (
                job.queue,
                job.id,
                job.priority,
                job.delay,
                job.run_at,
                job.deadline_in,
                job.deadline_at,
                job.result_ttl,
                job.failure_ttl,
                job.not_after,
                sequence,
            )
            for job, sequence in zip(jobs, given, strict=True)
            if check_number("priority", job.priority)
        ]
        parts: list[bytes] = []
        for job in jobs:
            parts.append(staying(job))
            parts.append(job.body)
        asked = flat(items, judged_only, mark)
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    (answers,) = await server.change("submit", asked, *parts)
    return read_answers(answers)


def read_answers(data: bytes) -> list[SubmitReply]:
    """Return the answers that a script gave."""
    values = _ANSWERS(data)
    rows = [values[start : start + _FIELDS] for start in range(0, len(values), _FIELDS)]
    return [
        SubmitReply(
            _STATUSES[int(status) - 1],
            str(id),
            STATES[int(state) - 1],
            int(sequence),
            int(generation),
        )
        for status, id, state, sequence, generation in rows
    ]


async def restore(server: Place, jobs: Sequence[JobRecord]) -> None:
    """Write whole jobs, unless their ids are taken.

    Raises:
        InvalidJob: a number is one that Lua does not know exactly, or from which it can not go on.
    """
    for job in jobs:
        if job.sequence >= _HIGHEST:
            message = f"sequence: give one below {_HIGHEST}, beyond which Redis can not count on"
            raise InvalidJob(message)
        numbers = {name: getattr(job, name) for name in _NUMBERS}
        for name, number in numbers.items():
            # Of a token it counts that later ones are higher.
            check_number(name, number, exactly=name != "token")
    items: list[tuple[object, ...]] = []
    parts: list[bytes] = []
    usual = NewJob(queue="", id="", task="", submission=b"", body=b"")
    try:
        for job in jobs:
            items.append(_restored(job, usual))
            parts += [
                staying(_submission_of(job)),
                job.body or b"",
                job.result or b"",
                b"" if job.progress is None else encode(job.progress),
                _history(job) if job.history else b"",
            ]
        asked = encode(items)
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    await server.change("restore", asked, *parts)


async def taken(server: Place, sequences: Sequence[int]) -> list[int]:
    """Return those of the sequences that a queue has, where queues do not know of each other."""
    return _TAKEN(await server.run("taken", flat(server.queue, list(sequences)), writes=False))


def _restored(job: JobRecord, usual: NewJob) -> tuple[object, ...]:
    final = job.state.final
    return (
        job.queue,
        job.id,
        NUMBERS[job.state],
        job.token,
        job.attempt,
        job.crashes,
        job.priority,
        job.ready_at,
        job.sequence,
        job.generation,
        job.deadline_at,
        job.submitted_at,
        job.started_at,
        job.finished_at,
        job.expires_at,
        job.worker,
        job.cancel_requested,
        job.code,
        usual.result_ttl,
        usual.failure_ttl,
        job.lease_until if job.state is JobState.RUNNING else None,
        job.result is not None and final,
    )


def _history(job: JobRecord) -> bytes:
    entries = b"".join(encode(entry) for entry in job.history)
    return len(job.history).to_bytes(4, "big") + entries


def _submission_of(job: JobRecord) -> NewJob:
    """Return the submission that a restored job stands for, as far as the job still says."""
    return NewJob(
        queue=job.queue,
        id=job.id,
        task=job.task,
        submission=job.submission,
        body=b"",
        max_attempts=job.max_attempts,
        lane=job.lane,
        batch=job.batch,
    )
