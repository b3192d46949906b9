"""What Redis says, in words of plugq."""

from __future__ import annotations

import ssl
from typing import TypeVar

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from plugq.errors import ConfigError, InvalidJob, OutcomeUnknown, PlugqError, Unavailable

E = TypeVar("E", bound=BaseException)

#: What went wrong with a connection, as far as libraries let it out.
BROKEN: tuple[type[BaseException], ...] = (RedisError, OSError, EOFError, TimeoutError)

#: What a server answers in place of a reply; some of it counts as a broken connection there.
ANSWERS: tuple[type[RedisError], ...] = (
    ResponseError,
    BusyLoadingError,
    AuthenticationError,
    AuthorizationError,
)

_REFUSALS = {
    "LOADING": "is still loading its data; it will serve soon",
    "MASTERDOWN": "is a replica whose master is down; wait for the failover",
    "READONLY": "is a replica and takes no writes; connect to the master",
    "OOM": "has no memory left; raise its maxmemory or shorten the retention of jobs",
    "MISCONF": "refuses writes since it can not save its data; look into its log",
    "NOREPLICAS": "refuses writes since it has too few replicas",
    "NOAUTH": "wants a password; set storage.password",
    "WRONGPASS": "does not know this user and password",
    "NOPERM": "does not let this user do that; see the ACL rules in the documentation of plugq",
    "BUSY": "is busy with a script that runs too long",
    "CLUSTERDOWN": "is a cluster that is down",
    "TRYAGAIN": "is moving the keys to another node; try again",
    "UNKILLABLE": "is busy with a script that runs too long",
}

#: Answers of which the library keeps the code to itself.
_KINDS: dict[type[BaseException], str] = {
    NoScriptError: "NOSCRIPT",
    BusyLoadingError: "LOADING",
    ReadOnlyError: "READONLY",
    OutOfMemoryError: "OOM",
    NoPermissionError: "NOPERM",
    MasterDownError: "MASTERDOWN",
    ClusterDownError: "CLUSTERDOWN",
    TryAgainError: "TRYAGAIN",
}

#: How servers say that a user may not do what a script does; before version 7 and since.
_DENIED = ("user executing the script can't", "ACL failure in script")

#: Answers that mean that the options have to be changed, when they come at the start.
_WRONG_OPTIONS = frozenset({"NOAUTH", "WRONGPASS", "NOPERM"})


def code_of(error: BaseException) -> str:
    """Return the code with which an error answer begins, empty for any other error."""
    for kind, code in _KINDS.items():
        if isinstance(error, kind):
            return code
    text = str(error)
    if any(words in text for words in _DENIED):
        return "NOPERM"
    if isinstance(error, AuthorizationError | AuthenticationError):
        return "NOAUTH" if "required" in text else "WRONGPASS"
    if not isinstance(error, ResponseError):
        return ""
    for code in _REFUSALS:
        # An error inside of a script is quoted in the answer.
        if text.startswith((code + " ", code)) or f" -{code} " in text or f": {code} " in text:
            return code
    return ""


def moved_to(error: BaseException) -> tuple[str, int] | None:
    """Return to which node of a cluster a key has moved, ``None`` if the error says nothing."""
    if not isinstance(error, MovedError):
        return None
    host, _, port = str(error).split()[-1].rpartition(":")
    return host, int(port)


def is_moving(error: BaseException) -> bool:
    """Return whether keys are on their way to another node: the call was not even begun.

    Whoever followed one of them there would find a part of what belongs together.
    """
    return code_of(error) == "TRYAGAIN" or (
        isinstance(error, AskError) and not isinstance(error, MovedError)
    )


def refusal(error: BaseException, place: str, *, script: bool = False) -> PlugqError:
    """Return what an error answer means: the server did nothing.

    A script that fails in its midst may have done a part, since Redis takes nothing back.
    """
    if isinstance(error, PlugqError):
        return error
    if isinstance(error, UnicodeEncodeError):
        return InvalidJob(f"a text can not be stored in Redis: {error.reason}")
    if isinstance(error, OverflowError):
        return InvalidJob("a number does not fit into 64 bits; give a smaller number")
    code = code_of(error)
    midst = script and (not code or any(words in str(error) for words in _DENIED))
    kind = OutcomeUnknown if midst else Unavailable
    if code in _REFUSALS:
        return kind(f"Redis at {place} {_REFUSALS[code]}")
    return kind(f"Redis at {place} refused a call: {_short(error)}")


def broken(error: BaseException, place: str) -> Unavailable:
    """Return what it means that no connection could be had."""
    if code_of(error) in _REFUSALS:
        return Unavailable(f"Redis at {place} {_REFUSALS[code_of(error)]}")
    encrypted = place.startswith("rediss:")
    if (refused := _found(error, ssl.SSLError)) is not None:
        return Unavailable(f"Redis at {place} {_without_tls(refused)}")
    if isinstance(error, RedisTimeoutError | TimeoutError):
        hint = " and speaks TLS, else write redis://" if encrypted else ""
        return Unavailable(f"Redis at {place} does not answer; check that it runs{hint}")
    if _found(error, ConnectionResetError) is not None or "closed by server" in str(error):
        hint = (
            "a certificate, in storage.certfile and keyfile" if encrypted else "TLS, by rediss://"
        )
        message = (
            f"Redis at {place} closes the connection; check that it runs, and whether it wants"
        )
        return Unavailable(f"{message} {hint}")
    if isinstance(error, RedisConnectionError | OSError | EOFError):
        return Unavailable(f"Redis at {place} can not be reached; check that it runs")
    return Unavailable(f"Redis at {place} can not be used: {_short(error)}")


def unusable(error: BaseException, place: str) -> PlugqError:
    """Return what an error means to whoever starts the storage."""
    code = code_of(error)
    if code in _WRONG_OPTIONS:
        return ConfigError(f"storage: Redis at {place} {_REFUSALS[code]}")
    if (refused := _found(error, ssl.SSLError)) is not None:
        return ConfigError(f"storage: Redis at {place} {_without_tls(refused)}")
    if isinstance(error, ResponseError) and not code:
        return ConfigError(f"storage.url: Redis at {place} refused the start: {_short(error)}")
    return broken(error, place)


def _found(error: BaseException | None, kind: type[E]) -> E | None:
    """Return the error of that kind from which an error comes."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def _without_tls(error: ssl.SSLError) -> str:
    """Return why there is no encryption."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if "mismatch" in error.verify_message or "not valid for" in error.verify_message:
            return f"shows a certificate for another host: {error.verify_message}"
        return f"shows a certificate of no known CA, set storage.ca_certs: {error.verify_message}"
    if "CERTIFICATE" in (error.reason or ""):
        return "wants a client's certificate; set storage.certfile and storage.keyfile"
    return f"does not speak TLS with us, perhaps it is redis:// there: {_short(error)}"


def _short(error: BaseException) -> str:
    """Return the first line of an error, which is no secret: replies quote no credentials."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
