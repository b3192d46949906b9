"""What a serde can not carry is refused at once: it never comes back as something else."""

from __future__ import annotations

import collections
import dataclasses
import enum
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from plugq.errors import PayloadError, Undecodable
from plugq.testing.contract.serde_subject import (
    CONTEXT,
    SerdeSubject,
    attempt,
    levels_of,
    nested,
    same,
)


class Colour(enum.StrEnum):
    """Text that is more than text."""

    RED = "red"


class Level(enum.IntEnum):
    """A number that is more than a number."""

    LOW = 1


@dataclasses.dataclass
class Point:
    """An object of the user's."""

    x: int


class Record(msgspec.Struct):
    """Another one."""

    x: int


class Text(str):
    """A subclass that equals its base."""

    __slots__ = ()


class Number(int):
    """A subclass that equals its base."""


class Thing:
    """An object that equals no other."""


class Pair(NamedTuple):
    """A tuple that is more than a tuple."""

    left: int
    right: int


#: Values of types that not every serde has.
_TYPED: tuple[Any, ...] = (
    b"x",
    b"",
    bytearray(b"x"),
    memoryview(b"x"),
    datetime(2026, 1, 2, 3, 4, 5, 678901, UTC),
    datetime(2026, 1, 2, 3, 4, 5, 678901),  # noqa: DTZ001 - users pass naive ones
    date(2026, 1, 2),
    time(1, 2, 3, 4),
    timedelta(days=1, microseconds=1),
    UUID(int=1),
    Decimal("1.50"),
    Fraction(1, 3),
    1j,
    {1},
    frozenset({"a"}),
    range(3),
    Colour.RED,
    Level.LOW,
    Point(1),
    Record(1),
    Pair(1, 2),
    collections.OrderedDict(a=1),
    collections.defaultdict(int, a=1),
    collections.deque([1]),
    Text("x"),
    Number(1),
    PurePosixPath("x"),
    Thing(),
    Thing,
    len,
    ...,
)

#: Values of plain types that not every serde can write.
_EXTREME: tuple[Any, ...] = (
    math.nan,
    math.inf,
    -math.inf,
    2**64,
    -(2**63) - 1,
    10**300,
    -(10**5_000),
    "\ud800",
    "a\udfff",
    "\ud83d\ude00",
)

#: Keys that are no text.
_KEYS: tuple[Any, ...] = (1, 1.5, None, True, (1, 2), b"k", Text("k"), Colour.RED, Thing())


class Refusals(SerdeSubject):
    """``PayloadError`` in the submitting process, instead of a surprise in the worker."""

    def _judge(self, value: Any) -> PayloadError | None:
        """Let a value come back as it is or be refused in one line that names the task."""
        serde = self.serde()
        data = attempt(serde, value)
        if isinstance(data, bytes):
            assert same(value, serde.decode(data, CONTEXT)), "it came back as something else"
            return None
        assert not isinstance(data, Undecodable)
        assert CONTEXT.task in str(data)
        assert "\n" not in str(data)
        return data

    def test_a_type_comes_back_or_is_named(self) -> None:
        """Wherever in the value it is."""
        for value in _TYPED:
            for whole in (value, [1, value], {"k": {"l": value}}, (value,)):
                refused = self._judge(whole)
                if refused is not None:
                    assert type(value).__qualname__ in str(refused)

    def test_a_key_comes_back_or_its_type_is_named(self) -> None:
        """It does not become text."""
        for key in _KEYS:
            for whole in ({key: 1}, [{"k": {key: 1, "z": 2}}]):
                refused = self._judge(whole)
                if refused is not None:
                    assert type(key).__qualname__ in str(refused)

    def test_keys_do_not_run_together(self) -> None:
        """``1`` and ``"1"`` are two."""
        self._judge({1: "a", "1": "b"})
        self._judge({None: "a", "null": "b", "None": "c"})

    def test_extremes_come_back_or_are_refused(self) -> None:
        """Numbers that are none or too large, and halves of characters."""
        for value in _EXTREME:
            for whole in (value, [value], {"k": value}):
                self._judge(whole)
        for half in ("\ud800", "\udfff"):
            self._judge({half: 1})

    def test_what_contains_itself_is_refused(self) -> None:
        """There is no end to it."""
        ring: list[Any] = []
        ring.append({"again": ring})
        loop: dict[str, Any] = {}
        loop["again"] = [loop]
        for endless in (ring, loop):
            refused = attempt(self.serde(), endless)
            assert isinstance(refused, PayloadError)
            assert CONTEXT.task in str(refused)

    def test_what_is_accepted_however_deep_can_be_decoded(self) -> None:
        """The rest is refused, also where Python's stack would not suffice."""
        serde = self.serde()
        for levels in (*range(40, 2_000, 20), 5_000, 100_000):
            for mapped in (False, True):
                data = attempt(serde, nested(levels, mapped=mapped))
                if isinstance(data, bytes):
                    assert levels_of(serde.decode(data, CONTEXT)) == levels


__all__ = ["Refusals"]
