"""From a request and the layers of options to a job that a storage can take."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from plugq.envelope import Envelope, pack
from plugq.errors import InvalidJob, PayloadError, PayloadTooLarge
from plugq.options import BUILT_IN, SubmitOptions
from plugq.protocols.serde import Serde, SerdeContext
from plugq.protocols.storage import NewJob, UniqueKey
from plugq.request import ask
from plugq.retry import RetryTerms

if TYPE_CHECKING:
    from collections.abc import Mapping

    from plugq.announcement import Announced
    from plugq.request import Asked, Unique
    from plugq.task import JobRequest, Task


class OptionTables(msgspec.Struct, frozen=True, kw_only=True):
    """The layers that a deployment's file adds: ``[tasks]``, ``[queues]`` and ``[defaults]``."""

    tasks: dict[str, SubmitOptions] = {}
    queues: dict[str, SubmitOptions] = {}
    defaults: SubmitOptions = SubmitOptions()


class SizeLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The most bytes that encoded arguments and headers may have."""

    payload: int = 1024 * 1024
    headers: int = 8 * 1024


class _Resolved(msgspec.Struct, frozen=True, kw_only=True):
    queue: str
    priority: int
    delay: float
    deadline: float | None
    timeout: float | None
    retry: RetryTerms
    lane: str | None
    headers: dict[str, str]
    result_ttl: float | None
    failure_ttl: float | None
    id_ttl: float


class Submitter:
    """Prepares submissions for one deployment; pure but for the random ids.

    Options count in the order call > request > ``[tasks]`` > task > ``[queues]`` > ``[defaults]``
    > built-in. A value replaces, never merges; ``max_attempts`` alone replaces that number in the
    retry policy that applies.
    """

    def __init__(self, tables: OptionTables, serde: Serde, limits: SizeLimits) -> None:
        self._tables = tables
        self._serde = serde
        self._limits = limits
        self._plain: dict[str, tuple[Task[Any, Any] | Announced | None, _Resolved]] = {}

    def prepare(
        self,
        request: JobRequest[Any],
        asked: Asked,
        *,
        origin: str = "",
        not_after: float | None = None,
        announced: Announced | None = None,
    ) -> NewJob:
        """Return the submission of a request.

        ``announced`` stands for the task of a request that has none.

        Raises:
            InvalidJob: the options contradict each other or are out of range, or one has to be
                given because only the code of the task could tell it.
            PayloadError: the arguments can not be encoded, or are too large.
        """
        asked = asked.over(request.asked)
        announced = announced if request.task is None else None
        resolved = self._resolve(request, asked.layer, announced)
        id = asked.id if asked.id is not None else uuid7()
        body = self._encode(request, resolved, id)
        deadline_at = asked.deadline_at
        return NewJob(
            queue=resolved.queue,
            id=id,
            task=request.task_name,
            submission=os.urandom(16),
            body=body,
            priority=resolved.priority,
            delay=0.0 if asked.run_at is not None else resolved.delay,
            run_at=asked.run_at,
            deadline_in=None if deadline_at is not None else resolved.deadline,
            deadline_at=deadline_at,
            max_attempts=resolved.retry.max_attempts,
            lane=self._lane(request, asked.layer, resolved, announced),
            batch=asked.batch,
            unique=self._unique(request, asked.unique, announced),
            result_ttl=resolved.result_ttl,
            failure_ttl=resolved.failure_ttl,
            id_ttl=resolved.id_ttl,
            not_after=not_after,
            origin=origin,
        )

    def queue_of(self, request: JobRequest[Any], asked: Asked) -> str:
        """Return the queue into which a request goes."""
        return self._resolve(request, asked.over(request.asked).layer).queue

    def _resolve(
        self,
        request: JobRequest[Any],
        layer: SubmitOptions,
        announced: Announced | None = None,
    ) -> _Resolved:
        source = request.task or announced
        # Most submissions set nothing of their own: one look-up serves them.
        if layer == _EMPTY:
            known = self._plain.get(request.task_name)
            if known is None or known[0] is not source:
                plain = _merge(self._tables, request.task_name, source, layer)
                known = self._plain[request.task_name] = (source, plain)
            return known[1]
        return _merge(self._tables, request.task_name, source, layer)

    def _encode(self, request: JobRequest[Any], resolved: _Resolved, id: str) -> bytes:
        context = SerdeContext(task=request.task_name, queue=resolved.queue, id=id)
        try:
            arguments = self._serde.encode((request.args, request.kwargs), context)
        except PayloadError as error:
            message = f"the arguments of {request.task_name!r} can not be encoded: {error}"
            raise type(error)(message) from error
        if len(arguments) > self._limits.payload:
            raise PayloadTooLarge(
                f"the arguments of {request.task_name!r} have {len(arguments):,} bytes, and the "
                f"limit is {self._limits.payload:,}; store them elsewhere and pass a reference, "
                "or raise broker.max_payload",
                size=len(arguments),
                limit=self._limits.payload,
            )
        if resolved.headers:
            size = sum(
                len(key.encode()) + len(text.encode()) for key, text in resolved.headers.items()
            )
            if size > self._limits.headers:
                raise InvalidJob(
                    f"headers: {size:,} bytes, and the limit is {self._limits.headers:,}",
                )
        return pack(
            Envelope(
                self._serde.content_type,
                arguments,
                resolved.retry,
                resolved.timeout,
                resolved.headers,
            ),
        )

    def _lane(
        self,
        request: JobRequest[Any],
        layer: SubmitOptions,
        resolved: _Resolved,
        announced: Announced | None,
    ) -> str | None:
        task = request.task
        if task is None or task.lane is None:
            computed = announced is not None and announced.lane_computed
        else:
            computed = True
        if not computed or layer.lane is not msgspec.UNSET:
            return resolved.lane
        table = self._tables.tasks.get(request.task_name)
        if table is not None and table.lane is not msgspec.UNSET:
            return resolved.lane
        if task is None:
            raise InvalidJob(_UNKNOWABLE.format("lane", request.task_name, "lane=…"))
        lane = _evaluate(task.lane, "lane", request)
        if lane is not None and not isinstance(lane, str):
            raise InvalidJob(f"lane: the function of {task.name!r} gave {lane!r}, expected text")
        checked: str | None = _evaluated("lane", lane)
        return checked

    def _unique(
        self,
        request: JobRequest[Any],
        asked: Unique | msgspec.UnsetType | None,
        announced: Announced | None,
    ) -> UniqueKey | None:
        task = request.task
        unique = asked
        if unique is msgspec.UNSET and announced is not None:
            if announced.unique_computed:
                raise InvalidJob(_UNKNOWABLE.format("unique", request.task_name, "unique=…"))
            unique = announced.asked.unique
        if unique is msgspec.UNSET and task is not None:
            if task.unique is None:
                unique = task.asked.unique
            else:
                unique = _evaluated("unique", _evaluate(task.unique, "unique", request))
        if unique is None or unique is msgspec.UNSET:
            return None
        key = unique.key if unique.key is not None else _fingerprint(request)
        return UniqueKey(unique.mode, key, unique.ttl)


_EMPTY = SubmitOptions()
_UNKNOWABLE = "{}: task {!r} makes it of its arguments, which needs its code; give {} explicitly"


def _merge(
    tables: OptionTables,
    name: str,
    task: Task[Any, Any] | Announced | None,
    layer: SubmitOptions,
) -> _Resolved:
    upper = [layer, tables.tasks.get(name, _EMPTY)]
    if task is not None:
        upper.append(task.asked.layer)
    lower = [tables.defaults, BUILT_IN]
    queue = next(one.queue for one in [*upper, *lower] if one.queue is not msgspec.UNSET)
    layers = [*upper, tables.queues.get(str(queue), _EMPTY), *lower]
    values: dict[str, Any] = {}
    attempts: int | None = None
    for one in layers:
        given = one.given()
        number = given.pop("max_attempts", None)
        if number is not None and attempts is None and "retry" not in values:
            attempts = number
        for option, value in given.items():
            values.setdefault(option, value)
    policy = values["retry"]
    terms = policy.terms() if attempts is None else policy.with_max_attempts(attempts).terms()
    values |= {"queue": queue, "retry": terms}
    return _Resolved(**values)


def _evaluate(function: Any, option: str, request: JobRequest[Any]) -> Any:
    try:
        return function(*request.args, **request.kwargs)
    except Exception as error:
        message = f"{option}: the function of {request.task_name!r} failed: {error}"
        raise InvalidJob(message) from error


def _evaluated(option: str, value: Any) -> Any:
    """Return what the function of a task gave, checked as what a caller gives."""
    asked = ask({option: value})
    return asked.unique if option == "unique" else asked.layer.lane


def _fingerprint(request: JobRequest[Any]) -> str:
    """Return SHA-256 over the task and its arguments, the same for equal arguments."""
    try:
        canonical = msgspec.json.encode(
            [request.task_name, request.args, request.kwargs],
            order="sorted",
        )
    except (TypeError, ValueError, msgspec.EncodeError) as error:
        raise InvalidJob(
            f"unique: no key can be made of the arguments: {error}; give one"
        ) from error
    return hashlib.sha256(canonical).hexdigest()


def uuid7() -> str:
    """Return a new UUID of version 7 (RFC 9562): sortable by the millisecond of its making."""
    stamp = time.time_ns() // 1_000_000
    number = int.from_bytes(os.urandom(10), "big")
    value = (stamp & 0xFFFFFFFFFFFF) << 80 | number
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def queues_of(tasks: Mapping[str, Task[Any, Any]], tables: OptionTables) -> tuple[str, ...]:
    """Return the queues that jobs of these tasks, and jobs of the file's queues, wait in."""
    found: dict[str, None] = {}
    for name, task in tasks.items():
        found[_merge(tables, name, task, _EMPTY).queue] = None
    for queue in tables.queues:
        found[queue] = None
    default = tables.defaults.queue
    found["default" if default is msgspec.UNSET else str(default)] = None
    return tuple(found)


__all__ = ["OptionTables", "SizeLimits", "Submitter", "queues_of", "uuid7"]
