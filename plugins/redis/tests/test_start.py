"""What is asked of a server when the storage starts, and what the options say."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from plugq.errors import ConfigError, Unavailable
from plugq.protocols import FindQuery, PluginContext, RegisterChange, SweepRequest
from plugq_redis import RedisOptions, RedisStorage, access_rules

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]
StartServer = Callable[..., Any]


async def refused(url: str, namespace: str = "default", **options: Any) -> str:
    """Return why a start is refused."""
    storage = RedisStorage(RedisOptions(url=url, **options), PluginContext(namespace=namespace))
    try:
        with pytest.raises(ConfigError) as caught:
            await storage.start()
    finally:
        await storage.stop()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("settings", "promise"),
    [
        (("--appendonly", "yes", "--appendfsync", "always"), "through a loss of power"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "all but about the last second"),
        (("--appendonly", "yes", "--appendfsync", "no"), "what the system had written out"),
        (("--appendonly", "no"), "set appendonly yes"),
    ],
)
async def test_the_start_says_what_is_promised(
    settings: tuple[str, ...],
    promise: str,
    start_server: StartServer,
    open_store: OpenStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "plugq.plugin")
    async with open_store(start_server(*settings).url) as storage:
        assert promise in storage.promise
        assert storage.promise in caplog.messages


async def test_a_server_that_does_not_tell_its_settings_can_be_used(
    start_server: StartServer, open_store: OpenStore
) -> None:
    server = start_server("--appendonly", "yes")
    server.command("ACL", "SETUSER", "jobs", "on", ">secret", "~*", "&*", "+@all", "-config")
    url = f"redis://jobs:secret@127.0.0.1:{server.port}/0"
    async with open_store(url) as storage:
        assert "does not tell how often" in storage.promise


async def test_a_server_that_evicts_jobs_is_refused(
    start_server: StartServer, open_store: OpenStore
) -> None:
    server = start_server("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru" in await refused(server.url)
    async with open_store(server.url, allow_eviction=True):
        pass
    server.command("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
    async with open_store(server.url):
        pass


async def test_a_password_that_is_missing_or_wrong_is_a_matter_of_configuration(
    start_server: StartServer, open_store: OpenStore
) -> None:
    word = "hush-hush"
    server = start_server("--requirepass", word)
    port = server.port
    assert "set storage.password" in await refused(server.url)
    for options in ({"url": f"redis://:wrong-word@127.0.0.1:{port}/0"}, {"password": "wrong-word"}):
        text = await refused(**{"url": server.url, **options})
        assert "does not know this user and password" in text
        assert "wrong-word" not in text
    async with open_store(server.url, password="hush-hush"):  # noqa: S106 - a test's own server
        pass
    async with open_store(f"redis://:hush-hush@127.0.0.1:{port}/0"):
        pass


async def test_the_rules_for_a_user_are_all_that_it_needs(
    start_server: StartServer, open_store: OpenStore, new_job: Any, claim: Any, succeed: Any
) -> None:
    """And let it into no other namespace."""
    server = start_server()
    rules = access_rules("mine").split()
    server.command("ACL", "SETUSER", "jobs", "on", ">secret", *rules)
    url = f"redis://jobs:secret@127.0.0.1:{server.port}/0"
    async with open_store(url, namespace="mine") as storage:
        watch, listening = storage.watch("p"), storage.listen()
        await anext(watch)
        await anext(listening)
        await storage.submit([new_job(lane="l", batch="b")])
        await storage.settle(succeed((await storage.claim(claim(1, peer="p"))).leases), claim(1))
        await storage.sweep(SweepRequest())
        await storage.stats()
        await storage.find(FindQuery())
        await storage.swap([RegisterChange(key="k", expect=0, value=b"v")])
        assert [register.key for register in await storage.scan("k")] == ["k"]
        await watch.aclose()
        await listening.aclose()
    assert "does not let this user" in await refused(url, namespace="other")


async def test_rights_that_are_missing_are_named(start_server: StartServer) -> None:
    server = start_server()
    rights = ("~*", "&*", "+@all", "-zadd", "-publish")
    server.command("ACL", "SETUSER", "jobs", "on", ">secret", *rights)
    text = await refused(f"redis://jobs:secret@127.0.0.1:{server.port}/0")
    assert "ZADD, PUBLISH" in text
    server.command("ACL", "SETUSER", "jobs", "-script")
    assert "does not let this user" in await refused(
        f"redis://jobs:secret@127.0.0.1:{server.port}/0"
    )


async def test_a_server_that_is_not_there_is_unavailable(start_server: StartServer) -> None:
    server = start_server()
    server.stop()
    storage = RedisStorage(RedisOptions(url=server.url), PluginContext())
    with pytest.raises(Unavailable, match="can not be reached"):
        await storage.start()
    server.start()
    await storage.start()
    await storage.stop()


async def test_a_unix_socket_will_do(
    start_server: StartServer, open_store: OpenStore, new_job: Any
) -> None:
    server = start_server("--unixsocket", "redis.sock")
    async with open_store(f"unix://{server.folder}/redis.sock?db=3") as storage:
        await storage.submit([new_job()])
    assert server.client(db=3).dbsize() > 0
    assert server.client(db=0).dbsize() == 0


async def test_a_cluster_is_not_reached_by_a_socket(start_server: StartServer) -> None:
    server = start_server("--unixsocket", "redis.sock")
    text = await refused(f"unix://{server.folder}/redis.sock", cluster=True)
    assert "storage.url" in text


async def test_databases_of_one_server_do_not_hear_each_other(
    start_server: StartServer, new_job: Any, claim: Any
) -> None:
    server = start_server()
    stores = [
        RedisStorage(RedisOptions(url=f"redis://127.0.0.1:{server.port}/{number}"), PluginContext())
        for number in (0, 1)
    ]
    for storage in stores:
        await storage.start()
    try:
        listening = stores[0].listen()
        await anext(listening)
        await stores[1].submit([new_job()])
        assert not stores[1].listened
        await stores[0].claim(claim(1))
        assert stores[0].listened
        await listening.aclose()
    finally:
        for storage in stores:
            await storage.stop()


def test_an_instance_can_be_started_again_in_another_loop(server: str, new_job: Any) -> None:
    storage = RedisStorage(RedisOptions(url=server), PluginContext(namespace="loops"))

    async def once() -> None:
        await storage.start()
        try:
            await storage.submit([new_job()])
        finally:
            await storage.stop()

    asyncio.run(once())
    asyncio.run(once())


async def test_keys_begin_with_the_prefix(
    start_server: StartServer, open_store: OpenStore, new_job: Any
) -> None:
    server = start_server()
    async with open_store(server.url, prefix="mine/") as storage:
        await storage.submit([new_job(queue="a}b{c:ü", lane="x", batch="y")])
    keys = server.command("KEYS", "*")
    assert all(key.startswith(b"mine/{test-") for key in keys)
    assert any(b"/a%7Db%7Bc%3A%C3%BC}:" in key for key in keys)


async def test_no_key_has_a_ttl_or_is_left_when_all_is_over(
    start_server: StartServer, open_store: OpenStore, new_job: Any, claim: Any, succeed: Any
) -> None:
    """But for the few of each queue, and counters."""
    server = start_server()
    fields = {"result_ttl": 0.0, "id_ttl": 0.0}
    async with open_store(server.url) as storage:
        for number in range(20):
            await storage.submit([new_job(lane=f"l{number}", **fields) for _ in range(3)])
        while leases := (await storage.claim(claim(10, peer="p"))).leases:
            await storage.settle(succeed(leases))
    keys = {key.decode().split("}:")[1] for key in server.command("KEYS", "*")}
    jobs = {key for key in keys if key.startswith("j:")}
    assert len(jobs) == 60
    assert keys - jobs == {
        "all",
        "claims",
        "clock",
        "due",
        "expiry",
        "idle",
        "looks",
        "queue",
        "queues",
        "sequence",
        "tally",
    }


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"url": "http://x"}, "storage.url"),
        ({"url": "redis://h:port"}, "storage.url"),
        ({"url": "unix://"}, "name the socket"),
        ({"timeout": "soon"}, "storage.timeout"),
        ({"timeout": 0}, "storage.timeout"),
        ({"username": "u"}, "storage.password"),
        ({"ca_certs": "ca.pem"}, "rediss://"),
        ({"url": "redis://:12/secret@db.example:6379/0"}, "%2F"),
        ({"url": "redis://user:12/secret@db.example/0"}, "%2F"),
        ({"url": "redis://db.example/secret"}, "number of the data"),
    ],
)
def test_options_that_can_not_work_are_refused(
    options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").touch()
    with pytest.raises(ConfigError, match=says) as caught:
        RedisStorage(RedisOptions(**options), PluginContext(base_dir=tmp_path))
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value) + repr(RedisOptions(**options))


def test_unknown_options_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": "redis://h", "host": "h"}, RedisOptions)


def test_options_show_no_secret() -> None:
    secrets: dict[str, Any] = {"username": "someone", "password": "third"}
    options = RedisOptions(url="redis://user:word@host:1/2?password=other", **secrets)
    assert repr(options) == "RedisOptions(url='redis://host:1/2', prefix='plugq:')"
