"""Where scripts run: what the verbs know of a server, and how a script is called there."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from redis.exceptions import ResponseError

from plugq import failpoints
from plugq.errors import InvalidJob
from plugq_redis._faults import code_of
from plugq_redis._records import flat

if TYPE_CHECKING:
    from plugq.protocols.plugin import PluginContext
    from plugq_redis._line import Line, Part
    from plugq_redis._scripts import Script

_EVALSHA = "EVALSHA"
#: Ends the name of a key that is never made. While the keys of a slot move, a cluster runs no
#: script of which a key is missing, so that none finds a part of what belongs together.
_NONE = ":none"


class Keys:
    """The names of keys and channels of a namespace, and the header of every call."""

    def __init__(self, prefix: str, context: PluginContext) -> None:
        self._prefix = prefix
        self._clock = context.clock
        # As Lua writes them, which knows no more than bytes.
        self._namespace = quote(context.namespace, safe="")
        self.common: str = f"{prefix}{{{self._namespace}}}:"
        self.channel: str = f"{prefix}{self._namespace}:"

    def of(self, queue: str) -> str:
        """Return what the keys of a queue begin with.

        Raises:
            InvalidJob: that name is no Unicode text.
        """
        try:
            name = quote(queue, safe="")
        except UnicodeEncodeError as error:
            message = f"a text can not be stored in Redis: {error.reason}"
            raise InvalidJob(message) from None
        return f"{self._prefix}{{{self._namespace}/{name}}}:"

    @property
    def manual(self) -> bool:
        """Whether the time is that of a manual clock and not the servers'."""
        return self._clock is not None

    def header(self, *, cluster: bool, known: float = 0.0) -> bytes:
        """Return the first argument of every script, with the time if the clock is manual.

        ``known`` is the latest time that was heard of, in a cluster perhaps from another node.
        """
        now = None if self._clock is None else self._clock.time()
        return flat(self._prefix, self._namespace, now, cluster, known)


class Place(ABC):
    """A server, or in a cluster the node of one queue.

    ``queue`` names that queue. ``listened`` is whether anybody listened to events when the last
    change was made.
    """

    def __init__(self, keys: Keys, queue: str | None = None) -> None:
        self.keys: Keys = keys
        self.queue: str | None = queue
        self.listened: bool = False

    @property
    @abstractmethod
    def place(self) -> str:
        """Where the server is."""

    @abstractmethod
    async def run(self, name: str, *arguments: Part, writes: bool = True) -> Any:
        """Call a script; it is done as a whole or not at all.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """

    async def change(self, name: str, *arguments: Part) -> list[Any]:
        """Call a script that changes jobs; returns its reply without the count of listeners."""
        reply = await self._commit(name, *arguments)
        self.listened = int(reply[0]) > 0
        return reply[1:]

    async def _commit(self, name: str, *arguments: Part) -> list[Any]:
        """Call a script that changes jobs."""
        if failpoints.ARMED:
            failpoints.hit("storage.commit.before")
        reply: list[Any] = await self.run(name, *arguments)
        if failpoints.ARMED:
            failpoints.hit("storage.commit.after")
        return reply


def script_call(script: Script, key: str, *arguments: Part) -> tuple[Part, ...]:
    """Return the command that calls a script on the keys that lie where this one is."""
    return _EVALSHA, script.digest, 2, key, key + _NONE, *arguments


async def run_script(line: Line, script: Script, command: tuple[Part, ...], *, writes: bool) -> Any:
    """Call a script by its hash, and load it first where the server has lost it.

    Raises:
        RedisError: the server's answer.
        Unavailable: nothing happened.
        OutcomeUnknown: it may have happened.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + line.timeout
    try:
        return await line.call(*command, writes=writes)
    except ResponseError as error:
        if code_of(error) != "NOSCRIPT":
            raise
    # Restarted, failed over, or somebody flushed its scripts.
    await line.call("SCRIPT", "LOAD", script.text, writes=False, within=end - loop.time())
    return await line.call(*command, writes=writes, within=end - loop.time())
