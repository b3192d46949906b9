"""Steps: one call each, in a form that can be written down, and what they mean in a history.

A step is a verb and plain arguments, such as ``["claim", {"worker": "v", "limit": 2}]``. What a
storage hands out is named by its age: lease 0 is the latest that was granted, and ``again`` 0 is
the latest claim of that worker. So a history means something on every storage, and in part.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from plugq.job import JobRecord, JobRef, JobState
from plugq.protocols.edits import (
    Cancel,
    Configure,
    Drain,
    Edit,
    Pause,
    Purge,
    QueueSettings,
    Redrive,
    Reprioritise,
    Resume,
    Retain,
)
from plugq.protocols.storage import NewJob, UniqueKey, UniqueMode

if TYPE_CHECKING:
    from plugq.testing.model.looking import Model

#: A verb and its arguments.
Step = tuple[str, dict[str, Any]]

_OF_JOBS: dict[str, type[Cancel | Redrive | Purge]] = {
    "cancel": Cancel,
    "redrive": Redrive,
    "purge": Purge,
}
_OF_QUEUES: dict[str, type[Pause | Drain | Resume]] = {
    "pause": Pause,
    "drain": Drain,
    "resume": Resume,
}


def written(steps: list[Step]) -> str:
    """Return a history as JSON, one step a line."""
    lines = ",\n".join(f"  {json.dumps([verb, arguments])}" for verb, arguments in steps)
    return f"[\n{lines}\n]"


def new_job(model: Model, number: int, fields: dict[str, Any]) -> NewJob:
    """Return the submission that a step means; ``number`` makes its body unlike any other."""
    given = dict(fields)
    unique = given.pop("unique", None)
    for name, relative in (("run_at", "run_in"), ("not_after", "not_after_in")):
        if relative in given:
            given[name] = model.now + given.pop(relative)
    return NewJob(
        queue=given.pop("queue", "a"),
        id=given.pop("id"),
        task=given.pop("task", "t"),
        submission=b"%d" % given.pop("submission", number + 1_000),
        body=b'{"number":%d}' % number,
        unique=None if unique is None else UniqueKey(UniqueMode(unique[0]), *unique[1:]),
        **given,
    )


def edit_of(model: Model, fields: dict[str, Any]) -> Edit:
    """Return the edit that a step means."""
    given = dict(fields)
    kind = given.pop("kind")
    if kind in _OF_QUEUES:
        return _OF_QUEUES[kind](queues=tuple(given["queues"]))
    if kind == "configure":
        return Configure(settings=(QueueSettings(**given),))
    refs = tuple(JobRef(queue, id) for queue, id in given.pop("refs"))
    conditions: dict[str, Any] = {
        "states": tuple(JobState(state) for state in given.pop("states", ()))
    }
    former = given.pop("former", None)
    if former is not None:
        # The right sequences, or those of a former job of the id.
        jobs = [model.queue(ref.queue).jobs.get(ref.id) for ref in refs]
        sequences = tuple(1 if job is None else max(1, job.sequence - former) for job in jobs)
        conditions["sequences"] = sequences
    if kind == "retain":
        return Retain(refs=refs, ttl=given["ttl"], **conditions)
    if kind == "reprioritise":
        return Reprioritise(refs=refs, priority=given["priority"], **conditions)
    return _OF_JOBS[kind](refs=refs, **conditions)


def record_of(model: Model, fields: dict[str, Any]) -> JobRecord:
    """Return the whole job that a step restores."""
    state = JobState(fields.get("state", "queued"))
    now, queue = model.now, fields.get("queue", "a")
    final, waits = state.final, state is JobState.DELAYED
    return JobRecord(
        queue=queue,
        id=fields["id"],
        task="t",
        state=state,
        sequence=fields.get("sequence", 1),
        generation=1,
        submission=b"restored",
        priority=fields.get("priority", 0),
        lane=fields.get("lane"),
        batch=fields.get("batch"),
        attempt=1,
        max_attempts=3,
        token=model.queue(queue).token + 7,
        worker="r",
        submitted_at=now - 100.0,
        ready_at=now + 20.0 if waits else now - 50.0,
        started_at=now - 25.0,
        finished_at=now - 5.0 if final else None,
        expires_at=now + 600.0 if final else None,
        lease_until=now + 10.0 if state is JobState.RUNNING else None,
        body=b"restored",
        result=b"7" if state is JobState.SUCCEEDED else None,
    )


__all__ = ["Step", "edit_of", "new_job", "record_of", "written"]
