"""The part of the contract about users' transactions that takes processes, proven on storages.

Each is the SQLite storage with one fault that shows only between processes, or when one ends.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import ClassVar

import msgspec
import pytest

from plugq.protocols import NewJob, PluginContext, Storage, SubmitReply, SubmitStatus
from plugq.testing import MissingCapability, StorageContract, UserTransaction
from plugq.testing.contract.commits import Commits, LostTransactions
from plugq_sqlite import SqliteOptions, SqliteStorage

replace = msgspec.structs.replace

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")


class CommitsForItsUser(SqliteStorage):
    """It commits the transaction of its user."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        replies = await super().submit_within(connection, jobs)
        assert isinstance(connection, sqlite3.Connection)
        connection.commit()
        return replies


class WritesForItself(SqliteStorage):
    """It submits with its own connection, whatever becomes of the transaction."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        return await self.submit(jobs)


class RollsBackForItsUser(SqliteStorage):
    """What it has answered for is gone at the commit."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        replies = await super().submit_within(connection, jobs)
        assert isinstance(connection, sqlite3.Connection)
        connection.rollback()
        return replies


class AcceptsFromEverybody(SqliteStorage):
    """Who submits in a transaction what is there is told that it was accepted."""

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        replies = await super().submit_within(connection, jobs)
        return [replace(reply, status=SubmitStatus.ACCEPTED) for reply in replies]


class Home(StorageContract):
    """The contract for one class of storage."""

    broken: ClassVar[type[SqliteStorage]] = SqliteStorage
    patience: ClassVar[float] = 0.5
    writers_wait: ClassVar[bool] = True

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = self.broken(SqliteOptions(path="jobs.db"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    def transactions(
        self, context: PluginContext
    ) -> Sequence[Callable[[], AbstractAsyncContextManager[UserTransaction]]]:
        @asynccontextmanager
        async def plain() -> AsyncIterator[UserTransaction]:
            with closing(sqlite3.connect(context.base_dir / "jobs.db")) as db:

                async def commit() -> None:
                    db.commit()

                async def rollback() -> None:
                    db.rollback()

                yield UserTransaction(db, commit, rollback)

        return [plain]


class Committing(Home):
    broken: ClassVar[type[SqliteStorage]] = CommitsForItsUser


class Selfish(Home):
    broken: ClassVar[type[SqliteStorage]] = WritesForItself


class Losing(Home):
    broken: ClassVar[type[SqliteStorage]] = RollsBackForItsUser


class Accepting(Home):
    broken: ClassVar[type[SqliteStorage]] = AcceptsFromEverybody


class SaysThatNobodyWaits(Home):
    """Its author does not say that all who write wait for an open transaction."""

    writers_wait: ClassVar[bool] = False


CAUGHT_BY: dict[type[Home], tuple[str, ...]] = {
    Committing: (
        "test_a_process_that_dies_before_its_commit_leaves_nothing",
        "test_a_worker_elsewhere_runs_what_is_committed",
    ),
    Selfish: (
        "test_a_process_that_dies_before_its_commit_leaves_nothing",
        "test_a_worker_elsewhere_runs_what_is_committed",
    ),
    Losing: (
        "test_a_process_that_dies_after_its_commit_leaves_its_jobs",
        "test_a_worker_elsewhere_runs_what_is_committed",
    ),
    Accepting: ("test_of_several_who_submit_the_same_in_transactions_one_counts",),
    SaysThatNobodyWaits: ("test_an_open_transaction_stops_no_other_where_it_need_not",),
}
CASES = [
    pytest.param(home, name, id=f"{home.__name__}-{name}")
    for home, names in CAUGHT_BY.items()
    for name in names
]


@pytest.mark.parametrize(("home", "name"), CASES)
def test_a_storage_that_breaks_a_transaction_is_caught(home: type[Home], name: str) -> None:
    with pytest.raises(Exception) as caught, asyncio.Runner() as runner:  # noqa: PT011
        runner.run(getattr(home(), name)())
    assert not isinstance(caught.value, MissingCapability)
    assert "hangs" not in str(caught.value)


def test_every_test_that_takes_processes_has_caught_something() -> None:
    names = {name for part in (Commits, LostTransactions) for name in vars(part)}
    caught = {name for names in CAUGHT_BY.values() for name in names}
    # What takes two open transactions at once is tried on the storage in memory.
    several = {name for name in names if name.startswith("test_") and "two_open" not in name}
    assert several - caught == {"test_what_was_accepted_finds_its_place_after_the_commit"}
