"""What the calls of one transaction share: its time, its counters, and who is to be told."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from plugq.allowance import Limited
from plugq.errors import Unavailable
from plugq.protocols.storage import CancelAsked, Finished, Wake
from plugq_sqlite._counts import Batches, Tallies
from plugq_sqlite._lanes import Lanes
from plugq_sqlite._rows import QUEUED, RUNNING
from plugq_sqlite._schema import MIGRATIONS
from plugq_sqlite._statements import join_rows

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Mapping

    from plugq.job import JobRef
    from plugq.protocols.storage import Notice
    from plugq_sqlite._rows import Row

_QUEUE = (
    "SELECT id, name, token, paused, configured, max_running, lane_max_running, max_length, "
    "draining, limits, lane_limits, revision, parked_until FROM queue WHERE "
)


@dataclass(slots=True)
class Queue:
    """One queue as the transaction found it, with the changes made since."""

    id: int
    name: str
    token: int
    paused: int
    configured: int
    max_running: int | None
    lane_max_running: int
    max_length: int | None
    draining: int
    limits: bytes
    lane_limits: bytes
    revision: int
    parked_until: float | None

    @property
    def limited(self) -> Limited | None:
        """What limiters bound, ``None`` where they bound nothing."""
        if not self.limits and not self.lane_limits:
            return None
        return Limited(bool(self.limits), bool(self.lane_limits))


@dataclass(slots=True)
class Letter:
    """Notices to one peer; ``queue`` is the queue whose work it is woken for."""

    peer: str
    address: str
    notices: list[Notice] = field(default_factory=list)
    queue: str | None = None


class Names:
    """Task names by number and back, kept between transactions since numbers never change."""

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}
        self.task_names: dict[int, str] = {}

    def forget(self) -> None:
        """Drop everything, since a rollback may have taken numbers back."""
        self.tasks.clear()
        self.task_names.clear()


class Transaction:
    """The state of one transaction; nothing in it outlives a rollback."""

    def __init__(
        self,
        db: sqlite3.Connection,
        names: Names,
        namespace: int,
        time: float,
        addresses: Mapping[str, str],
    ) -> None:
        self.db = db
        self._addresses = addresses
        self.namespace = namespace
        stored, self.sequence, self.version, listened, schema = db.execute(
            "SELECT now, sequence, version, "
            "EXISTS (SELECT 1 FROM listener WHERE namespace = ?), user_version "
            "FROM meta, pragma_user_version",
            (namespace,),
        ).fetchone()
        if schema != len(MIGRATIONS):
            # Another process did it, and this one would leave out what the new tables count.
            message = "the file was migrated by a newer plugq-sqlite; restart this process with it"
            raise Unavailable(message)
        #: Where those listen who want to know what happens.
        self.listeners: list[str] = []
        #: Those of them whom some of it did not reach.
        self.missed: set[str] = set()
        if listened:
            self._read_listeners()
        self.now: float = max(stored, time)
        self.lanes = Lanes(self)
        self.tallies = Tallies()
        self.batches = Batches(self)
        self.ready: dict[int, int] = {}
        self.finished: dict[str, list[JobRef]] = {}
        self.cancel_asked: dict[str, list[JobRef]] = {}
        self._names = names
        self._queues: dict[str, Queue | None] = {}
        self._by_number: dict[int, Queue] = {}
        self._stored: dict[int, tuple[int, int]] = {}
        self._tokens: dict[int, int] = {}
        self._opened: dict[int, int] = {}
        self._woken: dict[str, Letter] = {}
        self._anyone_idle: bool | None = None
        self._changes = db.total_changes

    def queue(self, name: str) -> Queue | None:
        """Return a queue, or ``None`` if nothing was ever said of it."""
        try:
            return self._queues[name]
        except KeyError:
            row = self.db.execute(
                _QUEUE + "namespace = ? AND name = ?",
                (self.namespace, name),
            ).fetchone()
            queue = self._queues[name] = None if row is None else self._known(Queue(*row))
            return queue

    def make_queue(self, name: str) -> Queue:
        """Return a queue, made if there is none."""
        queue = self.queue(name)
        if queue is None:
            self.db.execute(
                "INSERT INTO queue (namespace, name) VALUES (?, ?)",
                (self.namespace, name),
            )
            del self._queues[name]
            queue = self.queue(name)
            assert queue is not None  # noqa: S101 - it was inserted above
        return queue

    def queue_numbered(self, number: int) -> Queue:
        """Return the queue that a row points to."""
        try:
            return self._by_number[number]
        except KeyError:
            queue = self._known(Queue(*self.db.execute(_QUEUE + "id = ?", (number,)).fetchone()))
            self._queues[queue.name] = queue
            return queue

    def _known(self, queue: Queue) -> Queue:
        self._by_number[queue.id] = queue
        return queue

    def task(self, name: str) -> int:
        """Return the number of a task name."""
        number = self._names.tasks.get(name)
        if number is None:
            self.db.execute("INSERT OR IGNORE INTO task (name) VALUES (?)", (name,))
            row = self.db.execute("SELECT id FROM task WHERE name = ?", (name,)).fetchone()
            number = self._names.tasks[name] = int(row[0])
            self._names.task_names[number] = name
        return number

    def task_name(self, number: int) -> str:
        """Return a task name by its number."""
        name = self._names.task_names.get(number)
        if name is None:
            row = self.db.execute("SELECT name FROM task WHERE id = ?", (number,)).fetchone()
            name = self._names.task_names[number] = str(row[0])
            self._names.tasks[name] = number
        return name

    def tally(self, queue: int, task: int) -> list[int]:
        """Return the changes to the counters of a task in a queue, for the caller to add to."""
        return self.tallies.changes[queue, task]

    def _count(self, queue: int) -> tuple[int, int]:
        stored = self._stored.get(queue)
        if stored is None:
            row = self.db.execute(
                "SELECT total(delayed + queued), total(running) FROM tally WHERE queue = ?",
                (queue,),
            ).fetchone()
            stored = self._stored[queue] = (int(row[0]), int(row[1]))
        waiting, running = stored
        for (number, _), tally in self.tallies.changes.items():
            if number == queue:
                waiting += tally[0] + tally[QUEUED]
                running += tally[RUNNING]
        return waiting, running

    def waiting(self, queue: int) -> int:
        """Return how many jobs of a queue are delayed or queued."""
        return self._count(queue)[0]

    def running(self, queue: int) -> int:
        """Return how many jobs of a queue are leased."""
        return self._count(queue)[1]

    def tokens(self, queue: Queue, count: int) -> int:
        """Take ``count`` tokens of a queue and return the first."""
        first = max(queue.token + 1, int(self.now * 1_000_000))
        self._tokens[queue.id] = queue.token = first + count - 1
        return first

    def raise_token(self, queue: Queue, token: int) -> None:
        """Never grant a token up to this one in that queue."""
        if token > queue.token:
            self._tokens[queue.id] = queue.token = token

    def next_version(self) -> int:
        """Return a version that no register and no budget ever had."""
        self.version += 1
        return int(self.version)

    def claimable(self, queue: int, count: int = 1) -> None:
        """Note that so many more jobs of a queue may be claimed."""
        self.ready[queue] = self.ready.get(queue, 0) + count

    def taken(self, queue: int, count: int) -> None:
        """Note that a claim of this very call took so many of what had become claimable."""
        for counts in (self.ready, self._opened):
            if queue in counts:
                counts[queue] -= count

    def opened(self, queue: int, count: int) -> None:
        """Note that jobs of a queue which were ready before may be claimed now."""
        self._opened[queue] = min(self._opened.get(queue, 0) + count, sys.maxsize)

    def wake_one(self, queue: int) -> None:
        """Wake a peer if one is idle and a job of the queue is ready, whatever was taken."""
        self._opened[queue] = max(self._opened.get(queue, 0), 1)

    def tell_finished(self, row: Row, ref: JobRef) -> None:
        """Note for the submitter of a job that it is final or gone."""
        if row.origin:
            self.finished.setdefault(row.origin, []).append(ref)

    def register_idle(self, peer: str, queues: Collection[str]) -> None:
        """Make a peer one of those that new work of these queues wakes.

        One that is so already costs no write, and one that does not watch can not be woken.
        """
        self._anyone_idle = None
        address = self._addresses.get(peer)
        if address is not None and not self._knows(peer):
            # A process that could not reach it took it for dead.
            self.know_peer(peer, address)
        self.db.executemany(
            "INSERT INTO idle (namespace, peer, queue, since) "
            "SELECT namespace, name, ?, ? FROM peer WHERE namespace = ? AND name = ? "
            "ON CONFLICT DO UPDATE SET since = excluded.since WHERE idle.since = 0",
            [(queue, self.now, self.namespace, peer) for queue in queues],
        )

    def register_busy(self, peer: str, queues: Collection[str]) -> None:
        """Wake a peer only when no other is idle: its claims are filled at present."""
        if self._idle_exists():
            self.db.executemany(
                "UPDATE idle SET since = 0 WHERE namespace = ? AND peer = ? AND queue = ?",
                [(self.namespace, peer, queue) for queue in queues],
            )

    def _idle_exists(self) -> bool:
        if self._anyone_idle is None:
            row = self.db.execute(
                "SELECT EXISTS (SELECT 1 FROM idle WHERE namespace = ?)",
                (self.namespace,),
            ).fetchone()
            self._anyone_idle = bool(row[0])
        return self._anyone_idle

    def end_call(self, claimant: str = "", queues: Collection[str] = ()) -> None:
        """Bring lanes up to date and choose whom the call wakes.

        ``claimant`` has just claimed from ``queues`` and is not woken for them.
        """
        self.lanes.repair()
        ready, self.ready = self.ready, {}
        opened, self._opened = self._opened, {}
        if not (ready or opened) or not self._idle_exists():
            return
        for number, count in opened.items():
            ready[number] = max(ready.get(number, 0), self.count_ready(number, count))
        for number, count in ready.items():
            queue = self.queue_numbered(number)
            count = min(count, self.room(queue))  # noqa: PLW2901
            if queue.limited is not None:
                # What became claimable in this call may have been parked by it.
                count = self.count_ready(number, count)  # noqa: PLW2901
            if count > 0 and not queue.paused and queue.parked_until is None:
                self._wake(queue.name, count, claimant if queue.name in queues else "")

    def count_ready(self, queue: int, most: int) -> int:
        """Count the jobs that stand in the ready order of a queue, up to ``most``."""
        row = self.db.execute(
            "SELECT count(*) FROM (SELECT 1 FROM job INDEXED BY job_ready "
            "WHERE queue = ? AND state = 1 AND eligible = 1 LIMIT ?)",
            (queue, max(0, most)),
        ).fetchone()
        return int(row[0])

    def room(self, queue: Queue) -> int:
        """Return how many more jobs of a queue may run."""
        if queue.max_running is None:
            return sys.maxsize
        return queue.max_running - self.running(queue.id)

    def _wake(self, queue: str, count: int, never: str) -> None:
        idle = self.db.execute(
            "SELECT idle.peer, peer.address FROM idle JOIN peer "
            "ON peer.namespace = idle.namespace AND peer.name = idle.peer "
            "WHERE idle.namespace = ? AND idle.queue = ? AND idle.peer <> ? "
            "ORDER BY idle.since DESC LIMIT ?",
            (self.namespace, queue, never, count),
        ).fetchall()
        for peer, address in idle:
            self.db.execute(
                "DELETE FROM idle WHERE namespace = ? AND peer = ?",
                (self.namespace, peer),
            )
            self._woken[peer] = Letter(peer, address, [Wake()], queue)

    def forget_peer(self, peer: str, address: str) -> None:
        """Forget a peer that no longer listens at that address."""
        gone = self.db.execute(
            "DELETE FROM peer WHERE namespace = ? AND name = ? AND address = ?",
            (self.namespace, peer, address),
        )
        if gone.rowcount:
            self.db.execute(
                "DELETE FROM idle WHERE namespace = ? AND peer = ?",
                (self.namespace, peer),
            )

    def _knows(self, peer: str) -> bool:
        row = self.db.execute(
            "SELECT EXISTS (SELECT 1 FROM peer WHERE namespace = ? AND name = ?)",
            (self.namespace, peer),
        ).fetchone()
        return bool(row[0])

    def know_peer(self, peer: str, address: str) -> None:
        """Make the address of a peer known."""
        self.db.execute(
            "INSERT OR REPLACE INTO peer (namespace, name, address, probed) VALUES (?, ?, ?, ?)",
            (self.namespace, peer, address, self.now),
        )

    def _read_listeners(self) -> None:
        found = self.db.execute(
            "SELECT address, missed FROM listener WHERE namespace = ?",
            (self.namespace,),
        ).fetchall()
        self.listeners = [address for address, _ in found]
        self.missed = {address for address, missed in found if missed}

    def know_listener(self, address: str) -> None:
        """Make the address of somebody who listens known, or note that it was looked for."""
        self.db.execute(
            "INSERT INTO listener (namespace, address, probed) VALUES (?, ?, ?) "
            "ON CONFLICT DO UPDATE SET probed = excluded.probed",
            (self.namespace, address, self.now),
        )
        self._read_listeners()

    def mark_missed(self, addresses: Collection[str]) -> None:
        """Leave word for listeners whom events did not reach."""
        self.db.executemany(
            "UPDATE listener SET missed = 1 WHERE namespace = ? AND address = ? AND missed = 0",
            [(self.namespace, address) for address in addresses],
        )
        self._read_listeners()

    def take_missed(self, addresses: Collection[str]) -> list[str]:
        """Return whom of these events did not reach, and take back the word that says so.

        One that was taken for dead is made known again: it was told nothing since.
        """
        found = [
            address
            for address in addresses
            if address in self.missed or address not in self.listeners
        ]
        for address in found:
            self.db.execute(
                "INSERT OR REPLACE INTO listener (namespace, address, probed) VALUES (?, ?, ?)",
                (self.namespace, address, self.now),
            )
        if found:
            self._read_listeners()
        return found

    def forget_listener(self, address: str) -> None:
        """Forget an address at which nobody listens any more."""
        self.db.execute(
            "DELETE FROM listener WHERE namespace = ? AND address = ?",
            (self.namespace, address),
        )
        self._read_listeners()

    def wake_nobody(self) -> None:
        """Leave everybody idle who is, whatever becomes claimable."""
        self._anyone_idle = False

    def wake_instead(self, queue: str) -> None:
        """Wake one peer, since the one that was woken for this queue is gone."""
        if self._idle_exists():
            self._wake(queue, 1, "")

    @property
    def wrote(self) -> bool:
        """Whether it has changed anything so far."""
        return bool(self.db.total_changes != self._changes)

    def flush(self) -> list[Letter]:
        """Write what was counted, and return the letters to send after the commit."""
        self.tallies.write(self.db, self.now)
        self.batches.write()
        if self._tokens:
            self.db.executemany(
                "UPDATE queue SET token = ? WHERE id = ?",
                [(token, queue) for queue, token in self._tokens.items()],
            )
        # A call that changed nothing writes nothing, so that an idle process costs no fsync.
        if self.wrote:
            self.db.execute(
                "UPDATE meta SET now = ?, sequence = ?, version = ?",
                (self.now, self.sequence, self.version),
            )
        return self._letters()

    def _letters(self) -> list[Letter]:
        letters = self._woken
        named = {*self.finished, *self.cancel_asked}
        if named:
            addresses = join_rows(
                self.db,
                "WITH s (name) AS (VALUES ?) SELECT peer.name, peer.address FROM s CROSS JOIN peer "
                "ON peer.namespace = ? AND peer.name = s.name",
                [(name,) for name in named],
                (self.namespace,),
            )
            for name, address in addresses:
                letter = letters.setdefault(name, Letter(name, address))
                if name in self.finished:
                    letter.notices.append(Finished(tuple(self.finished[name])))
                if name in self.cancel_asked:
                    letter.notices.append(CancelAsked(tuple(self.cancel_asked[name])))
        return list(letters.values())
