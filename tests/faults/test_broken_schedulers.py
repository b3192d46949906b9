"""Deliberately broken schedulers, and the test that catches each."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from plugq.broker import announce, scheduler
from plugq.broker.scheduler import Scheduler
from plugq.broker.ticks import advanced, jobs_of
from plugq.schedule import Stored, changes
from plugq.schedule.stored import read

TESTS = Path(__file__).parent.parent


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"schedulers_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


UNIT = load(TESTS / "unit" / "broker" / "test_scheduler.py")
MODEL = load(TESTS / "properties" / "test_schedulers.py")

replace = msgspec.structs.replace
#: Steps after which the tick is submitted and its register not advanced.
UNTIL_SUBMITTED = 10


def submissions_never_come_too_late(patch: pytest.MonkeyPatch) -> None:
    """A scheduler that was paused runs a tick again whose id is forgotten by now."""
    patch.setattr(
        scheduler,
        "jobs_of",
        lambda *args: [replace(job, not_after=None) for job in jobs_of(*args)],
    )


def it_advances_before_it_submits(patch: pytest.MonkeyPatch) -> None:
    submit = Scheduler._submit

    async def early(self: Scheduler, stored: Any, now: float) -> int:
        await self._write(
            {
                one.name: advanced(one, one.entry.pending, len(one.entry.pending.ticks))
                for one in stored
                if one.entry.pending is not None
            }
        )
        return await submit(self, stored, now)

    patch.setattr(Scheduler, "_submit", early)


def overlap_is_ignored(patch: pytest.MonkeyPatch) -> None:
    async def none(self: Scheduler, answers: Any) -> set[str]:
        return set()

    patch.setattr(Scheduler, "_running", none)


def pauses_are_ignored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stored, "idle", property(lambda self: self.entry.removed))


def ticks_of_a_pause_are_made_up_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(changes, "resumed", lambda held, _: replace(held, paused=False))


def ticks_go_where_the_definition_says_by_now(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        scheduler,
        "jobs_of",
        lambda stored, *args: [
            replace(job, queue=stored.entry.job.queue) for job in jobs_of(stored, *args)
        ],
    )


def noted_ticks_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Whoever comes next does not see what was noted."""
    write = Scheduler._write

    def blind(register: Any) -> Any:
        stored = read(register)
        if isinstance(stored, str):
            return stored
        return Stored(stored.name, stored.version, replace(stored.entry, pending=None), stored.rule)

    async def wrote(self: Scheduler, written: Any) -> list[Stored]:
        return [
            Stored(one.name, one.version, written[one.name], one.rule)
            for one in await write(self, written)
        ]

    patch.setattr(scheduler, "read", blind)
    patch.setattr(Scheduler, "_write", wrote)


def ids_are_forgotten_while_it_was_away(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler, "still_known", lambda pending, now: True)


def a_refusal_loses_the_tick(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scheduler, "_REFUSED", set())


def every_announcement_replaces(patch: pytest.MonkeyPatch) -> None:
    def always(held: Any, definition: Any, owner: str, now: float) -> Any:
        new = definition.entry(owner=owner, last=now)
        return new if held is None else changes._replaced(held, new, keep=True)

    patch.setattr(announce, "announced", always)


def owners_remove_what_is_not_theirs(patch: pytest.MonkeyPatch) -> None:
    retire = announce._retire

    async def anything(storage: Any, register: Any, owner: str) -> None:
        stored = read(register)
        await retire(storage, register, stored.entry.owner)  # type: ignore[union-attr]

    patch.setattr(announce, "_retire", anything)


def model(script: list[tuple[str, int]]) -> Callable[[], None]:
    """Play one history against the model."""
    test = MODEL.test_each_tick_once_and_none_missed.hypothesis.inner_test
    return lambda: test(script)


def overlapping(script: list[tuple[str, int]]) -> Callable[[], None]:
    test = MODEL.test_no_tick_overlaps_the_job_of_another.hypothesis.inner_test
    return lambda: test(script)


def unit(test: Callable[..., Any], *args: Any, **options: Any) -> Callable[[], None]:
    return lambda: asyncio.run(test(*args, **options))


TICK = [("wait", 60)]
DIES_AFTER_IT_SUBMITTED = [*TICK, *[("step", 0)] * UNTIL_SUBMITTED, ("crash", 0)]
MOVES_IN_BETWEEN = [*DIES_AFTER_IT_SUBMITTED, ("move", 1)]
OVERLAPS = [*DIES_AFTER_IT_SUBMITTED, *TICK, *[("step", 1)] * 14]

VARIANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[], None]]] = [
    (
        submissions_never_come_too_late,
        unit(
            UNIT.test_a_scheduler_that_was_paused_over_fifty_ticks_doubles_none,
            purged=True,
        ),
    ),
    (it_advances_before_it_submits, model(DIES_AFTER_IT_SUBMITTED)),
    (overlap_is_ignored, unit(UNIT.test_a_tick_is_left_out_while_the_job_before_has_not_ended)),
    (overlap_is_ignored, overlapping(OVERLAPS)),
    (
        pauses_are_ignored,
        unit(UNIT.test_a_paused_schedule_submits_nothing_and_makes_up_for_nothing),
    ),
    (
        ticks_of_a_pause_are_made_up_for,
        unit(UNIT.test_a_paused_schedule_submits_nothing_and_makes_up_for_nothing),
    ),
    (ticks_go_where_the_definition_says_by_now, model(MOVES_IN_BETWEEN)),
    (
        ticks_go_where_the_definition_says_by_now,
        unit(UNIT.test_a_definition_that_moves_while_its_tick_is_submitted_runs_it_once),
    ),
    (noted_ticks_are_forgotten, model(MOVES_IN_BETWEEN)),
    (noted_ticks_are_forgotten, overlapping(OVERLAPS)),
    (
        ids_are_forgotten_while_it_was_away,
        unit(UNIT.test_ids_that_are_forgotten_are_not_submitted_again),
    ),
    (
        a_refusal_loses_the_tick,
        unit(UNIT.test_a_draining_queue_refuses_ticks_for_a_while_and_loses_none),
    ),
    (
        every_announcement_replaces,
        unit(UNIT.test_the_same_definition_leaves_a_pause_and_another_one_ends_it),
    ),
    (
        owners_remove_what_is_not_theirs,
        unit(UNIT.test_what_its_owner_defines_no_longer_goes_and_others_stay),
    ),
]

NAMES = [f"{number}-{broken.__name__}" for number, (broken, _) in enumerate(VARIANTS)]


@pytest.mark.parametrize(("broken", "caught_by"), VARIANTS, ids=NAMES)
def test_each_broken_variant_is_caught(
    broken: Callable[[pytest.MonkeyPatch], None],
    caught_by: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        caught_by()


@pytest.mark.parametrize("caught_by", [caught_by for _, caught_by in VARIANTS], ids=NAMES)
def test_the_sound_scheduler_passes_the_same_way(caught_by: Callable[[], None]) -> None:
    """Else every variant would seem to be caught."""
    caught_by()
