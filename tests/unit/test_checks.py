"""What storages refuse: each error names what is wrong, and sound values pass."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from plugq.errors import InvalidJob
from plugq.job import AttemptRecord, JobRecord, JobRef, JobState, Outcome, Progress
from plugq.protocols import (
    Budget,
    Cancel,
    ClaimRequest,
    Configure,
    Grant,
    Holder,
    LeaseRef,
    NewJob,
    Pause,
    QueueSettings,
    RegisterChange,
    Reprioritise,
    Retain,
    Settlement,
    SweepRequest,
    UniqueKey,
    UniqueMode,
    checks,
)


def job(**fields: object) -> NewJob:
    given = {"queue": "q", "id": "a", "task": "t", "submission": b"", "body": b""}
    return NewJob(**{**given, **fields})  # type: ignore[arg-type]


def record(**fields: object) -> JobRecord:
    given = {"queue": "q", "id": "a", "task": "t", "state": JobState.QUEUED, "sequence": 1}
    return JobRecord(**{**given, **fields})  # type: ignore[arg-type]


def claim(**fields: object) -> ClaimRequest:
    given = {"worker": "w", "number": 1, "queues": ("q",), "limit": 1}
    return ClaimRequest(**{**given, **fields})  # type: ignore[arg-type]


def settlement(**fields: object) -> Settlement:
    given = {"queue": "q", "id": "a", "token": 1, "outcome": Outcome.FAIL}
    return Settlement(**{**given, **fields})  # type: ignore[arg-type]


UNSOUND: list[tuple[str, Callable[[], None]]] = [
    ("delay", lambda: checks.check_submit([job(), job(delay=math.nan)])),
    ("run_at", lambda: checks.check_submit([job(run_at=math.inf)])),
    ("not_after", lambda: checks.check_submit([job(not_after=-math.inf)])),
    ("id_ttl", lambda: checks.check_submit([job(id_ttl=10**400)])),
    (
        "unique.ttl",
        lambda: checks.check_submit([job(unique=UniqueKey(UniqueMode.THROTTLE, "k", math.nan))]),
    ),
    ("priority", lambda: checks.check_submit([job(priority=2**63)])),
    ("UTF-8", lambda: checks.check_submit([job(lane="\ud800")])),
    (
        "UTF-8",
        lambda: checks.check_submit([job(unique=UniqueKey(UniqueMode.THROTTLE, "\udfff"))]),
    ),
    ("ready_at", lambda: checks.check_restore([record(ready_at=math.nan)])),
    ("token", lambda: checks.check_restore([record(token=2**64)])),
    (
        "attempt",
        lambda: checks.check_restore([record(history=(AttemptRecord(attempt=2**64, code=""),))]),
    ),
    ("lease", lambda: checks.check_claim(claim(lease=math.inf))),
    (
        "retry_at",
        lambda: checks.check_claim(
            claim(
                grants=(
                    Grant(
                        queue="q",
                        revision=1,
                        at=0.0,
                        budgets=(Budget(None, 0, (), 1.0, math.nan),),
                    ),
                )
            )
        ),
    ),
    ("at", lambda: checks.check_settle([settlement(at=math.nan)])),
    ("UTF-8", lambda: checks.check_settle([settlement(code="\ud800")])),
    ("lease", lambda: checks.check_renew([], math.nan, None)),
    ("number", lambda: checks.check_renew([], 1.0, Holder("w", 2**63))),
    (
        "progress",
        lambda: checks.check_renew(
            [LeaseRef("q", "a", 1, Progress(current=1.0, details={"k": 2**70}))], 1.0, None
        ),
    ),
    ("deadline_grace", lambda: checks.check_sweep(SweepRequest(deadline_grace=math.nan))),
    ("UTF-8", lambda: checks.check_edit(Cancel((JobRef("q", "\ud800"),)))),
    ("sequences", lambda: checks.check_edit(Cancel((JobRef("q", "a"),), sequences=(2**63,)))),
    ("ttl", lambda: checks.check_edit(Retain((), math.nan))),
    ("priority", lambda: checks.check_edit(Reprioritise((), 2**63))),
    (
        "max_length",
        lambda: checks.check_edit(Configure((QueueSettings(queue="q", max_length=2**63),))),
    ),
    ("UTF-8", lambda: checks.check_edit(Pause(("\ud800",)))),
    (
        "ttl",
        lambda: checks.check_swap([RegisterChange(key="k", expect=0, value=b"", ttl=math.inf)]),
    ),
]


@pytest.mark.parametrize(("name", "check"), UNSOUND)
def test_what_means_nothing_is_refused_in_one_line(name: str, check: Callable[[], None]) -> None:
    with pytest.raises(InvalidJob) as caught:
        check()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sound_values_pass() -> None:
    unique = UniqueKey(UniqueMode.THROTTLE, "\U0001f600", 5.0)
    checks.check_submit([job(id="日本", delay=-5.0, run_at=1e9, result_ttl=None, unique=unique)])
    checks.check_restore([record(history=(AttemptRecord(attempt=1, code="é"),))])
    checks.check_claim(None)
    checks.check_claim(claim(lease=-1.0))
    checks.check_settle([settlement(progress=Progress(current=1.0, details={"k": "é"}))])
    news = Progress(current=1.0, details={"k": 2**64 - 1})
    checks.check_renew([LeaseRef("q", "a", 2**63 - 1, news)], 30.0, Holder("w", 1))
    checks.check_sweep(SweepRequest())
    checks.check_edit(Configure((QueueSettings(queue="q"),)))
    checks.check_swap([RegisterChange(key="k", expect=0, value=None)])
