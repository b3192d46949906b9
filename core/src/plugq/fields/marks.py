"""What an annotation may say beyond its type, and texts that stand for other types."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Span:
    """Marks a field that takes a duration of at least that many seconds and holds seconds."""

    least: float = 0.0


@dataclass(frozen=True)
class Size:
    """Marks a field that takes a number of bytes or text such as ``"1 MiB"`` and holds bytes."""

    least: int = 1


@dataclass(frozen=True)
class Word:
    """Marks a field that may be ``None``, and the text that says so where ``None`` can not."""

    text: str


@dataclass(frozen=True)
class Check:
    """Marks a field whose value must also pass a test, which returns what is wrong or ``None``."""

    complaint: Callable[[Any], str | None]


class EnvText(str):
    """Text out of the environment, which stands for another type where text is not wanted.

    It is read as text or, where the field takes none, as a TOML value; with ``toml_first`` the
    other way round. ``origin`` names the variables for error messages.
    """

    __slots__ = ("origin", "toml_first")
    origin: str
    toml_first: bool

    def __new__(cls, text: str, *, origin: str, toml_first: bool = False) -> Self:
        """Make a text that knows where it comes from."""
        made = super().__new__(cls, text)
        made.origin = origin
        made.toml_first = toml_first
        return made

    def readings(self) -> Iterator[Any]:
        """Yield what the text may stand for, the likelier first."""
        text = str.__str__(self)
        values: list[Any] = [text]
        parsed = toml_value(text)
        if parsed is not None:
            values.insert(0 if self.toml_first else 1, parsed)
        yield from values


def toml_value(text: str) -> Any:
    """Return the text read as one TOML value, or ``None`` if it is none."""
    try:
        table = tomllib.loads(f"value = {text}\n")
    except (ValueError, RecursionError):
        return None
    return table["value"] if len(table) == 1 else None


def plain(value: Any) -> Any:
    """Return the value without :class:`EnvText`, each of them as its likeliest reading."""
    if isinstance(value, EnvText):
        return next(value.readings())
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


__all__ = ["Check", "EnvText", "Size", "Span", "Word", "plain", "toml_value"]
