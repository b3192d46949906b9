"""The part of the storage contract that is about processes, proven on storages that break there.

Each is the SQLite storage with one fault that shows only between processes, or when one ends.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import ClassVar

import msgspec
import pytest

from plugq.errors import Unavailable
from plugq.job import JobState
from plugq.protocols import (
    ClaimReply,
    ClaimRequest,
    NewJob,
    PluginContext,
    RegisterChange,
    Storage,
    SubmitReply,
    SubmitStatus,
    Swapped,
)
from plugq.testing import StorageContract
from plugq.testing.contract.processes import Processes
from plugq_sqlite import SqliteOptions, SqliteStorage

replace = msgspec.structs.replace

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs unix sockets")


class AnswersBeforeItStores(SqliteStorage):
    """A submission is acknowledged, and written a little later."""

    _late: ClassVar[set[asyncio.Task[object]]] = set()

    async def submit(self, jobs: Sequence[NewJob]) -> Sequence[SubmitReply]:
        task = asyncio.create_task(self._later(jobs))
        self._late.add(task)
        task.add_done_callback(self._late.discard)
        return [SubmitReply(SubmitStatus.ACCEPTED, job.id, JobState.QUEUED) for job in jobs]

    async def _later(self, jobs: Sequence[NewJob]) -> None:
        await asyncio.sleep(0.01)
        await super().submit(jobs)


class MakesTheFileTwice(SqliteStorage):
    """Whoever finds no file makes a new one, after a while."""

    async def start(self) -> None:
        new = not self._path.exists()
        await asyncio.sleep(0.05)
        if new and not self._path.parent.joinpath("made").exists():
            self._path.parent.joinpath("made").touch()
        elif new:
            raise Unavailable("somebody else is making the file")
        await super().start()


class LosesWritesOfOthers(SqliteStorage):
    """A register is written whatever another process has written meanwhile."""

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped:
        now = await self.load([change.key for change in changes])
        swapped = await super().swap(
            [
                replace(change, expect=0 if register is None else register.version)
                for change, register in zip(changes, now.registers, strict=True)
            ]
        )
        return replace(swapped, done=True) if all(swapped.registers) else swapped


class KnowsNobodyIdle(SqliteStorage):
    """A wake-up that did not reach the first peer reaches none."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        return await super().claim(replace(request, peer=""))


class Home(StorageContract):
    """The contract for one class of storage."""

    broken: ClassVar[type[SqliteStorage]] = SqliteStorage
    patience: ClassVar[float] = 0.5

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = self.broken(SqliteOptions(path="jobs.db"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


class EarlyAnswers(Home):
    broken: ClassVar[type[SqliteStorage]] = AnswersBeforeItStores


class FileTwice(Home):
    broken: ClassVar[type[SqliteStorage]] = MakesTheFileTwice


class LostWrites(Home):
    broken: ClassVar[type[SqliteStorage]] = LosesWritesOfOthers


class NobodyIdle(Home):
    broken: ClassVar[type[SqliteStorage]] = KnowsNobodyIdle


CAUGHT_BY: dict[type[Home], str] = {
    EarlyAnswers: "test_what_a_process_was_told_outlives_its_sudden_end",
    FileTwice: "test_a_new_store_may_be_opened_by_several_at_once",
    LostWrites: "test_a_number_in_a_register_loses_no_addition",
    NobodyIdle: "test_a_killed_process_is_woken_in_place_of_no_other_for_long",
}


def run(home: type[Home], name: str) -> Exception | None:
    """Run one contract test and return what it failed with."""
    try:
        with asyncio.Runner() as runner:
            runner.run(getattr(home(), name)())
    except Exception as error:  # noqa: BLE001 - a broken storage may fail a test in any way
        return error
    return None


@pytest.mark.parametrize(("home", "name"), CAUGHT_BY.items())
def test_a_storage_that_breaks_between_processes_is_caught(home: type[Home], name: str) -> None:
    error = run(home, name)
    assert error is not None
    assert "hangs" not in str(error)


def test_every_test_of_processes_has_caught_something() -> None:
    tests = {name for name in vars(Processes) if name.startswith("test_")}
    assert tests <= set(CAUGHT_BY.values())
