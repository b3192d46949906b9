"""A schedule as it lies in its register: the definition and what became of its ticks.

Definition and state share one register, so that a single compare-and-set decides every race
between a tick, a pause, a new definition and another scheduler.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec

from plugq.errors import ConfigError, InvalidJob
from plugq.protocols.storage import NewJob, Register
from plugq.request import bounded, check_queue
from plugq.schedule.cron import Cron
from plugq.schedule.interval import Interval
from plugq.schedule.rule import CatchUp, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from plugq.announcement import Announced

Overlap = Literal["skip", "allow"]
#: Where a definition comes from: the file, the application, or a change at run time.
Source = Literal["config", "code", "runtime"]

#: What the register of a schedule is called, before its name.
PREFIX = "schedule:"
#: The register that is there while a change waits to be noticed; whoever is elected removes it.
NEWS = "schedules"
#: What the form of a register below is called, should there ever be another.
VERSION = 1
#: Bytes of a name: behind it come '@' and the tick, in at most 33 bytes.
LONGEST_NAME = 900

_RAISES = (
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    OverflowError,
    OSError,
    RecursionError,
)


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """Ticks that are being submitted: noted before the first attempt, in the queue it goes to.

    While this stands they are submitted to that queue and no other, whatever the definition says
    by now, so that the storage knows their ids. ``known`` is how many seconds after ``at`` it
    surely still does. ``last`` is the moment to continue from once they are submitted.
    """

    queue: str
    ticks: Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=1000)]
    last: float
    at: float
    known: float


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The value of a register.

    ``job`` is the job of a tick but for its id. ``owner`` and ``digest`` are those of the
    definition that was written down, in a file or in code, and stay when it is changed at run
    time; a schedule that exists at run time only has none. ``removed`` marks a written
    definition that was removed at run time. ``last`` is the moment up to which ticks are
    answered, ``queue`` and ``id`` are the last tick's job.
    """

    version: int = VERSION
    job: NewJob
    cron: str | None
    timezone: str
    every: float | None
    catch_up: CatchUp
    overlap: Overlap
    source: Source
    owner: str
    digest: str
    last: float
    paused: bool = False
    removed: bool = False
    queue: str = ""
    id: str = ""
    pending: Pending | None = None

    @property
    def rule(self) -> Rule:
        """The rule; raises ``ConfigError`` for one that can not be."""
        return rule_of(self.cron, self.every, self.timezone)

    def same_rule(self, other: Entry) -> bool:
        """Whether both have the same ticks."""
        mine = (self.cron, self.every, self.timezone)
        return mine == (other.cron, other.every, other.timezone)


@dataclass(frozen=True, slots=True)
class Stored:
    """A register that could be read."""

    name: str
    version: int
    entry: Entry
    rule: Rule

    @property
    def idle(self) -> bool:
        """Whether nothing is to be submitted now or later."""
        return self.entry.paused or self.entry.removed

    def next(self) -> datetime | None:
        """Return the first tick that is not answered."""
        return self.rule.next(moment_of(self.entry.last))


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A schedule as a maintainer announces it or a client puts it.

    ``job`` is the job of a tick without an id and submission. ``prepare`` makes it anew of what is
    announced of its task, for one whose code this process does not have. ``digest`` is made of
    what the user wrote and tells two definitions apart.
    """

    name: str
    rule: Rule
    job: NewJob
    catch_up: CatchUp = "one"
    overlap: Overlap = "skip"
    source: Source = "runtime"
    digest: str = ""
    prepare: Callable[[Announced], NewJob] | None = None

    def entry(self, *, owner: str, last: float) -> Entry:
        """Return the value of a new register."""
        rule = self.rule
        return Entry(
            job=msgspec.structs.replace(self.job, id="", submission=b"", origin="", not_after=None),
            cron=rule.expression if isinstance(rule, Cron) else None,
            timezone=rule.timezone if isinstance(rule, Cron) else "UTC",
            every=float(rule.every) if isinstance(rule, Interval) else None,  # type: ignore[arg-type]
            catch_up=self.catch_up,
            overlap=self.overlap,
            source=self.source,
            owner=owner,
            digest=self.digest,
            last=last,
        )


def rule_of(cron: str | None, every: float | None, timezone: str) -> Rule:
    """Return the rule that exactly one of ``cron`` and ``every`` describes.

    Raises:
        ConfigError: both are given or none, or the one that is can not be read.
    """
    for option, text in (("cron", cron), ("timezone", timezone)):
        if not isinstance(text, str) and (option, text) != ("cron", None):
            message = f"{option}: expected text, got {text!r}"
            raise ConfigError(message)
    return _rule(cron, every, timezone)


@functools.lru_cache(maxsize=4096)
def _rule(cron: str | None, every: float | None, timezone: str) -> Rule:
    if (cron is None) == (every is None):
        message = "a schedule has either `cron` or `every`"
        raise ConfigError(message)
    if cron is not None:
        return Cron(cron, timezone)
    return Interval(every or 0.0)


def rule_text(rule: Rule) -> str:
    """Return a rule as people read it."""
    if isinstance(rule, Cron):
        return f"{rule.expression} {rule.timezone}"
    if isinstance(rule, Interval):
        # Exact, since definitions are told apart by it.
        return f"every {str(rule.every).removesuffix('.0')} s"
    return str(rule)


def check_name(value: object) -> str:
    """Return a name that a schedule can have.

    Raises:
        InvalidJob: it is no text of 1 to 900 UTF-8 bytes.
    """
    if not isinstance(value, str):
        raise InvalidJob(f"schedule: expected a name, got {value!r}")
    return bounded("schedule", value, LONGEST_NAME)


def check_words(catch_up: object, overlap: object) -> None:
    """Check the two options that are one of a few words.

    Raises:
        ConfigError: one is none of its words.
    """
    for option, value, known in (
        ("catch_up", catch_up, get_args(CatchUp)),
        ("overlap", overlap, get_args(Overlap)),
    ):
        if value not in known:
            message = f"{option}: expected {' or '.join(map(repr, known))}, got {value!r}"
            raise ConfigError(message)


def key_of(name: str) -> str:
    """Return the key of a schedule's register."""
    return PREFIX + name


def name_of(key: str) -> str:
    """Return the schedule whose register has that key."""
    return key.removeprefix(PREFIX)


def moment_of(stamp: float) -> datetime:
    """Return seconds since 1970 as a moment in UTC."""
    return datetime.fromtimestamp(stamp, UTC)


def tick_id(name: str, tick: float) -> str:
    """Return the id of the job of a tick, the same whoever submits it."""
    return f"{name}@{moment_of(tick).isoformat()}"


_decoder = msgspec.msgpack.Decoder(Entry)
_encoder = msgspec.msgpack.Encoder()


def encode(entry: Entry) -> bytes:
    """Return an entry as the value of its register."""
    return _encoder.encode(entry)


def read(register: Register) -> Stored | str:
    """Return what a register says, or in words why it can not be read.

    Registers are written by other processes and other releases: nothing in one is trusted.
    """
    try:
        entry = _decoder.decode(register.value)
        if entry.version != VERSION:
            return f"it has version {entry.version}, and this plugq reads version {VERSION}"
        check_queue(entry.job.queue)
        bounded("task", entry.job.task, 255)
        numbers = [*msgspec.structs.astuple(entry.job), entry.job.unique and entry.job.unique.ttl]
        if any(isinstance(one, float) and not math.isfinite(one) for one in numbers):
            return "its job has a number that is not finite"
        stamps = [entry.last]
        if (pending := entry.pending) is not None:
            check_queue(pending.queue)
            stamps += [*pending.ticks, pending.last, pending.at]
            if not 0 <= pending.known < math.inf:
                return f"it has an impossible duration, {pending.known}"
        for stamp in stamps:
            moment_of(stamp)
        stored = Stored(name_of(register.key), register.version, entry, entry.rule)
        stored.next()
    except _RAISES as error:
        return str(error).partition("\n")[0] or type(error).__name__
    return stored


class _Former(msgspec.Struct, frozen=True, array_like=True):
    """The value of a register when it held no definition yet."""

    last: float
    queue: str
    id: str
    version: Literal[1]


def version_of(register: Register) -> int | None:
    """Return which version a register that can not be read says it has, ``None`` for no saying."""
    try:
        first = msgspec.msgpack.decode(register.value)[0]
    except (*_RAISES, LookupError):
        return None
    return first if type(first) is int else None


def kept(register: Register) -> dict[str, Any]:
    """Return the fields of an entry that a register of the former version says."""
    try:
        former = msgspec.msgpack.decode(register.value, type=_Former)
        moment_of(former.last)
        if former.id:
            check_queue(former.queue)
    except _RAISES:
        return {}
    return {"last": former.last, "queue": former.queue, "id": former.id}


__all__ = [
    "LONGEST_NAME",
    "NEWS",
    "PREFIX",
    "Definition",
    "Entry",
    "Overlap",
    "Pending",
    "Source",
    "Stored",
    "check_name",
    "check_words",
    "encode",
    "kept",
    "key_of",
    "moment_of",
    "name_of",
    "read",
    "rule_of",
    "rule_text",
    "tick_id",
    "version_of",
]
