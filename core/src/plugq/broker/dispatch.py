"""Which waiting claim asks the storage when: decided without I/O, clock or await.

``Dispatch.handle(event, now)`` takes what has happened and returns what to do. The broker around
it performs the actions and reports back. ``now`` is monotonic seconds.

A claim that finds nothing waits here until there is a wake-up, until the next job of its queues
falls due, or until the slow poll that makes up for a lost wake-up. The storage has registered
the broker as idle in the same step in which it answered short, so a claim that follows such an
answer, with no wake-up in between, waits without asking.

An answer that left out jobs for want of budgets is followed by another claim at once, which brings
them. Where other brokers spend them first time after time, it pauses.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from plugq.protocols.storage import ClaimReply

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugq.protocols.storage import ClaimRequest


#: How often in a row a claim asks for want of budgets, and for how many seconds it then waits.
ROUNDS, PAUSE = 4, 0.05


@dataclass(frozen=True, slots=True)
class Asked:
    """A worker asks, and is content to wait until ``until``.

    ``closed`` is until when this broker knows that there will be nothing for it.
    """

    key: int
    request: ClaimRequest
    until: float
    closed: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """The storage answered the probe of that claim; with ``more``, budgets may get it more."""

    key: int
    reply: ClaimReply
    more: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """The probe of that claim failed; the caller is told."""

    key: int


@dataclass(frozen=True, slots=True)
class Returned:
    """The claim that was lent got no answer; it may have been granted jobs all the same."""

    key: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The caller of that claim does not wait any longer."""

    key: int


@dataclass(frozen=True, slots=True)
class Short:
    """A claim that did not wait here came back short, so this broker is registered as idle.

    ``since`` is what ``Dispatch.changes`` was when the claim was sent; with another number now the
    answer may be from before a wake-up and says nothing.
    """

    queues: tuple[str, ...]
    next_in: float | None
    since: int = 0


@dataclass(frozen=True, slots=True)
class Woken:
    """There may be work; with ``queues``, what this broker has parked there may run again."""

    queues: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """This broker itself has stored a job that falls due in so many seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Tick:
    """The time of the last ``Timer`` has come."""


Event = Asked | Answered | Refused | Returned | Gone | Short | Woken | Due | Tick


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask the storage and report ``Answered`` or ``Refused``."""

    key: int
    request: ClaimRequest


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer the caller; the claim is over."""

    key: int
    reply: ClaimReply | None


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Release these leases: who asked for them is gone."""

    reply: ClaimReply


@dataclass(frozen=True, slots=True)
class LetIn:
    """Have the storage let in what may run again in these queues: nobody here claims it now."""

    queues: frozenset[str]


@dataclass(frozen=True, slots=True)
class Timer:
    """Report a ``Tick`` at that moment; replaces the timer before. ``None``: none is needed."""

    at: float | None


Action = Probe | Reply | GiveBack | LetIn | Timer


@dataclass(slots=True)
class _Claim:
    request: ClaimRequest
    until: float
    probing: bool = False
    gone: bool = False
    #: A wake-up came while the storage was being asked; the answer may be from before it.
    again: bool = False
    #: How often in a row it has asked for want of budgets.
    rounds: int = 0
    next_at: float = inf
    #: When the first job falls due that was stored here while the storage was being asked.
    due: float = inf


class Dispatch:
    """The waiting claims of one broker.

    ``poll`` gives the seconds until a waiting claim asks again although nothing woke it; it is
    called for each wait, so that it can add jitter.
    """

    def __init__(self, poll: Callable[[], float]) -> None:
        self._poll = poll
        self._claims: dict[int, _Claim] = {}
        #: Queues for which the storage knows this broker as idle → when their next job is due.
        self._idle: dict[tuple[str, ...], float] = {}
        self._timer: float | None = None
        self._changes = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Return what is to be done now that ``event`` has happened."""
        actions: list[Action] = []
        match event:
            case Asked():
                self._asked(event, now, actions)
            case Answered():
                self._answered(event, now, actions)
            case Refused(key):
                self._refused(key, actions)
            case Returned(key):
                self._returned(key, actions)
            case Gone(key):
                self._gone(key)
            case Short():
                self._short(event, now)
            case Woken(queues):
                self._woken(queues, actions)
            case Due(delay):
                self._due(now + delay)
            case Tick():
                self._tick(now, actions)
        self._set_timer(actions)
        return actions

    def lend(self, queues: frozenset[str]) -> Probe | None:
        """Return a waiting claim of one of these queues, to be sent along with something else.

        ``Answered`` or ``Returned`` has to follow, as for one that was asked for.
        """
        for key, claim in self._claims.items():
            if not claim.probing and not queues.isdisjoint(claim.request.queues):
                lent: list[Action] = []
                self._probe(key, claim, lent)
                return Probe(key, claim.request)
        return None

    @property
    def waiting(self) -> int:
        """How many claims wait."""
        return len(self._claims)

    @property
    def changes(self) -> int:
        """How often there may have come something to claim, so far."""
        return self._changes

    def _asked(self, event: Asked, now: float, actions: list[Action]) -> None:
        claim = self._claims[event.key] = _Claim(event.request, event.until)
        due = self._idle.get(event.request.queues, event.closed)
        if due is not None and due > now and event.until > now:
            claim.next_at = min(due, now + self._poll())
        else:
            self._probe(event.key, claim, actions)

    def _probe(self, key: int, claim: _Claim, actions: list[Action]) -> None:
        claim.probing = True
        claim.again = False
        claim.due = inf
        self._idle.pop(claim.request.queues, None)
        actions.append(Probe(key, claim.request))

    def _answered(self, event: Answered, now: float, actions: list[Action]) -> None:
        claim = self._claims.get(event.key)
        if claim is None or claim.gone:
            self._claims.pop(event.key, None)
            if event.reply.leases:
                actions.append(GiveBack(event.reply))
            self._probe_next(actions)
            return
        claim.probing = False
        due = inf if event.reply.next_in is None else now + event.reply.next_in
        due = min(due, claim.due)
        short = len(event.reply.leases) < claim.request.limit and not claim.again
        claim.rounds = claim.rounds + 1 if event.more else 0
        if short and not event.more:
            self._came_short(claim.request.queues, due, now)
        asks = claim.again or 0 < claim.rounds < ROUNDS
        if event.reply.leases or (claim.until <= now and not asks):
            del self._claims[event.key]
            actions.append(Reply(event.key, event.reply))
        elif event.more and not asks:
            claim.rounds = 0
            claim.next_at = min(due, now + PAUSE)
        elif asks or not short:
            claim.next_at = -inf
        self._probe_next(actions)

    def _came_short(self, queues: tuple[str, ...], due: float, now: float) -> None:
        # What these queues had is taken, so no other claim of theirs need follow this wake-up.
        self._idle[queues] = due
        for claim in self._claims.values():
            if claim.request.queues == queues and not claim.probing:
                claim.next_at = min(due, now + self._poll())

    def _refused(self, key: int, actions: list[Action]) -> None:
        claim = self._claims.pop(key, None)
        if claim is not None and not claim.gone:
            actions.append(Reply(key, None))
        self._probe_next(actions)

    def _returned(self, key: int, actions: list[Action]) -> None:
        claim = self._claims.get(key)
        if claim is not None:
            claim.probing = False
            # Under the same number: what was granted comes with the answer, wanted or not.
            self._probe(key, claim, actions)

    def _gone(self, key: int) -> None:
        claim = self._claims.get(key)
        if claim is None:
            return
        if claim.probing:
            claim.gone = True
        else:
            del self._claims[key]

    def _short(self, event: Short, now: float) -> None:
        if event.since == self._changes:
            self._idle[event.queues] = inf if event.next_in is None else now + event.next_in

    def _woken(self, names: frozenset[str] | None, actions: list[Action]) -> None:
        self._changes += 1
        for queues in [queues for queues in self._idle if _concerns(names, queues)]:
            del self._idle[queues]
        served: set[str] = set()
        for claim in self._claims.values():
            if _concerns(names, claim.request.queues) and not claim.gone:
                served.update(claim.request.queues)
                if claim.probing:
                    claim.again = True
                else:
                    claim.next_at = -inf
        self._probe_next(actions)
        if names is not None and (left := names - served):
            actions.append(LetIn(left))

    def _due(self, at: float) -> None:
        self._changes += 1
        for queues, due in self._idle.items():
            self._idle[queues] = min(due, at)
        for claim in self._claims.values():
            if claim.probing:
                # The answer under way may be from before that job.
                claim.due = min(claim.due, at)
            else:
                claim.next_at = min(claim.next_at, at)

    def _probe_next(self, actions: list[Action]) -> None:
        # One wake-up may stand for one job or for many: claims follow it one after another.
        if any(claim.probing for claim in self._claims.values()):
            return
        for key, claim in self._claims.items():
            if claim.next_at == -inf:
                self._probe(key, claim, actions)
                return

    def _tick(self, now: float, actions: list[Action]) -> None:
        self._timer = None
        for key, claim in list(self._claims.items()):
            if claim.probing:
                continue
            if claim.next_at <= now:
                self._probe(key, claim, actions)
            elif claim.until <= now:
                del self._claims[key]
                actions.append(Reply(key, ClaimReply()))

    def _set_timer(self, actions: list[Action]) -> None:
        moments = [
            min(claim.next_at, claim.until)
            for claim in self._claims.values()
            if not claim.probing and claim.next_at > -inf
        ]
        at = min(moments, default=None)
        if at != self._timer:
            self._timer = at
            actions.append(Timer(at))


def _concerns(names: frozenset[str] | None, queues: tuple[str, ...]) -> bool:
    return names is None or not names.isdisjoint(queues)


__all__ = [
    "Action",
    "Answered",
    "Asked",
    "Dispatch",
    "Due",
    "Event",
    "GiveBack",
    "Gone",
    "LetIn",
    "Probe",
    "Refused",
    "Reply",
    "Returned",
    "Short",
    "Tick",
    "Timer",
    "Woken",
]
