"""Who is alive: a register with a ttl that each worker and each broker keeps of itself.

Whoever dies stops renewing, and the storage forgets the register. Nothing else follows from it:
leases end by the sweep, whatever is announced here.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import msgspec

from plugq.errors import PlugqError, Unavailable
from plugq.protocols.storage import RegisterChange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from plugq.clock import Clock
    from plugq.protocols.storage import Loaded, Register, Swapped

#: What the keys of these registers begin with.
PREFIX = "live:"
#: Seconds for which a register counts, and after which it is renewed.
TTL, RENEWAL = 25.0, 10.0
#: Seconds between two looks, without I/O, whether something changed that is told before that.
LOOK = 2.0
#: Seconds that the storage gets to answer, and to take the register back at a stop.
ANSWER, LAST_MOMENT = 5.0, 1.0
#: How often a register that turns out to be another than expected is written anew.
TRIES = 3

_VERSION = 1

Count = Annotated[int, msgspec.Meta(ge=0)]


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker or a broker says of itself; times in seconds by the storage's clock.

    ``queues`` are in the order in which they are served. ``running`` is as of ``seen``.
    """

    kind: Literal["worker", "broker"]
    id: str
    host: str
    pid: Count
    queues: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    concurrency: Count = 0
    running: Count = 0
    draining: bool = False
    started_at: float = 0.0
    seen: float = 0.0


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    version: int
    live: Live


class _Registers(Protocol):
    async def load(self, keys: Sequence[str]) -> Loaded: ...

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped: ...


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Stored)


def encode(live: Live) -> bytes:
    """Return the value of a register."""
    return _encoder.encode(_Stored(_VERSION, live))


def decode(registers: Iterable[Register]) -> list[Live]:
    """Return what registers say; those of another version or that can not be read are left out."""
    found = []
    for register in registers:
        try:
            stored = _decoder.decode(register.value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
        if stored.version == _VERSION:
            found.append(stored.live)
    return found


class Presence:
    """Keeps one register while :meth:`run` runs, with what ``facts`` says each time.

    ``facts`` is called in the loop; the two times in what it returns are filled in here.
    """

    def __init__(self, registers: _Registers, clock: Clock, facts: Callable[[], Live]) -> None:
        self._registers = registers
        self._clock = clock
        self._facts = facts
        self._key = f"{PREFIX}{uuid.uuid4().hex}"
        self._version = 0
        self._turn = asyncio.Lock()
        self._told: Live | None = None
        self._told_at = 0.0
        self._started_at = 0.0
        #: The storage's time is this much ahead of the monotonic clock, as of its last answer.
        self._ahead: float | None = None
        self._gone = False

    async def run(self) -> None:
        """Tell at once, every ten seconds, and soon after a change; raises what the storage does.

        How many jobs run is told early only when the slots become all busy, or are so no more.
        """
        self._gone = False
        while True:
            if self._due():
                await self.tell()
            await self._clock.sleep(LOOK)

    async def tell(self) -> None:
        """Write the register now.

        Raises:
            Unavailable: the storage did not answer in time.
        """
        try:
            async with asyncio.timeout(ANSWER), self._turn:
                if not self._gone:
                    await self._write()
        except TimeoutError as error:
            message = f"no answer from the storage within {ANSWER:g} s"
            raise Unavailable(message) from error

    async def remove(self) -> None:
        """Take the register back; where that fails it ends by its ttl."""
        self._gone = True
        with contextlib.suppress(PlugqError, TimeoutError):
            async with asyncio.timeout(LAST_MOMENT), self._turn:
                if self._ahead is not None:
                    await self._erase()
        self._version, self._told, self._ahead = 0, None, None

    def state(self) -> dict[str, Any]:
        """Return how many seconds ago the register was written; ``None``: never."""
        age = None if self._told is None else self._clock.monotonic() - self._told_at
        return {"told": age}

    def _due(self) -> bool:
        if self._told is None or self._clock.monotonic() - self._told_at >= RENEWAL:
            return True
        return _notable(self._facts()) != _notable(self._told)

    async def _write(self) -> None:
        if self._ahead is None:
            loaded = await self._registers.load([self._key])
            self._started_at = loaded.now
            self._ahead = loaded.now - self._clock.monotonic()
        for _ in range(TRIES):
            facts = self._facts()
            live = msgspec.structs.replace(
                facts,
                started_at=self._started_at,
                seen=self._clock.monotonic() + self._ahead,
            )
            change = RegisterChange(
                key=self._key,
                expect=self._version,
                value=encode(live),
                ttl=TTL,
            )
            answer = await self._registers.swap([change])
            self._ahead = answer.now - self._clock.monotonic()
            register = answer.registers[0]
            # Nobody else writes this key: another version is that of a write whose answer was
            # lost, and none is a ttl that passed while this process was paused.
            self._version = 0 if register is None else register.version
            if answer.done:
                self._told, self._told_at = facts, self._clock.monotonic()
                return
        message = "another process writes the register of this one"
        raise Unavailable(message)

    async def _erase(self) -> None:
        for _ in range(TRIES):
            change = RegisterChange(key=self._key, expect=self._version, value=None)
            answer = await self._registers.swap([change])
            register = answer.registers[0]
            if answer.done or register is None:
                return
            # A write whose answer nobody waited for.
            self._version = register.version


def _notable(live: Live) -> Live:
    """Return what is told as soon as it changes."""
    busy = live.running >= live.concurrency
    return msgspec.structs.replace(live, running=int(busy), started_at=0.0, seen=0.0)


__all__ = ["PREFIX", "RENEWAL", "TTL", "Live", "Presence", "decode", "encode"]
