"""Capabilities that are declared and not there: each declaration must be caught.

The child processes of the contract make these classes anew, so each stands at the top.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

import pytest

from plugq.builtin.memory import MemoryOptions, MemoryStorage
from plugq.protocols import Capability, PluginContext, Storage
from plugq.testing import MissingCapability, StorageContract
from plugq.testing.contract.capabilities import Capabilities


class Sound(StorageContract):
    """The memory storage as it is, one instance a context."""

    patience: ClassVar[float] = 0.2
    storage: ClassVar[type[MemoryStorage]] = MemoryStorage
    stores: ClassVar[weakref.WeakKeyDictionary[PluginContext, MemoryStorage]] = (
        weakref.WeakKeyDictionary()
    )

    @asynccontextmanager
    async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
        made = self.stores.get(context)
        if made is None:
            made = self.stores[context] = self.storage(MemoryOptions(), context)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()


class Durable(MemoryStorage):
    """Says that it is durable and keeps everything in memory."""

    capabilities = frozenset({Capability.DURABLE})


class OnDurable(Sound):
    storage: ClassVar[type[MemoryStorage]] = Durable


class SharedByProcesses(MemoryStorage):
    """Says that processes share it, and each has its own."""

    capabilities = frozenset({Capability.SHARED_PROCESSES})


class OnSharedByProcesses(Sound):
    storage: ClassVar[type[MemoryStorage]] = SharedByProcesses


class SharedByHosts(MemoryStorage):
    """Says that hosts share it, which not even processes do."""

    capabilities = frozenset({Capability.SHARED_HOSTS})


class OnSharedByHosts(Sound):
    storage: ClassVar[type[MemoryStorage]] = SharedByHosts


class Transactional(MemoryStorage):
    """Says that it takes part in a transaction of the user, and nothing says how one begins."""

    capabilities = frozenset({Capability.TRANSACTIONAL_SUBMIT})


class OnTransactional(Sound):
    storage: ClassVar[type[MemoryStorage]] = Transactional


CAUGHT_BY: dict[type[MemoryStorage], tuple[str, ...]] = {
    Durable: ("what_was_acknowledged_outlasts_its_process",),
    SharedByProcesses: ("a_new_store_may_be_opened_by_several_at_once",),
    SharedByHosts: (
        "a_store_of_several_hosts_is_in_no_folder",
        "what_hosts_share_processes_share",
    ),
    Transactional: ("a_job_is_submitted_in_a_transaction_of_the_user",),
}
CONTRACTS: dict[type[MemoryStorage], type[Sound]] = {
    contract.storage: contract
    for contract in (OnDurable, OnSharedByProcesses, OnSharedByHosts, OnTransactional)
}
CASES = [
    pytest.param(broken, name, id=f"{broken.__name__}-{name}")
    for broken, names in CAUGHT_BY.items()
    for name in names
]


def run(contract: type[Sound], name: str) -> Exception | None:
    """Run one contract test and return what it failed with."""
    try:
        with asyncio.Runner() as runner:
            runner.run(getattr(contract(), f"test_{name}")())
    except Exception as error:  # noqa: BLE001 - a broken storage may fail a test in any way
        return error
    return None


@pytest.mark.parametrize(("broken", "name"), CASES)
def test_a_false_declaration_is_caught(broken: type[MemoryStorage], name: str) -> None:
    assert isinstance(run(Sound, name), MissingCapability)
    error = run(CONTRACTS[broken], name)
    assert error is not None
    assert not isinstance(error, MissingCapability)


def test_every_capability_has_a_false_declaration() -> None:
    # What is declared of wake-ups is proven by the storages that never wake.
    declared = {each for broken in CAUGHT_BY for each in broken.capabilities}
    assert declared == set(Capability) - {Capability.PUSH_WAKEUPS}


def test_every_test_of_capabilities_has_caught_something() -> None:
    names = {f"test_{name}" for names in CAUGHT_BY.values() for name in names}
    assert {name for name in vars(Capabilities) if name.startswith("test_")} <= names
