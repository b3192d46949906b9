"""The storage itself: it hands verbs that write to the writer's thread, the others to a reader."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from plugq.clock import SystemClock
from plugq.errors import Unavailable
from plugq.lifecycle import Lifecycle
from plugq.protocols import (
    API_VERSION,
    Capability,
    checks,
)
from plugq.protocols.storage import Heard, Notice, Resync
from plugq_lmdb import _index, _registers
from plugq_lmdb._claims import claim, renew, settle
from plugq_lmdb._environment import Environment
from plugq_lmdb._options import LmdbOptions, settings_from
from plugq_lmdb._signals import LOOK, RESYNC, Stream, close_box, fetch, has_mail, open_box
from plugq_lmdb._submit import restore, submit
from plugq_lmdb._sweep import sweep
from plugq_lmdb._transaction import Transaction
from plugq_lmdb._view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import lmdb
    import msgspec

    from plugq.clock import Clock
    from plugq.events import JobEvent
    from plugq.job import JobRecord, JobRef
    from plugq.protocols import PluginContext
    from plugq.protocols.edits import Edit, EditReply
    from plugq.protocols.storage import (
        BatchCounts,
        ClaimReply,
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
        Stats,
        SubmitReply,
        Swapped,
        SweepReply,
        SweepRequest,
    )

T = TypeVar("T")


class LmdbStorage(Lifecycle):
    """Keeps jobs in an LMDB environment, shared by every process of this machine that opens it.

    Writes of concurrent callers share transactions, and an acknowledged one is on the disk.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = LmdbOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.DURABLE, Capability.SHARED_PROCESSES}
    )

    def __init__(self, options: LmdbOptions, context: PluginContext) -> None:
        super().__init__()
        self.options = options
        self._clock: Clock = context.clock or SystemClock()
        self._settings = settings_from(options, context.base_dir, context.namespace)
        self._environment: Environment | None = None
        self._streams: set[Stream[Any]] = set()
        self._closing: asyncio.Future[None] | None = None

    async def _start(self) -> None:
        self._environment = Environment.open(self._settings)
        # Whatever is wrong with the folder is found now and not by the first job.
        await self._write(lambda tx: tx.queues())

    async def _stop(self) -> None:
        for stream in list(self._streams):
            await stream.aclose()
        environment, self._environment = self._environment, None
        if environment is not None:
            release = environment.release(self._settings.lock_timeout)
            self._closing = asyncio.ensure_future(release)
        if self._closing is not None:
            # Kept until it is done: a stop that is cancelled here is made again.
            await asyncio.shield(self._closing)
            self._closing = None

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs durably and answer for each."""
        jobs = tuple(jobs)
        checks.check_submit(jobs)
        return await self._write(lambda tx: submit(tx, jobs))

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        jobs = tuple(jobs)
        checks.check_restore(jobs)
        await self._write(lambda tx: restore(tx, jobs))

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        checks.check_claim(request)
        return await self._write(lambda tx: claim(tx, request), request.peer)

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim, in one transaction."""
        checks.check_settle(settlements)
        checks.check_claim(claim)
        peer = "" if claim is None else claim.peer
        return await self._write(lambda tx: settle(tx, settlements, claim), peer)

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        checks.check_renew(leases, lease, holder)
        return await self._write(lambda tx: renew(tx, leases, lease, holder))

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due, and wake idle peers where jobs are ready."""
        checks.check_sweep(request)
        self._opened().forget_the_dead()
        return await self._write(lambda tx: sweep(tx, request))

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        return await self._read(lambda view: _index.get(view, refs, body=body, waiting=waiting))

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        return await self._read(lambda view: _index.find(view, query))

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches."""
        return await self._read(lambda view: _index.batches(view, batches))

    async def stats(self) -> Stats:
        """Return the counters."""
        return await self._read(_index.stats)

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        checks.check_edit(edit)
        return await self._write(lambda tx: _index.edit(tx, edit))

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        return await self._read(lambda view: _registers.load(view, keys))

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        checks.check_swap(changes)
        return await self._write(lambda tx: _registers.swap(tx, changes))

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        return await self._read(lambda view: _registers.scan(view, prefix))

    def watch(self, peer: str) -> Stream[Notice]:
        """Iterate over the notices to a peer, in the event loop that started the storage."""
        seen = 0

        async def enter(stream: Stream[Notice]) -> Notice:
            await self._write(lambda tx: open_box(tx, peer))
            self._streams.add(stream)
            return Resync()

        async def look() -> Iterable[Notice]:
            nonlocal seen
            if self._opened().commits == seen:
                return ()
            # Counted from what was looked at: a commit is known a moment before it can be read.
            seen, waiting = await self._read(lambda view: (view.txn.id(), has_mail(view, peer)))
            return await self._write(lambda tx: fetch(tx, peer)) if waiting else ()

        async def leave(stream: Stream[Notice]) -> None:
            self._streams.discard(stream)
            # A box that can not be closed is found to be abandoned by a sweep.
            with contextlib.suppress(Unavailable):
                await self._write(lambda tx: close_box(tx, peer))

        return Stream(enter, look, leave, LOOK)

    def listen(self) -> Stream[Heard]:
        """Iterate over what happens: nothing but a resync every few seconds."""

        async def enter(stream: Stream[Heard]) -> Heard:
            self._opened()
            self._streams.add(stream)
            return Resync()

        async def look() -> Iterable[Heard]:
            return (Resync(),)

        async def leave(stream: Stream[Heard]) -> None:
            self._streams.discard(stream)

        return Stream(enter, look, leave, RESYNC)

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass on nothing: whoever listens looks again every few seconds."""

    @property
    def listened(self) -> bool:
        """Whether events need to be built: never."""
        return False

    async def _write(self, verb: Callable[[Transaction], T], caller: str = "") -> T:
        environment = self._opened()

        def run(txn: lmdb.Transaction[bytes]) -> T:
            tx = Transaction(txn, environment.tick(self._clock.time()))
            result = verb(tx)
            environment.tick(tx.now)
            environment.wrote = tx.close(caller) or environment.wrote
            return result

        return await environment.write(run, self._settings.lock_timeout)

    async def _read(self, look: Callable[[View], T]) -> T:
        environment = self._opened()

        def run(txn: lmdb.Transaction[bytes]) -> T:
            view = View(txn, environment.tick(self._clock.time()))
            environment.tick(view.now)
            return look(view)

        return await environment.read(run, self._settings.lock_timeout)

    def _opened(self) -> Environment:
        if self._environment is None:
            raise Unavailable(
                "the LMDB storage is not started; call start() or use it through connect()"
            )
        return self._environment
