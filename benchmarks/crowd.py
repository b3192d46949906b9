"""Many idle processes over one store: ``crowd.py CONFIG BOARD NUMBER``.

One process imports what they need and forks them, before it has any thread or connection. They end
when standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import struct
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from plugq.assembly import Assembly
from plugq.job import Outcome
from plugq.protocols.storage import ClaimRequest, Settlement, Storage

#: Process number, claims, jobs run, and the moment of the last claim that was granted something.
_PLACE = struct.Struct("qqqq")
#: Processes that start at the same time, so that they do not all wait for one lock.
BATCH = 10


class Board:
    """Shared memory with one place for each process, which only that process writes."""

    def __init__(self, path: Path, number: int = 0) -> None:
        if number:
            path.write_bytes(bytes(_PLACE.size * number))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)

    def write(self, place: int, claims: int, ran: int, claimed_at: int) -> None:
        _PLACE.pack_into(self._memory, place * _PLACE.size, os.getpid(), claims, ran, claimed_at)

    def _column(self, column: int) -> list[int]:
        return [row[column] for row in _PLACE.iter_unpack(self._memory[:])]

    def pids(self) -> list[int]:
        return self._column(0)

    def claims(self) -> list[int]:
        return self._column(1)

    def ran(self) -> list[int]:
        return self._column(2)

    def claimed_at(self) -> list[int]:
        return self._column(3)


async def idle(storage: Storage, board: Board, place: int) -> None:
    """Watch, claim when told to, run what is granted, and claim until there is nothing more."""
    claims = ran = claimed_at = 0
    peer = f"crowd-{place}"
    await storage.start()
    async with contextlib.aclosing(storage.watch(peer)) as notices:
        async for _ in notices:
            leases = True
            while leases:
                claims += 1
                request = ClaimRequest(
                    worker=peer, number=claims, queues=("default",), limit=1, peer=peer
                )
                leases = bool(found := (await storage.claim(request)).leases)
                if leases:
                    claimed_at = time.time_ns()
                    ran += len(found)
                    await storage.settle(
                        [
                            Settlement(
                                queue=lease.queue,
                                id=lease.id,
                                token=lease.token,
                                outcome=Outcome.SUCCEED,
                            )
                            for lease in found
                        ]
                    )
            board.write(place, claims, ran, claimed_at)


async def until_terminated(assembly: Assembly, board: Board, place: int) -> None:
    storage = assembly.storage()
    task = asyncio.create_task(idle(storage, board, place))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await storage.stop()


def ended_early() -> bool:
    """Return whether a child has ended although nobody asked it to."""
    return os.waitpid(-1, os.WNOHANG) != (0, 0)


def start(assembly: Assembly, board: Board, number: int) -> Iterator[int]:
    """Fork the processes and yield their numbers; stops where one of them can not start."""
    for place in range(number):
        child = os.fork()
        if not child:
            code = 1
            try:
                asyncio.run(until_terminated(assembly, board, place))
                code = 0
            except BaseException:  # noqa: BLE001 - nothing of the parent's may run in a child
                traceback.print_exc()
            finally:
                os._exit(code)
        yield child
        while place - sum(map(bool, board.claims())) >= BATCH:
            time.sleep(0.005)
            if ended_early():
                return


def main() -> None:
    config, shared, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    # It imports the storage, and each process makes one of its own.
    assembly = Assembly(config)
    assert threading.active_count() == 1
    children: list[int] = []
    try:
        children.extend(start(assembly, Board(shared), number))
        if len(children) == number and not ended_early():
            sys.stdin.read()
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        codes = []
        for child in children:
            with contextlib.suppress(ChildProcessError):
                codes.append(os.waitpid(child, 0)[1])
    if len(codes) < number or any(codes):
        sys.exit("not every process of the crowd started and stopped as it should")


if __name__ == "__main__":
    main()
