"""The broker: who runs what."""

from plugq.broker.local import LocalBroker
from plugq.broker.reports import Observer
from plugq.broker.scheduler import Overlap, Schedule

__all__ = ["LocalBroker", "Observer", "Overlap", "Schedule"]
