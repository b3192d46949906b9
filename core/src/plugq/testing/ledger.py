"""What handlers noted outside plugq, held against what the store says: pure.

Each handler writes when it starts, when its effect is done and when it returns; a story writes
before it submits a job for the first time, and a worker before it opens the store. The file is only
ever appended to, so it outlives whoever wrote it, and no storage can make it agree with itself.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from plugq.job import JobRecord
    from plugq.protocols.storage import Stats

Kind = Literal["submit", "begin", "start", "effect", "end"]


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done. ``at`` is the machine's monotonic time in seconds.

    ``threaded`` says that the handler had a thread of its own, ``tick`` for which tick of a
    schedule the job is, as its id has it.
    """

    kind: Kind
    pid: int
    at: float
    id: str = ""
    token: int = 0
    attempt: int = 0
    queue: str = "default"
    lane: str | None = None
    payload: Any = None
    threaded: bool = False
    tick: str | None = None


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
    broken += _grants(lines)
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


def _grants(lines: Sequence[Line]) -> list[str]:
    """Hold tokens against the order in which leases were granted, as far as that is known.

    What starts later in one process was granted later, but for threads, which start as they like.
    A lease is granted after its job was submitted and after its worker began, so with a higher
    token than whatever had started by then, wherever that was.
    """
    starts = sorted((line for line in lines if line.kind == "start"), key=lambda x: x.at)
    submitted = {(x.queue, x.id): x.at for x in lines if x.kind == "submit"}
    begun = {line.pid: line.at for line in lines if line.kind == "begin"}
    broken: list[str] = []
    highest: dict[tuple[str, int], Line] = {}
    for line in starts:
        if line.threaded:
            continue
        before = highest.get((line.queue, line.pid))
        if before is not None and before.token >= line.token:
            broken.append(_late(line, before))
        highest[line.queue, line.pid] = line
    granted = sorted(
        starts,
        key=lambda x: max(submitted.get((x.queue, x.id), 0.0), begun.get(x.pid, 0.0)),
    )
    top: dict[str, Line] = {}
    passed = iter(starts)
    coming = next(passed, None)
    for line in granted:
        since = max(submitted.get((line.queue, line.id), 0.0), begun.get(line.pid, 0.0))
        while coming is not None and coming.at < since:
            if coming.queue not in top or coming.token > top[coming.queue].token:
                top[coming.queue] = coming
            coming = next(passed, None)
        before = top.get(line.queue)
        if before is not None and before.token >= line.token:
            broken.append(_late(line, before))
    return broken


def _late(line: Line, before: Line) -> str:
    return (
        f"I5: {line.id!r} has token {line.token} and was granted after {before.id!r}, "
        f"which has {before.token}"
    )


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


def check_ticks(
    lines: Sequence[Line], due: Sequence[str], perhaps: Collection[str] = ()
) -> list[str]:
    """Return what I12 forbids in the ticks of one schedule whose jobs have run.

    Each that is ``due`` was submitted once and none else, but for what may be ``perhaps``: what
    fell due while the schedule was made or taken away.
    """
    jobs: dict[str, set[str]] = {}
    first: Counter[str] = Counter()
    for line in lines:
        if line.kind == "start" and line.tick is not None:
            jobs.setdefault(line.tick, set()).add(line.id)
            # A second first attempt is that of a second submission, whatever its id.
            first[line.tick] += line.attempt == 1
    broken = [f"I12: nothing was submitted for tick {tick}" for tick in due if tick not in jobs]
    allowed = {*due, *perhaps}
    broken += [f"I12: {tick} was submitted and is no tick" for tick in jobs if tick not in allowed]
    return broken + [
        f"I12: tick {tick} was submitted more than once"
        for tick, ids in jobs.items()
        if len(ids) > 1 or first[tick] > 1
    ]


__all__ = ["Expected", "Kind", "Ledger", "Line", "check", "check_ticks"]
