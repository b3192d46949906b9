"""Submissions: which layer an option comes from, and what is refused."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import plugq
from plugq.builtin.json import JsonOptions, JsonSerde
from plugq.envelope import open_body
from plugq.options import SubmitOptions
from plugq.protocols import NewJob, PluginContext, UniqueMode
from plugq.request import ask
from plugq.retry import RetryPolicy
from plugq.submission import OptionTables, SizeLimits, Submitter, queues_of, uuid7
from plugq.task import Tasks

LAYERS = ("call", "request", "tasks", "task", "queues", "defaults")


def submitter(**tables: Any) -> Submitter:
    serde = JsonSerde(JsonOptions(), PluginContext())
    return Submitter(OptionTables(**tables), serde, SizeLimits())


def prepare(
    options: dict[str, Any] | None = None,
    *,
    task: dict[str, Any] | None = None,
    request: dict[str, Any] | None = None,
    **tables: Any,
) -> NewJob:
    tasks = Tasks()

    @tasks.task("t", **(task or {}))
    async def function(value: int = 0) -> int:
        return value

    asked = function.job(1).options(**(request or {}))
    return submitter(**tables).prepare(asked, ask(options or {}))


@pytest.mark.parametrize("highest", range(len(LAYERS) + 1))
def test_the_highest_layer_that_sets_an_option_counts(highest: int) -> None:
    values = {layer: 100 - index for index, layer in enumerate(LAYERS)}
    given_layers = LAYERS[highest:]

    def layer(name: str) -> dict[str, Any]:
        return {"priority": values[name]} if name in given_layers else {}

    prepared = prepare(
        layer("call"),
        request=layer("request"),
        task=layer("task"),
        tasks={"t": SubmitOptions(**layer("tasks"))},
        queues={"default": SubmitOptions(**layer("queues"))},
        defaults=SubmitOptions(**layer("defaults")),
    )
    assert prepared.priority == (values[LAYERS[highest]] if given_layers else 0)


def test_the_queue_chooses_the_layer_of_its_queue() -> None:
    queues = {"a": SubmitOptions(priority=1), "b": SubmitOptions(priority=2)}
    assert prepare(task={"queue": "a"}, queues=queues).priority == 1
    assert prepare({"queue": "b"}, task={"queue": "a"}, queues=queues).priority == 2
    assert prepare(queues=queues, defaults=SubmitOptions(queue="b")).queue == "b"


def attempts(prepared: NewJob) -> tuple[int, float]:
    terms = open_body(prepared.body).retry
    assert terms.max_attempts == prepared.max_attempts
    return terms.max_attempts, terms.base


def test_max_attempts_alone_replaces_that_number_in_the_policy_that_applies() -> None:
    policy = RetryPolicy(max_attempts=7, base=2)
    assert attempts(prepare(task={"retry": policy})) == (7, 2)
    assert attempts(prepare({"max_attempts": 3}, task={"retry": policy})) == (3, 2)
    assert attempts(prepare({"retry": policy}, task={"max_attempts": 3})) == (7, 2)
    assert attempts(prepare({"max_attempts": 3}, request={"retry": policy})) == (3, 2)
    assert attempts(prepare({"retry": policy}, request={"max_attempts": 3})) == (7, 2)
    assert attempts(prepare(defaults=SubmitOptions(max_attempts=9))) == (9, 5)
    assert attempts(prepare()) == (4, 5)


def test_a_time_replaces_a_delay_and_the_other_way_round() -> None:
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    prepared = prepare({"run_at": moment}, request={"delay": 5})
    assert (prepared.run_at, prepared.delay) == (moment.timestamp(), 0)
    prepared = prepare({"delay": 5}, request={"run_at": moment})
    assert (prepared.run_at, prepared.delay) == (None, 5)
    prepared = prepare({"deadline": moment}, task={"deadline": "1h"})
    assert (prepared.deadline_at, prepared.deadline_in) == (moment.timestamp(), None)
    prepared = prepare({"deadline": None}, task={"deadline": "1h"})
    assert (prepared.deadline_at, prepared.deadline_in) == (None, None)


def test_none_is_an_answer_where_it_means_something() -> None:
    assert open_body(prepare({"timeout": None}, task={"timeout": 5}).body).timeout is None
    assert prepare({"lane": None}, task={"lane": "x"}).lane is None
    assert prepare({"result_ttl": None}).result_ttl is None
    assert prepare({"failure_ttl": "forever"}).failure_ttl is None


def test_a_lane_and_a_key_may_be_functions_of_the_arguments() -> None:
    tasks = Tasks()

    @tasks.task(
        lane=lambda account, **_: f"acc-{account}",
        unique=lambda account, **_: plugq.Unique.until_finished(account),
    )
    async def charge(account: str, *, cents: int = 0) -> None:
        pass

    prepared = submitter().prepare(charge.job("a", cents=3), ask({}))
    assert prepared.lane == "acc-a"
    assert prepared.unique is not None
    assert (prepared.unique.mode, prepared.unique.key) == (UniqueMode.UNTIL_FINISHED, "a")
    assert submitter().prepare(charge.job("a"), ask({"lane": "mine"})).lane == "mine"
    table = {"charge": SubmitOptions(lane="theirs")}
    assert submitter(tasks=table).prepare(charge.job("a"), ask({})).lane == "theirs"


def test_an_explicit_none_is_no_key_whatever_the_request_or_the_task_says() -> None:
    key = plugq.Unique.until_finished("k")
    computed, plain = Tasks(), Tasks()

    @computed.task("t", unique=lambda: key)
    async def by_function() -> None:
        pass

    @plain.task("t", unique=key)
    async def by_value() -> None:
        pass

    for task in (by_function, by_value):
        one = submitter()
        assert one.prepare(task.job(), ask({})).unique is not None
        assert one.prepare(task.job(), ask({"unique": None})).unique is None
        assert one.prepare(task.job().options(unique=None), ask({})).unique is None
        # What a call says counts before what its request does.
        again = one.prepare(task.job().options(unique=None), ask({"unique": key}))
        assert again.unique is not None
        asked = task.job().options(unique=key)
        assert one.prepare(asked, ask({"unique": None})).unique is None


def test_a_function_that_fails_or_gives_no_text_is_named() -> None:
    tasks = Tasks()

    @tasks.task(lane=lambda value: value)
    async def odd(value: object) -> None:
        pass

    @tasks.task(lane=lambda value: value.missing)
    async def broken(value: object) -> None:
        pass

    with pytest.raises(plugq.InvalidJob, match="lane: the function of 'odd' gave 3"):
        submitter().prepare(odd.job(3), ask({}))
    with pytest.raises(plugq.InvalidJob, match="lane: the function of 'broken' failed"):
        submitter().prepare(broken.job(3), ask({}))


def test_a_key_that_is_left_out_is_made_of_the_task_and_its_arguments() -> None:
    def key(name: str, *args: Any, **kwargs: Any) -> str:
        request = plugq.job(name, *args, **kwargs)
        unique = submitter().prepare(request, ask({"unique": plugq.Unique.until_started()})).unique
        assert unique is not None
        return unique.key

    assert key("t", 1, a=1, b=2) == key("t", 1, b=2, a=1)
    assert len({key("t", 1), key("t", 2), key("u", 1), key("t", "1"), key("t", a=1)}) == 5


def test_queues_of_an_application() -> None:
    tasks = Tasks()
    for name, queue in {"a": None, "b": "mail", "c": "x"}.items():
        tasks.task(name, queue=queue)(_nothing)
    tables = OptionTables(
        tasks={"c": SubmitOptions(queue="reports")}, queues={"extra": SubmitOptions()}
    )
    assert queues_of(tasks.tasks, tables) == ("default", "mail", "reports", "extra")


async def _nothing() -> None:
    pass


@given(st.lists(st.none(), min_size=2, max_size=50))
def test_ids_are_uuids_of_version_7_and_differ(times: list[None]) -> None:
    ids = [uuid7() for _ in times]
    assert len(set(ids)) == len(ids)
    for text in ids:
        one = uuid.UUID(text)
        assert one.variant == uuid.RFC_4122
        assert one.int >> 76 & 0xF == 7
    stamps = [uuid.UUID(text).int >> 80 for text in ids]
    assert stamps == sorted(stamps)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "x"}, "id: belongs to one submission"),
        ({"batch": "x"}, "batch: belongs to one submission"),
        ({"run_at": datetime(2030, 1, 1, tzinfo=UTC)}, "run_at: belongs to one submission"),
        ({"deadline": datetime(2030, 1, 1, tzinfo=UTC)}, "deadline: a task takes a duration"),
    ],
)
def test_a_task_refuses_options_that_only_a_submission_can_have(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(plugq.ConfigError, match=said):
        prepare(task=options)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"unique": lambda value: "text"}, "unique: expected Unique"),
        ({"unique": lambda value: plugq.Unique.until_finished("x" * 2000)}, "unique: expected 1"),
        ({"lane": lambda value: "x" * 2000}, "lane: expected 1 to 1,024 bytes"),
        ({"lane": lambda value: "\ud800"}, "lane: .* can not be written as UTF-8"),
        ({"lane": lambda value: 5}, "lane: the function of 't' gave 5"),
    ],
)
def test_what_a_function_of_the_task_gives_is_checked(task: dict[str, Any], said: str) -> None:
    with pytest.raises(plugq.InvalidJob, match=said):
        prepare(task=task)


def test_headers_that_are_no_text_are_refused() -> None:
    with pytest.raises(plugq.InvalidJob, match=r"headers: .* can not be written as UTF-8"):
        prepare({"headers": {"a": "\ud800"}})


def test_a_task_that_takes_the_name_of_another_has_its_own_options() -> None:
    one = submitter()
    queues = []
    for queue in ("a", "b"):
        tasks = Tasks()

        @tasks.task("t", queue=queue)
        async def function() -> None: ...

        queues.append(one.prepare(function.job(), ask({})).queue)
    assert queues == ["a", "b"]
