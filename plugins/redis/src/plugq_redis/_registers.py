"""Registers: small versioned values with a time to live."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from plugq.protocols.storage import Loaded, Register, Swapped
from plugq_redis._faults import refusal
from plugq_redis._records import encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.protocols.storage import RegisterChange
    from plugq_redis._place import Place

#: The version and the end before each value.
_HEAD = struct.Struct(">dd")
now_of = msgspec.msgpack.Decoder(float).decode


async def load(server: Place, keys: Sequence[str]) -> Loaded:
    """Return registers and the time."""
    now, found = await server.run("load", _keys(server, keys), writes=False)
    return Loaded(registers=_registers(keys, found), now=now_of(now))


async def swap(server: Place, changes: Sequence[RegisterChange]) -> Swapped:
    """Make all changes or none."""
    try:
        asked = encode(
            [(change.key, change.expect, change.value is None, change.ttl) for change in changes],
        )
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    values = [change.value or b"" for change in changes]
    now, done, found = await server.run("swap", asked, *values)
    registers = _registers([change.key for change in changes], found)
    return Swapped(done=bool(done), registers=registers, now=now_of(now))


async def scan(server: Place, prefix: str) -> list[Register]:
    """Return the registers whose key starts with the prefix, by key."""
    try:
        asked = prefix.encode()
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None
    found = await server.run("scan", asked, writes=False)
    pairs = zip(found[::2], found[1::2], strict=True)
    return [_register(key.decode(), stored) for key, stored in pairs]


def _keys(server: Place, keys: Sequence[str]) -> bytes:
    try:
        return encode(list(keys))
    except UnicodeEncodeError as error:
        raise refusal(error, server.place) from None


def _registers(keys: Sequence[str], found: Sequence[bytes | None]) -> tuple[Register | None, ...]:
    pairs = zip(keys, found, strict=True)
    return tuple(
        [None if stored is None else _register(key, stored) for key, stored in pairs],
    )


def _register(key: str, stored: bytes) -> Register:
    version, _ = _HEAD.unpack_from(stored)
    return Register(key=key, version=int(version), value=stored[_HEAD.size :])
