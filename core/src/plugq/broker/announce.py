"""A maintainer makes its schedules known: what its file and its code define goes into registers."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING

import msgspec

from plugq import announcement
from plugq.errors import PlugqError
from plugq.protocols.storage import RegisterChange
from plugq.schedule.changes import announced
from plugq.schedule.stored import (
    NEWS,
    PREFIX,
    VERSION,
    encode,
    kept,
    key_of,
    name_of,
    read,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import Register, Storage
    from plugq.schedule.stored import Definition

logger: logging.Logger = logging.getLogger(__name__)

#: Schedules that are written in one step, and read before other work of the loop has its turn.
CHUNK, BREATH = 500, 100


async def announce(storage: Storage, definitions: Sequence[Definition], owner: str) -> None:
    """Write definitions where they differ, and remove those that their owner no longer has.

    May be repeated, and at the same time as others: of two owners that define one name the last
    one counts. What can not be read is replaced, unless a newer release wrote it.

    Raises:
        Unavailable: the storage can not be reached.
        OutcomeUnknown: the answer was lost.
    """
    wanted = {definition.name: definition for definition in definitions}
    known = {register.key: register for register in await storage.scan(PREFIX)}
    names = [name for name in map(name_of, known) if name not in wanted]
    for number, name in enumerate(names, 1):
        await _retire(storage, known[key_of(name)], owner)
        if not number % BREATH:
            await asyncio.sleep(0)
    ordered = list(wanted.values())
    for start in range(0, len(ordered), CHUNK):
        resolved = await _resolved(storage, ordered[start : start + CHUNK])
        await _define_all(storage, resolved, owner)


async def tell(storage: Storage) -> None:
    """Have the elected process look at all schedules soon; it does within a minute anyway."""
    # Where the register is there already, whoever removes it looks at what was changed before.
    await storage.swap([RegisterChange(key=NEWS, expect=0, value=b"1")])


async def _resolved(storage: Storage, definitions: Sequence[Definition]) -> list[Definition]:
    """Give jobs of tasks whose code is elsewhere the options that it sets, as far as announced."""
    tasks = sorted({one.job.task for one in definitions if one.prepare is not None})
    loaded = (await storage.load([announcement.key_of(task) for task in tasks])) if tasks else None
    registers = () if loaded is None else loaded.registers
    known = {
        task: options
        for task, register in zip(tasks, registers, strict=True)
        if register is not None and (options := announcement.decode(register)) is not None
    }
    found = []
    for one in definitions:
        if one.prepare is None or one.job.task not in known:
            found.append(one)
            continue
        try:
            found.append(dataclasses.replace(one, job=one.prepare(known[one.job.task])))
        except PlugqError as error:
            logger.error(  # noqa: TRY400 - the message says it all
                "schedule %r can not be announced and is left as it was: %s", one.name, error
            )
    return found


async def _define_all(storage: Storage, definitions: Sequence[Definition], owner: str) -> None:
    """Write what differs in one step, and one by one where somebody came in between."""
    loaded = await storage.load([key_of(definition.name) for definition in definitions])
    found = {
        definition.name: (definition, register, change)
        for definition, register in zip(definitions, loaded.registers, strict=True)
        if (change := _change(definition, owner, register, loaded.now)) is not None
    }
    if not found:
        return
    if (await storage.swap([change for _, _, change in found.values()])).done:
        for _, register, _ in found.values():
            _report(register)
        return
    for definition, _, _ in found.values():
        await _define(storage, definition, owner)


async def _define(storage: Storage, definition: Definition, owner: str) -> None:
    while True:
        loaded = await storage.load([key_of(definition.name)])
        (register,) = loaded.registers
        change = _change(definition, owner, register, loaded.now)
        if change is None:
            return
        if (await storage.swap([change])).done:
            _report(register)
            return


def _report(register: Register | None) -> None:
    """Say what was lost with a register that was replaced."""
    stored = None if register is None else read(register)
    if register is not None and isinstance(stored, str):
        logger.warning(
            "schedule %r could not be read and is as its definition says now: %s",
            name_of(register.key),
            stored,
        )


def _change(
    definition: Definition,
    owner: str,
    register: Register | None,
    now: float,
) -> RegisterChange | None:
    name, held, before = definition.name, None, {}
    if register is not None:
        stored = read(register)
        if not isinstance(stored, str):
            held = stored.entry
        elif (version := version_of(register) or 0) > VERSION:
            logger.error(
                "schedule %r is left alone: a newer plugq wrote it, in version %d, and this one "
                "knows version %d; upgrade this process, or remove the schedule",
                name,
                version,
                VERSION,
            )
            return None
        else:
            before = kept(register)
    entry = announced(held, definition, owner, now)
    if entry is None:
        return None
    if before:
        entry = msgspec.structs.replace(entry, **before)
    if held is not None and held.owner not in {"", owner} and held.digest != entry.digest:
        logger.warning(
            "schedule %r was defined by %s too; the definition of %s counts from here on",
            name,
            held.owner,
            owner,
        )
    return RegisterChange(
        key=key_of(name),
        expect=0 if register is None else register.version,
        value=encode(entry),
    )


async def _retire(storage: Storage, register: Register | None, owner: str) -> None:
    while register is not None:
        stored = read(register)
        if isinstance(stored, str) or stored.entry.owner != owner:
            return
        change = RegisterChange(key=register.key, expect=register.version, value=None)
        if (await storage.swap([change])).done:
            return
        (register,) = (await storage.load([register.key])).registers


__all__ = ["announce", "tell"]
