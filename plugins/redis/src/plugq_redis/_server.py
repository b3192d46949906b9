"""A single server, on which one script call is one step for all queues."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from plugq_redis._faults import BROKEN, refusal, unusable
from plugq_redis._line import Line, Part
from plugq_redis._place import Keys, Place, run_script, script_call
from plugq_redis._scripts import scripts

if TYPE_CHECKING:
    import asyncio
    import logging

    from plugq_redis._options import Target


class Server(Place):
    """One server on which all keys of a namespace are; calls of scripts are single steps."""

    def __init__(self, target: Target, keys: Keys, timeout: float, logger: logging.Logger) -> None:
        super().__init__(keys)
        self.line: Line = Line(target, timeout, logger)

    @property
    def place(self) -> str:
        """Where the server is."""
        return self.line.place

    async def open(self) -> None:
        """Connect.

        Raises:
            ConfigError: the server does not take these options.
            Unavailable: it can not be reached now.
        """
        try:
            await self.line.open()
        except BROKEN as error:
            raise unusable(error, self.place) from None

    async def close(self) -> None:
        """Finish what is under way and close the connection."""
        await self.line.close()
        self.listened = False

    async def queues(self) -> list[str]:
        """Return the names of all queues."""
        try:
            found = await self.line.call("SMEMBERS", f"{self.keys.common}queues", writes=False)
        except RedisError as error:
            raise refusal(error, self.place) from None
        return [name.decode() for name in found]

    async def command(self, *parts: Part, writes: bool = False) -> Any:
        """Return the reply to a plain command.

        Raises:
            RedisError: the server's answer.
            Unavailable: nothing happened.
        """
        return await self.line.call(*parts, writes=writes)

    def publish(self, channel: str, data: bytes) -> asyncio.Future[Any]:
        """Send a message without waiting; the future that is returned tells of its end."""
        return self.line.send("PUBLISH", self.keys.channel + channel, data, writes=False).future

    async def load(self) -> None:
        """Load every script.

        Raises:
            ConfigError: this user may not do that.
        """
        try:
            for script in scripts().values():
                await self.line.call("SCRIPT", "LOAD", script.text, writes=False)
        except RedisError as error:
            raise unusable(error, self.place) from None

    async def run(self, name: str, *arguments: Part, writes: bool = True) -> Any:
        """Call a script of the namespace; it is done as a whole or not at all.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """
        try:
            return await self._run(name, *arguments, writes=writes)
        except RedisError as error:
            raise refusal(error, self.place, script=writes) from None

    async def denied(self) -> list[str]:
        """Return the commands of the scripts that this user may not use.

        Raises:
            ConfigError: it may not even run them on the keys of this namespace.
            Unavailable: the server can not be reached now.
        """
        try:
            found = await self._run("probe", writes=False)
        except RedisError as error:
            raise unusable(error, self.place) from None
        return [name.decode() for name in found]

    async def _run(self, name: str, *arguments: Part, writes: bool) -> Any:
        script = scripts()[name]
        header = self.keys.header(cluster=False)
        call = script_call(script, f"{self.keys.common}clock", header, *arguments)
        return await run_script(self.line, script, call, writes=writes)
