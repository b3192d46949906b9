"""The composition root: configuration, registry, hooks and services become a running deployment."""

from plugq.assembly.app import App, load_app
from plugq.assembly.deployment import PRIVATE, Assembly, connect
from plugq.assembly.imports import import_module
from plugq.assembly.schedules import owner_of, planned
from plugq.assembly.worker import Worker

__all__ = [
    "PRIVATE",
    "App",
    "Assembly",
    "Worker",
    "connect",
    "import_module",
    "load_app",
    "owner_of",
    "planned",
]
