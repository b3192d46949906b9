"""The JSON serde: what it carries comes back equal, everything else is refused with a remedy."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections import OrderedDict, namedtuple
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import strategies as st

from plugq.builtin.json import MAX_DEPTH, JsonOptions, JsonSerde
from plugq.errors import PayloadError, Undecodable
from plugq.protocols import PluginContext, Serde, SerdeContext
from plugq.testing import SerdeContract

CONTEXT = SerdeContext(task="mail.send", queue="mail", id="a")

_serde_is_a_serde: type[Serde] = JsonSerde

Pair = namedtuple("Pair", "left right")  # noqa: PYI024 - the untyped kind is what users pass


@pytest.fixture
def serde() -> JsonSerde:
    return JsonSerde(JsonOptions(), PluginContext())


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


@dataclasses.dataclass
class Point:
    x: int


class Record(msgspec.Struct):
    x: int


class Text(str):
    __slots__ = ()


class TestJson(SerdeContract):
    def make(self, context: PluginContext) -> Serde:
        return JsonSerde(JsonOptions(), context)

    def values(self) -> st.SearchStrategy[Any]:
        return st.integers() | st.sampled_from([2**64, -(2**63) - 1, 10**300])

    def hostile(self) -> Iterable[bytes]:
        return (
            b"",
            b" ",
            b"nul",
            b"NaN",
            b"Infinity",
            b"1 2",
            b"{'a': 1}",
            b'{"a": 1',
            b"[1,]",
            b'"\xff"',
            b'"\\ud800"',
            b"1e999",
            b"1" * 5_000,
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"\x00",
            bytes(range(256)),
        )


def test_its_content_type_is_that_of_json(serde: JsonSerde) -> None:
    assert serde.content_type == "application/json"


def test_tuples_come_back_as_lists(serde: JsonSerde) -> None:
    assert serde.decode(serde.encode({"a": (1, (2, 3))}, CONTEXT), CONTEXT) == {"a": [1, [2, 3]]}


def test_it_writes_compact_utf_8(serde: JsonSerde) -> None:
    assert serde.encode({"a": ["ü", None, True]}, CONTEXT) == '{"a":["ü",null,true]}'.encode()


@pytest.mark.parametrize(
    ("value", "kind", "remedy"),
    [
        (b"x", "bytes", "base64"),
        (bytearray(b"x"), "bytearray", "base64"),
        (datetime.now(UTC), "datetime", ".isoformat()"),
        (date(2026, 1, 2), "date", ".isoformat()"),
        (time(1, 2), "time", ".isoformat()"),
        (timedelta(1), "timedelta", ".total_seconds()"),
        (UUID(int=1), "UUID", "str("),
        (Decimal("1.5"), "Decimal", "str("),
        ({1}, "set", "list"),
        (frozenset({1}), "frozenset", "list"),
        (Colour.RED, "Colour", ".value"),
        (Level.LOW, "Level", ".value"),
        (Point(1), "Point", "to_builtins"),
        (Record(1), "Record", "to_builtins"),
        (Pair(1, 2), "Pair", "to_builtins"),
        (OrderedDict(a=1), "OrderedDict", "to_builtins"),
        (Text("x"), "Text", "to_builtins"),
        (Fraction(1, 2), "Fraction", "to_builtins"),
        (Path("x"), "Path", "to_builtins"),
        (object(), "object", "to_builtins"),
        (1j, "complex", "to_builtins"),
        (math.nan, "nan", "None"),
        (math.inf, "inf", "None"),
        (-math.inf, "-inf", "None"),
    ],
)
def test_it_names_the_type_the_place_and_the_remedy(
    serde: JsonSerde, value: Any, kind: str, remedy: str
) -> None:
    with pytest.raises(PayloadError) as refused:
        serde.encode({"args": [1, {"when it's": (0, value)}]}, CONTEXT)
    message = str(refused.value)
    assert kind in message
    assert remedy in message
    assert """value['args'][1]["when it's"][1]""" in message
    assert message.startswith("mail.send: ")
    assert "\n" not in message


def test_a_value_that_is_refused_as_a_whole_is_named_value(serde: JsonSerde) -> None:
    with pytest.raises(PayloadError, match="a bytes, which JSON can not carry at value; "):
        serde.encode(b"", CONTEXT)


@pytest.mark.parametrize("key", [1, 1.5, None, True, (1, 2), b"k", Text("k")])
def test_only_text_is_a_key(serde: JsonSerde, key: Any) -> None:
    with pytest.raises(PayloadError, match="key") as refused:
        serde.encode({"a": {key: 1}}, CONTEXT)
    assert "value['a']" in str(refused.value)


@pytest.mark.parametrize("value", ["\ud800", {"\udfff": 1}, ["ok", "\ud83d"]])
def test_lone_surrogates_are_refused(serde: JsonSerde, value: Any) -> None:
    with pytest.raises(PayloadError, match="surrogate"):
        serde.encode(value, CONTEXT)


def test_an_integer_that_python_does_not_write_is_refused(serde: JsonSerde) -> None:
    with pytest.raises(PayloadError, match="digits"):
        serde.encode(10**5_000, CONTEXT)


def test_nesting_is_bounded_so_that_what_is_accepted_can_be_decoded(serde: JsonSerde) -> None:
    deepest = nested(MAX_DEPTH)
    assert serde.decode(serde.encode(deepest, CONTEXT), CONTEXT) == deepest
    with pytest.raises(PayloadError, match="levels of nesting"):
        serde.encode(nested(MAX_DEPTH + 1), CONTEXT)


def test_a_value_that_contains_itself_is_refused(serde: JsonSerde) -> None:
    value: list[Any] = []
    value.append({"again": value})
    with pytest.raises(PayloadError, match="contains itself"):
        serde.encode(value, CONTEXT)


def test_what_is_no_json_is_told_with_its_task(serde: JsonSerde) -> None:
    with pytest.raises(Undecodable, match=r"^mail\.send: the bytes are no JSON: "):
        serde.decode(b"nul", CONTEXT)
