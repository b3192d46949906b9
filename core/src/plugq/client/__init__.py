"""Submitting jobs, waiting for them, looking at them and steering them."""

from plugq.client.client import CancelAnswer, Client, ClientSettings, Deployment
from plugq.client.handle import JobHandle
from plugq.client.queues import Queues
from plugq.client.schedules import Schedules
from plugq.client.views import AttemptError, Job, Page, QueueInfo, ScheduleInfo, Stats, TaskInfo

__all__ = [
    "AttemptError",
    "CancelAnswer",
    "Client",
    "ClientSettings",
    "Deployment",
    "Job",
    "JobHandle",
    "Page",
    "QueueInfo",
    "Queues",
    "ScheduleInfo",
    "Schedules",
    "Stats",
    "TaskInfo",
]
