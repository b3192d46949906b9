"""Who is still filling a batch: those who hold it open, in a register of the storage.

A register of its own lists the holders of a batch, each with the moment of the storage's clock
until which it holds. A holder renews long before, and tries again soon where it fails; a batch is
held no longer should the process die, not reach the storage or block its loop for 2 minutes. A
holder that finds that it held no longer says so, and holds again if its block goes on.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import uuid
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from plugq.errors import PlugqError
from plugq.lifecycle import Supervisor
from plugq.protocols.storage import RegisterChange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from plugq.clock import Clock
    from plugq.protocols.broker import Broker
    from plugq.protocols.storage import Register

T = TypeVar("T")

#: Seconds of the storage's clock for which a batch is held after the last word of its holder.
HOLD_TTL = 120.0
#: Seconds between two words of a holder.
RENEWAL = 15.0
#: Seconds until a word that could not be said is said again; the first and the longest pause.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0

logger: logging.Logger = logging.getLogger(__name__)
_decoder: msgspec.json.Decoder[dict[str, float]] = msgspec.json.Decoder(dict[str, float])


class Ask(Protocol):
    """Repeats a verb that may be repeated until a deadline."""

    def __call__(self, verb: Callable[[], Awaitable[T]], /) -> Awaitable[T]:
        """Return its answer."""
        ...


@dataclass(slots=True)
class _Hold:
    batch: str
    register: str
    #: Who opened it.
    task: asyncio.Task[Any] | None
    #: The moment of the storage's clock until which it holds at the least.
    until: float = math.inf


class Holds:
    """The batches that one client holds open, and the loop that keeps them so."""

    def __init__(self, broker: Broker, clock: Clock, ask: Ask) -> None:
        self._broker = broker
        self._clock = clock
        self._ask = ask
        self._held: dict[str, _Hold] = {}
        self._supervisor = Supervisor(clock)

    async def stop(self) -> None:
        """Renew no more: what is still held is so until its time passes."""
        await self._supervisor.stop()
        self._held.clear()

    async def open(self, batch: str) -> str:
        """Hold a batch open and return the name of the holder, once that is stored."""
        holder = uuid.uuid4().hex
        hold = self._held[holder] = _Hold(batch, register_of(batch), asyncio.current_task())
        try:
            await self._write(holder, hold)
        except BaseException:
            # What may have been stored is gone by itself soon.
            self._held.pop(holder, None)
            raise
        self._supervisor.run("renew", self._renew_loop)
        return holder

    async def close(self, batch: str, holder: str) -> None:
        """Hold it open no longer."""
        hold = self._held.pop(holder, None) or _Hold(batch, register_of(batch), None)
        try:
            await self._write(holder, hold)
        except PlugqError as error:
            logger.warning("batch %r stays open for up to %g s: %s", batch, HOLD_TTL, error)

    def opened_by(self, task: asyncio.Task[Any] | None, batch: str) -> bool:
        """Return whether a task holds a batch open."""
        return any(hold.batch == batch and hold.task is task for hold in self._held.values())

    def state(self) -> dict[str, Any]:
        """Return how many holds there are."""
        return {"open": len(self._held), "loops": self._supervisor.state()}

    async def _write(self, holder: str, hold: _Hold) -> None:
        """Store whether a holder holds its batch; an open one takes a new term."""
        while True:
            loaded = await self._ask(partial(self._broker.load, [hold.register]))
            stored = loaded.registers[0]
            holders = holders_of(stored, loaded.now)
            if holder not in holders and hold.until <= loaded.now:
                logger.warning(
                    "batch %r was not held open for %.0f s, and may have looked done: for %g s "
                    "its hold could not be renewed",
                    hold.batch,
                    loaded.now - hold.until,
                    HOLD_TTL,
                )
                # Said once.
                hold.until = math.inf
            # Looked at after the call: it may have been closed meanwhile.
            if holder in self._held:
                holders[holder] = loaded.now + HOLD_TTL
            elif holders.pop(holder, None) is None:
                return
            change = RegisterChange(
                key=hold.register,
                expect=0 if stored is None else stored.version,
                value=msgspec.json.encode(holders) if holders else None,
                ttl=HOLD_TTL,
            )
            if (await self._ask(partial(self._broker.swap, [change]))).done:
                hold.until = holders.get(holder, math.inf)
                return

    async def _renew_loop(self) -> None:
        while self._held:
            await self._clock.sleep(RENEWAL)
            await self._renew(deque(self._held))

    async def _renew(self, due: deque[str]) -> None:
        """Renew holds, one after the other, until each is renewed or let go."""
        pause = FIRST_PAUSE
        while due:
            holder = due.popleft()
            hold = self._held.get(holder)
            if hold is None:
                continue
            try:
                await self._write(holder, hold)
            except Exception as error:  # noqa: BLE001 - whatever it is, the hold is worth a try more
                logger.warning("batch %r can not be held open now: %s", hold.batch, error)
                due.append(holder)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE


def register_of(batch: str) -> str:
    """Return the key of the register that lists who holds a batch open.

    A digest, since the key of a batch is any text.
    """
    return f"batch:{hashlib.sha256(batch.encode()).hexdigest()}"


def holders_of(register: Register | None, now: float) -> dict[str, float]:
    """Return who holds a batch, and until when by the storage's clock."""
    if register is None:
        return {}
    try:
        holders = _decoder.decode(register.value)
    except msgspec.MsgspecError:
        return {}
    return {holder: until for holder, until in holders.items() if until > now}


__all__ = ["HOLD_TTL", "RENEWAL", "Ask", "Holds", "holders_of", "register_of"]
