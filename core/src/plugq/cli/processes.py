"""Worker processes below one parent, which starts them, keeps them and stops them.

Each is a fresh interpreter, never a fork. Its standard input is one end of a connection to the
parent: the worker says there that it works, and stops when the other end is gone, so that no worker
outlives a parent that was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from plugq.cli.failure import FAILED, MISTAKE
from plugq.cli.output import note, plural, say
from plugq.worker import catch_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import FrameType

    from plugq.config import Config

#: Seconds before a worker that died is started again: doubling, from the first to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
#: Seconds after which a worker counts as having worked, so that the pauses begin anew.
SETTLED = 10.0

_POSIX = os.name == "posix"


def worker_command(
    config: Config,
    *,
    app: str | None = None,
    queues: Sequence[str] = (),
    concurrency: int | None = None,
) -> list[str]:
    """Return the command that runs one worker below a parent."""
    # -P: like the installed command, without the current folder in front of everything.
    command = [sys.executable, "-P", "-m", "plugq", "worker", "--supervised"]
    if config.path is not None:
        command.append(f"--config={config.path}")
    if app is not None:
        command.append(f"--app={app}")
    command += [f"--queue={queue}" for queue in queues]
    if concurrency is not None:
        command.append(f"--concurrency={concurrency}")
    return command


def report_ready(line: str) -> None:
    """Tell the parent, from inside of a worker, that the worker works and what it is."""
    with contextlib.suppress(OSError):
        os.write(0, f"{line}\n".encode())


def wait_for_parent() -> None:
    """Return, inside of a worker, when its parent is gone."""
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass


class WorkerProcess:
    """One running worker process; made by :meth:`start`."""

    def __init__(self, process: asyncio.subprocess.Process, line: socket.socket | None) -> None:
        self._process = process
        self._line = line

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        environ: Mapping[str, str] | None = None,
        errors: int | None = None,
    ) -> WorkerProcess:
        """Start a worker; ``errors`` is a file descriptor in place of standard error."""
        ours, theirs = socket.socketpair() if _POSIX else (None, None)
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=subprocess.PIPE if theirs is None else theirs.fileno(),
                stdout=errors,
                stderr=errors,
                env=None if environ is None else {**os.environ, **environ},
                # A Ctrl-C on the terminal is for the parent, which passes it on once.
                start_new_session=_POSIX,
            )
        except BaseException:
            if ours is not None:
                ours.close()
            raise
        finally:
            if theirs is not None:
                theirs.close()
        if ours is not None:
            ours.settimeout(0)
        return cls(process, ours)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    async def ready(self) -> str | None:
        """Return what the worker says of itself once it works; ``None`` if it ends before."""
        if self._line is None:
            return ""
        said = b""
        while not said.endswith(b"\n"):
            try:
                part = await asyncio.get_running_loop().sock_recv(self._line, 4096)
            except OSError:
                part = b""
            if not part:
                return None
            said += part
        return said.decode().strip()

    async def wait(self) -> int:
        """Return the exit code once the process has ended; negative for a signal."""
        code = await self._process.wait()
        if self._line is not None:
            self._line.close()
        return code

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process still runs."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """End the process at once."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


class Processes:
    """Keeps a number of workers running until a signal.

    A worker that dies is started again after a pause of 0.1 s, doubling to 2 s while it keeps
    dying. One that refuses its configuration stops all of them.
    """

    def __init__(self, command: Sequence[str], number: int) -> None:
        self._command = command
        self._number = number
        self._stopping = asyncio.Event()
        self._running: dict[int, WorkerProcess] = {}
        self._restarts = 0
        self._code = 0
        self._signals = 0
        self._line = ""

    async def run(self) -> int:
        """Work until SIGTERM or SIGINT and return the exit code.

        The first signal goes to every worker as SIGTERM, the second kills what is left.
        """
        restore = self._catch_signals()
        try:
            async with asyncio.TaskGroup() as group:
                places = [asyncio.Event() for _ in range(self._number)]
                for at, ready in enumerate(places, 1):
                    group.create_task(self._keep(at, ready))
                    if at == 1:
                        # Workers that can not start all say the same: one is enough.
                        await ready.wait()
                for ready in places:
                    await ready.wait()
                if not self._stopping.is_set():
                    self._announce()
        finally:
            for worker in self._running.values():
                worker.kill()
            restore()
        if self._code != MISTAKE:
            restarts = f" after {plural(self._restarts, 'restart')}" if self._restarts else ""
            say(f"plugq worker · {self._number} processes stopped{restarts}")
        return self._code

    def _announce(self) -> None:
        parts = ["plugq worker", self._line, f"{self._number} processes", "Ctrl-C stops"]
        say(" · ".join(filter(None, parts)))

    async def _keep(self, at: int, ready: asyncio.Event) -> None:
        """Run one worker after the other in a place until all are to stop."""
        pause = FIRST_PAUSE
        try:
            while not self._stopping.is_set():
                began = time.monotonic()
                died = await self._run_one(at, ready)
                if died is None:
                    return
                if time.monotonic() - began >= SETTLED:
                    pause = FIRST_PAUSE
                self._restarts += 1
                note(f"worker {at} {died}; it restarts in {pause:g} s")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._stopping.wait()
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            ready.set()

    async def _run_one(self, at: int, ready: asyncio.Event) -> str | None:
        """Run one worker to its end; return what it died of, ``None`` where none is to follow."""
        try:
            worker = await self._start(at)
        except OSError as error:
            return f"can not be started: {error.strerror or error}"
        code = await self._watch(at, worker, ready)
        if self._stopping.is_set():
            self._ended(at, worker, code)
            return None
        if code == MISTAKE:
            self._code = MISTAKE
            self._stop(signal.SIGTERM)
            return None
        return f"(pid {worker.pid}) {_cause(code)}"

    async def _watch(self, at: int, worker: WorkerProcess, ready: asyncio.Event) -> int:
        said = await worker.ready()
        if said is not None:
            self._line = said
            if ready.is_set():
                note(f"worker {at} runs again (pid {worker.pid})")
            ready.set()
        code = await worker.wait()
        del self._running[at]
        return code

    async def _start(self, at: int) -> WorkerProcess:
        worker = await WorkerProcess.start(self._command)
        self._running[at] = worker
        if self._stopping.is_set():
            worker.send(signal.SIGTERM)
        return worker

    def _ended(self, at: int, worker: WorkerProcess, code: int) -> None:
        # A worker that had not begun to work yet dies of the SIGTERM, which is as good.
        if code in {0, -signal.SIGTERM}:
            return
        self._code = self._code or FAILED
        note(f"worker {at} (pid {worker.pid}) {_cause(code)} instead of stopping")

    def _stop(self, number: int) -> None:
        self._signals += 1
        self._stopping.set()
        for worker in self._running.values():
            if self._signals > 1:
                worker.kill()
            else:
                worker.send(signal.SIGTERM)
        if self._signals > 1:
            self._code = 128 + number

    def _catch_signals(self) -> Callable[[], None]:
        loop = asyncio.get_running_loop()

        def caught(number: int, _: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._stop, number)

        return catch_signals(caught)


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


__all__ = ["Processes", "WorkerProcess", "report_ready", "wait_for_parent", "worker_command"]
