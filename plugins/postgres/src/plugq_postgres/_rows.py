"""How jobs look as rows: the codes of states, and the columns that decisions need."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from plugq.job import AttemptRecord, JobRecord, JobState, Progress
from plugq.protocols.storage import UniqueMode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

#: The state of a job by its code in the tables.
STATES = (
    JobState.DELAYED,
    JobState.QUEUED,
    JobState.RUNNING,
    JobState.SUCCEEDED,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.SKIPPED,
)
DELAYED, QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED, SKIPPED = range(7)
CODES = {state: code for code, state in enumerate(STATES)}
FIRST_FINAL = SUCCEEDED

UNIQUE_CODES = {
    UniqueMode.UNTIL_STARTED: 0,
    UniqueMode.UNTIL_FINISHED: 1,
    UniqueMode.THROTTLE: 2,
}
THROTTLE = 2

#: The cumulative totals, and how a tally counts them.
TOTALS = (
    "accepted",
    "started",
    "succeeded",
    "failed",
    "cancelled",
    "skipped",
    "retried",
    "snoozed",
    "released",
    "lease_ended",
    "redriven",
    "removed",
)
KINDS = {name: kind for kind, name in enumerate(TOTALS, len(STATES))}


class Row(NamedTuple):
    """What deciding about a job takes."""

    seq: int
    place: int
    queue: int
    id: bytes
    task: int
    state: int
    eligible: int
    lane: bytes | None
    batch: bytes | None
    ready_at: float
    attempt: int
    max_attempts: int
    crashes: int
    generation: int
    cancel: bool
    unknown: int
    unknown_since: float | None
    entered: int | None
    deadline_at: float | None
    finished_at: float | None
    expires_at: float | None
    result_ttl: float | None
    id_ttl: float
    unique_mode: int | None
    unique_ttl: float | None
    unique_key: bytes | None
    worker: bytes
    peer: bytes
    has_result: bool

    @property
    def expired(self) -> float:
        """When the record goes, as a number that compares with every time."""
        return float("inf") if self.expires_at is None else self.expires_at

    def shown(self, now: float) -> JobState:
        """Return the state as readers see it; a deadline holds before a sweep stores it."""
        overdue = self.state < RUNNING and self.deadline_at is not None and self.deadline_at <= now
        return JobState.FAILED if overdue else STATES[self.state]


COLUMNS = ", ".join(
    "j.result IS NOT NULL AS has_result" if name == "has_result" else f"j.{name}"
    for name in Row._fields
)

#: What a record shows of a job, with its result; ``body`` comes beside it.
SHOWN = (
    "place, queue, id, task, state, generation, submission, priority, lane, batch, attempt, "
    "max_attempts, crashes, token, worker, submitted_at, ready_at, started_at, finished_at, "
    "expires_at, deadline_at, lease_until, cancel, progress, code, result_ttl, history"
)

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(AttemptRecord).decode
_decode_progress = msgspec.msgpack.Decoder(Progress).decode
#: Before what the holder says of an attempt: its number, its times and its worker.
_FACTS = struct.Struct(">qddi")


def packed(value: AttemptRecord | Progress | None) -> bytes | None:
    """Encode a record for its column."""
    return None if value is None else _encode(value)


def packed_failure(record: AttemptRecord) -> bytes:
    """Encode a whole entry of a history."""
    worker = record.worker.encode()
    facts = _FACTS.pack(record.attempt, record.started_at, record.ended_at, len(worker))
    return facts + worker + _encode(record)


def failure(data: bytes) -> AttemptRecord:
    """Decode an entry of a history."""
    attempt, started_at, ended_at, length = _FACTS.unpack_from(data)
    start = _FACTS.size + length
    return msgspec.structs.replace(
        _decode_record(data[start:]),
        attempt=attempt,
        started_at=started_at,
        ended_at=ended_at,
        worker=data[_FACTS.size : start].decode(),
    )


def text(value: bytes | None) -> str | None:
    """Return a name as text."""
    return None if value is None else value.decode()


def name(value: str | None) -> bytes | None:
    """Return a text as its column has it."""
    return None if value is None else value.encode()


def job_record(
    row: Mapping[str, Any],
    queue: str,
    task: str,
    now: float,
    *,
    result: bytes | None = None,
    body: bytes | None = None,
    lingers: bool = False,
) -> JobRecord:
    """Return a job as it stands at ``now``; deadlines hold before a sweep stores them."""
    state, finished_at, code = row["state"], row["finished_at"], row["code"]
    deadline_at, ttl = row["deadline_at"], row["result_ttl"]
    if state < RUNNING and deadline_at is not None and deadline_at <= now:
        state, finished_at, code = FAILED, deadline_at, b"deadline"
    kept = result is not None
    if not lingers and ttl is not None and finished_at is not None:
        kept = kept and finished_at + ttl > now
    progress, history = row["progress"], row["history"]
    return JobRecord(
        queue=queue,
        id=row["id"].decode(),
        task=task,
        state=STATES[state],
        sequence=row["place"],
        generation=row["generation"],
        submission=row["submission"],
        priority=row["priority"],
        lane=text(row["lane"]),
        batch=text(row["batch"]),
        attempt=row["attempt"],
        max_attempts=row["max_attempts"],
        crashes=row["crashes"],
        token=row["token"],
        worker=row["worker"].decode(),
        submitted_at=row["submitted_at"],
        ready_at=row["ready_at"],
        started_at=row["started_at"],
        finished_at=finished_at,
        expires_at=row["expires_at"],
        deadline_at=deadline_at,
        lease_until=row["lease_until"],
        cancel_requested=row["cancel"],
        progress=None if progress is None else _decode_progress(progress),
        code=code.decode(),
        history=tuple(failure(entry) for entry in history or ()),
        body=body,
        result=result if kept else None,
        result_expired=state == SUCCEEDED and not kept,
    )


def columns(rows: Sequence[tuple[Any, ...]], width: int) -> list[list[Any]]:
    """Turn rows into as many lists as they have columns."""
    return (
        [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(width)]
    )
