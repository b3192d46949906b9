from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugq.redaction import is_secret, redact, shown


@pytest.mark.parametrize(
    "key",
    [
        "password",
        "PASSWORD",
        "passwd",
        "passphrase",
        "db_password",
        "secret",
        "client_secret",
        "token",
        "auth_token",
        "api_key",
        "apikey",
        "keys",
        "curve_secretkey",
        "key-file",
        "credentials",
        "authorization",
        "cookie",
        "pass",
        "REDIS_PASSWORD",
    ],
)
def test_keys_that_hide_their_value(key: str) -> None:
    assert is_secret(key)
    assert redact("hunter2", key) == "***"
    assert redact(["hunter2"], key) == "***"
    assert redact({"a": "hunter2"}, key) == "***"
    assert redact(12345, key) == "***"
    assert shown("hunter2", f"storage.{key}") == "***"


@pytest.mark.parametrize("key", ["path", "url", "endpoint", "schema", "bypass_cache", "keyspace"])
def test_keys_that_hide_nothing(key: str) -> None:
    assert not is_secret(key)
    assert redact("plain", key) == "plain"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://u:hunter2@host/0", "redis://***@host/0"),
        ("redis://:hunter2@host/0", "redis://***@host/0"),
        ("postgres://u:hun/ter2@host/db", "postgres://***@host/db"),
        ("postgres://u:hun ter2@host/db", "postgres://***@host/db"),
        ("postgres://u:hun\nter2@host/db", "postgres://***@host/db"),
        ("postgres://u:hun@ter2@host/db", "postgres://***@host/db"),
        ("postgres://host/db?password=hunter2&x=1", "postgres://host/db?password=***&x=1"),
        ("postgres://host/db?sslpassword=hunter2", "postgres://host/db?sslpassword=***"),
        ("host=db password=hunter2 user=u", "host=db password=*** user=u"),
        ("password='hun ter2' host=db", "password=*** host=db"),
        ("https://x/?api_key=hunter2#f", "https://x/?api_key=***"),
        ("a@b.example", "a@b.example"),
    ],
)
def test_secrets_inside_a_text(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact({"url": [text]}) == {"url": [expected]}


@pytest.mark.parametrize("value", [None, "", True, False])
def test_what_says_nothing_may_be_seen(value: object) -> None:
    assert redact(value, "password") is value


@given(
    st.recursive(
        st.just("hunter2"),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    )
)
def test_nothing_below_a_secret_key_is_shown(value: Any) -> None:
    assert "hunter2" not in repr(redact({"a": {"password": value}}))


def test_containers_are_copied_and_others_stay() -> None:
    table = {"a": [1, {"b": 2.5}], "c": b"bytes"}
    copied = redact(table)
    assert copied == table
    assert copied is not table
    assert copied["a"] is not table["a"]


def test_an_error_shows_one_short_line() -> None:
    assert shown("x\ny") == "'x\\ny'"
    assert len(shown("x" * 500)) == 80
    assert shown("x" * 500).endswith("...")
    assert shown({"password": "hunter2", "a": 1}) == "{'password': '***', 'a': 1}"


@pytest.mark.parametrize(
    "path",
    [
        "queues.tokens.max_running",
        'tasks."auth.login".timeout',
        "schedules.keys.every",
        "worker.queues.secret",
    ],
)
def test_names_of_users_are_no_keys(path: str) -> None:
    assert shown("soon", path) == "'soon'"


def test_a_secret_key_below_such_a_name_is_one() -> None:
    assert shown("hunter2", 'tasks."a.b".headers.authorization') == "***"
