"""From what is due to what a register notes and a storage is given: pure decisions."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from plugq.schedule.rule import ON_TIME
from plugq.schedule.stored import Pending, tick_id

if TYPE_CHECKING:
    from plugq.protocols.storage import NewJob
    from plugq.schedule import CatchUp, Due
    from plugq.schedule.stored import Entry, Stored

#: Seconds within which a tick that was read must be submitted; ids stay known much longer.
SUBMIT_WITHIN = 60.0


def policy_of(entry: Entry) -> CatchUp:
    """Return which due ticks are asked for: one at a time where they must not overlap."""
    return "one" if entry.catch_up == "all" and entry.overlap == "skip" else entry.catch_up


def noted(entry: Entry, answer: Due, now: float, *, overlaps: bool) -> Entry:
    """Return the entry that notes what is about to be submitted, or moves on if that is nothing.

    ``overlaps`` says that the last tick's job has not ended.
    """
    ticks = [tick.timestamp() for tick in answer.ticks]
    if entry.overlap == "skip":
        ticks = [] if overlaps else ticks[-1:]
    if not ticks:
        return msgspec.structs.replace(entry, last=answer.last.timestamp())
    pending = Pending(
        queue=entry.job.queue,
        ticks=tuple(ticks),
        last=answer.last.timestamp(),
        at=now,
        known=max(entry.job.id_ttl, 2 * SUBMIT_WITHIN),
    )
    return msgspec.structs.replace(entry, pending=pending)


def advanced(stored: Stored, pending: Pending, taken: int, *, id: str | None = None) -> Entry:
    """Return the entry after the first ``taken`` of the noted ticks were submitted.

    ``id`` is the job that stands for the last of them, where it is not the tick's own.
    """
    entry, rest = stored.entry, pending.ticks[taken:]
    newest = pending.ticks[taken - 1]
    return msgspec.structs.replace(
        entry,
        last=max(newest if rest else pending.last, entry.last),
        queue=pending.queue,
        id=tick_id(stored.name, newest) if id is None else id,
        pending=msgspec.structs.replace(pending, ticks=rest) if rest else None,
    )


def still_known(pending: Pending, now: float) -> bool:
    """Whether a submission that is made now finds the ids of any that was made before."""
    return now <= pending.at + pending.known - SUBMIT_WITHIN


def too_late(entry: Entry, pending: Pending, now: float) -> bool:
    """Whether noted ticks are older than their policy lets them be submitted."""
    return entry.catch_up == "skip" and now - pending.ticks[-1] > ON_TIME


def refused(stored: Stored, pending: Pending, now: float) -> Entry | None:
    """Return the entry after a full queue refused its first tick, if it has to be written.

    What is refused was not stored before now, so that its id stays known from now on.
    """
    if now - pending.at < SUBMIT_WITHIN / 2:
        return None
    return msgspec.structs.replace(stored.entry, pending=msgspec.structs.replace(pending, at=now))


def jobs_of(stored: Stored, pending: Pending, now: float) -> list[NewJob]:
    """Return the jobs of the noted ticks, the same as submissions whoever makes them."""
    ids = [tick_id(stored.name, tick) for tick in pending.ticks]
    return [
        msgspec.structs.replace(
            stored.entry.job,
            queue=pending.queue,
            id=id,
            submission=hashlib.sha256(id.encode()).digest()[:16],
            id_ttl=max(stored.entry.job.id_ttl, pending.known),
            not_after=now + SUBMIT_WITHIN,
        )
        for id in ids
    ]


__all__ = [
    "SUBMIT_WITHIN",
    "advanced",
    "jobs_of",
    "noted",
    "policy_of",
    "refused",
    "still_known",
    "too_late",
]
