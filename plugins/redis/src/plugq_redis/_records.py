"""How jobs are written for the scripts, and read from what these return.

What stays of a job and what moves are packed values without the header of an array around them,
as Lua packs and unpacks several values at once. A value that may be any bytes travels as a
MessagePack string, since Lua knows no other kind.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import InvalidJob
from plugq.job import (
    LINGER,
    WAITING,
    AttemptRecord,
    JobRecord,
    JobState,
    Progress,
)
from plugq.protocols.storage import Lease, NewJob, UniqueMode

if TYPE_CHECKING:
    from collections.abc import Sequence

#: States by the number that they have in the scripts, which begin with 1.
STATES: tuple[JobState, ...] = tuple(JobState)
NUMBERS: dict[JobState, int] = {state: number for number, state in enumerate(STATES, 1)}
_MODES = {mode: number for number, mode in enumerate(UniqueMode, 1)}
_RUNNING = JobState.RUNNING
_SUCCEEDED = JobState.SUCCEEDED

encode = msgspec.msgpack.Encoder().encode
_FLAT_MOST = 15
#: What Lua reckons with has to stay below 2**63.
_HIGHEST = 2**62
_SHORT, _MIDDLE, _LONG = 32, 256, 65_536


class Moving(msgspec.Struct, array_like=True, frozen=True):
    """What moves of a job."""

    state: int
    token: int
    attempt: int
    crashes: int
    priority: int
    ready: float
    seq: int
    generation: int
    deadline: float | None
    submitted: float
    started: float | None
    ended: float | None
    expires: float | None
    value_until: float | None
    worker: str
    number: int | None
    peer: str
    cancel: bool
    code: str
    unknown: int
    unknown_since: float | None
    result_ttl: float | None
    failure_ttl: float | None
    born: int | None


class Staying(msgspec.Struct, array_like=True, frozen=True):
    """What stays of a job as long as its generation lives."""

    task: str
    lane: str | None
    batch: str | None
    max_attempts: int
    mode: int | None
    key: str | None
    key_ttl: float
    id_ttl: float
    origin: str
    submission: str


_MOVING = msgspec.msgpack.Decoder(Moving).decode
_STAYING = msgspec.msgpack.Decoder(Staying).decode
_HISTORY = msgspec.msgpack.Decoder(tuple[AttemptRecord, ...]).decode
_PROGRESS = msgspec.msgpack.Decoder(Progress).decode
_MOVING_HEADER = b"\xdc" + len(Moving.__struct_fields__).to_bytes(2, "big")
_STAYING_HEADER = bytes([0x90 + len(Staying.__struct_fields__)])


def check_number(name: str, number: int, *, exactly: bool = True) -> bool:
    """Return ``True`` for a number that Lua knows exactly, or well enough to go on from there.

    Raises:
        InvalidJob: it does not.
    """
    if abs(number) >= _HIGHEST or (exactly and int(float(number)) != number):
        message = f"{name}: {number} is no number that Redis can keep; give a smaller one"
        raise InvalidJob(message)
    return True


def flat(*values: object) -> bytes:
    """Return values as Lua unpacks several at once."""
    assert len(values) <= _FLAT_MOST  # noqa: S101 - the header is then one byte
    return encode(values)[1:]


def raw(data: bytes) -> msgspec.Raw:
    """Return bytes in the form of a MessagePack string, for a place among other values."""
    size = len(data)
    if size < _SHORT:
        header = bytes([0xA0 + size])
    elif size < _MIDDLE:
        header = bytes([0xD9, size])
    elif size < _LONG:
        header = b"\xda" + size.to_bytes(2, "big")
    else:
        header = b"\xdb" + size.to_bytes(4, "big")
    return msgspec.Raw(header + data)


def unraw(data: msgspec.Raw) -> bytes:
    """Return the bytes that a MessagePack string holds."""
    view = bytes(data)
    first = view[0]
    return view[{0xD9: 2, 0xDA: 3, 0xDB: 5}.get(first, 1) :]


def staying(job: NewJob) -> bytes:
    """Return what stays of a job."""
    unique = job.unique
    return flat(
        job.task,
        job.lane,
        job.batch,
        job.max_attempts,
        None if unique is None else _MODES[unique.mode],
        None if unique is None else unique.key,
        0.0 if unique is None else unique.ttl,
        job.id_ttl,
        job.origin,
        job.submission.decode("latin-1"),
    )


def read_moving(data: bytes) -> Moving:
    """Return what moves of a job."""
    return _MOVING(_MOVING_HEADER + data)


def read_staying(data: bytes) -> Staying:
    """Return what stays of a job."""
    return _STAYING(_STAYING_HEADER + data)


def overdue(job: Moving, now: float) -> bool:
    """Return whether it still waits although its deadline has passed."""
    if job.deadline is None or job.deadline > now:
        return False
    return STATES[job.state - 1] in WAITING


def expired(job: Moving, now: float) -> bool:
    """Return whether its retention has passed."""
    return job.expires is not None and job.expires <= now


def lingers(job: Moving, now: float) -> bool:
    """Return whether it has ended so lately that those who waited for it still see it all."""
    return job.ended is not None and now < job.ended + LINGER


def lease_of(fields: Sequence[Any], now: float) -> Lease:
    """Return what the holder of a lease is given, of a queue, an id and the parts of the job."""
    queue, id, moving, stays, body = fields
    job, kept = read_moving(moving), read_staying(stays)
    return Lease(
        queue=queue.decode(),
        id=id.decode(),
        task=kept.task,
        token=job.token,
        attempt=job.attempt,
        max_attempts=kept.max_attempts,
        body=body,
        sequence=job.seq,
        generation=job.generation,
        priority=job.priority,
        lane=kept.lane,
        batch=kept.batch,
        crashes=job.crashes,
        submitted_at=job.submitted,
        started_at=now if job.started is None else job.started,
        deadline_in=None if job.deadline is None else job.deadline - now,
        unknown=job.unknown,
        unknown_for=now - (job.unknown_since or now) if job.unknown else 0.0,
    )


class Stored(msgspec.Struct, frozen=True):
    """The parts of a job that is looked at, as the server keeps them.

    Where only its presence matters, ``result`` is empty instead of absent.
    """

    queue: str
    id: str
    moving: bytes
    staying: bytes
    progress: bytes | None
    history: bytes | None
    lease: bytes | None
    result: bytes | None = None
    body: bytes | None = None


def show(stored: Stored, now: float, *, value: bool, waiting: bool) -> JobRecord | None:
    """Return the job as a reader sees it at ``now``; ``None`` if its retention has passed."""
    job, kept = read_moving(stored.moving), read_staying(stored.staying)
    remains = waiting and lingers(job, now)
    if expired(job, now) and not remains:
        return None
    state, finished_at, code = STATES[job.state - 1], job.ended, job.code
    if overdue(job, now):
        state, finished_at, code = JobState.FAILED, job.deadline, "deadline"
    gone = job.value_until is not None and job.value_until <= now
    result = None if gone and not remains else stored.result
    running = state is _RUNNING and stored.lease is not None
    history = stored.history
    return JobRecord(
        queue=stored.queue,
        id=stored.id,
        task=kept.task,
        state=state,
        sequence=job.seq,
        generation=job.generation,
        submission=kept.submission.encode("latin-1"),
        priority=job.priority,
        lane=kept.lane,
        batch=kept.batch,
        attempt=job.attempt,
        max_attempts=kept.max_attempts,
        crashes=job.crashes,
        token=job.token,
        worker=job.worker,
        submitted_at=job.submitted,
        ready_at=job.ready,
        started_at=job.started,
        finished_at=finished_at,
        expires_at=job.expires,
        deadline_at=job.deadline,
        lease_until=float(stored.lease) if running and stored.lease is not None else None,
        cancel_requested=job.cancel,
        progress=None if stored.progress is None else _PROGRESS(stored.progress),
        code=code,
        history=() if history is None else _HISTORY(b"\xdd" + history),
        body=stored.body,
        result=result if value else None,
        result_expired=state is _SUCCEEDED and result is None,
    )
