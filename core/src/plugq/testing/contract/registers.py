"""Registers: versioned compare-and-set, several keys at once, time to live, scanning."""

from __future__ import annotations

import asyncio

from plugq.protocols.plugin import Capability
from plugq.protocols.storage import Register, RegisterChange
from plugq.testing.contract.scene import Contract, Scene
from plugq.testing.levels import Level, level
from plugq.testing.requirements import requires


async def _put(scene: Scene, key: str, value: bytes | None, expect: int = 0, **ttl: float) -> int:
    """Write one register, which must succeed, and return its version."""
    change = RegisterChange(key=key, expect=expect, value=value, **ttl)
    swapped = await scene.storage.swap([change])
    assert swapped.done
    return swapped.registers[0].version if swapped.registers[0] is not None else 0


async def _read(scene: Scene, key: str) -> bytes | None:
    """Return the value of a register."""
    (register,) = (await scene.storage.load([key])).registers
    return None if register is None else register.value


class Registers(Contract):
    """Small shared values."""

    async def test_a_register_is_absent_until_it_is_written(self) -> None:
        """Loading says so, and tells the time."""
        async with self.scene() as scene:
            loaded = await scene.storage.load(["a", "b"])
            assert loaded.registers == (None, None)
            assert loaded.now == scene.clock.time()

    async def test_a_swap_writes_what_it_expects_to_be_absent(self) -> None:
        """Version 0 stands for that."""
        async with self.scene() as scene:
            version = await _put(scene, "a", b"1")
            assert version > 0
            loaded = await scene.storage.load(["a"])
            assert loaded.registers == (Register(key="a", version=version, value=b"1"),)

    async def test_a_swap_with_another_version_changes_nothing(self) -> None:
        """The answer shows how the register stands."""
        async with self.scene() as scene:
            version = await _put(scene, "a", b"1")
            for expect in (0, version - 1, version + 1):
                swapped = await scene.storage.swap(
                    [RegisterChange(key="a", expect=expect, value=b"2")]
                )
                assert not swapped.done
                assert swapped.registers == (Register(key="a", version=version, value=b"1"),)
            swapped = await scene.storage.swap([RegisterChange(key="b", expect=5, value=b"2")])
            assert (swapped.done, swapped.registers) == (False, (None,))

    async def test_versions_rise_with_every_write(self) -> None:
        """Also when the value is the same."""
        async with self.scene() as scene:
            first = await _put(scene, "a", b"1")
            second = await _put(scene, "a", b"1", expect=first)
            assert second > first

    async def test_versions_never_repeat(self) -> None:
        """Not after a removal, nor after the ttl has passed: an old version fits nothing new."""
        async with self.scene() as scene:
            seen = [await _put(scene, "a", b"1")]
            await _put(scene, "a", None, expect=seen[-1])
            seen.append(await _put(scene, "a", b"2", ttl=10.0))
            scene.clock.advance(10)
            await scene.sweep()
            seen.append(await _put(scene, "a", b"3"))
            assert seen == sorted(set(seen))
            stale = RegisterChange(key="a", expect=seen[0], value=b"4")
            assert not (await scene.storage.swap([stale])).done

    async def test_a_register_can_be_removed(self) -> None:
        """With ``value=None`` and the version that it has."""
        async with self.scene() as scene:
            version = await _put(scene, "a", b"1")
            await _put(scene, "a", None, expect=version)
            assert await _read(scene, "a") is None
            assert list(await scene.storage.scan("")) == []

    async def test_several_registers_change_together_or_not_at_all(self) -> None:
        """One wrong version spoils the whole call."""
        async with self.scene() as scene:
            version = await _put(scene, "a", b"1")
            swapped = await scene.storage.swap(
                [
                    RegisterChange(key="b", expect=0, value=b"new"),
                    RegisterChange(key="a", expect=version + 1, value=b"2"),
                    RegisterChange(key="c", expect=0, value=b"new"),
                ]
            )
            assert not swapped.done
            assert [register and register.value for register in swapped.registers] == [
                None,
                b"1",
                None,
            ]
            assert await _read(scene, "b") is await _read(scene, "c") is None
            swapped = await scene.storage.swap(
                [
                    RegisterChange(key="b", expect=0, value=b"new"),
                    RegisterChange(key="a", expect=version, value=None),
                ]
            )
            assert swapped.done
            assert [register and register.value for register in swapped.registers] == [
                b"new",
                None,
            ]

    async def test_a_register_is_gone_after_its_ttl(self) -> None:
        """To the millisecond, swept or not; it is absent for a swap as well."""
        async with self.scene() as scene:
            for key in ("a", "b"):
                await _put(scene, key, b"1", ttl=10.0)
            scene.clock.advance(9.999)
            assert await _read(scene, "a") == b"1"
            scene.clock.advance(0.001)
            assert await _read(scene, "a") is None
            assert list(await scene.storage.scan("")) == []
            await _put(scene, "a", b"2")
            await scene.sweep()
            assert await _read(scene, "a") == b"2"
            assert await _read(scene, "b") is None

    async def test_the_last_write_decides_the_ttl(self) -> None:
        """A write without one makes it stay."""
        async with self.scene() as scene:
            version = await _put(scene, "a", b"1", ttl=10.0)
            scene.clock.advance(9)
            version = await _put(scene, "a", b"2", expect=version, ttl=10.0)
            scene.clock.advance(9)
            await scene.sweep()
            assert await _read(scene, "a") == b"2"
            await _put(scene, "a", b"3", expect=version)
            scene.clock.advance(1_000)
            await scene.sweep()
            assert await _read(scene, "a") == b"3"

    async def test_a_sweep_knows_when_a_register_expires(self) -> None:
        """It wants to be called then, and once."""
        async with self.scene() as scene:
            await _put(scene, "a", b"1", ttl=25.0)
            assert (await scene.sweep()).next_in == 25
            scene.clock.advance(25)
            assert (await scene.sweep()).next_in is None

    async def test_a_scan_returns_a_prefix_by_key(self) -> None:
        """The prefix is text, not a pattern."""
        async with self.scene() as scene:
            for key in ("b/2", "a/1", "b/1", "b", "c", "b%", "b_x", "B/1", "b/é", "b/\U0001f600"):
                await _put(scene, key, key.encode())
            keys = [register.key for register in await scene.storage.scan("b/")]
            assert keys == ["b/1", "b/2", "b/é", "b/\U0001f600"]
            assert [register.key for register in await scene.storage.scan("b%")] == ["b%"]
            assert [register.key for register in await scene.storage.scan("b_")] == ["b_x"]
            everything = await scene.storage.scan("")
            assert [register.key for register in everything] == sorted(
                register.key for register in everything
            )
            assert all(register.value == register.key.encode() for register in everything)

    async def test_values_are_any_bytes(self) -> None:
        """Empty, binary, large."""
        async with self.scene() as scene:
            for number, value in enumerate((b"", bytes(range(256)), b"x" * 65_536)):
                await _put(scene, f"k{number}\x00\n", value)
                assert await _read(scene, f"k{number}\x00\n") == value

    async def test_load_returns_registers_in_the_order_asked(self) -> None:
        """A key may be asked for twice."""
        async with self.scene() as scene:
            await _put(scene, "a", b"1")
            loaded = await scene.storage.load(["b", "a", "a"])
            assert [register and register.value for register in loaded.registers] == [
                None,
                b"1",
                b"1",
            ]

    @level(Level.CONCURRENCY)
    async def test_of_concurrent_swaps_one_wins(self) -> None:
        """So that a counter kept in a register counts right."""
        async with self.scene() as scene, scene.another() as other:
            await _put(scene, "n", b"0")

            async def increment(side: Scene) -> None:
                while True:
                    (held,) = (await side.storage.load(["n"])).registers
                    assert held is not None
                    value = b"%d" % (int(held.value) + 1)
                    change = RegisterChange(key="n", expect=held.version, value=value)
                    if (await side.storage.swap([change])).done:
                        return

            await asyncio.gather(*(increment(other if n % 2 else scene) for n in range(20)))
            assert await _read(scene, "n") == b"20"

    @requires(Capability.DURABLE)
    async def test_registers_survive_a_restart(self) -> None:
        """With their versions, which go on rising."""
        async with self.scene() as scene:
            version = await _put(scene, "a", b"1")
            gone = await _put(scene, "b", b"1")
            await _put(scene, "b", None, expect=gone)
            await scene.storage.stop()
            async with scene.another() as reopened:
                (register,) = (await reopened.storage.load(["a"])).registers
                assert register == Register(key="a", version=version, value=b"1")
                assert await _put(reopened, "b", b"2") > gone


__all__ = ["Registers"]
