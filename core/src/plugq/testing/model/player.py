"""Plays steps to a storage and to the model at once, and compares them after each."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from plugq.job import FINAL, AttemptRecord, JobRef, JobState, Outcome, Progress
from plugq.protocols.plugin import Capability
from plugq.protocols.storage import (
    ClaimRequest,
    FindQuery,
    Holder,
    Lease,
    LeaseRef,
    NewJob,
    RegisterChange,
    Settlement,
    SweepRequest,
)
from plugq.testing.model.looking import Model
from plugq.testing.model.records import expect
from plugq.testing.model.steps import Step, edit_of, new_job, record_of, written

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from plugq.job import JobRecord
    from plugq.testing.clock import ManualClock
    from plugq.testing.contract.scene import Contract, Scene

#: What the histories of the machine use, so that a look needs no others.
QUEUES, IDS, BATCHES = ("a", "b"), tuple("abcdef"), ("x", "y")
_SHARED = frozenset({Capability.SHARED_PROCESSES, Capability.SHARED_HOSTS})
_EVERYTHING = 1_000
#: Seconds after which a step counts as one that does not end.
_LONGEST = 60.0
#: More than the jobs of one lane, which run one after the other.
_ROUNDS = 2 * len(QUEUES) * len(IDS)


class Player:
    """One history: a storage, opened twice where that is declared, and the model beside it."""

    #: The clock of the storage, and the model; both from the moment that the history is entered.
    clock: ManualClock
    model: Model

    def __init__(self, contract: Contract) -> None:
        self.contract: Contract = contract
        self.played: list[Step] = []
        self.leases: list[Lease] = []
        self.requests: dict[str, list[ClaimRequest]] = {}
        self._stack = AsyncExitStack()
        self._sides: list[tuple[AsyncExitStack, Scene]] = []
        self._submissions = self._taken = 0
        self._sent: list[NewJob] = []

    async def __aenter__(self) -> Self:
        self._scene = await self._stack.enter_async_context(self.contract.scene())
        self.clock = self._scene.clock
        self.model = Model(0.0)
        await self._open()
        if self._scene.storage.capabilities & _SHARED:
            await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for stack, _ in self._sides:
            self._stack.push_async_exit(stack)
        await self._stack.aclose()

    async def _open(self) -> None:
        stack = AsyncExitStack()
        self._sides.append((stack, await stack.enter_async_context(self._scene.another())))

    async def play(self, step: Step) -> None:
        """Take one step and look at everything; what disagrees is told with the history."""
        self.played.append(step)
        try:
            await self._take(step)
        except Exception as error:
            error.add_note(f"the history, to be kept as a regression:\n{written(self.played)}")
            raise

    async def _take(self, step: Step) -> None:
        verb, arguments = step
        self._taken += 1
        try:
            async with asyncio.timeout(_LONGEST) as bound:
                await getattr(self, f"_{verb}")(self._side(self._taken), **arguments)
                await self._look(self._side(self._taken // 2))
        except TimeoutError:
            if not bound.expired():
                raise
            message = f"{verb}, or a look at what it did, does not end"
            raise AssertionError(message) from None

    async def end(self) -> None:
        """Run everything that is left; afterwards all jobs are final and were started."""
        try:
            for step in self._last():
                await self._take(step)
            for _ in range(_ROUNDS):
                if all(job.state in FINAL for job in self.model.all()):
                    break
                await self._take(("advance", {"seconds": 64.0}))
                await self._take(("sweep", {}))
                await self._take(("claim", {"queues": list(QUEUES), "limit": 100}))
                await self._take(("settle", {"all": True}))
            self.model.drained()
        except Exception as error:
            text = "when what is left was run after this history, to be kept as a regression"
            error.add_note(f"{text}:\n{written(self.played)}")
            raise

    def _last(self) -> list[Step]:
        queues = list(QUEUES)
        steps: list[Step] = [("edit", {"kind": "resume", "queues": queues})]
        steps += [("edit", {"kind": "configure", "queue": name}) for name in queues]
        return steps

    def _side(self, number: int) -> Scene:
        return self._sides[number % len(self._sides)][1]

    def _now(self) -> None:
        self.model.now = max(self.model.now, self.clock.time())

    # Looking

    async def _look(self, side: Scene) -> None:
        self._now()
        model, storage = self.model, side.storage
        refs = [JobRef(queue, id) for queue in QUEUES for id in IDS]
        for waiting in (False, True):
            found = await storage.get(refs, body=True, waiting=waiting)
            model.looked(refs, found, waiting=waiting)
        model.counted(await storage.stats())
        model.summed(BATCHES, await storage.batches(BATCHES))

    async def _find(self, side: Scene, **fields: Any) -> None:
        self._now()
        states = tuple(JobState(state) for state in fields.pop("states", ()))
        since = fields.pop("since_ago", None)
        if since is not None:
            fields["since"] = self.model.now - since
        fields.setdefault("limit", _EVERYTHING)
        query = FindQuery(states=states, **fields)
        found: list[JobRecord] = []
        cursor: str | None = None
        while True:
            page = await side.storage.find(FindQuery(states=states, **fields, cursor=cursor))
            found += page.jobs
            expect(len(page.jobs) <= query.limit, "answers", "a page is longer than its limit")
            cursor = page.cursor
            if cursor is None:
                break
        self.model.walked(query, found)

    # Verbs

    async def _submit(self, side: Scene, *, jobs: list[dict[str, Any]]) -> None:
        self._now()
        given: list[NewJob] = []
        for fields in jobs:
            if "again" in fields:
                given += self._sent[-1 - fields["again"] :][:1]
                continue
            self._submissions += 1
            given.append(new_job(self.model, self._submissions, fields))
        self._sent += given
        self.model.submitted(given, await side.storage.submit(given))

    async def _restore(self, side: Scene, **fields: Any) -> None:
        self._now()
        record = record_of(self.model, fields)
        if record.id not in self.model.queue(record.queue).jobs:
            await side.storage.restore([record])
            [shown] = await side.storage.get([JobRef(record.queue, record.id)])
            self.model.restored(record, shown)

    def _request(
        self,
        worker: str = "v",
        queues: list[str] | None = None,
        limit: int = 1,
        lease: float = 30.0,
        again: int | None = None,
    ) -> ClaimRequest:
        made = self.requests.setdefault(worker, [])
        if again is not None and made:
            return made[-1 - again % len(made)]
        names = tuple(queues or QUEUES[:1])
        number = len(made) + 1
        request = ClaimRequest(worker=worker, number=number, queues=names, limit=limit, lease=lease)
        made.append(request)
        return request

    async def _claim(self, side: Scene, **fields: Any) -> None:
        self._now()
        request = self._request(**fields)
        reply = await side.storage.claim(request)
        self.model.claimed(request, reply)
        self._keep(reply.leases)

    def _keep(self, leases: tuple[Lease, ...]) -> None:
        known = {(lease.queue, lease.token) for lease in self.leases}
        self.leases += [lease for lease in leases if (lease.queue, lease.token) not in known]

    def _lease(self, age: int) -> Lease | None:
        return self.leases[-1 - age % len(self.leases)] if self.leases else None

    async def _settle(
        self,
        side: Scene,
        *,
        settlements: list[dict[str, Any]] | None = None,
        claim: dict[str, Any] | None = None,
        all: bool = False,  # noqa: A002 - the argument of a step
    ) -> None:
        self._now()
        given = [self._settlement(**fields) for fields in settlements or ()]
        if all:
            running = [job for job in self.model.all() if job.state is JobState.RUNNING]
            given = [
                Settlement(
                    queue=job.queue,
                    id=job.id,
                    token=job.token,
                    outcome=Outcome.SUCCEED,
                    result=b"1",
                )
                for job in running
            ]
        request = None if claim is None else self._request(**claim)
        made = [settlement for settlement in given if settlement is not None]
        replies, claimed = await side.storage.settle(made, request)
        self.model.settled(made, replies)
        expect((request is None) == (claimed is None), "answers", f"settle claimed {claimed}")
        if request is not None and claimed is not None:
            self.model.claimed(request, claimed)
            self._keep(claimed.leases)

    def _settlement(
        self, lease: int = 0, outcome: str = "succeed", off: int = 0, **fields: Any
    ) -> Settlement | None:
        held = self._lease(lease)
        if held is None:
            return None
        ended = Outcome(outcome)
        moment = fields.pop("at_in", None)
        if "progress" in fields:
            fields["progress"] = Progress(current=fields["progress"])
        if fields.pop("error", False):
            fields["error"] = AttemptRecord(attempt=0, code="error", type="E", message="m")
        return Settlement(
            queue=held.queue,
            id=held.id,
            token=held.token + off,
            outcome=ended,
            result=b"%d" % held.token if ended is Outcome.SUCCEED else None,
            at=None if moment is None else self.model.now + moment,
            **fields,
        )

    async def _renew(
        self,
        side: Scene,
        *,
        leases: list[int] | None = None,
        lease: float = 30.0,
        progress: float | None = None,
        off: int = 0,
        holder: str | None = None,
        forget: int = 0,
        behind: int = 0,
    ) -> None:
        self._now()
        said = None if progress is None else Progress(current=progress)
        named = [held for age in leases or () if (held := self._lease(age)) is not None]
        knows: Holder | None = None
        if holder is not None:
            knows = Holder(holder, len(self.requests.get(holder, ())) - behind)
            named += self._known(holder, forget)
        refs = [LeaseRef(held.queue, held.id, held.token + off, said) for held in named]
        replies = await side.storage.renew(refs, lease=lease, holder=knows)
        self.model.renewed(refs, replies, lease=lease, holder=knows)

    def _known(self, worker: str, forget: int) -> list[Lease]:
        """Return the leases that a worker holds without the last ones, which it forgot."""
        held = {
            (job.queue, job.token)
            for job in self.model.all()
            if job.state is JobState.RUNNING and job.worker == worker
        }
        known = [lease for lease in self.leases if (lease.queue, lease.token) in held]
        return known[: max(0, len(known) - forget)]

    async def _sweep(self, side: Scene, **fields: Any) -> None:
        self._now()
        request = SweepRequest(**fields)
        self.model.swept(request, await side.storage.sweep(request))

    async def _edit(self, side: Scene, **fields: Any) -> None:
        self._now()
        held = self._lease(fields.pop("lease", 0))
        if "refs" not in fields and fields["kind"] in {"cancel", "redrive", "purge"}:
            fields["refs"] = [] if held is None else [[held.queue, held.id]]
        edit = edit_of(self.model, fields)
        self.model.edited(edit, await side.storage.edit(edit))

    async def _swap(self, side: Scene, *, changes: list[dict[str, Any]]) -> None:
        self._now()
        given = []
        for fields in changes:
            register = self.model.register(fields["key"])
            version = 0 if register is None else register.version
            value = fields.get("value")
            given.append(
                RegisterChange(
                    key=fields["key"],
                    expect=max(0, version - fields.get("behind", 0)),
                    value=None if value is None else value.encode(),
                    ttl=fields.get("ttl"),
                )
            )
        self.model.swapped(given, await side.storage.swap(given))
        self.model.scanned("", await side.storage.scan(""))

    async def _advance(self, _: Scene, *, seconds: float) -> None:
        self.clock.advance(seconds)

    async def _set_back(self, side: Scene, *, seconds: float) -> None:
        # Only what is written binds the other openings to the time at which it was.
        await self._swap(side, changes=[{"key": "clock", "value": "set back"}])
        self.clock.set_back(seconds)

    async def _reopen(self, _: Scene) -> None:
        """Close an opening of a shared store and open it again."""
        if len(self._sides) > 1:
            stack, _ = self._sides.pop(0)
            await stack.aclose()
            await self._open()


__all__ = ["BATCHES", "IDS", "QUEUES", "Player"]
