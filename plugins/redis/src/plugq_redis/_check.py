"""What the server is, and what it promises; asked once when the storage starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import RedisError

from plugq.errors import ConfigError
from plugq_redis._faults import code_of, unusable

if TYPE_CHECKING:
    from plugq_redis._options import RedisOptions
    from plugq_redis._server import Server

#: The oldest server that has all that the scripts use.
OLDEST = (6, 2)


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What was found: ``fsync`` is empty where the server does not tell.

    ``version`` is that of the Redis with which it is compatible, ``release`` its own as text.
    """

    server: str
    release: str
    version: tuple[int, ...]
    cluster: bool
    appendonly: bool
    fsync: str
    policy: str
    limited: bool
    replicas: int
    promise: str


def read_info(data: bytes) -> dict[str, str]:
    """Return the fields of an answer to INFO."""
    lines = data.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line and not line.startswith("#"))


def promise_of(place: str, name: str, *, appendonly: bool, fsync: str) -> str:
    """Return what is kept of what the server has acknowledged, in one line."""
    begin = f"{name} at {place}"
    if not appendonly:
        return (
            f"{begin} writes no append-only file: what was acknowledged since its last snapshot "
            "is lost when it ends; set appendonly yes"
        )
    if fsync == "always":
        return f"{begin} keeps what it has acknowledged through a loss of power"
    if fsync == "no":
        return (
            f"{begin} keeps what it has acknowledged through a crash of its process, and through a "
            "loss of power what the system had written out (appendfsync no)"
        )
    if fsync == "everysec":
        return (
            f"{begin} keeps what it has acknowledged through a crash of its process, and through a "
            "loss of power all but about the last second (appendfsync everysec)"
        )
    return (
        f"{begin} writes an append-only file and does not tell how often it syncs it; with "
        "appendfsync always nothing acknowledged is lost"
    )


async def check(server: Server, options: RedisOptions) -> Facts:
    """Ask the server what it is.

    Raises:
        ConfigError: it can not be used with these options.
        Unavailable: it can not be reached, or not now.
    """
    try:
        info = read_info(await server.command("INFO"))
    except RedisError as error:
        raise unusable(error, server.place) from None
    facts = _facts(server.place, info, await _appendfsync(server))
    if facts.version and facts.version < OLDEST:
        version = ".".join(map(str, facts.version))
        message = f"storage.url: {facts.server} at {server.place} is {version}; 6.2 is needed"
        raise ConfigError(message)
    if facts.policy.startswith("allkeys") and not options.allow_eviction:
        message = (
            f"storage.url: {facts.server} at {server.place} throws keys away when its memory is "
            f"full (maxmemory-policy {facts.policy}), and jobs with them; set noeviction there, or "
            "storage.allow_eviction = true if jobs may be lost"
        )
        raise ConfigError(message)
    return facts


async def check_rights(server: Server) -> None:
    """Ask whether the user may do all that the scripts do.

    Raises:
        ConfigError: some of it is denied.
        Unavailable: the server can not be reached, or not now.
    """
    denied = await server.denied()
    if denied:
        message = (
            f"storage: Redis at {server.place} does not let this user use {', '.join(denied)}; see "
            "the ACL rules in the documentation of plugq"
        )
        raise ConfigError(message)


def _facts(place: str, info: dict[str, str], fsync: str) -> Facts:
    valkey = "valkey_version" in info
    name = "Valkey" if valkey else "Redis"
    # Valkey names as its redis_version the one that it is compatible with.
    version = info.get("redis_version", "")
    appendonly = info.get("aof_enabled") == "1"
    return Facts(
        server=name,
        release=info.get("valkey_version", version),
        version=tuple([int(part) for part in version.split(".") if part.isdigit()]),
        cluster=info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == "1",
        appendonly=appendonly,
        fsync=fsync,
        policy=info.get("maxmemory_policy", ""),
        limited=info.get("maxmemory", "0") != "0",
        replicas=int(info.get("connected_slaves", "0")),
        promise=promise_of(place, name, appendonly=appendonly, fsync=fsync),
    )


async def _appendfsync(server: Server) -> str:
    """Return how often the server syncs its file, empty where it does not tell."""
    try:
        found = await server.command("CONFIG", "GET", "appendfsync")
    except RedisError as error:
        # Hosted servers know no CONFIG, or do not let this user have it.
        if code_of(error) in {"NOAUTH", "LOADING"}:
            raise unusable(error, server.place) from None
        return ""
    return found[1].decode() if len(found) > 1 else ""
