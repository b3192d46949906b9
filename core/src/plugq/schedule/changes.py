"""What becomes of a schedule's register when its definition or its state is changed.

Everything here is pure: from what the register holds and the storage's time to what it shall hold.
Ticks that are being submitted stay noted through every change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from plugq.schedule.stored import Definition, Entry


def announced(held: Entry | None, definition: Definition, owner: str, now: float) -> Entry | None:
    """Return the entry after its written definition was announced, ``None`` to leave it.

    The same definition leaves what was changed at run time; it only brings options up to date
    that follow from elsewhere, such as ``[defaults]``. Another one replaces all of that.
    """
    new = definition.entry(owner=owner, last=now)
    if held is None:
        return new
    if held.digest != new.digest:
        return _replaced(held, new, keep=not (held.paused or held.removed))
    same = msgspec.structs.replace(held, owner=owner)
    if held.source != "runtime":
        same = msgspec.structs.replace(same, job=new.job, source=new.source)
    return None if same == held else same


def put(held: Entry | None, definition: Definition, now: float) -> Entry:
    """Return the entry with a definition that was given at run time.

    It stays paused if it was, and remembers the written definition that it takes the place of.
    """
    new = definition.entry(owner="", last=now)
    if held is None:
        return new
    new = _replaced(held, new, keep=not held.removed)
    paused = held.paused and not held.removed
    return msgspec.structs.replace(new, owner=held.owner, digest=held.digest, paused=paused)


def paused(held: Entry) -> Entry:
    """Return the entry of a schedule that submits nothing until it is resumed."""
    return msgspec.structs.replace(held, paused=True)


def resumed(held: Entry, now: float) -> Entry:
    """Return the entry of a schedule that goes on from now; a running one is left as it is."""
    if not held.paused:
        return held
    return msgspec.structs.replace(held, paused=False, last=now)


def removed(held: Entry) -> Entry | None:
    """Return what stays of a schedule: of a written one a mark, so that it is not announced."""
    return msgspec.structs.replace(held, removed=True) if held.owner else None


def _replaced(held: Entry, new: Entry, *, keep: bool) -> Entry:
    """Return a new definition with the state of the one before.

    A changed rule counts from now, since its ticks of the time before were nobody's.
    """
    last = held.last if keep and new.same_rule(held) else new.last
    return msgspec.structs.replace(
        new, last=last, queue=held.queue, id=held.id, pending=held.pending
    )


__all__ = ["announced", "paused", "put", "removed", "resumed"]
