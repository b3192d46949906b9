"""The broker: who runs what."""

from plugq.broker.local import LocalBroker
from plugq.broker.reports import Observer

__all__ = ["LocalBroker", "Observer"]
