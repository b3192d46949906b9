"""How tables become structs; what each line says is pinned, since users read nothing else."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugq.errors import ConfigError
from plugq.fields import (
    Check,
    EnvText,
    InvalidConfig,
    Reader,
    Size,
    Span,
    Word,
    describe,
    join,
    plain,
    suggestion,
    toml_value,
)


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    size: Annotated[int, msgspec.Meta(ge=1)] = 1


class Table(msgspec.Struct, frozen=True, kw_only=True):
    text: str = ""
    name: Annotated[str, msgspec.Meta(min_length=1)] = "n"
    count: int = 0
    percent: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    ratio: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    flag: bool = False
    wait: Annotated[float, Span(0.5)] = 1.0
    until: Annotated[float | None, Span(), Word("never")] = None
    room: Annotated[int, Size(10)] = 10
    mode: Literal["fast", "slow"] = "fast"
    level: Literal[1, 2] = 1
    colour: Colour = Colour.RED
    inner: Inner = Inner()
    many: list[Inner] = []
    pair: tuple[int, str] = (0, "")
    names: tuple[str, ...] = ()
    table: dict[str, int] = {}
    anything: Any = None
    either: str | list[str] = ""
    number: int | str = 0
    even: Annotated[int, Check(lambda value: "expected an even one" if value % 2 else None)] = 0
    token: int = 0
    renamed: int = msgspec.field(default=0, name="other-name")
    colours: dict[Colour, bool] = {}


def read(values: Any) -> Table:
    reader = Reader()
    table = reader.struct(Table, values, "t")
    reader.finish()
    assert table is not None
    return table


def complaints(values: Any) -> list[str]:
    reader = Reader()
    assert reader.struct(Table, values, "t") is None
    return reader.problems


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("text", "a", "a"),
        ("count", -3, -3),
        ("ratio", 2, 2.0),
        ("wait", "1m", 60.0),
        ("wait", 2, 2.0),
        ("wait", timedelta(seconds=3), 3.0),
        ("until", "never", None),
        ("until", None, None),
        ("until", "1h", 3600.0),
        ("room", 11, 11),
        ("room", "1 KiB", 1024),
        ("room", "2MB", 2_000_000),
        ("room", "1.5 kb", 1500),
        ("room", "1 GiB", 1024**3),
        ("mode", "slow", "slow"),
        ("colour", "blue", Colour.BLUE),
        ("colour", Colour.BLUE, Colour.BLUE),
        ("inner", {"size": 2}, Inner(size=2)),
        ("inner", Inner(size=3), Inner(size=3)),
        ("many", [{"size": 2}, {}], [Inner(size=2), Inner()]),
        ("pair", [1, "a"], (1, "a")),
        ("names", ["a", "b"], ("a", "b")),
        ("table", {"a": 1}, {"a": 1}),
        ("anything", {"a": [1]}, {"a": [1]}),
        ("either", "a", "a"),
        ("either", ["a"], ["a"]),
        ("number", "a", "a"),
        ("number", 7, 7),
        ("even", 4, 4),
        ("colours", {"red": True}, {Colour.RED: True}),
    ],
)
def test_values_are_read_by_their_annotation(key: str, value: object, expected: object) -> None:
    result = getattr(read({key: value}), key)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("text", 3, "t.text: expected text, got 3"),
        ("text", None, "t.text: expected text, got None"),
        ("name", "", "t.name: expected text that is not empty, got ''"),
        ("count", "3", "t.count: expected a whole number, got '3'"),
        ("count", 1.5, "t.count: expected a whole number, got 1.5"),
        ("count", True, "t.count: expected a whole number, got True"),
        ("percent", 101, "t.percent: expected a whole number from 0 to 100, got 101"),
        ("ratio", 0, "t.ratio: expected a number above 0, got 0"),
        ("ratio", float("nan"), "t.ratio: expected a number above 0, got nan"),
        ("ratio", float("inf"), "t.ratio: expected a number above 0, got inf"),
        ("flag", 1, "t.flag: expected true or false, got 1"),
        ("wait", "soon", "t.wait: expected a duration such as '30s' or '1h30m', got 'soon'"),
        ("wait", True, "t.wait: expected a duration such as '30s' or '1h30m', got True"),
        ("wait", -1, "t.wait: expected a duration such as '30s' or '1h30m', got -1"),
        ("wait", "100ms", "t.wait: expected at least 0.5 s, got '100ms'"),
        (
            "until",
            "nevr",
            "t.until: expected a duration such as '30s' or '1h30m' or 'never', got 'nevr'",
        ),
        (
            "room",
            "big",
            "t.room: expected a size in bytes or text such as '1 MiB', got 'big'",
        ),
        ("room", 9, "t.room: expected at least 10 B, got 9 B"),
        ("room", True, "t.room: expected a size in bytes or text such as '1 MiB', got True"),
        (
            "mode",
            "fasst",
            "t.mode: expected 'fast' or 'slow', got 'fasst', did you mean 'fast'?",
        ),
        ("mode", 3, "t.mode: expected 'fast' or 'slow', got 3"),
        ("level", True, "t.level: expected 1 or 2, got True"),
        ("colour", "green", "t.colour: expected 'red' or 'blue', got 'green'"),
        ("inner", 3, "t.inner: expected a table, got 3"),
        ("many", {}, "t.many: expected a list, got {}"),
        ("many", "a", "t.many: expected a list, got 'a'"),
        ("pair", [1], "t.pair: expected 2 values, got 1"),
        ("pair", [1, 2], "t.pair[1]: expected text, got 2"),
        ("names", ["a", 2], "t.names[1]: expected text, got 2"),
        ("table", {"a b": "x"}, "t.table.\"a b\": expected a whole number, got 'x'"),
        ("table", [1], "t.table: expected a table, got [1]"),
        ("either", 3, "t.either: expected text or a list, got 3"),
        ("either", ["a", 3], "t.either[1]: expected text, got 3"),
        ("number", [], "t.number: expected a whole number or text, got []"),
        ("even", 3, "t.even: expected an even one"),
        ("token", "hunter2", "t.token: expected a whole number, got ***"),
        ("other-name", "x", "t.other-name: expected a whole number, got 'x'"),
        ("other_name", 1, "t.other_name: unknown option, did you mean 'other-name'?"),
        ("cuont", 1, "t.cuont: unknown option, did you mean 'count'?"),
        ("COUNT", 1, "t.COUNT: unknown option, did you mean 'count'?"),
        ("zzz", 1, "t.zzz: unknown option"),
        ("a b", 1, 't."a b": unknown option'),
        ("colours", {"rde": True}, "t.colours.rde: unknown option, did you mean 'red'?"),
        ("colours", {"red": 1}, "t.colours.red: expected true or false, got 1"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_path(key: str, value: object, line: str) -> None:
    assert complaints({key: value}) == [line]


def test_every_mistake_is_told() -> None:
    values = {"text": 1, "inner": {"size": 0, "x": 1}, "many": [{"size": 1}, {"size": "a"}]}
    assert complaints(values) == [
        "t.text: expected text, got 1",
        "t.inner.x: unknown option; known: size",
        "t.inner.size: expected a whole number of at least 1, got 0",
        "t.many[1].size: expected a whole number of at least 1, got 'a'",
    ]


def test_a_table_has_text_keys() -> None:
    assert complaints({3: 1}) == ["t: expected text as a key, got 3"]
    assert complaints([("text", "a")]) == ["t: expected a table, got [['text', 'a']]"]


def test_what_is_required_and_what_is_refused() -> None:
    class Needs(msgspec.Struct, kw_only=True):
        url: str
        mode: str = ""

    reader = Reader()
    assert reader.struct(Needs, {"mode": "x"}, "s", refuse={"mode": "is for others"}) is None
    assert reader.problems == ["s.mode: is for others", "s.url: this option is required"]


def test_unset_values_count_as_left_out() -> None:
    assert read({"text": msgspec.UNSET, "count": 1}) == Table(count=1)


def test_a_struct_may_refuse_what_it_is_given() -> None:
    class Picky(msgspec.Struct, kw_only=True):
        first: int = 0
        password: str = ""

        def __post_init__(self) -> None:
            if self.first == 1:
                message = "first: expected another one"
                raise ValueError(message)
            if self.first == 2:
                message = "these do not\ngo together: redis://u:hunter2@h"
                raise ValueError(message)
            if self.password:
                message = f"password: {self.password!r} is too short"
                raise ValueError(message)

    lines = []
    for values in ({"first": 1}, {"first": 2}, {"password": "hunter2"}):
        reader = Reader()
        assert reader.struct(Picky, values, "p") is None
        lines += reader.problems
    assert lines == [
        "p.first: expected another one",
        "p: these do not go together: redis://***@h",
        "p.password: *** is refused",
    ]


def test_the_error_counts_what_it_leaves_out() -> None:
    reader = Reader()
    reader.finish()
    reader.report("a.b", "wrong")
    with pytest.raises(ConfigError, match=r"^a\.b: wrong$"):
        reader.finish()
    reader.report("", "worse")
    reader.report("c", "worst")
    with pytest.raises(InvalidConfig) as raised:
        reader.finish()
    assert str(raised.value) == "a.b: wrong (and 2 more: run plugq check)"
    assert raised.value.problems == ("a.b: wrong", "worse", "c: worst")


@pytest.mark.parametrize(
    ("key", "text", "toml_first", "expected"),
    [
        ("count", "5", False, 5),
        ("text", "5", True, "5"),
        ("text", '"5"', True, "5"),
        ("text", '"5"', False, '"5"'),
        ("flag", "true", False, True),
        ("wait", "5", True, 5.0),
        ("wait", "5s", False, 5.0),
        ("until", "never", True, None),
        ("names", '["a"]', True, ("a",)),
        ("either", '["a"]', True, ["a"]),
        ("either", '["a"]', False, '["a"]'),
        ("inner", "{size = 4}", True, Inner(size=4)),
        ("anything", "5", True, 5),
        ("anything", "5", False, "5"),
        ("mode", "slow", True, "slow"),
    ],
)
def test_text_from_the_environment_takes_the_type_that_fits(
    key: str, text: str, toml_first: bool, expected: object
) -> None:
    result = getattr(read({key: EnvText(text, origin="X", toml_first=toml_first)}), key)
    assert result == expected
    assert type(result) is type(expected)


def test_a_wrong_text_from_the_environment_names_the_variable() -> None:
    assert complaints({"count": EnvText("many", origin="N")}) == [
        "t.count: expected a whole number, got 'many' (from N)"
    ]
    assert complaints({"percent": EnvText("500", origin="N")}) == [
        "t.percent: expected a whole number from 0 to 100, got 500 (from N)"
    ]
    assert complaints({"count": EnvText("hunter2", origin="DB_PASSWORD")}) == [
        "t.count: not what is expected here, *** (from DB_PASSWORD)"
    ]


def test_texts_inside_a_table_from_the_environment_too() -> None:
    assert read(EnvText("{count = 3}", origin="T", toml_first=True)).count == 3
    table = read({"anything": {"a": [EnvText("5", origin="X", toml_first=True), "b"]}})
    assert table.anything == {"a": [5, "b"]}
    assert plain({"a": (EnvText("x", origin="X"),)}) == {"a": ["x"]}
    assert type(plain(EnvText("x", origin="X"))) is str


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5", 5),
        ("[1, 2]", [1, 2]),
        ("abc", None),
        ("", None),
        ("1\nother = 2", None),
        ("[" * 5000, None),
    ],
)
def test_one_toml_value(text: str, expected: object) -> None:
    assert toml_value(text) == expected


@given(st.text())
def test_any_text_may_come_from_the_environment(text: str) -> None:
    assert read({"text": EnvText(text, origin="X")}).text == text


def test_paths_are_written_as_toml_writes_them() -> None:
    assert join("", "a") == "a"
    assert join("a", "b-1_C") == "a.b-1_C"
    assert join("tasks", "a.b") == 'tasks."a.b"'
    assert join("a", 'q"\\') == 'a."q\\"\\\\"'


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Mapping[str, int], "a table"),
        (Annotated[int, msgspec.Meta(lt=5)], "a whole number below 5"),
        (Annotated[int, msgspec.Meta(gt=1, le=5)], "a whole number above 1 and of at most 5"),
        (int | None, "a whole number"),
        (timedelta, "timedelta"),
        (Inner, "a table"),
    ],
)
def test_types_in_words(kind: Any, words: str) -> None:
    assert describe(kind) == words


def test_suggestions() -> None:
    assert suggestion("pth", ["path", "mode"]) == ", did you mean 'path'?"
    assert suggestion("zzz", ["path", "mode"]) == "; known: mode, path"
    assert suggestion("zzz", []) == "; it takes none"
    assert suggestion("zzz", [str(number) for number in range(17)]) == ""
