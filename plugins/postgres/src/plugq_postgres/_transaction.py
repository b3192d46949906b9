"""A transaction of several statements: its time, its queues, and whom it has to tell.

The verbs that are rare, or that decide in Python, use one; the queues that they name are locked.
"""

# ruff: noqa: S608 - statements are put together from constants; values are bound

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from plugq_postgres._rows import COLUMNS, FIRST_FINAL, KINDS, Row, columns

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from plugq.job import JobRef
    from plugq_postgres._database import Database
    from plugq_postgres._names import Names

_BY_REF = (
    f"SELECT s.n, {COLUMNS} FROM unnest($1::int[], $2::bytea[]) WITH ORDINALITY AS s (queue, id, n)"
    " CROSS JOIN LATERAL (SELECT * FROM job WHERE job.queue = s.queue AND job.id = s.id "
    "UNION ALL SELECT * FROM done WHERE done.queue = s.queue AND done.id = s.id) j"
)
_BEGIN = "SELECT * FROM {schema}.begin_v1($1, $2, $3, $4, $5, $6, $7)"
_LOCK_FREE = "SELECT id FROM queue WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED"
_ENTER = "SELECT enter_v1($1, $2, $3, $4)"
_FINISH = "SELECT finish_v1($1, $2, $3, $4, $5, NULL, $6, NULL, $7, $8, $9, $10, NULL)::text"
_REQUEUE = "SELECT requeue_v1($1, $2, $3, $4, NULL, $5, NULL, $6, $7, $8, $9, $10, NULL)::text"
_PROMOTE = "SELECT ROW (promote_v1($1, $2, $3), NULL)::effect_v1::text"
_REMOVE = "SELECT ROW (NULL, remove_v1($1, $2, $3, $4))::effect_v1::text"
_REPAIR = "SELECT ROW (repair_v1($1, $2, $3), NULL)::effect_v1::text"
_WAKE = (
    "SELECT ROW (NULL, wake_v1($1, $2, ARRAY(SELECT ROW (q, 1, true)::ready_v1 "
    "FROM unnest($3::int[]) AS q), $4, $5))::effect_v1::text"
)
_BOOK = (
    "SELECT ROW (book_v1($1, $2, $3, ARRAY(SELECT ROW (s.queue, s.task, s.lane, s.batch, s.before, "
    "$4::int2, $5::int2, NULL, s.fresh)::move_v1 "
    "FROM unnest($6::int[], $7::int[], $8::bytea[], $9::bytea[], $10::int2[], $11::bool[]) "
    "AS s (queue, task, lane, batch, before, fresh))), NULL)::effect_v1::text"
)
_END = (
    "SELECT listened_v1($1) AS listened, "
    "end_v1($1, $2, $3, gather_v1($4, $5, $6, $7), $8, $9) AS letters"
)

#: How many jobs of a lane stand in the ready order at most.
HEADS = 128
#: More than any number of jobs.
ALL = 10**12


class Finish(msgspec.Struct, kw_only=True):
    """A job that comes to a final state."""

    row: Row
    state: int
    code: str = ""
    error: bytes | None = None
    crashes: int = 0
    #: When it ended, where that is not now.
    ended: float | None = None
    #: What it counts for beside its state.
    total: int | None = None


class Requeue(msgspec.Struct, kw_only=True):
    """A running job that goes back into line, at its place."""

    row: Row
    state: int
    error: bytes | None = None
    crashes: int = 0
    total: int | None = None


class Transaction:
    """One transaction on one connection, from :meth:`begin` to :meth:`end`."""

    def __init__(self, db: Any, database: Database, names: Names) -> None:
        self.db = db
        self.names = names
        self._database = database
        self.namespace = database.namespace
        self.now = 0.0
        #: Whether more is to be moved in than one transaction may.
        self.more = False
        #: The queues whose time is kept at the end, since something in them has changed.
        self.changed: set[int] = set()
        self._effects: list[str] = []
        self._ready: list[tuple[int, int, bool]] = []
        self._more: set[int] = set()
        self._claimant = b""
        self._claimed: list[int] = []

    async def begin(self, queues: Sequence[int]) -> None:
        """Lock the queues and look at the clock."""
        database = self._database
        begun = await self.db.fetchrow(
            _BEGIN.format(schema=database.schema),
            f"{database.schema}, pg_temp",
            self.namespace,
            database.at,
            database.wait,
            database.idle,
            database.statement,
            queues,
        )
        self.now = database.now(begun["now"])
        self.note(begun["effect"])
        self.more = begun["more"]

    async def lock_free(self, queues: Sequence[int]) -> list[int]:
        """Lock those of the queues that nobody holds, and return them."""
        free = [row["id"] for row in await self.db.fetch(_LOCK_FREE, queues)]
        database = self._database
        self.now = database.now(
            await self.db.fetchval(_ENTER, self.namespace, database.at, database.wait, free)
        )
        return free

    async def end(self) -> Any:
        """Choose whom the call wakes; return what is to be told after the commit."""
        if self._more:
            woken = await self.db.fetchval(
                _WAKE, self.namespace, self.now, list(self._more), self._claimant, self._claimed
            )
            self._effects.append(woken)
        return await self.db.fetchrow(
            _END,
            self.namespace,
            self.now,
            list(self.changed),
            self._effects,
            *columns(self._ready, 3),
            self._claimant,
            self._claimed,
        )

    def claimed_by(self, peer: str, queues: Sequence[int]) -> None:
        """Wake a peer not for these queues, since it has just claimed from them."""
        self._claimant, self._claimed = peer.encode(), list(queues)

    def note(self, effect: str | None) -> None:
        """Keep what a step brought about, as the server told it."""
        if effect is not None:
            self._effects.append(effect)

    def opened(self, queue: int, count: int) -> None:
        """Note that jobs of a queue which were ready before may be claimed now."""
        self.changed.add(queue)
        self._ready.append((queue, count, True))

    def claimable(self, queue: int, count: int) -> None:
        """Note that so many more jobs of a queue may be claimed."""
        self._ready.append((queue, count, False))

    def taken(self, queue: int, count: int) -> None:
        """Note that so many of what may be claimed wake nobody."""
        self._ready += [(queue, -min(count, ALL), opened) for opened in (False, True)]

    def wake_one(self, queue: int) -> None:
        """Wake a peer if one is idle and a job of the queue is ready, whatever was taken."""
        self._more.add(queue)

    async def rows(self, refs: Sequence[JobRef]) -> list[Row | None]:
        """Return the row of each job, ``None`` where there is no such job."""
        queues = await self.names.find({ref.queue for ref in refs}, db=self.db)
        found: list[Row | None] = [None] * len(refs)
        for place, *values in await self.db.fetch(
            _BY_REF, [queues.get(ref.queue) for ref in refs], [ref.id.encode() for ref in refs]
        ):
            found[place - 1] = Row._make(values)
        return found

    async def finish(self, items: Sequence[Finish]) -> None:
        """End jobs that are live."""
        if not items:
            return
        self.changed.update(item.row.queue for item in items)
        rows = [
            (
                item.row.seq,
                item.state,
                item.code.encode(),
                item.error,
                0,
                item.crashes,
                item.ended,
                item.total,
            )
            for item in items
        ]
        self.note(await self.db.fetchval(_FINISH, self.namespace, self.now, *columns(rows, 8)))

    async def requeue(self, items: Sequence[Requeue]) -> None:
        """Put running jobs back into line."""
        if not items:
            return
        self.changed.update(item.row.queue for item in items)
        rows = [
            (
                item.row.seq,
                item.state,
                item.error,
                0,
                item.crashes,
                item.row.unknown,
                item.row.unknown_since,
                item.total,
            )
            for item in items
        ]
        self.note(await self.db.fetchval(_REQUEUE, self.namespace, self.now, *columns(rows, 8)))

    async def promote(self, seqs: Sequence[int]) -> None:
        """Queue delayed jobs whose time has come."""
        if seqs:
            self.note(await self.db.fetchval(_PROMOTE, self.namespace, self.now, seqs))

    async def remove(self, seqs: Sequence[int], *, tell: bool = True) -> None:
        """Take ended jobs out of the store."""
        if seqs:
            self.note(await self.db.fetchval(_REMOVE, self.namespace, self.now, seqs, tell))

    async def repair(self, lanes: Iterable[tuple[int, bytes]], most: int = HEADS) -> None:
        """Make the first jobs of these lanes eligible, at most so many of each."""
        listed = list(lanes)
        if listed:
            self.note(await self.db.fetchval(_REPAIR, *columns(listed, 2), most))

    async def book(
        self,
        rows: Sequence[Row],
        after: int,
        total: str,
        *,
        fresh: Collection[int] = (),
        since: int | None = None,
    ) -> None:
        """Count the moves of jobs that the caller has made.

        ``fresh`` are the sequences of those that their batches do not count yet, ``since`` is where
        batches begin that are not there.
        """
        moves = [
            (row.queue, row.task, row.lane, row.batch, row.state, row.seq in fresh) for row in rows
        ]
        self.changed.update(row.queue for row in rows)
        self.note(
            await self.db.fetchval(
                _BOOK, self.namespace, self.now, since, after, KINDS[total], *columns(moves, 6)
            )
        )


def table_of(row: Row) -> str:
    """Return where the row of a job lies."""
    return "done" if row.state >= FIRST_FINAL else "job"
