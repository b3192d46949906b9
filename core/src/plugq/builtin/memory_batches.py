"""The batches of the memory storage: how many of the jobs of each are in which state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import FINAL, JobState
from plugq.protocols.storage import BATCH_TTL, BatchCounts

if TYPE_CHECKING:
    from plugq.builtin.memory_records import Record

_LIVE = tuple(state for state in JobState if state not in FINAL)


class Batch:
    """The counts of one batch; ``until`` is when they are forgotten, while no job is live."""

    __slots__ = ("counts", "name", "until")

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.counts: dict[JobState, int] = dict.fromkeys(JobState, 0)
        self.until: float | None = None


class BatchBook:
    """Every batch that is not forgotten. Its jobs move their counts themselves."""

    def __init__(self) -> None:
        self._batches: dict[str, Batch] = {}
        #: Those without a live job, the one that is forgotten first in front.
        self._over: dict[str, Batch] = {}

    def find(self, name: str, now: float) -> Batch | None:
        """Return a batch that has not been forgotten."""
        batch = self._batches.get(name)
        if batch is None or (batch.until is not None and batch.until <= now):
            return None
        return batch

    def show(self, name: str, now: float) -> BatchCounts | None:
        """Return the counts of a batch as they stand."""
        batch = self.find(name, now)
        if batch is None:
            return None
        counts = {str(state): count for state, count in batch.counts.items()}
        return BatchCounts(batch=name, counts=counts)

    def enter(self, record: Record, name: str, now: float) -> None:
        """Count a record, new to the batch, that is about to be live."""
        batch = self.find(name, now)
        if batch is None:
            batch = self._batches[name] = Batch(name)
        batch.counts[record.state] += 1
        record.batch = batch
        self._revive(batch)

    def reenter(self, record: Record, now: float) -> None:
        """Prepare for a final record to be live again, in a batch that may be forgotten."""
        batch = record.batch
        if batch is None:
            return
        if self.find(batch.name, now) is batch:
            self._revive(batch)
        else:
            self.enter(record, batch.name, now)

    def ended(self, batch: Batch, now: float) -> None:
        """Note that a job of the batch has come to its end."""
        if not any(batch.counts[state] for state in _LIVE):
            batch.until = now + BATCH_TTL
            self._over.pop(batch.name, None)
            self._over[batch.name] = batch

    def forget(self, now: float, most: int) -> None:
        """Drop up to ``most`` batches whose time has passed."""
        while most and self._over:
            batch = next(iter(self._over.values()))
            if batch.until is None or batch.until > now:
                return
            most -= 1
            del self._over[batch.name], self._batches[batch.name]

    def _revive(self, batch: Batch) -> None:
        batch.until = None
        self._over.pop(batch.name, None)


__all__ = ["Batch", "BatchBook"]
