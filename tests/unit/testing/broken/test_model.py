"""The model, proven: the machine finds storages that break a promise, and says which.

Most of the broken storages are those that the contract's own tests are proven with; each is the
memory storage with one fault.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from plugq.builtin.memory import MemoryStorage
from plugq.job import Outcome
from plugq.protocols import ClaimReply, ClaimRequest, Settlement, SettleReply
from plugq.testing.contract.histories import Histories
from plugq.testing.model.kept import kept
from plugq.testing.model.machine import run
from plugq.testing.model.records import Disagreement
from plugq.testing.model.shrinking import failure, shortened
from plugq.testing.model.steps import Step

replace = msgspec.structs.replace

#: Steps that the machine takes at most from one seed, and the seeds that it tries.
ENOUGH, SEEDS = 3_000, range(1, 7)


def _neighbour(name: str) -> ModuleType:
    # Folders of tests are no packages.
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"broken_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


broken = _neighbour("test_storage")


class SwapsPayloads(MemoryStorage):
    """Jobs that are granted together get the payloads of each other."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        reply = await super().claim(request)
        bodies = [lease.body for lease in reversed(reply.leases)]
        leases = [
            replace(lease, body=body) for lease, body in zip(reply.leases, bodies, strict=True)
        ]
        return replace(reply, leases=tuple(leases))


class LeavesTheLast(MemoryStorage):
    """A claim of many leaves the last job that it could have been granted."""

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        limit = request.limit if request.limit < 2 else request.limit - 1
        return await super().claim(replace(request, limit=limit))


class RunsWhatHasSucceeded(MemoryStorage):
    """A job that has succeeded is queued once more."""

    async def settle(
        self, settlements: Sequence[Settlement], claim: ClaimRequest | None = None
    ) -> tuple[Sequence[SettleReply], ClaimReply | None]:
        replies, _ = await super().settle(settlements)
        for settlement, reply in zip(settlements, replies, strict=True):
            record = self._jobs.find(settlement.queue, settlement.id)
            if record is not None and settlement.outcome is Outcome.SUCCEED and not reply.lost:
                self._jobs.redrive(record, self._clock.time())
        return replies, None if claim is None else await super().claim(claim)


#: The promise that the machine names for each broken storage.
FOUND: dict[str | type[MemoryStorage], str] = {
    "LosesAJob": "I1",
    "ForgetsIdsWithTheirResults": "I1",
    "DropsResultsAtOnce": "I1",
    SwapsPayloads: "I2",
    LeavesTheLast: "I3",
    "GrantsTwice": "I4",
    "GrantsMoreToARepeatedClaim": "I4",
    "EndsLeasesByTime": "I4",
    "EndsLeasesTooSoon": "I4",
    "IgnoresTheHolder": "I4",
    "IgnoresTheTokenOnSettle": "I5",
    "IgnoresTheTokenOnRenew": "I5",
    RunsWhatHasSucceeded: "I6",
    "ReleasesSpendAnAttempt": "I7",
    "CountsNoCrash": "I7",
    "ForgetsUniqueKeys": "I8",
    "RevivesTheCancelled": "I8",
    "EditsWhoeverHasTheId": "I8",
    "IgnoresMaxRunning": "I9",
    "LetsALateHolderFreeTheLane": "I9",
    "Reorders": "I10",
    "ReprioritisesToTheBack": "I10",
    "Miscounts": "I13",
    "CountsBatchesByWhatIsStored": "I13",
    "ForgetsBatchesWithTheirLastJob": "I13",
    "StoresHalfOfAFullCall": "I15",
    "LivesInThePast": "time",
}
CASES = [
    pytest.param(
        getattr(broken, storage) if isinstance(storage, str) else storage,
        promise,
        id=storage if isinstance(storage, str) else storage.__name__,
    )
    for storage, promise in FOUND.items()
]


def contract(storage: type[MemoryStorage]) -> Histories:
    """Return the contract for one class of storage."""
    subject = broken.Subject(storage)
    assert isinstance(subject, Histories)
    return subject


def found(storage: type[MemoryStorage], seed: int, shrink: float = 0.0) -> Exception | None:
    """Return what the machine finds from a seed."""
    try:
        run(contract(storage), ENOUGH, number=seed, shrink=shrink)
    except Exception as error:  # noqa: BLE001 - a broken storage may fail in any way
        return error
    return None


@pytest.mark.parametrize(("storage", "promise"), CASES)
def test_the_machine_finds_a_broken_storage(storage: type[MemoryStorage], promise: str) -> None:
    told = (getattr(found(storage, seed), "promise", "") for seed in SEEDS)
    assert promise in told


def test_the_machine_finds_nothing_in_a_sound_storage() -> None:
    assert found(MemoryStorage, 1) is None


def test_every_promise_that_can_be_broken_this_way_is_named() -> None:
    numbers = [f"I{number}" for number in (*range(1, 11), 13)]
    assert set(numbers) <= set(FOUND.values())


@pytest.mark.parametrize(("storage", "promise"), CASES)
def test_a_kept_history_finds_a_broken_storage(storage: type[MemoryStorage], promise: str) -> None:
    errors = [failure(contract(storage), steps) for _, steps in kept()]
    assert promise in {getattr(error, "promise", "") for error in errors}


def test_what_fails_is_told_as_a_short_history_that_fails_again() -> None:
    error = found(broken.LosesAJob, 1, shrink=10.0)
    assert isinstance(error, Disagreement)
    assert str(error).startswith("I1: job ")
    [note] = error.__notes__
    steps: list[Step] = [(verb, fields) for verb, fields in json.loads(note[note.index("[") :])]
    assert [verb for verb, _ in steps] == ["submit"]
    assert str(failure(contract(broken.LosesAJob), steps)) == str(error)
    assert failure(contract(MemoryStorage), steps) is None
    assert shortened(contract(MemoryStorage), steps, 1.0) is None


def test_a_history_that_can_not_be_shortened_in_time_is_told_as_it_is() -> None:
    steps: list[Step] = [("advance", {"seconds": 1.0}), ("submit", {"jobs": [{"id": "a"}] * 3})]
    steps[1] = ("submit", {"jobs": [{"id": id} for id in "abc"]})
    error = shortened(contract(broken.LosesAJob), steps, 0.0)
    assert error is not None
    assert "advance" in error.__notes__[0]


def test_without_hypothesis_the_failure_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "plugq.testing.model.machine")
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(AssertionError, match=r"^the model test needs Hypothesis: pip install"):
        contract(MemoryStorage).test_every_history_agrees_with_the_model()


def test_a_long_run_prints_seeds_that_repeat_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLUGQ_MODEL_STEPS", "100")
    monkeypatch.setenv("PLUGQ_MODEL_SEED", "7")
    contract(MemoryStorage).test_every_history_agrees_with_the_model()
    told = capsys.readouterr().out
    assert "seed 7: " in told
    monkeypatch.setenv("PLUGQ_MODEL_STEPS", str(ENOUGH))
    with pytest.raises(Disagreement) as first:
        contract(broken.LosesAJob).test_every_history_agrees_with_the_model()
    assert "PLUGQ_MODEL_SEED=7 repeats it" in first.value.__notes__
    monkeypatch.setenv("PLUGQ_MODEL_SEED", "seven")
    with pytest.raises(AssertionError, match="give a whole number"):
        contract(MemoryStorage).test_every_history_agrees_with_the_model()
