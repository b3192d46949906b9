"""What is said by NOTIFY: packets of any size, and resyncs where there is none of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest

from plugq.events import EventKind, JobEvent
from plugq.job import JobRef
from plugq.protocols import CancelAsked, ClaimRequest, Finished, NewJob, Notice, Resync, Wake
from plugq_postgres import PostgresStorage
from plugq_postgres._packets import Parts, letters, read_letter, read_told, told

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]


def joined(payloads: list[str]) -> list[str]:
    parts = Parts()
    assert all(len(payload) < 8_000 for payload in payloads)
    return [whole for payload in payloads if (whole := parts.take(payload)) is not None]


@pytest.mark.parametrize("count", [1, 100, 1_000])
def test_notices_travel_whole(count: int) -> None:
    refs = tuple(JobRef("queue \0", f"id-{number}-ü") for number in range(count))
    said: list[Notice] = [Wake(), Finished(refs), CancelAsked(refs)]
    found = [letter for one in joined(letters("peer \0", said)) if (letter := read_letter(one))]
    assert {peer for peer, _ in found} == {"peer \0"}
    heard = [notice for _, notices in found for notice in notices]
    for kind in (Finished, CancelAsked):
        got = [ref for notice in heard if isinstance(notice, kind) for ref in notice.refs]
        assert got == list(refs)
    assert Wake() in heard


def test_too_many_notices_are_a_resync() -> None:
    refs = tuple(JobRef("q", f"{number:0100}") for number in range(10_000))
    (one,) = joined(letters("p", [Finished(refs)]))
    assert read_letter(one) == ("p", [Resync()])


def test_an_event_of_any_size_is_told_or_stood_for() -> None:
    events = [
        JobEvent(kind=EventKind.FAILED, at=1.0, queue="q", id="a", message="x" * size)
        for size in (10, 9_000, 1_000_000)
    ]
    events.append(JobEvent(kind=EventKind.FAILED, at=1.0, queue="q", id="i" * 1_000_000))
    heard = [read_told(one) for one in joined(told(events))]
    assert [event.id for events in heard for event in events] == ["a", "a", "a"]
    assert () in [tuple(events) for events in heard]


def test_what_is_no_packet_is_no_harm() -> None:
    for payload in ("", "ü", "AAAA", "not base64"):
        assert read_letter(payload) is None
        assert read_told(payload) == ()


async def test_behind_a_pooler_a_watch_looks_again(
    open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    async with open_store(pooler=True) as storage:
        watch, listening = storage.watch("p"), storage.listen()
        for _ in range(2):
            assert isinstance(await anext(watch), Resync)
            assert isinstance(await anext(listening), Resync)
        await storage.submit([new_job("a", origin="p")])
        await watch.aclose()
        await listening.aclose()


async def test_past_a_pooler_a_watch_is_woken(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    async with open_store(pooler=True, listen_url=server_url) as storage:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        await storage.claim(claim(1, peer="p"))
        await storage.submit([new_job("a")])
        assert isinstance(await anext(watch), Wake)
        await watch.aclose()


async def test_a_lost_connection_is_made_again_and_said(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage:
            watch, listening = storage.watch("p"), storage.listen()
            assert isinstance(await anext(watch), Resync)
            assert isinstance(await anext(listening), Resync)
            await db.execute("SELECT pg_terminate_backend($1)", storage._hub._pid)
            assert isinstance(await anext(watch), Resync)
            assert isinstance(await anext(listening), Resync)
            await storage.claim(claim(1, peer="p"))
            await storage.submit([new_job("a")])
            assert isinstance(await anext(watch), Wake)
            await asyncio.gather(watch.aclose(), listening.aclose())
    finally:
        await db.close()
