"""What many plugins may listen to: notifications after the fact, middleware and commands.

A plugin of the group ``plugq.hooks`` is a module, an object or a class without constructor
arguments, whose functions are marked with :data:`hookimpl`. Hooks are synchronous and should be
quick; what takes time belongs into a thread or a job. A hook that raises is logged with the name of
its plugin and stops neither the others nor the job.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from typing import TYPE_CHECKING, Any

import pluggy

from plugq.events import EventKind
from plugq.fields import suggestion
from plugq.registry import HOOKS, Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from plugq.events import JobEvent

logger: logging.Logger = logging.getLogger(__name__)

PROJECT = "plugq"
#: Marks the function of a plugin that implements the hook of the same name.
hookimpl: pluggy.HookimplMarker = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)

#: What a hook may raise without harm. A hook is synchronous, so that a cancellation which comes
#: out of it is one that it read from a future, never that of the caller.
_RAISES = (Exception, SystemExit, asyncio.CancelledError)


class HookSpecs:
    """Every hook. A plugin implements those it wants, with those of the arguments it wants."""

    @_hookspec
    def plugq_submitted(self, events: Sequence[JobEvent]) -> None:
        """Jobs were stored."""

    @_hookspec
    def plugq_duplicate(self, events: Sequence[JobEvent]) -> None:
        """Submissions found their id or unique key held; the events name the holders."""

    @_hookspec
    def plugq_started(self, events: Sequence[JobEvent]) -> None:
        """Workers were granted the leases of attempts."""

    @_hookspec
    def plugq_progress(self, events: Sequence[JobEvent]) -> None:
        """Handlers said how far they are."""

    @_hookspec
    def plugq_retrying(self, events: Sequence[JobEvent]) -> None:
        """Attempts failed, and others follow after the delay."""

    @_hookspec
    def plugq_succeeded(self, events: Sequence[JobEvent]) -> None:
        """Jobs succeeded."""

    @_hookspec
    def plugq_failed(self, events: Sequence[JobEvent]) -> None:
        """Jobs failed for good; the code says why."""

    @_hookspec
    def plugq_cancel_requested(self, events: Sequence[JobEvent]) -> None:
        """Workers were asked to stop jobs."""

    @_hookspec
    def plugq_cancelled(self, events: Sequence[JobEvent]) -> None:
        """Jobs were cancelled."""

    @_hookspec
    def plugq_skipped(self, events: Sequence[JobEvent]) -> None:
        """Handlers decided that their jobs should not run."""

    @_hookspec
    def plugq_snoozed(self, events: Sequence[JobEvent]) -> None:
        """Handlers put their jobs back for a while."""

    @_hookspec
    def plugq_released(self, events: Sequence[JobEvent]) -> None:
        """Attempts were given back without having run to their end."""

    @_hookspec
    def plugq_lease_ended(self, events: Sequence[JobEvent]) -> None:
        """A sweep ended leases that were no longer renewed."""

    @_hookspec
    def plugq_removed(self, events: Sequence[JobEvent]) -> None:
        """Final jobs are gone, by retention or by purge."""

    @_hookspec
    def plugq_tick(self, events: Sequence[JobEvent]) -> None:
        """Schedules submitted jobs."""

    @_hookspec
    def plugq_worker_started(self, events: Sequence[JobEvent]) -> None:
        """A worker of this process runs."""

    @_hookspec
    def plugq_worker_stopped(self, events: Sequence[JobEvent]) -> None:
        """A worker of this process has stopped."""

    @_hookspec
    def plugq_broker_started(self, events: Sequence[JobEvent]) -> None:
        """A broker of this process runs."""

    @_hookspec
    def plugq_broker_stopped(self, events: Sequence[JobEvent]) -> None:
        """A broker of this process has stopped."""

    @_hookspec
    def plugq_queue_paused(self, events: Sequence[JobEvent]) -> None:
        """Queues grant no more claims."""

    @_hookspec
    def plugq_queue_resumed(self, events: Sequence[JobEvent]) -> None:
        """Queues grant claims again."""

    @_hookspec
    def plugq_wrap_handler(
        self, task: str, handler: Callable[..., Any]
    ) -> Callable[..., Any] | None:
        """Return a function to be called in place of the handler of a task, or ``None``.

        Asked once for each task when a worker starts. What is returned is a coroutine function
        where the handler is one, and passes its arguments on.
        """

    @_hookspec
    def plugq_cli(self, group: Any) -> None:
        """Add commands to the click group of the command line."""


class Hooks:
    """The hook plugins of a process, called in a stable order and each on its own.

    A registry brings the installed ones, in the order of their names and distributions; objects
    come in the order given and answer to their ``__name__`` or that of their class. ``tryfirst``
    and ``trylast`` of :data:`hookimpl` move an implementation to either end. ``disabled`` and
    ``allow`` are by name, on top of those of the registry.
    """

    def __init__(
        self,
        source: Registry | Iterable[object] = (),
        *,
        disabled: Iterable[str] = (),
        allow: Iterable[str] | None = None,
    ) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._told: set[tuple[str, str]] = set()
        gate = Registry(disabled=disabled, allow=allow)
        # pluggy calls what was registered last first.
        for name, plugin, title in reversed(list(_plugins(source, gate))):
            self._register(name, plugin, title)
        self._listeners = {
            kind: calls for kind in EventKind if (calls := self._calls(f"plugq_{kind.value}"))
        }

    @property
    def names(self) -> list[str]:
        """The plugins in use, in the order in which they were found."""
        return [name for name, _ in reversed(self._manager.list_name_plugin())]

    def listens(self, kind: EventKind) -> bool:
        """Return whether anybody wants events of that kind; if not, none need to be made."""
        return kind in self._listeners

    def emit(self, kind: EventKind, events: Sequence[JobEvent]) -> None:
        """Hand a batch of events of one kind to everybody who listens; never raises."""
        if events:
            for call in self._listeners.get(kind, ()):
                self._call(f"plugq_{kind.value}", call, {"events": events})

    def wrap_handler(self, task: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return the handler inside all middleware, that of the first plugin outermost.

        A plugin that raises, or returns what can not be called, wraps nothing.
        """
        for call in reversed(self._calls("plugq_wrap_handler")):
            wrapped = self._call("plugq_wrap_handler", call, {"task": task, "handler": handler})
            if callable(wrapped):
                handler = wrapped
            elif wrapped is not None:
                logger.error(
                    "the hook plugin %s returned %r to wrap the task %s, which can not be called; "
                    "it is left out",
                    call.plugin_name,
                    wrapped,
                    task,
                )
        return handler

    def extend_cli(self, group: Any) -> None:
        """Let plugins add their commands to the click group of the command line."""
        for call in self._calls("plugq_cli"):
            self._call("plugq_cli", call, {"group": group})

    def _register(self, name: str, plugin: object, title: str) -> None:
        if self._manager.is_registered(plugin):
            return
        name = self._free(name, title)
        try:
            self._manager.register(plugin, name)
            mine = [
                (caller, call)
                for caller in self._manager.get_hookcallers(plugin) or []
                for call in caller.get_hookimpls()
                if call.plugin is plugin
            ]
            for caller, call in mine:
                _check(caller.name, call)
        except _RAISES as error:
            if self._manager.get_plugin(name) is plugin:
                self._manager.unregister(name=name)
            reason = " ".join(str(error).split())
            logger.error("the hook plugin %s is left out: %s", title, reason)  # noqa: TRY400 - the reason is all
            return
        for caller, call in mine:
            if not caller.has_spec() and not call.optionalhook:
                known = [spec for spec in vars(HookSpecs) if spec.startswith("plugq_")]
                logger.warning(
                    "the hook plugin %s implements %s, which is no hook%s",
                    title,
                    caller.name,
                    suggestion(caller.name, known),
                )

    def _free(self, name: str, title: str) -> str:
        """Return the name, or one like it where another plugin has it already."""
        numbered = (f"{title} #{number}" for number in itertools.count(2))
        names = itertools.chain((name, title), numbered)
        return next(each for each in names if not self._manager.has_plugin(each))

    def _calls(self, hook: str) -> list[pluggy.HookImpl]:
        """Return the implementations of a hook in the order in which they are called."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()[::-1]

    def _call(self, hook: str, call: pluggy.HookImpl, arguments: dict[str, Any]) -> Any:
        try:
            return call.function(*[arguments[name] for name in call.argnames])
        except _RAISES as error:
            at = (call.plugin_name, hook)
            # The traceback once: a hook that always fails does so for every batch.
            logger.error(  # noqa: TRY400 - as the comment above says
                "the hook %s of the plugin %s failed: %s: %s",
                hook,
                call.plugin_name,
                type(error).__name__,
                error,
                exc_info=None if at in self._told else error,
                extra={"plugin": call.plugin_name},
            )
            self._told.add(at)
            return None


def _plugins(
    source: Registry | Iterable[object], gate: Registry
) -> Iterator[tuple[str, object, str]]:
    """Yield name, plugin and what to call it in the log, for all that can be used."""
    if not isinstance(source, Registry):
        for plugin in source:
            name = str(getattr(plugin, "__name__", type(plugin).__name__))
            if not gate.refusal(HOOKS, name):
                yield from _made(name, plugin, name)
        return
    for info, point in source.entry_points(HOOKS):
        title = f"{info.name} of {info.origin}"
        reason = source.refusal(HOOKS, info.name) or gate.refusal(HOOKS, info.name)
        if reason:
            logger.info("%s", reason)
            continue
        try:
            loaded = point.load()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is left out
            _leave_out(title, "it can not be imported", error)
        else:
            yield from _made(info.name, loaded, title)


def _made(name: str, plugin: object, title: str) -> Iterator[tuple[str, object, str]]:
    try:
        made = plugin() if isinstance(plugin, type) else plugin
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is left out
        _leave_out(title, "it can not be made", error)
    else:
        yield name, made, title


def _leave_out(title: str, why: str, error: BaseException) -> None:
    cause = f"{type(error).__name__}: {error}"
    logger.error("the hook plugin %s is left out: %s: %s", title, why, cause, exc_info=error)


def _check(hook: str, call: pluggy.HookImpl) -> None:
    if call.wrapper or call.hookwrapper:
        message = f"{hook} is a wrapper; hooks of plugq are called each on their own"
        raise TypeError(message)
    if inspect.iscoroutinefunction(call.function):
        message = f"{hook} is a coroutine function; hooks are synchronous"
        raise TypeError(message)


__all__ = ["PROJECT", "HookSpecs", "Hooks", "hookimpl"]
