"""JSON, compressed where it is long, and bounded in what it unpacks to."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import msgspec

from plugq.errors import PayloadError, PayloadTooLarge, Undecodable

if TYPE_CHECKING:
    from plugq.protocols import Capability, PluginContext, SerdeContext

#: What the first byte says of the others.
_PLAIN, _PACKED = b"\x00", b"\x01"
#: Levels of lists and dictionaries that are written; the decoder bears more.
_DEPTH = 100


class TemplateSerdeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From how many bytes on JSON is compressed, and how many it may have at most."""

    above: Annotated[int, msgspec.Meta(ge=0)] = 4096
    most: Annotated[int, msgspec.Meta(ge=1)] = 4 * 2**20


class TemplateSerde:
    """Carries what JSON carries exactly: text, numbers, booleans, ``None``, lists, dictionaries.

    Tuples come back as lists. All else is refused, and so is what is longer than ``most``, by the
    writer as by the reader: a few bytes can unpack to gigabytes.
    """

    api_version: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = TemplateSerdeOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    content_type: ClassVar[str] = "application/vnd.plugq.template+json"

    def __init__(self, options: TemplateSerdeOptions, context: PluginContext) -> None:
        del context
        self._above = options.above
        self._most = options.most

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        """Return the value as bytes.

        Raises:
            PayloadError: JSON can not carry it; the message names the type.
            PayloadTooLarge: its JSON is longer than ``most``.
        """
        try:
            _check(value, _DEPTH)
            data = msgspec.json.encode(value)
        except UnicodeEncodeError:
            raise PayloadError(f"{context.task}: a text holds a lone surrogate") from None
        except (TypeError, ValueError) as error:
            raise PayloadError(f"{context.task}: {error}") from None
        if len(data) > self._most:
            raise PayloadTooLarge(
                f"{context.task}: {len(data)} bytes of JSON, where {self._most} may be; "
                "pass less of it, or raise serde.most",
                size=len(data),
                limit=self._most,
            )
        return _PACKED + zlib.compress(data) if len(data) > self._above else _PLAIN + data

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        """Return the value.

        Raises:
            Undecodable: the bytes are none of this serde's, or unpack to more than ``most``.
        """
        try:
            text = self._unpacked(data[1:]) if data[:1] == _PACKED else data[1:]
            if data[:1] not in {_PLAIN, _PACKED} or len(text) > self._most:
                raise Undecodable(f"{context.task}: the bytes are none of {self.content_type}")
            return msgspec.json.decode(text)
        except (msgspec.MsgspecError, zlib.error, UnicodeError, RecursionError) as error:
            raise Undecodable(f"{context.task}: the bytes are damaged: {error}") from None

    def _unpacked(self, data: bytes) -> bytes:
        unpacking = zlib.decompressobj()
        # One byte more than may be tells that there is too much, whatever it would come to.
        text = unpacking.decompress(data, self._most + 1)
        if len(text) <= self._most and (not unpacking.eof or unpacking.unused_data):
            raise zlib.error("the end is missing, or something follows it")
        return text


def _check(value: Any, depth: int) -> None:
    """Raise for what would not come back as it is; by exact types, for subclasses lose theirs."""
    kind = type(value)
    if value is None or kind in {str, int, bool} or (kind is float and math.isfinite(value)):
        return
    if kind is float:
        raise ValueError(f"{value} is no number that JSON has")
    if kind not in {list, tuple, dict}:
        raise TypeError(f"a {kind.__qualname__} is nothing that JSON has")
    if not depth:
        raise ValueError(f"more than {_DEPTH} levels of nesting")
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise TypeError(f"a {type(key).__qualname__} as key; JSON has only text")
        value = value.values()
    for item in value:
        _check(item, depth - 1)


__all__ = ["TemplateSerde", "TemplateSerdeOptions"]
