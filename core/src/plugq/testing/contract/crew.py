"""Several users of one store at work at once: processes of their own, and threads.

A test marked :func:`together` is written once. It runs with processes where the storage is shared
by them, and with threads, each with an event loop of its own, on every storage: there each has an
instance of its own or, where no process shares the store, all have one.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from plugq.protocols.plugin import Capability
from plugq.testing.children import PATIENCE
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.requirements import concerns

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager

    from plugq.protocols.plugin import PluginContext
    from plugq.protocols.storage import Storage

    Part = Callable[..., Coroutine[Any, Any, None]]

C = TypeVar("C", bound=Contract)

_SHARED = frozenset({Capability.SHARED_PROCESSES, Capability.SHARED_HOSTS})
_READY, _GO = "ready", "go"
#: Seconds after which a thread has to let another one run, so that they meet in every place.
_SWITCH = 1e-5


class Side(Protocol):
    """What a part has at hand, in a process or a thread of its own."""

    contract: Contract
    context: PluginContext

    def say(self, value: Any) -> None:
        """Tell the test something that JSON can carry."""
        ...

    async def hear(self) -> Any:
        """Return what the test says next."""
        ...


class Mate(Protocol):
    """One that plays a part, as the test sees it."""

    async def say(self, value: Any) -> None:
        """Tell it something that JSON can carry."""
        ...

    async def hear(self) -> Any:
        """Return what it says next."""
        ...

    async def rest(self) -> list[Any]:
        """Return all that it says until it ends."""
        ...

    async def ends(self) -> None:
        """Wait for its end, which must be without an error."""
        ...


class _ThreadSide:
    """The side of a part that runs in a thread."""

    def __init__(self, scene: Scene, shared: Storage | None, mate: _Thread) -> None:
        self.contract = scene.contract
        self.context = scene.context
        self.shared = shared
        self.lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._mate = mate

    def say(self, value: Any) -> None:
        """Tell the test something."""
        self._mate.heard(msgspec.json.encode(value))

    async def hear(self) -> Any:
        """Return what the test says next."""
        return msgspec.json.decode(await self.lines.get())


class _Thread:
    """A thread that plays a part in an event loop of its own."""

    def __init__(self, scene: Scene, part: Part, arguments: dict[str, Any]) -> None:
        shared = scene.storage.capabilities & _SHARED
        self._side = _ThreadSide(scene, None if shared else scene.storage, self)
        self._home = asyncio.get_running_loop()
        self._loop = asyncio.new_event_loop()
        self._said: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._error: BaseException | None = None
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(part, arguments), daemon=True)
        self._thread.start()

    def _run(self, part: Part, arguments: dict[str, Any]) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._play(part, arguments))
        except BaseException as error:  # noqa: BLE001 - told to whoever waits for the end
            self._error = error
        with contextlib.suppress(RuntimeError):
            self._home.call_soon_threadsafe(self._said.put_nowait, None)
            self._home.call_soon_threadsafe(self._ended.set)

    async def _play(self, part: Part, arguments: dict[str, Any]) -> None:
        self._task = asyncio.current_task()
        await part(self._side, **arguments)

    def heard(self, line: bytes) -> None:
        """Take what the part says, in its thread."""
        self._home.call_soon_threadsafe(self._said.put_nowait, line)

    async def say(self, value: Any) -> None:
        """Tell the part something; one that has ended does not hear it."""
        with contextlib.suppress(RuntimeError):
            line = msgspec.json.encode(value)
            self._loop.call_soon_threadsafe(self._side.lines.put_nowait, line)

    async def hear(self) -> Any:
        """Return what the part says next; it must not end instead."""
        line = await self._listen()
        if line is None:
            await self.ends()
            raise AssertionError("the thread has ended")
        return msgspec.json.decode(line)

    async def rest(self) -> list[Any]:
        """Return all that the part says until it ends."""
        said: list[Any] = []
        while (line := await self._listen()) is not None:
            said.append(msgspec.json.decode(line))
        return said

    async def ends(self) -> None:
        """Wait for the end of the thread and raise what it failed with."""
        await self._wait()
        if self._error is not None:
            raise self._error

    async def cancel(self) -> None:
        """Cancel the part if it is still at work, and wait for the thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())
        await self._wait()

    async def _listen(self) -> bytes | None:
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._said.get()
        except TimeoutError:
            raise AssertionError("the thread hangs") from None

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._ended.wait()
        except TimeoutError:
            raise AssertionError("the thread does not end") from None


class Crew:
    """Those who work on the store of a test: all processes, or all threads."""

    def __init__(self, scene: Scene, *, processes: bool) -> None:
        self.scene = scene
        self.processes = processes

    @asynccontextmanager
    async def members(
        self, part: Part, count: int = 3, /, **arguments: Any
    ) -> AsyncIterator[list[Mate]]:
        """Start some, each with a ``name`` of its own, and wait until all have opened the store.

        What is still at work when the block is left is stopped.
        """
        async with AsyncExitStack() as stack:
            mates = [
                await stack.enter_async_context(self._start(part, {"name": f"m{n}", **arguments}))
                for n in range(count)
            ]
            for mate in mates:
                assert await mate.hear() == _READY
            yield mates

    async def work(self, part: Part, count: int = 3, /, **arguments: Any) -> list[list[Any]]:
        """Let some begin at one moment, and return all that each has said when they are done."""
        async with self.members(part, count, **arguments) as mates:
            await begin(*mates)
            said = [await mate.rest() for mate in mates]
            for mate in mates:
                await mate.ends()
            return said

    def _start(self, part: Part, arguments: dict[str, Any]) -> AbstractAsyncContextManager[Mate]:
        if self.processes:
            name = f"{part.__module__}:{part.__qualname__}"
            return self.scene.child(name, **arguments)
        return self._thread(part, arguments)

    @asynccontextmanager
    async def _thread(self, part: Part, arguments: dict[str, Any]) -> AsyncIterator[Mate]:
        mate = _Thread(self.scene, part, arguments)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH)
        try:
            yield mate
        finally:
            sys.setswitchinterval(interval)
            await mate.cancel()


async def begin(*mates: Mate) -> None:
    """Give members of a crew the word that they wait for."""
    for mate in mates:
        await mate.say(_GO)


@asynccontextmanager
async def at_work(side: Side) -> AsyncIterator[Scene]:
    """Open the store, say so, and go on when all the others have done so, too."""
    async with _opened(side) as scene:
        side.say(_READY)
        assert await side.hear() == _GO
        yield scene


@asynccontextmanager
async def _opened(side: Side) -> AsyncIterator[Scene]:
    if isinstance(side, _ThreadSide) and side.shared is not None:
        yield Scene(side.contract, side.context, side.shared)
        return
    async with side.contract.open(side.context) as storage:
        yield Scene(side.contract, side.context, storage)


def together(
    test: Callable[[C, Crew], Coroutine[Any, Any, None]],
) -> Callable[[C], Coroutine[Any, Any, None]]:
    """Run a test with processes, where the storage is shared by them, and with threads.

    Each time it has a store of its own, in real time.
    """

    @wraps(test)
    async def run(contract: C) -> None:
        shared = Capability.SHARED_PROCESSES in await contract.declared()
        for processes in (True, False) if shared else (False,):
            async with contract.scene(real_time=True) as scene:
                try:
                    await test(contract, Crew(scene, processes=processes))
                except BaseException as error:
                    error.add_note(f"with several {'processes' if processes else 'threads'}")
                    raise

    # pytest would take the crew for a fixture.
    del run.__wrapped__
    return concerns(Capability.SHARED_PROCESSES)(run)


__all__ = ["Crew", "Mate", "Side", "at_work", "begin", "together"]
