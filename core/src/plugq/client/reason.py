"""Why a job that was waited for has not ended, in one line and as far as it can be known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from plugq.duration import moment
from plugq.errors import PlugqError
from plugq.job import JobState
from plugq.presence import PREFIX, decode
from plugq.protocols.storage import FindQuery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRecord, JobRef
    from plugq.presence import Live
    from plugq.protocols.broker import Broker
    from plugq.protocols.storage import Stats

#: Seconds that the look may take, behind the timeout of the wait.
LOOK = 0.8
#: Running jobs among which the one is looked for that holds the lane.
MOST_RUNNING = 1000


async def reason(broker: Broker, ref: JobRef, waited: float) -> str:
    """Return what a wait that timed out says, after one short look at the storage."""
    state, why = "of unknown state", ""
    try:
        async with asyncio.timeout(LOOK):
            (record,) = await broker.get([ref])
            if record is None:
                return f"job {ref.id!r} is not in queue {ref.queue!r} after {waited:g} s"
            state = str(record.state)
            if record.state.final:
                return f"job {ref.id!r} did not end within {waited:g} s; it is {state} now"
            why = await _why(broker, record)
    except (PlugqError, TimeoutError):
        pass
    if not why:
        return f"job {ref.id!r} in queue {ref.queue!r} is still {state} after {waited:g} s"
    return f"job {ref.id!r} is still {state} after {waited:g} s: {why}"


async def _why(broker: Broker, record: JobRecord) -> str:
    live = [one for one in decode(await broker.scan(PREFIX)) if one.kind == "worker"]
    if record.state is JobState.RUNNING:
        return running(record, live)
    known = queued(record, live, await broker.stats())
    if record.state is JobState.DELAYED:
        return f"{delayed(record)}; {known}" if known else delayed(record)
    if known or record.lane is None:
        return known or busy(record, live)
    query = FindQuery(states=(JobState.RUNNING,), queue=record.queue, limit=MOST_RUNNING)
    return behind(record, (await broker.find(query)).jobs) or busy(record, live)


def delayed(record: JobRecord) -> str:
    """Return until when a job is delayed, and what for."""
    until = f"delayed until {moment(record.ready_at).isoformat(timespec='seconds')}"
    if not record.history:
        return until
    last = record.history[-1]
    return f"{until}, after attempt {last.attempt} ended with {last.type or last.code}"


def running(record: JobRecord, live: Sequence[Live]) -> str:
    """Return who runs a job, and since when."""
    since = ""
    if record.started_at is not None:
        since = f" since {moment(record.started_at).isoformat(timespec='seconds')}"
    said = f"attempt {record.attempt} is running on worker {record.worker!r}{since}"
    if all(one.id != record.worker for one in live):
        said = f"{said}, which is not among the live workers"
    if record.cancel_requested:
        said = f"{said}; its cancellation was requested"
    return said


def queued(record: JobRecord, live: Sequence[Live], stats: Stats) -> str:
    """Return why nobody can start a job; nothing if somebody could."""
    queue = record.queue
    if any(one.queue == queue and one.paused for one in stats.queues):
        return f"queue {queue!r} is paused"
    serving = [one for one in live if queue in one.queues]
    if not serving:
        return f"no worker serves queue {queue!r}"
    if all(one.draining for one in serving):
        return f"every worker that serves queue {queue!r} is stopping"
    if all(record.task not in one.tasks for one in serving):
        return f"no worker that serves queue {queue!r} knows task {record.task!r}"
    return ""


def behind(record: JobRecord, running: Sequence[JobRecord]) -> str:
    """Return which job holds the lane of a job."""
    ahead = next((one for one in running if one.lane == record.lane), None)
    if ahead is None:
        return ""
    return f"job {ahead.id!r} of its lane {record.lane!r} is running"


def busy(record: JobRecord, live: Sequence[Live]) -> str:
    """Return whether every slot is taken, as the workers said last."""
    serving = [one for one in live if record.queue in one.queues and not one.draining]
    slots = sum(one.concurrency for one in serving)
    if not serving or any(one.running < one.concurrency for one in serving):
        return ""
    if slots == 1:
        return f"the one slot of the worker that serves queue {record.queue!r} is busy"
    return f"all {slots:,} slots of the workers that serve queue {record.queue!r} are busy"


__all__ = ["reason"]
