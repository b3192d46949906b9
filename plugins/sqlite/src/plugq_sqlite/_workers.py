"""Workers, and which of their claims were granted leases and may be repeated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugq.protocols.storage import ClaimRequest
    from plugq_sqlite._transaction import Transaction

#: How many numbers below the highest of a worker are remembered one by one.
_REMEMBERED = 1_000
_MASK = (1 << _REMEMBERED) - 1


@dataclass(slots=True)
class Numbers:
    """The claims of a worker that granted leases: the highest, and those below it as bits.

    Claims of one worker may overtake each other, so the highest number alone would not do.
    """

    highest: int
    granted: int

    def has(self, number: int) -> bool:
        """Return whether that claim has granted leases, as far as that is remembered."""
        behind = self.highest - number
        return behind >= 0 and bool(self.granted >> behind & 1)

    def add(self, number: int) -> None:
        """Note a claim that granted leases."""
        behind = self.highest - number
        if behind < 0:
            self.highest = number
            self.granted = (self.granted << min(-behind, _REMEMBERED) & _MASK) | 1
        elif behind < _REMEMBERED:
            self.granted |= 1 << behind


def claims_of(tx: Transaction, worker: str) -> Numbers:
    """Return the claims of a worker that may be repeated."""
    row = tx.db.execute(
        "SELECT number, granted FROM worker WHERE namespace = ? AND name = ?",
        (tx.namespace, worker),
    ).fetchone()
    return Numbers(0, 0) if row is None else Numbers(row[0], int.from_bytes(row[1], "big"))


def remember(tx: Transaction, request: ClaimRequest, known: Numbers) -> None:
    """Keep the number of a claim that granted leases, next to those known."""
    known.add(request.number)
    bits = known.granted
    tx.db.execute(
        "INSERT INTO worker (namespace, name, peer, number, granted, until) "
        "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET peer = excluded.peer, "
        "number = excluded.number, granted = excluded.granted, "
        "until = max(until, excluded.until)",
        (
            tx.namespace,
            request.worker,
            request.peer,
            known.highest,
            bits.to_bytes(bits.bit_length() // 8 + 1, "big"),
            tx.now + 2 * request.lease,
        ),
    )


def keep_worker(tx: Transaction, worker: str) -> None:
    """Make sure that a worker is known, since leases are found by their workers."""
    tx.db.execute(
        "INSERT OR IGNORE INTO worker (namespace, name, peer, number, granted, until) "
        "VALUES (?, ?, '', 0, x'', ?)",
        (tx.namespace, worker, tx.now),
    )
