"""The storage contract: subclass it, open your storage, and pytest runs every promise."""

from __future__ import annotations

from plugq.testing.contract.batches import Batches
from plugq.testing.contract.budgets import Budgets
from plugq.testing.contract.crashes import Crashes
from plugq.testing.contract.events import Events
from plugq.testing.contract.fencing import Fencing
from plugq.testing.contract.figures import Figures
from plugq.testing.contract.index import Index
from plugq.testing.contract.leases import Leases
from plugq.testing.contract.lifecycle import Lifecycle, Time
from plugq.testing.contract.limits import Limits
from plugq.testing.contract.moves import Moves
from plugq.testing.contract.order import Order
from plugq.testing.contract.parks import Parks
from plugq.testing.contract.payloads import Cost, Payloads
from plugq.testing.contract.processes import Processes
from plugq.testing.contract.registers import Registers
from plugq.testing.contract.retaining import Retaining
from plugq.testing.contract.retention import Deadlines, Retention
from plugq.testing.contract.settling import Settling
from plugq.testing.contract.signals import Signals
from plugq.testing.contract.steering import Steering
from plugq.testing.contract.submission import Submission
from plugq.testing.contract.unique import Unique


class StorageContract(
    Moves,
    Settling,
    Submission,
    Unique,
    Order,
    Fencing,
    Leases,
    Limits,
    Budgets,
    Parks,
    Deadlines,
    Retention,
    Retaining,
    Index,
    Steering,
    Batches,
    Figures,
    Signals,
    Events,
    Registers,
    Lifecycle,
    Time,
    Payloads,
    Processes,
    Crashes,
    Cost,
):
    """What every storage does, as tests.

    ::

        class TestMine(StorageContract):
            @asynccontextmanager
            async def open(self, context: PluginContext) -> AsyncIterator[Storage]:
                storage = MyStorage(MyOptions(), context)
                await storage.start()
                try:
                    yield storage
                finally:
                    await storage.stop()

    ``open`` is called several times with one context and gives the same store each time, also
    while it is open. The context has a manual clock, a namespace of its own and an empty
    directory. Tests of a capability that the class does not declare are skipped by name. Each
    test makes its own scene, so they run in any order and in parallel.
    """


__all__ = ["StorageContract"]
