"""Values as they are typed: durations, moments, and arguments that are JSON or else text."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click
import msgspec

from plugq.duration import seconds

if TYPE_CHECKING:
    from collections.abc import Sequence

    FloatType = click.ParamType[float]
    DatetimeType = click.ParamType[datetime]
else:
    # Generic in the latest releases of click only.
    FloatType = DatetimeType = click.ParamType


class DurationType(FloatType):
    """A duration such as ``30s``, ``1h30m`` or a number of seconds; ``word`` stands for none."""

    name = "duration"

    def __init__(self, word: str | None = None) -> None:
        self._word = word

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return seconds, or the word."""
        if value == self._word:
            return value
        try:
            number: float | str = float(value)
        except ValueError:
            number = str(value)
        try:
            return seconds(number, name="")
        except ValueError:
            self.fail(f"{value!r} is no duration; write it like 30s, 5m or 1h30m", param, ctx)


class MomentType(DatetimeType):
    """A moment as ISO 8601 writes it; without a zone it is in the time zone of this machine."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        """Return an aware datetime."""
        try:
            return datetime.fromisoformat(str(value)).astimezone()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is no time; write it like 2030-12-31T23:59", param, ctx)


def value(text: str) -> Any:
    """Return a text read as JSON, or the text itself where it is none."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return text


def arguments(texts: Sequence[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the positional and keyword arguments that were typed.

    ``KEY=VALUE`` is a keyword argument where KEY could be the name of a parameter; text that looks
    like that is written as JSON, ``'"a=b"'``.

    Raises:
        click.UsageError: a keyword is there twice.
    """
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for text in texts:
        key, sign, rest = text.partition("=")
        if not sign or not key.isidentifier():
            positional.append(value(text))
        elif key in keywords:
            message = f"the argument {key!r} is given twice"
            raise click.UsageError(message)
        else:
            keywords[key] = value(rest)
    return positional, keywords


__all__ = ["DurationType", "MomentType", "arguments", "value"]
