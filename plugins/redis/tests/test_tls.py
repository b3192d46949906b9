"""Connections that are encrypted, by certificates of a CA made on the spot."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import pytest

from plugq.errors import ConfigError, PlugqError
from plugq.protocols import PluginContext, Resync, Wake
from plugq_redis import RedisOptions, RedisStorage

OpenStore = Callable[..., AbstractAsyncContextManager[RedisStorage]]


class Certificates:
    """A CA, and what it has signed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ca = self._path("ca.crt")
        key, subject = self._path("ca.key"), "/CN=a CA of a test"
        self._openssl("req", "-x509", *self._new(key), "-subj", subject, "-out", self.ca)
        self.sign("server", "subjectAltName=IP:127.0.0.1")
        self.sign("elsewhere", "subjectAltName=DNS:elsewhere.invalid")
        self.sign("client", "extendedKeyUsage=clientAuth")

    def sign(self, name: str, extension: str) -> None:
        request, extra = self._path(f"{name}.csr"), self._path(f"{name}.ext")
        Path(extra).write_text(extension)
        key = self._path(f"{name}.key")
        self._openssl("req", *self._new(key), "-subj", f"/CN={name}", "-out", request)
        by = ("-CA", self.ca, "-CAkey", self._path("ca.key"), "-CAcreateserial")
        out = ("-out", self._path(f"{name}.crt"))
        self._openssl("x509", "-req", "-in", request, *by, "-extfile", extra, "-days", "2", *out)

    def pair(self, name: str) -> dict[str, str]:
        return {"certfile": self._path(f"{name}.crt"), "keyfile": self._path(f"{name}.key")}

    def settings(self, name: str) -> list[str]:
        """Return the settings of a server that shows that certificate."""
        files = ["--tls-cert-file", self._path(f"{name}.crt")]
        files += ["--tls-key-file", self._path(f"{name}.key")]
        return [*files, "--tls-ca-cert-file", self.ca]

    def _path(self, name: str) -> str:
        return str(self._folder / name)

    @staticmethod
    def _new(key: str) -> tuple[str, ...]:
        return ("-newkey", "rsa:2048", "-nodes", "-keyout", key)

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is needed to make certificates")
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def start_encrypted(
    certificates: Certificates, start_server: Any, spare_port: Callable[[], int]
) -> Callable[..., str]:
    """Starts a server and returns its address; skips where it was built without TLS."""

    def start(name: str = "server", *, clients: str = "no") -> str:
        port = spare_port()
        settings = [*certificates.settings(name), "--tls-auth-clients", clients]
        try:
            start_server("--tls-port", str(port), *settings)
        except AssertionError as error:
            if "FATAL CONFIG FILE ERROR" in str(error):
                pytest.skip("this server was built without TLS")
            raise
        return f"rediss://127.0.0.1:{port}/0"

    return start


async def started(url: str, **options: Any) -> None:
    options = {"url": url, "connect_timeout": 1.0, **options}
    storage = RedisStorage(RedisOptions(**options), PluginContext())
    try:
        await storage.start()
    finally:
        await storage.stop()


async def refused(url: str, **options: Any) -> PlugqError:
    """Return why a start is refused."""
    with pytest.raises(PlugqError) as caught:
        await started(url, **options)
    assert "\n" not in str(caught.value)
    return caught.value


async def test_calls_and_signals_are_encrypted(
    start_encrypted: Any,
    certificates: Certificates,
    open_store: OpenStore,
    new_job: Any,
    claim: Any,
) -> None:
    url = start_encrypted()
    async with (
        open_store(url, ca_certs=certificates.ca) as storage,
        aclosing(storage.watch("p")) as notices,
    ):
        assert await anext(notices) == Resync()
        await storage.claim(claim(1, peer="p"))
        await storage.submit([new_job()])
        assert await anext(notices) == Wake()


async def test_files_are_relative_to_the_configuration(
    start_encrypted: Any, certificates: Certificates, open_store: OpenStore, tmp_path: Path
) -> None:
    url = start_encrypted()
    shutil.copy(certificates.ca, tmp_path / "our-ca.crt")
    async with open_store(url, ca_certs="our-ca.crt"):
        pass


async def test_a_client_shows_its_certificate(
    start_encrypted: Any, certificates: Certificates, open_store: OpenStore, new_job: Any
) -> None:
    url = start_encrypted(clients="yes")
    async with open_store(url, ca_certs=certificates.ca, **certificates.pair("client")) as storage:
        await storage.submit([new_job()])
    error = await refused(url, ca_certs=certificates.ca)
    assert "storage.certfile" in str(error)


async def test_a_certificate_that_is_not_trusted_is_refused(
    start_encrypted: Any, certificates: Certificates
) -> None:
    error = await refused(start_encrypted())
    assert isinstance(error, ConfigError)
    assert "storage.ca_certs" in str(error)
    error = await refused(start_encrypted("elsewhere"), ca_certs=certificates.ca)
    assert isinstance(error, ConfigError)
    assert "127.0.0.1" in str(error)


async def test_a_server_that_is_not_encrypted_is_told_from_one_that_is(
    start_encrypted: Any, certificates: Certificates, start_server: Any
) -> None:
    encrypted = start_encrypted()
    plain = start_server().url
    error = await refused(plain.replace("redis:", "rediss:"), ca_certs=certificates.ca)
    assert "redis://" in str(error)
    error = await refused(encrypted.replace("rediss:", "redis:"))
    assert "rediss://" in str(error)


@pytest.mark.parametrize("name", ["ca_certs", "certfile", "keyfile"])
async def test_files_that_are_not_there_are_named(
    name: str, start_encrypted: Any, certificates: Certificates
) -> None:
    files = {"ca_certs": certificates.ca, **certificates.pair("client")}
    error = await refused(start_encrypted(), **{**files, name: "/nowhere/at-all.pem"})
    assert isinstance(error, ConfigError)
    assert f"storage.{name}" in str(error)
    assert "/nowhere/at-all.pem" in str(error)
