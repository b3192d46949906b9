"""Submitting jobs, waiting for them, looking at them and steering them."""

from plugq.client.client import CancelAnswer, Client, ClientSettings, Deployment
from plugq.client.events import EventStream
from plugq.client.handle import JobHandle
from plugq.client.queues import Queues
from plugq.client.schedules import Schedules
from plugq.client.views import AttemptError, Job, Page, QueueInfo, ScheduleInfo, Stats, TaskInfo
from plugq.client.workers import WorkerInfo

__all__ = [
    "AttemptError",
    "CancelAnswer",
    "Client",
    "ClientSettings",
    "Deployment",
    "EventStream",
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
