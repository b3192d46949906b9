"""Submitting jobs, waiting for them, looking at them and steering them."""

from plugq.client.batches import Batch, BatchProgress
from plugq.client.client import CancelAnswer, Client, ClientSettings, Deployment
from plugq.client.events import EventStream
from plugq.client.handle import JobHandle
from plugq.client.queues import Queues
from plugq.client.schedules import Schedules
from plugq.client.steering import Filter
from plugq.client.views import AttemptError, Job, Page, QueueInfo, ScheduleInfo, Stats, TaskInfo
from plugq.client.workers import WorkerInfo

__all__ = [
    "AttemptError",
    "Batch",
    "BatchProgress",
    "CancelAnswer",
    "Client",
    "ClientSettings",
    "Deployment",
    "EventStream",
    "Filter",
    "Job",
    "JobHandle",
    "Page",
    "QueueInfo",
    "Queues",
    "ScheduleInfo",
    "Schedules",
    "Stats",
    "TaskInfo",
    "WorkerInfo",
]
