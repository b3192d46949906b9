"""Queues that somebody holds for long: they are passed over, so that the others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from plugq_postgres._database import Database

#: So many calls pass such a queue over, then one waits for it again: it may be busy, not held.
_PASSED = 8


class Held:
    """The queues that were found to be held up, and how often each was passed over since."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._passed: dict[int, int] = {}

    @property
    def known(self) -> list[int]:
        """The queues that were held up when somebody last looked."""
        return list(self._passed)

    def note(self, queues: Collection[int]) -> None:
        """Pass these queues over for now."""
        for queue in queues:
            self._passed.setdefault(queue, 0)

    async def free(self, queues: Collection[int]) -> set[int]:
        """Return those of the queues that nobody holds at this moment."""
        rows = await self.database.read(
            f"SELECT id FROM {self.database.schema}.queue WHERE id = ANY ($1) "  # noqa: S608 - a quoted name
            "FOR NO KEY UPDATE SKIP LOCKED",
            list(queues),
        )
        return {row["id"] for row in rows}

    async def among(self, queues: Collection[int]) -> list[int]:
        """Return those of the queues that a call should try; no other one is known to be held up.

        Raises:
            Unavailable: the server can not be reached.
        """
        known = {queue for queue in queues if queue in self._passed}
        if not known:
            return list(queues)
        free = await self.free(known)
        for queue in known:
            passed = self._passed.pop(queue, 0)
            if queue not in free and passed < _PASSED:
                self._passed[queue] = passed + 1
        return [queue for queue in queues if queue not in self._passed]
