"""Looking at jobs and steering them: get, find, batches, stats, edit and sweep."""

from __future__ import annotations

import asyncio
from math import exp
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import PlugqError
from plugq.job import Event, JobState
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    EditReply,
    EditStatus,
    Pause,
    Purge,
    QueueSettings,
    Redrive,
    Reprioritise,
    Resume,
    Retain,
)
from plugq.protocols.storage import (
    RATE_TIME,
    BatchCounts,
    Change,
    Page,
    QueueStats,
    Stats,
    SweepReply,
    TaskStats,
)
from plugq_redis._faults import refusal
from plugq_redis._records import NUMBERS, STATES, Stored, check_number, encode, flat, raw, show
from plugq_redis._registers import now_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, JobEdit
    from plugq.protocols.storage import FindQuery, SweepRequest
    from plugq_redis._place import Place

#: How many jobs one page of ``find`` looks at.
EXAMINED = 1_000
#: Longer than any sequence.
_LONGEST_CURSOR = 16

_STATUSES = tuple(EditStatus)
_DONE = EditReply(EditStatus.DONE)
_KINDS: dict[type[object], str] = {
    Cancel: "cancel",
    Redrive: "redrive",
    Purge: "purge",
    Retain: "retain",
    Reprioritise: "reprioritise",
    Pause: "pause",
    Drain: "drain",
    Resume: "resume",
}
_EVENTS = (Event.LAPSE, Event.DEADLINE, Event.DUE, Event.REMOVE)
_TOTALS = (
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
_CHANGE = 10

_optional_time = msgspec.msgpack.Decoder(float | None).decode
_found = msgspec.msgpack.Decoder(tuple[float, float | None]).decode
_changes = msgspec.msgpack.Decoder(list[str | int | bool]).decode
_settings = msgspec.msgpack.Decoder(QueueSettings).decode
_shares = msgspec.msgpack.Decoder(list[int]).decode
_numbers = msgspec.msgpack.Decoder(list[float]).decode
_counts = msgspec.msgpack.Decoder(
    tuple[int, float | None, int, int, int, int, int, int, int],
).decode
_queue_facts = msgspec.msgpack.Decoder(tuple[str, bool, bool, float | None]).decode
_answers = msgspec.msgpack.Decoder(
    list[tuple[int, int | bool, str, str | bool, str | bool]],
).decode


async def get(
    server: Place,
    refs: Sequence[JobRef],
    *,
    body: bool,
    waiting: bool,
) -> list[JobRecord | None]:
    """Return the jobs; one whose retention has passed only to those who wait for it."""
    if not refs:
        return []
    asked = _encoded(server, [(ref.queue, ref.id) for ref in refs])
    time, found = await server.run("get", asked, int(body), writes=False)
    now = now_of(time)
    jobs: list[JobRecord | None] = []
    for ref, stored in zip(refs, found, strict=True):
        if stored is None:
            jobs.append(None)
            continue
        moving, staying, progress, history, result, content, lease = stored
        parts = Stored(
            ref.queue, ref.id, moving, staying, progress, history, lease, result, content
        )
        jobs.append(show(parts, now, value=True, waiting=waiting))
    return jobs


async def find(places: Mapping[str, Place], query: FindQuery) -> Page:
    """Return one page, from the newest submission to the oldest, of queues and where they are.

    Raises:
        PlugqError: the cursor is none that a page has given out.
    """
    before = _position(query.cursor)
    # Each queue is looked at by itself; together they look at no more than a page may.
    most = max(1, EXAMINED // max(1, len(places)))
    limit = min(query.limit, most)
    states = [NUMBERS[state] for state in query.states]
    filters = (states, query.task, query.batch, query.since, query.until)
    asked = [
        (server, _flat(server, queue, before, limit, most, *filters))
        for queue, server in places.items()
    ]
    parts = await asyncio.gather(
        *(server.run("find", part, writes=False) for server, part in asked)
    )
    jobs: list[JobRecord] = []
    ends: list[int] = []
    for queue, (times, found) in zip(places, parts, strict=True):
        now, last = _found(b"\x92" + times)
        if last is not None:
            ends.append(int(last))
        jobs += [job for stored in found if (job := _shown(queue, stored, now)) is not None]
    return _page(jobs, ends, query.limit)


def _shown(queue: str, stored: Sequence[Any], now: float) -> JobRecord | None:
    moving, staying, progress, history, lease, id, kept = stored
    parts = Stored(
        queue, id.decode(), moving, staying, progress, history, lease, b"" if kept else None
    )
    return show(parts, now, value=False, waiting=False)


def _page(jobs: list[JobRecord], ends: list[int], limit: int) -> Page:
    """Return a page of what the queues have given, each of which may go on at its end."""
    # Below the highest of these ends a queue may have jobs that were not looked at.
    end = max(ends, default=0)
    jobs = [job for job in jobs if job.sequence >= end]
    jobs.sort(key=lambda job: job.sequence, reverse=True)
    if len(jobs) > limit:
        return Page(jobs=tuple(jobs[:limit]), cursor=str(jobs[limit - 1].sequence))
    return Page(jobs=tuple(jobs), cursor=str(end) if end else None)


def _position(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > _LONGEST_CURSOR:
        message = f"find: {cursor!r} is no cursor; pass the one of the page before"
        raise PlugqError(message)
    return int(cursor)


async def batches(server: Place, names: Sequence[str]) -> list[BatchCounts | None]:
    """Return the counts of each batch."""
    if not names:
        return []
    time, found = await server.run(
        "batches", _flat(server, list(names), server.queue), writes=False
    )
    now = now_of(time)
    pairs = zip(names, found, strict=True)
    return [None if stored is None else _batch(name, stored, now) for name, stored in pairs]


def _batch(name: str, stored: bytes, now: float) -> BatchCounts | None:
    _, until, *counts = _counts(b"\x99" + stored)
    if until is not None and until <= now:
        return None
    states = [str(state) for state in STATES]
    return BatchCounts(batch=name, counts=dict(zip(states, counts, strict=True)))


async def stats(server: Place) -> Stats:
    """Return the counters and what they belong to, by name."""
    time, found = await server.run("stats", _flat(server, server.queue), writes=False)
    now = now_of(time)
    queues: list[QueueStats] = []
    tasks: list[TaskStats] = []
    for facts, settings, tallies in found:
        name, paused, draining, oldest = _queue_facts(b"\x94" + facts)
        queues.append(
            QueueStats(
                queue=name,
                paused=paused,
                draining=draining,
                oldest=None if oldest is None else max(0.0, now - oldest),
                settings=None if settings is None else _settings(settings),
            ),
        )
        pairs = zip(tallies[::2], tallies[1::2], strict=True)
        tasks += [_task(name, task.decode(), counts, now) for task, counts in pairs]
    queues.sort(key=lambda each: each.queue)
    tasks.sort(key=lambda each: (each.queue, each.task))
    return Stats(now=now, queues=tuple(queues), tasks=tuple(tasks))


def _task(queue: str, task: str, stored: bytes, now: float) -> TaskStats:
    size = len(STATES) + len(_TOTALS) + 4
    values = _numbers(b"\xdc" + size.to_bytes(2, "big") + stored)
    run_seconds, run_count, rate, rate_at = values[-4:]
    states = [str(state) for state in STATES]
    first = len(states)
    return TaskStats(
        queue=queue,
        task=task,
        counts={state: int(values[place]) for place, state in enumerate(states)},
        totals={total: int(values[first + place]) for place, total in enumerate(_TOTALS)},
        run_time=run_seconds / run_count if run_count else None,
        rate=rate if now <= rate_at else rate * exp((rate_at - now) / RATE_TIME),
    )


async def due(server: Place, request: SweepRequest) -> list[int]:
    """Return how many jobs of a queue a sweep would deal with, by kind."""
    asked = _flat(server, server.queue, request.deadline_grace)
    return _shares(await server.run("due", asked, writes=False))


async def sweep(
    server: Place, request: SweepRequest, shares: Sequence[int] | None = None
) -> SweepReply:
    """Do what time has made due, at most ``limit`` of each kind, or as many as the shares say."""
    asked = _flat(
        server,
        request.limit,
        request.max_crashes,
        request.end_leases,
        request.deadline_grace,
        server.queue,
        shares,
    )
    next_in, changes = await server.change("sweep", asked)
    values = _changes(changes)
    rows = [values[start : start + _CHANGE] for start in range(0, len(values), _CHANGE)]
    return SweepReply(
        changes=tuple([_change(row) for row in rows]),
        next_in=_optional_time(next_in),
    )


def _change(row: Sequence[Any]) -> Change:
    queue, id, task, event, state, sequence, attempt, code, lane, batch = row
    return Change(
        queue=queue,
        id=id,
        task=task,
        event=_EVENTS[event - 1],
        state=STATES[state - 1] if state else None,
        sequence=sequence,
        attempt=attempt,
        code=code,
        lane=_text(lane),
        batch=_text(batch),
    )


async def edit(server: Place, change: Edit) -> list[EditReply]:
    """Make the change and answer for each job or queue that it names."""
    if isinstance(change, Configure):
        items: list[object] = [_configured(server, settings) for settings in change.settings]
        await server.change("steer", _flat(server, "configure", items))
        return [_DONE] * len(items)
    if isinstance(change, Pause | Drain | Resume):
        asked = _flat(server, _KINDS[type(change)], list(change.queues))
        await server.change("steer", asked)
        return [_DONE] * len(change.queues)
    return await _edit_jobs(server, change)


def _configured(server: Place, settings: QueueSettings) -> tuple[object, ...]:
    return (
        settings.queue,
        False if settings.max_running is None else settings.max_running,
        settings.lane_max_running,
        False if settings.max_length is None else settings.max_length,
        raw(settings.limits),
        raw(settings.lane_limits),
        raw(_encoded(server, settings)),
    )


async def _edit_jobs(server: Place, change: JobEdit) -> list[EditReply]:
    value: float | None = None
    if isinstance(change, Retain):
        value = change.ttl
    elif isinstance(change, Reprioritise):
        check_number("priority", change.priority)
        value = change.priority
    states = [NUMBERS[state] for state in change.states]
    sequences = change.sequences or (0,) * len(change.refs)
    pairs = zip(change.refs, sequences, strict=True)
    refs = [(ref.queue, ref.id, sequence) for ref, sequence in pairs]
    asked = _flat(server, _KINDS[type(change)], states, value, refs)
    (answers,) = await server.change("edit", asked)
    return [
        EditReply(
            _STATUSES[status - 1],
            _state(state),
            task,
            _text(lane),
            _text(batch),
        )
        for status, state, task, lane, batch in _answers(answers)
    ]


def _state(number: object) -> JobState | None:
    return STATES[number - 1] if type(number) is int else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _encoded(server: Place, value: object) -> bytes:
    try:
        return encode(value)
    except (UnicodeEncodeError, OverflowError) as error:
        raise refusal(error, server.place) from None


def _flat(server: Place, *values: object) -> bytes:
    try:
        return flat(*values)
    except (UnicodeEncodeError, OverflowError) as error:
        raise refusal(error, server.place) from None
