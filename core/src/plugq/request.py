"""What can be asked of one submission: the options of a call, checked and in seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from plugq.duration import Duration, seconds, timestamp
from plugq.errors import InvalidJob
from plugq.options import HIGHEST_PRIORITY, LOWEST_PRIORITY, SubmitOptions
from plugq.protocols.storage import UniqueMode
from plugq.retry import RetryPolicy, check_max_attempts

if TYPE_CHECKING:
    from typing import Self


class Priority:
    """Names for common priorities; any integer from -1000 to 1000 will do, higher runs first."""

    LOW = -100
    NORMAL = 0
    HIGH = 100
    CRITICAL = 1000


class Unique(msgspec.Struct, frozen=True):
    """Keeps at most one job per key in its queue; a later submission is a duplicate of the holder.

    Without a key it is made of the task and its arguments. An explicit ``unique=None`` asks for no
    key, whatever the request or the task says.
    """

    mode: UniqueMode
    key: str | None = None
    ttl: float = 0.0

    @classmethod
    def until_started(cls, key: str | None = None) -> Self:
        """Hold the key until the job starts for the first time."""
        return cls(UniqueMode.UNTIL_STARTED, key)

    @classmethod
    def until_finished(cls, key: str | None = None) -> Self:
        """Hold the key until the job ends."""
        return cls(UniqueMode.UNTIL_FINISHED, key)

    @classmethod
    def throttle(cls, key: str | None = None, *, ttl: Duration) -> Self:
        """Hold the key for ``ttl``, whatever becomes of the job."""
        return cls(UniqueMode.THROTTLE, key, seconds(ttl, name="ttl"))


class CallOptions(TypedDict, total=False):
    """What can be asked of one submission that is waited for."""

    id: str
    queue: str
    priority: int
    delay: Duration
    run_at: datetime
    deadline: Duration | datetime | None
    max_attempts: int
    retry: RetryPolicy
    lane: str | None
    batch: str | None
    unique: Unique | None
    headers: Mapping[str, str]
    result_ttl: Duration | None
    failure_ttl: Duration | None


class RequestOptions(CallOptions, total=False):
    """What can be asked of one submission; what is left out is inherited."""

    timeout: Duration | None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a call or request, checked and in seconds."""

    layer: SubmitOptions = SubmitOptions()
    id: str | None = None
    run_at: float | None = None
    deadline_at: float | None = None
    batch: str | None = None
    #: ``None`` is none at all, unset is inherited.
    unique: Unique | msgspec.UnsetType | None = msgspec.UNSET

    def over(self, other: Asked) -> Asked:
        """Return these options with the other's where these leave them open."""
        if other is NOTHING:
            return self
        if self is NOTHING:
            return other
        mine, theirs = self.layer.given(), other.layer.given()
        if "max_attempts" in mine and "retry" in theirs:
            theirs["retry"] = theirs["retry"].with_max_attempts(mine.pop("max_attempts"))
        if "retry" in mine:
            theirs.pop("max_attempts", None)
        run_at, deadline_at = self.run_at, self.deadline_at
        if run_at is None and "delay" not in mine:
            run_at = other.run_at
        elif run_at is not None:
            theirs.pop("delay", None)
        if deadline_at is None and "deadline" not in mine:
            deadline_at = other.deadline_at
        elif deadline_at is not None:
            theirs.pop("deadline", None)
        return Asked(
            layer=SubmitOptions(**theirs | mine),
            id=self.id if self.id is not None else other.id,
            run_at=run_at,
            deadline_at=deadline_at,
            batch=self.batch if self.batch is not None else other.batch,
            unique=other.unique if self.unique is msgspec.UNSET else self.unique,
        )


NOTHING = Asked()


def ask(options: Mapping[str, Any]) -> Asked:
    """Check options as a caller gives them.

    Raises:
        InvalidJob: one of them is unknown or has a value that can not be; the message names it.
    """
    if not options:
        return NOTHING
    layer: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    try:
        for name, value in options.items():
            if name == "connection":
                raise InvalidJob("connection: give it to submit() or submit_many()")  # noqa: TRY301
            reader = _READERS.get(name)
            if reader is None:
                raise InvalidJob(f"{name}: unknown option; use one of {', '.join(_READERS)}")  # noqa: TRY301
            target, read = reader(value)
            (layer if target in SubmitOptions.__struct_fields__ else rest)[target] = read
        if "delay" in layer and "run_at" in rest:
            raise InvalidJob("delay, run_at: give one of the two, not both")  # noqa: TRY301
        return Asked(layer=SubmitOptions(**layer), **rest)
    except InvalidJob:
        raise
    except (TypeError, ValueError) as error:
        raise InvalidJob(str(error)) from error


def check_id(value: object) -> str:
    """Return an id that a job can have.

    Raises:
        InvalidJob: it is no text of 1 to 1,024 UTF-8 bytes.
    """
    if not isinstance(value, str):
        raise InvalidJob(f"id: expected text, got {value!r}")
    return bounded("id", value, 1024)


def check_queue(value: object) -> str:
    """Return a name that a queue can have.

    Raises:
        InvalidJob: it is no text of 1 to 255 UTF-8 bytes.
    """
    if not isinstance(value, str):
        raise InvalidJob(f"queue: expected a name, got {value!r}")
    return bounded("queue", value, 255)


def bounded(name: str, value: str, most: int) -> str:
    """Return text of 1 to ``most`` UTF-8 bytes.

    Raises:
        InvalidJob: it is empty, longer, or no text that can be written.
    """
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidJob(f"{name}: {value!r} can not be written as UTF-8") from error
    if not 1 <= size <= most:
        raise InvalidJob(f"{name}: expected 1 to {most:,} bytes of UTF-8, got {size:,}")
    return value


def _text(name: str, most: int) -> Callable[[Any], tuple[str, Any]]:
    def read(value: Any) -> tuple[str, Any]:
        if value is None and name in {"lane", "batch"}:
            return name, None
        if not isinstance(value, str):
            raise InvalidJob(f"{name}: expected text, got {value!r}")
        return name, bounded(name, value, most)

    return read


def check_priority(value: object) -> int:
    """Return a priority that a job can have.

    Raises:
        InvalidJob: it is no whole number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJob(f"priority: expected an integer, got {value!r}")
    if not LOWEST_PRIORITY <= value <= HIGHEST_PRIORITY:
        raise InvalidJob(
            f"priority: expected {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}, got {value}",
        )
    return value


def _deadline(value: Any) -> tuple[str, Any]:
    if isinstance(value, datetime):
        return "deadline_at", timestamp(value, name="deadline")
    return "deadline", None if value is None else seconds(value, name="deadline")


def _timeout(value: Any) -> tuple[str, Any]:
    read = None if value is None else seconds(value, name="timeout")
    if read == 0:
        raise InvalidJob("timeout: expected more than 0 seconds, or None for no timeout")
    return "timeout", read


def _ttl(name: str) -> Callable[[Any], tuple[str, Any]]:
    def read(value: Any) -> tuple[str, Any]:
        return name, None if value is None or value == "forever" else seconds(value, name=name)

    return read


def _retry(value: Any) -> tuple[str, Any]:
    if not isinstance(value, RetryPolicy):
        raise InvalidJob(f"retry: expected a RetryPolicy, got {value!r}")
    return "retry", value


def _max_attempts(value: Any) -> tuple[str, Any]:
    check_max_attempts(value)
    return "max_attempts", value


def _unique(value: Any) -> tuple[str, Any]:
    if value is not None and not isinstance(value, Unique):
        raise InvalidJob(f"unique: expected Unique.until_finished(…) or the like, got {value!r}")
    if value is not None and value.key is not None:
        bounded("unique", value.key, 1024)
    return "unique", value


def _headers(value: Any) -> tuple[str, Any]:
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str) for item in value.items() for part in item
    ):
        raise InvalidJob(f"headers: expected a mapping of text to text, got {value!r}")
    for item in value.items():
        for part in item:
            try:
                part.encode()
            except UnicodeEncodeError as error:
                raise InvalidJob(f"headers: {part!r} can not be written as UTF-8") from error
    return "headers", dict(value)


_READERS: dict[str, Callable[[Any], tuple[str, Any]]] = {
    "id": lambda value: ("id", check_id(value)),
    "queue": lambda value: ("queue", check_queue(value)),
    "priority": lambda value: ("priority", check_priority(value)),
    "delay": lambda value: ("delay", seconds(value, name="delay")),
    "run_at": lambda value: ("run_at", timestamp(value, name="run_at")),
    "deadline": _deadline,
    "timeout": _timeout,
    "max_attempts": _max_attempts,
    "retry": _retry,
    "lane": _text("lane", 1024),
    "batch": _text("batch", 1024),
    "unique": _unique,
    "headers": _headers,
    "result_ttl": _ttl("result_ttl"),
    "failure_ttl": _ttl("failure_ttl"),
}


__all__ = [
    "NOTHING",
    "Asked",
    "CallOptions",
    "Priority",
    "RequestOptions",
    "Unique",
    "ask",
    "bounded",
    "check_id",
    "check_priority",
    "check_queue",
]
