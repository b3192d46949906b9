"""Tasks: registered functions, typed requests to run them, and what can be asked of a request."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    ParamSpec,
    TypedDict,
    TypeVar,
    Union,
    overload,
)

import msgspec

from plugq.duration import Duration, seconds, timestamp
from plugq.errors import ConfigError, InvalidJob
from plugq.options import HIGHEST_PRIORITY, LOWEST_PRIORITY, SubmitOptions
from plugq.protocols.storage import UniqueMode
from plugq.retry import RetryPolicy, check_max_attempts

if TYPE_CHECKING:
    from typing import Self, Unpack

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

_PLAIN = (int, float, str, bool, bytes, type(None))


class Priority:
    """Names for common priorities; any integer from -1000 to 1000 will do, higher runs first."""

    LOW = -100
    NORMAL = 0
    HIGH = 100
    CRITICAL = 1000


class Unique(msgspec.Struct, frozen=True):
    """Keeps at most one job per key in its queue; a later submission is a duplicate of the holder.

    Without a key it is made of the task and its arguments.
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
    unique: Unique | None = None

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
            unique=self.unique if self.unique is not None else other.unique,
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
    return _bounded("id", value, 1024)


def check_queue(value: object) -> str:
    """Return a name that a queue can have.

    Raises:
        InvalidJob: it is no text of 1 to 255 UTF-8 bytes.
    """
    if not isinstance(value, str):
        raise InvalidJob(f"queue: expected a name, got {value!r}")
    return _bounded("queue", value, 255)


def _bounded(name: str, value: str, most: int) -> str:
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
        return name, _bounded(name, value, most)

    return read


def _priority(value: Any) -> tuple[str, Any]:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJob(f"priority: expected an integer, got {value!r}")
    if not LOWEST_PRIORITY <= value <= HIGHEST_PRIORITY:
        raise InvalidJob(
            f"priority: expected {LOWEST_PRIORITY} to {HIGHEST_PRIORITY}, got {value}",
        )
    return "priority", value


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
        _bounded("unique", value.key, 1024)
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
    "priority": _priority,
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


class JobRequest(Generic[R_co]):
    """A task with its arguments, ready to be submitted; immutable and reusable."""

    __slots__ = ("args", "asked", "kwargs", "task", "task_name")

    def __init__(
        self,
        task_name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        task: Task[Any, R_co] | None = None,
        asked: Asked = NOTHING,
    ) -> None:
        self.task_name: str = task_name
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.task: Task[Any, R_co] | None = task
        self.asked: Asked = asked

    def options(self, **options: Unpack[RequestOptions]) -> JobRequest[R_co]:
        """Return this request with options of its own, over those it already has.

        Raises:
            InvalidJob: an option can not be; the message names it.
        """
        return JobRequest(
            self.task_name,
            self.args,
            self.kwargs,
            task=self.task,
            asked=ask(options).over(self.asked),
        )

    def __repr__(self) -> str:
        """Show the task, not the arguments, which may be confidential."""
        return f"<JobRequest {self.task_name!r}>"


def job(task: str, /, *args: Any, **kwargs: Any) -> JobRequest[Any]:
    """Return a request by the name of a task whose code is not here."""
    if not isinstance(task, str):
        raise InvalidJob(f"expected the name of a task, got {task!r}; for a task use task.job(…)")
    return JobRequest(_bounded("task", task, 255), args, kwargs)


class Task(Generic[P, R]):
    """A registered function.

    Calling it runs the function here and now; :meth:`job` makes a request to run it elsewhere.
    """

    def __init__(
        self,
        name: str,
        function: Callable[P, Any],
        *,
        asked: Asked = NOTHING,
        lane: Callable[..., str | None] | None = None,
        unique: Callable[..., Unique | None] | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.asked = asked
        self.lane = lane
        self.unique = unique
        self.call: Callable[..., Any] = function
        self._signature = Signature(name, function)
        functools.update_wrapper(typing.cast("Any", self), function)

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    def job(self, *args: P.args, **kwargs: P.kwargs) -> JobRequest[R]:
        """Return a request to run the task with these arguments.

        Raises:
            InvalidJob: they do not fit its signature or its annotations.
        """
        self._signature.check(args, kwargs)
        return JobRequest(self.name, args, kwargs, task=self)

    def bind(self, arguments: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return positional and keyword arguments for the call, made of decoded ones.

        Raises:
            InvalidJob: they do not fit its signature or its annotations.
        """
        return self._signature.bind(arguments)

    def result(self, value: Any) -> Any:
        """Return a decoded result as the return annotation has it."""
        return self._signature.result(value)

    def __repr__(self) -> str:
        """Show the name."""
        return f"<Task {self.name!r}>"


class AsyncTask(Task[P, R]):
    """A task made of a coroutine function."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here."""
        return typing.cast("R", await self.function(*args, **kwargs))


class SyncTask(Task[P, R]):
    """A task made of a plain function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here."""
        return typing.cast("R", self.function(*args, **kwargs))


class Signature:
    """The parameters of a function: which calls fit, and which values its annotations allow.

    Annotations made of JSON's types, their containers, unions and literals are checked; whatever
    else is annotated is left to the function.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self._name = name
        self._signature = inspect.signature(function)
        try:
            hints = typing.get_type_hints(function)
        except Exception:  # noqa: BLE001 - annotations may be for a type checker only
            hints = {}
        self._types: dict[str, Any] = {}
        positional = []
        for parameter in self._signature.parameters.values():
            hint = hints.get(parameter.name, Any)
            if _checkable(hint):
                self._types[parameter.name] = hint
            if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}:
                positional.append(parameter)
        self._positional = [self._types.get(parameter.name, Any) for parameter in positional]
        self._required = sum(parameter.default is parameter.empty for parameter in positional)
        #: A call with positional arguments alone needs no more than a look at their number.
        self._simple = len(positional) == len(self._signature.parameters)
        returned = hints.get("return", Any)
        self._result = returned if _checkable(returned) else Any

    def check(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Refuse arguments that do not fit.

        Raises:
            InvalidJob: the message names the task and what does not fit.
        """
        self._fit(args, kwargs)

    def bind(self, arguments: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Return decoded arguments, converted as the annotations have them.

        Raises:
            InvalidJob: the message names the task and what does not fit.
        """
        try:
            args, kwargs = arguments
        except (TypeError, ValueError):
            raise InvalidJob(f"{self._name}: the payload holds no arguments") from None
        if not isinstance(args, list | tuple) or not isinstance(kwargs, dict):
            raise InvalidJob(f"{self._name}: the payload holds no arguments")
        return self._fit(tuple(args), kwargs)

    def result(self, value: Any) -> Any:
        """Return a decoded result as the return annotation has it; as it is where that fails."""
        if self._result is Any:
            return value
        try:
            return msgspec.convert(value, self._result)
        except (msgspec.ValidationError, TypeError):
            return value

    def _fit(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if self._simple and not kwargs:
            if not self._required <= len(args) <= len(self._positional):
                self._refuse(args, kwargs)
            return [
                value if hint is Any or type(value) is hint else self._convert(index, value, hint)
                for index, (value, hint) in enumerate(zip(args, self._positional, strict=False))
            ], kwargs
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError:
            self._refuse(args, kwargs)
        for name, value in bound.arguments.items():
            hint = self._types.get(name, Any)
            kind = self._signature.parameters[name].kind
            if hint is Any:
                continue
            if kind is inspect.Parameter.VAR_POSITIONAL:
                converted: Any = tuple(self._convert(name, one, hint) for one in value)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                converted = {key: self._convert(key, one, hint) for key, one in value.items()}
            else:
                converted = self._convert(name, value, hint)
            bound.arguments[name] = converted
        return bound.args, bound.kwargs

    def _refuse(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> typing.NoReturn:
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            message = f"{self._name}{self._signature}: {error}"
            raise InvalidJob(message) from error
        message = f"{self._name}{self._signature}: the arguments do not fit"
        raise InvalidJob(message)

    def _convert(self, place: int | str, value: Any, hint: Any) -> Any:
        try:
            return msgspec.convert(value, hint)
        except (msgspec.ValidationError, TypeError) as error:
            name = list(self._signature.parameters)[place] if isinstance(place, int) else place
            message = f"{self._name}: argument {name!r}: {error}"
            raise InvalidJob(message) from error


def _checkable(hint: Any) -> bool:
    """Return whether values of that annotation are made of JSON's types only."""
    if hint in _PLAIN or hint is None:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return all(isinstance(arg, str | int) for arg in args)
    if origin in {Union, types.UnionType}:
        return all(map(_checkable, args))
    if origin in {list, dict, tuple}:
        return all(arg in {Ellipsis, Any} or _checkable(arg) for arg in args)
    return hint in {list, dict, tuple}


class Tasks:
    """The tasks of an application, by name.

    ``include`` names modules that register more tasks; they are imported by :meth:`load`.
    """

    def __init__(self, *, include: Sequence[str] = ()) -> None:
        self.include: tuple[str, ...] = tuple(include)
        self._tasks: dict[str, Task[Any, Any]] = {}

    # A coroutine function is a function too: the first that fits counts, as mypy's error says.
    @overload
    def task(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...

    @overload
    def task(
        self,
        name: str | None = None,
        /,
        *,
        queue: str | None = None,
        priority: int | None = None,
        delay: Duration | None = None,
        deadline: Duration | None = ...,
        timeout: Duration | None = ...,
        max_attempts: int | None = None,
        retry: RetryPolicy | None = None,
        lane: str | Callable[..., str | None] | None = ...,
        unique: Unique | Callable[..., Unique | None] | None = None,
        headers: Mapping[str, str] | None = None,
        result_ttl: Duration | None = None,
        failure_ttl: Duration | None = None,
    ) -> Decorator: ...

    def task(self, name: Any = None, /, **options: Any) -> Any:
        """Register a function as a task; used with or without parentheses.

        Without a name the function's is taken. ``lane`` and ``unique`` may be functions of the
        task's arguments; every other option is one of a submission, and inherited by each.

        Raises:
            ConfigError: the name is taken, or an option can not be.
        """
        if callable(name):
            return self._register(None, name, {})

        def decorate(function: Callable[..., Any]) -> Task[Any, Any]:
            return self._register(name, function, options)

        return decorate

    def get(self, name: str) -> Task[Any, Any] | None:
        """Return the task of that name, if there is one."""
        return self._tasks.get(name)

    @property
    def tasks(self) -> Mapping[str, Task[Any, Any]]:
        """The tasks by name, as registered so far."""
        return types.MappingProxyType(self._tasks)

    def _register(
        self,
        name: str | None,
        function: Callable[..., Any],
        options: dict[str, Any],
    ) -> Task[Any, Any]:
        name = function.__name__ if name is None else name
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            message = f"task {name!r} is a generator; a task returns its result as a whole"
            raise ConfigError(message)
        lane = options.pop("lane", None) if callable(options.get("lane")) else None
        unique = options.pop("unique", None) if callable(options.get("unique")) else None
        given = {
            option: value
            for option, value in options.items()
            if value is not None or option in {"timeout", "deadline", "lane"}
        }
        try:
            _bounded("task", name, 255)
            for option in ("id", "run_at", "batch"):
                if option in given:
                    raise InvalidJob(f"{option}: belongs to one submission, not to a task")  # noqa: TRY301
            asked = ask(given)
            if asked.deadline_at is not None:
                raise InvalidJob("deadline: a task takes a duration, not a moment")  # noqa: TRY301
        except InvalidJob as error:
            message = f"task {name!r}: {error}"
            raise ConfigError(message) from error
        if name in self._tasks:
            message = f"task {name!r} is registered twice; give one of them another name"
            raise ConfigError(message)
        kind = AsyncTask if inspect.iscoroutinefunction(function) else SyncTask
        task = self._tasks[name] = kind(name, function, asked=asked, lane=lane, unique=unique)
        return task


class Decorator(typing.Protocol):
    """Turns a function into a task that keeps its signature."""

    @overload
    def __call__(  # type: ignore[overload-overlap]
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...


__all__ = [
    "NOTHING",
    "Asked",
    "AsyncTask",
    "CallOptions",
    "JobRequest",
    "Priority",
    "RequestOptions",
    "SyncTask",
    "Task",
    "Tasks",
    "Unique",
    "ask",
    "check_id",
    "check_queue",
    "job",
]
