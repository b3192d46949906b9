"""The Lua scripts, put together from the files of this package."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

_MOVES = ("core", "figures", "lanes", "jobs", "signals")
_CLAIMS = (*_MOVES, "allowance", "claim_shared")
_REGISTERS = ("core", "registers")

#: The parts of each script, in their order.
_PARTS: dict[str, tuple[str, ...]] = {
    "submit": (*_MOVES, "submit"),
    "restore": (*_MOVES, "restore"),
    "claim": (*_CLAIMS, "claim"),
    "settle": (*_CLAIMS, "settle"),
    "renew": (*_CLAIMS, "renew"),
    "sweep": (*_MOVES, "allowance", "registers", "sweep"),
    "edit": (*_MOVES, "edit"),
    "steer": (*_MOVES, "steer"),
    "wake": (*_MOVES, "wake"),
    "get": ("core", "get"),
    "find": (*_MOVES, "find"),
    "stats": (*_MOVES, "stats"),
    "batches": ("core", "batches"),
    "load": (*_REGISTERS, "load"),
    "swap": (*_REGISTERS, "swap"),
    "scan": (*_REGISTERS, "scan"),
    "probe": ("core", "probe"),
    "raise": ("core", "raise"),
    "attend": ("core", "attend"),
    "taken": ("core", "taken"),
    "due": ("core", "due"),
    "intend": ("core", "intend"),
}


class Script:
    """One script: its text, and the hash by which a server knows it."""

    __slots__ = ("digest", "name", "text")

    def __init__(self, name: str, text: bytes) -> None:
        self.name: str = name
        self.text: bytes = text
        self.digest: str = hashlib.sha1(text, usedforsecurity=False).hexdigest()


@cache
def scripts() -> dict[str, Script]:
    """Return every script by its name."""
    folder = resources.files("plugq_redis") / "lua"
    files = {part for parts in _PARTS.values() for part in parts}
    texts = {name: (folder / f"{name}.lua").read_bytes() for name in files}
    return {
        name: Script(name, b"\n".join(texts[part] for part in parts))
        for name, parts in _PARTS.items()
    }
