"""A good part of the contract through a user who has the rights that are stated, and no others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing.contract.batches import Batches
from plugq.testing.contract.budgets import Budgets
from plugq.testing.contract.events import Events
from plugq.testing.contract.leases import Leases
from plugq.testing.contract.limits import Limits
from plugq.testing.contract.registers import Registers
from plugq.testing.contract.restoring import Restoring
from plugq.testing.contract.retention import Retention
from plugq.testing.contract.settling import Settling
from plugq.testing.contract.signals import Signals
from plugq.testing.contract.steering import Steering
from plugq.testing.contract.unique import Unique
from plugq_redis import RedisOptions, RedisStorage, access_rules

WORD = "hush-hush"


class Rights:
    """A server that lets nobody do anything without a password."""

    server: ClassVar[Any]

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        name = f"user-{context.namespace}"
        rules = access_rules(context.namespace).split()
        self.server.command("ACL", "SETUSER", name, "reset", "on", f">{WORD}", *rules)
        url = f"redis://127.0.0.1:{self.server.port}/0"
        storage = RedisStorage(RedisOptions(url=url, username=name, password=WORD), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
            assert self.server.command("ACL", "LOG") == []


@pytest.mark.usefixtures("own_server")
class TestAsThatUser(
    Rights,
    Batches,
    Budgets,
    Events,
    Leases,
    Limits,
    Registers,
    Restoring,
    Retention,
    Settling,
    Signals,
    Steering,
    Unique,
):
    """What a user of one namespace does."""
