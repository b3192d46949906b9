"""What readers may see of the model: jobs, pages, counts and batches, promise by promise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugq.job import FINAL, JobRecord, JobState
from plugq.testing.model.records import Job, Queue, close, expect
from plugq.testing.model.steering import Steering

if TYPE_CHECKING:
    from collections.abc import Sequence

    from plugq.job import JobRef
    from plugq.protocols.storage import BatchCounts, FindQuery, QueueStats, Stats, TaskStats

#: Which promise a field of a job that is not as it has to be breaks.
_BROKEN = {
    "token": "I5",
    "attempt": "I7",
    "crashes": "I7",
    "max_attempts": "I7",
    "sequence": "I8",
    "generation": "I8",
    "submission": "I8",
    "priority": "I10",
    "ready_at": "I10",
    "task": "I2",
    "lane": "I9",
    "lease_until": "I9",
    "worker": "I4",
    "result": "I4",
}
_SAME = (
    "task",
    "sequence",
    "generation",
    "submission",
    "priority",
    "lane",
    "batch",
    "attempt",
    "crashes",
    "token",
    "worker",
    "cancel_requested",
    "progress",
)
_TIMES = ("submitted_at", "ready_at", "started_at", "expires_at", "deadline_at", "lease_until")
_TOTALS = (
    "accepted",
    "started",
    "succeeded",
    "failed",
    "cancelled",
    "skipped",
    "retried",
    "snoozed",
    "released",
    "lease_ended",
    "redriven",
)
_MAY_START_AGAIN = ("accepted", "retried", "snoozed", "released", "lease_ended", "redriven")


class Model(Steering):
    """The whole model."""

    # Jobs

    def looked(
        self, refs: Sequence[JobRef], found: Sequence[JobRecord | None], *, waiting: bool
    ) -> None:
        """Compare jobs with what ``get`` returned for them, bodies included."""
        expect(len(found) == len(refs), "answers", "get answered another number of jobs")
        for ref, record in zip(refs, found, strict=True):
            job = self.queue(ref.queue).jobs.get(ref.id)
            if job is None or job.expired(self.now):
                lingers = job is not None and waiting and job.lingers(self.now)
                if job is not None and lingers:
                    expect(record is not None, "I1", f"{job.name} does not linger")
                else:
                    what = f"{ref.queue}/{ref.id} is there: {record}, but nothing has that id"
                    expect(record is None, "I2", what)
                    continue
            assert job is not None
            expect(record is not None, "I1", f"{job.name}, {job.state}, is gone")
            assert record is not None
            body = record.body == job.new.body
            expect(body, "I2", f"{job.name} has body {record.body!r}, not {job.new.body!r}")
            self._same(job, record)
            kept = job.value_until is None or job.value_until > self.now
            kept = kept or (waiting and job.lingers(self.now))
            result = job.result if kept else None
            if result is not None or not job.lingers(self.now) or waiting:
                self._field(job, "result", record.result, result)
            expired = job.state is JobState.SUCCEEDED and record.result is None
            self._field(job, "result_expired", record.result_expired, expired)

    def _same(self, job: Job, record: JobRecord) -> None:
        """Compare what every reader sees, and follow what the storage has noticed."""
        states = job.shown(self.now)
        what = f"{job.name} is {record.state}, not {sorted(states)}"
        expect(record.state in states, self._promise(job, record), what)
        if job.due(self.now) and record.state is JobState.QUEUED:
            self.shift(job, JobState.QUEUED)
        overdue = job.overdue(self.now)
        for name in _SAME:
            self._field(job, name, getattr(record, name), _wanted(job, name))
        for name in _TIMES:
            if not close(getattr(record, name), getattr(job, name)):
                self._field(job, name, getattr(record, name), getattr(job, name))
        finished_at = job.deadline_at if overdue else job.finished_at
        if not close(record.finished_at, finished_at):
            self._field(job, "finished_at", record.finished_at, finished_at)
        self._field(job, "code", record.code, "deadline" if overdue else job.code)
        shown = [(kept.attempt, kept.code, kept.worker) for kept in record.history]
        wanted = [(kept.attempt, kept.code, kept.worker) for kept in job.history]
        self._field(job, "history", shown, wanted)
        for kept, right in zip(record.history, job.history, strict=True):
            for name in ("started_at", "ended_at"):
                same = close(getattr(kept, name), getattr(right, name))
                expect(same, "fields", f"{job.name}: {name} in its history is {kept}, not {right}")

    def _promise(self, job: Job, record: JobRecord) -> str:
        if record.state is JobState.RUNNING or job.state is JobState.RUNNING:
            return "I4"
        return "I1" if job.state not in FINAL else "I6"

    def _field(self, job: Job, name: str, shown: object, wanted: object) -> None:
        what = f"{job.name}: {name} is {shown!r}, not {wanted!r}"
        expect(shown == wanted, _BROKEN.get(name, "fields"), what)

    # Pages

    def walked(self, query: FindQuery, found: Sequence[JobRecord]) -> None:
        """Compare all the pages of one walk with the jobs that match."""
        jobs = [job for job in self.all() if self._matches(query, job)]
        jobs.sort(key=lambda job: job.sequence, reverse=True)
        shown = [(record.queue, record.sequence, record.id) for record in found]
        for job in jobs:
            sure = not query.states or job.shown(self.now) <= set(query.states)
            there = (job.queue, job.sequence, job.id) in shown
            expect(there or not sure, "I1", f"{job.name} is not found by {query}")
        order = [(job.queue, job.sequence, job.id) for job in jobs]
        what = f"{query} found {shown}, not {order}"
        expect([one for one in order if one in shown] == shown, "I2", what)
        for record in found:
            expect(record.body is record.result is None, "answers", f"find shows a body: {record}")
            self._same(self.queue(record.queue).jobs[record.id], record)

    def _matches(self, query: FindQuery, job: Job) -> bool:
        return (
            not job.expired(self.now)
            and (not query.states or bool(job.shown(self.now) & set(query.states)))
            and query.queue in {None, job.queue}
            and query.task in {None, job.new.task}
            and query.batch in {None, job.new.batch}
            and (query.since is None or job.submitted_at >= query.since)
            and (query.until is None or job.submitted_at < query.until)
        )

    # Counts

    def counted(self, stats: Stats) -> None:
        """Compare the counts of tasks (I13, I6) and how the queues stand."""
        self.same_time(stats.now, "stats")
        shown = {(task.queue, task.task): task for task in stats.tasks}
        for queue in self.queues.values():
            for task, totals in queue.totals.items():
                one = shown.pop((queue.name, task), None)
                expect(one is not None, "I13", f"stats do not know task {queue.name}/{task}")
                assert one is not None
                self._counted(queue, one, totals)
        for other in shown.values():
            some = any(other.counts.values()) or any(other.totals.values())
            expect(not some, "I13", f"stats count what was never submitted: {other}")
        for standing in stats.queues:
            self._stands_as(standing)

    def _counted(self, queue: Queue, task: TaskStats, totals: dict[str, int]) -> None:
        what = f"task {task.queue}/{task.task}"
        shown = task.totals
        starts = sum(shown.get(name, 0) for name in _MAY_START_AGAIN)
        expect(shown.get("started", 0) <= starts, "I6", f"{what} starts too often: {shown}")
        jobs = [job for job in queue.jobs.values() if job.new.task == task.task]
        for state in JobState:
            # One whose retention has passed may be removed whenever it is met.
            sure = sum(job.state is state and not job.expired(self.now) for job in jobs)
            stored = sum(job.state is state for job in jobs)
            unseen = sum(self._unseen(job) for job in jobs)
            low = sure - unseen if state is JobState.DELAYED else sure
            high = stored + unseen if state is JobState.QUEUED else stored
            count = task.counts.get(state, 0)
            expect(low <= count <= high, "I13", f"{what} counts {count} {state}, not {stored}")
        stored, removed = sum(task.counts.values()), shown.get("removed", 0)
        accepted = shown.get("accepted", 0)
        expect(accepted == stored + removed, "I13", f"{what}: {accepted} ≠ {stored} + {removed}")
        for name in _TOTALS:
            count, wanted = shown.get(name, 0), totals.get(name, 0)
            expect(count == wanted, "I13", f"{what} counts {count} {name}, not {wanted}")

    def _unseen(self, job: Job) -> bool:
        """Return whether a job may be stored as queued or as delayed, shown as neither."""
        return job.due(self.now) and job.overdue(self.now)

    def _stands_as(self, shown: QueueStats) -> None:
        queue = self.queue(shown.queue)
        told = (shown.paused, shown.draining, shown.settings)
        wanted = (queue.paused, queue.draining, queue.settings)
        expect(told == wanted, "queues", f"queue {queue.name} is shown as {told}, not {wanted}")
        jobs = queue.jobs.values()
        if any(job.overdue(self.now) or job.due(self.now) for job in jobs):
            return
        ready = [job for job in jobs if job.state is JobState.QUEUED]
        ready.sort(key=lambda job: (-job.priority, job.ready_at, job.sequence))
        lanes: dict[str | None, int] = {}
        times: list[float] = []
        for job in ready:
            lane = job.new.lane
            held = lanes.setdefault(lane, queue.running(lane))
            if lane is None or held < queue.lane_limit:
                lanes[lane] = held + 1
                times.append(job.ready_at)
        oldest = self.now - min(times) if times else None
        what = f"queue {queue.name}: the oldest ready job waits {shown.oldest}, not {oldest}"
        expect(close(shown.oldest, oldest), "queues", what)

    def summed(self, names: Sequence[str], found: Sequence[BatchCounts | None]) -> None:
        """Compare the counts of batches."""
        expect(len(found) == len(names), "answers", "batches answered another number")
        for name, counts in zip(names, found, strict=True):
            batch = self.batch(name)
            if batch is None or counts is None:
                there = batch is None and counts is None
                expect(there, "I13", f"batch {name} is {counts}, not {batch}")
                continue
            shown = {state: counts.counts.get(state, 0) for state in JobState}
            what = f"batch {name} counts {shown}, not {batch.counts}"
            unseen = sum(job.group is batch and self._unseen(job) for job in self.all())
            noticed = shown[JobState.QUEUED] - batch.counts[JobState.QUEUED]
            expect(0 <= noticed <= unseen, "I13", what)
            shown[JobState.QUEUED] -= noticed
            shown[JobState.DELAYED] += noticed
            expect(shown == batch.counts, "I13", what)

    # The end

    def drained(self) -> None:
        """Check that nothing is left after everything was run, and that all of it was started."""
        for job in self.all():
            expect(job.state in FINAL, "I3", f"{job.name} is still {job.state} after the end")
            excused = job.state is JobState.CANCELLED or job.code == "deadline" or job.restored
            expect(job.starts or excused, "I3", f"{job.name} ended as {job.state} unstarted")


def _wanted(job: Job, name: str) -> object:
    if hasattr(job, name):
        return getattr(job, name)
    return getattr(job.new, name)


__all__ = ["Model"]
