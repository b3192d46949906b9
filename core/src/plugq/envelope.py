"""What travels inside a job's opaque body and result, so that storages need not know it."""

from __future__ import annotations

from typing import Any

import msgspec

from plugq.errors import Undecodable
from plugq.retry import RetryTerms

_RAISES = (msgspec.DecodeError, msgspec.ValidationError, RecursionError, ValueError, TypeError)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A submission as its worker reads it: the encoded arguments and how to run them."""

    content_type: str
    arguments: bytes
    retry: RetryTerms
    timeout: float | None = None
    headers: dict[str, str] = {}
    version: int = 1


class Result(msgspec.Struct, frozen=True, array_like=True):
    """An encoded result and what it is encoded as."""

    content_type: str
    value: bytes
    version: int = 1


_encoder = msgspec.msgpack.Encoder()
_envelope = msgspec.msgpack.Decoder(Envelope)
_result = msgspec.msgpack.Decoder(Result)


def pack(value: Envelope | Result) -> bytes:
    """Return an envelope or a result as bytes."""
    return _encoder.encode(value)


def open_body(data: bytes) -> Envelope:
    """Return the envelope of a job's body.

    Raises:
        Undecodable: the bytes are no envelope of a version that is known here.
    """
    opened: Envelope = _open(_envelope, data, "body")
    return opened


def open_result(data: bytes) -> Result:
    """Return the result of a job in its envelope.

    Raises:
        Undecodable: the bytes are no result of a version that is known here.
    """
    opened: Result = _open(_result, data, "result")
    return opened


def _open(decoder: msgspec.msgpack.Decoder[Any], data: bytes, what: str) -> Any:
    try:
        opened = decoder.decode(data)
    except _RAISES as error:
        message = f"the {what} of the job can not be read: {error}"
        raise Undecodable(message) from error
    if opened.version != 1:
        message = f"the {what} of the job has version {opened.version}; this plugq reads version 1"
        raise Undecodable(message)
    return opened


__all__ = ["Envelope", "Result", "open_body", "open_result", "pack"]
