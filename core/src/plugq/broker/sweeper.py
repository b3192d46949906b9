"""Housekeeping by whoever is elected: due jobs, lapsed leases, deadlines, retention.

The office is a register with a short ttl. Election saves work and nothing else: two sweepers at
once do no harm, since the storage fences each of their moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq import failpoints
from plugq.protocols.storage import RegisterChange, SweepReply, SweepRequest
from plugq.schedule.stored import NEWS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from plugq.clock import Clock
    from plugq.protocols.storage import Change, Storage

#: The register that names the sweeper.
OFFICE = "sweeper"
#: Seconds for which the office is held, between renewals of it, and between candidacies. An
#: office left by a dead process is taken over after at most ``TERM + CANDIDACY`` = 2.9 s.
TERM = 1.5
RENEWAL = 0.8
CANDIDACY = 1.4
#: The longest that a sweeper sleeps, so that a due job is noticed within a second.
ROUND = 0.8
#: A round that comes this much later than planned means that the process was paused.
PAUSED = 2.0
#: A timer may ring so much too early, which is no reason for a round of its own.
_EARLY = 0.01
#: How often a term is asked for in a row: it may have ended, and news may have come meanwhile.
_TRIES = 4


class Sweeper:
    """Stands for the office and, while it has it, sweeps.

    ``patience`` is how many seconds holders get to renew before this sweeper ends any lease,
    counted from its election and from every pause or failure of its own. ``report`` gets what a
    sweep has moved, and when it began. ``news`` is called when it is elected and when schedules
    were changed, which it learns with each renewal of its term.
    """

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        *,
        name: str,
        max_crashes: int,
        patience: float,
        deadline_grace: float,
        report: Callable[[Sequence[Change], float], None],
        news: Callable[[], None] = lambda: None,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._name = name.encode()
        self._max_crashes = max_crashes
        self._patience = patience
        self._deadline_grace = deadline_grace
        self._report = report
        self._news = news
        self._version = 0
        self._elected = False
        self._rounds = 0

    async def run(self) -> None:
        """Stand and sweep for ever; raises what the storage raises."""
        self._elected = False
        while True:
            if await self._stand():
                await self._serve()
            await self._clock.sleep(CANDIDACY)

    async def resign(self) -> None:
        """Give the office up, so that the next one need not wait for its term to end."""
        if self._elected:
            self._elected = False
            change = RegisterChange(key=OFFICE, expect=self._version, value=None)
            await self._storage.swap([change])

    @property
    def elected(self) -> bool:
        """Whether this process has the office."""
        return self._elected

    def state(self) -> dict[str, Any]:
        """Return whether this process sweeps, and how often it has."""
        return {"elected": self._elected, "rounds": self._rounds}

    async def _stand(self) -> bool:
        """Take the free office or renew the term; false when another one holds it."""
        flag = 0
        for _ in range(_TRIES):
            office = RegisterChange(key=OFFICE, expect=self._version, value=self._name, ttl=TERM)
            # Expects no news, and removes what there was: that costs no call of its own.
            news = RegisterChange(key=NEWS, expect=flag, value=None)
            answer = await self._storage.swap([office, news])
            held, told = answer.registers
            if answer.done and held is not None:
                if flag or not self._elected:
                    self._news()
                self._elected, self._version = True, held.version
                return True
            if held is None:
                # The office is free, or the own term has ended unnoticed.
                self._version = 0
            elif held.version != self._version:
                break
            flag = 0 if told is None else told.version
        self._elected, self._version = False, 0
        return False

    async def _serve(self) -> None:
        patient_until = self._clock.monotonic() + self._patience
        renew_at = self._clock.monotonic() + RENEWAL
        while True:
            now = self._clock.monotonic()
            reply = await self._sweep(end_leases=now >= patient_until)
            pause = ROUND if reply.next_in is None else min(max(reply.next_in, 0.0), ROUND)
            if now < patient_until:
                pause = min(max(pause, 0.05), ROUND)
            pause = max(0.0, min(pause, renew_at - self._clock.monotonic()))
            planned = self._clock.monotonic() + pause
            if pause:
                await self._clock.sleep(pause)
            woke = self._clock.monotonic()
            if woke - planned > PAUSED:
                patient_until = woke + self._patience
            if woke >= renew_at - _EARLY:
                if not await self._stand():
                    return
                renew_at = self._clock.monotonic() + RENEWAL

    async def _sweep(self, *, end_leases: bool) -> SweepReply:
        request = SweepRequest(
            max_crashes=self._max_crashes,
            end_leases=end_leases,
            deadline_grace=self._deadline_grace,
        )
        began = self._clock.time()
        if failpoints.ARMED:
            failpoints.hit("sweeper.sweep.before")
        reply = await self._storage.sweep(request)
        if failpoints.ARMED:
            failpoints.hit("sweeper.sweep.after")
        self._rounds += 1
        if reply.changes:
            self._report(reply.changes, began)
        return reply


__all__ = ["Sweeper"]
