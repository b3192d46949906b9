"""plugq: background jobs whose every part is a plugin, assembled from one file."""

from plugq.assembly import App, Worker, connect
from plugq.client import AttemptError, Batch, BatchProgress, Client, Job, JobHandle
from plugq.config import Config
from plugq.errors import (
    AmbiguousId,
    ConfigError,
    Conflict,
    Fail,
    InvalidJob,
    JobCancelled,
    JobError,
    JobFailed,
    JobNotFound,
    JobSkipped,
    LeaseLost,
    OutcomeUnknown,
    PayloadError,
    PayloadTooLarge,
    PluginBroken,
    PluginConflict,
    PluginError,
    PluginIncompatible,
    PluginNotFound,
    PlugqError,
    QueueFull,
    ResultExpired,
    Retry,
    Signal,
    Skip,
    Snooze,
    Unauthorized,
    Unavailable,
    Undecodable,
    WaitTimeout,
)
from plugq.events import EventKind, JobEvent
from plugq.hooks import hookimpl
from plugq.job import JobState
from plugq.protocols.plugin import Capability, PluginContext
from plugq.protocols.storage import Resync
from plugq.request import Priority, Unique
from plugq.retry import RetryPolicy
from plugq.task import JobRequest, Task, job
from plugq.worker import JobContext, current

__version__ = "0.1.0"

__all__ = [
    "AmbiguousId",
    "App",
    "AttemptError",
    "Batch",
    "BatchProgress",
    "Capability",
    "Client",
    "Config",
    "ConfigError",
    "Conflict",
    "EventKind",
    "Fail",
    "InvalidJob",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobError",
    "JobEvent",
    "JobFailed",
    "JobHandle",
    "JobNotFound",
    "JobRequest",
    "JobSkipped",
    "JobState",
    "LeaseLost",
    "OutcomeUnknown",
    "PayloadError",
    "PayloadTooLarge",
    "PluginBroken",
    "PluginConflict",
    "PluginContext",
    "PluginError",
    "PluginIncompatible",
    "PluginNotFound",
    "PlugqError",
    "Priority",
    "QueueFull",
    "ResultExpired",
    "Resync",
    "Retry",
    "RetryPolicy",
    "Signal",
    "Skip",
    "Snooze",
    "Task",
    "Unauthorized",
    "Unavailable",
    "Undecodable",
    "Unique",
    "WaitTimeout",
    "Worker",
    "connect",
    "current",
    "hookimpl",
    "job",
]
