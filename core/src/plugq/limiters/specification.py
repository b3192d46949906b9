"""Limits as they are stored with a queue: bytes that any process can make limiters from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from plugq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(list[tuple[str, dict[str, Any]]])


def pack_limits(limits: Sequence[tuple[str, Mapping[str, Any]]]) -> bytes:
    """Return limiters, each by the name of its plugin and its options; the same for equal ones.

    No limiters are empty bytes.
    """
    return _encoder.encode([(use, dict(options)) for use, options in limits]) if limits else b""


def unpack_limits(specification: bytes) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and options that :func:`pack_limits` was given.

    Raises:
        ConfigError: another version of plugq wrote it, or something else did.
    """
    try:
        return _decoder.decode(specification)
    except msgspec.MsgspecError as error:
        message = f"the stored limits can not be read by this version: {error}"
        raise ConfigError(message) from error


__all__ = ["pack_limits", "unpack_limits"]
