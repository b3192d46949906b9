"""How jobs are run: claim, settle and renew."""

from __future__ import annotations

import sys
from collections import defaultdict
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from plugq.allowance import Allowance, Limited, examined, usable
from plugq.job import FINAL, GIVES_ATTEMPT_BACK, JobState, Outcome, state_after_settlement
from plugq.protocols.budgets import LimitState, Want
from plugq.protocols.storage import (
    ClaimReply,
    Lease,
    RenewReply,
    SettleReply,
    Spent,
    UniqueMode,
)
from plugq_lmdb import _keys
from plugq_lmdb._keys import digest, moment, number, short
from plugq_lmdb._records import Claimed, Value
from plugq_lmdb._transaction import claim_key, line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from plugq.protocols.storage import ClaimRequest, Holder, LeaseRef, Settlement
    from plugq_lmdb._records import Job, Queue
    from plugq_lmdb._transaction import Transaction

_LOST = SettleReply(None, lost=True)
_COUNTED = {
    Outcome.RETRY: "retried",
    Outcome.SNOOZE: "snoozed",
    Outcome.RELEASE: "released",
}
#: Outcomes of attempts whose time counts as the run time of their task.
_RAN = frozenset({Outcome.SUCCEED, Outcome.FAIL, Outcome.RETRY, Outcome.SKIP})


class _Claim:
    """One claim while it is being served."""

    def __init__(self, tx: Transaction, request: ClaimRequest) -> None:
        self.tx = tx
        self.request = request
        self.granted: list[Lease] = []
        self.wants: list[Want] = []
        self.spent: list[Spent] = []
        self.next_at: list[float] = []

    @property
    def left(self) -> int:
        return self.request.limit - len(self.granted)

    def reply(self) -> ClaimReply:
        tx = self.tx
        next_in = max(0.0, min(self.next_at) - tx.now) if self.next_at else None
        return ClaimReply(
            leases=tuple(self.granted),
            next_in=next_in,
            wants=tuple(self.wants),
            spent=tuple(self.spent),
            now=tx.now,
        )

    def serve(self, queue: Queue, *, anew: bool) -> None:
        """Grant what a queue has for the claim, and note when its next job is due."""
        tx = self.tx
        if queue.paused:
            return
        if anew and queue.limited:
            let_in(tx, queue, examined(self.left))
        if anew and self.left > 0:
            tx.promote(queue, examined(self.left))
            tx.settle_lanes()
            jobs = self._take_limited(queue) if queue.limited else self._take(queue)
            # The clock keeps tokens rising where a store is begun anew in a namespace used before.
            token = max(queue.token + 1, int(tx.now * 1_000_000))
            for job in jobs:
                self._start(job, token)
                queue.token = token
                token += 1
            tx.settle_lanes()
        due = tx.next_at(_keys.DELAYED + short(queue.number))
        self.next_at += [] if due is None else [due]

    def _take(self, queue: Queue) -> list[Job]:
        taken: list[Job] = []
        most = queue.slots(self.left)
        if most > 0:
            for job in self._in_order(queue):
                taken.append(job)
                if len(taken) >= most:
                    break
        return taken

    def _take_limited(self, queue: Queue) -> list[Job]:
        """Return what the budgets let start; write them, park what they refuse, say what more."""
        tx, settings = self.tx, queue.settings
        room = queue.slots(sys.maxsize)
        if room <= 0 or settings is None:
            return []
        limited = Limited(bool(settings.limits), bool(settings.lane_limits))
        offered = usable(self.request.grants, queue.name, queue.revision, tx.now, limited)
        budgets = {
            lane: budget
            for lane, budget in offered.items()
            if budget.expect == _state(tx, queue, lane).version
        }
        allowance = Allowance(budgets, limited, tx.now, left=self.left, room=room)
        taken: list[Job] = []
        for job in self._in_order(queue):
            if allowance.done:
                break
            if allowance.take(job.lane):
                taken.append(job)
        for use in allowance.used:
            value = Value(tx.now + use.ttl, "", tx.next_version(), use.state)
            tx.keep(_budget(queue, use.lane), value)
            state = LimitState(use.lane, value.version, use.state)
            self.spent.append(Spent(queue.name, use.starts, state))
        for lane, until in allowance.parked.items():
            _park(tx, queue, lane, until)
        # What is wanted is left to this claimer, who comes again at once.
        fresh = tx.fresh.get(queue.name, 0)
        tx.fresh[queue.name] = max(0, fresh - allowance.left, allowance.more)
        if ready := allowance.wanted:
            states = tuple([_state(tx, queue, lane) for lane in allowance.named])
            want = Want(
                queue=queue.name,
                revision=queue.revision,
                limits=settings.limits,
                lane_limits=settings.lane_limits,
                ready=ready,
                states=states,
            )
            self.wants.append(want)
        return taken

    def _in_order(self, queue: Queue) -> Iterator[Job]:
        """Return the jobs that may start, in order; those of a lane as many as it has places for.

        Jobs past their deadline are taken out of the order for the sweep to end; when they are
        many the rest is left to the next claim, which is due at once.
        """
        tx = self.tx
        shown = tx.keys(_keys.READY + short(queue.number))
        head = next(shown, None)
        #: The next job of each lane of which one has been looked at.
        behind: list[bytes] = []
        seen: defaultdict[str, int] = defaultdict(int)
        overdue: list[Job] = []
        try:
            while head is not None or behind:
                if behind and (head is None or behind[0] < head):
                    order = heappop(behind)
                else:
                    assert head is not None  # noqa: S101 - one of the two is there
                    order, head = head, next(shown, None)
                job = tx.job(_keys.number_in(order, len(order) - 8))
                if job.overdue(tx.now):
                    overdue.append(job)
                    if len(overdue) > examined(self.request.limit):
                        self.next_at.append(tx.now)
                        return
                else:
                    if job.lane is not None:
                        seen[job.lane] += 1
                    yield job
                if job.lane is not None:
                    running = tx.lane(queue, job.lane).running + seen[job.lane]
                    following = None
                    if running < queue.lane_limit:
                        following = tx.first(line(queue, job.lane), order + b"\0")
                    if following is not None:
                        heappush(behind, following)
        finally:
            for job in overdue:
                tx.withdraw(job)

    def _start(self, job: Job, token: int) -> None:
        tx, request = self.tx, self.request
        tx.lift(job)
        job.token = token
        job.attempt += 1
        job.started_at = tx.now
        job.lease_until = tx.now + request.lease
        job.worker, job.claim, job.peer = request.worker, request.number, request.peer
        tx.tally(job).totals["started"] += 1
        tx.free_key(job, UniqueMode.UNTIL_STARTED)
        tx.place(job, JobState.RUNNING)
        self.granted.append(job.leased(tx.now, tx.blob(_keys.BODY, job) or b""))


def claim(tx: Transaction, request: ClaimRequest) -> ClaimReply:
    """Grant leases, or show again those that this claim was granted."""
    serving = _Claim(tx, request)
    key = claim_key(request.worker, request.number)
    # Its leases may outlive what is remembered of it, and the other way round.
    held = list(tx.keys(_keys.HELD + key))
    known = bool(held) or tx.held(_keys.CLAIM + key, Claimed) is not None
    repeated = known and request.limit > 0
    if repeated:
        for lease in held:
            job = tx.job(_sequence_of(tx, _keys.HELD + key + lease))
            serving.granted.append(job.leased(tx.now, tx.blob(_keys.BODY, job) or b""))
        place = {name: place for place, name in enumerate(dict.fromkeys(request.queues))}
        serving.granted.sort(key=lambda each: (place.get(each.queue, len(place)), each.token))
    for name in dict.fromkeys(request.queues):
        queue = tx.find_queue(name)
        if queue is not None:
            serving.serve(queue, anew=not repeated)
    if serving.granted and not repeated:
        tx.keep(_keys.CLAIM + key, Claimed(tx.now + 2 * request.lease))
    if serving.left > 0 and not repeated:
        _register_idle(tx, request)
    return serving.reply()


def _register_idle(tx: Transaction, request: ClaimRequest) -> None:
    mail = tx.mail(request.peer)
    if mail is None or mail.wake:
        return
    for name in request.queues:
        queue = tx.queue(name)
        if queue.number not in mail.idle:
            mail.idle.append(queue.number)
            tx.txn.put(_keys.IDLE + short(queue.number) + digest(request.peer), b"")


def _sequence_of(tx: Transaction, key: bytes) -> int:
    return _keys.number_in(tx.txn.get(key) or b"", 0)


def let_in(tx: Transaction, queue: Queue, most: int, now: float | None = None) -> int:
    """Let in what is parked no longer, at most ``most`` lanes; return how many lanes."""
    now = tx.now if now is None else now
    if queue.parked_until is not None and queue.parked_until <= now:
        queue.parked_until = None
        # One claimer at a time: they would only take turns on the one state.
        tx.fresh[queue.name] = 1
    parked = _keys.PARKED + short(queue.number)
    count = 0
    for key in list(tx.keys(parked)):
        if count >= most or _keys.moment_in(key, 0) > now:
            break
        count += 1
        lane = tx.lane(queue, (tx.txn.get(parked + key) or b"").decode())
        lane.parked_until = None
        tx.touch(queue, lane.name)
        tx.txn.delete(parked + key)
    return count


def _park(tx: Transaction, queue: Queue, name: str | None, until: float) -> None:
    if name is None:
        queue.parked_until = until
        return
    tx.lane(queue, name).parked_until = until
    tx.touch(queue, name)
    key = _keys.PARKED + short(queue.number) + moment(until) + digest(name)
    tx.txn.put(key, name.encode())


def _budget(queue: Queue, lane: str | None) -> bytes:
    return _keys.BUDGET + short(queue.number) + (b"" if lane is None else digest(lane))


def _state(tx: Transaction, queue: Queue, lane: str | None) -> LimitState:
    value = tx.held(_budget(queue, lane), Value)
    if value is None or (value.until is not None and value.until <= tx.now):
        return LimitState(lane, 0, None)
    return LimitState(lane, value.version, value.data)


def settle(
    tx: Transaction,
    settlements: Sequence[Settlement],
    request: ClaimRequest | None,
) -> tuple[list[SettleReply], ClaimReply | None]:
    """End attempts, then serve the claim."""
    replies = [_settle(tx, settlement) for settlement in settlements]
    return replies, None if request is None else claim(tx, request)


def _settle(tx: Transaction, settlement: Settlement) -> SettleReply:
    job = _running(tx, settlement.queue, settlement.id, settlement.token)
    if job is None:
        return _LOST
    outcome = settlement.outcome
    state = state_after_settlement(
        outcome,
        cancel_requested=job.cancel_requested,
        attempts_left=job.attempt < job.max_attempts,
        delay=settlement.delay,
    )
    tx.lift(job)
    tally = tx.tally(job)
    if outcome in _RAN and job.started_at is not None:
        tally.run_seconds += tx.now - job.started_at
        tally.run_count += 1
    job.progress = settlement.progress or job.progress
    if outcome is Outcome.SUCCEED:
        job.has_result = settlement.result is not None
        if settlement.result is not None:
            tx.txn.put(_keys.RESULT + number(job.sequence), settlement.result)
    else:
        _note(job, settlement, tx.now)
    if state in FINAL:
        tx.finish(job, state, settlement.code or ("error" if state is JobState.FAILED else ""))
        return SettleReply(state)
    tally.totals[_COUNTED[outcome]] += 1
    if state is JobState.DELAYED:
        at = settlement.at if outcome is Outcome.RETRY else None
        job.ready_at = max(tx.now, tx.now + settlement.delay if at is None else at)
    tx.place(job, state)
    return SettleReply(state)


def _running(tx: Transaction, queue: str, id: str, token: int) -> Job | None:
    """Return a job if it runs under exactly that token."""
    job = tx.find_job(queue, id)
    runs = job is not None and job.token == token and job.state is JobState.RUNNING
    return job if runs else None


def _note(job: Job, settlement: Settlement, now: float) -> None:
    """Keep what an attempt that did not succeed leaves behind."""
    if settlement.error is not None:
        job.remember(settlement.error, now)
    if settlement.outcome in GIVES_ATTEMPT_BACK:
        job.attempt -= 1
    if settlement.outcome is not Outcome.RELEASE:
        job.unknown = 0
    elif settlement.code == "unknown_task":
        job.unknown_since = job.unknown_since if job.unknown else now
        job.unknown += 1


def renew(
    tx: Transaction,
    leases: Sequence[LeaseRef],
    lease: float,
    holder: Holder | None,
) -> list[RenewReply]:
    """Extend leases, then release those of the holder that it does not know of."""
    replies: list[RenewReply] = []
    listed: set[int] = set()
    for ref in leases:
        job = _running(tx, ref.queue, ref.id, ref.token)
        if job is None:
            replies.append(RenewReply.LOST)
            continue
        at = number(job.sequence)
        tx.txn.delete(_keys.LAPSE + moment(job.lease_until) + at)
        job.lease_until = tx.now + lease
        tx.txn.put(_keys.LAPSE + moment(job.lease_until) + at, b"")
        job.progress = ref.progress or job.progress
        listed.add(job.sequence)
        replies.append(RenewReply.CANCEL if job.cancel_requested else RenewReply.OK)
    if holder is not None:
        for job in _held_by(tx, holder):
            if job.sequence not in listed:
                _give_back(tx, job)
    return replies


def _held_by(tx: Transaction, holder: Holder) -> list[Job]:
    prefix, end = _keys.HELD + digest(holder.worker), _keys.signed(holder.number + 1)
    held = []
    for key in tx.keys(prefix):
        if key >= end:
            break
        held.append(tx.job(_sequence_of(tx, prefix + key)))
    return held


def _give_back(tx: Transaction, job: Job) -> None:
    state = state_after_settlement(
        Outcome.RELEASE,
        cancel_requested=job.cancel_requested,
        attempts_left=True,
        delay=0.0,
    )
    tx.lift(job)
    job.attempt -= 1
    if state in FINAL:
        tx.finish(job, state)
    else:
        tx.tally(job).totals["released"] += 1
        tx.place(job, state)
