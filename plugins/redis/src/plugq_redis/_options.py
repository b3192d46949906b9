"""The options of the storage and what they come to."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)

from plugq.duration import seconds
from plugq.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_DATABASE = re.compile(r"/?|/\d+")


class RedisOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Which server is used, and how.

    ``url`` is ``redis://host:port/database``, ``rediss://…`` for TLS or
    ``unix:///path?db=0``; ``username`` and ``password`` may stand there or by themselves.
    ``connect_timeout`` is how long opening a connection may take, ``timeout`` how long a call may
    take; then it ends as :class:`~plugq.errors.Unavailable` or
    :class:`~plugq.errors.OutcomeUnknown`. All keys and channels begin with ``prefix``.
    ``allow_eviction`` lets a server be used that throws keys away when its memory is full: jobs
    are then lost. ``cluster`` says whether the server is part of a Redis Cluster; by default the
    server is asked.
    """

    url: str = "redis://127.0.0.1:6379/0"
    username: str = ""
    password: str = ""
    connect_timeout: float | str = "5s"
    timeout: float | str = "5s"
    prefix: str = "plugq:"
    allow_eviction: bool = False
    cluster: bool | Literal["auto"] = "auto"
    ca_certs: str = ""
    certfile: str = ""
    keyfile: str = ""

    def __repr__(self) -> str:
        """Return the options without the secrets in them."""
        return f"RedisOptions(url={place(self.url)!r}, prefix={self.prefix!r})"


class Target:
    """Makes connections to the server that the options name; its text carries no secret."""

    def __init__(
        self, kind: type[AbstractConnection], settings: dict[str, Any], place: str
    ) -> None:
        self.place: str = place
        self._kind = kind
        self._settings = settings

    @property
    def connect_timeout(self) -> float:
        """How many seconds opening a connection may take."""
        return float(self._settings["socket_connect_timeout"])

    def __str__(self) -> str:
        return self.place

    def connection(self) -> AbstractConnection:
        """Return a connection that has not been opened."""
        return self._kind(**self._settings)

    def at(self, host: str, port: int) -> Target:
        """Return the same for another node of a cluster."""
        settings = {**self._settings, "host": host or self.host, "port": port}
        scheme = "rediss" if self.encrypted else "redis"
        return Target(self._kind, settings, place(f"{scheme}://{host}:{port}"))

    @property
    def database(self) -> int:
        """The number of the database."""
        return int(self._settings.get("db", 0))

    @property
    def local(self) -> bool:
        """Whether the server is reached by a socket of this machine."""
        return issubclass(self._kind, UnixDomainSocketConnection)

    @property
    def host(self) -> str:
        """The host to connect to."""
        return str(self._settings.get("host", "127.0.0.1"))

    @property
    def encrypted(self) -> bool:
        """Whether connections use TLS."""
        return issubclass(self._kind, SSLConnection)


def target_of(options: RedisOptions, base: Path) -> Target:
    """Return the server that the options name; files are relative to that folder.

    Raises:
        ConfigError: the options name no server, or contradict each other.
    """
    kind, settings = _settings(options, base)
    settings["socket_connect_timeout"] = duration(options.connect_timeout, "connect_timeout")
    return Target(kind, settings, place(options.url))


def place(url: str) -> str:
    """Return where a URL points to, without user, password and options."""
    try:
        parts = urlsplit(url)
        if parts.scheme == "unix":
            return f"unix://{parts.path}"
        host = parts.hostname or "127.0.0.1"
        port = parts.port or 6379
    except ValueError:
        return "the url"
    host = f"[{host}]" if ":" in host else host
    # Anything else is the rest of a password with a slash.
    path = parts.path if _DATABASE.fullmatch(parts.path) else ""
    return f"{parts.scheme}://{host}:{port}{path}"


def _settings(options: RedisOptions, base: Path) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """Return the class of the connections and what each is made with.

    Raises:
        ConfigError: the options name no server, or contradict each other.
    """
    try:
        found: dict[str, Any] = dict(parse_url(options.url))
        parts = urlsplit(options.url)
        # The port is looked at only when it is asked for.
        _ = parts.port
    except ValueError:
        message = (
            'storage.url: give an address such as "redis://127.0.0.1:6379/0", "rediss://…" or '
            '"unix:///run/redis.sock"'
        )
        raise ConfigError(message) from None
    kind = found.pop("connection_class", Connection)
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        message = (
            "storage.url: after the address comes the number of the database and nothing else; "
            "write / @ : # ? in a user or password as %2F %40 %3A %23 %3F, or set storage.password"
        )
        raise ConfigError(message)
    if issubclass(kind, UnixDomainSocketConnection) and not found.get("path"):
        message = 'storage.url: name the socket, for instance "unix:///run/redis.sock"'
        raise ConfigError(message)
    found = {key: found[key] for key in _FROM_URL if key in found}
    if options.username:
        found["username"] = options.username
    if options.password:
        found["password"] = options.password
    if found.get("username") and not found.get("password"):
        message = "storage.username: a user needs a password; set storage.password"
        raise ConfigError(message)
    files = _files(options, base)
    if issubclass(kind, SSLConnection):
        found |= {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, **files}
    elif files:
        message = "storage: certificates are for TLS; write rediss:// in storage.url"
        raise ConfigError(message)
    # The line itself watches its calls; a read that waits for the next reply has no end.
    return kind, {**found, "socket_timeout": None, "protocol": 2, "health_check_interval": 0}


def _files(options: RedisOptions, base: Path) -> dict[str, str]:
    """Return the files for TLS as redis-py takes them.

    Raises:
        ConfigError: one of them is not there.
    """
    names = {
        "ca_certs": options.ca_certs,
        "certfile": options.certfile,
        "keyfile": options.keyfile,
    }
    files = {name: base / given for name, given in names.items() if given}
    for name, path in files.items():
        if not path.is_file():
            message = f"storage.{name}: there is no file {path}"
            raise ConfigError(message)
    return {f"ssl_{name}": str(path) for name, path in files.items()}


_FROM_URL = ("host", "port", "path", "db", "username", "password")


def duration(value: float | str, name: str) -> float:
    """Return an option in seconds.

    Raises:
        ConfigError: it is no duration, or none at all.
    """
    try:
        found = seconds(value, name=f"storage.{name}")
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if found <= 0:
        message = f"storage.{name}: give more than 0 seconds"
        raise ConfigError(message)
    return found
