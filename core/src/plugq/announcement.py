"""What workers announce of their tasks, for those who submit jobs by name.

A register for each task holds the options that its code sets and whether its lane and unique key
are functions, which only its code can evaluate. A worker that starts writes what differs, so that
the one that started last wins; later it only keeps alive what is still its own.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from plugq.duration import seconds
from plugq.errors import PlugqError, Unavailable
from plugq.protocols.storage import RegisterChange, UniqueMode
from plugq.request import Asked, Unique, ask
from plugq.retry import RetryPolicy, RetryTerms

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from plugq.clock import Clock
    from plugq.protocols.storage import Loaded, Register, Swapped
    from plugq.task import Task

#: What the keys of these registers begin with; behind it comes the name of the task.
PREFIX = "announced:"
DAY = 86_400.0
#: Seconds for which an announcement is kept, after which it is written anew though nothing
#: changed, and between two looks whether that is due.
TTL, STALE, ROUND = 10 * DAY, DAY / 2, DAY
#: Registers that are read or written in one call, and seconds for its answer.
CHUNK = 200
ANSWER = 5.0
#: Workers that start at one time write over each other; how often one reads anew.
TRIES = 10

_VERSION = 1


class _Unique(msgspec.Struct, frozen=True, array_like=True):
    mode: UniqueMode
    key: str | None
    ttl: float


class _Options(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    queue: str | UnsetType = UNSET
    priority: int | UnsetType = UNSET
    delay: float | UnsetType = UNSET
    deadline: float | UnsetType | None = UNSET
    timeout: float | UnsetType | None = UNSET
    max_attempts: int | UnsetType = UNSET
    retry: RetryTerms | UnsetType = UNSET
    lane: str | UnsetType | None = UNSET
    headers: dict[str, str] | UnsetType = UNSET
    result_ttl: float | UnsetType | None = UNSET
    failure_ttl: float | UnsetType | None = UNSET
    unique: _Unique | UnsetType = UNSET
    lane_computed: bool = False
    unique_computed: bool = False


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    """``since`` is when it was written, by the storage's clock; no part of what is announced."""

    version: int
    since: float
    options: _Options


class Announced(msgspec.Struct, frozen=True, kw_only=True):
    """The options that a task's code sets, as far as they can be known without the code."""

    asked: Asked
    lane_computed: bool = False
    unique_computed: bool = False


class _Registers(Protocol):
    async def load(self, keys: Sequence[str]) -> Loaded: ...

    async def swap(self, changes: Sequence[RegisterChange]) -> Swapped: ...


_encoder = msgspec.msgpack.Encoder(order="deterministic")
_decoder = msgspec.msgpack.Decoder(_Stored)


def key_of(task: str) -> str:
    """Return the key of a task's register."""
    return f"{PREFIX}{task}"


def encode(task: Task[Any, Any], since: float) -> bytes:
    """Return the announcement of a task; equal tasks give equal bytes at one time."""
    return _encoder.encode(_Stored(_VERSION, since, _options(task)))


def decode(register: Register) -> Announced | None:
    """Return what a register announces; ``None`` if it can not be read or is of another version.

    Every option passes the checks that a caller's own would.
    """
    stored = _open(register)
    if stored is None:
        return None
    given = {
        name: value
        for name in _Options.__struct_fields__
        if (value := getattr(stored.options, name)) is not UNSET
    }
    lane_computed, unique_computed = given.pop("lane_computed"), given.pop("unique_computed")
    try:
        if "retry" in given:
            given["retry"] = RetryPolicy(**msgspec.structs.asdict(given["retry"]))
        if "unique" in given:
            mode, key, ttl = msgspec.structs.astuple(given["unique"])
            given["unique"] = Unique(mode, key, seconds(ttl, name="ttl"))
        asked = ask(given)
    except (PlugqError, ValueError, TypeError):
        return None
    return Announced(asked=asked, lane_computed=lane_computed, unique_computed=unique_computed)


class Announcer:
    """Announces the tasks of one worker."""

    def __init__(
        self,
        registers: _Registers,
        clock: Clock,
        tasks: Mapping[str, Task[Any, Any]],
    ) -> None:
        self._registers = registers
        self._clock = clock
        self._tasks = dict(tasks)
        self._first = True

    async def run(self) -> None:
        """Announce, and keep alive what is still as announced; raises what the storage does."""
        while self._tasks:
            await self.round()
            self._first = False
            await self._clock.sleep(ROUND)

    async def round(self) -> None:
        """Write what differs, in the first round; what is absent or old, in every round.

        Raises:
            Unavailable: the storage did not answer in time, or others keep writing.
        """
        try:
            for names in _chunks(sorted(self._tasks)):
                await self._write(names)
        except TimeoutError as error:
            message = f"no answer from the storage within {ANSWER:g} s"
            raise Unavailable(message) from error

    async def _write(self, names: Sequence[str]) -> None:
        for _ in range(TRIES):
            async with asyncio.timeout(ANSWER):
                loaded = await self._registers.load([key_of(name) for name in names])
            changes = [
                RegisterChange(
                    key=key_of(name),
                    expect=0 if register is None else register.version,
                    value=encode(self._tasks[name], loaded.now),
                    ttl=TTL,
                )
                for name, register in zip(names, loaded.registers, strict=True)
                if self._wanted(self._tasks[name], register, loaded.now)
            ]
            if not changes:
                return
            async with asyncio.timeout(ANSWER):
                if (await self._registers.swap(changes)).done:
                    return
        message = "other workers announce the same tasks over and over"
        raise Unavailable(message)

    def _wanted(self, task: Task[Any, Any], register: Register | None, now: float) -> bool:
        if register is None:
            return True
        stored = _open(register)
        if stored is None or stored.options != _options(task):
            return self._first
        return not 0 <= now - stored.since < STALE


def _options(task: Task[Any, Any]) -> _Options:
    given: dict[str, Any] = task.asked.layer.given()
    given.pop("id_ttl", None)
    if "retry" in given:
        given["retry"] = given["retry"].terms()
    unique = task.asked.unique
    if isinstance(unique, Unique) and task.unique is None:
        given["unique"] = _Unique(unique.mode, unique.key, unique.ttl)
    return _Options(
        **given,
        lane_computed=task.lane is not None,
        unique_computed=task.unique is not None,
    )


def _open(register: Register) -> _Stored | None:
    try:
        stored = _decoder.decode(register.value)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return stored if stored.version == _VERSION else None


def _chunks(names: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), CHUNK):
        yield names[start : start + CHUNK]


__all__ = ["PREFIX", "STALE", "TTL", "Announced", "Announcer", "decode", "encode", "key_of"]
