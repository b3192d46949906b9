"""The storage itself: it hands writes to the writer's thread and reads to the reader's."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import aiosqlite

from plugq.clock import SystemClock
from plugq.errors import PlugqError, Unavailable
from plugq.lifecycle import Lifecycle
from plugq.protocols import checks
from plugq.protocols.plugin import API_VERSION, Capability
from plugq_sqlite import _reads
from plugq_sqlite._claims import claim_alone, renew
from plugq_sqlite._edit import edit
from plugq_sqlite._events import Listener
from plugq_sqlite._faults import fault
from plugq_sqlite._options import SqliteOptions, database_path, duration
from plugq_sqlite._registers import swap
from plugq_sqlite._restore import restore
from plugq_sqlite._settle import settle
from plugq_sqlite._signals import SUPPORTED, Watch
from plugq_sqlite._submit import submit
from plugq_sqlite._sweep import sweep
from plugq_sqlite._within import Home, submit_within
from plugq_sqlite._writer import Writer, WriterOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

    from plugq.events import JobEvent
    from plugq.job import JobRecord, JobRef
    from plugq.protocols.edits import Edit, EditReply
    from plugq.protocols.plugin import PluginContext
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
    from plugq_sqlite._transaction import Transaction


class SqliteStorage(Lifecycle):
    """Keeps jobs in one SQLite file, shared by every process of this machine that opens it.

    Writes of concurrent callers share transactions, and an acknowledged one is on the disk.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = SqliteOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.DURABLE, Capability.SHARED_PROCESSES, Capability.TRANSACTIONAL_SUBMIT}
        | ({Capability.PUSH_WAKEUPS} if SUPPORTED else set()),
    )

    def __init__(self, options: SqliteOptions, context: PluginContext) -> None:
        super().__init__()
        self.options = options
        self._logger = context.logger
        self._path = database_path(options, context.base_dir)
        self._read_timeout = duration(options.read_timeout, "read_timeout")
        self._writer_options = WriterOptions(
            path=self._path,
            namespace=context.namespace,
            synchronous=options.synchronous,
            busy_timeout=duration(options.busy_timeout, "busy_timeout"),
            clock=context.clock or SystemClock(),
            logger=context.logger,
        )
        self._writer = Writer(self._writer_options)
        self._reader: aiosqlite.Connection | None = None
        self._reader_thread: threading.Thread | None = None
        self._closing: asyncio.Future[None] | None = None
        self._watches: set[Watch] = set()
        self._listeners: set[Listener] = set()
        #: The queues of jobs that were submitted in transactions of the user's, once for each.
        self._committing: deque[str] = deque()
        self._waking: asyncio.Task[None] | None = None

    async def _start(self) -> None:
        self._writer = Writer(self._writer_options)
        await self._writer.start()
        # A thread made by a daemon is one too: a program that forgets stop() can still exit.
        reader = await self._writer.call(lambda _: aiosqlite.Connection(self._open_reader, 64))
        connecting = asyncio.ensure_future(reader)
        try:
            self._reader = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            self._reader = await connecting
            raise
        except sqlite3.Error as error:
            raise fault(error, self._path) from None

    def _open_reader(self) -> sqlite3.Connection:
        self._reader_thread = threading.current_thread()
        timeout = self._writer_options.busy_timeout
        db = sqlite3.connect(self._path, isolation_level=None, timeout=timeout)
        db.execute("PRAGMA query_only = ON")
        return db

    async def _stop(self) -> None:
        for watch in list(self._watches):
            await watch.aclose()
        for listener in list(self._listeners):
            await listener.aclose()
        await self._writer.stop()
        if self._waking is not None:
            await asyncio.gather(self._waking, return_exceptions=True)
        reader, self._reader = self._reader, None
        if reader is not None:
            self._closing = asyncio.ensure_future(reader.close())
        if self._closing is not None:
            # Kept until it is done: a stop that is cancelled here is made again.
            try:
                await asyncio.shield(self._closing)
            except sqlite3.Error as error:
                raise fault(error, self._path) from None
            finally:
                if self._closing.done():
                    self._closing = None
        thread, self._reader_thread = self._reader_thread, None
        if thread is not None:
            # It has answered its last call and has nothing left to do but to end.
            thread.join()

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs durably and answer for each."""
        checks.check_submit(jobs)
        size = sum(len(job.body) for job in jobs)
        return await self._writer.call(partial(submit, jobs=jobs), len(jobs), size)

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        """Store jobs in the transaction that has begun on a connection to the same file.

        Everybody else who writes waits until that transaction has ended.
        """
        checks.check_submit(jobs)
        if self._reader is None:
            raise _not_started()
        home = Home(
            path=self._path, namespace=self._writer_options.namespace, time=self._writer.now(0.0)
        )
        replies = await submit_within(connection, home, jobs)
        self._committing.extend(job.queue for job in jobs)
        if self._waking is None:
            self._waking = asyncio.create_task(self._wake_after_commit())
        return replies

    async def _wake_after_commit(self) -> None:
        """Wake idle peers as soon as this storage can write again: then the transaction has ended.

        Of one that is open for longer than a write waits the jobs are noticed by the next sweep.
        """
        try:
            while self._committing:
                await self._writer.call(self._wake_idle)
        except PlugqError as error:
            self._committing.clear()
            self._logger.debug("idle peers are woken by the next sweep: %s", error)
        finally:
            self._waking = None

    def _wake_idle(self, tx: Transaction) -> None:
        while self._committing:
            queue = tx.queue(self._committing.popleft())
            if queue is not None:
                tx.opened(queue.id, 1)
        tx.end_call()

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs; an id that exists is left alone."""
        checks.check_restore(jobs)
        size = sum(len(job.body or b"") + len(job.result or b"") for job in jobs)
        await self._writer.call(partial(restore, jobs=jobs), len(jobs), size)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        checks.check_claim(request)
        return await self._writer.call(partial(claim_alone, request=request), request.limit)

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim, in one transaction."""
        checks.check_settle(settlements)
        checks.check_claim(claim)
        items = len(settlements) + (0 if claim is None else claim.limit)
        size = sum(len(settlement.result or b"") for settlement in settlements)
        call = partial(settle, settlements=settlements, claim=claim)
        return await self._writer.call(call, items, size)

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        checks.check_renew(leases, lease, holder)
        call = partial(renew, refs=leases, lease=lease, holder=holder)
        return await self._writer.call(call, len(leases))

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due, and wake idle peers where jobs are ready."""
        checks.check_sweep(request)
        return await self._writer.call(partial(sweep, request=request), request.limit)

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        writer = self._writer
        return await _reads.get(
            self._fetch,
            writer.now,
            writer.namespace,
            refs,
            body=body,
            waiting=waiting,
        )

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        return await _reads.find(self._fetch, self._writer.now, self._writer.namespace, query)

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches."""
        writer = self._writer
        return await _reads.batches(self._fetch, writer.now, writer.namespace, batches)

    async def stats(self) -> Stats:
        """Return the counters."""
        return await _reads.stats(self._fetch, self._writer.now, self._writer.namespace)

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        checks.check_edit(edit)
        return await self._writer.call(partial(_edit, change=edit))

    def watch(self, peer: str) -> Watch:
        """Iterate over the notices to a peer, in the event loop that started the storage."""
        return Watch(peer, self._enter, self._leave)

    async def _enter(self, watch: Watch) -> None:
        if self._reader is None:
            raise _not_started()
        watch.open()
        self._watches.add(watch)
        try:
            if watch.address:
                await self._writer.call(
                    lambda tx: tx.know_peer(watch.peer, watch.address),
                )
                self._writer.addresses[watch.peer] = watch.address
        except BaseException:
            self._watches.discard(watch)
            raise

    async def _leave(self, watch: Watch) -> None:
        self._watches.discard(watch)
        addresses = self._writer.addresses
        if addresses.get(watch.peer) == watch.address:
            del addresses[watch.peer]
        if watch.address:
            # A peer that can not be taken off the list is found to be gone by the next letter.
            with contextlib.suppress(Unavailable):
                await self._writer.call(
                    lambda tx: tx.forget_peer(watch.peer, watch.address),
                )

    def listen(self) -> Listener:
        """Iterate over what happens, in the event loop that started the storage.

        On a platform without unix sockets there is nothing but a resync every few seconds.
        """
        return Listener(self._enter_listener, self._leave_listener)

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens, through the writer's thread."""
        self._writer.tell(events)

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening, as of the last write of this instance."""
        return bool(self._writer.listeners)

    async def _enter_listener(self, listener: Listener) -> None:
        if self._reader is None:
            raise _not_started()
        listener.open()
        self._listeners.add(listener)
        try:
            if listener.address:
                self._writer.hearers[listener.address] = listener.lose
                await self._writer.call(lambda tx: tx.know_listener(listener.address))
        except BaseException:
            self._listeners.discard(listener)
            self._writer.hearers.pop(listener.address, None)
            raise

    async def _leave_listener(self, listener: Listener) -> None:
        self._listeners.discard(listener)
        self._writer.hearers.pop(listener.address, None)
        if listener.address:
            # An address that can not be taken off the list is found to be dead when it is written
            # to.
            with contextlib.suppress(Unavailable):
                await self._writer.call(lambda tx: tx.forget_listener(listener.address))

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        writer = self._writer
        try:
            return await _reads.load(self._fetch, writer.now, writer.namespace, keys)
        except UnicodeEncodeError as error:
            raise fault(error, self._path) from None

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        checks.check_swap(changes)
        return await self._writer.call(partial(swap, changes=changes), len(changes))

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        writer = self._writer
        try:
            return await _reads.scan(self._fetch, writer.now, writer.namespace, prefix)
        except UnicodeEncodeError as error:
            raise fault(error, self._path) from None

    async def _fetch(self, statement: str, parameters: Sequence[Any]) -> list[Any]:
        reader = self._reader
        if reader is None:
            raise _not_started()
        try:
            async with asyncio.timeout(self._read_timeout):
                return list(await reader.execute_fetchall(statement, parameters))
        except TimeoutError:
            await reader.interrupt()
            message = (
                f"reading {self._path} took longer than {self._read_timeout:g} s; ask for less or "
                "raise storage.read_timeout"
            )
            raise Unavailable(message) from None
        except (sqlite3.Error, ValueError, UnicodeError, OverflowError) as error:
            raise fault(error, self._path) from None


def _edit(tx: Transaction, change: Edit) -> Sequence[EditReply]:
    return edit(tx, change)


def _not_started() -> Unavailable:
    return Unavailable(
        "the SQLite storage is not started; call start() or use it through connect()",
    )
