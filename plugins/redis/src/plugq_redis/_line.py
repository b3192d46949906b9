"""One connection on which the calls of all tasks are pipelined, opened anew whenever it breaks.

What is called while a write is under way goes out with the next one; replies come in the order of
the calls. A call that was not sent yet when the connection breaks, or when its time is up, did not
happen. What became of one that was sent is unknown, unless it only reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from plugq.errors import OutcomeUnknown, PlugqError, Unavailable
from plugq_redis._faults import ANSWERS, BROKEN, broken, code_of, refusal

if TYPE_CHECKING:
    import logging

    from redis.asyncio.connection import AbstractConnection

    from plugq_redis._options import Target

Part = str | bytes | int | float

#: As many bytes go out in one write.
_WRITE = 2**20
#: Seconds that a call waits for a connection that could not be had a moment ago.
_BRIEF = 1.0
#: Seconds between attempts to connect: the first pause and the longest.
FIRST_PAUSE = 0.1
#: After so many attempts in a row an outage is worth a line in the log.
_NOTEWORTHY = 2
LONGEST_PAUSE = 2.0


class _Call:
    """One command: its bytes, whether they were sent, and the future of its reply."""

    __slots__ = ("future", "packed", "sent", "size", "writes")

    def __init__(self, packed: list[bytes], future: asyncio.Future[Any], *, writes: bool) -> None:
        self.packed = packed
        self.size = sum(map(len, packed))
        self.future = future
        self.sent = False
        self.writes = writes

    def fail(self, error: PlugqError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Line:
    """A connection that many tasks use at once, in the event loop that opens it."""

    def __init__(self, target: Target, timeout: float, logger: logging.Logger) -> None:
        self._target = target
        self.timeout = timeout
        self._logger = logger
        self._outbox: deque[_Call] = deque()
        self._inflight: deque[_Call] = deque()
        self._work = asyncio.Event()
        self._open = False
        self._task: asyncio.Task[None] | None = None
        self._connection: AbstractConnection | None = None
        self._packer = target.connection()
        self._serving: tuple[asyncio.Task[None], ...] = ()
        self._loading: dict[bytes, asyncio.Task[Any]] = {}
        self._heard = 0.0
        self._failures = 0

    @property
    def place(self) -> str:
        """Where the server is."""
        return self._target.place

    @property
    def host(self) -> str:
        """The host to connect to."""
        return self._target.host

    async def open(self) -> None:
        """Connect, and from then on again whenever the connection breaks.

        The errors are those of redis-py: whoever opens a line tells what they mean.
        """
        self._connection = await self._connect()
        self.begin()

    def begin(self) -> None:
        """Connect in the background; what is called meanwhile waits for it, or fails with it."""
        # Of the loop that opens it now.
        self._work = asyncio.Event()
        self._open = True
        self._task = asyncio.create_task(self._run(), name="plugq-redis-line")

    async def close(self) -> None:
        """Send what waits as far as that is possible in time, then close the connection.

        When it was cancelled a second call goes on with it.
        """
        task, self._open = self._task, False
        if task is None:
            return
        pending = [call.future for call in (*self._inflight, *self._outbox)]
        if pending and self._connection is not None:
            await asyncio.wait(pending, timeout=self.timeout)
        task.cancel()
        await asyncio.wait((task,))
        if self._connection is not None:
            # A task that is cancelled before its first step never comes to its end.
            await _drop(self._connection)
            self._connection = None
        self._task = None
        self._fail_all(Unavailable("the Redis storage was stopped"))

    def check(self) -> None:
        """Refuse to serve while the line is not open.

        Raises:
            Unavailable: it is not.
        """
        if not self._open:
            raise not_started()

    async def call(self, *command: Part, writes: bool, within: float | None = None) -> Any:
        """Send one command and return its reply, within so many seconds or the usual time.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
            RedisError: the server's answer, for :mod:`plugq_redis._faults` to read.
        """
        call = self.send(*command, writes=writes)
        seconds = self.timeout if within is None else max(0.0, within)
        brief = min(seconds, _BRIEF)
        try:
            if self._connection is None and self._failures:
                # A server that was not there a moment ago is not waited for as long, since nothing
                # happens meanwhile; what was sent is.
                await asyncio.wait((call.future,), timeout=brief)
                if not call.sent and not call.future.done():
                    raise self._late(call)
                seconds -= brief
            async with asyncio.timeout(seconds):
                return await call.future
        except TimeoutError:
            raise self._late(call) from None
        finally:
            # Who waits for it no more does not want it sent.
            call.future.cancel()

    async def load(self, script: bytes, within: float) -> None:
        """Load a script, once for all who miss it at the same time.

        Raises:
            Unavailable: it was not loaded.
            RedisError: the server's answer.
        """
        loading = self._loading.get(script)
        if loading is None:
            loading = asyncio.create_task(self.call("SCRIPT", "LOAD", script, writes=False))
            self._loading[script] = loading
            loading.add_done_callback(lambda task: self._loaded(script, task))
        try:
            async with asyncio.timeout(within):
                await asyncio.shield(loading)
        except TimeoutError:
            message = f"Redis at {self.place} took no script for {within:g} s; try again"
            raise Unavailable(message) from None

    def _loaded(self, script: bytes, task: asyncio.Task[Any]) -> None:
        self._loading.pop(script, None)
        if not task.cancelled():
            # Whoever waits for it gets it as well.
            task.exception()

    def send(self, *command: Part, writes: bool) -> _Call:
        """Let a command go out with the next write; its future gets the reply."""
        self.check()
        try:
            packed = self._packer.pack_command(*command)
        except UnicodeEncodeError as error:
            raise refusal(error, self.place) from None
        call = _Call(packed, asyncio.get_running_loop().create_future(), writes=writes)
        self._outbox.append(call)
        self._work.set()
        return call

    def _late(self, call: _Call) -> PlugqError:
        """Return what it means that a call got no reply in time."""
        place, seconds = self.place, self.timeout
        if not call.sent:
            return Unavailable(f"Redis at {place} took no call for {seconds:g} s; try again")
        if self._now() - self._heard >= seconds:
            # Nothing at all was heard meanwhile: the server hangs, or is out of reach.
            for task in self._serving:
                task.cancel()
        return self._lost(call, f"Redis at {place} did not answer within {seconds:g} s")

    def _lost(self, call: _Call, reason: str) -> PlugqError:
        if call.writes:
            return OutcomeUnknown(f"{reason}; the call may have been done, sending again is safe")
        return Unavailable(f"{reason}; try again")

    async def _run(self) -> None:
        """Serve calls over one connection after the other."""
        try:
            while True:
                connection = self._connection
                if connection is None:
                    connection = await self._reconnect()
                    if connection is None:
                        continue
                await self._serve(connection)
                self._connection = None
                self._break(f"the connection to Redis at {self.place} was lost")
                await _drop(connection)
        finally:
            connection, self._connection = self._connection, None
            if connection is not None:
                await _drop(connection)

    async def _reconnect(self) -> AbstractConnection | None:
        """Try once, after a pause; what waits fails with the attempt."""
        if self._heard or self._failures:
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self._failures, 10))
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - jitter
        try:
            self._connection = await self._connect()
        except Exception as error:  # noqa: BLE001 - the line must go on, whatever a library raises
            self._failures += 1
            fault = broken(error, self.place)
            if self._failures == _NOTEWORTHY:
                self._logger.warning("%s", fault)
            for call in self._outbox:
                call.fail(fault)
            self._outbox.clear()
            return None
        return self._connection

    async def _connect(self) -> AbstractConnection:
        connection = self._target.connection()
        try:
            async with asyncio.timeout(self._target.connect_timeout):
                await connection.connect()  # type: ignore[no-untyped-call,unused-ignore]
        except BaseException:
            await _drop(connection)
            raise
        self._heard = self._now()
        return connection

    async def _serve(self, connection: AbstractConnection) -> None:
        """Write and read until the connection breaks."""
        writer = asyncio.create_task(self._write(connection), name="plugq-redis-writer")
        reader = asyncio.create_task(self._read(connection), name="plugq-redis-reader")
        self._serving = (writer, reader)
        # Reset by the first reply: a server may take connections only to close them.
        self._failures += 1
        try:
            await asyncio.wait((writer, reader), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._serving = ()
            writer.cancel()
            reader.cancel()
            results = await asyncio.gather(writer, reader, return_exceptions=True)
        for error in results:
            if isinstance(error, Exception) and not isinstance(error, BROKEN):
                self._logger.error("the line to Redis at %s failed", self.place, exc_info=error)

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            if not self._outbox:
                self._work.clear()
                await self._work.wait()
                continue
            parts: list[bytes] = []
            size = 0
            while self._outbox and size < _WRITE:
                call = self._outbox.popleft()
                if call.future.done():
                    continue
                call.sent = True
                size += call.size
                parts += call.packed
                self._inflight.append(call)
                call.packed = []
            if parts:
                await connection.send_packed_command(b"".join(parts), check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        while True:
            try:
                reply: Any = await connection.read_response(
                    disable_decoding=True, disconnect_on_error=False
                )
            except ANSWERS as error:
                reply = error
            self._heard = self._now()
            if self._failures > 1:
                self._logger.info("Redis at %s is reached again", self.place)
            self._failures = 0
            if not self._inflight:
                # Such as the last words of a server that closes the connection.
                message = f"Redis at {self.place} said something that it was not asked"
                raise RedisConnectionError(message)
            call = self._inflight.popleft()
            if not call.future.done():
                if isinstance(reply, RedisError):
                    call.future.set_exception(reply)
                else:
                    call.future.set_result(reply)
            if not self._inflight and code_of(reply) == "READONLY":
                # The address may lead to the new master by now; this connection never will, so
                # nothing more is sent on it.
                for task in self._serving:
                    task.cancel()
                message = f"Redis at {self.place} is no master any more"
                raise RedisConnectionError(message)

    def _break(self, reason: str) -> None:
        """Tell every call that was sent that its reply is lost."""
        inflight, self._inflight = self._inflight, deque()
        for call in inflight:
            call.fail(self._lost(call, reason))

    def _fail_all(self, error: PlugqError) -> None:
        self._break("the Redis storage was stopped")
        for call in self._outbox:
            call.fail(error)
        self._outbox.clear()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


async def _drop(connection: AbstractConnection) -> None:
    with contextlib.suppress(*BROKEN):
        await connection.disconnect(nowait=True)


def not_started() -> Unavailable:
    """Return the error of a call to a storage that is not started."""
    return Unavailable("the Redis storage is not started; call start() or use it through connect()")
