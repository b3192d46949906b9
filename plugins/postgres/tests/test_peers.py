"""Who is known to listen, whatever happens to rows, numbers and sessions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest

from plugq.errors import PlugqError, Unavailable
from plugq.events import EventKind, JobEvent
from plugq.job import JobRef
from plugq.protocols import ClaimRequest, NewJob, Resync, SweepRequest, Wake
from plugq.protocols.edits import Configure, Pause, QueueSettings
from plugq.protocols.storage import Happened, Notice, RegisterChange
from plugq_postgres import PostgresStorage, _hub
from plugq_postgres._packets import letters

Open = Callable[..., AbstractAsyncContextManager[PostgresStorage]]


async def _hears(stream: object, kind: type[Notice | Happened]) -> None:
    while not isinstance(await anext(stream), kind):  # type: ignore[call-overload]
        pass


async def _peers(db: asyncpg.Connection, storage: PostgresStorage) -> set[bytes]:
    rows = await db.fetch(
        "SELECT name FROM plugq.peer WHERE namespace = $1", storage._database.namespace
    )
    return {row["name"] for row in rows}


async def test_a_peer_that_was_taken_off_the_list_comes_back(
    monkeypatch: pytest.MonkeyPatch,
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    monkeypatch.setattr(_hub, "_LOOK_EVERY", 0.05)
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage, open_store() as other:
            watch, listening = storage.watch("p"), storage.listen()
            assert isinstance(await anext(watch), Resync)
            assert isinstance(await anext(listening), Resync)
            for table in ("peer", "listener"):
                await db.execute(
                    f"DELETE FROM plugq.{table} WHERE namespace = $1", storage._database.namespace
                )
            await _hears(watch, Resync)
            await _hears(listening, Resync)
            await storage.claim(claim(1, peer="p"))
            await other.submit([new_job("a")])
            await _hears(watch, Wake)
            other.tell([JobEvent(kind=EventKind.STARTED, at=1.0, queue="q", id="a")])
            await _hears(listening, Happened)
            await asyncio.gather(watch.aclose(), listening.aclose())
    finally:
        await db.close()


async def test_a_peer_that_another_process_watches_now_is_left_to_it(
    server_url: str, open_store: Open
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as first, open_store() as second:
            old, new = first.watch("p"), second.watch("p")
            assert isinstance(await anext(old), Resync)
            assert isinstance(await anext(new), Resync)
            connection = first._hub._db
            assert connection is not None
            await first._hub._look(connection)
            channel = await db.fetchval(
                "SELECT channel FROM plugq.peer WHERE namespace = $1", first._database.namespace
            )
            assert channel == second._hub._channel
            await asyncio.gather(old.aclose(), new.aclose())
    finally:
        await db.close()


async def test_the_session_is_known_by_the_number_that_the_server_gives_it(
    monkeypatch: pytest.MonkeyPatch,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    """A pooler tells its clients another one."""
    monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda _: -1345800414)
    async with open_store() as storage:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        await storage.claim(claim(1, peer="p"))
        await storage.sweep(SweepRequest())
        await storage.submit([new_job("a")])
        await _hears(watch, Wake)
        await watch.aclose()


async def test_a_session_that_has_the_number_of_a_dead_one_is_not_taken_for_it(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage:
            watch = storage.watch("p")
            assert isinstance(await anext(watch), Resync)
            await storage.claim(claim(1, peer="p"))
            await db.execute(
                "INSERT INTO plugq.peer SELECT namespace, 'dead', 'nowhere', pg_backend_pid(), "
                "'2020-01-01', queues, since + 1 FROM plugq.peer WHERE namespace = $1",
                storage._database.namespace,
            )
            await storage.submit([new_job("a")])
            await _hears(watch, Wake)
            await storage.sweep(SweepRequest())
            assert await _peers(db, storage) == {b"p"}
            await watch.aclose()
    finally:
        await db.close()


async def test_a_peer_that_comes_back_during_a_sweep_stays_known(
    server_url: str, open_store: Open
) -> None:
    """The sweep has found its row to be dead, and waits for another row of a dead one."""
    db = await asyncpg.connect(server_url)
    sweeping = await asyncpg.connect(server_url)
    looking = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage:
            number = storage._database.namespace
            for name in (b"a", b"p"):
                await db.execute(
                    "INSERT INTO plugq.peer VALUES ($1, $2, 'nowhere', 99999999, now())",
                    number,
                    name,
                )
            async with db.transaction():
                await db.execute("SELECT 1 FROM plugq.peer WHERE name = 'a' FOR UPDATE")
                await sweeping.execute("SET search_path = plugq")
                sweep = asyncio.create_task(sweeping.execute("SELECT forget_dead_v1($1)", number))
                while not await looking.fetchval(
                    "SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = $1 "
                    "AND wait_event_type = 'Lock')",
                    sweeping.get_server_pid(),
                ):
                    await asyncio.sleep(0)
                watch = storage.watch("p")
                assert isinstance(await anext(watch), Resync)
            await sweep
            assert await _peers(db, storage) == {b"p"}
            await watch.aclose()
    finally:
        for one in (db, sweeping, looking):
            await one.close()


async def test_a_namespace_that_has_another_number_is_followed(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    """As after a restore: by those who write, who only watch, and who only look."""
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as watching, open_store() as maintaining, open_store() as other:
            watch = watching.watch("p")
            assert isinstance(await anext(watch), Resync)
            await db.execute(
                "DELETE FROM plugq.namespace WHERE id = $1", watching._database.namespace
            )
            for read in (
                maintaining.sweep(SweepRequest()),
                other.scan(""),
                watching.claim(claim(1, peer="p")),
            ):
                with pytest.raises(Unavailable, match="try again"):
                    await read
            assert (await other.swap([RegisterChange(key="k", expect=0, value=b"v")])).done
            assert [one.key for one in await maintaining.scan("")] == ["k"]
            await _hears(watch, Resync)
            await watching.claim(claim(1, peer="p"))
            await other.submit([new_job("a")])
            await _hears(watch, Wake)
            assert await maintaining.get([JobRef("q", "a")]) != [None]
            await watch.aclose()
    finally:
        await db.close()


@pytest.mark.parametrize("verb", ["get", "load", "scan", "batches", "stats", "sweep", "claim"])
async def test_a_read_under_a_number_that_is_lost_says_so(
    server_url: str,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
    verb: str,
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store(namespace=uuid.uuid4().hex) as storage:
            await storage.submit([new_job("a")])
            await storage.claim(claim(1))
            await db.execute(
                "DELETE FROM plugq.namespace WHERE id = $1", storage._database.namespace
            )
            arguments = {
                "get": ([JobRef("q", "a")],),
                "stats": (),
                "scan": ("",),
                "sweep": (SweepRequest(),),
                "claim": (claim(1),),
            }.get(verb, (["k"],))
            with pytest.raises(Unavailable, match="try again"):
                await getattr(storage, verb)(*arguments)
            await getattr(storage, verb)(*arguments)
    finally:
        await db.close()


async def test_a_resync_stands_for_letters_that_could_not_be_sent(
    monkeypatch: pytest.MonkeyPatch,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    async with open_store() as storage, open_store() as other:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        await storage.claim(claim(1, peer="p"))
        with monkeypatch.context() as broken:
            broken.setattr(_hub, "_SEND", "SELECT 1 / 0 FROM unnest($1::text[], $2::text[])")
            await other.submit([new_job("a")])
            while not other._hub._unsent:
                await asyncio.sleep(0)
        assert isinstance(await anext(watch), Resync)
        await watch.aclose()


async def test_a_sweep_wakes_whoever_was_never_told(
    monkeypatch: pytest.MonkeyPatch,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
) -> None:
    """Its waker died between the commit and the notice."""
    async with open_store() as storage, open_store() as dying:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        await storage.claim(claim(1, peer="p"))
        monkeypatch.setattr(dying._hub, "heed", lambda _: None)
        await dying.submit([new_job("a")])
        waking = asyncio.ensure_future(anext(watch))
        while not waking.done():
            await storage.sweep(SweepRequest())
        assert isinstance(await waking, Wake)
        await watch.aclose()


async def test_a_letter_of_another_version_is_a_resync(
    server_url: str, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = await asyncpg.connect(server_url)
    try:
        async with open_store() as storage:
            watch = storage.watch("p")
            assert isinstance(await anext(watch), Resync)
            with monkeypatch.context() as newer:
                newer.setattr("plugq_postgres._packets._VERSION", 2)
                (letter,) = letters("p", [Wake()])
            await db.execute("SELECT pg_notify($1, $2)", storage._hub._channel, letter)
            assert isinstance(await anext(watch), Resync)
            await watch.aclose()
    finally:
        await db.close()


@pytest.mark.parametrize("why", ["paused", "full"])
async def test_a_sweep_locks_nothing_where_nobody_can_be_woken(
    monkeypatch: pytest.MonkeyPatch,
    open_store: Open,
    new_job: Callable[..., NewJob],
    claim: Callable[..., ClaimRequest],
    why: str,
) -> None:
    async with open_store() as storage:
        watch = storage.watch("p")
        assert isinstance(await anext(watch), Resync)
        await storage.edit(Configure((QueueSettings(queue="q", max_running=1),)))
        await storage.submit([new_job("a"), new_job("b")])
        await storage.claim(claim(1))
        if why == "paused":
            await storage.edit(Pause(("q",)))
        await storage.claim(claim(1, peer="p"))

        async def refuse(*_: object, **__: object) -> None:
            message = "it is no sweep that only looks"
            raise PlugqError(message)

        monkeypatch.setattr(storage._database, "transact", refuse)
        assert (await storage.sweep(SweepRequest())).changes == ()
        await watch.aclose()


async def test_submissions_that_are_cancelled_leave_nothing_behind(
    open_store: Open, new_job: Callable[..., NewJob]
) -> None:
    async with open_store() as storage:
        calls = [asyncio.create_task(storage.submit([new_job(queue=str(n))])) for n in range(20)]
        await asyncio.sleep(0)
        assert storage._submissions
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await storage.submit([new_job()])
        while storage._database._tasks:
            await asyncio.wait(set(storage._database._tasks))
        assert not storage._submissions
