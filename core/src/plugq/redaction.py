"""Values as they may be shown: in errors, in logs and by ``plugq config show``.

What counts as secret is decided by the name of the key, by the user part of a URL and by
parameters of such names inside a text. Where it is unclear, it counts as secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"

_PARTS = r"passw|passphrase|pwd|secret|token|credential|private|auth|cookie|signature"
_KEY = re.compile(
    rf"{_PARTS}|(?:^|[^a-z])(?:pass|sas|dsn)(?:[^a-z]|$)|keys?(?:[^a-z]|$)", re.IGNORECASE
)
_USER = re.compile(r"(?<=://).*@", re.DOTALL)
_PARAMETER = re.compile(
    rf"((?:^|[?&;\s])[^=?&;\s]*(?:{_PARTS}|key)[^=?&;\s]*\s*=\s*)('(?:\\.|[^'\\])*'|[^&;\s]*)",
    re.IGNORECASE,
)
#: Queues, tasks and schedules are named by users: their names say nothing about values.
_NAMED = re.compile(r'^(?:queues|tasks|schedules|worker\.queues)\.(?:"(?:\\.|[^"\\])*"|[^.]*)')
_LONGEST = 80


def is_secret(key: str) -> bool:
    """Return whether a value under that key must not be shown."""
    return _KEY.search(key) is not None


def redact(value: Any, key: str = "") -> Any:
    """Return the value with everything secret in it replaced; containers are copied.

    Beneath a secret key nothing is shown. An empty value and a truth value hide nothing and stay.
    """
    if is_secret(key) and value not in (None, "") and not isinstance(value, bool):
        return HIDDEN
    if isinstance(value, str):
        return _PARAMETER.sub(rf"\g<1>{HIDDEN}", _USER.sub(f"{HIDDEN}@", value))
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [redact(item) for item in value]
    return value


def shown(value: Any, path: str = "") -> str:
    """Return the value at a path of the configuration as one short line, without secrets."""
    safe = redact(value, _NAMED.sub("", path))
    text = HIDDEN if safe == HIDDEN else repr(safe)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


__all__ = ["HIDDEN", "is_secret", "redact", "shown"]
