"""Changing registers; they are read through the reading connection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.protocols.storage import Register, Swapped
from plugq_sqlite._statements import join_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import RegisterChange
    from plugq_sqlite._transaction import Transaction

_LOAD = (
    "WITH s (key) AS (VALUES ?) SELECT r.key, r.version, r.value FROM s CROSS JOIN register AS r "
    "ON r.namespace = ? AND r.key = s.key WHERE r.expires IS NULL OR r.expires > ?"
)
_STORE = (
    "INSERT OR REPLACE INTO register (namespace, key, version, value, expires) "
    "VALUES (?, ?, ?, ?, ?)"
)


def swap(tx: Transaction, changes: Sequence[RegisterChange]) -> Swapped:
    """Make all the changes, or none if any version is another than expected."""
    keys = [(change.key.encode(),) for change in changes]
    held = {
        key.decode(): Register(key=key.decode(), version=version, value=value)
        for key, version, value in join_rows(tx.db, _LOAD, keys, (tx.namespace, tx.now))
    }
    done = True
    for change in changes:
        present = held.get(change.key)
        if change.expect != (0 if present is None else present.version):
            done = False
    if done:
        for change in changes:
            register = _write(tx, change)
            if register is None:
                held.pop(change.key, None)
            else:
                held[change.key] = register
    registers = tuple(held.get(change.key) for change in changes)
    return Swapped(done=done, registers=registers, now=tx.now)


def _write(tx: Transaction, change: RegisterChange) -> Register | None:
    key = change.key.encode()
    if change.value is None:
        tx.db.execute(
            "DELETE FROM register WHERE namespace = ? AND key = ?",
            (tx.namespace, key),
        )
        return None
    version = tx.next_version()
    expires = None if change.ttl is None else tx.now + change.ttl
    tx.db.execute(_STORE, (tx.namespace, key, version, change.value, expires))
    return Register(key=change.key, version=version, value=change.value)
