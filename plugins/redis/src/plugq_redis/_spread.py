"""The verbs on a cluster: one script call for each queue, on the node that has it.

Each call is one step for its queue. What concerns several queues takes several steps: should one of
them fail, the caller is told that the outcome is unknown, and sending the same again completes it.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import OutcomeUnknown, PlugqError, Unavailable
from plugq.protocols.edits import Configure, Drain, Pause, Resume
from plugq.protocols.storage import (
    BatchCounts,
    ClaimReply,
    Stats,
    SubmitStatus,
    SweepReply,
)
from plugq_redis import _claims, _index, _registers, _submit
from plugq_redis._intents import MARKED, Intents, read_intent
from plugq_redis._nodes import CommonPlace, Nodes, QueuePlace
from plugq_redis._patience import USUAL, Patience
from plugq_redis._records import flat
from plugq_redis._signals import EVENTS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, EditReply, JobEdit
    from plugq.protocols.storage import (
        ClaimRequest,
        FindQuery,
        Holder,
        LeaseRef,
        Loaded,
        NewJob,
        Page,
        Register,
        RegisterChange,
        RenewReply,
        Settlement,
        SettleReply,
        SubmitReply,
        Swapped,
        SweepRequest,
    )

_FIRST = msgspec.msgpack.Decoder(int).decode
#: As many answers are kept for calls that may be repeated.
_UNTOLD = 10_000
#: How many kinds of jobs a sweep deals with, each up to its limit.
_KINDS = 5
#: Seconds after which a claim looks again at a queue whose node did not answer.
_AGAIN = 1.0
_REFUSED = frozenset({SubmitStatus.FULL, SubmitStatus.DRAINING})


class Spread:
    """The verbs of a storage whose queues lie on several nodes."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._channel = nodes.keys.channel
        self._common = CommonPlace(nodes)
        self._intents = Intents(self._common)
        self._places: dict[str, QueuePlace] = {}
        self._known: set[str] = set()
        #: The queues for which peers of this process may be idle, and who was not woken since its
        #: last claim began.
        self._idle: dict[str, set[str]] = {}
        self._waiting: set[str] = set()
        #: By queue, id and token what became of settlements whose caller was told of an error.
        self._untold: dict[tuple[str, str, int], SettleReply] = {}
        self._patience = Patience()
        self._doing: asyncio.Task[None] | None = None
        self.listened = False

    async def close(self) -> None:
        """Give up what is done in the background."""
        await self._patience.close()
        if self._doing is not None:
            self._doing.cancel()
            await asyncio.wait((self._doing,))
            self._doing = None

    async def queues(self) -> list[str]:
        """Return the names of all queues."""
        key = f"{self._nodes.keys.common}queues"
        names = {name.decode() for name in await self._common.command("SMEMBERS", key)}
        if lost := self._known - names:
            # That node has lost what it was told, and the queues are still there.
            await self._common.command("SADD", key, *sorted(lost), writes=True)
        self._known |= names
        return sorted(self._known)

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs and answer for each.

        Several queues are asked first whether one of them refuses; then the call is decided, and
        all of it is done, by this process or by a sweep.
        """
        if not jobs:
            return []
        groups = _grouped(jobs, lambda job: job.queue)
        await self._make_known(groups)
        first = await self._sequences(len(jobs))
        sequences = range(first, first + len(jobs))
        if len(groups) == 1:
            (queue,) = groups
            (replies,) = await self._changes(_submit.submit(self._at(queue), jobs, sequences))
            answers: list[SubmitReply] = replies
            return answers
        refused = await self._judge(jobs, groups)
        if refused is not None:
            return refused
        mark = await self._intents.keep(jobs, sequences)
        try:
            parts = await self._submit_parts(jobs, sequences, mark)
        except Unavailable as error:
            message = f"{error}; the call is decided and will be done, sending it again is safe"
            raise OutcomeUnknown(message) from None
        if [len(part) for part in parts] != [len(places) for places in groups.values()]:
            message = "the call was done by another process, and some of its jobs have gone since"
            raise OutcomeUnknown(message)
        return _put_together(len(jobs), groups, parts)

    async def _submit_parts(
        self, jobs: Sequence[NewJob], sequences: Sequence[int], mark: str
    ) -> list[list[SubmitReply]]:
        """Let each queue do its part of a call that is decided; return the answers of each."""
        groups = _grouped(jobs, lambda job: job.queue)
        parts = await self._changes(
            *(
                _submit.submit(
                    self._at(queue),
                    [jobs[place] for place in places],
                    [sequences[place] for place in places],
                    mark=mark,
                )
                for queue, places in groups.items()
            )
        )
        if not await self._intents.drop(mark):
            return parts
        # Whoever has begun to do the same may still come, but not for long.
        until = self._nodes.latest + MARKED
        marks = [f"{self._nodes.keys.of(queue)}marks" for queue in groups]
        calls = [
            self._nodes.call(key, "ZADD", key, "XX", until, mark, writes=True) for key in marks
        ]
        await asyncio.gather(*calls, return_exceptions=True)
        return parts

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        groups = _grouped(jobs, lambda job: job.queue)
        await self._make_known(groups)
        jobs = await self._with_sequences(jobs)
        await self._changes(
            *(
                _submit.restore(self._at(queue), [jobs[place] for place in places])
                for queue, places in groups.items()
            )
        )

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order, queue by queue."""
        (reply,) = await self._changes(self._claim(request))
        claimed: ClaimReply = reply
        return claimed

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim; in one step where both are of the same one queue."""
        groups = _grouped(settlements, lambda settlement: settlement.queue)
        if claim is not None and len(groups) == 1 and set(claim.queues) == set(groups):
            (queue,) = groups
            await self._make_known(groups)
            self._note_idle(claim.peer, groups)
            (reply,) = await self._changes(_claims.settle(self._at(queue), settlements, claim))
            both: tuple[Sequence[SettleReply], ClaimReply | None] = reply
            return both
        caller = "" if claim is None else claim.peer
        settled = await self._settle_parts(
            [[settlements[place] for place in places] for places in groups.values()], caller
        )
        replies = _put_together(len(settlements), groups, settled)
        if claim is None or not settlements:
            return replies, None if claim is None else await self.claim(claim)
        try:
            return replies, await self.claim(claim)
        except (Unavailable, OutcomeUnknown):
            # What was settled is settled. Leases that were granted all the same come back as those
            # of every reply that is lost.
            return replies, ClaimReply(next_in=_AGAIN, now=self._nodes.latest)

    async def _settle_parts(
        self, parts: Sequence[Sequence[Settlement]], caller: str
    ) -> list[list[SettleReply]]:
        """End attempts of several queues.

        Where one of them gives no answer, those of the others are given when the call is repeated.
        """
        known: dict[tuple[str, str, int], SettleReply] = {}

        async def settle(part: Sequence[Settlement]) -> list[SettleReply]:
            replies, _ = await _claims.settle(self._at(part[0].queue), part, None, caller=caller)
            keys = [(each.queue, each.id, each.token) for each in part]
            for place, key in enumerate(keys):
                if replies[place].lost:
                    replies[place] = self._untold.pop(key, replies[place])
            known.update(zip(keys, replies, strict=True))
            return replies

        try:
            return await self._changes(*map(settle, parts))
        except (Unavailable, OutcomeUnknown):
            if len(self._untold) + len(known) > _UNTOLD:
                self._untold.clear()
            self._untold |= known
            raise

    async def renew(
        self, leases: Sequence[LeaseRef], lease: float, holder: Holder | None
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted, of whatever queue."""
        groups = _grouped(leases, lambda ref: ref.queue)
        parts = await self._changes(
            *(
                _claims.renew(self._at(queue), [leases[place] for place in places], lease, holder)
                for queue, places in groups.items()
            )
        )
        if holder is not None:
            # The next renewal asks for it again; what was extended is what counts.
            errors = (Unavailable, OutcomeUnknown) if leases else ()
            with contextlib.suppress(*errors):
                await self._changes(
                    *(
                        self._patience.ask(
                            queue, partial(_claims.renew, self._at(queue), [], lease, holder)
                        )
                        for queue in await self._named()
                        if queue not in groups
                    )
                )
        return _put_together(len(leases), groups, parts)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due on every queue.

        A node that is down is swept when it is back, the others are swept now.
        """
        doing = self._doing
        if doing is None or doing.done():
            doing = asyncio.create_task(self._do_what_is_left(), name="plugq-redis-intents")
            self._doing = doing
        # What takes longer goes on beside the sweeps.
        await asyncio.wait((doing,), timeout=USUAL)
        if doing.done() and not doing.cancelled():
            doing.result()
        places = [self._at(queue) for queue in await self.queues()]
        # A node that hangs holds up no other queue.
        counts = await asyncio.gather(
            *(
                self._patience.ask(str(place.queue), partial(_index.due, place, request))
                for place in places
            ),
            return_exceptions=True,
        )
        calls = [_index.sweep(self._common, request)]
        left = [max(0, request.limit)] * _KINDS
        for place, due in zip(places, counts, strict=True):
            if not isinstance(due, BaseException):
                shares = [min(pair) for pair in zip(due, left, strict=True)]
                left = [most - share for most, share in zip(left, shares, strict=True)]
                calls.append(_index.sweep(place, request, shares))
        results = await asyncio.gather(*calls, return_exceptions=True)
        parts = [result for result in results if isinstance(result, SweepReply)]
        if not parts:
            raise next(result for result in results if isinstance(result, BaseException))
        await self._changes()
        return SweepReply(
            changes=tuple([change for part in parts for change in part.changes]),
            next_in=_soonest(part.next_in for part in parts),
        )

    async def _do_what_is_left(self) -> None:
        """Do the calls that are decided and whose processes have gone."""
        with contextlib.suppress(Unavailable, OutcomeUnknown):
            for mark, data in (await self._intents.left()).items():
                try:
                    intent = read_intent(data)
                    await self._submit_parts(intent.jobs, intent.sequences, mark)
                except (PlugqError, msgspec.MsgspecError) as error:
                    # It does not stand in the way of the others, and is tried again later.
                    self._nodes.logger.warning("a call to several queues is not done: %s", error)
                    await self._intents.postpone(mark)

    async def get(
        self, refs: Sequence[JobRef], *, body: bool, waiting: bool
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        groups = _grouped(refs, lambda ref: ref.queue)
        parts = await asyncio.gather(
            *(
                _index.get(
                    self._at(queue), [refs[place] for place in places], body=body, waiting=waiting
                )
                for queue, places in groups.items()
            )
        )
        return _put_together(len(refs), groups, parts)

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        names = await self.queues() if query.queue is None else [query.queue]
        return await _index.find({name: self._at(name) for name in names}, query)

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches, added up over the queues."""
        queues = await self.queues()
        parts = await asyncio.gather(
            *(_index.batches(self._at(queue), batches) for queue in queues)
        )
        return [_added(name, [part[place] for part in parts]) for place, name in enumerate(batches)]

    async def stats(self) -> Stats:
        """Return the counters of every queue."""
        queues = sorted(await self.queues())
        parts = await asyncio.gather(*(_index.stats(self._at(queue)) for queue in queues))
        loaded = await self.load([])
        return Stats(
            now=max([loaded.now, *(part.now for part in parts)]),
            queues=tuple([each for part in parts for each in part.queues]),
            tasks=tuple([each for part in parts for each in part.tasks]),
        )

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change, queue by queue."""
        if isinstance(edit, Configure):
            await self._make_known(settings.queue for settings in edit.settings)
            calls = [
                _index.edit(self._at(settings.queue), Configure((settings,)))
                for settings in edit.settings
            ]
        elif isinstance(edit, Pause | Drain | Resume):
            await self._make_known(edit.queues)
            kind = type(edit)
            calls = [_index.edit(self._at(queue), kind((queue,))) for queue in edit.queues]
        else:
            return await self._edit_jobs(edit)
        return [reply for part in await self._changes(*calls) for reply in part]

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        return await _registers.load(self._common, keys)

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        return await _registers.swap(self._common, changes)

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        return await _registers.scan(self._common, prefix)

    def admit(self, peer: str) -> bool:
        """Return whether a wake-up is the first since the peer began its last claim.

        A queue does not know that another one has woken it.
        """
        if peer not in self._waiting:
            return False
        self._waiting.discard(peer)
        return True

    def pass_on(self, queue: str) -> None:
        """Let a queue wake another peer than one that another queue has woken."""
        self._nodes.aside(self._at(queue).wake(1))

    async def forget_peer(self, peer: str) -> None:
        """Take a peer that watches no more off the lists of those who are idle."""
        self._waiting.discard(peer)
        keys = [f"{self._nodes.keys.of(queue)}idle" for queue in self._idle.pop(peer, set())]
        calls = [self._nodes.call(key, "ZREM", key, peer, writes=True) for key in keys]
        await asyncio.gather(*calls, return_exceptions=True)

    def _at(self, queue: str) -> QueuePlace:
        place = self._places.get(queue)
        if place is None:
            place = self._places[queue] = QueuePlace(self._nodes, self._common, queue)
        return place

    async def _named(self) -> list[str]:
        """Return the names of all queues, or of those that are known if nobody can tell."""
        try:
            return await self._patience.ask("", self.queues)
        except (Unavailable, OutcomeUnknown):
            return sorted(self._known)

    async def _make_known(self, queues: Iterable[str]) -> None:
        """Put queues on the list before anything is written there."""
        wanted = dict.fromkeys(queues)
        if all(queue in self._known for queue in wanted):
            return
        # A node that is full does not even take a name that it has.
        await self.queues()
        if new := [queue for queue in wanted if queue not in self._known]:
            for queue in new:
                # Refuse a name that can not be one before it stands there.
                self._nodes.keys.of(queue)
            key = f"{self._nodes.keys.common}queues"
            await self._common.command("SADD", key, *new, writes=True)
            self._known.update(new)

    async def _changes(self, *calls: Awaitable[Any]) -> list[Any]:
        """Make changes at once and look who listens; all of them are waited for.

        Raises:
            OutcomeUnknown: some were made and others were not, or may not have been.
        """
        results = await asyncio.gather(*calls, return_exceptions=True)
        # Afterwards: who listens from now on sees the change, and who did so before is told of it.
        try:
            numbers = await self._common.hint("PUBSUB", "NUMSUB", f"{self._channel}{EVENTS}")
            self.listened = int(numbers[1]) > 0
        except (Unavailable, OutcomeUnknown):
            self.listened = True
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            error = max(errors, key=_weight)
            if len(results) > len(errors) and isinstance(error, Unavailable):
                message = f"{error}; a part of the call was done, sending it again is safe"
                raise OutcomeUnknown(message) from None
            raise error
        return results

    async def _judge(
        self, jobs: Sequence[NewJob], groups: dict[str, list[int]]
    ) -> list[SubmitReply] | None:
        judged = await asyncio.gather(
            *(
                _submit.submit(self._at(queue), [jobs[place] for place in places], judged_only=True)
                for queue, places in groups.items()
            )
        )
        answers: list[SubmitReply] = _put_together(len(jobs), groups, judged)
        return answers if any(answer.status in _REFUSED for answer in answers) else None

    async def _with_sequences(self, jobs: Sequence[JobRecord]) -> list[JobRecord]:
        """Return whole jobs with sequences of their own, or with those that they have if free."""
        wanted = [job.sequence for job in jobs]
        first = await self._sequences(len(jobs), max(wanted, default=0))
        places = [self._at(queue) for queue in await self.queues()]
        parts = await asyncio.gather(*(_submit.taken(place, wanted) for place in places))
        taken = {sequence for part in parts for sequence in part}
        found: list[JobRecord] = []
        for place, job in enumerate(jobs):
            free = job.sequence > 0 and job.sequence not in taken
            sequence = job.sequence if free else first + place
            taken.add(sequence)
            found.append(msgspec.structs.replace(job, sequence=sequence))
        return found

    async def _sequences(self, count: int, taken: int = 0) -> int:
        """Return the first of so many sequences, all of them after one that is taken."""
        return _FIRST(await self._common.run("raise", flat(count, taken)))

    async def _claim(self, request: ClaimRequest) -> ClaimReply:
        queues = tuple(dict.fromkeys(request.queues))
        await self._make_known(queues)
        errors: dict[str, BaseException] = {}
        if request.limit > 0:
            if len(queues) > 1:
                granted, errors, repeated = await self._recall(request, queues)
                if repeated:
                    return _answer(granted, errors)
            self._note_idle(request.peer, queues)
        replies: list[ClaimReply] = []
        left = request.limit
        # What can not tell whether it was asked before is left out.
        for queue in [queue for queue in queues if queue not in errors]:
            try:
                # Once it is filled it only lets in what is parked.
                reply = await _claims.claim(self._at(queue), _part(request, queue, left))
            except (Unavailable, OutcomeUnknown) as error:
                # A node that is down does not stop the queues of the others.
                errors[queue] = error
            else:
                replies.append(reply)
                left -= len(reply.leases)
        return _answer(replies, errors)

    async def _recall(
        self, request: ClaimRequest, queues: tuple[str, ...]
    ) -> tuple[list[ClaimReply], dict[str, BaseException], bool]:
        """Return what this claim was granted before by each queue, and whether by any.

        A node that is down can not tell, and does not stop the queues of the others.
        """
        calls = [
            self._patience.ask(
                queue, partial(_claims.recall, self._at(queue), _part(request, queue, 1))
            )
            for queue in queues
        ]
        found = await asyncio.gather(*calls, return_exceptions=True)
        answers = [answer for answer in found if not isinstance(answer, BaseException)]
        pairs = zip(queues, found, strict=True)
        errors = {queue: error for queue, error in pairs if isinstance(error, BaseException)}
        return [reply for reply, _ in answers], errors, any(known for _, known in answers)

    def _note_idle(self, peer: str, queues: Iterable[str]) -> None:
        if peer:
            self._waiting.add(peer)
            self._idle.setdefault(peer, set()).update(queues)

    async def _edit_jobs(self, edit: JobEdit) -> Sequence[EditReply]:
        groups = _grouped(edit.refs, lambda ref: ref.queue)
        parts = await self._changes(
            *(
                _index.edit(self._at(queue), _edit_of(edit, places))
                for queue, places in groups.items()
            )
        )
        return _put_together(len(edit.refs), groups, parts)


def _weight(error: BaseException) -> int:
    """Return how much the error of one queue says of the whole call."""
    if isinstance(error, Unavailable):
        return 0
    return 1 if isinstance(error, OutcomeUnknown) else 2


def _grouped(items: Sequence[Any], queue_of: Callable[[Any], str]) -> dict[str, list[int]]:
    """Return by queue where its items stand."""
    groups: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        groups.setdefault(queue_of(item), []).append(place)
    return groups


def _put_together(count: int, groups: dict[str, list[int]], parts: Sequence[Any]) -> list[Any]:
    """Return the answers that the groups got in the order of the items."""
    answers: list[Any] = [None] * count
    for places, part in zip(groups.values(), parts, strict=True):
        for place, answer in zip(places, part, strict=True):
            answers[place] = answer
    return answers


def _part(request: ClaimRequest, queue: str, limit: int) -> ClaimRequest:
    grants = tuple([grant for grant in request.grants if grant.queue == queue])
    return msgspec.structs.replace(request, queues=(queue,), limit=limit, grants=grants)


def _edit_of(edit: JobEdit, places: list[int]) -> JobEdit:
    sequences = tuple([edit.sequences[place] for place in places]) if edit.sequences else ()
    refs = tuple([edit.refs[place] for place in places])
    return msgspec.structs.replace(edit, refs=refs, sequences=sequences)


def _answer(replies: Sequence[ClaimReply], errors: dict[str, BaseException]) -> ClaimReply:
    """Return the reply to a claim of which some queues have told nothing."""
    if errors and not replies:
        raise max(errors.values(), key=_weight)
    reply = _joined(replies)
    if errors:
        # Nobody will be woken for them.
        soon = _soonest((reply.next_in, _AGAIN))
        reply = msgspec.structs.replace(reply, next_in=soon)
    return reply


def _joined(replies: Sequence[ClaimReply]) -> ClaimReply:
    """Return the replies of several queues as one."""
    # Grants are made for the time of the reply, which must lie ahead of no node that wants some.
    wanting = [reply.now for reply in replies if reply.wants]
    return ClaimReply(
        leases=tuple([lease for reply in replies for lease in reply.leases]),
        next_in=_soonest(reply.next_in for reply in replies),
        wants=tuple([want for reply in replies for want in reply.wants]),
        spent=tuple([spent for reply in replies for spent in reply.spent]),
        now=min(wanting) if wanting else max((reply.now for reply in replies), default=0.0),
    )


def _soonest(times: Iterable[float | None]) -> float | None:
    return min((time for time in times if time is not None), default=None)


def _added(name: str, parts: Sequence[BatchCounts | None]) -> BatchCounts | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    counts: dict[str, int] = {}
    for part in known:
        for state, count in part.counts.items():
            counts[state] = counts.get(state, 0) + count
    return BatchCounts(batch=name, counts=counts)
