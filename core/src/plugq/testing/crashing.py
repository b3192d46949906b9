"""What runs in the processes of the crash tests: workers and clients over the author's storage."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import msgspec

import plugq
from plugq.assembly import App, Assembly, Worker
from plugq.protocols.plugin import Capability
from plugq.testing.contract.scene import Scene
from plugq.testing.ledger import Expected, Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from plugq.client import Client
    from plugq.protocols.plugin import PluginContext
    from plugq.protocols.storage import Storage
    from plugq.testing.child import Side
    from plugq.testing.contract.scene import Contract

#: Seconds that a lease lasts, unless a test says otherwise.
LEASE = 1.0
#: Jobs that a submitter puts into one call.
CALL = 8
#: The names of the schedules, each with the seconds between its ticks, and the rules for it.
SCHEDULES: Mapping[str, tuple[float, Mapping[str, Any]]] = {
    "interval": (0.25, {"every": 0.25}),
    "cron": (1.0, {"cron": "* * * * * *"}),
}


class Opened:
    """A storage that the contract's ``open`` opens on whichever loop starts it."""

    api_version = 1
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.DURABLE,
            Capability.SHARED_PROCESSES,
            Capability.TRANSACTIONAL_SUBMIT,
        }
    )

    def __init__(self, contract: Contract, context: PluginContext) -> None:
        self._contract = contract
        self._context = context
        self._manager: AbstractAsyncContextManager[Storage] | None = None
        self._storage: Any = None

    async def start(self) -> None:
        """Open the storage."""
        self._manager = self._contract.open(self._context)
        self._storage = await self._manager.__aenter__()

    async def stop(self) -> None:
        """Close it."""
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.__aexit__(None, None, None)

    @property
    def listened(self) -> bool:
        """What the storage says."""
        return bool(self._storage is not None and self._storage.listened)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a verb of the storage, which need not be open yet."""
        if name.startswith("_"):
            raise AttributeError(name)

        def verb(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._storage, name)(*args, **kwargs)

        return verb


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One submission, in a form that reaches a child."""

    id: str
    task: str = "note"
    payload: Any = None
    options: dict[str, Any] = {}
    unique: str | None = None
    cancelled: bool = False

    def request(self) -> plugq.JobRequest[Any]:
        """Return what a client submits."""
        options = dict(self.options)
        if self.unique is not None:
            options["unique"] = plugq.Unique.until_finished(self.unique)
        return plugq.job(self.task, self.payload).options(id=self.id, **options)

    def expected(self) -> Expected:
        """Return what has to become of it."""
        return Expected(
            id=self.id,
            payload=self.payload,
            max_attempts=self.options.get("max_attempts", 4),
            cancelled=self.cancelled,
            fatal=self.task == "poison",
        )


def assembly(contract: Contract, context: PluginContext, lease: float = LEASE) -> Assembly:
    """Return a deployment over the storage of the author, of short leases."""
    config = {
        "namespace": context.namespace,
        "broker": {"lease": lease, "renewal": lease / 5},
        "client": {"deadline": 30.0, "reconnect": {"first": 0.01, "max": 0.2}},
        "worker": {"concurrency": 4, "grace": 0.5},
    }
    return Assembly(config, storage=cast("Storage", Opened(contract, context)))


def client(contract: Contract, context: PluginContext) -> Client:
    """Return an unstarted client of that deployment."""
    return assembly(contract, context).client()


def application(ledger: Ledger) -> App:
    """Return the application whose handlers note what they do."""
    app = App()

    def facts(payload: Any) -> dict[str, Any]:
        ctx = plugq.current()
        schedule, _, tick = ctx.job.id.partition("@")
        return {
            "tick": tick if schedule in SCHEDULES else None,
            "id": ctx.job.id,
            "queue": ctx.job.queue,
            "lane": ctx.job.lane,
            "token": ctx.token,
            "attempt": ctx.attempt,
            "payload": payload,
        }

    @app.task("note")
    async def note(payload: Any) -> int:
        known = facts(payload)
        ledger.note("start", **known)
        try:
            await asyncio.sleep(payload.get("hold", 0.0))
            if known["attempt"] == 1:
                await asyncio.sleep(payload.get("stuck", 0.0))
            ledger.note("effect", **known)
        finally:
            ledger.note("end", **known)
        return plugq.current().token

    @app.task("thread")
    def thread(payload: Any) -> int:
        known = facts(payload)
        for kind in ("start", "effect", "end"):
            ledger.note(kind, **known, threaded=True)
        return plugq.current().token

    @app.task("poison")
    async def poison(payload: Any) -> None:
        ledger.note("start", **facts(payload))
        os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))

    return app


async def work(side: Side, ledger: str, *, lease: float = LEASE) -> None:
    """Work until the parent says stop."""
    made = assembly(side.contract, side.context, lease)
    book = Ledger(Path(ledger))
    book.note("begin")
    async with Worker(application(book), assembly=made):
        side.say(os.getpid())
        await side.hear()


async def submit(side: Side, specs: list[Mapping[str, Any]]) -> None:
    """Submit in several calls and tell of each answer the ids, and whether they were accepted."""
    wanted = msgspec.convert(specs, list[Spec])
    async with client(side.contract, side.context) as one:
        side.say("ready")
        await side.hear()
        for start in range(0, len(wanted), CALL):
            some = wanted[start : start + CALL]
            handles = await one.submit_many([spec.request() for spec in some])
            pairs = zip(some, handles, strict=True)
            side.say([(spec.id, handle.outcome == "accepted") for spec, handle in pairs])


async def cancel(side: Side, ids: Sequence[str]) -> None:
    """Cancel jobs."""
    async with client(side.contract, side.context) as one:
        await one.cancel(*(one.handle(id, queue="default") for id in ids))
        side.say("done")


async def hold(side: Side, id: str) -> None:
    """Hold a long lease of a job until the parent says so, and tell whether it was lost."""
    async with side.contract.open(side.context) as storage:
        scene = Scene(side.contract, side.context, storage)
        lease = await scene.take(id, lease=600.0, worker="holder")
        side.say(lease.token)
        await side.hear()
        side.say((await scene.settle(lease)).lost)


__all__ = ["CALL", "LEASE", "SCHEDULES", "Opened", "Spec", "application", "assembly", "client"]
