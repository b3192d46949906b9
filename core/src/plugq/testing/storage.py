"""The storage contract: subclass it, open your storage, and pytest runs every promise."""

from __future__ import annotations

from plugq.testing.contract.batches import Batches
from plugq.testing.contract.budgets import Budgets
from plugq.testing.contract.capabilities import Capabilities
from plugq.testing.contract.clocks import Clocks
from plugq.testing.contract.commits import Commits, LostTransactions
from plugq.testing.contract.cost import Cost
from plugq.testing.contract.crashes import Crashes
from plugq.testing.contract.crowds import Crowds
from plugq.testing.contract.edges import Edges
from plugq.testing.contract.ending import Ending
from plugq.testing.contract.events import Events
from plugq.testing.contract.fencing import Fencing
from plugq.testing.contract.figures import Figures
from plugq.testing.contract.histories import Histories
from plugq.testing.contract.hostile import Hostile
from plugq.testing.contract.index import Index
from plugq.testing.contract.interrupted import Interruptions
from plugq.testing.contract.leasehold import Leasehold
from plugq.testing.contract.leases import Leases
from plugq.testing.contract.lifecycle import Lifecycle, Time
from plugq.testing.contract.limits import Limits
from plugq.testing.contract.lost_signals import LostSignals
from plugq.testing.contract.moves import Moves
from plugq.testing.contract.order import Order
from plugq.testing.contract.outage import Outages
from plugq.testing.contract.parks import Parks
from plugq.testing.contract.payloads import Payloads
from plugq.testing.contract.processes import Processes
from plugq.testing.contract.registers import Registers
from plugq.testing.contract.repetition import Repetition
from plugq.testing.contract.restoring import Restoring
from plugq.testing.contract.retaining import Retaining
from plugq.testing.contract.retention import Deadlines, Retention
from plugq.testing.contract.settling import Settling
from plugq.testing.contract.sharing import Sharing
from plugq.testing.contract.signals import Signals
from plugq.testing.contract.steering import Steering
from plugq.testing.contract.submission import Submission
from plugq.testing.contract.table import Table
from plugq.testing.contract.transacted import Transacted
from plugq.testing.contract.transactions import Transactions
from plugq.testing.contract.unique import Unique
from plugq.testing.contract.windows import Windows


class StorageContract(
    Moves,
    Table,
    Settling,
    Submission,
    Unique,
    Order,
    Fencing,
    Leases,
    Leasehold,
    Repetition,
    Limits,
    Budgets,
    Parks,
    Windows,
    Deadlines,
    Retention,
    Retaining,
    Edges,
    Index,
    Restoring,
    Steering,
    Batches,
    Figures,
    Signals,
    LostSignals,
    Events,
    Registers,
    Lifecycle,
    Ending,
    Outages,
    Interruptions,
    Time,
    Clocks,
    Payloads,
    Crowds,
    Sharing,
    Processes,
    Hostile,
    Capabilities,
    Transactions,
    Transacted,
    Commits,
    LostTransactions,
    Crashes,
    Cost,
    Histories,
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
    directory. Tests of a capability that the class does not declare are skipped by name, and so
    are those of outages unless the class has the hook ``outage`` as well. One that declares
    ``TRANSACTIONAL_SUBMIT`` needs the hook ``transactions``. Each test makes its own scene, so they
    run in any order and in parallel.

    Where several work at once the clock is the real one, and ``open`` is also called in other
    threads and, for ``SHARED_PROCESSES``, in processes that make the class anew: it has to stand
    at the top of its module and to be made without arguments. What verbs cost beside
    ``stored`` jobs is told by CPU time unless ``work`` counts something better.
    """


__all__ = ["StorageContract"]
