"""Real processes that work on the store under test, each with an instance of its own.

A contract test starts one with :func:`child` and names a part, a function of the kit that runs
there. Both sides talk in values that JSON can carry. The child makes the contract class anew, from
the module in which the author wrote it, and calls its ``open``; therefore the class has to stand at
the top of its module, and ``open`` must find all it needs in the context, the class and the
environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import tempfile
from contextlib import asynccontextmanager
from typing import IO, TYPE_CHECKING, Any

import msgspec

from plugq.testing.child import Home, Order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from plugq.protocols.plugin import PluginContext
    from plugq.testing.contract.scene import Contract

#: The longest line that a child may say, in bytes.
_LINE = 2**26
#: Seconds that a child may take for what it is asked for, on a machine that is busy.
PATIENCE = 60.0


class Child:
    """One process. Every wait ends after ``PATIENCE`` with what the child printed last."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        self._stdin, self._stdout = process.stdin, process.stdout
        self._errors = errors

    async def say(self, value: Any) -> None:
        """Tell the child something; one that has ended does not hear it."""
        with contextlib.suppress(ConnectionError):
            self._stdin.write(msgspec.json.encode(value) + b"\n")
            await self._stdin.drain()

    async def hear(self) -> Any:
        """Return what the child says next; it must not end instead."""
        value = await self.listen()
        if value is None:
            code = await self.wait()
            raise AssertionError(f"the process ended with {code}: {self.printed()}")
        return value

    async def listen(self) -> Any | None:
        """Return what the child says next, ``None`` if it has ended."""
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self._stdout.readline()
        except TimeoutError:
            raise AssertionError(f"the process hangs: {self.printed()}") from None
        # A process that is killed may leave half a line.
        return msgspec.json.decode(line) if line.endswith(b"\n") else None

    async def rest(self) -> list[Any]:
        """Return all that the child says until it ends."""
        said: list[Any] = []
        while (value := await self.listen()) is not None:
            said.append(value)
        return said

    async def wait(self) -> int:
        """Wait until the process has ended and return its code, negative if by a signal."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"the process does not end: {self.printed()}") from None

    async def ends(self) -> None:
        """Wait until the process has ended, which must be by itself and without an error."""
        code = await self.wait()
        assert code == 0, f"the process ended with {code}: {self.printed()}"

    async def kill(self) -> None:
        """Kill the process without a chance to tidy up, and wait for it."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def printed(self) -> str:
        """Return the end of what the process printed."""
        self._errors.seek(0)
        return self._errors.read()[-4000:].decode(errors="replace")


@asynccontextmanager
async def child(
    contract: Contract,
    context: PluginContext,
    part: str,
    *,
    environment: Mapping[str, str] | None = None,
    **arguments: Any,
) -> AsyncIterator[Child]:
    """Run a part in a new process on the store of that context, whose clock must be the real one.

    The process is killed when the block is left. ``environment`` is added to this process's own.
    """
    assert context.clock is None, "a manual clock does not reach other processes"
    order = Order(_home(type(contract)), context.namespace, str(context.base_dir), part, arguments)
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "plugq.testing.child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
            limit=_LINE,
        )
        one = Child(process, errors)
        try:
            await one.say(order)
            yield one
        finally:
            await one.kill()


def _home(contract: type[Contract]) -> Home:
    name = contract.__qualname__
    assert "<locals>" not in name, f"{name} has to stand at the top of its module"
    file = inspect.getfile(contract)
    return Home(path=list(sys.path), file=file, module=contract.__module__, name=name)


__all__ = ["PATIENCE", "Child", "child"]
