"""Deliberately broken ways to wait, and the test that catches each."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from plugq.client import batches, client, holds
from plugq.client.batches import Batches
from plugq.client.completion import completed
from plugq.client.holds import Holds, holders_of
from plugq.client.steering import Steering
from plugq.client.waiters import Waiters
from plugq.errors import PlugqError
from plugq.protocols import RegisterChange

#: Seconds after which a variant that makes its test hang counts as caught.
HANGS = 1.0


def load(name: str) -> ModuleType:
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"caught_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MANY = load("test_as_completed")
BATCHES = load("test_batches")
STEERING = load("test_steering")


async def never(self: object) -> None:
    await asyncio.Event().wait()


def jobs_are_not_polled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Waiters, "_poll_loop", never)


def batches_are_not_polled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Batches, "_poll_loop", never)


def a_duplicate_is_dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        client,
        "completed",
        lambda waiters, handles, limit: completed(waiters, list(dict.fromkeys(handles)), limit),
    )


def what_was_seen_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    async def forgetting(*given: Any) -> AsyncIterator[Any]:
        async for handle in completed(*given):
            handle._ended = None
            yield handle

    patch.setattr(client, "completed", forgetting)


def a_hold_never_expires(patch: pytest.MonkeyPatch) -> None:
    for module in (batches, holds):
        patch.setattr(module, "holders_of", lambda register, now: holders_of(register, 0.0))


def a_hold_has_no_end(patch: pytest.MonkeyPatch) -> None:
    def endless(**change: Any) -> RegisterChange:
        return RegisterChange(**change | {"ttl": None})

    a_hold_never_expires(patch)
    patch.setattr(holds, "RegisterChange", endless)


def a_hold_is_not_renewed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Holds, "_renew_loop", never)


def a_renewal_that_fails_waits_for_the_next(patch: pytest.MonkeyPatch) -> None:
    async def once(self: Holds, due: Any) -> None:
        for holder in due:
            with contextlib.suppress(PlugqError):
                await self._write(holder, self._held[holder])

    patch.setattr(Holds, "_renew", once)


def a_retry_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    never_moves = property(lambda self: 0, lambda self, value: None)
    patch.setattr(Waiters, "retries", never_moves, raising=False)


def counts_before_holds(patch: pytest.MonkeyPatch) -> None:
    async def look(self: Batches, keys: Any) -> None:
        waits = [tuple(self._waiting.get(key, ())) for key in keys]
        found = await self._broker.batches(keys)
        loaded = await self._broker.load([holds.register_of(key) for key in keys])
        for futures, register, counts in zip(waits, loaded.registers, found, strict=True):
            if not holders_of(register, loaded.now) and batches._over(counts):
                for future in futures:
                    future.set_result(None if counts is None else counts.counts)

    patch.setattr(Batches, "_look", look)


def holders_replace_each_other(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(holds, "holders_of", lambda register, now: {})


def a_typo_is_a_success(patch: pytest.MonkeyPatch) -> None:
    init = batches.Batch.__init__

    def opened(self: batches.Batch, *args: Any) -> None:
        init(self, *args)
        self._opened = True

    patch.setattr(batches.Batch, "__init__", opened)


def a_walk_ends_with_its_first_page(patch: pytest.MonkeyPatch) -> None:
    init = Steering.__init__

    def one_page(self: Steering, find: Any, edit: Any) -> None:
        async def first(query: Any) -> Any:
            return msgspec.structs.replace(await find(query), cursor=None)

        init(self, first, edit)

    patch.setattr(Steering, "__init__", one_page)


Broken = Callable[[pytest.MonkeyPatch], None]
VARIANTS: list[tuple[Broken, Callable[[], Awaitable[None]]]] = [
    (jobs_are_not_polled, MANY.test_a_lost_notice_costs_one_poll),
    (batches_are_not_polled, BATCHES.test_a_lost_notice_costs_one_poll),
    (batches_are_not_polled, BATCHES.test_jobs_of_another_client_are_seen_by_the_poll),
    (a_duplicate_is_dropped, MANY.test_each_is_yielded_as_often_as_it_was_given),
    (what_was_seen_is_forgotten, MANY.test_a_result_that_is_not_kept_is_still_the_first_answer),
    (a_hold_never_expires, BATCHES.test_a_filler_that_dies_is_not_kept_alive_by_the_others),
    (a_hold_has_no_end, BATCHES.test_a_filler_that_dies_frees_the_batch),
    (a_hold_is_not_renewed, BATCHES.test_a_hold_is_renewed_as_long_as_the_block_lasts),
    (
        a_renewal_that_fails_waits_for_the_next,
        BATCHES.test_a_hold_outlives_an_outage_of_the_storage,
    ),
    (a_retry_is_not_counted, MANY.test_an_end_that_was_seen_during_a_retry_is_not_kept),
    (
        counts_before_holds,
        BATCHES.test_what_was_submitted_before_a_batch_was_let_go_is_in_the_counts,
    ),
    (holders_replace_each_other, BATCHES.test_several_fill_one_batch),
    (a_typo_is_a_success, BATCHES.test_a_batch_that_nobody_fills_is_not_found),
    (a_walk_ends_with_its_first_page, STEERING.test_a_filter_finds_more_than_any_page),
]
NAMES = [f"{number}-{broken.__name__}" for number, (broken, _) in enumerate(VARIANTS)]


async def _within(test: Callable[[], Awaitable[None]], limit: float) -> None:
    # What the broken one leaves behind is nobody's concern.
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with asyncio.timeout(limit):
        await test()


@pytest.mark.parametrize("number", range(len(VARIANTS)), ids=NAMES)
def test_each_broken_variant_is_caught(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, caught_by = VARIANTS[number]
    broken(monkeypatch)
    with pytest.raises((Exception, pytest.fail.Exception)):
        asyncio.run(_within(caught_by, HANGS))
