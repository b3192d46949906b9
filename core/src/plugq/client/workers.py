"""The workers and brokers that are alive, as users see them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from plugq.duration import moment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from plugq.presence import Live


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A live worker, or a broker that has no worker in its process.

    ``id`` is what :attr:`Job.worker` says of its jobs. ``running`` is as of ``last_seen``, which is
    by the storage's clock, as is ``started_at``. ``draining``: it is stopping and claims no more.
    """

    kind: Literal["worker", "broker"]
    id: str
    host: str
    pid: int
    queues: tuple[str, ...]
    tasks: tuple[str, ...]
    concurrency: int
    running: int
    draining: bool
    started_at: datetime
    last_seen: datetime


def workers_view(live: Iterable[Live]) -> tuple[WorkerInfo, ...]:
    """Return what is alive as users see it, workers first, by host, process and id."""
    found = [
        WorkerInfo(
            kind=one.kind,
            id=one.id,
            host=one.host,
            pid=one.pid,
            queues=one.queues,
            tasks=one.tasks,
            concurrency=one.concurrency,
            running=one.running,
            draining=one.draining,
            started_at=moment(one.started_at),
            last_seen=moment(one.seen),
        )
        for one in live
    ]
    found.sort(key=lambda one: (one.kind == "broker", one.host, one.pid, one.id))
    return tuple(found)


__all__ = ["WorkerInfo", "workers_view"]
