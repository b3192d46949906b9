"""What the environment adds to a configuration: ``${NAME}`` inside texts and ``PLUGQ_…`` keys."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from plugq.fields import EnvText, join, toml_value
from plugq.redaction import shown

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "PLUGQ_"
#: Names the file instead of a key of it.
FILE_VARIABLE = "PLUGQ_CONFIG"

#: Variables without a double underscore whose misspelling is likelier than another meaning.
_SINGLE = ("APP", "NAMESPACE", "CONFIG")
_REFERENCE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}|\$\{")


def overridden(
    table: Mapping[str, Any],
    environ: Mapping[str, str],
    known: Iterable[str],
    problems: list[str],
) -> dict[str, Any]:
    """Return a copy of the table in which ``PLUGQ_A__B`` has replaced ``a.b``.

    A variable without a double underscore counts only if it names one of the ``known`` keys of
    the top level, since others of that prefix may be meant for something else.
    """
    result: dict[str, Any] = _copy(table)
    top = {name.upper() for name in known}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable == FILE_VARIABLE:
            continue
        name = variable[len(PREFIX) :]
        if "__" not in name and name.upper() not in top:
            close = difflib.get_close_matches(name.upper(), _SINGLE, 1, 0.8)
            if close:
                problems.append(f"{variable}: unknown variable, did you mean {PREFIX}{close[0]}?")
            continue
        _override(result, variable, name.split("__"), environ[variable], problems)
    return result


def _override(
    table: dict[str, Any], variable: str, parts: list[str], text: str, problems: list[str]
) -> None:
    if not all(parts):
        problems.append(f"{variable}: write it like {PREFIX}STORAGE__PATH, one name between '__'")
        return
    path = ""
    for part in parts[:-1]:
        key = _key(table, part)
        path = join(path, key)
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            problems.append(f"{variable}: {path} is {shown(inner, path)} and has no keys")
            return
        table = inner
    value = toml_value(text)
    key = _key(table, parts[-1])
    if isinstance(value, dict):
        table[key] = _protected(value, variable)
    else:
        table[key] = EnvText(text, origin=variable, toml_first=True)


def _key(table: Mapping[str, Any], part: str) -> str:
    """Return the key that the part of a variable means: one that is there, else lower case."""
    lower = part.lower()
    if lower in table:
        return lower
    return next((key for key in table if key.lower() == lower), lower)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _protected(value: Any, variable: str) -> Any:
    """Mark every text of an inline table as final, so that nothing in it is expanded."""
    if isinstance(value, dict):
        return {key: _protected(item, variable) for key, item in value.items()}
    if isinstance(value, list):
        return [_protected(item, variable) for item in value]
    return EnvText(value, origin=variable) if isinstance(value, str) else value


def expanded(value: Any, environ: Mapping[str, str], problems: list[str], path: str = "") -> Any:
    """Return the value with ``${NAME}`` and ``${NAME:-default}`` replaced in every text.

    The default also stands for an empty variable, as in a shell; ``$${`` is a literal ``${``.
    """
    if isinstance(value, EnvText):
        return value
    if isinstance(value, str):
        return _expand(value, environ, problems, path)
    if isinstance(value, dict):
        return {
            key: expanded(item, environ, problems, join(path, str(key)))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            expanded(item, environ, problems, f"{path}[{index}]")
            for index, item in enumerate(value)
        ]
    return value


def _expand(text: str, environ: Mapping[str, str], problems: list[str], path: str) -> str:
    used: list[str] = []

    def replacement(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name, default = match[1], match[2]
        if name is None:
            problems.append(
                f"{path}: write '${{NAME}}' or '${{NAME:-default}}', and '$${{' for a literal '${{'"
            )
            return ""
        used.append(name)
        value = environ.get(name)
        if default is not None and not value:
            return default
        if value is None:
            problems.append(
                f"{path}: the environment variable {name} is not set; "
                f"set it or write '${{{name}:-default}}'"
            )
            return ""
        return value

    result = _REFERENCE.sub(replacement, text)
    return EnvText(result, origin=", ".join(used)) if used else result


__all__ = ["FILE_VARIABLE", "PREFIX", "expanded", "overridden"]
