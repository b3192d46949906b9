"""Scripts on the server: how they are called, and loaded again where the server lost them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from redis.exceptions import RedisError, ResponseError

from plugq_redis._faults import BROKEN, code_of, refusal, unusable
from plugq_redis._line import Line, Part
from plugq_redis._records import flat
from plugq_redis._scripts import scripts

if TYPE_CHECKING:
    from plugq.protocols.plugin import PluginContext
    from plugq_redis._options import RedisOptions, Target


class Server:
    """One server on which all keys of a namespace are; calls of scripts are single steps.

    ``listened`` is whether anybody listened to events when the last change was made.
    """

    def __init__(
        self,
        target: Target,
        options: RedisOptions,
        context: PluginContext,
        timeout: float,
    ) -> None:
        self._line = Line(target, timeout, context.logger)
        self._clock = context.clock
        self._namespace = quote(context.namespace, safe="")
        self._prefix = options.prefix
        self.common: str = f"{options.prefix}{{{self._namespace}}}:"
        self.channel: str = f"{options.prefix}{self._namespace}:"
        self._cluster = False
        self.listened = False

    @property
    def place(self) -> str:
        """Where the server is."""
        return self._line.place

    async def open(self) -> None:
        """Connect.

        Raises:
            ConfigError: the server does not take these options.
            Unavailable: it can not be reached now.
        """
        try:
            await self._line.open()
        except BROKEN as error:
            raise unusable(error, self.place) from None

    async def close(self) -> None:
        """Finish what is under way and close the connection."""
        await self._line.close()
        self.listened = False

    async def touch(self) -> None:
        """Refuse if the storage is not started.

        Raises:
            Unavailable: it is not.
        """
        self._line.check()

    async def queues(self) -> list[str]:
        """Return the names of all queues."""
        try:
            found = await self._line.call("SMEMBERS", f"{self.common}queues", writes=False)
        except RedisError as error:
            raise refusal(error, self.place) from None
        return [name.decode() for name in found]

    async def command(self, *parts: Part, writes: bool = False) -> Any:
        """Return the reply to a plain command.

        Raises:
            RedisError: the server's answer.
            Unavailable: nothing happened.
        """
        return await self._line.call(*parts, writes=writes)

    def publish(self, channel: str, data: bytes) -> Any:
        """Send a message without waiting; the future that is returned tells of its end."""
        return self._line.send("PUBLISH", self.channel + channel, data, writes=False).future

    async def load(self) -> None:
        """Load every script.

        Raises:
            ConfigError: this user may not do that.
        """
        try:
            for script in scripts().values():
                await self._line.call("SCRIPT", "LOAD", script.text, writes=False)
        except RedisError as error:
            raise unusable(error, self.place) from None

    async def run(self, name: str, *arguments: Part, writes: bool = True) -> Any:
        """Call a script of the namespace; it is done as a whole or not at all.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """
        script = scripts()[name]
        now = None if self._clock is None else self._clock.time()
        header = flat(self._prefix, self._namespace, now, self._cluster)
        command = ("EVALSHA", script.digest, 1, f"{self.common}clock", header, *arguments)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._line.timeout
        try:
            try:
                return await self._line.call(*command, writes=writes)
            except ResponseError as error:
                if code_of(error) != "NOSCRIPT":
                    raise
            # Restarted, failed over, or somebody flushed its scripts.
            await self._line.call(
                "SCRIPT", "LOAD", script.text, writes=False, within=end - loop.time()
            )
            return await self._line.call(*command, writes=writes, within=end - loop.time())
        except RedisError as error:
            raise refusal(error, self.place, script=writes) from None

    async def change(self, name: str, *arguments: Part) -> list[Any]:
        """Call a script that changes jobs; returns its reply without the count of listeners."""
        reply: list[Any] = await self.run(name, *arguments)
        self.listened = int(reply[0]) > 0
        return reply[1:]
