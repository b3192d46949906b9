"""The keys of the store: one tree, whose tables are told apart by the first byte.

Whatever a caller may choose is represented by a digest, as LMDB's keys have at most 511 bytes.
Numbers and times are packed so that their bytes sort as they do; no time lies before 1970.
"""

from __future__ import annotations

import hashlib
import struct
from functools import lru_cache

#: The table of everything that there is once: clock, counters.
META = b"!"
#: By digest of the name: queues. By queue and digest: lanes, tallies, ids, unique keys.
QUEUE, LANE, TALLY, ID, UNIQUE = b"q", b"L", b"T", b"i", b"u"
#: By sequence: jobs, their bodies and results. By batch and sequence: the jobs of a batch.
JOB, BODY, RESULT, MEMBER = b"J", b"B", b"R", b"n"
#: By queue and order: what may be claimed; by lane and order: what is queued in it.
READY, LINE = b"r", b"l"
#: By queue and time: delayed jobs and parked lanes.
DELAYED, PARKED = b"d", b"p"
#: By time and sequence: deadlines of waiting and of running jobs, leases, retention.
WAITING_DEADLINE, RUNNING_DEADLINE, LAPSE, RETENTION = b"w", b"x", b"m", b"e"
#: By worker and number: claims; by these, queue and token: the leases of each.
CLAIM, HELD = b"c", b"k"
#: By digest: batches, watching peers. By queue and peer: who is idle.
BATCH, PEER, IDLE = b"b", b"M", b"y"
#: By text: registers. By queue and lane: states of limiters.
REGISTER, BUDGET = b"v", b"s"
#: By time and key: what is dropped then; what a sweep is to come for, and what waits for one.
EXPIRY, QUIET_EXPIRY = b"G", b"g"

_number = struct.Struct(">Q")
_time = struct.Struct(">d")
_order = struct.Struct(">QdQ")
_short = struct.Struct(">I")
_SIGN = 1 << 63
#: Bytes of an order that are its priority.
PRIORITY = 8
#: Bytes of a register's key that are kept as they are.
_LONGEST = 400


@lru_cache(maxsize=4096)
def digest(text: str) -> bytes:
    """Return the 20 bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=20).digest()


def number(value: int) -> bytes:
    """Return a number that is not negative, as bytes."""
    return _number.pack(value)


def signed(value: int) -> bytes:
    """Return any number as bytes."""
    return _number.pack(value + _SIGN)


def short(value: int) -> bytes:
    """Return the number of a queue as bytes."""
    return _short.pack(value)


def moment(at: float) -> bytes:
    """Return a time as bytes."""
    return _time.pack(max(0.0, at))


def moment_in(data: bytes, start: int) -> float:
    """Return the time that stands in a key or value."""
    at: float = _time.unpack_from(data, start)[0]
    return at


def number_in(data: bytes, start: int) -> int:
    """Return the number that stands in a key or value."""
    value: int = _number.unpack_from(data, start)[0]
    return value


def order(priority: int, ready_at: float, sequence: int) -> bytes:
    """Return what a queue is ordered by: priority from high to low, ready time, sequence."""
    return _order.pack(_SIGN - 1 - priority, max(0.0, ready_at), sequence)


def register(text: str) -> bytes:
    """Return the key of a register; those that are not very long sort as their texts do."""
    data = text.encode()
    if len(data) > _LONGEST:
        data = data[:_LONGEST] + digest(text)
    return REGISTER + data


def registers(prefix: str) -> bytes:
    """Return what the keys of all registers begin with whose texts begin with the prefix."""
    return REGISTER + prefix.encode()[:_LONGEST]
