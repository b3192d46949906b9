"""The machine that makes up histories: a Hypothesis state machine whose rules are steps.

It needs Hypothesis, which comes with ``plugq[testing]``; nothing else of the kit does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from plugq.job import JobState, Outcome
from plugq.protocols.storage import UniqueMode
from plugq.testing.model.player import IDS, QUEUES, Player
from plugq.testing.model.shrinking import shortened

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Contract
    from plugq.testing.model.steps import Step

#: How many steps a history has at most.
LENGTH = 50

#: For how many seconds a history that fails is shortened.
SHRINK = 20.0

Args = st.SearchStrategy[dict[str, Any]]

# All times are multiples of 1/8 s, which no storage has to round.
_queue = st.sampled_from(QUEUES)
_queues = st.sampled_from((["a"], ["b"], ["a", "b"], ["b", "a", "b"]))
_worker = st.sampled_from("vw")
_age = st.integers(0, 7)
_ttl = st.sampled_from((None, 0.0, 5.0, 100.0))
_refs = st.lists(st.tuples(_queue, st.sampled_from(IDS)).map(list), min_size=1, max_size=4)
_states = st.lists(
    st.sampled_from([str(state) for state in JobState]), min_size=1, max_size=4, unique=True
)


def _some(required: dict[str, Any], optional: dict[str, Any]) -> Args:
    return st.fixed_dictionaries(required, optional=optional)


_unique = st.tuples(
    st.sampled_from([str(mode) for mode in UniqueMode]), st.sampled_from("kl"), st.just(20.0)
).map(list)
_job = _some(
    {"id": st.sampled_from(IDS), "queue": _queue},
    {
        "task": st.just("u"),
        "submission": st.integers(0, 2),
        "priority": st.sampled_from((5, -5, 1000)),
        "delay": st.sampled_from((0.125, 3.0, 30.0)),
        "run_in": st.sampled_from((-5.0, 8.0)),
        "deadline_in": st.sampled_from((2.0, 15.0)),
        "max_attempts": st.integers(2, 4),
        "lane": st.sampled_from("mn"),
        "batch": st.sampled_from("xy"),
        "unique": _unique,
        "result_ttl": _ttl,
        "failure_ttl": _ttl,
        "id_ttl": st.sampled_from((0.0, 5.0, 20.0)),
        "not_after_in": st.sampled_from((-0.125, 0.0, 5.0)),
    },
)
_plain_job = _some(
    {"id": st.sampled_from(IDS), "max_attempts": st.integers(1, 3)}, {"lane": st.just("m")}
)
_submit = st.lists(_job, min_size=1, max_size=5).map(lambda jobs: {"jobs": jobs})
_submit_plain = st.lists(_plain_job, min_size=1, max_size=5).map(lambda jobs: {"jobs": jobs})
_again = st.lists(_age, min_size=1, max_size=3).map(
    lambda ages: {"jobs": [{"again": age} for age in ages]}
)
_claim = _some(
    {"worker": _worker, "queues": _queues, "limit": st.integers(0, 5)},
    {
        "lease": st.sampled_from((5.0, 10.0, 10.0)),
        "again": st.sampled_from((0, 0, 1, 2)),
    },
)
_settlement_outcome = st.sampled_from([str(outcome) for outcome in Outcome])
_settlement = _some(
    {"lease": _age, "outcome": _settlement_outcome},
    {
        "delay": st.sampled_from((2.0, 10.0)),
        "at_in": st.sampled_from((-5.0, 6.0)),
        "code": st.sampled_from(("unknown_task", "mine")),
        "progress": st.just(3.0),
        "error": st.just(value=True),
        "off": st.sampled_from((-1, 1)),
    },
)
_settle = _some({"settlements": st.lists(_settlement, min_size=1, max_size=3)}, {"claim": _claim})
_settle_latest = _some({"outcome": _settlement_outcome}, {"delay": st.just(2.0)}).map(
    lambda fields: {"settlements": [fields]}
)
_success = _age.map(lambda age: {"settlements": [{"lease": age}]})
_renew = _some(
    {"leases": st.lists(_age, max_size=3)},
    {
        "lease": st.sampled_from((2.0, 10.0)),
        "progress": st.just(2.0),
        "off": st.sampled_from((-1, 1)),
    },
)
_hold = _some({"holder": _worker, "forget": st.integers(0, 2)}, {"behind": st.just(1)})
_sweep = _some(
    {},
    {
        "limit": st.integers(1, 3),
        "max_crashes": st.integers(1, 2),
        "end_leases": st.just(value=False),
        "deadline_grace": st.sampled_from((0.0, 3.0)),
    },
)
_conditions: dict[str, Any] = {"states": _states, "former": st.sampled_from((0, 1))}
_edit_held = _some(
    {"kind": st.sampled_from(("cancel", "redrive", "purge")), "lease": _age}, _conditions
)
_edit = st.one_of(
    _some(
        {"kind": st.sampled_from(("cancel", "redrive", "purge")), "refs": _refs},
        _conditions,
    ),
    _some({"kind": st.just("retain"), "refs": _refs, "ttl": _ttl}, _conditions),
    _some(
        {"kind": st.just("reprioritise"), "refs": _refs, "priority": st.sampled_from((0, 5, -5))},
        _conditions,
    ),
)
_steer = _some(
    {
        "kind": st.sampled_from(("pause", "drain", "resume", "resume", "resume")),
        "queues": st.sampled_from((["a"], ["b"], ["a", "b"])),
    },
    {},
)
_configure = _some(
    {"kind": st.just("configure"), "queue": _queue},
    {
        "max_running": st.integers(1, 3),
        "lane_max_running": st.integers(1, 3),
        "max_length": st.integers(2, 6),
    },
)
_find = _some(
    {},
    {
        "limit": st.integers(1, 5),
        "queue": _queue,
        "task": st.sampled_from("tu"),
        "batch": st.sampled_from("xy"),
        "states": _states,
        "since_ago": st.sampled_from((0.0, 5.0)),
    },
)
_restore = _some(
    {"id": st.sampled_from(IDS), "queue": _queue, "sequence": st.integers(1, 30)},
    {
        "state": st.sampled_from(("delayed", "running", "succeeded", "failed")),
        "priority": st.just(5),
        "lane": st.just("m"),
        "batch": st.just("x"),
    },
)
_change = _some(
    {"key": st.sampled_from("rs")},
    {"value": st.sampled_from("12"), "behind": st.just(1), "ttl": st.just(10.0)},
)
_swap = st.lists(_change, min_size=1, max_size=2, unique_by=lambda one: one["key"]).map(
    lambda changes: {"changes": changes}
)
_moments = (0.125, 1.0, 2.0, 3.0, 4.875, 5.0, 8.0, 10.0, 10.0, 12.5, 15.0, 20.0, 30.0)
_seconds = st.sampled_from(_moments).map(lambda seconds: {"seconds": seconds})
#: Beyond every retention but the longest ones, and beyond those.
_long = st.sampled_from((*_moments, 100.0, 600.0, 604_800.0)).map(
    lambda seconds: {"seconds": seconds}
)


def _steps(verb: str, arguments: Args) -> st.SearchStrategy[Step]:
    return st.tuples(st.just(verb), arguments)


#: What a history is made of; a verb that stands here twice is played as often. One rule draws
#: from it: among many rules Hypothesis switches some off, and few histories would have them all.
_step = st.one_of(
    _steps("submit", _submit),
    _steps("submit", _submit),
    _steps("submit", _submit_plain),
    _steps("submit", _again),
    _steps("claim", _claim),
    _steps("claim", _claim),
    _steps("claim", _claim),
    _steps("settle", _settle),
    _steps("settle", _settle_latest),
    _steps("settle", _settle_latest),
    _steps("settle", _success),
    _steps("renew", _renew),
    _steps("renew", _hold),
    _steps("sweep", _sweep),
    _steps("sweep", st.sampled_from(({}, {"max_crashes": 1}))),
    _steps("edit", _edit),
    _steps("edit", _edit_held),
    _steps("edit", _steer),
    _steps("edit", _configure),
    _steps("find", _find),
    _steps("restore", _restore),
    _steps("swap", _swap),
    _steps("advance", _seconds),
    _steps("advance", _seconds),
    _steps("advance", _long),
    _steps("set_back", _seconds),
    _steps("reopen", st.just({})),
)


class Machine(RuleBasedStateMachine):
    """Plays a history of random steps; a subclass says whose contract it plays for."""

    contract: Contract
    steps: int = 0
    failed: tuple[Step, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner(debug=False)
        self._failed = False
        self._player = Player(self.contract)
        self._runner.run(self._player.__aenter__())

    @rule(step=_step)
    def take(self, step: Step) -> None:
        """Take one step."""
        type(self).steps += 1
        try:
            self._runner.run(self._player.play(step))
        except BaseException:
            self._fail()
            raise

    def _fail(self) -> None:
        self._failed = True
        type(self).failed = tuple(self._player.played)

    def teardown(self) -> None:
        """Run what is left, unless the history has failed, and close the storage."""
        try:
            if not self._failed:
                self._runner.run(self._player.end())
        except BaseException:
            self._fail()
            raise
        finally:
            self._runner.run(self._player.__aexit__(None, None, None))
            self._runner.close()


def run(
    contract: Contract, steps: int, *, number: int | None = None, shrink: float = SHRINK
) -> int:
    """Play histories of ``steps`` steps or a little more and return how many there were.

    ``number`` is the seed; ``None`` picks one. Settings of the user's project do not count. A
    history that fails is shortened for at most ``shrink`` seconds.

    Raises:
        Disagreement: the storage does what the model does not allow. A note gives the history,
            the shortest that was found.
    """
    machine: type[Machine] = type("Histories", (Machine,), {"contract": contract})
    chosen = settings(
        max_examples=max(1, steps // LENGTH),
        stateful_step_count=LENGTH,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    given = machine if number is None else seed(number)(machine)
    try:
        run_state_machine_as_test(given, settings=chosen, _min_steps=LENGTH)
    except Exception:
        shorter = shortened(contract, list(machine.failed), shrink)
        if shorter is None:
            raise
        raise shorter from None
    return machine.steps


__all__ = ["LENGTH", "Machine", "run"]
