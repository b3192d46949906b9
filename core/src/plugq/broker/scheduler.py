"""The scheduler: submits the jobs of all schedules, each tick once, however many run.

Each schedule has one register, which holds its definition and the moment up to which its ticks are
answered. A scheduler loads it and the storage's time in one step, notes in it which ticks it is
about to submit and to which queue, submits them, and only then advances it. So

* whoever finds ticks noted there submits them again, with the same ids to the same queue, and the
  storage accepts each once: a scheduler may die or be suspended between any two calls;
* a change of the definition comes either before the note, which then fails, or after it, and the
  noted ticks go where the storage knows their ids;
* the job that the next tick must not overlap is known before it exists;
* a submission that comes too late is refused: it carries a ``not_after`` that lies well within
  the time for which ids stay known.

Ticks that were noted and that nobody could complete while their ids were surely known count as
submitted, with a warning in the log: that takes a scheduler that died between two calls, and none
that took its place for ``id_ttl``. Late ones of a schedule that skips those are given up in the
same way; where the queue refused them the log says that they were dropped.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from plugq import failpoints
from plugq.broker.agenda import Agenda
from plugq.broker.announce import announce, tell
from plugq.broker.ticks import (
    advanced,
    jobs_of,
    noted,
    policy_of,
    refused,
    still_known,
    too_late,
)
from plugq.duration import moment
from plugq.errors import OutcomeUnknown, Unavailable
from plugq.job import JobRef
from plugq.lifecycle import Alarm
from plugq.protocols.storage import RegisterChange, SubmitStatus
from plugq.schedule import due
from plugq.schedule.stored import (
    NEWS,
    PREFIX,
    Stored,
    encode,
    key_of,
    moment_of,
    name_of,
    read,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plugq.clock import Clock
    from plugq.protocols.storage import NewJob, Register, Storage, SubmitReply
    from plugq.schedule import Due
    from plugq.schedule.stored import Definition, Entry, Pending

logger: logging.Logger = logging.getLogger(__name__)

#: Ticks of one schedule that are submitted together; the next step goes on behind them.
MOST_TICKS = 100
#: Schedules that one step serves together, and jobs that one call submits.
BATCH, MOST_JOBS = 100, 1000
#: Registers that are read before the other work of this loop has its turn.
BREATH = 100
#: The longest pause, so that a process that takes the office over notices ticks in time.
ROUND = 0.8
#: Seconds after which a tick is tried again that a full or draining queue refused.
AGAIN = 2.0
#: Seconds for which the storage's time is estimated before it is asked again, and a jump of the
#: machine's clock (it was set, or slept) after which it is asked at once.
LOOK, JUMP = 60.0, 0.5

_WHOLE = {SubmitStatus.FULL, SubmitStatus.DRAINING, SubmitStatus.REFUSED}
_REFUSED = _WHOLE | {SubmitStatus.LATE}


class Scheduler:
    """Announces the schedules of this process, and runs those of everybody while it is elected.

    ``owner`` is in whose name ``definitions`` are announced; without one nothing is. ``active``
    says whether this process is elected; two that are at once do no harm.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        definitions: Sequence[Definition] = (),
        *,
        owner: str = "",
        active: Callable[[], bool] = lambda: True,
        ticked: Callable[[str, NewJob], None] = lambda _, __: None,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._definitions = tuple(definitions)
        self._owner = owner
        self._announced = not owner
        self._active = active
        self._ticked = ticked
        self._known: dict[str, Stored] = {}
        self._unreadable: dict[str, tuple[int, str]] = {}
        #: By schedule, the queue, ticks and status of the refusal that was answered last.
        self._refused: dict[str, tuple[str, tuple[float, ...], SubmitStatus]] = {}
        self._agenda = Agenda()
        self._kick = asyncio.Event()
        self._news = True
        #: The storage's time is this much ahead of the monotonic clock, as of the last look.
        self._ahead = 0.0
        self._looked, self._scanned, self._wall = 0.0, 0.0, 0.0

    def changed(self) -> None:
        """Look at all schedules soon: some were changed, or this process was elected."""
        self._news = True
        self._kick.set()

    async def run(self) -> None:
        """Submit what is due for ever; raises what the storage raises."""
        self._news = True
        alarm = Alarm(self._clock, self._kick.set)
        try:
            while True:
                self._kick.clear()
                if not self._announced:
                    await self.announce()
                if not self._active():
                    self._news = True
                elif self._news or self._stale():
                    await self.round()
                elif due_now := self._agenda.due(self._now()):
                    await self._serve(due_now)
                alarm.set(self._clock.monotonic() + self._pause())
                await self._kick.wait()
        finally:
            await alarm.stop()

    async def announce(self) -> None:
        """Write the schedules of this process into their registers, once."""
        await announce(self._storage, self._definitions, self._owner)
        # Even if nothing differs: a first try may have failed behind the changes.
        await tell(self._storage)
        self._announced = True
        self._news = True

    def state(self) -> dict[str, Any]:
        """Return when each schedule ticks next, and what can not be read, as far as known here."""
        agenda = self._agenda.items()
        shown: dict[str, Any] = {
            name: None if (at := agenda.get(name)) is None else moment(at).isoformat()
            for name in list(self._known)
        }
        for name, (_, reason) in list(self._unreadable.items()):
            shown[name] = f"unreadable: {reason}"
        return shown

    async def round(self) -> int:
        """Look at every schedule, submit what is due, and return how many jobs that were."""
        self._news = False
        try:
            # The time first: what is scanned afterwards is no older than it.
            loaded = await self._storage.load([NEWS])
            self._look(loaded.now)
            self._scanned = self._looked
            registers = await self._storage.scan(PREFIX)
            for number, register in enumerate(registers, 1):
                self._take(name_of(register.key), register)
                if not number % BREATH:
                    await asyncio.sleep(0)
            there = {name_of(register.key) for register in registers}
            for name in [*self._known, *self._unreadable]:
                if name not in there:
                    self._take(name, None)
            return await self._serve(self._agenda.due(loaded.now))
        except BaseException:
            self._news = True
            raise

    async def _serve(self, names: Sequence[str]) -> int:
        submitted = 0
        for start in range(0, len(names), BATCH):
            submitted += await self._step(names[start : start + BATCH])
        return submitted

    async def _step(self, names: Sequence[str]) -> int:
        """Submit what is due of some schedules, as their registers stand now."""
        loaded = await self._storage.load([key_of(name) for name in names])
        now = loaded.now
        self._look(now)
        answers: list[tuple[Stored, Due]] = []
        ready: list[Stored] = []
        changes: dict[str, Entry] = {}
        for name, register in zip(names, loaded.registers, strict=True):
            stored = self._take(name, register)
            if stored is None or stored.idle:
                continue
            pending = stored.entry.pending
            if pending is None:
                answer = self._due(stored, now)
                if answer is not None:
                    answers.append((stored, answer))
            elif still_known(pending, now) and not too_late(stored.entry, pending, now):
                ready.append(stored)
            else:
                self._give_up(name, pending, now)
                changes[name] = advanced(stored, pending, len(pending.ticks))
        running = await self._running(answers)
        for stored, answer in answers:
            overlaps = stored.name in running
            changes[stored.name] = noted(stored.entry, answer, now, overlaps=overlaps)
        return await self._submit([*ready, *await self._write(changes)], now)

    def _give_up(self, name: str, pending: Pending, now: float) -> None:
        """Say what becomes of ticks that can not be submitted any more."""
        tick = moment_of(pending.ticks[-1]).isoformat()
        queue, ticks, status = self._refused.get(name, ("", (), None))
        if status is not None and ticks == pending.ticks and still_known(pending, now):
            logger.warning(
                "schedule %r: the job of %s was dropped, since queue %r is %s",
                name,
                tick,
                queue,
                status.value,
            )
        else:
            logger.warning(
                "schedule %r: whether the job of %s was submitted can not be made sure in "
                "time; it counts as submitted",
                name,
                tick,
            )

    def _due(self, stored: Stored, now: float) -> Due | None:
        """Return what is due, or ``None`` where the register can stay as it is."""
        last = moment_of(stored.entry.last)
        try:
            answer = due(stored.rule, last, moment_of(now), policy_of(stored.entry), MOST_TICKS)
        except Exception:
            # One schedule that fails must not stop the others.
            logger.exception("schedule %r failed and is tried again", stored.name)
            self._agenda.set(stored.name, now + LOOK)
            return None
        return answer if answer.ticks or answer.last != last else None

    async def _running(self, answers: Sequence[tuple[Stored, Due]]) -> set[str]:
        """Return the schedules whose tick is left out since its forerunner has not ended."""
        asked = [
            stored
            for stored, answer in answers
            if answer.ticks and stored.entry.overlap == "skip" and stored.entry.id
        ]
        if not asked:
            return set()
        refs = [JobRef(stored.entry.queue, stored.entry.id) for stored in asked]
        records = await self._storage.get(refs)
        return {
            stored.name
            for stored, record in zip(asked, records, strict=True)
            if record is not None and not record.state.final
        }

    async def _write(self, changes: dict[str, Entry]) -> list[Stored]:
        """Write the entries whose registers nobody else has changed, and return those."""
        left = {
            name: RegisterChange(
                key=key_of(name), expect=self._known[name].version, value=encode(entry)
            )
            for name, entry in changes.items()
        }
        while left:
            answer = await self._storage.swap(list(left.values()))
            if answer.done:
                taken = [
                    self._take(name, register)
                    for name, register in zip(left, answer.registers, strict=True)
                ]
                return [stored for stored in taken if stored is not None]
            for change, register in zip(list(left.values()), answer.registers, strict=True):
                if register is None or register.version != change.expect:
                    name = name_of(change.key)
                    del left[name]
                    if self._take(name, register) is not None:
                        # Whoever was faster may die before the tick is submitted: look again.
                        self._agenda.set(name, answer.now + ROUND)
        return []

    async def _submit(self, stored: Sequence[Stored], now: float) -> int:
        """Submit noted ticks and advance the registers of those that were taken."""
        ready = {
            one.name: (one, pending)
            for one in stored
            if (pending := one.entry.pending) is not None and not one.idle
        }
        jobs = {name: jobs_of(one, pending, now) for name, (one, pending) in ready.items()}
        replies = await self._send(jobs)
        changes: dict[str, Entry] = {}
        again: dict[str, float] = {}
        submitted = 0
        for name, (one, pending) in ready.items():
            if name not in replies:
                again[name] = now + LOOK
                continue
            taken = 0
            for job, reply in zip(jobs[name], replies[name], strict=False):
                if reply.status in _REFUSED:
                    break
                taken += 1
                if reply.status is SubmitStatus.ACCEPTED:
                    self._ticked(name, job)
            if taken:
                last = replies[name][taken - 1]
                changes[name] = advanced(one, pending, taken, id=last.id)
                submitted += taken
                self._refused.pop(name, None)
                continue
            again[name] = now + AGAIN
            status = replies[name][0].status
            if status is not SubmitStatus.LATE:
                self._note_refusal(name, pending, status)
                if (entry := refused(one, pending, now)) is not None:
                    changes[name] = entry
        await self._write(changes)
        for name, at in again.items():
            self._agenda.set(name, at)
        return submitted

    def _note_refusal(self, name: str, pending: Pending, status: SubmitStatus) -> None:
        """Remember that a queue took nothing, and say it once until it does."""
        queue, _, before = self._refused.get(name, ("", (), None))
        if (queue, before) != (pending.queue, status):
            logger.warning(
                "schedule %r: queue %r is %s and is tried again", name, pending.queue, status.value
            )
        self._refused[name] = pending.queue, pending.ticks, status

    async def _send(self, jobs: dict[str, list[NewJob]]) -> dict[str, Sequence[SubmitReply]]:
        """Submit in few calls, and each schedule alone where a call was refused as a whole."""
        for name in jobs.keys() & self._refused.keys():
            # Until this try is answered, nobody knows what became of it.
            queue, _, status = self._refused[name]
            self._refused[name] = queue, (), status
        found: dict[str, Sequence[SubmitReply]] = {}
        group: dict[str, list[NewJob]] = {}
        for name, some in jobs.items():
            if group and sum(map(len, group.values())) + len(some) > MOST_JOBS:
                found |= await self._send_group(group)
                group = {}
            group[name] = some
        if group:
            if failpoints.ARMED:
                failpoints.hit("scheduler.noted")
            found |= await self._send_group(group)
            if failpoints.ARMED:
                failpoints.hit("scheduler.submitted")
        return found

    async def _send_group(
        self,
        jobs: dict[str, list[NewJob]],
    ) -> dict[str, Sequence[SubmitReply]]:
        if len(jobs) > 1:
            flat: Sequence[SubmitReply] = ()
            try:
                flat = await self._storage.submit([job for some in jobs.values() for job in some])
            except (Unavailable, OutcomeUnknown):
                raise
            except Exception:
                # Whose job it is that fails turns out below.
                logger.debug("jobs of %d schedules failed together", len(jobs), exc_info=True)
            if flat and not any(map(_whole, flat)):
                answers = iter(flat)
                return {name: [next(answers) for _ in some] for name, some in jobs.items()}
        found: dict[str, Sequence[SubmitReply]] = {}
        for name, some in jobs.items():
            try:
                replies = await self._storage.submit(some)
                if len(some) > 1 and any(map(_whole, replies)):
                    # Nothing of that call was stored; what fits goes in one by one.
                    replies = await self._storage.submit(some[:1])
            except (Unavailable, OutcomeUnknown):
                raise
            except Exception:
                logger.exception("schedule %r failed and is tried again", name)
            else:
                found[name] = replies
        return found

    def _take(self, name: str, register: Register | None) -> Stored | None:
        """Remember what a register says and when it is due; ``None`` for nothing that is known."""
        known = self._known.get(name)
        if register is None:
            self._known.pop(name, None)
            self._unreadable.pop(name, None)
            self._refused.pop(name, None)
            self._agenda.set(name, None)
            return None
        if known is not None and known.version == register.version:
            self._plan(known)
            return known
        if self._unreadable.get(name, (0, ""))[0] == register.version:
            return None
        found = read(register)
        if isinstance(found, str):
            logger.error("schedule %r can not be read and is left alone: %s", name, found)
            self._unreadable[name] = (register.version, found)
            self._known.pop(name, None)
            self._agenda.set(name, None)
            return None
        self._unreadable.pop(name, None)
        self._known[name] = found
        self._plan(found)
        return found

    def _plan(self, stored: Stored) -> None:
        if stored.idle:
            self._agenda.set(stored.name, None)
        elif stored.entry.pending is not None:
            self._agenda.set(stored.name, stored.entry.pending.at)
        else:
            tick = stored.next()
            self._agenda.set(stored.name, None if tick is None else tick.timestamp())

    def _look(self, now: float) -> None:
        self._looked = self._clock.monotonic()
        self._wall = self._clock.time() - self._looked
        self._ahead = now - self._looked

    def _stale(self) -> bool:
        now = self._clock.monotonic()
        return now - self._scanned > LOOK or abs(self._clock.time() - now - self._wall) > JUMP

    def _now(self) -> float:
        """Return the storage's time as estimated."""
        return self._clock.monotonic() + self._ahead

    def _pause(self) -> float:
        first = self._agenda.first()
        if first is None or not self._active():
            return ROUND
        return min(max(first - self._now(), 0.01), ROUND)


def _whole(reply: SubmitReply) -> bool:
    """Whether the reply says that nothing of its call was stored."""
    return reply.status in _WHOLE


__all__ = ["Scheduler"]
