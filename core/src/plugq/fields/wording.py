"""Paths, types and suggestions in the words of an error message."""

from __future__ import annotations

import difflib
import enum
import re
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_MANY = 16


def join(path: str, key: str) -> str:
    """Return the path of a key inside a table, quoted where TOML would quote it."""
    name = (
        key if _BARE.fullmatch(key) else '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
    return f"{path}.{name}" if path else name


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``, did you mean 'x'?``, or the known names where none is close and few exist."""
    names = sorted(known)
    lower = {known_name.lower(): known_name for known_name in names}
    close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    if close:
        return f", did you mean {lower[close[0]]!r}?"
    if not names:
        return "; it takes none"
    return f"; known: {', '.join(names)}" if len(names) <= _MANY else ""


_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    Mapping: "a table",
}


def describe(kind: Any, marks: Sequence[Any] = ()) -> str:
    """Return in words what an annotation takes: ``a whole number of at least 1``."""
    origin = get_origin(kind)
    if origin is Annotated:
        kind, *rest = get_args(kind)
        return describe(kind, rest)
    if origin in {Union, types.UnionType}:
        arms = [
            describe(arm, marks)
            for arm in get_args(kind)
            if arm not in {type(None), msgspec.UnsetType} and get_origin(arm) is not type
        ]
        return _alternatives(list(dict.fromkeys(arms)))
    if origin is Literal:
        return _alternatives([repr(value) for value in get_args(kind)])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _alternatives([repr(member.value) for member in kind])
    container = origin or kind
    if container in {list, tuple, set, frozenset}:
        return "a list"
    if isinstance(container, type) and issubclass(container, msgspec.Struct):
        return "a table"
    name = _NAMES.get(container) or getattr(container, "__name__", str(container))
    return f"{name}{_bounds(container, marks)}"


def _bounds(kind: Any, marks: Sequence[Any]) -> str:
    metas = [mark for mark in marks if isinstance(mark, msgspec.Meta)]
    least = next((meta.ge for meta in metas if meta.ge is not None), None)
    above = next((meta.gt for meta in metas if meta.gt is not None), None)
    most = next((meta.le for meta in metas if meta.le is not None), None)
    below = next((meta.lt for meta in metas if meta.lt is not None), None)
    if kind is str:
        return " that is not empty" if any(meta.min_length for meta in metas) else ""
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    parts = [
        f"{word} {bound:g}"
        for word, bound in (
            ("of at least", least),
            ("above", above),
            ("of at most", most),
            ("below", below),
        )
        if bound is not None
    ]
    return f" {' and '.join(parts)}" if parts else ""


def _alternatives(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


__all__ = ["describe", "join", "suggestion"]
