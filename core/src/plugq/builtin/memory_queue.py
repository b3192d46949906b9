"""One queue of the memory storage: who is ready, in which order, and which lanes hold back.

The ready order holds the jobs without a lane and the head of each lane that may run one more.
The other jobs of a lane wait in the lane, so a million jobs of one busy or parked lane cost a
claim nothing.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING

from plugq.allowance import Limited
from plugq.builtin.memory_records import Agenda, Tally
from plugq.job import JobState
from plugq.protocols.storage import UniqueMode

if TYPE_CHECKING:
    from plugq.allowance import Allowance
    from plugq.builtin.memory_records import Record
    from plugq.protocols.edits import QueueSettings

_QUEUED = JobState.QUEUED
_SMALLEST_HEAP = 256

#: (−priority, ready time, sequence, ticket or move, record); the fourth is unique, so records
#: are never compared.
_Entry = tuple[int, float, int, int, "Record"]


class Lane:
    """The queued jobs of one lane, in order; ``head`` is the one in the ready order.

    While it is parked it has none.
    """

    __slots__ = ("entries", "head", "limit", "parked_until", "running")

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.limit: int = _SMALLEST_HEAP
        self.head: Record | None = None
        self.running: int = 0
        self.parked_until: float | None = None

    def add(self, record: Record) -> None:
        """Enter a record that has just become queued."""
        entries = self.entries
        if len(entries) >= self.limit:
            entries[:] = [entry for entry in entries if entry[4].move == entry[3]]
            heapify(entries)
            self.limit = max(_SMALLEST_HEAP, 2 * len(entries))
        heappush(
            entries,
            (record.order, record.ready_at, record.sequence, record.move, record),
        )

    def first(self, count: int) -> list[_Entry]:
        """Return the first entries that still stand, at most ``count``."""
        found: list[_Entry] = []
        entries = self.entries
        while entries and len(found) < count:
            entry = heappop(entries)
            if entry[4].move == entry[3]:
                found.append(entry)
        for entry in found:
            heappush(entries, entry)
        return found


class Key:
    """A unique key that is held; of a throttle key, until when."""

    __slots__ = ("holder", "until")

    def __init__(self, holder: Record, until: float | None) -> None:
        self.holder: Record = holder
        self.until: float | None = until


class Queue:
    """The jobs of one queue and everything that decides which of them may be claimed.

    ``ready`` counts the entries of the ready order, ``fresh`` what became claimable since idle
    peers were last thought of. ``limited`` is ``None`` where no limiter bounds the starts, and
    ``revision`` changes with the limits.
    """

    __slots__ = (
        "_entries",
        "_last_order",
        "_limit",
        "_parked",
        "_tickets",
        "_times",
        "delayed",
        "draining",
        "fresh",
        "jobs",
        "keys",
        "lanes",
        "limited",
        "name",
        "parked_until",
        "paused",
        "ready",
        "revision",
        "running",
        "settings",
        "tallies",
        "token",
        "waiting",
    )

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.jobs: dict[str, Record] = {}
        self.tallies: dict[str, Tally] = {}
        self.keys: dict[str, Key] = {}
        self.lanes: dict[str, Lane] = {}
        self.delayed: Agenda = Agenda()
        self.settings: QueueSettings | None = None
        self.paused: bool = False
        self.draining: bool = False
        self.token: int = 0
        self.running: int = 0
        self.waiting: int = 0
        self.ready: int = 0
        self.fresh: int = 0
        self.limited: Limited | None = None
        self.revision: int = 0
        self.parked_until: float | None = None
        self._parked: list[tuple[float, str]] = []
        self._entries: list[_Entry] = []
        self._limit = _SMALLEST_HEAP
        #: No entry of the ready order has a greater order than this.
        self._last_order = 0
        self._tickets = 0
        #: The ready order by ready time, kept from the first time that it was asked for.
        self._times: list[tuple[float, int, Record]] | None = None

    def tally(self, task: str) -> Tally:
        """Return the counters of a task."""
        tally = self.tallies.get(task)
        if tally is None:
            tally = self.tallies[task] = Tally(self.name, task)
        return tally

    @property
    def max_length(self) -> int | None:
        """How many jobs may wait."""
        return None if self.settings is None else self.settings.max_length

    @property
    def room(self) -> int:
        """How many of the ready jobs the pause, a park and ``max_running`` let start."""
        return self.slots(self.ready)

    def slots(self, most: int) -> int:
        """Return how many of so many jobs may start now."""
        if self.paused or self.parked_until is not None:
            return 0
        limit = self.settings.max_running if self.settings is not None else None
        return most if limit is None else max(0, min(most, limit - self.running))

    def enter(self, record: Record) -> None:
        """Put a record that has just become queued at the place of its key."""
        if record.job.lane is None:
            self._rank(record)
            return
        lane = self.lanes.get(record.job.lane)
        if lane is None:
            lane = self.lanes[record.job.lane] = Lane()
        lane.add(record)
        self._elect(record.job.lane, lane)

    def withdraw(self, record: Record) -> None:
        """Take out a record that has just left ``queued`` by another way than :meth:`take`."""
        if record.place:
            record.place = 0
            self.ready -= 1
        if record.job.lane is not None and (lane := self.lanes.get(record.job.lane)) is not None:
            self._elect(record.job.lane, lane)

    def take(self, most: int, now: float) -> list[Record]:
        """Take out the best records, at most ``most``; the caller makes every one of them run.

        Jobs past their deadline are left to the sweep.
        """
        taken: list[Record] = []
        most = self.slots(most)
        entries = self._entries
        while entries and len(taken) < most:
            _, _, _, ticket, record = heappop(entries)
            if record.place != ticket:
                continue
            record.place = 0
            self.ready -= 1
            runs = record.deadline_at is None or record.deadline_at > now
            if runs:
                self.running += 1
                taken.append(record)
            if record.job.lane is not None:
                lane = self.lanes[record.job.lane]
                # A lane that shows a head has it on top.
                heappop(lane.entries)
                lane.head = None
                lane.running += runs
                self._elect(record.job.lane, lane)
        return taken

    def pick(self, allowance: Allowance, now: float) -> list[Record]:
        """Take out what the allowance lets start; the caller makes every one of them run.

        What else stands in the order up to there is taken out as well, for its lane to show what
        comes next, and put back in the end.
        """
        fresh = self.fresh
        taken: list[Record] = []
        passed: list[Record] = []
        moved: set[str] = set()
        while not allowance.done and (record := self._first()) is not None:
            heappop(self._entries)
            record.place = 0
            self.ready -= 1
            counts = record.deadline_at is None or record.deadline_at > now
            stays = counts and not allowance.take(record.job.lane)
            if counts:
                (passed if stays else taken).append(record)
            if record.job.lane is not None:
                if not stays:
                    moved.add(record.job.lane)
                lane = self.lanes[record.job.lane]
                heappop(lane.entries)
                lane.head = None
                lane.running += counts
                self._elect(record.job.lane, lane)
        for record in passed:
            if record.job.lane is None:
                self._rank(record)
            else:
                lane = self.lanes[record.job.lane]
                lane.running -= 1
                lane.add(record)
                self._elect(record.job.lane, lane)
        self.running += len(taken)
        shown = sum(name in self.lanes and self.lanes[name].head is not None for name in moved)
        fresh = max(0, fresh - len(taken)) + shown
        self.fresh = max(0, fresh - allowance.left, allowance.more)
        return taken

    def park(self, until: float) -> None:
        """Grant nothing more until that time has come and the queue has been let in."""
        self.parked_until = until

    def park_lane(self, name: str, until: float) -> None:
        """Take a lane out of the ready order until that time has come and it has been let in."""
        lane = self.lanes[name]
        lane.parked_until = until
        heappush(self._parked, (until, name))
        self._elect(name, lane)

    def let_in(self, now: float, most: int) -> int:
        """Let in what was parked until now or earlier, at most ``most`` lanes; return how many."""
        if self.parked_until is not None and self.parked_until <= now:
            self.parked_until = None
            # One claimer at a time: they would only take turns on the one state.
            self.fresh = min(1, self.ready)
        count = 0
        while count < most and self._parked and self._parked[0][0] <= now:
            count += 1
            _, name = heappop(self._parked)
            lane = self.lanes[name]
            lane.parked_until = None
            self._elect(name, lane)
        return count

    def leave_running(self, record: Record) -> None:
        """Free the places of a record whose lease has just ended."""
        self.running -= 1
        if self.settings is not None and self.settings.max_running is not None:
            self.fresh += 1
        if record.job.lane is not None:
            lane = self.lanes[record.job.lane]
            lane.running -= 1
            self._elect(record.job.lane, lane)

    def run_restored(self, record: Record) -> None:
        """Count a record that is restored as running."""
        self.running += 1
        if record.job.lane is not None:
            lane = self.lanes.setdefault(record.job.lane, Lane())
            lane.running += 1
            self._elect(record.job.lane, lane)

    def oldest(self) -> float | None:
        """Return the earliest ready time of what waits neither for its time nor behind its lane."""
        soonest = self._oldest_shown()
        limit = 1 if self.settings is None else self.settings.lane_max_running
        if soonest is None or limit == 1:
            return soonest
        # A lane shows its first job only, and may run more.
        for lane in self.lanes.values():
            if lane.head is not None:
                times = [entry[1] for entry in lane.first(limit - lane.running)]
                soonest = min(soonest, *times)
        return soonest

    def _oldest_shown(self) -> float | None:
        """Return the earliest ready time in the ready order.

        While all of that has one priority the first entry has it. Otherwise each is looked at, but
        only once until the order is empty.
        """
        if self._first() is None:
            self._times = None
            return None
        entries = self._entries
        if entries[0][0] == self._last_order:
            return entries[0][1]
        times = self._times
        if times is None:
            standing = [entry for entry in entries if entry[4].place == entry[3]]
            self._last_order = max(entry[0] for entry in standing)
            times = self._times = [(entry[1], entry[3], entry[4]) for entry in standing]
            heapify(times)
        while times[0][2].place != times[0][1]:
            heappop(times)
        return times[0][0]

    def _first(self) -> Record | None:
        """Return the first record of the ready order, which is then the first entry."""
        entries = self._entries
        while entries:
            _, _, _, ticket, record = entries[0]
            if record.place == ticket:
                return record
            heappop(entries)
        return None

    def configure(self, settings: QueueSettings) -> None:
        """Set the limits and let the lanes in or out that they concern."""
        former = self.settings
        before = (b"", b"") if former is None else (former.limits, former.lane_limits)
        limits = (settings.limits, settings.lane_limits)
        if limits != before:
            self.revision += 1
            self.limited = Limited(*map(bool, limits)) if any(limits) else None
            self.parked_until = None
            self.let_in(inf, len(self._parked))
        self.settings = settings
        self.fresh = self.ready
        for name, lane in list(self.lanes.items()):
            self._elect(name, lane)

    def holder(self, key: str, now: float) -> Record | None:
        """Return the record that holds a unique key."""
        held = self.keys.get(key)
        if held is None or (held.until is not None and held.until <= now):
            return None
        return held.holder

    def hold(self, record: Record, key: str, until: float | None) -> None:
        """Give a record a unique key; a throttle key only for a time."""
        self.keys[key] = Key(record, until)

    def expire_key(self, key: str, now: float) -> None:
        """Free a throttle key if its time has passed."""
        held = self.keys.get(key)
        if held is not None and held.until is not None and held.until <= now:
            del self.keys[key]

    def free(self, record: Record, mode: UniqueMode | None = None) -> None:
        """Free the unique key of a record, only if it is of that mode; never a throttle's."""
        unique = record.job.unique
        if unique is None or unique.mode is UniqueMode.THROTTLE:
            return
        if mode is not None and unique.mode is not mode:
            return
        held = self.keys.get(unique.key)
        if held is not None and held.holder is record:
            del self.keys[unique.key]

    def _rank(self, record: Record) -> None:
        entries = self._entries
        if len(entries) >= self._limit:
            entries[:] = [entry for entry in entries if entry[4].place == entry[3]]
            heapify(entries)
            self._limit = max(_SMALLEST_HEAP, 2 * len(entries))
        if not entries or record.order > self._last_order:
            self._last_order = record.order
        self._tickets = record.place = self._tickets + 1
        heappush(entries, (record.order, record.ready_at, record.sequence, record.place, record))
        self.ready += 1
        self.fresh += 1
        times = self._times
        if times is not None:
            if len(times) >= 2 * self.ready + _SMALLEST_HEAP:
                times[:] = [time for time in times if time[2].place == time[1]]
                heapify(times)
            heappush(times, (record.ready_at, record.place, record))

    def _elect(self, name: str, lane: Lane) -> None:
        """Make the ready order show the lane's first job; none while it is full or parked."""
        entries = lane.entries
        while entries and entries[0][4].move != entries[0][3]:
            heappop(entries)
        limit = 1 if self.settings is None else self.settings.lane_max_running
        open_ = lane.running < limit and lane.parked_until is None
        head = entries[0][4] if entries and open_ else None
        if head is not lane.head:
            former, lane.head = lane.head, head
            if former is not None and former.place:
                former.place = 0
                self.ready -= 1
            if head is not None:
                self._rank(head)
        if not entries and not lane.running and lane.parked_until is None:
            self.lanes.pop(name, None)


__all__ = ["Key", "Lane", "Queue"]
