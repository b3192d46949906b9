"""Every error that plugq raises, in one tree.

::

    PlugqError
    ├── ConfigError (ValueError)         the configuration can not be used
    ├── PluginError                      a plugin can not be used
    │   ├── PluginNotFound               no installed plugin has that name
    │   ├── PluginBroken                 it is installed and fails to import or to start
    │   ├── PluginIncompatible           it was written for another plugin API
    │   └── PluginConflict               two distributions offer one name
    ├── InvalidJob (ValueError)          a job that can not be accepted as it is
    ├── PayloadError                     arguments or a result that can not travel
    │   ├── PayloadTooLarge
    │   └── Undecodable
    ├── QueueFull                        ``max_length`` is reached
    ├── Conflict                         the state of the job forbids it
    ├── Unavailable (ConnectionError)    the storage or broker can not be reached
    ├── OutcomeUnknown                   the reply was lost; sending again is safe
    ├── Unauthorized                     this peer may not do that
    └── JobError                         what became of a job
        ├── JobFailed
        ├── JobCancelled
        ├── JobSkipped
        ├── JobNotFound (LookupError)
        ├── ResultExpired
        ├── AmbiguousId
        ├── LeaseLost
        └── WaitTimeout (TimeoutError)

    Signal (Exception)                   raised by a handler to say how the attempt ends
    ├── Retry
    ├── Fail
    ├── Snooze
    └── Skip

Each error takes one message, a single line that says what to do; facts are attributes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime, timedelta


class PlugqError(Exception):
    """The base of every error that plugq raises."""


class ConfigError(PlugqError, ValueError):
    """The configuration can not be used; the message names the key and the remedy."""


class PluginError(PlugqError):
    """A plugin can not be used."""

    def __init__(self, message: str, *, plugin: str | None = None) -> None:
        super().__init__(message)
        self.plugin = plugin


class PluginNotFound(PluginError):
    """No installed distribution offers a plugin of that name."""


class PluginBroken(PluginError):
    """The plugin is installed, yet it fails to import or breaks its contract."""


class PluginIncompatible(PluginError):
    """The plugin was written for another version of the plugin API."""


class PluginConflict(PluginError):
    """Two distributions offer a plugin of one name; neither is preferred."""


class InvalidJob(PlugqError, ValueError):
    """The job can not be accepted as it is; nothing of the call was stored."""


class PayloadError(PlugqError):
    """Arguments or a result can not be encoded, decoded or sent."""


class PayloadTooLarge(PayloadError):
    """The encoded bytes exceed the limit that the deployment sets."""

    def __init__(self, message: str, *, size: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class Undecodable(PayloadError):
    """The bytes are not what their content type says, or exceed a decoding limit."""


class QueueFull(PlugqError):
    """The queue holds as many waiting jobs as its ``max_length`` allows, or is being drained."""

    def __init__(self, message: str, *, queue: str | None = None) -> None:
        super().__init__(message)
        self.queue = queue


class Conflict(PlugqError):
    """The present state of the job forbids what was asked."""


class Unavailable(PlugqError, ConnectionError):
    """The storage or broker can not be reached now; what was asked did not happen."""


class OutcomeUnknown(PlugqError):
    """The reply was lost, so the jobs may or may not be stored; sending them again is safe."""

    def __init__(self, message: str, *, ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.ids: tuple[str, ...] = tuple(ids)


class Unauthorized(PlugqError):
    """This peer may not do what it asked for."""


class JobError(PlugqError):
    """What became of a job; ``queue`` and ``id`` say which."""

    def __init__(self, message: str, *, queue: str | None = None, id: str | None = None) -> None:
        super().__init__(message)
        self.queue = queue
        self.id = id


class JobFailed(JobError):
    """The job ended as ``failed``; ``error`` is its last attempt's, ``attempts`` holds all."""

    def __init__(
        self,
        message: str,
        *,
        queue: str | None = None,
        id: str | None = None,
        code: str = "error",
        attempts: Sequence[Any] = (),
        error: Any = None,
    ) -> None:
        super().__init__(message, queue=queue, id=id)
        self.code = code
        self.attempts: tuple[Any, ...] = tuple(attempts)
        self.error = error


class JobCancelled(JobError):
    """The job was cancelled, or the generation of it that was waited for."""


class JobSkipped(JobError):
    """The handler decided that the job should not run."""


class JobNotFound(JobError, LookupError):
    """No such job is stored: it never was, its retention has passed, or it was purged."""


class ResultExpired(JobError):
    """The job succeeded, and the time to keep its result has passed."""


class AmbiguousId(JobError):
    """More than one queue has a job of that id; name the queue."""

    def __init__(self, message: str, *, id: str | None = None, queues: Sequence[str] = ()) -> None:
        super().__init__(message, id=id)
        self.queues: tuple[str, ...] = tuple(queues)


class LeaseLost(JobError):
    """The lease that the token stands for has ended; another attempt may be running."""


class WaitTimeout(JobError, TimeoutError):
    """The job was not final in time; it goes on as before."""


class Signal(Exception):
    """Raised by a handler to say how its attempt ends."""


class Retry(Signal):
    """End this attempt and try again after a delay or at a moment; spends the attempt.

    Without a time the retry policy of the job decides. When no attempt is left the job fails.
    """

    def __init__(
        self,
        message: str = "retry asked for by the handler",
        *,
        after: float | timedelta | str | None = None,
        at: datetime | None = None,
    ) -> None:
        super().__init__(message)
        self.after = after
        self.at = at


class Fail(Signal):
    """End the job as ``failed`` now, whatever attempts are left."""

    def __init__(self, message: str = "failed by the handler", *, code: str = "fail") -> None:
        super().__init__(message)
        self.code = code


class Snooze(Signal):
    """Put the job back for a while; the attempt is given back."""

    def __init__(self, delay: float | timedelta | str, message: str = "") -> None:
        super().__init__(message)
        self.delay = delay


class Skip(Signal):
    """End the job as ``skipped``: it should not run, and is never retried."""

    def __init__(self, message: str = "skipped by the handler") -> None:
        super().__init__(message)


__all__ = [
    "AmbiguousId",
    "ConfigError",
    "Conflict",
    "Fail",
    "InvalidJob",
    "JobCancelled",
    "JobError",
    "JobFailed",
    "JobNotFound",
    "JobSkipped",
    "LeaseLost",
    "OutcomeUnknown",
    "PayloadError",
    "PayloadTooLarge",
    "PluginBroken",
    "PluginConflict",
    "PluginError",
    "PluginIncompatible",
    "PluginNotFound",
    "PlugqError",
    "QueueFull",
    "ResultExpired",
    "Retry",
    "Signal",
    "Skip",
    "Snooze",
    "Unauthorized",
    "Unavailable",
    "Undecodable",
    "WaitTimeout",
]
