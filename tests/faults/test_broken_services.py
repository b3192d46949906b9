"""Deliberately broken brokers, workers and clients, and the test that catches each."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from plugq.broker.coalesce import Coalescer
from plugq.broker.dispatch import Dispatch
from plugq.broker.local import LocalBroker
from plugq.broker.sweeper import Sweeper
from plugq.client.client import Client
from plugq.client.waiters import Waiters
from plugq.errors import PlugqError
from plugq.protocols import RenewReply
from plugq.worker.engine import Engine
from plugq.worker.runner import Runner

HERE = Path(__file__).parent
UNIT = HERE.parent / "unit"
#: Seconds after which a variant that makes its test hang counts as caught.
HANGS = 6.0
#: What the process of a variant returns when its test has failed.
CAUGHT = 42


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"caught_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


LOST = load(HERE / "test_lost_replies.py")
BLOCKED = load(HERE / "test_blocked_handlers.py")
ENGINE = load(UNIT / "worker" / "test_engine.py")
SWEEPER = load(UNIT / "broker" / "test_sweeper.py")
COALESCE = load(UNIT / "broker" / "test_coalesce.py")
DISPATCH = load(UNIT / "broker" / "test_dispatch.py")


def no_renewals(patch: pytest.MonkeyPatch) -> None:
    async def renew(self: Engine) -> None:
        pass

    patch.setattr(Engine, "_renew", renew)


def outcomes_are_sent_once(patch: pytest.MonkeyPatch) -> None:
    async def deliver(self: Engine, settlements: Any, claim: Any) -> Any:
        try:
            return await self._broker.settle(settlements, claim)
        except PlugqError:
            return [_Lost()] * len(settlements), None

    patch.setattr(Engine, "_deliver", deliver)


class _Lost:
    lost = True
    state = None


def a_claim_is_never_asked_again(patch: pytest.MonkeyPatch) -> None:
    async def wait(self: Engine, request: Any) -> None:
        while True:
            try:
                reply = await self._broker.claim(request, wait=60)
            except PlugqError:
                new = self._claim_request()
                assert new is not None
                request = new
                continue
            self._granted(reply, request.number)
            self._parked = None
            self._kick.set()
            return

    patch.setattr(Engine, "_wait_for_work", wait)


def refused_renewals_are_ignored(patch: pytest.MonkeyPatch) -> None:
    stop = Engine._stop_attempts

    def ignore(self: Engine, held: Any, reason: Any) -> None:
        if reason != "lease_lost":
            stop(self, held, reason)

    patch.setattr(Engine, "_stop_attempts", ignore)


def nothing_is_left_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Engine, "_abandon", lambda self, held, reason: None)


def every_job_gets_a_slot(patch: pytest.MonkeyPatch) -> None:
    def deliver(self: Engine) -> None:
        attempts = list(self._prefetched)
        self._prefetched.clear()
        self._running += len(attempts)
        self._runner.deliver(attempts)

    patch.setattr(Engine, "_deliver_attempts", deliver)


def lease_holders_share_a_name(patch: pytest.MonkeyPatch) -> None:
    init = Engine.__init__

    def shared(self: Engine, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self._worker = self._settings.worker

    patch.setattr(Engine, "__init__", shared)


def a_sweeper_is_never_patient(patch: pytest.MonkeyPatch) -> None:
    init = Sweeper.__init__

    def hasty(self: Sweeper, *args: Any, **options: Any) -> None:
        init(self, *args, **{**options, "patience": 0.0})

    patch.setattr(Sweeper, "__init__", hasty)


def two_sweepers_at_once(patch: pytest.MonkeyPatch) -> None:
    async def stand(self: Sweeper) -> bool:
        self._elected = True
        return True

    patch.setattr(Sweeper, "_stand", stand)


def grants_to_nobody_are_kept(patch: pytest.MonkeyPatch) -> None:
    async def keep(self: LocalBroker, reply: Any) -> None:
        pass

    patch.setattr(LocalBroker, "_give_back", keep)


def a_lost_answer_is_a_refusal(patch: pytest.MonkeyPatch) -> None:
    send = Client._send

    async def refuse(self: Client, jobs: Any) -> Any:
        try:
            return await send(self, jobs)
        except PlugqError as error:
            raise ValueError from error

    patch.setattr(Client, "_send", refuse)


def a_resent_submission_is_a_new_one(patch: pytest.MonkeyPatch) -> None:
    submit = LocalBroker.submit

    async def anew(self: LocalBroker, jobs: Any) -> Any:
        fresh = [msgspec.structs.replace(job, id=job.id + os.urandom(4).hex()) for job in jobs]
        return await submit(self, fresh)

    patch.setattr(LocalBroker, "submit", anew)


def waiters_look_once(patch: pytest.MonkeyPatch) -> None:
    async def never(self: Waiters) -> None:
        await asyncio.Event().wait()

    patch.setattr(Waiters, "_poll_loop", never)
    patch.setattr(Waiters, "_noticed", lambda self, notices: None)


def answers_are_mixed_up(patch: pytest.MonkeyPatch) -> None:
    take = Coalescer._take

    def reverse(self: Any) -> Any:
        return list(reversed(take(self)))

    async def answer(self: Any, group: Any) -> None:
        answers = await self._verb([item for items, _ in group for item in items])
        start = 0
        for items, future in reversed(group):
            future.set_result(answers[start : start + len(items)])
            start += len(items)

    patch.setattr(Coalescer, "_take", reverse)
    patch.setattr(Coalescer, "_answer", answer)


def wake_ups_during_a_probe_are_lost(patch: pytest.MonkeyPatch) -> None:
    woken = Dispatch._woken

    def forget(self: Dispatch, names: Any, actions: Any) -> None:
        woken(self, names, actions)
        for claim in self._claims.values():
            claim.again = False

    patch.setattr(Dispatch, "_woken", forget)


def threads_are_not_told_to_stop(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Runner, "stop_attempts", lambda self, attempts, reason: None)


def every_renewal_is_good(patch: pytest.MonkeyPatch) -> None:
    store = ENGINE.Store

    async def renew(self: Any, leases: Any, **options: Any) -> Any:
        self.renewals += 1
        return [RenewReply.OK] * len(leases)

    patch.setattr(store, "renew", renew)


Broken = Callable[[pytest.MonkeyPatch], None]
Caught = Callable[[], Awaitable[None]]

VARIANTS: list[tuple[Broken, Caught]] = [
    (
        no_renewals,
        lambda: BLOCKED.test_a_handler_that_blocks_for_five_leases_runs_once(
            "coroutine", "memory", HERE
        ),
    ),
    (
        outcomes_are_sent_once,
        lambda: LOST.test_each_job_runs_once_although_every_third_call_is_lost("settle", "request"),
    ),
    (
        a_claim_is_never_asked_again,
        lambda: LOST.test_each_job_runs_once_although_every_third_call_is_lost("claim", "reply"),
    ),
    (
        a_resent_submission_is_a_new_one,
        lambda: LOST.test_each_job_runs_once_although_every_third_call_is_lost("submit", "reply"),
    ),
    (
        a_lost_answer_is_a_refusal,
        LOST.test_a_submission_without_an_answer_is_of_unknown_outcome_and_safe_to_repeat,
    ),
    (
        grants_to_nobody_are_kept,
        LOST.test_what_is_claimed_for_a_caller_who_has_left_is_given_back,
    ),
    (
        refused_renewals_are_ignored,
        ENGINE.test_a_lost_lease_stops_the_handler_and_its_outcome_is_not_sent,
    ),
    (
        every_renewal_is_good,
        ENGINE.test_a_lost_lease_stops_the_handler_and_its_outcome_is_not_sent,
    ),
    (
        nothing_is_left_behind,
        ENGINE.test_a_coroutine_that_swallows_its_cancellation_is_left_behind,
    ),
    (
        threads_are_not_told_to_stop,
        ENGINE.test_a_thread_that_ends_late_is_retried_without_overlap,
    ),
    (every_job_gets_a_slot, ENGINE.test_prefetched_jobs_wait_for_a_slot_and_are_given_back),
    (lease_holders_share_a_name, ENGINE.test_workers_that_were_given_one_id_leave_each_other_alone),
    (waiters_look_once, ENGINE.test_a_deadline_that_passes_while_it_runs_fails_the_job),
    (
        a_sweeper_is_never_patient,
        SWEEPER.test_a_new_sweeper_lets_holders_renew_before_it_ends_leases,
    ),
    (a_sweeper_is_never_patient, SWEEPER.test_a_sweeper_that_was_paused_is_patient_again),
    (two_sweepers_at_once, SWEEPER.test_one_of_many_is_elected_and_the_others_do_not_sweep),
    (answers_are_mixed_up, COALESCE.test_each_caller_gets_the_answers_to_its_own_items),
]


NAMES = [f"{number}-{broken.__name__}" for number, (broken, _) in enumerate(VARIANTS)]


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=NAMES)
def test_each_broken_variant_is_caught(number: int) -> None:
    """In a process of its own: what is broken may hang, or leave its threads behind."""
    with subprocess.Popen(
        [sys.executable, __file__, str(number)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            process.kill()
            return
    assert process.returncode == CAUGHT, output


def test_the_sound_services_pass_the_same_way() -> None:
    """Else every variant would seem to be caught."""
    done = subprocess.run(
        [sys.executable, __file__],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_dispatch_that_forgets_wake_ups_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    wake_ups_during_a_probe_are_lost(monkeypatch)
    with pytest.raises(AssertionError):
        DISPATCH.test_a_wake_up_during_a_probe_is_not_lost()


def main(arguments: list[str]) -> int:
    """Run the test of one broken variant, or without a number that of every sound one."""
    if not arguments:
        for _, caught_by in VARIANTS:
            asyncio.run(_run(caught_by))
        return 0
    broken, caught_by = VARIANTS[int(arguments[0])]
    broken(pytest.MonkeyPatch())
    try:
        asyncio.run(_run(caught_by))
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - it is reported by its code
        traceback.print_exc()
        return CAUGHT
    return 0


async def _run(test: Caught) -> None:
    await test()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
