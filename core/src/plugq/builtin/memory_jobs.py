"""The jobs of the memory storage and the moves that its verbs are made of.

Everything here is synchronous, runs under the storage's lock and is told the time. The verbs
are in ``memory_submit``, ``memory_attempts``, ``memory_sweep`` and ``memory_index``.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heappop, heappush
from operator import attrgetter
from typing import TYPE_CHECKING

from plugq.builtin.memory_budgets import BudgetBook
from plugq.builtin.memory_claims import ClaimBook
from plugq.builtin.memory_queue import Queue
from plugq.builtin.memory_records import Agenda
from plugq.job import LINGER, JobRef, JobState
from plugq.protocols.storage import UniqueMode

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugq.builtin.memory_records import Record
    from plugq.builtin.memory_signals import SignalBoard

_DELAYED = JobState.DELAYED
_QUEUED = JobState.QUEUED
_RUNNING = JobState.RUNNING
_SUCCEEDED = JobState.SUCCEEDED
_CANCELLED = JobState.CANCELLED

#: Removed records stay in the order of submission until they are this many more than half of it.
_REMOVED_SLACK = 1_000

_sequence = attrgetter("sequence")


class JobTable:
    """Every job: by queue and id, by sequence, and by what it waits for.

    ``overdue`` holds waiting jobs by deadline, ``running_overdue`` running ones, ``expiry`` final
    ones by when their value or they themselves go.
    """

    def __init__(self, signals: SignalBoard, next_version: Callable[[], int]) -> None:
        self.signals = signals
        self.budgets: BudgetBook = BudgetBook(next_version)
        self.queues: dict[str, Queue] = {}
        self.by_sequence: list[Record] = []
        self.claims: ClaimBook = ClaimBook()
        self.overdue: Agenda = Agenda()
        self.running_overdue: Agenda = Agenda()
        self.expiry: Agenda = Agenda()
        self._throttles: list[tuple[float, int, Queue, str]] = []
        self._last_sequence = 0
        self._moves = 0
        self._removed = 0

    def queue(self, name: str) -> Queue:
        """Return a queue, which exists from its first mention on."""
        queue = self.queues.get(name)
        if queue is None:
            queue = self.queues[name] = Queue(name)
        return queue

    def find(self, queue: str, id: str) -> Record | None:
        """Return a record, also one whose retention has passed."""
        home = self.queues.get(queue)
        return None if home is None else home.jobs.get(id)

    def position(self, sequence: int) -> int:
        """Return where in ``by_sequence`` the first record with at least that sequence is."""
        return bisect_left(self.by_sequence, sequence, key=_sequence)

    def next_sequence(self) -> int:
        """Return a sequence greater than every one before."""
        self._last_sequence += 1
        return self._last_sequence

    def reserve_sequence(self, sequence: int) -> int:
        """Return that sequence if no job has it, else the next one."""
        at = self.position(sequence)
        taken = at < len(self.by_sequence) and self.by_sequence[at].sequence == sequence
        if taken or sequence <= 0:
            return self.next_sequence()
        self._last_sequence = max(self._last_sequence, sequence)
        return sequence

    def add(self, record: Record) -> None:
        """Take in a new record, which is about to enter its first state."""
        tally = record.tally
        tally.totals["accepted"] += 1
        tally.counts[record.state] += 1
        record.queue.jobs[record.job.id] = record
        by_sequence = self.by_sequence
        if by_sequence and by_sequence[-1].sequence > record.sequence:
            by_sequence.insert(self.position(record.sequence), record)
        else:
            by_sequence.append(record)

    def remove(self, record: Record) -> None:
        """Forget a final job."""
        del record.queue.jobs[record.job.id]
        record.tally.counts[record.state] -= 1
        record.tally.totals["removed"] += 1
        record.move = 0
        self._removed += 1
        if self._removed > len(self.by_sequence) // 2 + _REMOVED_SLACK:
            self.by_sequence = [kept for kept in self.by_sequence if kept.move]
            self._removed = 0

    def shift(self, record: Record, state: JobState) -> None:
        """Change the state and make every entry of the former one outdated."""
        counts = record.tally.counts
        counts[record.state] -= 1
        counts[state] += 1
        record.state = state
        self._moves = record.move = self._moves + 1

    def wait(self, record: Record, state: JobState) -> None:
        """Let a record wait, for its time or for a worker."""
        self.shift(record, state)
        queue = record.queue
        queue.waiting += 1
        if state is _DELAYED:
            queue.delayed.add(record.ready_at, record)
        else:
            queue.enter(record)
        if record.deadline_at is not None:
            self.overdue.add(record.deadline_at, record)

    def promote(self, queue: Queue, now: float, most: int) -> list[Record]:
        """Queue the delayed jobs that are due, the soonest first."""
        due = queue.delayed.pop_due(now, most)
        for record in due:
            queue.waiting -= 1
            self.wait(record, _QUEUED)
        return due

    def start(self, record: Record, token: int, now: float) -> None:
        """Make a record run that its queue has given out."""
        self.shift(record, _RUNNING)
        record.tally.totals["started"] += 1
        record.token = token
        record.attempt += 1
        record.started_at = now
        queue = record.queue
        queue.waiting -= 1
        if record.job.unique is not None:
            queue.free(record, UniqueMode.UNTIL_STARTED)
        if record.deadline_at is not None:
            self.running_overdue.add(record.deadline_at, record)

    def end_lease(self, record: Record) -> None:
        """Take the lease away and free its places; the record must move on at once."""
        if record.claim is not None:
            record.claim.drop(record)
        record.queue.leave_running(record)

    def finish(self, record: Record, state: JobState, now: float, code: str = "") -> None:
        """Bring a record, which neither waits nor runs any more, to its end."""
        if record.state is not _RUNNING:
            self._stop_waiting(record)
        self.shift(record, state)
        job = record.job
        record.finished_at = now
        record.code = code
        record.tally.totals[state] += 1
        ttl = job.failure_ttl
        if state is _SUCCEEDED or state is _CANCELLED:
            ttl = job.result_ttl
            record.value_until = None if ttl is None else now + ttl
        if ttl is None:
            record.expires_at = None
        else:
            record.expires_at = now + max(ttl, job.id_ttl)
            lasts = max(ttl, job.id_ttl) if record.result is None else ttl
            self.expiry.add(now + max(lasts, LINGER), record)
        if job.unique is not None:
            record.queue.free(record)
        if job.origin:
            self.signals.finished(job.origin, JobRef(job.queue, job.id))

    def cancel(self, record: Record, now: float) -> None:
        """Cancel a waiting job; ask for the cancelling of a running one."""
        if record.claim is None:
            self.finish(record, _CANCELLED, now)
            return
        record.cancel_requested = True
        job = record.job
        self.signals.cancel_asked(record.claim.peer, JobRef(job.queue, job.id))

    def redrive(self, record: Record, now: float) -> None:
        """Queue a final job again as if it were new, with its history kept."""
        record.attempt = record.crashes = record.unknown = 0
        record.cancel_requested = False
        record.deadline_at = record.finished_at = record.expires_at = record.value_until = None
        record.result = record.progress = None
        record.code = ""
        record.ready_at = now
        record.tally.totals["redriven"] += 1
        self.hold_key(record, now)
        self.wait(record, _QUEUED)

    def hold_key(self, record: Record, now: float) -> None:
        """Give a record its unique key, if it has one."""
        unique = record.job.unique
        if unique is None:
            return
        until = now + unique.ttl if unique.mode is UniqueMode.THROTTLE else None
        record.queue.hold(record, unique.key, until)
        if until is not None:
            heappush(self._throttles, (until, record.sequence, record.queue, unique.key))

    def expire_keys(self, now: float, most: int) -> None:
        """Free throttle keys whose time has passed."""
        throttles = self._throttles
        while most and throttles and throttles[0][0] <= now:
            most -= 1
            _, _, queue, key = heappop(throttles)
            queue.expire_key(key, now)

    def next_key_expiry(self) -> float | None:
        """Return when the next throttle key is to be freed."""
        return self._throttles[0][0] if self._throttles else None

    def schedule_expiry(self, record: Record) -> None:
        """Enter when a final record next loses something: its value or itself."""
        at = record.removable_at() if record.result is None else record.value_kept_until()
        if at is not None:
            self.expiry.add(at, record)

    def _stop_waiting(self, record: Record) -> None:
        record.queue.waiting -= 1
        self._moves = record.move = self._moves + 1
        if record.state is _QUEUED:
            record.queue.withdraw(record)


__all__ = ["JobTable"]
