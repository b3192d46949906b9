"""Tasks: registered functions, and the typed requests to run them."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, overload

from plugq.errors import ConfigError, InvalidJob
from plugq.request import NOTHING, Asked, Unique, ask, bounded
from plugq.signature import Signature

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping, Sequence
    from typing import Unpack

    from plugq.duration import Duration
    from plugq.request import RequestOptions
    from plugq.retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


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
    return JobRequest(bounded("task", task, 255), args, kwargs)


def bound(request: JobRequest[Any], tasks: Mapping[str, Task[Any, Any]]) -> JobRequest[Any]:
    """Return a request by name with its task, where that is among these."""
    task = tasks.get(request.task_name)
    if task is None:
        return request
    return JobRequest(
        request.task_name,
        request.args,
        request.kwargs,
        task=task,
        asked=request.asked,
    )


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
            bounded("task", name, 255)
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


__all__ = ["AsyncTask", "JobRequest", "SyncTask", "Task", "Tasks", "bound", "job"]
