from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugq.config import Config, find_problems, load_config
from plugq.fields import plain


def load(table: dict[str, Any], **environ: str) -> Config:
    return load_config(table, environ=environ)


def path_of(text: str, **environ: str) -> Any:
    return plain(load({"storage": {"use": "x", "path": text}}, **environ).storage.options["path"])


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("${A}", {"A": "x"}, "x"),
        ("a${A}b${B}c", {"A": "1", "B": "2"}, "a1b2c"),
        ("${A}", {"A": ""}, ""),
        ("${A:-d}", {}, "d"),
        ("${A:-d}", {"A": ""}, "d"),
        ("${A:-d}", {"A": "x"}, "x"),
        ("${A:-}", {}, ""),
        ("${A:-a b:-c$d}", {}, "a b:-c$d"),
        ("$${A}", {"A": "x"}, "${A}"),
        ("$${A} ${A}", {"A": "x"}, "${A} x"),
        ("$A $ {A}", {"A": "x"}, "$A $ {A}"),
        ("cost: 5$", {}, "cost: 5$"),
        ("${A}", {"A": "${B}", "B": "no"}, "${B}"),
    ],
)
def test_texts_read_the_environment(text: str, environ: dict[str, str], expected: str) -> None:
    assert path_of(text, **environ) == expected


def test_also_deep_inside() -> None:
    config = load(
        {
            "worker": {"queues": ["${Q}", "b"]},
            "storage": {"use": "${S:-memory}", "nested": [{"a": "${Q}"}]},
        },
        Q="q",
    )
    assert config.worker.queues == ("q", "b")
    assert config.storage.use == "memory"
    assert type(config.storage.use) is str
    assert plain(config.storage.options) == {"nested": [{"a": "q"}]}


def test_text_of_the_environment_becomes_what_the_key_takes() -> None:
    config = load(
        {
            "namespace": "${NUMBER}",
            "worker": {"concurrency": "${NUMBER}", "grace": "${NUMBER}"},
            "broker": {"lease": "${LEASE:-45s}", "max_payload": "${SIZE}"},
            "require": {"durable": "${YES}"},
        },
        NUMBER="7",
        SIZE="2 MiB",
        YES="true",
    )
    assert config.namespace == "7"
    assert config.worker.concurrency == 7
    assert config.worker.grace == 7.0
    assert config.broker.lease == 45.0
    assert config.broker.max_payload == 2 * 1024**2
    assert config.required == {"durable"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "${GONE}",
            (
                "storage.path: the environment variable GONE is not set; "
                "set it or write '${GONE:-default}'"
            ),
        ),
        *(
            (
                text,
                "storage.path: write '${NAME}' or '${NAME:-default}', and '$${' for a literal '${'",
            )
            for text in ("${", "${}", "${1A}", "${A", "${A-b}", "a${A b}", "${A:-${B}}")
        ),
    ],
)
def test_what_can_not_be_read(text: str, line: str) -> None:
    table = {"storage": {"use": "x", "path": text}}
    problems = find_problems(table, environ={"A": "a"})
    assert line in problems


def test_a_list_names_the_place() -> None:
    assert find_problems({"worker": {"queues": ["a", "${GONE}"]}}, environ={})[0].startswith(
        "worker.queues[1]: the environment variable GONE is not set"
    )


def test_all_that_is_missing_is_told() -> None:
    table = {"storage": {"use": "x", "a": "${A}", "b": "${B}"}}
    assert [line.split(" is not set")[0] for line in find_problems(table, environ={})] == [
        "storage.a: the environment variable A",
        "storage.b: the environment variable B",
    ]


@given(st.text(alphabet="ab$", max_size=20))
def test_text_without_a_brace_stays(text: str) -> None:
    assert path_of(text) == text


@given(st.text())
def test_a_value_is_taken_as_it_is(value: str) -> None:
    assert path_of("${A}", A=value) == value


@pytest.mark.parametrize(
    ("variable", "value", "table"),
    [
        ("PLUGQ_NAMESPACE", "shop", {"namespace": "shop"}),
        ("PLUGQ_NAMESPACE", "5", {"namespace": "5"}),
        ("PLUGQ_APP", "shop.jobs", {"app": "shop.jobs"}),
        ("PLUGQ_WORKER__CONCURRENCY", "5", {"worker": {"concurrency": 5}}),
        ("PLUGQ_worker__Concurrency", "5", {"worker": {"concurrency": 5}}),
        ("PLUGQ_WORKER__GRACE", "5s", {"worker": {"grace": 5}}),
        ("PLUGQ_WORKER__GRACE", "5", {"worker": {"grace": 5}}),
        ("PLUGQ_WORKER__QUEUES", '["a", "b"]', {"worker": {"queues": ["a", "b"]}}),
        ("PLUGQ_WORKER__QUEUES", "{a = 2}", {"worker": {"queues": {"a": 2}}}),
        ("PLUGQ_WORKER__ID", '"quoted"', {"worker": {"id": "quoted"}}),
        ("PLUGQ_WORKER__ID", "${A}", {"worker": {"id": "$${A}"}}),
        ("PLUGQ_STORAGE__USE", "redis", {"storage": {"use": "redis"}}),
        ("PLUGQ_CLIENT__RECONNECT__MAX", "9s", {"client": {"reconnect": {"max": 9}}}),
        ("PLUGQ_QUEUES__EMAIL__MAX_RUNNING", "3", {"queues": {"email": {"max_running": 3}}}),
        ("PLUGQ_REQUIRE__DURABLE", "true", {"require": {"durable": True}}),
        ("PLUGQ_STORAGE", '{use = "x", p = "y"}', {"storage": {"use": "x", "p": "y"}}),
        ("PLUGQ_DEFAULTS__TIMEOUT", "none", {"defaults": {"timeout": "none"}}),
    ],
)
def test_a_variable_sets_a_key(variable: str, value: str, table: dict[str, Any]) -> None:
    assert load({}, **{variable: value}).redacted() == load(table).redacted()


def test_a_variable_replaces_a_key() -> None:
    table = {"storage": {"use": "sqlite", "path": "a.db", "mode": "x"}}
    config = load(table, PLUGQ_STORAGE__PATH="b.db")
    assert plain(config.storage.options) == {"path": "b.db", "mode": "x"}


def test_keys_are_found_whatever_their_case() -> None:
    table = {"queues": {"Email": {"max_running": 1}, "SMS": {}, "sms": {}}}
    config = load(table, PLUGQ_QUEUES__EMAIL__MAX_RUNNING="7", PLUGQ_QUEUES__SMS__MAX_RUNNING="8")
    assert set(config.queues) == {"Email", "SMS", "sms"}
    assert config.queue("Email").max_running == 7
    assert config.queue("sms").max_running == 8
    assert config.queue("SMS").max_running is None


def test_a_replaced_value_is_not_asked_for_its_variables() -> None:
    table = {"storage": {"use": "x", "path": "${GONE}"}}
    assert plain(load(table, PLUGQ_STORAGE__PATH="p").storage.options) == {"path": "p"}


def test_nothing_of_the_environment_is_expanded_again() -> None:
    config = load({}, PLUGQ_STORAGE='{use = "x", path = "${GONE}", n = ["${GONE}"]}')
    assert plain(config.storage.options) == {"path": "${GONE}", "n": ["${GONE}"]}
    assert path_of("x", PLUGQ_STORAGE__PATH="${GONE}") == "${GONE}"


def test_variables_that_mean_something_else_are_left_alone() -> None:
    environ = {
        "PLUGQ_CONFIG": "x.toml",
        "PLUGQ_TEST_REDIS_URL": "redis://h",
        "PLUGQ_PORT": "tcp://10.0.0.1:80",
        "PLUGQ_PATH": "/opt",
        "PLUGQ_BROKER_SERVICE_HOST": "10.0.0.1",
        "plugq_namespace": "x",
        "HOME__X": "y",
    }
    assert load({}, **environ) == load({})


@pytest.mark.parametrize(
    ("variable", "value", "lines"),
    [
        (
            "PLUGQ_NAMESPCE",
            "x",
            ["PLUGQ_NAMESPCE: unknown variable, did you mean PLUGQ_NAMESPACE?"],
        ),
        ("PLUGQ_CONFG", "x", ["PLUGQ_CONFG: unknown variable, did you mean PLUGQ_CONFIG?"]),
        (
            "PLUGQ_STORGE__PATH",
            "x",
            ["storge: unknown option, did you mean 'storage'? (from PLUGQ_STORGE__PATH)"],
        ),
        (
            "PLUGQ_WORKER__GRCE",
            "1",
            ["worker.grce: unknown option, did you mean 'grace'? (from PLUGQ_WORKER__GRCE)"],
        ),
        (
            "PLUGQ_WORKER____GRACE",
            "1",
            ["PLUGQ_WORKER____GRACE: write it like PLUGQ_STORAGE__PATH, one name between '__'"],
        ),
        (
            "PLUGQ_APP__X",
            "1",
            ["PLUGQ_APP__X: app is 'shop.jobs' and has no keys"],
        ),
        (
            "PLUGQ_WORKER__CONCURRENCY",
            "lots",
            [
                (
                    "worker.concurrency: expected a whole number of at least 1, got 'lots' "
                    "(from PLUGQ_WORKER__CONCURRENCY)"
                )
            ],
        ),
        (
            "PLUGQ_WORKER__CONCURRENCY",
            "0",
            [
                (
                    "worker.concurrency: expected a whole number of at least 1, got 0 "
                    "(from PLUGQ_WORKER__CONCURRENCY)"
                )
            ],
        ),
        (
            "PLUGQ_STORAGE",
            "sqlite",
            ["storage: expected a table with `use`, got 'sqlite' (from PLUGQ_STORAGE)"],
        ),
        (
            "PLUGQ_STORAGE__PATH",
            "x",
            ["storage.use: this option is required: the name of a plugin"],
        ),
    ],
)
def test_what_a_variable_may_get_wrong(variable: str, value: str, lines: list[str]) -> None:
    assert find_problems({"app": "shop.jobs"}, environ={variable: value}) == lines
