"""What a plugin declares beyond the mandatory: whoever declares it without having it fails here."""

from __future__ import annotations

import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from plugq.protocols.plugin import Capability, PluginContext
from plugq.testing.children import child
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.levels import Level, level
from plugq.testing.requirements import requires

if TYPE_CHECKING:
    from collections.abc import Iterator

    from plugq.testing.child import Side

_HERE = __name__


async def submit_and_wait(side: Side) -> None:
    """Submit one job, tell of it and wait to be killed."""
    async with side.contract.open(side.context) as storage:
        await Scene(side.contract, side.context, storage).submit("a")
        side.say("accepted")
        await side.hear()


async def claim_one(side: Side) -> None:
    """Claim one job and tell its id."""
    async with side.contract.open(side.context) as storage:
        side.say(await Scene(side.contract, side.context, storage).claimed_ids(1))


class Capabilities(Contract):
    """What is declared and by that promised."""

    @requires(Capability.DURABLE)
    @level(Level.CRASH)
    async def test_what_was_acknowledged_outlasts_its_process(self) -> None:
        """Whoever submitted it was killed, and nobody else had the store open."""
        with _context() as context:
            async with child(self, context, f"{_HERE}:submit_and_wait") as one:
                assert await one.hear() == "accepted"
                await one.kill()
            async with self.open(context) as storage:
                found = await Scene(self, context, storage).claimed_ids(1)
            assert found == ["a"], "what a process submitted before it was killed has gone"

    @requires(Capability.SHARED_HOSTS)
    @level(Level.CONCURRENCY)
    async def test_a_store_of_several_hosts_is_in_no_folder(self) -> None:
        """As far as one machine can show: a process with other folders finds the same store."""
        with _context() as here, tempfile.TemporaryDirectory() as folder:
            there = PluginContext(namespace=here.namespace, base_dir=Path(folder))
            async with self.open(here) as storage:
                await Scene(self, here, storage).submit("a")
                far = {"TMPDIR": folder}
                async with child(self, there, f"{_HERE}:claim_one", environment=far) as other:
                    found = await other.hear()
                    await other.ends()
            assert found == ["a"], "a process that shares no folder does not see the job"

    @requires(Capability.SHARED_HOSTS)
    async def test_what_hosts_share_processes_share(self) -> None:
        """Who declares the greater declares the smaller."""
        assert Capability.SHARED_PROCESSES in await self.declared()


@contextmanager
def _context() -> Iterator[PluginContext]:
    """Give the context of a new store in real time, with nobody there."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield PluginContext(namespace=f"test-{uuid.uuid4().hex}", base_dir=Path(folder))


__all__ = ["Capabilities"]
