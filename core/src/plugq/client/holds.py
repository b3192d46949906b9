"""Who is still filling a batch: those who hold it open, in a register of the storage.

A register of its own lists the holders of a batch, each with the moment of the storage's clock
until which it holds. A holder renews long before; one that died holds no longer then.
"""

from __future__ import annotations

import hashlib
import logging
import uuid
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
HOLD_TTL = 30.0
#: Seconds between two words of a holder.
RENEWAL = 10.0

logger: logging.Logger = logging.getLogger(__name__)
_decoder: msgspec.json.Decoder[dict[str, float]] = msgspec.json.Decoder(dict[str, float])


class Ask(Protocol):
    """Repeats a verb that may be repeated until a deadline."""

    def __call__(self, verb: Callable[[], Awaitable[T]], /) -> Awaitable[T]:
        """Return its answer."""
        ...


class Holds:
    """The batches that one client holds open, and the loop that keeps them so."""

    def __init__(self, broker: Broker, clock: Clock, ask: Ask) -> None:
        self._broker = broker
        self._clock = clock
        self._ask = ask
        #: By holder the register of its batch.
        self._held: dict[str, str] = {}
        self._supervisor = Supervisor(clock)

    async def stop(self) -> None:
        """Renew no more: what is still held is so until its time passes."""
        await self._supervisor.stop()
        self._held.clear()

    async def open(self, batch: str) -> str:
        """Hold a batch open and return the name of the holder, once that is stored."""
        holder = uuid.uuid4().hex
        self._held[holder] = register_of(batch)
        try:
            await self._write(holder, register_of(batch))
        except BaseException:
            # What may have been stored is gone by itself soon.
            self._held.pop(holder, None)
            raise
        self._supervisor.run("renew", self._renew_loop)
        return holder

    async def close(self, batch: str, holder: str) -> None:
        """Hold it open no longer."""
        self._held.pop(holder, None)
        try:
            await self._write(holder, register_of(batch))
        except PlugqError as error:
            logger.warning("batch %r stays open for up to %g s: %s", batch, HOLD_TTL, error)

    def state(self) -> dict[str, Any]:
        """Return how many holds there are."""
        return {"open": len(self._held), "loops": self._supervisor.state()}

    async def _write(self, holder: str, register: str) -> None:
        """Store whether a holder holds its batch; an open one takes a new term."""
        while True:
            loaded = await self._ask(partial(self._broker.load, [register]))
            stored = loaded.registers[0]
            holders = holders_of(stored, loaded.now)
            # Looked at after the call: it may have been closed meanwhile.
            if holder in self._held:
                holders[holder] = loaded.now + HOLD_TTL
            elif holders.pop(holder, None) is None:
                return
            change = RegisterChange(
                key=register,
                expect=0 if stored is None else stored.version,
                value=msgspec.json.encode(holders) if holders else None,
                ttl=HOLD_TTL,
            )
            if (await self._ask(partial(self._broker.swap, [change]))).done:
                return

    async def _renew_loop(self) -> None:
        while self._held:
            await self._clock.sleep(RENEWAL)
            for holder, register in list(self._held.items()):
                try:
                    await self._write(holder, register)
                except PlugqError as error:
                    logger.warning("a batch can not be held open: %s", error)


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
