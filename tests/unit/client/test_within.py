"""A client that submits in a transaction of the user's own: what it asks for, and once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

import plugq
from plugq.assembly import Assembly
from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.job import JobState
from plugq.protocols import (
    Capability,
    NewJob,
    PluginContext,
    Storage,
    SubmitReply,
    SubmitStatus,
)
from plugq.protocols.transactions import TransactionalStorage


class Noting(MemoryStorage):
    """Notes what is submitted in a transaction, and answers as it is told."""

    capabilities = MemoryStorage.capabilities | {Capability.TRANSACTIONAL_SUBMIT}

    def __init__(self) -> None:
        super().__init__(MemoryOptions(), PluginContext())
        self.noted: list[tuple[object, tuple[str, ...]]] = []
        self.failure: Exception | None = None
        self.status = SubmitStatus.ACCEPTED
        self.hangs = False

    async def submit_within(
        self, connection: object, jobs: Sequence[NewJob]
    ) -> Sequence[SubmitReply]:
        self.noted.append((connection, tuple(job.id for job in jobs)))
        if self.failure is not None:
            raise self.failure
        if self.hangs:
            await asyncio.Event().wait()
        return [SubmitReply(self.status, job.id, JobState.QUEUED) for job in jobs]


#: Type checkers see that it is one.
STORAGE: type[TransactionalStorage] = Noting


def client_of(storage: Storage, **settings: object) -> plugq.Client:
    return Assembly({"client": settings}, storage=storage).client()


async def test_jobs_go_to_the_connection_that_is_given() -> None:
    storage, connection = Noting(), object()
    async with client_of(storage) as client:
        handle = await client.submit(plugq.job("t"), id="a", connection=connection)
        assert (handle.id, handle.queue, handle.outcome) == ("a", "default", "accepted")
        storage.status = SubmitStatus.DUPLICATE
        requests = [plugq.job("t").options(id=f"b{number}") for number in range(1500)]
        handles = await client.submit_many(requests, connection=connection)
        assert {handle.outcome for handle in handles} == {"duplicate"}
        assert (await client.stats()).counts.get("queued", 0) == 0
        await client.submit(plugq.job("t"), connection=None)
        assert (await client.stats()).counts["queued"] == 1
    assert {noted for noted, _ in storage.noted} == {connection}
    # What is refused leaves the transaction as it was, so many are one call, too.
    assert [len(ids) for _, ids in storage.noted] == [1, 1500]


async def test_a_storage_without_transactions_says_so() -> None:
    async with Assembly({}).client() as client:
        with pytest.raises(plugq.ConfigError, match="declares transactional_submit") as caught:
            await client.submit(plugq.job("t"), connection=object())
        assert str(caught.value).startswith("connection: MemoryStorage can not submit inside")
        with pytest.raises(plugq.ConfigError):
            await client.submit_many([plugq.job("t")], connection=object())
        assert (await client.stats()).counts.get("queued", 0) == 0


async def test_nobody_waits_for_a_job_that_can_not_start() -> None:
    storage = Noting()
    async with client_of(storage) as client:
        with pytest.raises(plugq.InvalidJob, match="use submit"):
            await client.call(plugq.job("t"), connection=object())  # type: ignore[call-arg]
        with pytest.raises(plugq.InvalidJob, match="give it to submit"):
            plugq.job("t").options(connection=object())  # type: ignore[call-arg]
    assert storage.noted == []


@pytest.mark.parametrize(
    "failure", [plugq.Unavailable("no"), plugq.OutcomeUnknown("perhaps"), plugq.InvalidJob("no")]
)
async def test_a_call_in_a_transaction_is_made_once(failure: plugq.PlugqError) -> None:
    storage = Noting()
    storage.failure = failure
    async with client_of(storage) as client:
        with pytest.raises(type(failure)):
            await client.submit(plugq.job("t"), connection=object())
    assert len(storage.noted) == 1


async def test_a_call_in_a_transaction_ends_in_time() -> None:
    storage = Noting()
    storage.hangs = True
    async with client_of(storage, deadline=0.05) as client:
        with pytest.raises(plugq.OutcomeUnknown, match="roll your transaction back") as caught:
            await client.submit(plugq.job("t"), id="a", connection=object())
    assert caught.value.ids == ("a",)


async def test_a_full_queue_says_so_in_a_transaction() -> None:
    storage = Noting()
    async with client_of(storage) as client:
        for status in (SubmitStatus.FULL, SubmitStatus.DRAINING):
            storage.status = status
            with pytest.raises(plugq.QueueFull) as caught:
                await client.submit(plugq.job("t"), queue="q", connection=object())
            assert caught.value.queue == "q"


async def test_nothing_is_told_of_what_may_not_commit() -> None:
    storage = Noting()
    async with client_of(storage) as client, client.events(["submitted", "duplicate"]) as events:
        await client.submit(plugq.job("t"), id="gone", connection=object())
        await client.submit(plugq.job("t"), id="told")
        async for event in events:
            if isinstance(event, plugq.JobEvent):
                assert event.id == "told"
                break


async def test_a_client_that_is_not_started_submits_nothing() -> None:
    storage = Noting()
    with pytest.raises(plugq.Unavailable, match="not started"):
        await client_of(storage).submit(plugq.job("t"), connection=object())
    assert storage.noted == []


async def test_handles_of_a_job_that_did_not_commit_find_nothing() -> None:
    async with client_of(Noting()) as client:
        handle = await client.submit(plugq.job("t"), connection=object())
        with pytest.raises(plugq.JobNotFound):
            await handle.result()
