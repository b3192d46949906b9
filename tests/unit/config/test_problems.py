from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plugq.config import find_problems, load_config
from plugq.errors import ConfigError
from plugq.fields import InvalidConfig

CASES: list[tuple[dict[str, Any], str]] = [
    ({"storge": {}}, "storge: unknown option, did you mean 'storage'?"),
    ({"Worker": {}}, "Worker: unknown option, did you mean 'worker'?"),
    ({"path": "x"}, "path: unknown option; it belongs into a section such as [storage]"),
    ({"base_dir": "x"}, "base_dir: unknown option; paths count from the folder of the file"),
    (
        {"app": "jobs.py"},
        "app: expected a module such as 'shop.jobs' or 'shop.jobs:app', got 'jobs.py'",
    ),
    ({"app": "a/b"}, "app: expected a module such as 'shop.jobs' or 'shop.jobs:app', got 'a/b'"),
    ({"app": "a:"}, "app: expected a module such as 'shop.jobs' or 'shop.jobs:app', got 'a:'"),
    ({"app": 3}, "app: expected text, got 3"),
    ({"namespace": ""}, "namespace: expected text that is not empty, got ''"),
    ({"storage": "sqlite"}, "storage: expected a table with `use`, got 'sqlite'"),
    ({"storage": {}}, "storage.use: this option is required: the name of a plugin"),
    ({"storage": {"use": 3}}, "storage.use: expected text that is not empty, got 3"),
    ({"transport": {"x": 1}}, "transport.use: this option is required: the name of a plugin"),
    ({"serde": {"use": ""}}, "serde.use: expected text that is not empty, got ''"),
    ({"worker": 3}, "worker: expected a table, got 3"),
    (
        {"worker": {"concurency": 3}},
        "worker.concurency: unknown option, did you mean 'concurrency'?",
    ),
    (
        {"worker": {"concurrency": 0}},
        "worker.concurrency: expected a whole number of at least 1, got 0",
    ),
    ({"worker": {"threads": 0}}, "worker.threads: expected a whole number of at least 1, got 0"),
    (
        {"worker": {"prefetch": -1}},
        "worker.prefetch: expected a whole number of at least 0, got -1",
    ),
    ({"worker": {"queues": "a"}}, "worker.queues: expected a list or a table, got 'a'"),
    (
        {"worker": {"queues": []}},
        "worker.queues: names no queue; leave it out to serve all of them",
    ),
    ({"worker": {"queues": ["a", "b", "a"]}}, "worker.queues: queue 'a' is there twice"),
    ({"worker": {"queues": ["a", 2]}}, "worker.queues[1]: expected text that is not empty, got 2"),
    ({"worker": {"queues": {"a": 0}}}, "worker.queues.a: expected a number above 0, got 0"),
    (
        {"worker": {"grace": "20 parsecs"}},
        "worker.grace: expected a duration such as '30s' or '1h30m', got '20 parsecs'",
    ),
    ({"broker": {"lease": "400ms"}}, "broker.lease: expected at least 0.5 s, got '400ms'"),
    (
        {"broker": {"lease": 5, "renewal": "5s"}},
        "broker.renewal: expected less than the lease of 5 s, got 5 s",
    ),
    (
        {"broker": {"max_crashes": 0}},
        "broker.max_crashes: expected a whole number of at least 1, got 0",
    ),
    (
        {"broker": {"max_payload": "1 mile"}},
        "broker.max_payload: expected a size in bytes or text such as '1 MiB', got '1 mile'",
    ),
    ({"broker": {"max_payload": 0}}, "broker.max_payload: expected at least 1 B, got 0 B"),
    ({"client": {"deadline": 0}}, "client.deadline: expected at least 0.001 s, got 0"),
    (
        {"client": {"reconnect": {"first": 3}}},
        "client.reconnect.max: expected at least `first`, 3 s, got 2 s",
    ),
    ({"defaults": {"lanes": "x"}}, "defaults.lanes: unknown option, did you mean 'lane'?"),
    (
        {"defaults": {"priority": 2000}},
        "defaults.priority: expected a whole number from -1000 to 1000, got 2000",
    ),
    (
        {"defaults": {"result_ttl": "for ever"}},
        (
            "defaults.result_ttl: expected a duration such as '30s' or '1h30m' or 'forever', "
            "got 'for ever'"
        ),
    ),
    (
        {"queues": {"email": {"retry": {"max_attempts": 0}}}},
        (
            "queues.email.retry.max_attempts: expected an integer of at least 1 "
            "(1 means no retry), got 0"
        ),
    ),
    (
        {"queues": {"email": {"retry": {"max_attempt": 3}}}},
        "queues.email.retry.max_attempt: unknown option, did you mean 'max_attempts'?",
    ),
    (
        {"queues": {"a": {"queue": "b"}}},
        "queues.a.queue: the queue is the one that this section names",
    ),
    (
        {"queues": {"a": {"max_attempts": 2, "retry": {}}}},
        "queues.a.max_attempts: give it inside `retry`, or give no `retry` beside it",
    ),
    ({"queues": {"": {}}}, "queues: expected text that is not empty, got ''"),
    ({"queues": {"a": 3}}, "queues.a: expected a table, got 3"),
    (
        {"queues": {"a": {"max_running": 0}}},
        "queues.a.max_running: expected a whole number of at least 1, got 0",
    ),
    (
        {"queues": {"a": {"lane_max_running": 0}}},
        "queues.a.lane_max_running: expected a whole number of at least 1, got 0",
    ),
    (
        {"queues": {"a": {"limits": {"use": "x"}}}},
        "queues.a.limits: expected a list, got {'use': 'x'}",
    ),
    (
        {"queues": {"a": {"limits": [{"use": "x"}, {"limit": 1}]}}},
        "queues.a.limits[1].use: this option is required: the name of a plugin",
    ),
    (
        {"queues": {"a": {"lane_limits": ["x"]}}},
        "queues.a.lane_limits[0]: expected a table with `use`, got 'x'",
    ),
    (
        {"tasks": {"report.build": {"timout": 3}}},
        "tasks.\"report.build\".timout: unknown option, did you mean 'timeout'?",
    ),
    (
        {"tasks": {"t": {"max_attempts": 0}}},
        "tasks.t.max_attempts: expected a whole number of at least 1 (1 means no retry), got 0",
    ),
    ({"schedules": {"x": {"every": 1}}}, "schedules.x.task: this option is required"),
    ({"schedules": {"x": {"task": "t"}}}, "schedules.x: expected either `cron` or `every`"),
    (
        {"schedules": {"x": {"task": "t", "every": 1, "cron": "* * * * *"}}},
        "schedules.x: expected either `cron` or `every`",
    ),
    (
        {"schedules": {"x": {"task": "t", "every": "10ms"}}},
        "schedules.x.every: expected at least 0.05 s, got '10ms'",
    ),
    (
        {"schedules": {"x": {"task": "t", "every": 1, "timezone": "Berlin"}}},
        "schedules.x.timezone: unknown time zone 'Berlin'; write it like 'Europe/Berlin' or 'UTC'",
    ),
    (
        {"schedules": {"x": {"task": "t", "every": 1, "timezone": "../etc"}}},
        "schedules.x.timezone: unknown time zone '../etc'; write it like 'Europe/Berlin' or 'UTC'",
    ),
    (
        {"schedules": {"x": {"task": "t", "every": 1, "catch_up": "none"}}},
        "schedules.x.catch_up: expected 'skip', 'one' or 'all', got 'none', did you mean 'one'?",
    ),
    (
        {"schedules": {"x": {"task": "t", "every": 1, "args": {"a": 1}}}},
        "schedules.x.args: expected a list, got {'a': 1}",
    ),
    (
        {"schedules": {"x": {"task": "t", "every": 1, "options": {"lan": 1}}}},
        "schedules.x.options.lan: unknown option, did you mean 'lane'?",
    ),
    ({"require": {"durabel": True}}, "require.durabel: unknown option, did you mean 'durable'?"),
    ({"require": {"durable": "yes"}}, "require.durable: expected true or false, got 'yes'"),
    ({"plugins": {"disabled": "x"}}, "plugins.disabled: expected a list, got 'x'"),
    ({"plugins": {"allow": [""]}}, "plugins.allow[0]: expected text that is not empty, got ''"),
]


@pytest.mark.parametrize(("table", "line"), CASES, ids=[line for _, line in CASES])
def test_each_mistake_is_one_line(table: dict[str, Any], line: str) -> None:
    assert find_problems(table, environ={}) == [line]
    with pytest.raises(ConfigError) as raised:
        load_config(table, environ={})
    assert str(raised.value) == line


def test_a_configuration_without_mistakes() -> None:
    assert find_problems({}, environ={}) == []


def test_all_mistakes_of_a_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "plugq.toml"
    path.write_text(
        """
        namespace = 3
        [storage]
        use = "sqlite"
        url = "${GONE}"
        [worker]
        concurency = 3
        grace = "x"
        [queues.a]
        timeout = "y"
        """
    )
    lines = [
        "storage.url: the environment variable GONE is not set; set it or write '${GONE:-default}'",
        "namespace: expected text that is not empty, got 3",
        "worker.concurency: unknown option, did you mean 'concurrency'?",
        "worker.grace: expected a duration such as '30s' or '1h30m', got 'x'",
        "queues.a.timeout: expected a duration such as '30s' or '1h30m' or 'none', got 'y'",
    ]
    assert find_problems(path, environ={}) == lines
    with pytest.raises(InvalidConfig) as raised:
        load_config(path, environ={})
    assert raised.value.problems == tuple(lines)
    assert str(raised.value) == f"{lines[0]} (and 4 more: run plugq check)"


def test_a_missing_file_is_a_problem(tmp_path: Path) -> None:
    [line] = find_problems(environ={}, cwd=tmp_path)
    assert line.endswith("run `plugq init` to make one")


def test_no_line_shows_a_secret() -> None:
    table = {
        "defaults": {"headers": {"authorization": ["hunter2"]}},
        "namespace": {"url": "x://u:hunter2@h"},
    }
    lines = find_problems(table, environ={"PLUGQ_WORKER__CONCURRENCY": "hunter2"})
    assert lines[:2] == [
        "namespace: expected text that is not empty, got {'url': 'x://***@h'}",
        (
            "worker.concurrency: expected a whole number of at least 1, got 'hunter2' "
            "(from PLUGQ_WORKER__CONCURRENCY)"
        ),
    ]
    assert lines[2] == "defaults.headers.authorization: expected text, got ***"
