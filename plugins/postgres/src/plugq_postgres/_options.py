"""The options of the storage and what they come to."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import msgspec

from plugq.duration import seconds
from plugq.errors import ConfigError

#: The longest name that PostgreSQL keeps whole.
_LONGEST_NAME = 63


class PostgresOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Where the server is and how it is used.

    ``url`` is a ``postgresql://`` URL. All tables lie in ``schema``. ``statement_timeout`` bounds
    what the server does for one call, ``lock_timeout`` how long it waits for other calls on the
    same queue; then a call ends as :class:`~plugq.errors.Unavailable`. ``connect_timeout`` bounds
    the wait for a connection. ``pooler = true`` is for a pooler in transaction mode before the
    server: no prepared statement is kept and no session is set up; give ``listen_url``, past the
    pooler, to be woken by other processes instead of looking every second. ``migrate = false``
    leaves creating and changing the tables to ``plugq migrate``.
    """

    url: str
    schema: str = "plugq"
    pool_size: int = 10
    statement_timeout: float | str = "5s"
    lock_timeout: float | str = "2s"
    connect_timeout: float | str = "5s"
    pooler: bool = False
    listen_url: str | None = None
    migrate: bool = True


def checked(options: PostgresOptions) -> PostgresOptions:
    """Return options that can work.

    Raises:
        ConfigError: they can not; the message says what to change.
    """
    for name in ("url", "listen_url"):
        url = getattr(options, name)
        if url is not None and not url.startswith(("postgresql://", "postgres://")):
            message = f"storage.{name}: give a URL such as postgresql://user@host:5432/database"
            raise ConfigError(message)
        if url is not None and not _whole(url):
            # Without the URL: what is wrong is most likely in its password.
            message = (
                f"storage.{name}: can not be read as a URL; write / ? # @ and % in the user, the "
                "password or the database as %2F %3F %23 %40 %25"
            )
            raise ConfigError(message)
    if not options.schema or "\0" in options.schema:
        message = 'storage.schema: name a schema, for instance schema = "plugq"'
        raise ConfigError(message)
    if options.schema == "$user" or options.schema.startswith("pg_"):
        message = f"storage.schema: {options.schema!r} has a meaning of its own; name another one"
        raise ConfigError(message)
    if len(options.schema.encode()) > _LONGEST_NAME:
        message = f"storage.schema: a name may have {_LONGEST_NAME} bytes; shorten it"
        raise ConfigError(message)
    if options.pool_size < 1:
        message = f"storage.pool_size: {options.pool_size} is too few; give 1 or more"
        raise ConfigError(message)
    for name in ("statement_timeout", "lock_timeout", "connect_timeout"):
        duration(getattr(options, name), name)
    return options


def duration(value: float | str, name: str) -> float:
    """Return an option in seconds.

    Raises:
        ConfigError: it is no duration, or none that can be waited for.
    """
    try:
        found = seconds(value, name=f"storage.{name}")
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from None
    if found <= 0:
        message = f"storage.{name}: must be longer than 0; nothing may wait for ever"
        raise ConfigError(message)
    return found


def _whole(url: str) -> bool:
    """Return whether the parts of a URL are those that its author meant."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return "@" not in f"{parts.path}{parts.query}{parts.fragment}"


def shown(url: str) -> str:
    """Return a URL without what is secret in it."""
    where = url.partition("://")[2].rpartition("@")[2]
    return f"postgresql://{where.partition('?')[0].partition('#')[0]}"


def without_secrets(url: str, text: str) -> str:
    """Return a text without the password that a URL has."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return text.replace(url, "the URL")
    for secret in (password, unquote(password or "")):
        if secret:
            text = text.replace(secret, "***")
    return text


def quoted(name: str) -> str:
    """Return a name as it stands in a statement."""
    return '"' + name.replace('"', '""') + '"'
