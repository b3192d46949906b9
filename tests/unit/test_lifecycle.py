"""Services that are stopped by halves: the next stop or start brings it to an end."""

from __future__ import annotations

import asyncio

import pytest

from plugq.lifecycle import Lifecycle


class Service(Lifecycle):
    def __init__(self) -> None:
        super().__init__()
        self.open = False
        self.closing = asyncio.Event()
        self.may_close = asyncio.Event()

    async def _start(self) -> None:
        assert not self.open
        self.open = True

    async def _stop(self) -> None:
        self.closing.set()
        await self.may_close.wait()
        self.open = False


async def half_stopped() -> Service:
    """Return a service of which the stop was cancelled."""
    service = Service()
    await service.start()
    stopping = asyncio.create_task(service.stop())
    await service.closing.wait()
    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    assert service.open
    assert not service.started
    service.may_close.set()
    return service


async def test_a_cancelled_stop_is_finished_by_the_next_one() -> None:
    service = await half_stopped()
    await service.stop()
    assert not service.open


async def test_a_cancelled_stop_is_finished_by_the_next_start() -> None:
    service = await half_stopped()
    await service.start()
    assert service.open
    assert service.started
    await service.stop()
    assert not service.open


class Stubborn(Lifecycle):
    failures = 1
    stops = 0

    async def _start(self) -> None: ...

    async def _stop(self) -> None:
        self.stops += 1
        if self.stops <= self.failures:
            raise OSError("not now")


async def test_a_stop_that_failed_is_made_again_and_then_no_more() -> None:
    service = Stubborn()
    await service.start()
    with pytest.raises(OSError, match="not now"):
        await service.stop()
    await service.stop()
    await service.stop()
    assert service.stops == 2
