"""What the tests of the SQLite storage share: an open store and jobs to put into it."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from plugq.job import Outcome
from plugq.protocols import ClaimRequest, Lease, NewJob, PluginContext, Settlement
from plugq_sqlite import SqliteOptions, SqliteStorage


@pytest.fixture
def open_store(tmp_path: Path) -> Callable[..., AbstractAsyncContextManager[SqliteStorage]]:
    @asynccontextmanager
    async def open_(**options: Any) -> AsyncIterator[SqliteStorage]:
        storage = SqliteStorage(
            SqliteOptions(path="jobs.db", **options),
            PluginContext(base_dir=tmp_path),
        )
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    return open_


@pytest.fixture
def new_job() -> Callable[..., NewJob]:
    def make(id: str | None = None, **fields: Any) -> NewJob:
        fields = {"queue": "q", "task": "t", "body": b"{}", **fields}
        return NewJob(id=id or str(uuid.uuid4()), submission=os.urandom(16), **fields)

    return make


@pytest.fixture
def claim() -> Callable[..., ClaimRequest]:
    numbers = iter(range(1, 1_000_000))

    def make(limit: int, worker: str = "w", **fields: Any) -> ClaimRequest:
        fields = {"queues": ("q",), **fields}
        return ClaimRequest(worker=worker, number=next(numbers), limit=limit, **fields)

    return make


@pytest.fixture
def succeed() -> Callable[[Sequence[Lease]], list[Settlement]]:
    def make(leases: Sequence[Lease]) -> list[Settlement]:
        return [
            Settlement(
                queue=lease.queue,
                id=lease.id,
                token=lease.token,
                outcome=Outcome.SUCCEED,
                result=b"null",
            )
            for lease in leases
        ]

    return make
