"""The reader itself."""

from __future__ import annotations

import enum
import math
import re
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin
from typing import get_type_hints as type_hints

import msgspec

from plugq.duration import seconds
from plugq.errors import ConfigError
from plugq.fields.marks import Check, EnvText, Size, Span, Word, plain
from plugq.fields.wording import describe, join, suggestion
from plugq.redaction import HIDDEN, is_secret, redact, shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

StructT = TypeVar("StructT", bound=msgspec.Struct)

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|GB|KIB|MIB|GIB)?", re.IGNORECASE)
_SIZES = {
    "B": 1,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "KIB": 1024,
    "MIB": 1024**2,
    "GIB": 1024**3,
}
_FIELD = re.compile(r"(\w+): ")
#: Stands for a value that could not be read; its line is among the problems.
_BAD: Any = object()


class InvalidConfig(ConfigError):
    """Values are wrong; the message is the first line of ``problems`` and counts the others."""

    def __init__(self, problems: Sequence[str]) -> None:
        first, more = problems[0], len(problems) - 1
        super().__init__(f"{first} (and {more} more: run plugq check)" if more else first)
        self.problems: tuple[str, ...] = tuple(problems)


class Reader:
    """Reads values by their annotations and collects what is wrong in :attr:`problems`."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def finish(self) -> None:
        """Do nothing if all was well.

        Raises:
            ConfigError: something was wrong; ``problems`` holds all lines.
        """
        if self.problems:
            raise InvalidConfig(self.problems)

    def report(self, path: str, complaint: str) -> Any:
        """Add a line; what is returned stands for the value that could not be read."""
        self.problems.append(f"{path}: {complaint}" if path else complaint)
        return _BAD

    def struct(
        self,
        kind: type[StructT],
        values: object,
        path: str = "",
        *,
        refuse: Mapping[str, str] | None = None,
    ) -> StructT | None:
        """Return a struct made of the values, or ``None`` after adding what is wrong.

        ``refuse`` maps fields that can not be given here to the reason.
        """
        values = plain(values) if isinstance(values, EnvText) else values
        if isinstance(values, kind):
            return values
        if not isinstance(values, Mapping):
            self.report(path, f"expected a table, got {shown(values, path)}")
            return None
        before = len(self.problems)
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        refuse = refuse or {}
        self._unknown(values, fields.keys() - refuse.keys(), refuse, path)
        hints = type_hints(kind, include_extras=True)
        arguments = {}
        for key, field in fields.items():
            if values.get(key, msgspec.UNSET) is not msgspec.UNSET and key not in refuse:
                arguments[field.name] = self.value(hints[field.name], values[key], join(path, key))
            elif field.required:
                self.report(join(path, key), "this option is required")
        if len(self.problems) > before:
            return None
        try:
            return kind(**arguments)
        except (TypeError, ValueError) as error:
            self._refused(kind, path, error, values)
            return None

    def _unknown(
        self,
        values: Mapping[Any, Any],
        known: Iterable[str],
        refuse: Mapping[str, str],
        path: str,
    ) -> None:
        known = frozenset(known)
        for key in values:
            if not isinstance(key, str):
                self.report(path, f"expected text as a key, got {shown(key)}")
            elif key not in known:
                complaint = refuse.get(key) or f"unknown option{suggestion(key, known)}"
                self.report(join(path, key), f"{complaint}{_named_by(values[key])}")

    def _refused(
        self, kind: type[msgspec.Struct], path: str, error: Exception, values: Mapping[str, Any]
    ) -> None:
        """Report what a struct itself found wrong, at the field that its message starts with."""
        text = redact(" ".join(str(error).split())) or type(error).__name__
        named = _FIELD.match(text)
        for field in msgspec.structs.fields(kind):
            if named and named[1] in {field.name, field.encode_name}:
                rest = text[named.end() :]
                if is_secret(field.encode_name):
                    rest = f"{shown(values.get(field.encode_name), field.encode_name)} is refused"
                self.report(join(path, field.encode_name), rest)
                return
        self.report(path, text)

    def value(self, kind: Any, value: Any, path: str) -> Any:
        """Return the value as its annotation wants it; after a mistake what comes is useless."""
        if isinstance(value, EnvText):
            return self._environment(kind, value, path)
        marks: tuple[Any, ...] = ()
        if get_origin(kind) is Annotated:
            kind, *rest = get_args(kind)
            marks = tuple(rest)
        for mark in marks:
            if isinstance(mark, Word) and (value is None or value == mark.text):
                return None
        before = len(self.problems)
        result = self._marked(kind, value, path, marks)
        if len(self.problems) > before:
            return _BAD
        for mark in marks:
            complaint = mark.complaint(result) if isinstance(mark, Check) else None
            if complaint:
                return self.report(path, complaint)
        return result

    def _environment(self, kind: Any, value: EnvText, path: str) -> Any:
        problems: list[str] = []
        for reading in value.readings():
            trial = Reader()
            result = trial.value(kind, reading, path)
            if not trial.problems:
                return result
            if not problems or not isinstance(reading, str):
                problems = trial.problems
        if is_secret(value.origin):
            problems = [f"{path}: not what is expected here, {HIDDEN}"]
        self.problems += [f"{problem} (from {value.origin})" for problem in problems]
        return _BAD

    def _marked(self, kind: Any, value: Any, path: str, marks: tuple[Any, ...]) -> Any:
        if value is None and type(None) in get_args(kind):
            return None
        for mark in marks:
            if isinstance(mark, Span):
                return self._span(value, path, mark, marks)
            if isinstance(mark, Size):
                return self._size(value, path, mark)
        return self._typed(kind, value, path, marks)

    def _span(self, value: Any, path: str, mark: Span, marks: tuple[Any, ...]) -> Any:
        word = next((f" or {mark.text!r}" for mark in marks if isinstance(mark, Word)), "")
        try:
            result = seconds(value, name=path)
        except (TypeError, ValueError):
            return self.report(
                path,
                f"expected a duration such as '30s' or '1h30m'{word}, got {shown(value, path)}",
            )
        if result < mark.least:
            return self.report(
                path, f"expected at least {mark.least:g} s, got {shown(value, path)}"
            )
        return result

    def _size(self, value: Any, path: str, mark: Size) -> Any:
        size = value if isinstance(value, int) and not isinstance(value, bool) else None
        if isinstance(value, str):
            written = _SIZE.fullmatch(value.strip())
            if written:
                size = int(float(written[1]) * _SIZES[(written[2] or "B").upper()])
        if size is None:
            complaint = (
                f"expected a size in bytes or text such as '1 MiB', got {shown(value, path)}"
            )
            return self.report(path, complaint)
        if size < mark.least:
            return self.report(path, f"expected at least {mark.least} B, got {size} B")
        return size

    def _typed(self, kind: Any, value: Any, path: str, marks: tuple[Any, ...]) -> Any:
        origin = get_origin(kind)
        if kind is Any or kind is object:
            return plain(value)
        if origin in {Union, types.UnionType}:
            return self._union(kind, value, path, marks)
        if origin is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
            return self._choice(kind, value, path)
        container = origin or kind
        if container in {list, tuple, set, frozenset} and isinstance(value, list | tuple):
            return self._sequence(container, kind, value, path)
        if container in {dict, Mapping} and isinstance(value, Mapping):
            return self._mapping(kind, value, path)
        if hasattr(kind, "from_table"):
            return kind.from_table(value, path, self)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            made = self.struct(kind, value, path)
            return _BAD if made is None else made
        return self._leaf(kind, value, path, marks)

    def _union(self, kind: Any, value: Any, path: str, marks: tuple[Any, ...]) -> Any:
        arms = [arm for arm in get_args(kind) if arm not in {msgspec.UnsetType, type(None)}]
        shape = _shape_of(value)
        fitting = [arm for arm in arms if _shape(arm) is shape]
        if len(arms) == 1 or (len(fitting) == 1 and shape is not object):
            # What is wrong inside a table or a list is told at its place in there.
            return self._typed((fitting or arms)[0], value, path, marks)
        for arm in arms:
            trial = Reader()
            result = trial._typed(arm, value, path, marks)
            if not trial.problems:
                return result
        return self.report(path, f"expected {describe(kind, marks)}, got {shown(value, path)}")

    def _choice(self, kind: Any, value: Any, path: str) -> Any:
        members = list(get_args(kind) or kind)
        for member in members:
            raw = member.value if isinstance(member, enum.Enum) else member
            if value is member or (type(value) is type(raw) and value == raw):
                return member
        hint = ""
        if isinstance(value, str):
            names = [str(member) for member in members if isinstance(member, str)]
            close = suggestion(value, names)
            hint = close if "did you mean" in close else ""
        return self.report(path, f"expected {describe(kind)}, got {shown(value, path)}{hint}")

    def _sequence(self, container: Any, kind: Any, value: Sequence[Any], path: str) -> Any:
        arms = get_args(kind)
        if container is tuple and arms and arms[-1] is not Ellipsis:
            if len(arms) != len(value):
                return self.report(path, f"expected {len(arms)} values, got {len(value)}")
            kinds: Iterable[Any] = arms
        else:
            kinds = [arms[0] if arms else Any] * len(value)
        make: Any = container
        return make(
            [
                self.value(arm, item, f"{path}[{index}]")
                for index, (arm, item) in enumerate(zip(kinds, value, strict=True))
            ]
        )

    def _mapping(self, kind: Any, value: Mapping[Any, Any], path: str) -> Any:
        key_kind, item_kind = get_args(kind) or (Any, Any)
        result = {}
        for key, item in value.items():
            where = join(path, str(key))
            if isinstance(key_kind, type) and issubclass(key_kind, enum.Enum):
                names = [str(member.value) for member in key_kind]
                if key not in names:
                    self.report(where, f"unknown option{suggestion(str(key), names)}")
                    continue
            result[self.value(key_kind, key, path)] = self.value(item_kind, item, where)
        return result

    def _leaf(self, kind: Any, value: Any, path: str, marks: tuple[Any, ...]) -> Any:
        meta = [mark for mark in marks if isinstance(mark, msgspec.Meta)]
        bare = plain(value)
        if isinstance(bare, str) and kind is str:
            bare = str.__str__(bare)
        finite = not isinstance(bare, float) or math.isfinite(bare)
        wanted = kind
        for mark in meta:
            wanted = Annotated[wanted, mark]
        try:
            if get_origin(kind) is type:
                fits = isinstance(bare, type) and issubclass(bare, get_args(kind)[0])
                return bare if fits else self.report(path, f"expected a class, got {shown(bare)}")
            if finite:
                return msgspec.convert(bare, wanted, strict=True)
        except (msgspec.ValidationError, TypeError):
            pass
        return self.report(path, f"expected {describe(kind, marks)}, got {shown(value, path)}")


def _named_by(value: Any) -> str:
    """Return the variable that a key was made from, if it is in no file."""
    while isinstance(value, dict) and len(value) == 1:
        value = next(iter(value.values()))
    return f" (from {value.origin})" if isinstance(value, EnvText) and value.toml_first else ""


def _shape(kind: Any) -> type:
    """Return whether an annotation wants a table, a list or something single."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    container = get_origin(kind) or kind
    if container in {dict, Mapping}:
        return dict
    if container in {list, tuple, set, frozenset}:
        return list
    if isinstance(container, type) and issubclass(container, msgspec.Struct):
        return dict
    return object


def _shape_of(value: Any) -> type:
    if isinstance(value, Mapping):
        return dict
    return list if isinstance(value, list | tuple) else object


__all__ = ["InvalidConfig", "Reader"]
