"""The moves that every verb is made of: a job is lifted out of its place, changed, and put down.

A verb works on records in memory; what has changed is written when it ends, so that a verb which
changes nothing writes nothing.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from plugq.job import FINAL, WAITING, JobState
from plugq.protocols.storage import BATCH_TTL, UniqueMode
from plugq_lmdb import _keys
from plugq_lmdb._keys import digest, moment, number, short
from plugq_lmdb._records import (
    TOTALS,
    Batch,
    Claimed,
    Holder,
    Job,
    Lane,
    Mail,
    Queue,
    Tally,
    Value,
)
from plugq_lmdb._view import View, decode, encode, id_key

if TYPE_CHECKING:
    import lmdb
    import msgspec

    from plugq.protocols.storage import UniqueKey

#: What is dropped at its ``until``, by table.
EXPIRING: dict[bytes, type[msgspec.Struct]] = {
    _keys.BATCH: Batch,
    _keys.BUDGET: Value,
    _keys.CLAIM: Claimed,
    _keys.REGISTER: Value,
    _keys.UNIQUE: Holder,
}
#: References kept for a peer that does not fetch them; beyond that it is told to resync.
_MOST_MAIL = 1_000
#: How many ready jobs are counted at most when it is decided how many peers to wake.
_MOST_WOKEN = 100


class Transaction(View):
    """One verb that writes."""

    def __init__(self, txn: lmdb.Transaction[bytes], now: float) -> None:
        super().__init__(txn, now)
        self._touched: dict[tuple[str, str], None] = {}
        self._tallies: dict[tuple[str, str], Tally] = {}
        #: By queue, how many jobs have become claimable.
        self.fresh: dict[str, int] = {}

    def keep(self, key: bytes, record: msgspec.Struct | None) -> None:
        """Store a record when the verb ends; ``None`` removes what is there."""
        slot = self._held.get(key)
        self._held[key] = (self.txn.get(key) if slot is None else slot[0], record)

    def next_version(self) -> int:
        """Return a number that nothing ever had."""
        self.meta.version += 1
        return self.meta.version

    def queue(self, name: str) -> Queue:
        """Return a queue, which exists from its first mention on."""
        queue = self.find_queue(name)
        if queue is None:
            self.meta.queues += 1
            queue = Queue(name, self.meta.queues)
            self.keep(_keys.QUEUE + digest(name), queue)
        return queue

    def lane(self, queue: Queue, name: str) -> Lane:
        """Return a lane, which is forgotten again while there is nothing in it."""
        key = _keys.LANE + short(queue.number) + digest(name)
        lane = self.held(key, Lane)
        if lane is None:
            lane = Lane(queue.name, name)
            self.keep(key, lane)
        return lane

    def touch(self, queue: Queue, lane: str | None) -> None:
        """Look at a lane again before the ready order is used."""
        if lane is not None:
            self._touched[queue.name, lane] = None

    def tally(self, job: Job) -> Tally:
        """Return the counters that a job is counted in."""
        tally = self._tallies.get((job.queue, job.task))
        if tally is None:
            key = _keys.TALLY + short(self.queue(job.queue).number) + digest(job.task)
            tally = self.held(key, Tally)
            if tally is None:
                tally = Tally(job.task, dict.fromkeys(JobState, 0), dict.fromkeys(TOTALS, 0))
                self.keep(key, tally)
            self._tallies[job.queue, job.task] = tally
        return tally

    def add(self, job: Job, body: bytes, state: JobState) -> None:
        """Put down a job that is new."""
        at = number(job.sequence)
        self.keep(_keys.JOB + at, job)
        self.txn.put(_keys.BODY + at, body)
        self.txn.put(id_key(self.queue(job.queue), job.id), at)
        tally = self.tally(job)
        tally.totals["accepted"] += 1
        tally.counts[state] += 1
        if job.batch is not None:
            self.txn.put(_keys.MEMBER + digest(job.batch) + at, b"")
            self._count(job, None, state)
        job.state = state
        self._enter(job)

    def remove(self, job: Job) -> None:
        """Forget a final job; whoever finds its throttle key held learns how it ended."""
        self.lift(job)
        queue, at = self.queue(job.queue), number(job.sequence)
        for table in (_keys.BODY, _keys.RESULT):
            self.txn.delete(table + at)
        self.txn.delete(id_key(queue, job.id))
        if job.batch is not None:
            self.txn.delete(_keys.MEMBER + digest(job.batch) + at)
        self.keep(_keys.JOB + at, None)
        holder = None if job.unique is None else self.holder(queue, job.unique)
        if holder is not None and holder.sequence == job.sequence:
            holder.state = job.state
        tally = self.tally(job)
        tally.counts[job.state] -= 1
        tally.totals["removed"] += 1

    def lift(self, job: Job) -> None:
        """Take a job out of everything that orders it, before anything of it is changed."""
        queue, at = self.queue(job.queue), number(job.sequence)
        delete = self.txn.delete
        if job.state in WAITING:
            queue.waiting -= 1
            if job.deadline_at is not None:
                delete(_keys.WAITING_DEADLINE + moment(job.deadline_at) + at)
            if job.state is JobState.QUEUED:
                self.withdraw(job)
            else:
                delete(_keys.DELAYED + short(queue.number) + moment(job.ready_at) + at)
        elif job.state is JobState.RUNNING:
            queue.running -= 1
            delete(_keys.LAPSE + moment(job.lease_until) + at)
            delete(held_key(queue, job))
            if job.deadline_at is not None:
                delete(_keys.RUNNING_DEADLINE + moment(job.deadline_at) + at)
            if job.lane is not None:
                self.lane(queue, job.lane).running -= 1
                self.touch(queue, job.lane)
            if queue.settings is not None and queue.settings.max_running is not None:
                self._freshen(queue)
        elif job.tidy_at is not None:
            delete(_keys.RETENTION + moment(job.tidy_at) + at)

    def place(self, job: Job, state: JobState) -> None:
        """Put a job down in a state, after it was lifted and changed."""
        if state is not job.state:
            counts = self.tally(job).counts
            counts[job.state] -= 1
            counts[state] += 1
            self._count(job, job.state, state)
        job.state = state
        self._enter(job)

    def _enter(self, job: Job) -> None:
        queue, at = self.queue(job.queue), number(job.sequence)
        put = self.txn.put
        if job.state in WAITING:
            queue.waiting += 1
            if job.deadline_at is not None:
                put(_keys.WAITING_DEADLINE + moment(job.deadline_at) + at, b"")
            if job.state is JobState.DELAYED:
                put(_keys.DELAYED + short(queue.number) + moment(job.ready_at) + at, b"")
            elif job.lane is None:
                put(_keys.READY + short(queue.number) + order_of(job), b"")
                self._freshen(queue)
            else:
                put(line(queue, job.lane) + order_of(job), b"")
                self.touch(queue, job.lane)
        elif job.state is JobState.RUNNING:
            queue.running += 1
            put(_keys.LAPSE + moment(job.lease_until) + at, b"")
            put(held_key(queue, job), at)
            if job.deadline_at is not None:
                put(_keys.RUNNING_DEADLINE + moment(job.deadline_at) + at, b"")
            if job.lane is not None:
                self.lane(queue, job.lane).running += 1
                self.touch(queue, job.lane)
        else:
            job.tidy_at = job.next_loss_at()
            if job.tidy_at is not None:
                put(_keys.RETENTION + moment(job.tidy_at) + at, b"")

    def withdraw(self, job: Job) -> None:
        """Take a queued job out of the order in which jobs start."""
        queue = self.queue(job.queue)
        if job.lane is None:
            self.txn.delete(_keys.READY + short(queue.number) + order_of(job))
        else:
            self.txn.delete(line(queue, job.lane) + order_of(job))
            self.touch(queue, job.lane)

    def finish(self, job: Job, state: JobState, code: str = "") -> None:
        """Put down a job that was lifted and comes to its end."""
        ttl = job.failure_ttl
        if state in {JobState.SUCCEEDED, JobState.CANCELLED}:
            ttl = job.result_ttl
            job.value_until = None if ttl is None else self.now + ttl
        job.expires_at = None if ttl is None else self.now + max(ttl, job.id_ttl)
        job.finished_at = self.now
        job.code = code
        tally = self.tally(job)
        tally.totals[state] += 1
        tally.ended(self.now)
        self.free_key(job)
        self.tell_end(job)
        self.place(job, state)

    def promote(self, queue: Queue, most: int) -> list[Job]:
        """Queue the delayed jobs that are due, the soonest first."""
        jobs = self.due(_keys.DELAYED + short(queue.number), self.now, most)
        for job in jobs:
            self.lift(job)
            self.place(job, JobState.QUEUED)
        return jobs

    def due(self, table: bytes, now: float, most: int) -> list[Job]:
        """Return the jobs whose time has come in a table that is ordered by time."""
        found: list[Job] = []
        for key in islice(self.keys(table), most):
            if _keys.moment_in(key, 0) > now:
                break
            found.append(self.job(_keys.number_in(key, 8)))
        return found

    def next_at(self, table: bytes) -> float | None:
        """Return the first time in a table that is ordered by time."""
        key = self.first(table)
        return None if key is None else _keys.moment_in(key, 0)

    def holder(self, queue: Queue, unique: UniqueKey) -> Holder | None:
        """Return who holds a unique key."""
        holder = self.held(_unique(queue, unique), Holder)
        expired = holder is None or (holder.until is not None and holder.until <= self.now)
        return None if expired else holder

    def hold_key(self, job: Job) -> None:
        """Give a job its unique key, if it has one."""
        if job.unique is not None:
            throttle = job.unique.mode is UniqueMode.THROTTLE
            until = self.now + job.unique.ttl if throttle else None
            holder = Holder(until, job.id, job.sequence, job.generation, job.state)
            self.keep(_unique(self.queue(job.queue), job.unique), holder)

    def free_key(self, job: Job, *modes: UniqueMode) -> None:
        """Free the unique key of a job, if it holds it in one of the modes; never a throttle's."""
        unique = job.unique
        if unique is None or unique.mode is UniqueMode.THROTTLE:
            return
        if modes and unique.mode not in modes:
            return
        queue = self.queue(job.queue)
        holder = self.holder(queue, unique)
        if holder is not None and holder.sequence == job.sequence:
            self.keep(_unique(queue, unique), None)

    def batch(self, name: str) -> Batch | None:
        """Return a batch that is not forgotten."""
        return find_batch(self, name)

    def _count(self, job: Job, former: JobState | None, state: JobState) -> None:
        """Move a job in the counts of its batch, which it enters if that began without it."""
        if job.batch is None:
            return
        batch = self.batch(job.batch)
        if batch is None:
            self.meta.batches += 1
            batch = Batch(None, self.meta.batches, dict.fromkeys(JobState, 0))
            self.keep(_keys.BATCH + digest(job.batch), batch)
        if former is not None and job.epoch == batch.epoch:
            batch.counts[former] -= 1
        job.epoch = batch.epoch
        batch.counts[state] += 1
        live = any(count for at, count in batch.counts.items() if at not in FINAL)
        batch.until = None if live else self.now + BATCH_TTL

    def settle_lanes(self) -> None:
        """Let the ready order show the first job of each lane that may run one more."""
        touched, self._touched = self._touched, {}
        for queue_name, name in touched:
            queue = self.queue(queue_name)
            lane = self.lane(queue, name)
            open_ = lane.running < queue.lane_limit and lane.parked_until is None
            head = self.first(line(queue, name)) if open_ else None
            if head != lane.head:
                ready = _keys.READY + short(queue.number)
                if lane.head is not None:
                    self.txn.delete(ready + lane.head)
                if head is not None:
                    self.txn.put(ready + head, b"")
                    self._freshen(queue)
                lane.head = head

    def _freshen(self, queue: Queue) -> None:
        self.fresh[queue.name] = self.fresh.get(queue.name, 0) + 1

    def stir(self, queue: Queue) -> None:
        """Let everything that is ready in a queue wake idle peers."""
        ready = self.keys(_keys.READY + short(queue.number))
        self.fresh[queue.name] = sum(1 for _ in islice(ready, _MOST_WOKEN))

    def mail(self, peer: str) -> Mail | None:
        """Return what waits for a peer that watches."""
        return self.held(_keys.PEER + digest(peer), Mail)

    def tell_end(self, job: Job) -> None:
        """Tell the submitter of a job that it has ended."""
        if job.origin and (mail := self.mail(job.origin)) is not None:
            mail.finished.append(job.ref)

    def _wake(self, caller: str) -> None:
        for name, fresh in self.fresh.items():
            queue = self.queue(name)
            idle = _keys.IDLE + short(queue.number)
            peers = list(self.keys(idle))
            ready = self.keys(_keys.READY + short(queue.number)) if peers else ()
            most = queue.slots(sum(1 for _ in islice(ready, fresh)))
            for key in peers:
                mail = self.held(_keys.PEER + key, Mail)
                if mail is None:
                    self.txn.delete(idle + key)
                elif mail.peer != caller and most:
                    most -= 1
                    mail.wake = True
                    self.busy(mail)

    def busy(self, mail: Mail) -> None:
        """Take a peer off the lists of those who are idle."""
        for queue in mail.idle:
            self.txn.delete(_keys.IDLE + short(queue) + digest(mail.peer))
        mail.idle = []

    def close(self, caller: str = "") -> bool:
        """Write what has changed and leave notices for everybody but the caller.

        Return whether there was anything to write.
        """
        self.settle_lanes()
        self._wake(caller)
        changed = False
        for key, (raw, record) in self._held.items():
            if key == _keys.META:
                continue
            if isinstance(record, Mail):
                _bound(record, self.now)
            gone = record is None or (isinstance(record, Lane) and self._is_empty(record))
            data = None if gone else encode(record)
            if data == raw:
                continue
            changed = True
            if data is None:
                self.txn.delete(key)
            else:
                self.txn.put(key, data)
            if key[:1] in EXPIRING:
                self._note_expiry(key, raw, data)
        if changed:
            self.meta.now = self.now
            self.txn.put(_keys.META, encode(self.meta))
        return changed

    def _is_empty(self, lane: Lane) -> bool:
        if lane.running or lane.head is not None or lane.parked_until is not None:
            return False
        # Where no job of a lane may run, none is shown.
        return self.first(line(self.queue(lane.queue), lane.name)) is None

    def _note_expiry(self, key: bytes, raw: bytes | None, data: bytes | None) -> None:
        table = _keys.EXPIRY if key.startswith(_keys.REGISTER) else _keys.QUIET_EXPIRY
        former = None if raw is None else decode(raw, Claimed).until
        until = None if data is None else decode(data, Claimed).until
        if former is not None:
            self.txn.delete(table + moment(former) + key)
        if until is not None:
            self.txn.put(table + moment(until) + key, b"")


def find_batch(view: View, name: str) -> Batch | None:
    """Return a batch that is not forgotten."""
    batch = view.held(_keys.BATCH + digest(name), Batch)
    forgotten = batch is None or (batch.until is not None and batch.until <= view.now)
    return None if forgotten else batch


def order_of(job: Job) -> bytes:
    """Return the place of a job in its queue."""
    return _keys.order(job.priority, job.ready_at, job.sequence)


def line(queue: Queue, lane: str) -> bytes:
    """Return the prefix of the jobs that are queued in a lane."""
    return _keys.LINE + short(queue.number) + digest(lane)


def claim_key(worker: str, claim: int) -> bytes:
    """Return what a claim is remembered by."""
    return digest(worker) + _keys.signed(claim)


def held_key(queue: Queue, job: Job) -> bytes:
    """Return the key of the lease of a running job; only in its queue is a token its own."""
    return _keys.HELD + claim_key(job.worker, job.claim) + short(queue.number) + number(job.token)


def _unique(queue: Queue, unique: UniqueKey) -> bytes:
    return _keys.UNIQUE + short(queue.number) + digest(unique.key)


def _bound(mail: Mail, now: float) -> None:
    if len(mail.finished) + len(mail.cancels) > _MOST_MAIL:
        mail.finished, mail.cancels, mail.resync = [], [], True
    mail.since = 0.0 if mail.empty else mail.since or now
