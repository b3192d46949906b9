"""The concurrency part of the storage contract, proven on storages that break in a crowd.

Each is the memory storage with a fault that shows only while two of its calls are under way at
once: what a verb has judged is no longer so when it acts. What is special to processes is proven
in ``plugins/sqlite/tests/test_broken.py``.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import msgspec
import pytest

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.events import JobEvent
from plugq.protocols import (
    Cancel,
    ClaimReply,
    ClaimRequest,
    Configure,
    Edit,
    EditReply,
    Lease,
    NewJob,
    Pause,
    PluginContext,
    RegisterChange,
    Settlement,
    SettleReply,
    Storage,
    SubmitReply,
    SubmitStatus,
    Swapped,
    SweepReply,
    SweepRequest,
)
from plugq.testing import StorageContract
from plugq.testing.contract.crowds import Crowds
from plugq.testing.contract.sharing import Sharing

replace = msgspec.structs.replace


class Crowded(MemoryStorage):
    """Knows whether calls that can harm each other are under way at once."""

    def __init__(self, options: MemoryOptions, context: PluginContext) -> None:
        super().__init__(options, context)
        # A fault may take several steps; none of them is the one that a test shall find.
        self._lock = threading.RLock()  # type: ignore[assignment]
        self._under_way = 0

    async def met(self) -> bool:
        """Return whether another call came while this one was held up."""
        with self._lock:
            self._under_way += 1
        await asyncio.sleep(0.001)
        with self._lock:
            self._under_way -= 1
            return self._under_way > 0


class AcceptsWhatItHadNotSeen(Crowded):
    """Ids and keys are looked up before the call is written."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        met = await self.met()
        replies = await super().submit(jobs)
        return (
            [replace(reply, status=SubmitStatus.ACCEPTED) for reply in replies] if met else replies
        )


class TakesARepetitionForAnother(Crowded):
    """Of one submission that is sent twice at once the second is a duplicate."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        if await self.met():
            jobs = [replace(job, submission=b"another") for job in jobs]
        return await super().submit(jobs)


class StoresInAnyOrder(Crowded):
    """Jobs of calls that come together are put together as they like."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        if await self.met():
            return (await super().submit(jobs[::-1]))[::-1]
        return await super().submit(jobs)


class GrantsTheSame(Crowded):
    """Claims that come together are granted the same jobs."""

    _last: tuple[Lease, ...] = ()

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        met = await self.met()
        reply = await super().claim(request)
        last, self._last = self._last, reply.leases
        return replace(reply, leases=(*reply.leases, *last)) if met else reply


class RepeatsTokens(Crowded):
    """Claims that come together count on from the same token."""

    _last: tuple[Lease, ...] = ()

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        met = await self.met()
        reply = await super().claim(request)
        last, self._last = self._last, reply.leases
        if not met:
            return reply
        leases = list(reply.leases)
        for place, (lease, before) in enumerate(zip(reply.leases, last, strict=False)):
            record = self._jobs.find(lease.queue, lease.id)
            if record is not None and record.token == lease.token:
                record.token = before.token
                leases[place] = replace(lease, token=before.token)
        return replace(reply, leases=tuple(leases))


class ForgetsLanes(Crowded):
    """What runs in a lane is counted before the claim is made."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        met = await self.met()
        with self._lock:
            kept = {name: self._jobs.queue(name).settings for name in request.queues}
            for name, settings in kept.items():
                if met and settings is not None:
                    self._jobs.queue(name).configure(replace(settings, lane_max_running=1000))
            reply = await super().claim(request)
            for name, settings in kept.items():
                if met and settings is not None:
                    self._jobs.queue(name).configure(settings)
        return reply


class ForgetsMaxRunning(Crowded):
    """Each counts what it runs itself, which is nothing when it claims."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        with self._lock:
            queues = [self._jobs.queue(name) for name in request.queues]
            kept = [queue.running for queue in queues]
            for queue in queues:
                queue.running = 0
            reply = await super().claim(request)
            for queue, running in zip(queues, kept, strict=True):
                queue.running += running
        return reply


class SettlesForEverybody(Crowded):
    """Whoever settles a lease while others do is told that it counted."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        met = await self.met()
        replies, claimed = await super().settle(settlements, claim)
        return [replace(reply, lost=reply.lost and not met) for reply in replies], claimed


class TellsTwiceWhatItEnded(Crowded):
    """Sweeps that come together end the same leases."""

    _last: SweepReply = SweepReply()

    async def sweep(self, request: SweepRequest) -> SweepReply:
        met = await self.met()
        reply = await super().sweep(request)
        last, self._last = self._last, reply
        return replace(reply, changes=(*reply.changes, *last.changes)) if met else reply


class LosesWrites(Crowded):
    """Versions are compared before the registers are written."""

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        seen = await self.load([change.key for change in changes])
        fits = all(
            change.expect == (0 if register is None else register.version)
            for change, register in zip(changes, seen.registers, strict=True)
        )
        if not (await self.met() and fits):
            return await super().swap(changes)
        now = await self.load([change.key for change in changes])
        return await super().swap(
            [
                replace(change, expect=0 if register is None else register.version)
                for change, register in zip(changes, now.registers, strict=True)
            ]
        )


class CountsEveryCancelling(Crowded):
    """A job that is cancelled by two at once is counted twice."""

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        met = await self.met()
        replies = await super().edit(edit)
        if met and isinstance(edit, Cancel):
            record = self._jobs.find(edit.refs[0].queue, edit.refs[0].id)
            if record is not None:
                record.tally.totals["cancelled"] += 1
        return replies


class ForgetsBatches(Crowded):
    """The counts of a batch are written back as they were read before."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        met = await self.met()
        replies, claimed = await super().settle(settlements, claim)
        for settlement in settlements if met else ():
            record = self._jobs.find(settlement.queue, settlement.id)
            if record is not None and record.batch is not None:
                record.batch.counts[record.state] -= 1
        return replies, claimed


class KeepsSettingsToItself(MemoryStorage):
    """Only the thread that paused a queue or set its limits sticks to it."""

    _editor = 0

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        if isinstance(edit, Pause | Configure):
            self._editor = threading.get_ident()
        return await super().edit(edit)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        queues = [self._jobs.queue(name) for name in request.queues]
        kept = [queue.paused for queue in queues]
        for queue in queues:
            queue.paused = queue.paused and self._editor == threading.get_ident()
        reply = await super().claim(request)
        for queue, paused in zip(queues, kept, strict=True):
            queue.paused = paused
        return reply


class WakesEverybody(MemoryStorage):
    """One job, a hundred peers, wherever they are."""

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        replies = await super().submit(jobs)
        for watches in self._signals._watches.values():
            for watch in watches:
                watch.tell_wake()
        return replies


class LosesAnEvent(MemoryStorage):
    """Now and then an event is not passed on."""

    def tell(self, events: Sequence[JobEvent]) -> None:
        super().tell([event for event in events if event.attempt != 20])


class TellsTwice(MemoryStorage):
    """Events are passed on by whoever may, and it may be two."""

    def tell(self, events: Sequence[JobEvent]) -> None:
        super().tell(events)
        super().tell(events)


CAUGHT_BY: dict[type[MemoryStorage], tuple[str, ...]] = {
    AcceptsWhatItHadNotSeen: (
        "an_id_that_all_submit_at_once_is_accepted_once",
        "a_key_that_all_submit_at_once_is_taken_once",
    ),
    TakesARepetitionForAnother: ("a_submission_that_all_send_is_stored_once",),
    StoresInAnyOrder: ("the_jobs_of_each_come_in_the_order_in_which_it_sent_them",),
    GrantsTheSame: ("each_job_is_granted_once_under_a_rising_token",),
    RepeatsTokens: ("each_job_is_granted_once_under_a_rising_token",),
    ForgetsLanes: ("limits_hold_at_every_moment",),
    ForgetsMaxRunning: ("limits_hold_at_every_moment",),
    SettlesForEverybody: ("a_lease_that_all_settle_at_once_is_settled_once",),
    TellsTwiceWhatItEnded: ("a_lapsed_lease_is_ended_by_one_sweep",),
    LosesWrites: ("a_number_in_a_register_loses_no_addition",),
    CountsEveryCancelling: ("the_books_agree_after_edits_that_race_with_claims",),
    ForgetsBatches: ("the_books_agree_after_edits_that_race_with_claims",),
    KeepsSettingsToItself: ("settings_hold_for_everybody_from_the_next_call_on",),
    WakesEverybody: ("of_many_idle_peers_elsewhere_one_job_wakes_one",),
    LosesAnEvent: ("what_each_tells_everybody_hears_in_order",),
    TellsTwice: ("what_each_tells_everybody_hears_in_order",),
}


class Subject(StorageContract):
    """The contract for one class of storage."""

    patience: ClassVar[float] = 0.2

    def __init__(self, storage: type[MemoryStorage]) -> None:
        self._class = storage
        self._stores: weakref.WeakKeyDictionary[PluginContext, MemoryStorage] = (
            weakref.WeakKeyDictionary()
        )

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = self._stores.get(context)
        if storage is None:
            storage = self._stores[context] = self._class(MemoryOptions(), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


def run(storage: type[MemoryStorage], name: str) -> Exception | None:
    """Run one contract test and return what it failed with."""
    test = getattr(Subject(storage), f"test_{name}")
    try:
        with asyncio.Runner() as runner:
            runner.run(test())
    except Exception as error:  # noqa: BLE001 - a broken storage may fail a test in any way
        return error
    return None


CASES = [
    pytest.param(broken, name, id=f"{broken.__name__}-{name}")
    for broken, names in CAUGHT_BY.items()
    for name in names
]


@pytest.mark.parametrize(("broken", "name"), CASES)
def test_a_storage_that_breaks_in_a_crowd_is_caught(broken: type[MemoryStorage], name: str) -> None:
    error = run(broken, name)
    assert error is not None
    assert "hangs" not in str(error)
    assert error.__notes__ == ["with several threads"]


@pytest.mark.parametrize("name", sorted({name for names in CAUGHT_BY.values() for name in names}))
def test_the_sound_storage_passes(name: str) -> None:
    assert run(MemoryStorage, name) is None


def test_every_test_of_a_crowd_has_caught_something() -> None:
    names = {f"test_{name}" for names in CAUGHT_BY.values() for name in names}
    tests = {name for part in (Crowds, Sharing) for name in vars(part) if name.startswith("test_")}
    assert tests == names
