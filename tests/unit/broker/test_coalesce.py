"""Coalescing: concurrent calls share one call of the verb."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Sequence

import pytest

from plugq.broker.coalesce import Coalescer, Coalescers
from plugq.errors import OutcomeUnknown, Unavailable


class Verb:
    """Answers each item with its square, when it is let."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.calls.append(list(items))
        self.entered.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [item * item for item in items]


async def test_each_caller_gets_the_answers_to_its_own_items() -> None:
    verb = Verb()
    coalescer = Coalescer(verb)
    answers = await asyncio.gather(*(coalescer.call([n, n + 1]) for n in range(10)))
    assert answers == [[n * n, (n + 1) ** 2] for n in range(10)]
    await coalescer.stop()


async def test_what_arrives_during_a_call_shares_the_next_one() -> None:
    verb = Verb()
    verb.gate.clear()
    coalescer = Coalescer(verb)
    first = asyncio.create_task(coalescer.call([1]))
    await verb.entered.wait()
    others = [asyncio.create_task(coalescer.call([n])) for n in (2, 3, 4)]
    await asyncio.sleep(0)
    verb.gate.set()
    assert await first == [1]
    assert [await other for other in others] == [[4], [9], [16]]
    assert verb.calls == [[1], [2, 3, 4]]
    await coalescer.stop()


async def test_a_merged_call_is_bounded_by_number_and_by_bytes_and_splits_no_call() -> None:
    verb = Verb()
    coalescer = Coalescer(verb, most=4, most_bytes=100, size=lambda item: item)
    verb.gate.clear()
    calls = [[1], [2, 2, 2], [3, 3], [90], [20], [5, 5, 5, 5, 5]]
    tasks = [asyncio.create_task(coalescer.call(items)) for items in calls]
    await verb.entered.wait()
    verb.gate.set()
    assert [await task for task in tasks] == [[i * i for i in items] for items in calls]
    assert verb.calls == [[1, 2, 2, 2], [3, 3, 90], [20], [5, 5, 5, 5, 5]]
    await coalescer.stop()


async def test_a_failure_reaches_every_caller_and_the_next_call_works() -> None:
    verb = Verb()
    verb.error = Unavailable("gone")
    coalescer = Coalescer(verb)
    results = await asyncio.gather(coalescer.call([1]), coalescer.call([2]), return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    verb.error = None
    assert await coalescer.call([3]) == [9]
    await coalescer.stop()


async def test_a_caller_who_leaves_before_its_items_are_taken_is_left_out() -> None:
    verb = Verb()
    verb.gate.clear()
    coalescer = Coalescer(verb)
    first = asyncio.create_task(coalescer.call([1]))
    await verb.entered.wait()
    leaving = asyncio.create_task(coalescer.call([2]))
    staying = asyncio.create_task(coalescer.call([3]))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    verb.gate.set()
    assert await first == [1]
    assert await staying == [9]
    assert verb.calls == [[1], [3]]
    await coalescer.stop()


async def test_a_caller_who_leaves_during_the_call_does_not_disturb_the_others() -> None:
    verb = Verb()
    verb.gate.clear()
    coalescer = Coalescer(verb)
    leaving, staying = (asyncio.create_task(coalescer.call([n])) for n in (1, 2))
    await verb.entered.wait()
    leaving.cancel()
    verb.gate.set()
    assert await staying == [4]
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await coalescer.stop()


async def test_what_one_caller_is_refused_is_no_answer_to_the_others() -> None:
    calls: list[list[int]] = []

    async def all_or_nothing(items: Sequence[int]) -> Sequence[int]:
        calls.append(list(items))
        await asyncio.sleep(0)
        refused = any(item < 0 for item in items)
        return [-1 if refused and item != 7 else item for item in items]

    coalescer = Coalescer(all_or_nothing, refused=lambda answer: answer == -1)
    wanted = [[1], [2, -2], [3, 4], [7], [-5]]
    answers = await asyncio.gather(*(coalescer.call(items) for items in wanted))
    assert answers == [[1], [-1, -1], [3, 4], [7], [-1]]
    # The seven was answered, and a caller alone is not asked for again.
    assert calls == [[1, 2, -2, 3, 4, 7, -5], [1], [2, -2], [3, 4], [-5]]
    assert await coalescer.call([-6]) == [-1]
    assert calls[5:] == [[-6]]
    await coalescer.stop()


async def test_stop_ends_the_wait_of_those_who_are_asked_for_again() -> None:
    calls = 0
    entered = asyncio.Event()

    async def refusing(items: Sequence[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if calls > 1:
            entered.set()
            await asyncio.Event().wait()
        return [-1] * len(items)

    coalescer = Coalescer(refusing, refused=lambda answer: answer == -1)
    tasks = [asyncio.create_task(coalescer.call([n])) for n in range(3)]
    await entered.wait()
    await coalescer.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_stop_ends_the_wait_of_everybody() -> None:
    verb = Verb()
    verb.gate.clear()
    coalescer = Coalescer(verb)
    tasks = [asyncio.create_task(coalescer.call([n])) for n in range(3)]
    await verb.entered.wait()
    await coalescer.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def test_a_queue_that_fails_fails_for_its_own_callers() -> None:
    """Each of the others is answered; those of one queue share a call again."""
    verb = Verb()
    verb.gate.clear()

    async def some(items: Sequence[int]) -> Sequence[int]:
        answers = await verb(items)
        if any(item >= 100 for item in items):
            raise Unavailable("the node of the second queue is down")
        return answers

    coalescer = Coalescer(some, queue=lambda item: "second" if item >= 100 else "first")
    first = asyncio.create_task(coalescer.call([0]))
    await verb.entered.wait()
    calls = [asyncio.create_task(coalescer.call(items)) for items in ([1], [100], [2, 101], [3])]
    await asyncio.sleep(0)
    verb.gate.set()
    assert await first == [0]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [list, Unavailable, Unavailable, list]
    assert (results[0], results[3]) == ([1], [9])
    assert sorted(map(sorted, verb.calls[2:])) == [[1, 3], [2, 101], [100]]
    await coalescer.stop()


async def test_what_may_have_happened_stays_unknown_when_the_second_call_is_refused() -> None:
    verb = Verb()
    verb.gate.clear()

    async def breaks(items: Sequence[int]) -> Sequence[int]:
        answers = await verb(items)
        if len(items) > 1:
            raise OutcomeUnknown("the connection broke")
        if items != [0]:
            raise Unavailable("the server refuses")
        return answers

    coalescer = Coalescer(breaks, queue=str)
    first = asyncio.create_task(coalescer.call([0]))
    await verb.entered.wait()
    calls = [asyncio.create_task(coalescer.call([item])) for item in (1, 2)]
    await asyncio.sleep(0)
    verb.gate.set()
    assert await first == [0]
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results] == [OutcomeUnknown, OutcomeUnknown]
    assert verb.calls[1:] == [[1, 2], [1], [2]]
    await coalescer.stop()


@pytest.mark.parametrize("apart", [False, True])
async def test_where_queues_lie_apart_nobody_waits_for_one_that_it_did_not_name(
    apart: bool,
) -> None:
    verbs = {"first": Verb(), "second": Verb()}
    verbs["second"].gate.clear()

    async def some(items: Sequence[int]) -> Sequence[int]:
        return await verbs["second" if any(item >= 100 for item in items) else "first"](items)

    def queue(item: int) -> str:
        return "second" if item >= 100 else "first"

    coalescers = Coalescers(lambda: Coalescer(some, queue=queue), queue=queue, apart=lambda: apart)
    calls = [asyncio.create_task(coalescers.call(items)) for items in ([100], [1], [2], [3, 101])]
    if apart:
        assert await asyncio.gather(*calls[1:3]) == [[1], [4]]
    await verbs["second"].entered.wait()
    verbs["second"].gate.set()
    answers = await asyncio.gather(*calls)
    assert answers == [[10_000], [1], [4], [9, 10_201]]
    assert verbs["first"].calls == ([[1, 2]] if apart else [])
    assert len(verbs["second"].calls) == (2 if apart else 1)
    # Nothing stays of queues that are not in use.
    assert coalescers._parts == {}
    await coalescers.stop()


async def test_whoever_leaves_leaves_nothing_behind() -> None:
    verb = Verb()
    verb.gate.clear()
    made: list[weakref.ref[Coalescer[int, int]]] = []

    def make() -> Coalescer[int, int]:
        made.append(weakref.ref(one := Coalescer(verb)))
        return one

    coalescers = Coalescers(make, queue=str, apart=lambda: True)
    for item in (1, 2, 3):
        leaving = asyncio.create_task(coalescers.call([item]))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    verb.gate.set()
    while not all(one is None or one.idle for one in (ref() for ref in made)):
        await asyncio.sleep(0)
    assert await coalescers.call([4]) == [16]
    del leaving  # its error has frames
    gc.collect()
    assert [ref() for ref in made] == [None] * 4
    await coalescers.stop()
