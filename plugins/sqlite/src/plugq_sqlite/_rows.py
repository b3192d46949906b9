"""How jobs look as rows: the codes of states, and the columns that their moves need."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from plugq.job import AttemptRecord, JobState, Progress
from plugq.protocols.storage import UniqueMode

#: The state of a job by its code in the file.
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

#: ``job.eligible``: in the ready order, behind its lane, past its deadline until a sweep ends it.
BEHIND, ELIGIBLE, OVERDUE = range(3)

UNIQUE_MODES = (UniqueMode.UNTIL_STARTED, UniqueMode.UNTIL_FINISHED, UniqueMode.THROTTLE)
UNIQUE_CODES = {mode: code for code, mode in enumerate(UNIQUE_MODES)}
UNTIL_STARTED, UNTIL_FINISHED, THROTTLE = range(3)

#: The cumulative totals in the order of their columns, and where each lies in a tally.
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
(
    ACCEPTED,
    STARTED,
    TOTAL_SUCCEEDED,
    TOTAL_FAILED,
    TOTAL_CANCELLED,
    TOTAL_SKIPPED,
    RETRIED,
    SNOOZED,
    RELEASED,
    LEASE_ENDED,
    REDRIVEN,
    REMOVED,
) = range(len(STATES), len(STATES) + len(TOTALS))
TALLY_WIDTH = len(STATES) + len(TOTALS)

#: By state: the total that counts jobs which came to it.
FINAL_TOTALS = {
    SUCCEEDED: TOTAL_SUCCEEDED,
    FAILED: TOTAL_FAILED,
    CANCELLED: TOTAL_CANCELLED,
    SKIPPED: TOTAL_SKIPPED,
}


class Row(NamedTuple):
    """What deciding about a job takes."""

    seq: int
    queue: int
    id: str
    task: int
    state: int
    eligible: int
    lane: str | None
    ready_at: float
    token: int
    attempt: int
    max_attempts: int
    crashes: int
    generation: int
    cancel: int
    failures: int
    unknown: int
    unknown_since: float | None
    deadline_at: float | None
    started_at: float | None
    expires_at: float | None
    result_ttl: float | None
    failure_ttl: float | None
    id_ttl: float
    unique_mode: int | None
    unique_ttl: float | None
    unique_key: str | None
    origin: str
    worker: str
    submission: bytes
    batch: str | None


COLUMNS = ", ".join(f"job.{name}" for name in Row._fields)

_encode = msgspec.msgpack.Encoder().encode
_decode_record = msgspec.msgpack.Decoder(AttemptRecord).decode
_decode_progress = msgspec.msgpack.Decoder(Progress).decode


def packed(value: AttemptRecord | Progress) -> bytes:
    """Encode a record for its column."""
    return _encode(value)


def attempt_record(data: bytes) -> AttemptRecord:
    """Decode an entry of a job's history."""
    return _decode_record(data)


def progress_record(data: bytes | None) -> Progress | None:
    """Decode the progress of a job."""
    return None if data is None else _decode_progress(data)
