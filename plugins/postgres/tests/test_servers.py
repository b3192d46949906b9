"""The heart of the storage contract on the other servers that there are: PostgreSQL 15 and 18.

The whole contract runs on the first that is found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing.contract.events import Events
from plugq.testing.contract.fencing import Fencing
from plugq.testing.contract.limits import Limits
from plugq.testing.contract.registers import Registers
from plugq.testing.contract.retention import Retention
from plugq.testing.contract.settling import Settling
from plugq.testing.contract.signals import Signals
from plugq.testing.contract.submission import Submission
from plugq_postgres import PostgresOptions, PostgresStorage


@pytest.mark.usefixtures("other_programs")
class TestOtherServers(
    Submission,
    Settling,
    Fencing,
    Limits,
    Retention,
    Registers,
    Signals,
    Events,
):
    url: ClassVar[str]

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = PostgresStorage(PostgresOptions(url=self.url, statement_timeout="20s"), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()
