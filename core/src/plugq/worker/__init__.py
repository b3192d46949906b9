"""Runs jobs: claims, handlers, renewals, settlements."""

from plugq.worker.context import CancelReason, CurrentJob, JobContext, current
from plugq.worker.engine import Engine, EngineSettings
from plugq.worker.runner import Handler, Runner
from plugq.worker.signals import catch_signals
from plugq.worker.thread import LoopThread, loop_factory

__all__ = [
    "CancelReason",
    "CurrentJob",
    "Engine",
    "EngineSettings",
    "Handler",
    "JobContext",
    "LoopThread",
    "Runner",
    "catch_signals",
    "current",
    "loop_factory",
]
