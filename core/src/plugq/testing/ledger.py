"""What handlers noted outside plugq, held against what the store says: pure.

Each handler writes when it starts, when its effect is done and when it returns. The file is only
ever appended to, so it outlives whoever wrote it, and no storage can make it agree with itself.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from plugq.job import JobRecord
    from plugq.protocols.storage import Stats

Kind = Literal["start", "effect", "end"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a handler did. ``at`` is the machine's monotonic time in seconds."""

    kind: Kind
    id: str
    token: int
    attempt: int
    pid: int
    at: float
    queue: str = "default"
    lane: str | None = None
    payload: Any = None


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """One acknowledged submission and what policy allows its job.

    ``deaths`` is how many crashes end it, ``fatal`` says that it kills every worker.
    """

    id: str
    payload: Any = None
    queue: str = "default"
    max_attempts: int = 4
    deaths: int = 3
    cancelled: bool = False
    fatal: bool = False


class Ledger:
    """The file; what is written is there also when the writer is killed the moment after."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: Line) -> None:
        """Append one line in one step."""
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, msgspec.json.encode(line) + b"\n")
        finally:
            os.close(file)

    def note(self, kind: Kind, **facts: Any) -> None:
        """Append what this process does now."""
        self.write(Line(kind=kind, pid=os.getpid(), at=time.monotonic(), **facts))

    def read(self) -> list[Line]:
        """Return every line in the order of writing."""
        if not self.path.exists():
            return []
        return [
            msgspec.json.decode(line, type=Line) for line in self.path.read_bytes().splitlines()
        ]


def check(
    lines: Sequence[Line],
    expected: Sequence[Expected],
    records: Sequence[JobRecord],
    stats: Stats,
    *,
    results: Mapping[str, Any] | None = None,
    released: int = 0,
    died: int | None = None,
) -> list[str]:
    """Return what is broken, each with the number of its promise; nothing where all hold.

    All jobs should have ended. ``results`` are the decoded results of those that succeeded, where
    handlers return their token. ``released`` is how many releases the story itself asked for,
    ``died`` how many processes died: no job loses more leases, but for one that a busy machine
    may have cost.
    An attempt that never ended holds its lane until the last that its process wrote.
    """
    found = {(record.queue, record.id): record for record in records}
    starts: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line.kind == "start":
            starts.setdefault((line.queue, line.id), []).append(line)
    broken: list[str] = []
    for job in expected:
        key = (job.queue, job.id)
        record = found.get(key)
        if record is None:
            broken.append(f"I1: {job.id!r} was acknowledged and is gone")
            continue
        broken += _one(job, record, starts.get(key, []), released)
    known = {(job.queue, job.id) for job in expected}
    broken += [
        f"I2: {id!r} ran and was never submitted" for q, id in starts if (q, id) not in known
    ]
    broken += [f"I8: {id!r} is stored and was never submitted" for q, id in found.keys() - known]
    if died is not None:
        broken += [
            f"I6: {record.id!r} lost {record.crashes} leases, and {died} processes died"
            for record in records
            if record.crashes > died + 1
        ]
    broken += _repeats(records, lines)
    broken += _tokens(starts)
    broken += _results(found, lines, results or {})
    broken += _lanes(lines, records)
    broken += _counts(stats, len(known))
    return broken


def _one(job: Expected, record: JobRecord, starts: list[Line], released: int) -> list[str]:
    broken = []
    if not record.state.final:
        broken.append(f"I1: {job.id!r} never ended, it is {record.state}")
    broken += [
        f"I2: {job.id!r} ran with {line.payload!r} in place of {job.payload!r}"
        for line in starts
        if line.payload != job.payload
    ]
    if not starts and not job.cancelled and record.code not in {"crashed", "deadline"}:
        broken.append(f"I3: {job.id!r} is {record.state} and was never started")
    bound = job.max_attempts + released
    if len(starts) > bound or len(starts) > record.attempt + released:
        broken.append(f"I6: {job.id!r} started {len(starts)} times, of {record.attempt} attempts")
    if record.attempt > job.max_attempts or record.crashes > job.deaths:
        broken.append(f"I7: {job.id!r} had {record.attempt} attempts and {record.crashes} crashes")
    if str(record.state) in {"failed", "skipped"} and record.crashes < job.deaths:
        broken.append(f"I7: {job.id!r} is {record.state} {record.code} and never fails by itself")
    if job.fatal and (str(record.state), record.code) != ("failed", "crashed"):
        broken.append(f"I7: {job.id!r} kills its workers and is {record.state} {record.code}")
    if record.state == "succeeded" and starts and record.token < max(x.token for x in starts):
        broken.append(f"I4: {job.id!r} was ended by another than its last lease")
    return broken


def _repeats(records: Sequence[JobRecord], lines: Sequence[Line]) -> list[str]:
    stored = Counter((record.queue, record.id) for record in records)
    broken = [f"I8: {id!r} is stored {n} times" for (_, id), n in stored.items() if n > 1]
    ends = Counter((x.queue, x.token) for x in lines if x.kind == "end")
    return broken + [
        f"I4: token {token} ended {n} times" for (_, token), n in ends.items() if n > 1
    ]


def _tokens(starts: Mapping[tuple[str, str], Sequence[Line]]) -> list[str]:
    broken = []
    seen: dict[tuple[str, int], str] = {}
    for (queue, id), lines in starts.items():
        tokens = [line.token for line in lines]
        if sorted(set(tokens)) != tokens:
            broken.append(f"I5: the tokens of {id!r} do not rise: {tokens}")
        for token in set(tokens):
            other = seen.setdefault((queue, token), id)
            if other != id:
                broken.append(f"I5: token {token} was granted for {other!r} and for {id!r}")
    return broken


def _results(
    found: Mapping[tuple[str, str], JobRecord], lines: Sequence[Line], results: Mapping[str, Any]
) -> list[str]:
    done = {(line.queue, line.id, line.token) for line in lines if line.kind == "effect"}
    broken = []
    for (queue, id), record in found.items():
        if record.state == "succeeded" and (queue, id, record.token) not in done:
            broken.append(f"I4: {id!r} succeeded and the effect of its last attempt is not there")
        if record.state == "succeeded" and id in results and results[id] != record.token:
            broken.append(f"I4: {id!r} has the result of another attempt than its last")
    return broken


def _lanes(lines: Sequence[Line], records: Sequence[JobRecord]) -> list[str]:
    broken = []
    ends = {(line.queue, line.token): line.at for line in lines if line.kind == "end"}
    # What a sweep has ended holds nothing any more, though its handler may not know yet.
    swept = {
        (record.queue, record.id, past.attempt)
        for record in records
        for past in record.history
        if past.code == "crashed"
    }
    alive: dict[int, float] = {}
    for line in lines:
        alive[line.pid] = max(line.at, alive.get(line.pid, line.at))
    last: dict[tuple[str, str], tuple[float, str]] = {}
    for line in sorted((x for x in lines if x.kind == "start" and x.lane), key=lambda x: x.at):
        lane = (line.queue, line.lane or "")
        until, id = last.get(lane, (0.0, ""))
        if line.at < until:
            broken.append(f"I9: {line.id!r} started in lane {line.lane!r} while {id!r} held it")
        until = ends.get((line.queue, line.token), alive[line.pid])
        if (line.queue, line.id, line.attempt) in swept:
            until = line.at
        last[lane] = (until, line.id)
    return broken


def _counts(stats: Stats, accepted: int) -> list[str]:
    stored = sum(sum(task.counts.values()) for task in stats.tasks)
    removed = sum(task.totals.get("removed", 0) for task in stats.tasks)
    counted = sum(task.totals.get("accepted", 0) for task in stats.tasks)
    if counted == accepted == stored + removed:
        return []
    return [f"I13: {accepted} accepted, counted as {counted}, stored {stored}, removed {removed}"]


def missing_ticks(ticks: Sequence[float], every: float) -> list[str]:
    """Return what I12 forbids in the ticks that were submitted, in seconds."""
    order = sorted(ticks)
    broken = [
        f"I12: tick {tick} was submitted twice" for tick, n in Counter(order).items() if n > 1
    ]
    gaps = pairwise(order)
    return broken + [f"I12: no tick between {a} and {b}" for a, b in gaps if b - a > 1.5 * every]


__all__ = ["Expected", "Kind", "Ledger", "Line", "check", "missing_ticks"]
