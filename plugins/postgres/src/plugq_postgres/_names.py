"""The numbers of queues and tasks, kept since they never change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from plugq_postgres._database import Database

#: Beyond so many names of queues or tasks the cache starts anew.
_MOST = 100_000


class Names:
    """Names by number and numbers by name, of the queues of one namespace and of all tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queues: dict[str, int] = {}
        self._queue_names: dict[int, str] = {}
        self._tasks: dict[str, int] = {}
        self._task_names: dict[int, str] = {}

    async def number(
        self, queues: Collection[str], tasks: Collection[str] = (), *, db: Any = None
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return the numbers of these queues and tasks, given to those that have none yet.

        ``db`` is the connection to ask on where the caller holds one.

        Raises:
            Unavailable: the server can not be reached.
        """
        self._bound()
        # Again where everything was forgotten meanwhile.
        while True:
            new_queues = {name for name in queues if name not in self._queues}
            new_tasks = {name for name in tasks if name not in self._tasks}
            if not new_queues and not new_tasks:
                return (
                    {name: self._queues[name] for name in queues},
                    {name: self._tasks[name] for name in tasks},
                )
            rows = await self._fetch(
                db,
                f"SELECT * FROM {self._database.schema}.name_v1($1, $2, $3)",  # noqa: S608 - a quoted name
                self._database.namespace,
                [name.encode() for name in new_queues],
                [name.encode() for name in new_tasks],
            )
            for kind, number, label in rows:
                self._learn(kind, number, label.decode())

    async def find(self, queues: Collection[str], *, db: Any = None) -> dict[str, int]:
        """Return the numbers of those of the queues that have one.

        Raises:
            Unavailable: the server can not be reached.
        """
        self._bound()
        unknown = [name.encode() for name in queues if name not in self._queues]
        if unknown:
            rows = await self._fetch(
                db,
                f"SELECT 0, id, name FROM {self._database.schema}.queue "  # noqa: S608 - a quoted name
                "WHERE namespace = $1 AND name = ANY ($2)",
                self._database.namespace,
                unknown,
            )
            for kind, number, label in rows:
                self._learn(kind, number, label.decode())
        return {name: self._queues[name] for name in queues if name in self._queues}

    async def learn(
        self, queues: Iterable[int], tasks: Iterable[int] = (), *, db: Any = None
    ) -> None:
        """Find the names of these numbers, for :meth:`queue` and :meth:`task`.

        Raises:
            Unavailable: the server can not be reached.
        """
        self._bound()
        new_queues = {number for number in queues if number not in self._queue_names}
        new_tasks = {number for number in tasks if number not in self._task_names}
        if new_queues or new_tasks:
            schema = self._database.schema
            rows = await self._fetch(
                db,
                f"SELECT 0, id, name FROM {schema}.queue WHERE id = ANY ($1) UNION ALL "  # noqa: S608 - a quoted name
                f"SELECT 1, id, name FROM {schema}.task WHERE id = ANY ($2)",
                list(new_queues),
                list(new_tasks),
            )
            for kind, number, label in rows:
                self._learn(kind, number, label.decode())

    def forget(self) -> None:
        """Ask anew for every number, since the store may have another idea of them."""
        for cache in (self._queues, self._queue_names, self._tasks, self._task_names):
            cache.clear()

    async def _fetch(self, db: Any, statement: str, *values: Any) -> Iterable[Any]:
        read = self._database.read if db is None else db.fetch
        rows: Iterable[Any] = await read(statement, *values)
        return rows

    def _bound(self) -> None:
        if len(self._queues) + len(self._tasks) > _MOST:
            self.forget()

    def _learn(self, kind: int, number: int, label: str) -> None:
        numbers, names = (
            (self._tasks, self._task_names) if kind else (self._queues, self._queue_names)
        )
        numbers[label] = number
        names[number] = label

    def queue(self, number: int) -> str:
        """Return the name of a queue that was numbered or learned."""
        return self._queue_names[number]

    def task(self, number: int) -> str:
        """Return the name of a task that was numbered or learned."""
        return self._task_names[number]
