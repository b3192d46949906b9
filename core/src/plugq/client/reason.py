"""Why a job that was waited for has not ended, in one line and as far as it can be known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from plugq.duration import moment
from plugq.errors import PlugqError
from plugq.job import JobState
from plugq.presence import PREFIX, decode
from plugq.protocols.edits import QueueSettings
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
    stats = await broker.stats()
    known = queued(record, live, stats)
    if record.state is JobState.DELAYED:
        return f"{delayed(record)}; {known}" if known else delayed(record)
    known = known or full(record, stats)
    if not known and record.lane is not None:
        query = FindQuery(states=(JobState.RUNNING,), queue=record.queue, limit=MOST_RUNNING)
        known = behind(record, (await broker.find(query)).jobs, stats)
    return known or busy(record, live) or limited(record, stats)


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


def full(record: JobRecord, stats: Stats) -> str:
    """Return whether the queue of a job runs as many jobs as it may."""
    most = _settings(record, stats).max_running
    tasks = [one for one in stats.tasks if one.queue == record.queue]
    if most is None or sum(one.counts.get("running", 0) for one in tasks) < most:
        return ""
    return f"queue {record.queue!r} runs {most:,} at once at most, and as many are running"


def behind(record: JobRecord, running: Sequence[JobRecord], stats: Stats) -> str:
    """Return which job holds the lane of a job, or that as many as may do."""
    most = _settings(record, stats).lane_max_running
    ahead = [one for one in running if one.lane == record.lane]
    if not ahead or len(ahead) < most:
        return ""
    if most == 1:
        return f"job {ahead[0].id!r} of its lane {record.lane!r} is running"
    return f"its lane {record.lane!r} runs {most:,} at once at most, and as many are running"


def limited(record: JobRecord, stats: Stats) -> str:
    """Return whether the limits of its queue may hold back a job that nothing known does."""
    settings = _settings(record, stats)
    if not (settings.limits or settings.lane_limits):
        return ""
    # No storage says what its limits hold back, and what workers said may be some seconds old.
    return f"perhaps held back by the limits of queue {record.queue!r}"


def _settings(record: JobRecord, stats: Stats) -> QueueSettings:
    stored = (one.settings for one in stats.queues if one.queue == record.queue)
    return next(stored, None) or QueueSettings(queue=record.queue)


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
