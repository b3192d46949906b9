"""The manual clock: it moves only when told, and wakes whoever it has passed."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta

import pytest

from plugq.clock import Clock
from plugq.testing import ManualClock

_clock_is_a_clock: type[Clock] = ManualClock


async def until_sleeping(clock: ManualClock, count: int) -> None:
    while clock.sleeping < count:
        await asyncio.sleep(0)


def test_it_stands_still() -> None:
    clock = ManualClock()
    assert (clock.time(), clock.monotonic()) == (clock.time(), clock.monotonic())


def test_it_starts_where_it_is_told() -> None:
    assert ManualClock(12.5).time() == 12.5
    assert ManualClock(datetime(2026, 1, 1, tzinfo=UTC)).time() == 1_767_225_600
    with pytest.raises(ValueError, match="time zone"):
        ManualClock(datetime(2026, 1, 1))  # noqa: DTZ001 - this is what is refused


@pytest.mark.parametrize("step", [90, 90.0, "90s", "1m30s", timedelta(seconds=90)])
def test_it_advances_by_a_duration(step: float | str | timedelta) -> None:
    clock = ManualClock(1_000)
    clock.advance(step)
    assert (clock.time(), clock.monotonic()) == (1_090, 90)


def test_it_never_advances_backwards() -> None:
    clock = ManualClock()
    with pytest.raises(ValueError, match="advance"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="set_back"):
        clock.set_back(-1)


def test_small_steps_add_up_exactly() -> None:
    clock = ManualClock(0)
    for _ in range(10):
        clock.advance(0.1)
    assert (clock.time(), clock.monotonic()) == (1.0, 1.0)


def test_setting_it_back_leaves_the_monotonic_time() -> None:
    clock = ManualClock(1_000)
    clock.advance(10)
    clock.set_back("1m")
    assert (clock.time(), clock.monotonic()) == (950, 10)


async def test_sleepers_wake_when_their_time_has_come_and_not_before() -> None:
    clock = ManualClock()
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    tasks = [asyncio.create_task(sleeper(seconds)) for seconds in (3.0, 1.0, 2.0, 60.0)]
    await until_sleeping(clock, 4)
    clock.advance(0.999)
    await asyncio.sleep(0)
    assert woken == []
    clock.advance(2.001)
    await asyncio.gather(*tasks[:3])
    assert woken == [1.0, 2.0, 3.0]
    assert clock.sleeping == 1
    clock.advance("1m")
    await tasks[3]
    assert clock.sleeping == 0


async def test_ten_steps_wake_a_sleeper_of_their_sum() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await until_sleeping(clock, 1)
    for _ in range(10):
        clock.advance(0.1)
    await asyncio.wait_for(task, 5)


async def test_setting_it_back_keeps_sleepers_asleep_no_longer() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await until_sleeping(clock, 1)
    clock.set_back(3_600)
    clock.advance(10)
    await asyncio.wait_for(task, 5)


async def test_sleeping_for_nothing_lets_the_others_run() -> None:
    clock = ManualClock()
    ran: list[int] = []

    async def other() -> None:
        ran.append(1)

    task = asyncio.create_task(other())
    await clock.sleep(0)
    assert ran == [1]
    await task
    await clock.sleep(-5)


async def test_a_sleeper_can_be_cancelled() -> None:
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(10))
    await until_sleeping(clock, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert clock.sleeping == 0
    clock.advance(20)
    await asyncio.sleep(0)


async def test_it_wakes_sleepers_in_other_threads_loops() -> None:
    clock = ManualClock()
    ended = threading.Event()

    def other() -> None:
        asyncio.run(clock.sleep(5))
        ended.set()

    thread = threading.Thread(target=other)
    thread.start()
    here = asyncio.create_task(clock.sleep(5))
    await until_sleeping(clock, 2)
    clock.advance(5)
    await asyncio.wait_for(here, 5)
    assert await asyncio.to_thread(ended.wait, 5)
    await asyncio.to_thread(thread.join)


async def test_a_sleeper_whose_loop_was_closed_harms_nobody() -> None:
    clock = ManualClock()

    def abandoned() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(clock.sleep(5))
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()

    await asyncio.to_thread(abandoned)
    here = asyncio.create_task(clock.sleep(5))
    await until_sleeping(clock, 2)
    clock.advance(5)
    await asyncio.wait_for(here, 5)
