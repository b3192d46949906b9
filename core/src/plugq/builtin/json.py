"""The JSON serde: values that JSON carries exactly, and a clear line for every other."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

import msgspec

from plugq.errors import PayloadError, Undecodable
from plugq.protocols.plugin import API_VERSION, Capability

if TYPE_CHECKING:
    from plugq.protocols.plugin import PluginContext
    from plugq.protocols.serde import SerdeContext

#: Levels of nesting. Far below what the decoder bears on a deep call stack.
MAX_DEPTH = 128

#: What to do about the types that are passed most often, first match wins.
_REMEDIES: tuple[tuple[type | tuple[type, ...], str], ...] = (
    ((bytes, bytearray, memoryview), "pass base64 text, or use a binary serde such as msgpack"),
    ((datetime, date, time), "pass .isoformat()"),
    (timedelta, "pass .total_seconds()"),
    ((UUID, Decimal), "pass str(…) of it"),
    ((set, frozenset), "pass a sorted list"),
    (Enum, "pass its .value"),
)


class JsonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The JSON serde has no options."""


class JsonSerde:
    """JSON by msgspec.

    Carries text, integers, finite floats, booleans, ``None``, lists, dictionaries with
    text as keys, and tuples, which come back as lists. Everything else is refused instead of
    being turned into something that looks like it.
    """

    api_version: ClassVar[int] = API_VERSION
    Options: ClassVar[type[msgspec.Struct]] = JsonOptions
    capabilities: ClassVar[frozenset[Capability]] = frozenset()
    content_type: ClassVar[str] = "application/json"

    def __init__(self, options: JsonOptions, context: PluginContext) -> None:
        del options, context

    def encode(self, value: Any, context: SerdeContext) -> bytes:
        """Return the value as JSON.

        Raises:
            PayloadError: JSON can not carry it exactly; the message names type, place and remedy.
        """
        try:
            _check(value, MAX_DEPTH)
            return msgspec.json.encode(value)
        except _Refusal as refusal:
            raise PayloadError(f"{context.task}: {refusal.told()}") from None
        except UnicodeEncodeError:
            message = "a text holds a lone surrogate, which is no character; repair or replace it"
            raise PayloadError(f"{context.task}: {message}") from None
        except ValueError:
            message = "an integer has more digits than Python converts; pass hex(…) of it"
            raise PayloadError(f"{context.task}: {message}") from None

    def decode(self, data: bytes, context: SerdeContext) -> Any:
        """Return the value that the JSON stands for.

        Raises:
            Undecodable: the bytes are no JSON, or nested deeper than the decoder bears.
        """
        try:
            return msgspec.json.decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeError, MemoryError) as error:
            raise Undecodable(f"{context.task}: the bytes are no JSON: {error}") from error


class _Refusal(Exception):
    """Why a value is refused; its place is collected on the way out."""

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(fact)
        self.remedy = remedy
        self.path: list[str] = []

    def told(self) -> str:
        place = "".join(reversed(self.path))
        return f"{self.args[0]} at value{place}; {self.remedy}"


def _check(value: Any, depth: int) -> None:
    """Let pass what comes back equal; the exact types keep subclasses from losing theirs."""
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return
    if kind is float:
        if not math.isfinite(value):
            raise _Refusal(f"{value!r}, which JSON does not have", "pass None or text")
    elif kind is dict:
        _check_items(value, depth)
    elif kind is list or kind is tuple:
        _check_elements(value, depth)
    else:
        raise _Refusal(f"a {kind.__qualname__}, which JSON can not carry", _remedy(value))


def _check_items(value: dict[Any, Any], depth: int) -> None:
    if not depth:
        raise _too_deep()
    for key, item in value.items():
        if type(key) is not str:
            raise _Refusal(
                f"the key {key!r}, a {type(key).__qualname__}, where JSON has only text",
                "pass str(…) of it, or a list of pairs",
            )
        try:
            _check(item, depth - 1)
        except _Refusal as refusal:
            refusal.path.append(f"[{key!r}]")
            raise


def _check_elements(value: list[Any] | tuple[Any, ...], depth: int) -> None:
    if not depth:
        raise _too_deep()
    for index, item in enumerate(value):
        try:
            _check(item, depth - 1)
        except _Refusal as refusal:
            refusal.path.append(f"[{index}]")
            raise


def _too_deep() -> _Refusal:
    return _Refusal(
        f"more than {MAX_DEPTH} levels of nesting",
        "pass less of it, and nothing that contains itself",
    )


def _remedy(value: Any) -> str:
    for kinds, remedy in _REMEDIES:
        if isinstance(value, kinds):
            return remedy
    return "pass text, numbers, lists and dictionaries, such as msgspec.to_builtins() makes"


__all__ = ["MAX_DEPTH", "JsonOptions", "JsonSerde"]
