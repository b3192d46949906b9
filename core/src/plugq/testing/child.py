"""The other end of :mod:`plugq.testing.children`: ``python -m plugq.testing.child``.

The process reads what it shall do from its first line of input, opens the store through the
contract class of the author and runs one part. When its input ends, so does the process, so that
none outlives the test that started it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import msgspec

from plugq.protocols.plugin import PluginContext

if TYPE_CHECKING:
    from plugq.testing.contract.scene import Contract

#: The exit code of a process whose parent has gone.
ORPHANED = 70


class Home(msgspec.Struct, frozen=True):
    """Where a contract class is defined, for a process that has to make it anew."""

    path: list[str]
    file: str
    module: str
    name: str


class Order(msgspec.Struct, frozen=True):
    """What a child shall do: one part, a function of a module, on one store."""

    home: Home
    namespace: str
    base_dir: str
    part: str
    arguments: dict[str, Any]


class Side:
    """What a part has at hand: the contract, the context of the store, and the line to the parent.

    A part is ``async def part(side: Side, **arguments)``, named ``package.module:part``.
    """

    def __init__(self, contract: Contract, context: PluginContext, *, output: TextIO) -> None:
        self.contract = contract
        self.context = context
        self._output = output
        self._lines: asyncio.Queue[str] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, daemon=True).start()

    def say(self, value: Any) -> None:
        """Tell the parent something that JSON can carry; it is on its way when this returns."""
        self._output.write(msgspec.json.encode(value).decode() + "\n")
        self._output.flush()

    async def hear(self) -> Any:
        """Return what the parent says next."""
        return msgspec.json.decode(await self._lines.get())

    def _read(self) -> None:
        for line in sys.stdin:
            self._loop.call_soon_threadsafe(self._lines.put_nowait, line)
        os._exit(ORPHANED)


def find(home: Home) -> type[Contract]:
    """Return the contract class, from the module that is installed or else from its file."""
    sys.path[:] = home.path
    try:
        module = importlib.import_module(home.module)
        same = Path(module.__file__ or "").resolve() == Path(home.file).resolve()
    except ImportError:
        same = False
    if not same:
        spec = importlib.util.spec_from_file_location("plugq_conformance_home", home.file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    found: Any = module
    for name in home.name.split("."):
        found = getattr(found, name)
    contract: type[Contract] = found
    return contract


async def run(order: Order, output: TextIO) -> None:
    """Do what was ordered."""
    module, _, name = order.part.partition(":")
    part = getattr(importlib.import_module(module), name)
    context = PluginContext(namespace=order.namespace, base_dir=Path(order.base_dir))
    side = Side(find(order.home)(), context, output=output)
    await part(side, **order.arguments)


def main() -> None:
    """Run one part; what it or a plugin prints goes to standard error."""
    order = msgspec.json.decode(sys.stdin.readline(), type=Order)
    output, sys.stdout = sys.stdout, sys.stderr
    asyncio.run(run(order, output))


if __name__ == "__main__":
    main()
