"""The connection that carries notices and events, by pub/sub.

Whatever breaks it may have lost something: once every channel is subscribed again, all who watch or
listen are told to resync.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from plugq.errors import PlugqError, Unavailable
from plugq.protocols.storage import BACKLOG
from plugq_redis._events import RESYNC, packets
from plugq_redis._faults import ANSWERS, BROKEN, refusal
from plugq_redis._line import FIRST_PAUSE, LONGEST_PAUSE, not_started
from plugq_redis._signals import EVENTS

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Sequence

    from redis.asyncio.connection import AbstractConnection

    from plugq.events import JobEvent
    from plugq_redis._options import Target
    from plugq_redis._place import Keys
    from plugq_redis._signals import Receiver

#: Beyond so many messages that the server has not taken events are dropped and told as lost.
_MOST_UNDER_WAY = 256
#: Seconds of silence after which the server is asked whether it is there.
_BEAT = 10.0
#: Seconds between attempts to tell that events were lost.
_MEND = 1.0


class Hub:
    """The connection for signals, opened when somebody watches or listens for the first time."""

    def __init__(
        self,
        where: Callable[[], Target],
        publish: Callable[[str, bytes], asyncio.Future[Any]],
        keys: Keys,
        timeout: float,
        logger: logging.Logger,
        *,
        learn: Callable[[], asyncio.Future[None] | None],
    ) -> None:
        self._where = where
        self._send = publish
        self._learn = learn
        self._keys = keys
        self._timeout = timeout
        self._logger = logger
        self._receivers: dict[bytes, list[Receiver[Any]]] = {}
        self._waiters: dict[bytes, list[asyncio.Future[None]]] = {}
        self._connection: AbstractConnection | None = None
        self._task: asyncio.Task[None] | None = None
        self._told: list[JobEvent] = []
        self._untold = False
        self._telling: asyncio.Handle | None = None
        self._sent: set[asyncio.Future[Any]] = set()
        self._mending: asyncio.Task[None] | None = None
        self._serving = False
        self._failures = 0
        self._place = ""

    def open(self) -> None:
        """Serve from now on; the connection is opened when somebody needs it."""
        self._serving = True

    async def enter(self, receiver: Receiver[Any]) -> None:
        """Subscribe for a receiver.

        Raises:
            Unavailable: the server is out of reach.
        """
        channel = self._channel(receiver)
        if not self._serving:
            raise not_started()
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="plugq-redis-signals")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(channel, []).append(waiter)
        self._receivers.setdefault(channel, []).append(receiver)
        try:
            await self._say("SUBSCRIBE", channel)
            async with asyncio.timeout(self._timeout):
                await waiter
        except TimeoutError:
            self._forget(channel, receiver)
            message = f"Redis at {self._place} took no subscription; check that it runs"
            raise Unavailable(message) from None
        except BaseException:
            if self._forget(channel, receiver):
                # It may have gone out, and nobody listens any more.
                await self._say("UNSUBSCRIBE", channel)
            raise

    async def leave(self, receiver: Receiver[Any]) -> None:
        """Unsubscribe a receiver."""
        channel = self._channel(receiver)
        if self._forget(channel, receiver):
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.setdefault(b"-" + channel, []).append(gone)
            if await self._say("UNSUBSCRIBE", channel):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._timeout):
                        await gone

    async def close(self) -> None:
        """Tell what was not told yet, as far as that is possible in time, and end everything."""
        if self._serving:
            self._flush()
        self._serving = False
        if self._sent:
            await asyncio.wait(self._sent, timeout=self._timeout)
        tasks = [task for task in (self._mending, self._task) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            # Cancelled here, it is called again and finds them.
            await asyncio.wait(tasks)
        self._mending = self._task = None
        for receivers in self._receivers.values():
            for receiver in receivers:
                receiver.shut()
        self._receivers.clear()
        self._let_go(not_started())

    def tell(self, events: Sequence[JobEvent]) -> None:
        """Let events go out with whatever else is told in this turn of the loop."""
        if not events or not self._serving:
            return
        self._told += events
        if len(self._told) > BACKLOG:
            self._told.clear()
            self._untold = True
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        telling, self._telling = self._telling, None
        if telling is not None:
            telling.cancel()
        events, self._told = self._told, []
        if len(self._sent) > _MOST_UNDER_WAY:
            # The server is out of reach, or slower than this process.
            self._lose()
            return
        if self._untold:
            self._untold = False
            self._publish(RESYNC)
        for data in packets(events):
            self._publish(data)

    def _lose(self) -> None:
        """See to it that those who listen are told that they have missed something."""
        self._untold = False
        if self._mending is None and self._serving:
            self._mending = asyncio.create_task(self._mend())

    def _publish(self, data: bytes) -> None:
        try:
            sent = self._send(EVENTS, data)
        except PlugqError:
            return
        self._sent.add(sent)
        sent.add_done_callback(self._published)

    def _published(self, sent: asyncio.Future[Any]) -> None:
        self._sent.discard(sent)
        if not sent.cancelled() and sent.exception() is not None:
            self._lose()

    async def _mend(self) -> None:
        """Tell those who listen that they have missed something, until that has worked."""
        while True:
            await asyncio.sleep(_MEND)
            try:
                await self._send(EVENTS, RESYNC)
            except (PlugqError, RedisError):
                continue
            self._mending = None
            return

    def _channel(self, receiver: Receiver[Any]) -> bytes:
        try:
            return (self._keys.channel + receiver.channel).encode()
        except UnicodeEncodeError as error:
            raise refusal(error, self._place) from None

    def _forget(self, channel: bytes, receiver: Receiver[Any]) -> bool:
        """Drop a receiver; return whether it was the last one of its channel."""
        receivers = self._receivers.get(channel, [])
        if receiver not in receivers:
            return False
        receivers.remove(receiver)
        if receivers:
            return False
        del self._receivers[channel]
        return True

    async def _say(self, *command: str | bytes) -> bool:
        """Send a command if there is a connection; one that is opened later subscribes itself."""
        connection = self._connection
        if connection is None:
            return False
        try:
            await connection.send_packed_command(
                connection.pack_command(*command), check_health=False
            )
        except BROKEN:
            return False
        return True

    async def _run(self) -> None:
        try:
            while True:
                if self._failures:
                    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 10))
                    await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - jitter
                # Reset by the first answer.
                self._failures += 1
                try:
                    await self._serve()
                except ANSWERS as error:
                    self._let_go(refusal(error, self._place))
                except Exception as error:  # noqa: BLE001 - whoever watches must not be left alone
                    self._logger.debug("the signals of Redis broke: %r", error)
                # Whoever only listens learns by nothing else that a node is no more.
                self._learn()
        finally:
            await self._drop()

    async def _serve(self) -> None:
        """Open the connection, subscribe to everything, and read until it breaks."""
        target = self._where()
        self._place = target.place
        connection = target.connection()
        try:
            async with asyncio.timeout(target.connect_timeout):
                await connection.connect()  # type: ignore[no-untyped-call,unused-ignore]
            self._connection = connection
            channels = list(self._receivers)
            if channels:
                await self._say("SUBSCRIBE", *channels)
            # Whoever was there before has missed what was said in between.
            behind = {channel: list(self._receivers[channel]) for channel in channels}
            await self._read(connection, behind)
        finally:
            await self._drop()
            with contextlib.suppress(*BROKEN):
                await connection.disconnect(nowait=True)

    async def _read(
        self,
        connection: AbstractConnection,
        behind: dict[bytes, list[Receiver[Any]]],
    ) -> None:
        asked, look = False, self._now() + _BEAT
        while True:
            if self._now() >= look:
                await self._stay()
                look = self._now() + _BEAT
            # A read that ends by its own timeout leaves the connection as it is.
            wait = self._timeout if asked else _BEAT
            reply: Any = await connection.read_response(disable_decoding=True, timeout=wait)
            if reply is not None:
                asked, self._failures = False, 0
                # The answer to a beat is no list, as long as there are no subscriptions.
                if isinstance(reply, list):
                    self._take(reply, behind)
            elif asked:
                message = "the server does not answer"
                raise TimeoutError(message)
            else:
                asked = True
                await self._say("PING")

    async def _stay(self) -> None:
        """Look whether this is the place where everybody subscribes: there it is counted who does.

        A master that has given its slots to a replica keeps its connections and goes on talking.

        Raises:
            RedisConnectionError: the signals have moved.
        """
        learning = self._learn()
        if learning is not None:
            await asyncio.wait((learning,), timeout=_MEND)
        if self._where().place != self._place:
            message = "the signals have moved to another node"
            raise RedisConnectionError(message)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _take(self, reply: list[Any], behind: dict[bytes, list[Receiver[Any]]]) -> None:
        kind, channel = reply[:2]
        if kind == b"message":
            for receiver in tuple(self._receivers.get(channel, ())):
                receiver.take(reply[2])
        elif kind == b"subscribe":
            for receiver in behind.pop(channel, []):
                receiver.lose()
            self._release(channel)
        elif kind == b"unsubscribe":
            self._release(b"-" + channel)

    def _release(self, channel: bytes) -> None:
        for waiter in self._waiters.pop(channel, []):
            if not waiter.done():
                waiter.set_result(None)

    def _let_go(self, error: PlugqError) -> None:
        waiters, self._waiters = self._waiters, {}
        for waiting in waiters.values():
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_exception(error)

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        # Nobody has to be unsubscribed from a connection that is gone.
        for channel in [channel for channel in self._waiters if channel.startswith(b"-")]:
            self._release(channel)
        if connection is not None:
            with contextlib.suppress(*BROKEN):
                await connection.disconnect(nowait=True)
