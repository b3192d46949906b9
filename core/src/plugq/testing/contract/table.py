"""The whole table of moves, cell by cell: what it has leads everywhere it says, all else nowhere.

Both tests are made from ``TRANSITIONS``, ``JobState`` and ``Event``, so that a row which is added
there is asked for here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugq.job import TRANSITIONS, AttemptRecord, Event, JobState, Outcome, allowed
from plugq.protocols.edits import EditStatus
from plugq.protocols.storage import Lease, SubmitStatus
from plugq.testing.contract.scene import Contract

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Scene

_SETTLED = {Event(outcome): outcome for outcome in Outcome}
_DEADLINE = 3000.0
_ERROR = AttemptRecord(attempt=0, code="error", type="ValueError", message="no luck")


def _fields(event: Event, target: JobState | None) -> dict[str, Any]:
    """Return how a job is submitted that an event is to bring to that target."""
    fields: dict[str, Any] = {"max_attempts": 5}
    if target is JobState.FAILED:
        fields["max_attempts"] = 1
    if event is Event.DEADLINE:
        fields["deadline_in"] = _DEADLINE
    return fields


async def _happen(scene: Scene, event: Event, target: JobState | None) -> None:
    """Make an event happen to job ``a`` in the way that leads to the target, or try to."""
    job = await scene.look("a")
    if event in _SETTLED:
        token = 1 if job is None else job.token
        lease = Lease(queue="q", id="a", task="t", token=token, attempt=1, max_attempts=1, body=b"")
        delay = 0.0 if target is JobState.QUEUED else 5.0
        await scene.settle(lease, _SETTLED[event], delay=delay, error=_ERROR)
    elif event is Event.SUBMIT:
        await scene.send(scene.job("a", delay=5.0 if target is JobState.DELAYED else 0.0))
    elif event is Event.DUE:
        delayed = job is not None and job.state is JobState.DELAYED
        scene.clock.advance(3600 if delayed else 1)
        await scene.sweep(end_leases=False)
    elif event is Event.CLAIM:
        await scene.claim(10)
    elif event is Event.LAPSE:
        await scene.lapse()
    elif event is Event.DEADLINE:
        scene.clock.advance(_DEADLINE)
        await scene.sweep(deadline_grace=0.0)
    else:
        edits = {
            Event.CANCEL: scene.cancel,
            Event.REDRIVE: scene.redrive,
            Event.REMOVE: scene.purge,
        }
        await edits[event]("a")


class Table(Contract):
    """``TRANSITIONS``, nothing less and nothing more."""

    async def test_every_target_of_every_row_is_reached(self) -> None:
        """Also those that a job comes to for want of attempts or since cancelling was asked."""
        async with self.scene() as scene:
            for (state, event), targets in TRANSITIONS.items():
                for target in targets:
                    if state is not None:
                        await scene.bring("a", state, **_fields(event, target))
                        asked = state is JobState.RUNNING and target is JobState.CANCELLED
                        if asked and event is not Event.CANCEL:
                            await scene.cancel("a")
                    await _happen(scene, event, target)
                    job = await scene.look("a")
                    reached = None if job is None else job.state
                    assert reached is target, f"{event} took a job from {state} to {reached}"
                    await scene.clear()
            await scene.settled_store()

    async def test_what_the_table_lacks_changes_nothing(self) -> None:
        """Every event that may not happen in a state leaves the job as it was."""
        async with self.scene() as scene:
            for state in (None, *JobState):
                for event in Event:
                    if allowed(state, event):
                        continue
                    if state is not None:
                        fields = _fields(event, None)
                        if state is JobState.DELAYED:
                            fields["delay"] = 2 * _DEADLINE
                        await scene.bring("a", state, **fields, failure_ttl=None, result_ttl=None)
                    before = await scene.look("a", body=True)
                    await _happen(scene, event, None)
                    after = await scene.look("a", body=True)
                    assert after == before, f"{event} changed a job that was {state}"
                    await scene.clear()
            await scene.settled_store()

    async def test_an_event_that_may_not_happen_is_answered_so(self) -> None:
        """A submission is a duplicate, an edit finds a conflict or the end, or nothing at all."""
        async with self.scene() as scene:
            for state in JobState:
                await scene.bring("a", state)
                if not allowed(state, Event.SUBMIT):
                    (reply,) = await scene.send(scene.job("a"))
                    assert (reply.status, reply.state) == (SubmitStatus.DUPLICATE, state)
                if not allowed(state, Event.CANCEL):
                    assert (await scene.cancel("a")).status is EditStatus.FINISHED
                if not allowed(state, Event.REDRIVE):
                    assert (await scene.redrive("a")).status is EditStatus.CONFLICT
                if not allowed(state, Event.REMOVE):
                    assert (await scene.purge("a")).status is EditStatus.CONFLICT
                await scene.clear()
            for edit in (scene.cancel, scene.redrive, scene.purge):
                assert (await edit("a")).status is EditStatus.NOT_FOUND


__all__ = ["Table"]
