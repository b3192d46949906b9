from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pluggy
import pytest

from plugq.events import EventKind, JobEvent
from plugq.hooks import Hooks, HookSpecs, hookimpl
from plugq.registry import Registry

Install = Callable[..., Path]
EVENTS = (JobEvent(kind=EventKind.SUCCEEDED, queue="q", id="1"),)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.INFO, logger="plugq.hooks")
    return lambda: [record.getMessage() for record in caplog.records]


class Listener:
    def __init__(self) -> None:
        self.heard: list[Sequence[JobEvent]] = []

    @hookimpl
    def plugq_succeeded(self, events: Sequence[JobEvent]) -> None:
        self.heard.append(events)


class Fails:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    @hookimpl
    def plugq_succeeded(self) -> None:
        raise self.error


def installed(install: Install, *plugins: tuple[str, str, str]) -> Registry:
    """Install hook plugins, each given as distribution, name and source."""
    for number, (distribution, name, source) in enumerate(plugins):
        module = f"hook_plugin_{number}"
        install(distribution, {"plugq.hooks": {name: module}}, {module: source})
    return Registry()


LISTENS = """
    from plugq.hooks import hookimpl
    heard = []

    @hookimpl
    def plugq_succeeded(events):
        heard.append(events)
"""


def test_every_event_has_its_hook_and_no_other() -> None:
    named = {name for name in vars(HookSpecs) if name.startswith("plugq_")}
    events = {f"plugq_{kind.value}" for kind in EventKind}
    assert named == events | {"plugq_wrap_handler", "plugq_cli"}


def test_the_events_are_those_that_users_may_count_on() -> None:
    assert [kind.value for kind in EventKind] == [
        "submitted",
        "duplicate",
        "started",
        "progress",
        "retrying",
        "succeeded",
        "failed",
        "cancel_requested",
        "cancelled",
        "skipped",
        "snoozed",
        "released",
        "lease_ended",
        "removed",
        "tick",
        "worker_started",
        "worker_stopped",
        "broker_started",
        "broker_stopped",
        "queue_paused",
        "queue_resumed",
    ]


@pytest.mark.parametrize("kind", list(EventKind))
def test_a_batch_reaches_whoever_implements_the_hook(kind: EventKind) -> None:
    heard: list[Any] = []

    def listen(events: Sequence[JobEvent]) -> None:
        heard.append(events)

    listen.__name__ = f"plugq_{kind.value}"
    plugin = type("Plugin", (), {})()
    setattr(plugin, listen.__name__, hookimpl(listen))
    hooks = Hooks([plugin])
    events = [JobEvent(kind=kind), JobEvent(kind=kind)]
    hooks.emit(kind, events)
    assert heard == [events]
    assert heard[0] is events
    assert [other for other in EventKind if hooks.listens(other)] == [kind]


def test_nobody_listens() -> None:
    hooks = Hooks()
    assert not any(hooks.listens(kind) for kind in EventKind)
    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    assert hooks.names == []


def test_an_empty_batch_is_not_handed_out() -> None:
    listener = Listener()
    Hooks([listener]).emit(EventKind.SUCCEEDED, [])
    assert listener.heard == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom"),
        SystemExit(1),
        asyncio.CancelledError("boom"),
        StopIteration(),
        AssertionError(),
    ],
)
def test_a_hook_that_raises_stops_nobody(
    error: BaseException, log: Callable[[], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    first, last = Listener(), Listener()
    hooks = Hooks([first, Fails(error), last])
    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    assert first.heard == last.heard == [EVENTS]
    assert log() == [
        f"the hook plugq_succeeded of the plugin Fails failed: {type(error).__name__}: {error}"
    ]
    [record] = caplog.records
    assert (record.name, record.levelno) == ("plugq.hooks", logging.ERROR)
    assert record.__dict__["plugin"] == "Fails"
    assert record.exc_info is not None
    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    assert len(first.heard) == len(last.heard) == 2
    assert [bool(record.exc_info) for record in caplog.records] == [True, False]


def test_an_interrupt_is_no_fault_of_the_hook() -> None:
    with pytest.raises(KeyboardInterrupt):
        Hooks([Fails(KeyboardInterrupt())]).emit(EventKind.SUCCEEDED, EVENTS)


def _marking(name: str, order: list[str], **marks: Any) -> object:
    def plugq_succeeded() -> None:
        order.append(name)

    plugin = type(name, (), {})()
    plugin.plugq_succeeded = hookimpl(plugq_succeeded, **marks)
    return plugin


def test_plugins_are_called_in_the_order_given() -> None:
    order: list[str] = []
    plugins = [
        _marking("a", order),
        _marking("b", order, trylast=True),
        _marking("c", order),
        _marking("d", order, tryfirst=True),
    ]
    hooks = Hooks(plugins)
    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    assert order == ["d", "a", "c", "b"]
    assert hooks.names == ["a", "b", "c", "d"]


def test_installed_plugins_are_called_in_the_order_of_their_names(install: Install) -> None:
    source = """
        from plugq.hooks import hookimpl

        @hookimpl
        def plugq_succeeded(events):
            events.append(__name__)
    """
    registry = installed(
        install, ("dist-z", "zz-b", source), ("dist-y", "zz-a", source), ("dist-x", "zz-c", source)
    )
    hooks = Hooks(registry)
    assert [name for name in hooks.names if name.startswith("zz-")] == ["zz-a", "zz-b", "zz-c"]
    called: list[Any] = [EVENTS[0]]
    hooks.emit(EventKind.SUCCEEDED, called)
    assert called[1:] == ["hook_plugin_1", "hook_plugin_0", "hook_plugin_2"]


def test_installed_modules_objects_and_classes(install: Install) -> None:
    source = LISTENS + (
        "\n    class Kind:\n        heard = []\n        @hookimpl\n"
        "        def plugq_failed(self, events):\n            self.heard.append(events)\n"
        "    thing = Kind()\n"
    )
    install(
        "many-hooks",
        {"plugq.hooks": {"m": "hook_many", "c": "hook_many:Kind", "o": "hook_many:thing"}},
        {"hook_many": source},
    )
    hooks = Hooks(Registry())
    import hook_many  # type: ignore[import-not-found] # noqa: PLC0415 - there only during the test

    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    hooks.emit(EventKind.FAILED, EVENTS)
    assert hook_many.heard == [EVENTS]
    assert hook_many.Kind.heard == [EVENTS, EVENTS]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (
            "import gone_library",
            "it can not be imported: ModuleNotFoundError: No module named 'gone_library'",
        ),
        ("raise SystemExit(3)", "it can not be imported: SystemExit: 3"),
        (
            LISTENS + "    @hookimpl(wrapper=True)\n    def plugq_failed(events):\n        yield\n",
            "plugq_failed is a wrapper; hooks of plugq are called each on their own",
        ),
        (
            LISTENS
            + "    @hookimpl(hookwrapper=True)\n    def plugq_failed(events):\n        yield\n",
            "plugq_failed is a wrapper; hooks of plugq are called each on their own",
        ),
        (
            LISTENS + "    @hookimpl\n    async def plugq_failed(events): ...\n",
            "plugq_failed is a coroutine function; hooks are synchronous",
        ),
        (
            LISTENS + "    @hookimpl\n    def plugq_failed(jobs): ...\n",
            "Plugin 'broken-one' for hook 'plugq_failed'",
        ),
    ],
)
def test_a_broken_plugin_is_left_out_by_name(
    install: Install, log: Callable[[], list[str]], source: str, line: str
) -> None:
    registry = installed(install, ("bad-dist", "broken-one", source), ("good", "zz", LISTENS))
    hooks = Hooks(registry)
    [message] = log()
    assert message.startswith(f"the hook plugin broken-one of bad-dist 1.0 is left out: {line}")
    assert "\n" not in message
    assert "broken-one" not in hooks.names
    assert "zz" in hooks.names
    assert not hooks.listens(EventKind.FAILED)
    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    import hook_plugin_1  # type: ignore[import-not-found] # noqa: PLC0415 - there only during the test

    assert hook_plugin_1.heard == [EVENTS]


def test_a_class_that_can_not_be_made_is_left_out(
    install: Install, log: Callable[[], list[str]]
) -> None:
    source = "class Needs:\n    def __init__(self, more): ...\n"
    install("needy", {"plugq.hooks": {"needs": "hook_needs:Needs"}}, {"hook_needs": source})
    assert "needs" not in Hooks(Registry()).names
    [message] = log()
    assert message.startswith("the hook plugin needs of needy 1.0 is left out: it can not be made:")


def test_a_misspelt_hook_is_told_and_the_others_work(log: Callable[[], list[str]]) -> None:
    class Misspelt(Listener):
        @hookimpl
        def plugq_succeded(self, events: Sequence[JobEvent]) -> None: ...

        @hookimpl(optionalhook=True)
        def plugq_from_the_future(self, events: Sequence[JobEvent]) -> None: ...

    plugin = Misspelt()
    Hooks([plugin]).emit(EventKind.SUCCEEDED, EVENTS)
    assert plugin.heard == [EVENTS]
    assert log() == [
        (
            "the hook plugin Misspelt implements plugq_succeded, which is no hook, "
            "did you mean 'plugq_succeeded'?"
        )
    ]


def test_two_distributions_with_one_name_both_listen(install: Install) -> None:
    registry = installed(install, ("dist-a", "same", LISTENS), ("dist-b", "same", LISTENS))
    hooks = Hooks(registry)
    assert sorted(name for name in hooks.names if "same" in name) == [
        "same",
        "same of dist-a 1.0",
    ]


def test_several_objects_of_a_class_and_one_object_once() -> None:
    listeners = [Listener(), Listener(), Listener()]
    hooks = Hooks([*listeners, listeners[0]])
    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    assert [listener.heard for listener in listeners] == [[EVENTS]] * 3
    assert len(set(hooks.names)) == 3


def test_a_hook_may_have_a_function_of_another_name(log: Callable[[], list[str]]) -> None:
    class Renamed:
        @hookimpl(specname="plugq_succeeded")
        def count(self) -> None:
            message = "boom"
            raise RuntimeError(message)

    hooks = Hooks([Renamed()])
    assert hooks.listens(EventKind.SUCCEEDED)
    hooks.emit(EventKind.SUCCEEDED, EVENTS)
    assert log() == ["the hook plugq_succeeded of the plugin Renamed failed: RuntimeError: boom"]


@pytest.mark.parametrize("where", ["registry", "hooks"])
@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"disabled": ["zz"]}, "the hooks plugin 'zz' is disabled by [plugins] disabled"),
        ({"disabled": ["hooks.zz"]}, "the hooks plugin 'zz' is disabled by [plugins] disabled"),
        (
            {"allow": ["yy"]},
            "the hooks plugin 'zz' is not in the list [plugins] allow; add it there to use it",
        ),
    ],
)
def test_plugins_may_be_refused_by_name(
    install: Install, log: Callable[[], list[str]], where: str, rule: Any, line: str
) -> None:
    installed(install, ("d1", "zz", "raise RuntimeError('imported')"), ("d2", "yy", LISTENS))
    hooks = Hooks(Registry(**rule)) if where == "registry" else Hooks(Registry(), **rule)
    assert "zz" not in hooks.names
    assert "yy" in hooks.names
    assert line in log()


def test_objects_may_be_refused_by_name() -> None:
    assert Hooks([Listener()], disabled=["Listener"]).names == []
    assert Hooks([Listener()], allow=["Other"]).names == []
    assert Hooks([Listener()], allow=["Listener"]).names == ["Listener"]


def _wrapping(name: str, answer: Callable[[Any], Any]) -> object:
    class Wraps:
        @hookimpl
        def plugq_wrap_handler(self, handler: Any) -> Any:
            return answer(handler)

    plugin = Wraps()
    plugin.__name__ = name  # type: ignore[attr-defined]
    return plugin


def _around(name: str) -> Callable[[Any], Any]:
    return lambda handler: lambda *args: f"{name}({handler(*args)})"


def test_middleware_is_composed_with_the_first_plugin_outermost() -> None:
    hooks = Hooks([_wrapping(name, _around(name)) for name in ("a", "b", "c")])
    assert hooks.wrap_handler("t", lambda value: value)("x") == "a(b(c(x)))"


def test_middleware_that_wraps_nothing_or_fails(log: Callable[[], list[str]]) -> None:
    def fails(handler: Any) -> Any:
        raise RuntimeError("boom")

    hooks = Hooks(
        [
            _wrapping("a", _around("a")),
            _wrapping("none", lambda _: None),
            _wrapping("fails", fails),
            _wrapping("three", lambda _: 3),
        ]
    )
    assert hooks.wrap_handler("t", lambda value: value)("x") == "a(x)"
    assert log() == [
        (
            "the hook plugin three returned 3 to wrap the task t, which can not be called; "
            "it is left out"
        ),
        "the hook plugq_wrap_handler of the plugin fails failed: RuntimeError: boom",
    ]


def test_middleware_knows_the_task() -> None:
    class Picks:
        @hookimpl
        def plugq_wrap_handler(self, task: str) -> Any:
            return (lambda: task) if task == "mine" else None

    hooks = Hooks([Picks()])

    def handler() -> str:
        return "own"

    assert hooks.wrap_handler("mine", handler)() == "mine"
    assert hooks.wrap_handler("other", handler) is handler


def test_commands_are_added_each_on_its_own(log: Callable[[], list[str]]) -> None:
    class Adds:
        @hookimpl
        def plugq_cli(self, group: list[str]) -> None:
            group.append("added")

    class Breaks:
        @hookimpl
        def plugq_cli(self) -> None:
            message = "boom"
            raise RuntimeError(message)

    group: list[str] = []
    Hooks([Breaks(), Adds()]).extend_cli(group)
    assert group == ["added"]
    assert log() == ["the hook plugq_cli of the plugin Breaks failed: RuntimeError: boom"]


def test_the_marker_is_pluggys_own() -> None:
    assert isinstance(hookimpl, pluggy.HookimplMarker)
    assert hookimpl.project_name == "plugq"


def test_a_plugin_given_lazily() -> None:
    listener = Listener()

    def plugins() -> Iterator[object]:
        yield listener

    Hooks(plugins()).emit(EventKind.SUCCEEDED, EVENTS)
    assert listener.heard == [EVENTS]
