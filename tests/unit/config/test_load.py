from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugq.config import Config, ConfigLike, PluginChoice, find_file, find_problems, load_config
from plugq.errors import ConfigError
from plugq.limiters import unpack_limits
from plugq.options import SubmitOptions
from plugq.protocols.edits import QueueSettings
from plugq.protocols.plugin import Capability
from plugq.retry import RetryPolicy

WHOLE = """
app = "shop.jobs:app"
namespace = "shop"

[storage]
use = "sqlite"
path = "jobs.db"

[serde]
use = "json"

[worker]
queues = ["email", "reports"]
concurrency = 50
threads = 5
prefetch = 2
grace = "5s"
abandon_after = 10
id = "w1"

[broker]
lease = "1m"
renewal = "7s"
max_crashes = 5
max_payload = "2 MiB"
max_result = 1000
max_headers = "1KiB"
unknown_ttl = "1h"
heartbeat = "1s"
liveness = 5

[client]
deadline = "3s"
fallback_poll = "250ms"
reconnect = { first = "50ms", max = "1s" }

[defaults]
queue = "other"
priority = -5
timeout = "10m"
result_ttl = "forever"
headers = { origin = "shop" }

[queues.email]
retry = { max_attempts = 5, backoff = "linear" }
lane = "none"
max_running = 100
lane_max_running = 2
max_length = 1000
unknown_ttl = "2h"

[tasks."report.build"]
queue = "reports"
deadline = "none"
max_attempts = 1

[require]
durable = true
shared_hosts = false

[plugins]
disabled = ["statsd"]
allow = ["sqlite", "json"]
"""


def load(source: ConfigLike, **environ: str) -> Config:
    return load_config(source, environ=environ)


def written(folder: Path, text: str, name: str = "plugq.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    config = load(written(tmp_path, WHOLE))
    assert (config.app, config.namespace) == ("shop.jobs:app", "shop")
    assert config.storage == PluginChoice(use="sqlite", options={"path": "jobs.db"})
    assert config.transport is None
    worker = config.worker
    assert worker.queues == ("email", "reports")
    assert (worker.concurrency, worker.threads, worker.prefetch) == (50, 5, 2)
    assert (worker.grace, worker.abandon_after, worker.id) == (5.0, 10.0, "w1")
    broker = config.broker
    assert (broker.lease, broker.renewal, broker.max_crashes) == (60.0, 7.0, 5)
    assert (broker.max_payload, broker.max_result, broker.max_headers) == (2097152, 1000, 1024)
    assert (broker.unknown_ttl, broker.heartbeat, broker.liveness) == (3600.0, 1.0, 5)
    client = config.client
    assert (client.deadline, client.fallback_poll) == (3.0, 0.25)
    assert (client.reconnect.first, client.reconnect.max) == (0.05, 1.0)
    assert config.defaults.given() == {
        "queue": "other",
        "priority": -5,
        "timeout": 600.0,
        "result_ttl": None,
        "headers": {"origin": "shop"},
    }
    email = config.queue("email")
    assert email.given() == {"retry": RetryPolicy(max_attempts=5, backoff="linear"), "lane": None}
    assert email.settings("email") == QueueSettings(
        queue="email", max_running=100, lane_max_running=2, max_length=1000
    )
    assert config.task("report.build") == SubmitOptions(
        queue="reports", deadline=None, max_attempts=1
    )
    assert config.required == {Capability.DURABLE}
    assert config.plugins.disabled == ("statsd",)
    assert config.plugins.allow == ("sqlite", "json")
    assert config.path == tmp_path / "plugq.toml"
    assert config.base_dir == tmp_path
    assert config.unsupported == ()


def test_defaults() -> None:
    config = load({})
    assert (config.app, config.namespace) == (None, "default")
    assert config.storage == PluginChoice(use="memory")
    assert config.serde == PluginChoice(use="json")
    assert config.transport is None
    worker = config.worker
    assert worker.queues is None
    assert (worker.concurrency, worker.threads, worker.prefetch) == (32, 32, 0)
    assert (worker.grace, worker.abandon_after, worker.id) == (20.0, 30.0, None)
    broker = config.broker
    assert (broker.lease, broker.renewal, broker.max_crashes) == (30.0, 10.0, 3)
    assert (broker.max_payload, broker.max_result) == (1048576, 1048576)
    assert (broker.max_headers, broker.unknown_ttl) == (8192, 86400.0)
    assert (broker.heartbeat, broker.liveness) == (2.5, 3)
    client = config.client
    assert (client.deadline, client.fallback_poll) == (5.0, 1.0)
    assert (client.reconnect.first, client.reconnect.max) == (0.1, 2.0)
    assert config.defaults.given() == {}
    assert config.queue("any").given() == {}
    assert config.queue("any").settings("any") == QueueSettings(queue="any")
    assert config.queue("any").settings("any").lane_max_running == 1
    assert config.task("any") == SubmitOptions()
    assert config.required == frozenset()
    assert config.plugins.allow is None
    assert config.path is None
    config.refuse_unsupported()


def test_none_in_a_mapping_is_the_same_as_nothing() -> None:
    table = {"app": None, "transport": None, "worker": {"queues": None, "id": None}}
    assert load(table) == load({})


@pytest.mark.parametrize(("concurrency", "threads"), [(1, 1), (31, 31), (200, 32)])
def test_threads_follow_concurrency(concurrency: int, threads: int) -> None:
    assert load({"worker": {"concurrency": concurrency}}).worker.threads == threads


def test_renewal_follows_the_lease() -> None:
    assert load({"broker": {"lease": 0.5}}).broker.renewal == pytest.approx(0.5 / 3)


def test_queues_may_have_weights() -> None:
    assert load({"worker": {"queues": {"a": 3, "b": 0.5}}}).worker.queues == {"a": 3.0, "b": 0.5}


def test_unknown_ttl_is_the_queues_or_the_brokers() -> None:
    table = {"broker": {"unknown_ttl": 60}, "queues": {"a": {"unknown_ttl": "5s"}, "b": {}}}
    config = load(table)
    assert [config.unknown_ttl(name) for name in ("a", "b", "c")] == [5.0, 60.0, 60.0]


def test_a_config_comes_back_as_it_is() -> None:
    config = load({})
    assert load(config, PLUGQ_NAMESPACE="other") is config


def test_the_file_may_be_named_by_text_path_or_folder(tmp_path: Path) -> None:
    path = written(tmp_path, 'namespace = "x"', "other.toml")
    folder = tmp_path / "folder"
    folder.mkdir()
    written(folder, 'namespace = "y"')
    assert load(path).namespace == "x"
    assert load(str(path)).path == path
    assert load_config("other.toml", environ={}, cwd=tmp_path).path == path
    assert load(folder).path == folder / "plugq.toml"
    assert load_config("folder", environ={}, cwd=tmp_path).base_dir == folder


def test_the_variable_names_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, 'namespace = "x"', "other.toml")
    written(tmp_path, 'namespace = "y"')
    for named in (str(path), "other.toml"):
        config = load_config(environ={"PLUGQ_CONFIG": named}, cwd=tmp_path)
        assert (config.path, config.namespace) == (path, "x")
    config = load_config(environ={"PLUGQ_CONFIG": ""}, cwd=tmp_path)
    assert config.namespace == "y"


def test_the_variable_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    written(tmp_path, "")
    with pytest.raises(ConfigError) as raised:
        load_config(environ={"PLUGQ_CONFIG": "gone.toml"}, cwd=tmp_path)
    assert str(raised.value) == f"PLUGQ_CONFIG names {tmp_path / 'gone.toml'}, which is not there"


def test_the_nearest_file_above_is_found(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    outermost = written(tmp_path, "")
    assert find_file(environ={}, cwd=inner) == outermost
    nearer = written(tmp_path / "a", "")
    assert find_file(environ={}, cwd=inner) == nearer
    config = load_config(environ={}, cwd=inner)
    assert (config.path, config.base_dir) == (nearer, tmp_path / "a")


def test_without_arguments_the_process_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("PLUGQ_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLUGQ_NAMESPACE", "from-the-environment")
    path = written(tmp_path, "")
    assert find_file() == path
    assert load_config().path == path
    assert load_config().namespace == "from-the-environment"


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(environ={}, cwd=tmp_path)
    assert str(raised.value) == (
        f"no plugq.toml in {tmp_path} or a parent folder; run `plugq init` to make one"
    )


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "x.toml")
    assert str(raised.value) == (
        f"{tmp_path / 'x.toml'} is not there; run `plugq init` to make a configuration"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows says that it is not there")
def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path, "") / "x.toml"
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value) == f"{path} can not be read: Not a directory"


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('app = "x"\nnamespace =\n', "line 2, column 12: invalid value"),
        ("app 3", "line 1, column 5: expected '=' after a key in a key/value pair"),
        ('a = "x', "end of document: unterminated string"),
        ("[a]\nb = 1\nb = 2\n", "line 3, column 6: cannot overwrite a value"),
    ],
)
def test_a_syntax_error_is_one_line(tmp_path: Path, text: str, where: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value) == f"{path}, {where}"
    assert find_problems(path, environ={}) == [f"{path}, {where}"]


def test_a_file_nested_beyond_reason(tmp_path: Path) -> None:
    path = written(tmp_path, "a = " + "[" * 5000)
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value) == f"{path}, nested too deep"


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "plugq.toml"
    path.write_bytes(b'app = "x"\nnamespace = "\xff"\n')
    with pytest.raises(ConfigError) as raised:
        load(path)
    assert str(raised.value) == f"{path}, line 2: not UTF-8 text"


def test_a_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "plugq.toml"
    path.write_bytes(b'\xef\xbb\xbfnamespace = "x"\r\n[worker]\r\nconcurrency = 2\r\n')
    assert (load(path).namespace, load(path).worker.concurrency) == ("x", 2)


def test_something_that_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^expected the path of a file or a mapping, got int$"):
        load(3)  # type: ignore[arg-type]


def test_a_mapping_is_left_as_it_was() -> None:
    table: dict[str, Any] = {"storage": {"use": "x", "path": "${P}"}, "worker": {"queues": ["a"]}}
    config = load(table, P="p", PLUGQ_WORKER__GRACE="1s")
    assert table == {"storage": {"use": "x", "path": "${P}"}, "worker": {"queues": ["a"]}}
    assert config.storage.options == {"path": "p"}
    assert config.base_dir == Path.cwd()
    assert load_config({}, environ={}, cwd="/").base_dir == Path("/")


def test_what_this_version_can_not_carry_out() -> None:
    config = load({"transport": {"use": "zmq"}})
    assert config.unsupported == ("transport: transports are not supported by this version yet",)
    with pytest.raises(ConfigError, match=r"^transport: transports are not supported by this"):
        config.refuse_unsupported()


def test_limits_are_stored_with_their_queue() -> None:
    rate = {"use": "rate", "limit": 3, "per": "1s"}
    table = {"queues": {"a.b": {"limits": [rate], "max_running": 4}, "c": {}}}
    config = load(table)
    queue = config.queue("a.b")
    assert queue.limits == (PluginChoice(use="rate", options={"limit": 3, "per": "1s"}),)
    assert list(queue.limiters("a.b")) == [('queues."a.b".limits[0]', queue.limits[0])]
    settings = queue.settings("a.b")
    assert unpack_limits(settings.limits) == [("rate", {"limit": 3, "per": "1s"})]
    assert (settings.lane_limits, settings.max_running) == (b"", 4)
    assert config.queue("c").settings("c").limits == b""


def test_equal_limits_are_stored_as_equal_bytes() -> None:
    one = [{"use": "rate", "limit": 3, "per": "1s"}, {"use": "delay", "every": 1}]
    other = [{"per": "${PER}", "limit": 3, "use": "rate"}, {"every": 1, "use": "delay"}]
    stored = {
        load({"queues": {"a": {"lane_limits": x}}}, PER="1s").queue("a").settings("a").lane_limits
        for x in (one, other)
    }
    assert len(stored) == 1
    assert [use for use, _ in unpack_limits(*stored)] == ["rate", "delay"]


def test_a_schedule_is_read_in_full() -> None:
    table = {
        "task": "report.build",
        "args": [1, {"a": "b"}],
        "kwargs": {"q": 2},
        "every": "50ms",
        "timezone": "Europe/Berlin",
        "catch_up": "all",
        "overlap": "allow",
        "options": {"priority": 3, "lane": "none"},
    }
    schedule = load({"schedules": {"often": table}}).schedules["often"]
    assert msgspec.structs.asdict(schedule) == {
        **table,
        "cron": None,
        "every": 0.05,
        "options": SubmitOptions(priority=3, lane=None),
    }
    plain = load({"schedules": {"x": {"task": "t", "cron": "* * * * *"}}}).schedules["x"]
    assert (plain.timezone, plain.catch_up, plain.overlap) == ("UTC", "one", "skip")


def test_redacted_shows_what_is_in_force(tmp_path: Path) -> None:
    config = load(written(tmp_path, WHOLE))
    shown = config.redacted()
    assert shown["worker"]["grace"] == 5.0
    assert shown["defaults"]["result_ttl"] == "forever"
    assert shown["tasks"]["report.build"]["deadline"] == "none"
    assert "path" not in shown
    again = load(shown)
    assert msgspec.structs.replace(again, path=config.path, base_dir=config.base_dir) == config


def test_redacted_never_shows_a_secret() -> None:
    config = load(
        {
            "storage": {
                "use": "redis",
                "url": "redis://user:hunter2@host/0",
                "password": "hunter2",
                "tls": {"key": "hunter2", "ca": "ca.pem"},
                "plain": ["${REDIS_PASSWORD}", "${HOST}"],
            },
            "transport": {"use": "zmq", "secret_key": "${KEY}", "peers": ["x://u:hunter2@h"]},
            "defaults": {"headers": {"authorization": "hunter2", "origin": "shop"}},
            "schedules": {
                "tokens": {"task": "t", "every": 1, "kwargs": {"token": "hunter2", "n": 1}}
            },
            "queues": {"keys": {"max_running": 3, "limits": [{"use": "x", "token": "hunter2"}]}},
            "tasks": {"auth.login": {"timeout": 5}},
        },
        KEY="hunter2",
        REDIS_PASSWORD="hunter2",  # noqa: S106 - what must not be shown
        HOST="h",
    )
    shown = config.redacted()
    assert "hunter2" not in repr(shown)
    assert "hunter2" not in repr(config)
    assert "hunter2" not in repr(config.storage)
    assert shown["storage"] == {
        "use": "redis",
        "url": "redis://***@host/0",
        "password": "***",
        "tls": {"key": "***", "ca": "ca.pem"},
        "plain": ["***", "h"],
    }
    assert shown["defaults"] == {"headers": {"authorization": "***", "origin": "shop"}}
    assert shown["schedules"]["tokens"]["kwargs"] == {"token": "***", "n": 1}
    assert shown["queues"]["keys"]["max_running"] == 3
    assert shown["tasks"] == {"auth.login": {"timeout": 5.0}}
    assert config.storage.options["password"] == "hunter2"  # noqa: S105 - what must not be shown
