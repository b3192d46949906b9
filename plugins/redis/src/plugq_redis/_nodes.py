"""The nodes of a cluster: which of them has a key, and a line to each that is used.

A node that no longer has a key says where it is now and has done nothing, so such a call is sent
there. While the keys of a slot are moved, a call waits until all of them have arrived. Nothing else
is ever sent twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

import msgspec
from redis.crc import key_slot
from redis.exceptions import RedisError

from plugq.errors import OutcomeUnknown, Unavailable
from plugq_redis._faults import BROKEN, code_of, is_moving, moved_to, refusal, unusable
from plugq_redis._line import Line, Part, not_started
from plugq_redis._place import Keys, Place, run_script, script_call
from plugq_redis._records import flat
from plugq_redis._scripts import scripts

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from plugq_redis._options import Target

#: Seconds that the clocks of two nodes may be apart before one tells the other.
_SLACK = 0.05
_kind = msgspec.msgpack.Decoder(list[str]).decode
_time = msgspec.msgpack.Decoder(float).decode
#: How often a call follows the key that it is about.
_MOST_MOVES = 5
#: Seconds between looks at a slot that is being moved: the first pause and the longest.
_FIRST_LOOK, _LONGEST_LOOK = 0.01, 0.25
#: Seconds for an answer that is only a hint: without it a call goes on.
_HINT = 0.25
#: Seconds after which another node is asked for the map.
_SOON = 1.0
#: What a node answers that may have lost its slots.
_LOST = frozenset({"CLUSTERDOWN", "MASTERDOWN", "READONLY"})
_Node = tuple[str, int]
_GONE: tuple[type[BaseException], ...] = (Unavailable, *BROKEN)


def _host(named: bytes | None) -> str:
    """Return the host that a node has, empty where that is to be the one that was asked."""
    host = (named or b"").decode()
    return "" if host == "?" else host


class SlotMap:
    """Which node has which slots, as the cluster last told."""

    def __init__(self, answer: Sequence[Any], default: str) -> None:
        ranges = sorted(
            (int(first), int(last), (_host(master[0]) or default, int(master[1])))
            for first, last, master, *_ in answer
        )
        self._firsts = [first for first, _, _ in ranges]
        self._ranges = ranges
        self._moved: dict[int, _Node] = {}

    @property
    def nodes(self) -> list[_Node]:
        """The nodes that have any slots."""
        return list(dict.fromkeys(node for _, _, node in self._ranges))

    def node(self, slot: int) -> _Node | None:
        """Return the node that has a slot, ``None`` if nobody has."""
        if slot in self._moved:
            return self._moved[slot]
        index = bisect_right(self._firsts, slot) - 1
        if index < 0 or slot > self._ranges[index][1]:
            return None
        return self._ranges[index][2]

    def move(self, slot: int, node: _Node) -> None:
        """Note that a slot has moved since."""
        self._moved[slot] = node


class Nodes:
    """The lines to the nodes of a cluster, in the event loop that opens the first."""

    def __init__(self, target: Target, keys: Keys, timeout: float, logger: logging.Logger) -> None:
        self.keys: Keys = keys
        self._target = target
        self._timeout = timeout
        self.logger: logging.Logger = logger
        self._map: SlotMap | None = None
        self._lines: dict[_Node, Line] = {}
        #: Those to nodes that have no slots any more.
        self._leaving: list[Line] = []
        self._asking: asyncio.Task[None] | None = None
        self._aside: set[asyncio.Task[None]] = set()
        #: The latest time that any node told.
        self.latest: float = 0.0
        # What the common clock said at which moment.
        self._common_time, self._common_at = -_SLACK, 0.0

    @property
    def place(self) -> str:
        """Where the cluster was found."""
        return self._target.place

    async def open(self, line: Line) -> None:
        """Learn from one node where the others are.

        Raises:
            ConfigError: this user may not ask for that.
            Unavailable: there is no such cluster now.
        """
        try:
            self._map = await self._ask(line)
        except RedisError as error:
            raise unusable(error, self.place) from None

    async def close(self) -> None:
        """Finish what is under way and close every line."""
        self._map = None
        tasks = [*self._aside, *filter(None, [self._asking])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._asking = None
        # A close that was cancelled above goes on here.
        lines = (*self._lines.values(), *self._leaving)
        await asyncio.gather(*(line.close() for line in lines))
        self._lines.clear()
        self._leaving.clear()

    def aside(self, call: Coroutine[Any, Any, None]) -> None:
        """Do something for which nobody waits, at most until the lines are closed."""
        task = asyncio.create_task(call, name="plugq-redis-aside")
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    def target_of(self, key: str) -> Target:
        """Return how the node that has a key is reached."""
        if self._map is None:
            raise not_started()
        node = self._map.node(key_slot(key.encode()))
        return self._target if node is None else self._target.at(*node)

    async def call(
        self, key: str, *command: Part, writes: bool, within: float | None = None
    ) -> Any:
        """Send a command to the node that has the key.

        Raises:
            RedisError: the server's answer.
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """

        async def send(line: Line) -> Any:
            return await line.call(*command, writes=writes, within=within)

        return await self._follow(key, send)

    async def run(self, key: str, name: str, *arguments: Part, writes: bool) -> Any:
        """Call a script on the node that has the key.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """
        script = scripts()[name]
        header = self.keys.header(cluster=True, known=self.latest)
        command = script_call(script, key, header, *arguments)

        async def send(line: Line) -> Any:
            return await run_script(line, script, command, writes=writes)

        try:
            return await self._follow(key, send)
        except RedisError as error:
            raise refusal(error, self.place, script=writes) from None

    def see(self, now: float) -> bool:
        """Take note of the time of a queue; return whether the common clock has to be told.

        It is one time for all: whoever looks there must not live in the past of the others.
        """
        self.latest = max(self.latest, now)
        if self.keys.manual:
            return now > self._common_time
        elapsed = asyncio.get_running_loop().time() - self._common_at
        return now > self._common_time + elapsed + _SLACK

    def see_common(self, now: float) -> None:
        """Take note of what the common clock says."""
        self.latest = max(self.latest, now)
        self._common_time, self._common_at = now, asyncio.get_running_loop().time()

    def publish(self, key: str, channel: str, data: bytes) -> asyncio.Future[Any]:
        """Send a message through the node that has the key, without waiting."""
        return asyncio.ensure_future(
            self.call(key, "PUBLISH", self.keys.channel + channel, data, writes=False)
        )

    async def _follow(self, key: str, send: Callable[[Line], Awaitable[Any]]) -> Any:
        slot = key_slot(key.encode())
        end = asyncio.get_running_loop().time() + self._timeout
        pause, moves = _FIRST_LOOK, 0
        line = self._line_for(slot)
        while True:
            try:
                return await send(line)
            except Unavailable:
                # Perhaps the node is no more, and another one has its slots.
                self.learn()
                raise
            except RedisError as error:
                node = moved_to(error)
                if node is not None and moves < _MOST_MOVES:
                    moves += 1
                    assert self._map is not None  # noqa: S101 - a line was found by it
                    self._map.move(slot, node)
                    self.learn()
                    line = self._line(node)
                    continue
                if node is None and not is_moving(error):
                    if code_of(error) in _LOST:
                        self.learn()
                    raise
            if asyncio.get_running_loop().time() + pause >= end:
                message = f"the cluster at {self.place} is moving the keys of a queue; try again"
                raise Unavailable(message)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
            pause = min(2 * pause, _LONGEST_LOOK)
            line = self._line_for(slot)

    def _line_for(self, slot: int) -> Line:
        if self._map is None:
            raise not_started()
        node = self._map.node(slot)
        if node is None:
            self.learn()
            message = f"no node of the cluster at {self.place} has slot {slot}; it is incomplete"
            raise Unavailable(message)
        return self._line(node)

    def _line(self, node: _Node) -> Line:
        line = self._lines.get(node)
        if line is None:
            if self._map is None:
                raise not_started()
            line = self._lines[node] = Line(self._target.at(*node), self._timeout, self.logger)
            # Nobody waits longer for a node that hangs than for its answer.
            line.begin()
        return line

    def learn(self) -> asyncio.Task[None] | None:
        """Ask again where the slots are, in the background: in the task that is returned."""
        if self._map is not None and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._relearn(), name="plugq-redis-slots")
        return self._asking

    async def _relearn(self) -> None:
        """Ask one node after the other until one answers, the one that was named in the end."""
        known = [] if self._map is None else self._map.nodes
        for node in [*self._lines, *known]:
            try:
                self._map = await self._ask(self._line(node), _SOON)
            except _GONE:
                continue
            await self._let_go()
            return
        line = Line(self._target, self._timeout, self.logger)
        try:
            await line.open()
            self._map = await self._ask(line)
        except _GONE as error:
            self.logger.debug("the cluster at %s: %s", self.place, error)
        finally:
            await line.close()

    async def _let_go(self) -> None:
        """Close the lines to nodes that have no slots any more."""
        known = () if self._map is None else self._map.nodes
        self._leaving += [self._lines.pop(node) for node in [*self._lines] if node not in known]
        while self._leaving:
            await self._leaving[-1].close()
            self._leaving.pop()

    async def _ask(self, line: Line, within: float | None = None) -> SlotMap:
        answer = await line.call("CLUSTER", "SLOTS", writes=False, within=within)
        if not answer:
            message = f"the cluster at {self.place} has no slots; create it first"
            raise Unavailable(message)
        return SlotMap(answer, line.host)


class CommonPlace(Place):
    """The node of what belongs to no queue: registers, sequences, the names of the queues."""

    def __init__(self, nodes: Nodes) -> None:
        super().__init__(nodes.keys, "")
        self._nodes = nodes
        self.key: str = f"{nodes.keys.common}clock"

    @property
    def place(self) -> str:
        """Where the cluster is."""
        return self._nodes.place

    async def run(self, name: str, *arguments: Part, writes: bool = True) -> Any:
        """Call a script on the keys of no queue."""
        return await self._nodes.run(self.key, name, *arguments, writes=writes)

    async def change(self, name: str, *arguments: Part) -> list[Any]:
        """Call a script that changes no jobs, and so has nothing to say to peers."""
        reply: list[Any] = await self.run(name, *arguments)
        return reply[1:]

    async def attend(self) -> None:
        """Let the common clock know of the latest time, as far as it can be reached."""
        with contextlib.suppress(Unavailable, OutcomeUnknown, TimeoutError):
            async with asyncio.timeout(_HINT):
                self._nodes.see_common(_time(await self.run("attend", b"")))

    async def tell(self, messages: Sequence[bytes]) -> int:
        """Publish messages to peers; return how many wake-ups nobody heard."""
        pairs = list(zip(messages[::2], messages[1::2], strict=True))
        channel = self.keys.channel.encode() + b"peer:"
        heard = await asyncio.gather(
            *(self.hint("PUBLISH", channel + peer, message) for peer, message in pairs),
            return_exceptions=True,
        )
        unheard = [message for (_, message), count in zip(pairs, heard, strict=True) if count == 0]
        return [_kind(message)[0] for message in unheard].count("w")

    async def hint(self, *parts: Part) -> Any:
        """Return the reply to a command without which a call goes on, if it comes soon.

        Raises:
            Unavailable: it did not.
        """
        return await self.command(*parts, within=_HINT)

    async def command(self, *parts: Part, writes: bool = False, within: float | None = None) -> Any:
        """Return the reply to a plain command.

        Raises:
            Unavailable: nothing happened.
            OutcomeUnknown: it may have happened.
        """
        try:
            return await self._nodes.call(self.key, *parts, writes=writes, within=within)
        except RedisError as error:
            raise refusal(error, self.place) from None


class QueuePlace(Place):
    """The node of one queue, wherever that is."""

    def __init__(self, nodes: Nodes, common: CommonPlace, queue: str) -> None:
        super().__init__(nodes.keys, queue)
        self._name = queue
        self._nodes = nodes
        self._common = common

    @property
    def place(self) -> str:
        """Where the cluster is."""
        return self._nodes.place

    async def run(self, name: str, *arguments: Part, writes: bool = True) -> Any:
        """Call a script on the keys of the queue."""
        key = f"{self.keys.of(self._name)}clock"
        return await self._nodes.run(key, name, *arguments, writes=writes)

    async def change(self, name: str, *arguments: Part) -> list[Any]:
        """Call a script that changes jobs, and pass on what it has to say to peers."""
        reply = await self._commit(name, *arguments)
        now, *messages = reply[0]
        if self._nodes.see(_time(now)):
            await self._common.attend()
        deaf = await self._common.tell(messages) if messages else 0
        await self.wake(deaf)
        return reply[1:]

    async def wake(self, count: int) -> None:
        """Wake so many idle peers, in place of some that have gone or are awake already."""
        # A notice is a hint: whoever waits for it looks again by itself.
        with contextlib.suppress(Unavailable, OutcomeUnknown):
            while count:
                ((_, *messages),) = await self.run("wake", flat(self.queue, count))
                count = await self._common.tell(messages) if messages else 0
