"""The serde contract: values to bytes and back."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import msgspec


class SerdeContext(msgspec.Struct, frozen=True, kw_only=True):
    """Whose value it is, so that a wrapping serde can bind the bytes to their job."""

    task: str
    queue: str
    id: str


class Serde(Protocol):
    """Encodes arguments and results.

    ``decode(encode(value))`` equals ``value`` for every value that the serde accepts. Both are
    synchronous, do no I/O and may be called from any thread.
    """

    api_version: ClassVar[int]
    #: Travels with each job, so that producers and workers may use different serdes.
    content_type: ClassVar[str]

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        """Return the value as bytes.

        Raises:
            PayloadError: the value has a type that this serde can not carry; the message names it.
        """
        ...

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        """Return the value that ``data`` stands for, made of the types that this serde encodes.

        Raises:
            Undecodable: the bytes are not valid, or nested deeper than the decoder bears.
        """
        ...


__all__ = ["Serde", "SerdeContext"]
