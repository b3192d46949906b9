"""Registers: versioned compare-and-set on small values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.protocols.storage import Loaded, Register, Swapped
from plugq_lmdb import _keys
from plugq_lmdb._records import Value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import RegisterChange
    from plugq_lmdb._transaction import Transaction
    from plugq_lmdb._view import View


def load(view: View, keys: Sequence[str]) -> Loaded:
    """Return registers and the time."""
    found = tuple([_read(view, _keys.register(key)) for key in keys])
    return Loaded(registers=found, now=view.now)


def swap(tx: Transaction, changes: Sequence[RegisterChange]) -> Swapped:
    """Make all changes or none."""
    present = load(tx, [change.key for change in changes]).registers
    done = all(
        change.expect == (0 if register is None else register.version)
        for change, register in zip(changes, present, strict=True)
    )
    for change in changes if done else ():
        until = None if change.ttl is None else tx.now + change.ttl
        value = None
        if change.value is not None:
            value = Value(until, change.key, tx.next_version(), change.value)
        tx.keep(_keys.register(change.key), value)
    loaded = load(tx, [change.key for change in changes])
    return Swapped(done=done, registers=loaded.registers, now=tx.now)


def scan(view: View, prefix: str) -> list[Register]:
    """Return the registers whose key starts with the prefix, by key."""
    start = _keys.registers(prefix)
    found = [_read(view, start + key) for key in list(view.keys(start))]
    registers = [each for each in found if each is not None and each.key.startswith(prefix)]
    return sorted(registers, key=lambda register: register.key)


def _read(view: View, key: bytes) -> Register | None:
    value = view.held(key, Value)
    if value is None or (value.until is not None and value.until <= view.now):
        return None
    return Register(key=value.key, version=value.version, value=value.data or b"")
