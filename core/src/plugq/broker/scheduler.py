"""Submits the jobs of schedules: each tick once, however many schedulers run.

A schedule's register holds the moment up to which its ticks are answered. A scheduler reads it,
submits what is due by then, and advances it only afterwards. Two of them that do so at one time
submit the same ids, and the storage accepts each once. One that was paused between reading and
submitting comes too late: its submissions carry a ``not_after`` that lies well within the time
for which the ids stay known.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from plugq.duration import moment
from plugq.errors import OutcomeUnknown, Unavailable
from plugq.job import JobRef
from plugq.protocols.storage import RegisterChange, SubmitStatus
from plugq.schedule import CatchUp, Due, Rule, due

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plugq.clock import Clock
    from plugq.protocols.storage import NewJob, Register, Storage

logger: logging.Logger = logging.getLogger(__name__)

Overlap = Literal["skip", "allow"]

#: Ticks that one round submits of one schedule; the next round goes on behind them.
MOST_TICKS = 100
#: Seconds within which a tick that was read must be submitted; ids stay known much longer.
SUBMIT_WITHIN = 60.0
#: The longest pause, so that a process that takes the office over notices ticks in time.
ROUND = 0.8
#: Seconds by which a process that is not elected leaves a tick to the one that is.
LAG = 3.0
#: Seconds for which the storage's time is estimated before it is asked again, and a jump of the
#: machine's clock (it was set, or slept) after which it is asked at once.
LOOK, JUMP = 60.0, 0.5


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A rule that submits jobs by the clock.

    ``make`` returns the job of a tick, without an id of its own. ``catch_up`` says what becomes
    of ticks while no scheduler ran, ``overlap`` whether a tick is left out while the job of the
    one before has not ended.
    """

    name: str
    rule: Rule
    make: Callable[[str], NewJob]
    catch_up: CatchUp = "one"
    overlap: Overlap = "skip"


class _State(msgspec.Struct, frozen=True, array_like=True):
    """What a schedule's register holds: ``last`` in seconds since 1970 UTC, and the last job."""

    last: float
    queue: str = ""
    id: str = ""
    version: int = 1


_decoder = msgspec.msgpack.Decoder(_State)


class Scheduler:
    """Runs schedules in time while ``active`` says so, which election does, else a little late.

    Who is not elected may have schedules that the elected process does not know, those of another
    application on the same store. So it looks ``LAG`` seconds after a tick whether the register
    still lacks it. Two at once do no harm.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        schedules: Sequence[Schedule],
        *,
        active: Callable[[], bool] = lambda: True,
        ticked: Callable[[Schedule, NewJob], None] = lambda _, __: None,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._schedules = tuple(schedules)
        self._active = active
        self._ticked = ticked
        self._next: dict[str, float | None] = {}
        #: The storage's time is this much ahead of the monotonic clock, as of the last look.
        self._ahead: float | None = None
        self._looked, self._wall = 0.0, 0.0

    async def run(self) -> None:
        """Submit what is due for ever; raises what the storage raises."""
        self._ahead = None
        while True:
            if self._ahead is None or self._stale() or self._due_by_estimate():
                await self.round()
            await self._clock.sleep(self._pause())

    def state(self) -> dict[str, Any]:
        """Return by schedule when its next tick is, as far as that is known here."""
        return {
            name: None if at is None else moment(at).isoformat() for name, at in self._next.items()
        }

    async def round(self) -> int:
        """Look at every schedule once, submit what is due, and return how many jobs that were."""
        keys = [_key(schedule) for schedule in self._schedules]
        loaded = await self._storage.load(keys)
        self._looked = self._clock.monotonic()
        self._wall = self._clock.time() - self._looked
        self._ahead = loaded.now - self._looked
        submitted = 0
        for schedule, register in zip(self._schedules, loaded.registers, strict=True):
            try:
                submitted += await self._serve(schedule, register, loaded.now)
            except (Unavailable, OutcomeUnknown):
                raise
            except Exception:
                # One schedule that fails must not stop the others.
                logger.exception("schedule %r failed and is tried again", schedule.name)
                self._next[schedule.name] = loaded.now + ROUND
        return submitted

    async def _serve(self, schedule: Schedule, register: Register | None, now: float) -> int:
        state = None if register is None else _state(register)
        last = None if state is None else datetime.fromtimestamp(state.last, UTC)
        # A new schedule counts from now, whoever sees it first.
        at = datetime.fromtimestamp(now if state is None else now - self._lag(), UTC)
        answer = due(schedule.rule, last, at, schedule.catch_up, MOST_TICKS)
        following = schedule.rule.next(answer.last)
        self._next[schedule.name] = None if following is None else following.timestamp()
        if not answer.ticks and state is not None and answer.last == last:
            return 0
        jobs = await self._jobs(schedule, state, answer, now)
        if jobs:
            replies = await self._storage.submit(jobs)
            if len(jobs) > 1 and any(reply.status is SubmitStatus.FULL for reply in replies):
                # Nothing of that call was stored; what fits goes in one by one.
                jobs, answer = jobs[:1], Due(answer.ticks[:1], answer.ticks[0])
                self._next[schedule.name] = now
                replies = await self._storage.submit(jobs)
            for job, reply in zip(jobs, replies, strict=True):
                if reply.status is SubmitStatus.ACCEPTED:
                    self._ticked(schedule, job)
                elif reply.status is SubmitStatus.FULL:
                    logger.warning("schedule %r: queue %r is full", schedule.name, job.queue)
                    self._next[schedule.name] = now + ROUND
                    return 0
                elif reply.status is SubmitStatus.LATE:
                    # Whether somebody else has answered this tick the register will show.
                    self._next[schedule.name] = now + ROUND
                    return 0
        new = _State(
            answer.last.timestamp(),
            jobs[-1].queue if jobs else "" if state is None else state.queue,
            jobs[-1].id if jobs else "" if state is None else state.id,
        )
        change = RegisterChange(
            key=_key(schedule),
            expect=0 if register is None else register.version,
            value=msgspec.msgpack.encode(new),
        )
        if not (await self._storage.swap([change])).done:
            # The register may still lack these ticks: look again while their ids are known.
            self._next[schedule.name] = now + ROUND
        return len(jobs)

    async def _jobs(
        self,
        schedule: Schedule,
        state: _State | None,
        answer: Due,
        now: float,
    ) -> list[NewJob]:
        ticks = answer.ticks
        if ticks and schedule.overlap == "skip":
            # Of several ticks at once all but the first would overlap the one before.
            ticks = ticks[-1:]
            if state is not None and state.id:
                (before,) = await self._storage.get([JobRef(state.queue, state.id)])
                if (
                    before is not None
                    and not before.state.final
                    and before.id != _id(schedule, ticks[0])
                ):
                    return []
        jobs = []
        for tick in ticks:
            id = _id(schedule, tick)
            job = schedule.make(id)
            jobs.append(
                msgspec.structs.replace(
                    job,
                    id=id,
                    submission=hashlib.sha256(id.encode()).digest()[:16],
                    id_ttl=max(job.id_ttl, 2 * SUBMIT_WITHIN),
                    not_after=now + SUBMIT_WITHIN,
                ),
            )
        return jobs

    def _stale(self) -> bool:
        now = self._clock.monotonic()
        return now - self._looked > LOOK or abs(self._clock.time() - now - self._wall) > JUMP

    def _now(self) -> float:
        """Return the storage's time as estimated, less the lag."""
        return self._clock.monotonic() + (self._ahead or 0.0) - self._lag()

    def _lag(self) -> float:
        return 0.0 if self._active() else LAG

    def _due_by_estimate(self) -> bool:
        now = self._now()
        return any(at is not None and at <= now for at in self._next.values())

    def _pause(self) -> float:
        if self._ahead is None:
            return ROUND
        now = self._now()
        first = min((at for at in self._next.values() if at is not None), default=now + ROUND)
        return min(max(first - now, 0.01), ROUND)


def _key(schedule: Schedule) -> str:
    return f"schedule:{schedule.name}"


def _id(schedule: Schedule, tick: datetime) -> str:
    return f"{schedule.name}@{tick.isoformat()}"


def _state(register: Register) -> _State | None:
    try:
        return _decoder.decode(register.value)
    except msgspec.MsgspecError:
        return None


__all__ = ["Overlap", "Schedule", "Scheduler"]
