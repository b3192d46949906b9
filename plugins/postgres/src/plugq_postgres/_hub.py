"""The connection that listens, and the notices that go out after a commit.

One channel is this process's own; another one, of the namespace, carries events. When the
connection is lost, whoever watches or listens is told to look again once there is a new one.
What is to be told is collected while a NOTIFY is under way and goes out with the next: one
statement for all of it, never one for each job, and never on the way of a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from plugq.errors import PlugqError, Unavailable
from plugq.job import JobRef
from plugq.lifecycle import cancel_and_wait
from plugq.protocols.storage import BACKLOG, CancelAsked, Finished, Resync, Wake
from plugq_postgres._faults import fault
from plugq_postgres._packets import EVERYBODY, Parts, letters, read_letter, read_told, resync, told

if TYPE_CHECKING:
    import logging
    from collections.abc import Sequence
    from datetime import datetime

    from plugq.events import JobEvent
    from plugq.protocols.storage import Notice
    from plugq_postgres._database import Database
    from plugq_postgres._names import Names
    from plugq_postgres._options import PostgresOptions
    from plugq_postgres._receivers import Listener, Receiver, Watch

#: The pauses between two tries to connect again, in seconds.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 2.0
#: How often the connection is looked at, since one whose server is gone may say nothing.
_LOOK_EVERY = 10.0
#: Seconds between two resyncs where a pooler bars the way of notifications.
_POLL = 1.0
#: How long stop() tries to tell what is left to tell, in seconds.
_PARTING = 1.0

#: Whether this is the session that listens, the number of the namespace, and who is not known.
#: A peer that another process watches now is that one's.
_LOOK = """
    SELECT pg_backend_pid() AS pid,
        (SELECT id FROM {schema}.namespace WHERE name = $1) AS namespace,
        ARRAY(SELECT n FROM unnest($3::bytea[]) AS n WHERE NOT EXISTS (
            SELECT 1 FROM {schema}.peer p WHERE p.namespace = $2 AND p.name = n
                AND (p.channel <> $4 OR p.pid = $5 AND p.started = $6)
        )) AS peers,
        NOT EXISTS (SELECT 1 FROM {schema}.listener l WHERE l.namespace = $2 AND l.channel = $4
            AND l.pid = $5 AND l.started = $6) AS deaf
"""
#: A pooler makes up the number that it tells its clients; the server's own is looked up.
_SESSION = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
#: What is said is a hint: nobody waits until the disk has it.
_SEND = (
    "WITH s AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS off) "
    "SELECT pg_notify(c, p), s.off FROM s, unnest($1::text[], $2::text[]) AS n (c, p)"
)


class Hub:
    """Sends and hears notices, from :meth:`start` to :meth:`stop`."""

    def __init__(
        self,
        options: PostgresOptions,
        database: Database,
        names: Names,
        namespace: str,
        logger: logging.Logger,
    ) -> None:
        self._options = options
        self._database = database
        self._names = names
        self._logger = logger
        self._namespace = namespace.encode()
        self._channel = f"plugq_{secrets.token_hex(12)}"
        mark = hashlib.sha256(f"{options.schema}\0{namespace}".encode()).hexdigest()[:24]
        self._events_channel = f"plugq_events_{mark}"
        self._watches: dict[str, Watch] = {}
        self._listeners: set[Listener] = set()
        self._db: asyncpg.Connection | None = None
        #: The server's process that listens, and when it started.
        self._pid = 0
        self._started: datetime | None = None
        self._doubt = asyncio.Event()
        self._tried = asyncio.Event()
        self._failure: PlugqError | None = None
        self._loop: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None] | None = None
        self._mail: list[Sequence[Any]] = []
        self._told: list[JobEvent] = []
        self._told_too_much = False
        #: Channels whose letters could not be sent: a resync stands for them.
        self._unsent: set[str] = set()
        self._turn = asyncio.Lock()
        self._open = False
        self._letter_parts, self._event_parts = Parts(), Parts()
        #: Whether anybody may be listening, as of the last write.
        self.listened = False

    @property
    def _polls(self) -> bool:
        return self._options.pooler and self._options.listen_url is None

    def start(self) -> None:
        """Begin to serve; the connection is made when somebody watches or listens."""
        self._open = True

    async def stop(self) -> None:
        """Tell what is left to tell, end every watch and close the connection."""
        self._open = False
        self._tried.set()
        sender = self._sender
        if sender is not None:
            await asyncio.wait([sender], timeout=_PARTING)
        receivers: list[Receiver[Any]] = [*self._watches.values(), *self._listeners]
        known = bool(receivers)
        for receiver in receivers:
            receiver.shut()
        self._watches.clear()
        self._listeners.clear()
        if known:
            with contextlib.suppress(PlugqError):
                await self._forget_all()
        tasks = [task for task in (self._sender, self._loop) if task is not None]
        await cancel_and_wait(tasks)
        self._sender = self._loop = None
        db, self._db = self._db, None
        if db is not None:
            await _close(db)
        self._mail.clear()
        self._told.clear()
        self._unsent.clear()

    async def _forget_all(self) -> None:
        schema = self._database.schema
        await self._database.write(
            f"WITH p AS (DELETE FROM {schema}.peer WHERE namespace = $1 AND channel = $2) "  # noqa: S608 - a quoted name
            f"DELETE FROM {schema}.listener WHERE namespace = $1 AND channel = $2",
            self._database.namespace,
            self._channel,
        )

    # What is heard.

    async def enter_watch(self, watch: Watch) -> None:
        """Make a peer known to the other processes."""
        await self._connected()
        async with self._turn:
            self._check_open()
            self._watches[watch.peer] = watch
            try:
                await self._know_peers([watch.peer])
            except BaseException:
                if self._watches.get(watch.peer) is watch:
                    del self._watches[watch.peer]
                raise

    async def leave_watch(self, watch: Watch) -> None:
        """Take back that a peer is known."""
        if self._watches.get(watch.peer) is not watch:
            return
        del self._watches[watch.peer]
        # One that can not be taken off the list is found to be gone when it is to be woken.
        with contextlib.suppress(PlugqError):
            async with self._turn:
                await self._database.write(
                    f"DELETE FROM {self._database.schema}.peer "  # noqa: S608 - a quoted name
                    "WHERE namespace = $1 AND name = $2 AND channel = $3",
                    self._database.namespace,
                    watch.peer.encode(),
                    self._channel,
                )

    async def enter_listener(self, listener: Listener) -> None:
        """Let events be told, and hear them."""
        await self._connected()
        async with self._turn:
            self._check_open()
            self._listeners.add(listener)
            try:
                await self._know_listener()
            except BaseException:
                self._listeners.discard(listener)
                raise

    async def leave_listener(self, listener: Listener) -> None:
        """Hear no more events; with the last one here this process listens no longer."""
        if listener not in self._listeners:
            return
        self._listeners.discard(listener)
        if not self._listeners:
            with contextlib.suppress(PlugqError):
                async with self._turn:
                    await self._database.write(
                        f"DELETE FROM {self._database.schema}.listener "  # noqa: S608 - a quoted name
                        "WHERE namespace = $1 AND channel = $2",
                        self._database.namespace,
                        self._channel,
                    )

    async def _know_peers(self, peers: Sequence[str]) -> None:
        if self._polls:
            # Nothing would reach them, and nobody could see that they are gone.
            return
        await self._database.write(
            f"INSERT INTO {self._database.schema}.peer (namespace, name, channel, pid, started) "  # noqa: S608 - a quoted name
            "SELECT $1, p, $3, $4, $5 FROM unnest($2::bytea[]) AS p "
            "ON CONFLICT (namespace, name) DO UPDATE SET channel = $3, pid = $4, started = $5, "
            "queues = '{}', since = 0, woken = 0",
            self._database.namespace,
            sorted(peer.encode() for peer in peers),
            self._channel,
            self._pid,
            self._started,
        )

    async def _know_listener(self) -> None:
        if self._polls:
            return
        await self._database.write(
            f"INSERT INTO {self._database.schema}.listener VALUES ($1, $2, $3, $4) "  # noqa: S608 - a quoted name
            "ON CONFLICT (namespace, channel) DO UPDATE SET pid = $3, started = $4",
            self._database.namespace,
            self._channel,
            self._pid,
            self._started,
        )
        self.listened = True

    async def _connected(self) -> None:
        """Wait for the connection that listens.

        Raises:
            Unavailable: there is none yet, and why.
        """
        self._check_open()
        if self._loop is None or self._loop.done():
            self._loop = asyncio.create_task(self._keep_connected(), name="plugq-postgres-listen")
        if self._db is None and not self._polls:
            self._tried.clear()
            await self._tried.wait()
            self._check_open()
            if self._db is None:
                raise self._failure or Unavailable(f"{self._database.server} can not be reached")

    def _check_open(self) -> None:
        self._database.check_open()
        if not self._open:
            message = "the PostgreSQL storage is being stopped"
            raise Unavailable(message)

    async def _keep_connected(self) -> None:
        if self._polls:
            while True:
                await asyncio.sleep(_POLL * random.uniform(0.9, 1.1))  # noqa: S311 - jitter
                self._lose_all()
        pause = _FIRST_PAUSE
        while True:
            try:
                await self._listen_once()
            except Exception as error:  # noqa: BLE001 - whatever it is, it is tried again
                self._failure = _as_ours(fault(error, self._database.server))
                self._tried.set()
                self._logger.warning("listening failed, and is tried again: %s", self._failure)
            else:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _listen_once(self) -> None:
        """Connect, make everybody known again, and return when the connection is lost."""
        settings = self._database.settings()
        settings["dsn"] = self._options.listen_url or self._options.url
        settings["command_timeout"] = self._database.deadline
        db = await asyncpg.connect(**settings)
        self._letter_parts.clear()
        self._event_parts.clear()
        try:
            db.add_termination_listener(lambda _: self.look_soon())
            await db.add_listener(self._channel, self._hear_letter)
            await db.add_listener(self._events_channel, self._hear_events)
            self._pid, self._started = await db.fetchrow(_SESSION, timeout=_LOOK_EVERY)
            self._db = db
            await self._look(db)
            self._failure = None
            self._tried.set()
            self._lose_all()
            while not db.is_closed():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY):
                        await self._doubt.wait()
                self._doubt.clear()
                if not db.is_closed():
                    await self._look(db)
        finally:
            if self._db is db:
                self._db = None
            db.terminate()

    async def _look(self, db: asyncpg.Connection) -> None:
        """Make whoever is not known (any more) known again, and let him look again.

        Raises:
            Unavailable: what listens here is another session.
        """
        database = self._database
        async with self._turn:
            found = await db.fetchrow(
                _LOOK.format(schema=database.schema),
                self._namespace,
                database.namespace,
                [peer.encode() for peer in self._watches],
                self._channel,
                self._pid,
                self._started,
                timeout=_LOOK_EVERY,
            )
            if found["pid"] != self._pid:
                message = f"{database.server}: the session that listens has become another one"
                raise Unavailable(message)
            if found["namespace"] != database.namespace:
                # It looks again with the new number.
                await database.look_again(db)
                return
            watches = {name.decode(): self._watches.get(name.decode()) for name in found["peers"]}
            if watches:
                await self._know_peers(list(watches))
            if self._listeners and found["deaf"]:
                await self._know_listener()
                for listener in self._listeners:
                    listener.lose()
            for watch in watches.values():
                if watch is not None:
                    watch.lose()

    def look_soon(self) -> None:
        """See whether the others still know who watches and listens here."""
        self._doubt.set()

    def _lose_all(self) -> None:
        receivers: list[Receiver[Any]] = [*self._watches.values(), *self._listeners]
        for receiver in receivers:
            receiver.lose()

    def _hear_letter(self, *heard: Any) -> None:
        payload = self._letter_parts.take(heard[3])
        if payload is None:
            return
        found = read_letter(payload)
        if found is None or found[0] == EVERYBODY:
            # What a newer version says may be for any of them.
            for watch in self._watches.values():
                watch.lose()
        elif (known := self._watches.get(found[0])) is not None:
            known.take(found[1])

    def _hear_events(self, *heard: Any) -> None:
        payload = self._event_parts.take(heard[3])
        if payload is not None and self._listeners:
            events = read_told(payload)
            for listener in self._listeners:
                listener.take(events)

    # What is said.

    def heed(self, answer: Any) -> None:
        """Send what a write has to tell; ``answer`` is its row."""
        self.listened = bool(answer["listened"])
        if answer["letters"] is not None:
            # Each is a channel, a peer, what it says, a queue and an id.
            self._mail += msgspec.json.decode(answer["letters"])
            self._send_soon()

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Send events to whoever listens; it never waits."""
        if not self.listened or not events:
            return
        self._told += events
        if len(self._told) > BACKLOG:
            self._told.clear()
            self._told_too_much = True
        self._send_soon()

    def _send_soon(self) -> None:
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send_all(), name="plugq-postgres-send")

    async def _send_all(self) -> None:
        pause = _FIRST_PAUSE
        while self._mail or self._told or self._told_too_much or self._unsent:
            mail, self._mail = self._mail, []
            unsent, self._unsent = self._unsent, set()
            events, self._told = self._told, []
            lost, self._told_too_much = self._told_too_much, False
            texts = resync() * lost + told(events)
            try:
                await self._names.learn({letter[3] for letter in mail})
                channels, payloads = self._outgoing(mail)
                channels += [self._events_channel] * len(texts)
                payloads += texts
                for channel in unsent:
                    channels.append(channel)
                    payloads += letters(EVERYBODY, [Resync()])
                await self._database.write(_SEND, channels, payloads)
            except PlugqError as error:
                self._unsent = self._unsent | unsent | {letter[0] for letter in mail}
                self._logger.warning("some notices could not be sent: %s", error)
                self._told_too_much = bool(texts)
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
                pause = min(2 * pause, _LONGEST_PAUSE)

    def _outgoing(self, mail: Sequence[Sequence[Any]]) -> tuple[list[str], list[str]]:
        """Return channels and payloads, as few letters as carry all that is said to a peer."""
        said: dict[tuple[str, str], tuple[list[JobRef], list[JobRef], list[JobRef]]] = {}
        for channel, peer, kind, queue, id_ in mail:
            refs = said.setdefault((channel, peer), ([], [], []))[kind]
            refs.append(JobRef(self._names.queue(queue), bytes.fromhex(id_ or "").decode()))
        channels: list[str] = []
        payloads: list[str] = []
        for (channel, peer), (wakes, finished, cancels) in said.items():
            notices: list[Notice] = [Wake()] if wakes else []
            if finished:
                notices.append(Finished(tuple(finished)))
            if cancels:
                notices.append(CancelAsked(tuple(cancels)))
            found = letters(bytes.fromhex(peer).decode(), notices)
            channels += [channel] * len(found)
            payloads += found
        return channels, payloads


def _as_ours(error: Exception) -> PlugqError:
    return error if isinstance(error, PlugqError) else Unavailable(str(error))


async def _close(db: asyncpg.Connection) -> None:
    try:
        await db.close(timeout=_PARTING)
    except Exception:  # noqa: BLE001 - what can not be closed in peace is cut off
        db.terminate()
