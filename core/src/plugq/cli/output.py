"""What is printed: tables and text for people, one JSON document for programs.

Names, ids, messages and results come from whoever submitted a job. They are shown with every
character escaped that a terminal might obey, and never read as markup.
"""

from __future__ import annotations

import contextlib
import re
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TextIO

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    class Show(Protocol):
        """Takes the number that is done, and the total where that is another one now."""

        def __call__(self, done: int, total: int | None = None, /) -> None:
            """Show it."""
            ...


#: Characters of an id that is not folded; those that plugq makes have 36.
_ID = 40
_ESCAPED_IN_JSON = re.compile(r"[^\x20-\x7e\n]")


def safe(value: object) -> str:
    """Return a value as text of one line in which nothing but visible characters is left."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def safe_lines(text: str) -> list[str]:
    """Return the lines of a text, each as :func:`safe` shows it, with tabs as spaces."""
    return [safe(line.expandtabs(4)) for line in text.split("\n")]


def moment(value: datetime | None) -> str:
    """Return a time in UTC to the second, nothing for none."""
    return "" if value is None else value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def span(seconds: float | None) -> str:
    """Return a duration with one or two units."""
    if seconds is None:
        return ""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{seconds:.1f}s".replace(".0s", "s")
    whole = int(seconds)
    for size, unit, small, below in ((86400, "d", 3600, "h"), (3600, "h", 60, "m")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small}{below}"
    return f"{whole // 60}m{whole % 60}s"


def plural(number: int, one: str, many: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def on_terminal() -> bool:
    """Return whether somebody reads what is printed as it comes."""
    # Python has no standard output where it was started with a closed one.
    stdout: TextIO | None = sys.stdout
    return stdout is not None and stdout.isatty()


def say(line: str = "") -> None:
    """Print a line."""
    click.echo(line)


def note(line: str) -> None:
    """Print a line beside the output, where a pipe does not take it along."""
    click.echo(line, err=True)


def print_json(value: Any) -> None:
    """Print one JSON document; what has no form in JSON is shown as text."""
    text = msgspec.json.encode(value, enc_hook=_as_text).decode()
    if on_terminal() and isinstance(value, dict | list | tuple):
        text = msgspec.json.format(text, indent=2)
    click.echo(_ESCAPED_IN_JSON.sub(_escape_in_json, text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows below their titles: aligned on a terminal, separated by tabs elsewhere.

    In a pipe each row is printed as soon as it comes. A terminal that is too narrow gets only the
    columns in which anything but zeros stands, and ids stay in one piece, to be copied.
    """
    if not on_terminal():
        click.echo("\t".join(title.upper() for title in columns))
        for row in rows:
            click.echo("\t".join(map(safe, row)))
        return
    from rich.table import Table
    from rich.text import Text

    cells = [tuple(map(safe, row)) for row in rows]
    shown = list(range(len(columns)))
    if cells and _width(columns, cells) > _console().width:
        shown = [at for at in shown if any(row[at] not in {"", "0"} for row in cells)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for at in shown:
        whole = columns[at] == "id" and all(len(row[at]) <= _ID for row in cells)
        table.add_column(columns[at], overflow="fold", no_wrap=whole)
    for row in cells:
        table.add_row(*(Text(row[at]) for at in shown))
    _console().print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Print one fact a line, its name in front."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        click.echo(f"{name:<{width}}  {safe(value)}".rstrip())


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Show]:
    """Give a function to be called with the number that is done.

    A terminal shows a bar while the block runs, beside the output.
    """
    if not on_terminal():
        yield _show_nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    ) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done, total=None, /: bar.update(task, completed=done, total=total)


def _show_nothing(done: int, total: int | None = None, /) -> None:
    """Stand in where there is no bar."""


def _width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Return how wide a table is without any folding, two spaces between its columns."""
    return sum(2 + max(map(len, cells)) for cells in zip(columns, *rows, strict=True)) - 2


def _console() -> Any:
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _as_text(value: Any) -> str:
    return str(value)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _escape_in_json(match: re.Match[str]) -> str:
    char = match[0]
    if char.isprintable():
        return char
    return "".join(
        f"\\u{int.from_bytes(pair, 'big'):04x}"
        for encoded in (char.encode("utf-16-be", "surrogatepass"),)
        for pair in (encoded[at : at + 2] for at in range(0, len(encoded), 2))
    )


__all__ = [
    "moment",
    "note",
    "on_terminal",
    "plural",
    "print_facts",
    "print_json",
    "print_table",
    "progress",
    "safe",
    "safe_lines",
    "say",
    "span",
]
