"""The storage itself: it hands each verb to the server and answers in words of plugq."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from plugq.errors import InvalidJob
from plugq.lifecycle import Lifecycle
from plugq.protocols import checks
from plugq.protocols.edits import Configure, JobEdit
from plugq.protocols.plugin import API_VERSION, Capability
from plugq.protocols.storage import Register, Swapped
from plugq_postgres import _settle, _submit
from plugq_postgres._around import settle_around
from plugq_postgres._claims import claim_limited
from plugq_postgres._database import Database
from plugq_postgres._edit import edit_jobs, edit_queues
from plugq_postgres._faults import HeldUp
from plugq_postgres._gather import Gathering
from plugq_postgres._held import Held
from plugq_postgres._hub import Hub
from plugq_postgres._migrations import migration_sql
from plugq_postgres._names import Names
from plugq_postgres._options import PostgresOptions, checked
from plugq_postgres._reads import Reader
from plugq_postgres._receivers import Listener, Watch
from plugq_postgres._restore import restore
from plugq_postgres._sweeper import Sweeper
from plugq_postgres._transaction import Transaction
from plugq_postgres._upkeep import facts_of, layout_of, migrated
from plugq_postgres._within import Within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    import asyncpg
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
        RegisterChange,
        RenewReply,
        Settlement,
        SettleReply,
        Stats,
        SubmitReply,
        SweepReply,
        SweepRequest,
    )
    from plugq.protocols.upkeep import Fact, Layout

    _Submissions = Gathering[Sequence[NewJob], list[SubmitReply]]

T = TypeVar("T")

#: Submissions share a call of the server until they have so many jobs or bytes.
_MOST_JOBS, _MOST_BYTES = 2_000, 8 * 1024 * 1024


class PostgresStorage(Lifecycle):
    """Keeps jobs in a schema of a PostgreSQL database, shared by every process that can reach it.

    Each verb is one call of the server and one transaction. ``pool`` is a pool of the user's own,
    which the storage uses and leaves open; it keeps one more connection, to be woken by the others.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = PostgresOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.DURABLE,
            Capability.SHARED_PROCESSES,
            Capability.SHARED_HOSTS,
            Capability.PUSH_WAKEUPS,
            Capability.TRANSACTIONAL_SUBMIT,
        },
    )

    def __init__(
        self,
        options: PostgresOptions,
        context: PluginContext,
        *,
        pool: asyncpg.Pool | None = None,
    ) -> None:
        super().__init__()
        self.options = checked(options)
        self._context = context
        self._database = Database(options, context.clock, context.logger, pool)
        self._names = Names(self._database)
        self._hub = Hub(options, self._database, self._names, context.namespace, context.logger)
        self._database.on_lost = self._lost
        self._held = Held(self._database)
        self._sweeper = Sweeper(
            self._database, self._held, self._holding, lambda: self._admit(None), context.logger
        )
        self._reader = Reader(self._database, self._names, self._admit)
        self._within = Within(self._database, context.namespace)
        #: By the queues that they name, so that a queue that is held up holds up no other.
        self._submissions: dict[frozenset[str], _Submissions] = {}
        #: Queues that were found to be bounded by limiters when they were last claimed from.
        self._limited: set[str] = set()

    async def _start(self) -> None:
        self._names.forget()
        await self._database.start(self._context.namespace)
        self._hub.start()

    def _lost(self) -> None:
        self._names.forget()
        self._hub.look_soon()

    async def _stop(self) -> None:
        await self._hub.stop()
        await self._database.stop()

    async def facts(self) -> Sequence[Fact]:
        """Return what the server promised at the start, and what a user has to be let do."""
        self._database.check_open()
        found = self._database.found
        assert found is not None  # noqa: S101 - it is open
        return facts_of(found, self.options.schema)

    def migration_sql(self, since: int = 0) -> str:
        """Return the script that brings the schema from version ``since`` to the newest."""
        return migration_sql(self.options.schema, since)

    async def layout(self) -> Layout:
        """Return the version of the schema, over a connection of its own."""
        return await layout_of(self.options)

    async def migrate(self) -> Layout:
        """Bring the schema to the newest version and return what it had."""
        return await migrated(self.options)

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        """Store jobs durably and answer for each."""
        checks.check_submit(jobs)
        _submit.check_size(jobs)
        self._database.check_open()
        if not jobs:
            return []
        queues = frozenset(job.queue for job in jobs)
        gathering = self._submissions.get(queues)
        if gathering is None:
            gathering = Gathering(
                self._submit_all,
                self._database.spawn,
                len,
                _MOST_JOBS,
                lambda: self._submissions.pop(queues, None),
            )
            self._submissions[queues] = gathering
        return await gathering.call(jobs)

    async def _submit_all(
        self, calls: Sequence[Sequence[NewJob]]
    ) -> Sequence[list[SubmitReply] | Exception]:
        """Make calls together; where that fails or a queue refuses, each alone."""
        if len(calls) > 1:
            together = [job for jobs in calls for job in jobs]
            alike = len({(job.queue, job.id) for job in together}) < len(together)
            size = sum(len(job.body) for job in together)
            if not alike and size <= _MOST_BYTES:
                try:
                    replies = await self._submit(together)
                except InvalidJob:
                    replies = []
                if replies and not _submit.refused(replies):
                    answers = iter(replies)
                    return [[next(answers) for _ in jobs] for jobs in calls]
        found: list[list[SubmitReply] | Exception] = []
        for jobs in calls:
            try:
                found.append(await self._submit(jobs))
            except Exception as error:  # noqa: BLE001 - it is the caller's own
                found.append(error)
        return found

    async def _submit(self, jobs: Sequence[NewJob]) -> list[SubmitReply]:
        queues, tasks = await self._names.number(
            {job.queue for job in jobs}, {job.task for job in jobs}
        )
        arguments = _submit.arguments(jobs, queues, tasks)
        while True:
            answer = await self._write(queues.values(), _submit.STATEMENT, *arguments)
            # Without it users have committed more than a call can move in first.
            if answer["seqs"] is not None:
                return _submit.replies(jobs, answer)

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        """Store jobs in the transaction that the user has begun on ``connection``.

        It is one statement there, which waits for nobody, and for which nobody waits.
        """
        checks.check_submit(jobs)
        _submit.check_size(jobs)
        self._database.check_open()
        return await self._within.submit(connection, jobs) if jobs else []

    async def _admit(self, queues: Collection[str] | None) -> None:
        """Move in what users have committed, in these queues or in all that nobody holds."""
        names = None if queues is None else [queue.encode() for queue in queues]
        while True:
            answer = await self._write((), "SELECT * FROM {schema}.admit_v1($1, $2, $3, $4)", names)
            if not answer["more"]:
                return

    async def restore(self, jobs: Sequence[JobRecord]) -> None:
        """Write whole jobs as they are; an id that exists is left alone."""
        checks.check_restore(jobs)
        self._database.check_open()
        if jobs:
            await self._names.number({job.queue for job in jobs}, {job.task for job in jobs})
            await self._transact(lambda tx: restore(tx, jobs), {job.queue for job in jobs})

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        """Grant leases in order."""
        checks.check_claim(request)
        _, reply = await self._settle((), request)
        assert reply is not None  # noqa: S101 - a claim was made
        return reply

    async def settle(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None = None,
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        """End attempts, then serve the claim, in one transaction."""
        checks.check_settle(settlements)
        checks.check_claim(claim)
        return await self._settle(settlements, claim)

    async def _settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None
    ) -> tuple[list[SettleReply], ClaimReply | None]:
        self._database.check_open()
        queues = await self._names.find({settlement.queue for settlement in settlements})
        if claim is not None:
            claimed, _ = await self._names.number(claim.queues)
            queues |= claimed
        done: list[SettleReply] = []
        first, *others = _settle.portions(settlements)
        for portion in others:
            replies, _ = await self._settle_portion(portion, None, queues)
            done += replies
        replies, reply = await settle_around(self._held, self._settle_portion, first, claim, queues)
        return [*replies, *done], reply

    async def _settle_portion(
        self,
        settlements: Sequence[Settlement],
        claim: ClaimRequest | None,
        queues: Mapping[str, int],
    ) -> tuple[list[SettleReply], ClaimReply | None]:
        count = len(settlements)
        arguments = _settle.settle_arguments(settlements, queues)
        if claim is None or not self._limited.intersection(claim.queues):
            answer = await self._write(
                queues.values(),
                _settle.SETTLE,
                *arguments,
                *_settle.claim_arguments(claim, queues),
            )
            if not answer["limited"]:
                replies = _settle.settle_replies(count, answer)
                if claim is None:
                    return replies, None
                now = self._database.now(answer["now"])
                return replies, await _settle.claim_reply(answer, self._names, now)
        assert claim is not None  # noqa: S101 - without one nothing is limited
        return await self._holding(
            lambda tx: claim_limited(tx, arguments, count, claim, self._limited),
            list(queues.values()),
            complete=False,
        )

    async def renew(
        self,
        leases: Sequence[LeaseRef],
        *,
        lease: float,
        holder: Holder | None = None,
    ) -> Sequence[RenewReply]:
        """Extend leases and release those that a lost reply granted."""
        checks.check_renew(leases, lease, holder)
        self._database.check_open()
        queues = await self._names.find({ref.queue for ref in leases})
        try:
            return await self._renew(leases, lease, holder, queues)
        except HeldUp:
            # The others do not lapse; whoever renews again is told of them.
            free = await self._held.free(queues.values())
            part = [ref for ref in leases if queues.get(ref.queue) in free]
            if part:
                await self._renew(part, lease, None, queues)
            raise

    async def _renew(
        self,
        leases: Sequence[LeaseRef],
        lease: float,
        holder: Holder | None,
        queues: Mapping[str, int],
    ) -> list[RenewReply]:
        answer = await self._write(
            {queues[ref.queue] for ref in leases if ref.queue in queues},
            _settle.RENEW,
            *_settle.renew_arguments(leases, queues),
            lease,
            holder is not None,
            b"" if holder is None else holder.worker.encode(),
            0 if holder is None else holder.number,
        )
        return _settle.renew_replies(answer)

    async def sweep(self, request: SweepRequest) -> SweepReply:
        """Do what time makes due, and wake idle peers where jobs are ready."""
        checks.check_sweep(request)
        reply, self._hub.listened = await self._sweeper.sweep(request)
        return reply

    async def get(
        self,
        refs: Sequence[JobRef],
        *,
        body: bool = False,
        waiting: bool = False,
    ) -> Sequence[JobRecord | None]:
        """Return jobs as they stand."""
        return await _readable(self._reader.get(refs, body=body, waiting=waiting))

    async def find(self, query: FindQuery) -> Page:
        """Return one page, newest first."""
        return await _readable(self._reader.find(query))

    async def batches(self, batches: Sequence[str]) -> Sequence[BatchCounts | None]:
        """Return the counts of batches."""
        return await _readable(self._reader.batches(batches))

    async def stats(self) -> Stats:
        """Return the counters."""
        return await self._reader.stats()

    async def edit(self, edit: Edit) -> Sequence[EditReply]:
        """Make an operator's change."""
        checks.check_edit(edit)
        self._database.check_open()
        if isinstance(edit, JobEdit):
            named = {ref.queue for ref in edit.refs}
            numbers = await self._names.find(named)
            if unknown := named.difference(numbers):
                # All that they have may be what users have committed.
                await self._admit(unknown)
                numbers = await self._names.find(named)
            return await self._holding(lambda tx: edit_jobs(tx, edit), list(numbers.values()))
        if isinstance(edit, Configure):
            queues = {settings.queue for settings in edit.settings}
        else:
            queues = set(edit.queues)
        return await self._transact(lambda tx: edit_queues(tx, edit), queues)

    def watch(self, peer: str) -> Watch:
        """Iterate over the notices to a peer, in the event loop that started the storage."""
        return Watch(peer, self._hub.enter_watch, self._hub.leave_watch)

    def listen(self) -> Listener:
        """Iterate over what happens, in the event loop that started the storage."""
        return Listener(self._hub.enter_listener, self._hub.leave_listener)

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Pass events to everybody who listens."""
        if self.started:
            self._hub.tell(events)

    @property
    def listened(self) -> bool:
        """Whether anybody may be listening, as of the last write of this instance."""
        return self._hub.listened

    async def load(self, keys: Sequence[str]) -> Loaded:
        """Return registers and the time."""
        return await _readable(self._reader.load(keys))

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        """Make all changes or none."""
        checks.check_swap(changes)
        database = self._database
        answer = await database.write(
            f"SELECT * FROM {database.schema}.swap_v1($1, $2, $3, $4, $5, $6, $7)",  # noqa: S608 - a quoted name
            database.namespace,
            database.at,
            database.wait,
            [change.key.encode() for change in changes],
            [change.expect for change in changes],
            [change.value for change in changes],
            [change.ttl for change in changes],
        )
        registers = tuple(
            None if version is None else Register(key=change.key, version=version, value=value)
            for change, version, value in zip(
                changes, answer["versions"] or (), answer["stored"] or (), strict=True
            )
        )
        return Swapped(done=answer["done"], registers=registers, now=database.now(answer["now"]))

    async def scan(self, prefix: str) -> Sequence[Register]:
        """Return the registers whose key starts with the prefix."""
        return await _readable(self._reader.scan(prefix))

    async def _write(self, queues: Collection[int], statement: str, *values: Any) -> asyncpg.Record:
        """Make one call of the server and send what it has to tell."""
        database = self._database
        answer = await database.write(
            statement.format(schema=database.schema),
            database.namespace,
            database.at,
            database.wait,
            *values,
            queues=queues,
        )
        database.now(answer["now"])
        self._hub.heed(answer)
        return answer

    async def _transact(
        self, run: Callable[[Transaction], Awaitable[T]], queues: Collection[str]
    ) -> T:
        """Run statements in one transaction that holds these queues."""
        numbers, _ = await self._names.number(queues)
        return await self._holding(run, list(numbers.values()))

    async def _holding(
        self,
        run: Callable[[Transaction], Awaitable[T]],
        numbers: Sequence[int],
        *,
        complete: bool = True,
    ) -> T:
        """Run statements in one transaction that holds the queues of these numbers.

        ``complete`` says that they have to see everything that users have committed.
        """
        database = self._database

        async def whole(db: Any) -> tuple[tuple[T] | None, Any]:
            tx = Transaction(db, database, self._names)
            await tx.begin(numbers)
            result = None if complete and tx.more else (await run(tx),)
            return result, await tx.end()

        while True:
            result, answer = await database.transact(whole, numbers)
            self._hub.heed(answer)
            if result is not None:
                return result[0]


async def _readable(reading: Awaitable[T]) -> T:
    """Wait for what was asked for by names.

    Raises:
        InvalidJob: one of them can not be written as UTF-8, so that nothing has it.
    """
    try:
        return await reading
    except UnicodeEncodeError as error:
        message = f"a name can not be written as UTF-8 ({error.reason}); look for another one"
        raise InvalidJob(message) from None
