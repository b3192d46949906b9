"""A maintainer makes its schedules known: what its file and its code define goes into registers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from plugq.protocols.storage import RegisterChange
from plugq.schedule.changes import announced
from plugq.schedule.stored import NEWS, PREFIX, encode, key_of, name_of, read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import Register, Storage
    from plugq.schedule.stored import Definition, Entry

logger: logging.Logger = logging.getLogger(__name__)

#: Schedules that are loaded in one call.
CHUNK = 500


async def announce(storage: Storage, definitions: Sequence[Definition], owner: str) -> bool:
    """Write definitions where they differ, and remove those that their owner no longer has.

    Returns whether anything was changed. May be repeated, and at the same time as others: of two
    owners that define one name the last one counts.

    Raises:
        Unavailable: the storage can not be reached.
        OutcomeUnknown: the answer was lost.
    """
    wanted = {definition.name: definition for definition in definitions}
    known = {register.key: register for register in await storage.scan(PREFIX)}
    names = [name for name in map(name_of, known) if name not in wanted]
    changed = False
    for name in names:
        changed |= await _retire(storage, known[key_of(name)], owner)
    keys = [key_of(name) for name in wanted]
    for start in range(0, len(keys), CHUNK):
        loaded = await storage.load(keys[start : start + CHUNK])
        for key, register in zip(keys[start : start + CHUNK], loaded.registers, strict=True):
            changed |= await _define(storage, wanted[name_of(key)], owner, register, loaded.now)
    return changed


async def tell(storage: Storage) -> None:
    """Have the elected process look at all schedules soon; it does within a minute anyway."""
    # Where the register is there already, whoever removes it looks at what was changed before.
    await storage.swap([RegisterChange(key=NEWS, expect=0, value=b"1")])


async def _define(
    storage: Storage,
    definition: Definition,
    owner: str,
    register: Register | None,
    now: float,
) -> bool:
    key = key_of(definition.name)
    while True:
        held = None
        if register is not None:
            stored = read(register)
            if isinstance(stored, str):
                logger.error("schedule %r can not be read: %s", definition.name, stored)
                return False
            held = stored.entry
        entry = announced(held, definition, owner, now)
        if entry is None:
            return False
        if held is not None and held.owner not in {"", owner} and held.digest != entry.digest:
            logger.warning(
                "schedule %r was defined by %s too; the definition of %s counts from here on",
                definition.name,
                held.owner,
                owner,
            )
        expect = 0 if register is None else register.version
        if await _swap(storage, key, expect, entry):
            return True
        loaded = await storage.load([key])
        register, now = loaded.registers[0], loaded.now


async def _retire(storage: Storage, register: Register | None, owner: str) -> bool:
    while register is not None:
        stored = read(register)
        if isinstance(stored, str) or stored.entry.owner != owner:
            return False
        if await _swap(storage, register.key, register.version, None):
            return True
        (register,) = (await storage.load([register.key])).registers
    return False


async def _swap(storage: Storage, key: str, expect: int, entry: Entry | None) -> bool:
    """Return whether it was written; another one may have been faster."""
    value = None if entry is None else encode(entry)
    answer = await storage.swap([RegisterChange(key=key, expect=expect, value=value)])
    return answer.done


__all__ = ["announce", "tell"]
