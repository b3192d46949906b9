"""The claims of the memory storage: by worker and number, and by when their leases lapse."""

from __future__ import annotations

from collections import deque
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugq.builtin.memory_records import Record

#: How many claims that need not be remembered any more are looked at in each new one.
_FORGET_PER_CLAIM = 4
_SMALLEST_HEAP = 256


class Claim:
    """One granted claim: the leases that still stand are the records that point back at it.

    ``due`` is when the first of them lapses, or earlier if it has been renewed since.
    """

    __slots__ = ("due", "granted", "live", "number", "peer", "worker")

    def __init__(self, worker: Worker, number: int, peer: str, due: float) -> None:
        self.worker: Worker = worker
        self.number: int = number
        self.peer: str = peer
        self.granted: list[Record] = []
        self.live: int = 0
        self.due: float = due

    def grant(self, record: Record, until: float) -> None:
        """Give the lease of a record to this claim's worker."""
        record.worker = self.worker.name
        record.lease_until = until
        record.claim = self
        self.granted.append(record)
        self.live += 1

    def standing(self) -> list[Record]:
        """Return the records whose lease of this claim has not ended, in the order granted."""
        return [record for record in self.granted if record.claim is self]

    def drop(self, record: Record) -> None:
        """Note that one of the leases has ended."""
        record.claim = None
        self.live -= 1
        if not self.live:
            self.granted.clear()
            self.worker.live.pop(self.number, None)


class Worker:
    """The claims of one worker that may be repeated, and those that hold leases."""

    __slots__ = ("claims", "live", "name")

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.claims: dict[int, Claim] = {}
        self.live: dict[int, Claim] = {}


class ClaimBook:
    """Every claim that holds leases or may still be repeated."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._remembered: deque[tuple[float, Worker, int]] = deque()
        self._lapses: list[tuple[float, int, Claim]] = []
        self._limit = _SMALLEST_HEAP
        self._scheduled = 0

    def worker(self, name: str) -> Worker:
        """Return a worker, a new one if it holds nothing."""
        return self._workers.get(name) or Worker(name)

    def live(self, worker: str, number: int) -> list[Claim]:
        """Return the claims of a worker up to that number that hold leases."""
        known = self._workers.get(worker)
        if known is None:
            return []
        return [claim for claim in known.live.values() if claim.number <= number]

    def enter(self, claim: Claim, *, forget_at: float) -> None:
        """Keep a claim that was granted leases, all of them up to its ``due``."""
        worker = claim.worker
        self._workers[worker.name] = worker
        worker.claims[claim.number] = worker.live[claim.number] = claim
        self._remembered.append((forget_at, worker, claim.number))
        self.schedule(claim, claim.due)

    def forget(self, now: float, most: int = _FORGET_PER_CLAIM) -> None:
        """Forget claims that nobody repeats any more and that hold no lease."""
        remembered = self._remembered
        while most and remembered and remembered[0][0] <= now:
            most -= 1
            _, worker, number = remembered.popleft()
            if number in worker.live:
                remembered.append((now + 1.0, worker, number))
                continue
            worker.claims.pop(number, None)
            if not worker.claims and not worker.live:
                self._workers.pop(worker.name, None)

    def schedule(self, claim: Claim, until: float) -> None:
        """Enter when the first lease of a claim may lapse."""
        lapses = self._lapses
        if len(lapses) >= self._limit:
            lapses[:] = [entry for entry in lapses if entry[2].live and entry[2].due == entry[0]]
            heapify(lapses)
            self._limit = max(_SMALLEST_HEAP, 2 * len(lapses))
        claim.due = until
        self._scheduled += 1
        heappush(lapses, (until, self._scheduled, claim))

    def first(self) -> Claim | None:
        """Return the claim whose lease lapses first; its ``due`` says when."""
        lapses = self._lapses
        while lapses:
            due, _, claim = lapses[0]
            if not claim.live or claim.due != due:
                heappop(lapses)
                continue
            # Renewals leave the entry where it is; it is put right when it surfaces.
            until = min(record.lease_until for record in claim.standing())
            if until <= due:
                return claim
            heappop(lapses)
            self.schedule(claim, until)
        return None


__all__ = ["Claim", "ClaimBook", "Worker"]
