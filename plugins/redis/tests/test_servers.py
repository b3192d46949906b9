"""The heart of the storage contract on the other servers that there are: Redis 6.2 and 7, Valkey.

The whole contract runs on the first that is found.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from plugq.protocols import PluginContext, Storage
from plugq.testing.contract.events import Events
from plugq.testing.contract.fencing import Fencing
from plugq.testing.contract.histories import Histories
from plugq.testing.contract.limits import Limits
from plugq.testing.contract.registers import Registers
from plugq.testing.contract.retention import Retention
from plugq.testing.contract.settling import Settling
from plugq.testing.contract.signals import Signals
from plugq.testing.contract.submission import Submission
from plugq_redis import RedisOptions, RedisStorage


@pytest.mark.usefixtures("other_program")
class TestOtherServers(
    Submission,
    Settling,
    Fencing,
    Limits,
    Retention,
    Registers,
    Signals,
    Events,
    Histories,
):
    url: ClassVar[str]

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        storage = RedisStorage(RedisOptions(url=self.url), context)
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()


def test_a_server_that_is_missing_is_an_error_in_ci(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(Path(__file__).with_name("conftest.py"))
    plugins = request.config.pluginmanager.get_plugins()
    conftest: Any = next(one for one in plugins if getattr(one, "__file__", None) == file)
    monkeypatch.setattr(conftest, "programs", list)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(RuntimeError, match="no redis-server was found"):
        conftest.program()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception):
        conftest.program()
    monkeypatch.undo()
    monkeypatch.setenv("PLUGQ_TEST_REDIS_SERVER", "no-such-program")
    with pytest.raises(RuntimeError, match="names no-such-program"):
        conftest.programs()
